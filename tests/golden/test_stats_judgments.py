"""Bradley-Terry, MT-Bench and agreement on real judgments, against other libraries and published scores."""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consilience.stats import difference, mean
from consilience.stats.agreement import cohens_kappa, krippendorff_alpha, observed_agreement
from consilience.stats.bradley_terry import bradley_terry
from consilience.stats.mt_bench import mt_bench_score
from consilience.stats.proportions import proportion

SHARED = Path(__file__).parents[3] / "shared"
CHECKS, DATA = SHARED / "checks" / "evaluation", SHARED / "data" / "mt_bench"
pytestmark = pytest.mark.skipif(
    not (CHECKS.is_dir() and DATA.is_dir()), reason="no ../shared/checks/evaluation and ../shared/data beside the repo"
)


@cache
def pinned(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHECKS / f"{name}_expected.json").read_text())
    return found


@cache
def battles() -> tuple[list[str], list[str], list[float], list[str]]:
    with gzip.open(CHECKS / "bt_battles.csv.gz", "rt") as file:
        rows = list(csv.DictReader(file))
    won = {"model_a": 1.0, "tie": 0.5, "model_b": 0.0}
    return (
        [row["model_a"] for row in rows],
        [row["model_b"] for row in rows],
        [won[row["winner"]] for row in rows],
        [row["question_id"] for row in rows],
    )


def test_bradley_terry_ratings_and_clustered_errors() -> None:
    expected = pinned("bt")
    found = bradley_terry(*battles(), reference=expected["reference"])
    questions = found[expected["reference"]].n
    for model, elo in expected["statsmodels_elo_diff_from_reference"].items():
        assert found[model].value == pytest.approx(elo, abs=1e-3)
        cr0 = found[model].standard_error * math.sqrt((questions - 1) / questions)
        assert cr0 == pytest.approx(expected["se_cluster_question_CR0"][model], abs=1e-6)


def test_bradley_terry_by_battle_is_the_sandwich() -> None:
    # The pinned HC0 counts a tie as two rows of half a weight, which is not one battle; so only the order is checked.
    expected = pinned("bt")
    first, second, wins, _ = battles()
    by_battle = bradley_terry(first, second, wins, reference=expected["reference"])
    by_question = bradley_terry(*battles(), reference=expected["reference"])
    for model, hc0 in expected["se_sandwich_HC0"].items():
        assert by_battle[model].standard_error == pytest.approx(hc0, rel=1e-3)
        assert by_battle[model].standard_error < by_question[model].standard_error


@pytest.mark.parametrize("reference", [None, "mamba_0_875_dpo_ep1"])
def test_a_difference_of_ratings_does_not_know_the_reference(reference: str | None) -> None:
    expected = pinned("bt")
    found = bradley_terry(*battles(), reference=reference)
    gap = difference(found["mamba_0_75_dpo_ep3"], found[expected["reference"]])
    assert gap.value == pytest.approx(expected["statsmodels_elo_diff_from_reference"]["mamba_0_75_dpo_ep3"], abs=1e-3)
    cr0 = gap.standard_error * math.sqrt((gap.n - 1) / gap.n)
    assert cr0 == pytest.approx(expected["se_cluster_question_CR0"]["mamba_0_75_dpo_ep3"], abs=1e-6)


def mt_bench_models() -> list[tuple[str, str]]:
    if not CHECKS.is_dir():
        return []
    files = pinned("mt_bench")["files"]
    clean = ("duplicate_rows", "unparsed", "out_of_range")
    return [
        (file, model)
        for file, content in files.items()
        for model, mine in content["models"].items()
        if not any(mine[trouble] for trouble in clean)
    ]


