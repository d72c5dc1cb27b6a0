"""AlpacaEval 2.0 on 28 models' real judgments: the published numbers, the exact optimum, the honest standard error."""

from __future__ import annotations

import csv
import gzip
import json
import math
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from consilience.stats import difference
from consilience.stats.length_control import GamedBaselines, LengthControlled, length_controlled_win_rate
from consilience.stats.resampling import bootstrap_draws
from consilience.stats.win_rate import discrete_win_rate, win_counts, win_rate

SHARED = Path(__file__).parents[3] / "shared"
CHECKS, DATA = SHARED / "checks" / "evaluation", SHARED / "data" / "alpaca_eval"
pytestmark = pytest.mark.skipif(
    not (CHECKS.is_dir() and DATA.is_dir()), reason="no ../shared/checks/evaluation and ../shared/data beside the repo"
)
MODELS = sorted(json.loads((CHECKS / "alpaca_eval_expected.json").read_text())) if CHECKS.is_dir() else []


class Judged(NamedTuple):
    """One model's judgments against the baseline."""

    wins: np.ndarray
    gaps: np.ndarray
    units: list[str]

    def without(self, rows: np.ndarray) -> Judged:
        keep = np.ones(len(self.wins), dtype=bool)
        keep[rows] = False
        return Judged(self.wins[keep], self.gaps[keep], [unit for unit, kept in zip(self.units, keep) if kept])


@cache
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CHECKS / "alpaca_eval_expected.json").read_text())
    return found


@cache
def judged() -> dict[str, Judged]:
    rows: dict[str, list[dict[str, str]]] = {}
    with gzip.open(DATA / "annotations_slim.csv.gz", "rt") as file:
        for row in csv.DictReader(file):
            rows.setdefault(row["model"], []).append(row)
    return {
        model: Judged(
            np.array([float(row["preference"]) - 1 for row in mine]),
            np.array([float(row["len_baseline"]) - float(row["len_model"]) for row in mine]),
            [row["index"] for row in mine],
        )
        for model, mine in rows.items()
    }


@cache
def reference() -> tuple[dict[str, float], GamedBaselines]:
    """Every instruction's difficulty, in the order of the set, and the gamed baselines."""
    with (DATA / "df_gamed.csv").open() as file:
        rows = list(csv.DictReader(file))
    difficulty = {row["index"]: float(row["instruction_difficulty"]) for row in rows}
    gamed = GamedBaselines(
        [float(row["preference"]) for row in rows],
        [float(row["std_delta_len"]) for row in rows],
        [row["index"] for row in rows],
    )
    return dict(sorted(difficulty.items(), key=lambda pair: int(pair[0]))), gamed


def controlled(data: Judged, **options: Any) -> LengthControlled:
    difficulty, gamed = reference()
    return length_controlled_win_rate(*data, difficulty=difficulty, gamed=gamed, **options)


@pytest.mark.parametrize("model", MODELS)
def test_win_rates_are_the_published_ones(model: str) -> None:
    data, published = judged()[model], expected()[model]["published"]
    found = win_rate(data.wins, data.units)
    assert found.value == pytest.approx(published["win_rate"], abs=1e-6)
    assert found.standard_error == pytest.approx(published["standard_error"], abs=1e-6)
    assert discrete_win_rate(data.wins).value == pytest.approx(published["discrete_win_rate"], abs=1e-6)
    assert win_counts(data.wins) == (published["n_wins"], published["n_wins_base"], published["n_draws"])


@pytest.mark.parametrize("model", MODELS)
def test_length_control_as_published(model: str) -> None:
    mine = expected()[model]
    found = controlled(judged()[model], penalty_c=mine["C_that_reproduces_published"], difficulty_by_row=True)
    assert found.estimate.value == pytest.approx(mine["published"]["length_controlled_winrate"], abs=0.02)
    assert found.estimate.value == pytest.approx(mine["exact_optimum_at_that_C"]["lc"], abs=1e-4)
    coefficients = [found.length_effect, found.difficulty_effect, found.quality]
    assert coefficients == pytest.approx(mine["exact_optimum_at_that_C"]["coef"], abs=1e-6)


