"""Prevalence and group differences: against the estimators by hand, other designs, and what is paired with what."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from consilience.annotate.agreement import Design
from consilience.annotate.codebook import Codebook
from consilience.annotate.columns import column_of
from consilience.annotate.estimates import GOLD, NAIVE, POST, PPI, by_group, prevalence
from consilience.annotate.gold import GoldItem
from consilience.annotate.regress import DSL, regression, variables_of
from consilience.annotate.sample import Sample
from consilience.annotate.validate import Coded, agreement_with_gold, category_of, humans, validate
from consilience.config import parse
from consilience.errors import ConfigError, DataError
from consilience.rng import stream

LABELS = ("no", "yes")


def book(**changes: Any) -> Codebook:
    return parse({"variable": "v", "question": "?", "labels": [*LABELS]} | changes, Codebook, where="")


def sample(rows: int = 800, gold: int = 200, *, clusters: int = 0, seed: int = 0, refused: int = 0) -> Sample:
    """Truth 30 % yes, more in group b; the model errs in 15 % and gives no label to the last `refused` rows."""
    rng = stream(seed, "sample")
    group = np.array(["a", "b"])[rng.integers(0, 2, rows)]
    x = rng.normal(size=rows)
    truth = (rng.random(rows) < np.where(group == "b", 0.4, 0.2)).astype(int)
    model = np.where(rng.random(rows) < 0.85, truth, 1 - truth)
    category = np.where(np.arange(rows) >= rows - refused, 2, model)
    drawn = np.sort(rng.permutation(rows)[:gold])
    gold_N = np.full(rows, -1, dtype=np.intp)
    gold_N[drawn] = np.arange(gold)
    names = [*LABELS, category_of(None, "refused")]
    of_cluster = [f"c{i % clusters}" for i in range(rows)] if clusters else None
    coded = tuple(
        Coded(
            GoldItem(f"r{i}", LABELS[truth[i]]),
            names[category[i]] if category[i] < 2 else None,
            "ok" if category[i] < 2 else "refused",
            cluster=of_cluster[i] if of_cluster else "",
        )
        for i in drawn
    )
    return Sample(
        configuration="m.s", labels=2, categories=tuple(names), category_N=category, gold_N=gold_N, coded=coded,
        cluster_N=np.arange(rows) % clusters if clusters else None, clusters=tuple(f"c{i}" for i in range(clusters)),
        columns={"group": column_of("group", [*group]), "x": column_of("x", [*map(str, x)])},
    )  # fmt: skip


def test_four_ways_of_one_share() -> None:
    drawn = sample()
    ways = prevalence(drawn, book(), seed=0, corpus_is_sample=True)["yes"]
    gold = np.array([item.gold.label == "yes" for item in drawn.coded])
    assert ways[GOLD]["value"] == pytest.approx(gold.mean())
    assert ways[NAIVE]["value"] == pytest.approx((drawn.category_N == 1).mean())
    shares = [gold[[item.label == label for item in drawn.coded]].mean() for label in LABELS]
    sizes = [(drawn.category_N == k).mean() for k in (0, 1)]
    assert ways[POST]["plug_in"] == pytest.approx(float(np.dot(sizes, shares)))
    assert ways[POST]["value"] == pytest.approx(ways[PPI]["value"], abs=0.01)
    assert ways[POST]["high"] - ways[POST]["low"] < ways[GOLD]["high"] - ways[GOLD]["low"]
    assert ways["bought"]["gold_texts_worth"] > len(drawn.coded)
    for way in (POST, PPI, GOLD, NAIVE):
        assert ways[way]["low"] < ways[way]["half"][0] < ways[way]["value"] < ways[way]["half"][1] < ways[way]["high"]


def test_rows_without_a_label_stay_in_the_estimate() -> None:
    drawn = sample(refused=200)
    ways = prevalence(drawn, book(), seed=0, corpus_is_sample=True)
    assert sum(of[NAIVE]["value"] for of in ways.values()) == pytest.approx(0.75)
    assert sum(of[POST]["plug_in"] for of in ways.values()) == pytest.approx(1)


def test_differences_of_groups_are_of_independent_texts() -> None:
    drawn = sample()
    found = by_group(drawn, book(), "group", seed=0, corpus_is_sample=True)
    parts = [found["groups"][group]["prevalence"]["yes"] for group in ("a", "b")]
    difference = found["differences"]["b − a"]["yes"]
    for way in (GOLD, PPI, NAIVE):
        expected = np.hypot(*(part[way]["standard_error"] for part in parts))
        assert difference[way]["value"] == pytest.approx(parts[1][way]["value"] - parts[0][way]["value"])
        assert difference[way]["standard_error"] == pytest.approx(expected)
    assert difference[POST]["standard_error"] == pytest.approx(difference[GOLD]["standard_error"], rel=0.35)
    curve = [p for _, p in difference["curve"]]
    assert curve == sorted(curve, reverse=True)
    with pytest.raises(DataError, match="800 values"):
        by_group(drawn, book(), "x", seed=0, corpus_is_sample=True)


def test_clusters_enter_every_way() -> None:
    alone, together = sample(), sample(clusters=20)
    for ways in (prevalence(together, book(), seed=0, corpus_is_sample=True)["yes"],):
        for way in (PPI, GOLD, NAIVE):
            assert ways[way]["units"] == "clusters"
        assert ways[POST]["units"] == "gold items in clusters"
    assert prevalence(alone, book(), seed=0, corpus_is_sample=True)["yes"][GOLD]["units"] == "texts"


def test_a_regression_with_the_variable_on_either_side() -> None:
    drawn = sample()
    as_outcome = regression(drawn, book(), "v_yes ~ group", family=None, seed=0)
    assert as_outcome["family"] == "logistic"
    found = as_outcome["coefficients"]["group[T.b]"]
    assert found[DSL]["low"] < np.log(0.4 / 0.6) - np.log(0.2 / 0.8) < found[DSL]["high"]
    assert found[PPI]["value"] == pytest.approx(found[DSL]["value"], abs=found[DSL]["standard_error"])
    as_covariate = regression(drawn, book(), "x ~ v + group", family=None, seed=0)
    assert as_covariate["family"] == "linear"
    assert [*as_covariate["coefficients"]] == ["Intercept", "v[T.yes]", "group[T.b]"]
    assert as_covariate["coefficients"]["v[T.yes]"][PPI] is None  # PPI++ is for measured outcomes
    interaction = regression(drawn, book(), "x ~ v * group", family=None, seed=0)
    assert len(interaction["coefficients"]) == 4


@pytest.mark.parametrize(
    ("formula", "words"),
    [
        ("v_yes", "lacks '~'"),
        ("v_yes ~ (", "cannot be read"),
        ("x ~ group", "nothing in the formula"),
        ("v ~ group", "take one, such as v_no"),
    ],
)
def test_a_formula_that_does_not_fit(formula: str, words: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        regression(sample(), book(), formula, family=None, seed=0)
    assert words in str(refusal.value)


def test_columns_of_a_formula() -> None:
    assert variables_of("v_yes ~ group + np.log(x) + group:x", book()) == (["group", "x"], {"v_yes"})


def coded(pairs: list[tuple[str, str]], **coders: list[str]) -> list[Coded]:
    items = []
    for i, (gold, label) in enumerate(pairs):
        codes = {name: given[i] for name, given in coders.items()}
        items.append(Coded(GoldItem(str(i), gold, coders=codes), label or None, "ok" if label else "refused"))
    return items


def test_a_refusal_counts_as_disagreement_and_is_a_column_of_its_own() -> None:
    items = coded([("yes", "yes")] * 6 + [("no", "no")] * 6 + [("yes", ""), ("no", ""), ("no", "yes"), ("yes", "no")])
    found = validate(items, book())
    assert found["agreement"]["observed agreement"]["value"] == pytest.approx(12 / 16)
    assert found["table"]["accuracy"]["plug_in"] == pytest.approx(12 / 16)
    assert found["confusion"]["model"] == ["no", "yes", "(refused)"]
    assert found["confusion"]["counts"] == [[6, 1, 1], [1, 6, 1]]
    assert found["statuses"] == {"ok": 14, "refused": 2}


def test_ordinal_variables_have_ordinal_measures() -> None:
    ordered = book(level="ordinal", labels=["low", "middle", "high"])
    near = coded([("low", "middle"), ("high", "high"), ("middle", "middle"), ("low", "low")] * 5)
    far = coded([("low", "high"), ("high", "high"), ("middle", "middle"), ("low", "low")] * 5)
    name = "Krippendorff's alpha (ordinal)"
    measures = [agreement_with_gold(items, ordered, Design(None, None))[name]["value"] for items in (near, far)]
    assert measures[0] > measures[1]


def test_coders_among_themselves_and_with_the_model() -> None:
    truth = [LABELS[i % 2] for i in range(40)]
    ann = [label if i % 10 else "yes" for i, label in enumerate(truth)]
    bob = [label if i % 7 else "no" for i, label in enumerate(truth)]
    items = coded([(label, label) for label in truth], ann=ann, bob=bob)
    found = humans(items, book(), Design(None, None))
    assert found is not None
    name = "Krippendorff's alpha (nominal)"
    assert found["texts"] == 40
    assert found["with_model"][name]["value"] > found["among_coders"][name]["value"]
    apart = found["with_model"][name]["value"] - found["among_coders"][name]["value"]
    assert found["difference"][name]["value"] == pytest.approx(apart)
    assert found["advantage"]["value"] == pytest.approx(
        np.mean(
            [
                [(m == b) >= (a == b) for m, a, b in zip(truth, ann, bob)],
                [(m == a) >= (b == a) for m, a, b in zip(truth, ann, bob)],
            ]
        )
    )


def relabelled(drawn: Sample, labels: int, names: dict[str, str]) -> Sample:
    """The same texts with other names for `no` and `yes`; the codebook has so many labels of its own."""
    return replace(
        drawn,
        labels=labels,
        categories=tuple(names.get(category, category) for category in drawn.categories),
        coded=tuple(
            replace(item, gold=replace(item.gold, label=names[item.gold.label]), label=names.get(item.label or ""))
            for item in drawn.coded
        ),
    )


def test_groups_of_several_labels_are_those_of_each_label_alone() -> None:
    """`yes` beside a label that every text has."""
    drawn = sample()
    of_several = relabelled(drawn, 2, {"no": "always", "yes": "yes|always"})
    alone = by_group(drawn, book(), "group", seed=0, corpus_is_sample=True)
    several = book(level="multi-label", labels=["yes", "always"])
    found = by_group(of_several, several, "group", seed=0, corpus_is_sample=True)
    for group in ("a", "b"):
        ways = found["groups"][group]["prevalence"]
        for way in (PPI, GOLD, NAIVE):
            assert ways["yes"][way] == alone["groups"][group]["prevalence"]["yes"][way]
        assert ways["yes"][POST]["plug_in"] == pytest.approx(
            alone["groups"][group]["prevalence"]["yes"][POST]["plug_in"]
        )
        assert ways["always"][GOLD]["value"] == 1
    apart, expected = found["differences"]["b − a"]["yes"], alone["differences"]["b − a"]["yes"]
    assert apart[PPI] == expected[PPI]
    assert apart[POST]["plug_in"] == pytest.approx(expected[POST]["plug_in"])
    assert len(apart["curve"]) == len(expected["curve"])


def test_groups_of_a_number_have_means_and_their_difference() -> None:
    """Yes is 10 and no is 0, so the mean is ten times the share."""
    drawn = sample(refused=40)
    as_numbers = relabelled(drawn, 0, {"no": "0", "yes": "10"})
    interval = book(level="interval", labels=[], range=[0, 10])
    found = by_group(as_numbers, interval, "group", seed=0, corpus_is_sample=True)
    shares = by_group(drawn, book(), "group", seed=0, corpus_is_sample=True)
    for group in ("a", "b"):
        ways = found["groups"][group]["prevalence"]["mean"]
        assert ways[GOLD]["value"] == pytest.approx(10 * shares["groups"][group]["prevalence"]["yes"][GOLD]["value"])
        assert ways[PPI]["low"] < ways[PPI]["value"] < ways[PPI]["high"]
    apart = found["differences"]["b − a"]["mean"]
    sides = [found["groups"][group]["prevalence"]["mean"] for group in ("a", "b")]
    for way in (PPI, GOLD, NAIVE):
        assert apart[way]["value"] == pytest.approx(sides[1][way]["value"] - sides[0][way]["value"])
        assert apart[way]["standard_error"] == pytest.approx(np.hypot(*(s[way]["standard_error"] for s in sides)))
    curve = [p for _, p in apart["curve"]]
    assert curve == sorted(curve, reverse=True)
    whole = prevalence(as_numbers, interval, seed=0, corpus_is_sample=True)["mean"]
    assert whole[NAIVE]["value"] == pytest.approx(10 * (drawn.category_N == 1).sum() / (drawn.category_N < 2).sum())


def test_what_opens_no_model_waits_for_no_torch() -> None:
    rooms = "estimate, consilience.annotate.freeze, consilience.annotate.dev, consilience.annotate.run"
    code = f"import sys, consilience.annotate.{rooms}; assert not {{'torch', 'transformers'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