@cache
def ratings(file: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / "judgments" / f"{file}.single.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("file", "model"), mt_bench_models())
def test_mt_bench_scores_by_question(file: str, model: str) -> None:
    mine = pinned("mt_bench")["files"][file]["models"][model]
    rows = [row for row in ratings(file) if row["model"] == model]
    columns = ([row["score"] for row in rows], [str(row["question_id"]) for row in rows], [row["turn"] for row in rows])
    found = mt_bench_score(*columns, [row["category"] for row in rows])
    assert found.overall.value == pytest.approx(mine["mean"], abs=1e-9)
    assert found.overall.standard_error == pytest.approx(mine["se_cluster_inspect_ai"], abs=1e-9)
    assert (found.overall.low, found.overall.high) == pytest.approx(mine["ci95_t_cluster"], abs=1e-9)
    assert [found.by_turn[turn].value for turn in (1, 2)] == pytest.approx([mine["turn1"], mine["turn2"]], abs=1e-9)
    by_category = {name: estimate.value for name, estimate in found.by_category.items()}
    assert by_category == pytest.approx(mine["by_category"], abs=1e-9)
    assert found.same_categories.standard_error < found.overall.standard_error
    if mine["published"] is not None:
        assert round(found.overall.value, 2) == mine["published"]
    assert mean(columns[0]).standard_error == pytest.approx(mine["se_naive"], abs=1e-9)


def test_both_orders_of_a_pairwise_judge() -> None:
    expected = pinned("position_swap")
    with gzip.open(DATA / "judgments" / expected["file"], "rt") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if "error" not in (row["g1_winner"], row["g2_winner"])]
    assert len(rows) == expected["n_ok"]
    same = proportion([row["g1_winner"] == row["g2_winner"] for row in rows])
    assert same.value == expected["consistency"]
    assert (same.low, same.high) == pytest.approx(expected["consistency_wilson95"])
    worth = {"model_1": 0.0, "tie": 0.5, "model_2": 1.0}
    both = [(worth[row["g1_winner"]] + worth[row["g2_winner"]]) / 2 for row in rows]
    assert mean(both).value == pytest.approx(expected["model_2_mean_of_two_orders"])
    assert mean(both).standard_error == pytest.approx(expected["se"])
    kappa = cohens_kappa([row["g1_winner"] for row in rows], [row["g2_winner"] for row in rows])
    assert kappa.value == pytest.approx(expected["cohen_kappa_between_orders"])


def votes(kind: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads((DATA / "human_subset" / f"{kind}_annotations.json").read_text())
    return found


@pytest.mark.parametrize("pair", ["author_0|author_4", "author_0|expert_24", "author_4|expert_24"])
def test_agreement_of_two_people(pair: str) -> None:
    expected = pinned("judge_human_agreement")["human_human"][pair]
    one, other = (votes("human")[name] for name in pair.split("|"))
    items = [item for item in one if item in other]
    first, second = [one[item] for item in items], [other[item] for item in items]
    questions = [item.split("__")[0] for item in items]
    agreement = observed_agreement(first, second, questions)
    assert len(items) == expected["n"]
    assert agreement.value == pytest.approx(expected["agreement"], abs=1e-9)
    assert agreement.standard_error == pytest.approx(expected["se_cluster_question"], abs=1e-9)
    assert cohens_kappa(first, second, questions).value == pytest.approx(expected["cohen_kappa"], abs=1e-9)


def test_agreement_of_judges_with_people() -> None:
    expected = pinned("judge_human_agreement")
    people, judges = votes("human"), votes("llm")
    for judge, mine in expected["llm_human"].items():
        pairs = [(judges[judge][item], vote) for person in people.values() for item, vote in person.items()]
        questions = [item.split("__")[0] for person in people.values() for item in person]
        first, second = zip(*pairs)
        clustered = observed_agreement(first, second, questions)
        assert clustered.standard_error == pytest.approx(mine["se_cluster_question"], abs=1e-9)
        # Their percentile bootstrap over questions, 2000 draws; ours is not symmetric either.
        assert (clustered.low, clustered.high) == pytest.approx(mine["boot95"], abs=0.012)
        assert Counter(judges[judge].values()) == mine["llm_labels"]
        assert observed_agreement(first, second).value == pytest.approx(mine["agreement"], abs=1e-9)
        assert cohens_kappa(first, second).value == pytest.approx(mine["cohen_kappa_pooled"], abs=1e-9)


def test_alpha_of_all_people() -> None:
    expected = pinned("judge_human_agreement")
    people = votes("human")
    items = sorted({item for person in people.values() for item in person})
    worth = {"model_a": 0.0, "tie": 1.0, "model_b": 2.0}
    ratings = np.array(
        [[worth[person[item]] if item in person else np.nan for person in people.values()] for item in items]
    )
    for level in ("nominal", "ordinal"):
        found = krippendorff_alpha(ratings, scale=level)
        assert found.value == pytest.approx(expected[f"krippendorff_alpha_{level}_humans"], abs=1e-9)