@pytest.mark.parametrize("model", MODELS)
def test_length_control_with_every_difficulty_in_its_place(model: str) -> None:
    mine = expected()[model]
    found = controlled(judged()[model], penalty_c=mine["C_that_reproduces_published"])
    assert found.estimate.value == pytest.approx(mine["aligned"]["lc"], abs=1e-4)
    assert found.estimate.standard_error == pytest.approx(mine["honest_se_influence"], abs=1e-4)
    assert found.published_standard_error == pytest.approx(mine["aligned"]["glm_sem"], abs=1e-6)
    unpenalised = controlled(judged()[model], penalty_c=math.inf)
    assert unpenalised.estimate.value == pytest.approx(mine["aligned_unpenalised"]["lc"], abs=1e-4)


def test_ten_missing_replies_hardly_matter() -> None:
    # alpaca_eval's own number moves by up to nine points: every later reply gets another instruction's difficulty.
    rng = np.random.default_rng(0)
    for data in judged().values():
        whole = controlled(data).estimate.value
        for rows in (np.arange(10), np.arange(400, 410), *(rng.choice(800, 10, replace=False) for _ in range(3))):
            assert controlled(data.without(rows)).estimate.value == pytest.approx(whole, abs=1)


def test_influence_foretells_what_a_missing_reply_does() -> None:
    data = judged()["gpt-3.5-turbo-1106"]
    whole = controlled(data).estimate
    for row in np.argsort(whole.influence)[[0, 1, -2, -1]]:  # by 0.1 to 0.4 points; the sd of the gaps moves a little
        left_out = controlled(data.without(np.array([row]))).estimate.value
        assert whole.value - left_out == pytest.approx(whole.influence[row] / len(data.wins), rel=0.1)


def test_a_paired_difference_of_two_models() -> None:
    # Of two models that were fused alike: paired 1.55, unpaired 2.10 (references/evaluation.md, 1.4) for the Llama and
    # the Qwen; here for the two Llamas, whose data is beside us, only that pairing helps.
    big, small = (controlled(judged()[f"FuseChat-Llama-{size}-Instruct"]).estimate for size in ("3.1-8B", "3.2-1B"))
    found = difference(big, small)
    assert found.method == "paired difference, Student t"
    assert found.standard_error < math.hypot(big.standard_error, small.standard_error)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["FuseChat-Llama-3.1-8B-Instruct", "gpt35_turbo_instruct"])
def test_standard_error_is_that_of_the_bootstrap_over_instructions(model: str) -> None:
    pinned = json.loads((CHECKS / "alpaca_eval_uncertainty_expected.json").read_text())[model]
    data, (difficulty, gamed) = judged()[model], reference()
    gamed_rows = {unit: [i for i, name in enumerate(gamed.units_R) if name == unit] for unit in data.units}

    def refit(weights_BG: np.ndarray) -> np.ndarray:
        values = []
        for weights in weights_BG.astype(int):
            drawn = np.repeat(np.arange(len(weights)), weights)
            names = [f"{data.units[i]}/{k}" for k, i in enumerate(drawn)]
            rows, owners = [], []
            for name, i in zip(names, drawn):
                rows += gamed_rows[data.units[i]]
                owners += [name] * len(gamed_rows[data.units[i]])
            sample = GamedBaselines(
                np.asarray(gamed.wins_R)[rows], np.asarray(gamed.standard_gaps_R)[rows], owners, gamed.weight
            )
            hard = {name: difficulty[name.split("/")[0]] for name in names}
            fit = length_controlled_win_rate(data.wins[drawn], data.gaps[drawn], names, difficulty=hard, gamed=sample)
            values.append(fit.estimate.value)
        return np.array(values)

    draws = bootstrap_draws(refit, np.eye(len(data.units)), rng=np.random.default_rng(0), draws=500)
    own_error = draws.std() / math.sqrt(2 * len(draws))
    assert draws.std(ddof=1) == pytest.approx(
        pinned["bootstrap_se"], abs=5 * math.hypot(own_error, pinned["mc_error_of_se"])
    )
    assert controlled(data).estimate.standard_error == pytest.approx(
        pinned["bootstrap_se"], abs=5 * pinned["mc_error_of_se"]
    )
