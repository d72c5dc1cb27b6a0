"""Texts without a label, among the gold and from the model: weights by hand, bounds by hand, and that it is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from consilience.annotate.codebook import Codebook
from consilience.annotate.estimates import POST, prevalence
from consilience.annotate.gold import GoldItem, Unlabelled, read_gold
from consilience.annotate.recipe import read_project
from consilience.annotate.sample import Sample
from consilience.annotate.unlabelled import undecided_share, without_label
from consilience.annotate.validate import Coded
from consilience.config import parse

BOOK = parse({"variable": "v", "question": "?", "labels": ["no", "yes"]}, Codebook, where="")


def test_a_stratum_coded_in_part_is_the_smaller_sample_that_it_is(tmp_path: Path) -> None:
    """Rare: 4 drawn at 0.4, 1 coded: 0.1. Common: 2 drawn at 0.2, both coded. What dev has is none of the test's."""
    (tmp_path / "codebook.yaml").write_text(yaml.safe_dump(BOOK.model_dump(mode="json")))
    recipe = "data: {path: texts.csv}\nmodels: {tiny: {path: tiny}}\nstrategies: [zero_shot]\n"
    (tmp_path / "recipe.yaml").write_text(recipe)
    rows = [
        "id,split,probability,stratum,label,gold_status",
        "1,test,0.4,rare,yes,coded",
        "2,test,0.4,rare,,unclear",
        "3,test,0.4,rare,,disagreement",
        "4,test,0.4,rare,,uncoded",
        "5,test,0.2,common,no,coded",
        "6,test,0.2,common,no,coded",
        "7,dev,0.4,rare,yes,coded",
        "8,dev,0.4,rare,,unclear",
    ]
    (tmp_path / "gold.csv").write_text("\n".join(rows))
    gold = read_gold(read_project(tmp_path))
    assert {item.id: item.probability for item in gold.test} == pytest.approx({"1": 0.1, "5": 0.2, "6": 0.2})
    assert {item.id: item.probability for item in gold.dev} == pytest.approx({"7": 0.2})
    assert [(text.id, text.why) for text in gold.unlabelled] == [
        ("2", "unclear"),
        ("3", "disagreement"),
        ("4", "uncoded"),
    ]


def sample(refused: int = 0) -> Sample:
    """Eight coded texts of a hundred, half of them yes, drawn at 0.1; the model is right but where it refuses."""
    labels = ["no", "yes"] * 4
    coded = tuple(Coded(GoldItem(f"r{i}", label, probability=0.1), label, "ok") for i, label in enumerate(labels))
    category_N = np.arange(100, dtype=np.intp) % 2
    category_N[100 - refused :] = 2
    gold_N = np.full(100, -1, dtype=np.intp)
    gold_N[:8] = np.arange(8)
    return Sample(
        configuration="m.s", labels=2, categories=("no", "yes", "(refused)"), category_N=category_N, gold_N=gold_N,
        coded=coded,
    )  # fmt: skip


def test_bounds_are_those_of_none_and_all_of_the_undecided() -> None:
    """Two undecided texts, drawn at 0.1, stand for 20 of 100; three that nobody reached yet stand for nothing."""
    left = [Unlabelled("u0", "unclear", probability=0.1), Unlabelled("u1", "disagreement", probability=0.1)]
    left += [Unlabelled(f"w{i}", "uncoded", probability=0.1) for i in range(3)]
    drawn = replace(sample(), unlabelled=tuple(left))
    assert undecided_share(drawn) == pytest.approx(0.2)
    shares = prevalence(drawn, BOOK, seed=0, corpus_is_sample=True)
    found = without_label(drawn, BOOK, shares)
    assert found["gold"] == {"unclear": 1, "disagreement": 1, "uncoded": 3}
    value = shares["yes"][POST]["value"]
    assert found["bounds"]["yes"]["least"] == pytest.approx(0.8 * value)
    assert found["bounds"]["yes"]["most"] == pytest.approx(0.8 * value + 0.2)
    said = " ".join(found["sentences"])
    assert "2 of 13 drawn texts have no final label (1 unclear, 1 disagreement)" in said
    assert "3 drawn texts are not coded yet" in said


def test_what_the_model_gave_no_label_is_counted_and_what_is_taken_of_it_is_said() -> None:
    nothing = without_label(sample(), BOOK, {})
    assert (nothing["gold"], nothing["model"], nothing["bounds"], nothing["sentences"]) == ({}, {}, {}, [])
    found = without_label(sample(refused=5), BOOK, {})
    assert found["model"] == {"refused": {"rows": 5, "gold": 0}}
    (said,) = found["sentences"]
    assert "no label to 5 of 100 texts (5 refused)" in said
    assert "None of those that are refused is a gold text" in said


def test_the_mean_of_numbers_is_bounded_by_the_ends_of_the_range() -> None:
    numbers = parse({"variable": "n", "question": "?", "level": "interval", "range": [0, 10]}, Codebook, where="")
    coded = tuple(Coded(GoldItem(f"r{i}", str(i)), str(i), "ok") for i in range(4))
    drawn = Sample(
        configuration="m.s", labels=0, categories=tuple("0123"), category_N=np.arange(4), gold_N=np.arange(4),
        coded=coded, unlabelled=(Unlabelled("u", "no label"),),
    )  # fmt: skip
    way = {"PPI++": {"value": 5.0, "low": 4.0, "high": 6.0}}
    bounds = without_label(drawn, numbers, {"mean": way})["bounds"]["mean"]
    assert (bounds["least"], bounds["most"]) == (pytest.approx(4.0), pytest.approx(6.0))  # 4/5 of 5, and 1/5 of 0 or 10
