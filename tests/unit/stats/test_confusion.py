"""The posterior confusion table: exact binary checks, other designs, and coverage on simulated data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from consilience.errors import DataError
from consilience.rng import stream
from consilience.stats import post_stratified
from consilience.stats.confusion import cluster_effect_of_shares, confusion


def pairs(table: list[list[int]]) -> tuple[list[int], list[int]]:
    """Model and gold places of a table [gold][model]."""
    cells = [(k, j) for j, row in enumerate(table) for k, count in enumerate(row) for _ in range(count)]
    return [k for k, _ in cells], [j for _, j in cells]


def test_precision_is_a_beta_and_prevalence_a_mixture_of_them() -> None:
    model, gold = pairs([[40, 6], [4, 30]])
    counts = [600, 400]
    table = confusion(model, gold, counts, 2, rng=stream(0, "t"), corpus_effect=1e-9, draws=100_000)
    precision = table.measure("precision", 1)  # of 36 that the model calls 1, 30 are
    expected = beta(30.5, 6.5)
    assert precision.value == pytest.approx(expected.median(), abs=0.002)
    assert precision.low == pytest.approx(expected.ppf(0.025), abs=0.003)
    assert precision.plug_in == pytest.approx(30 / 36)
    assert table.measure("prevalence", 1).plug_in == pytest.approx(0.6 * 4 / 44 + 0.4 * 30 / 36)
    assert table.measure("accuracy").plug_in == pytest.approx(0.6 * 40 / 44 + 0.4 * 30 / 36)


def test_prevalence_of_two_labels_is_that_of_post_stratified() -> None:
    model, gold = pairs([[40, 6], [4, 30]])
    table = confusion(model, gold, [600, 400], 2, rng=stream(0, "t"), draws=60_000)
    whole = model + [0] * (600 - 44) + [1] * (400 - 36)
    truth = [*map(float, gold)] + [np.nan] * 920
    theirs = post_stratified(whole, truth, rng=stream(1, "t"), draws=60_000)
    found = table.measure("prevalence", 1)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_gold_at_other_rates_from_other_strata_changes_nothing_but_the_width() -> None:
    """Verification bias: 10 of 900 and 90 of 100 in one, all alike in the other."""
    model, gold = pairs([[9, 30], [1, 60]])
    table = confusion(model, gold, [900, 100], 2, rng=stream(0, "t"))
    assert table.measure("prevalence", 1).plug_in == pytest.approx(0.9 * 0.1 + 0.1 * 60 / 90)
    assert table.measure("recall", 1).plug_in == pytest.approx((0.1 * 60 / 90) / (0.9 * 0.1 + 0.1 * 60 / 90))


def test_what_has_no_label_counts_as_wrong_and_is_in_the_prevalence() -> None:
    model, gold = pairs([[45, 5, 10], [5, 45, 0]])
    table = confusion(model, gold, [50, 50, 10], 2, rng=stream(0, "t"))
    assert table.measure("accuracy").plug_in == pytest.approx(90 / 110)
    assert table.measure("prevalence", 0).plug_in == pytest.approx(60 / 110)
    assert table.cell(0, 2).plug_in == pytest.approx(10 / 60)


def test_weights_within_a_stratum_weight_its_shares() -> None:
    table = confusion([0, 0, 0, 1], [0, 1, 1, 1], [60, 40], 2, rng=stream(0, "t"), weights=[6, 1, 1, 1])
    assert table.measure("prevalence", 0).plug_in == pytest.approx(0.6 * 6 / 8)
    even = confusion([0, 0, 0, 1], [0, 1, 1, 1], [60, 40], 2, rng=stream(0, "t"), weights=[2, 2, 2, 2])
    alone = confusion([0, 0, 0, 1], [0, 1, 1, 1], [60, 40], 2, rng=stream(0, "t"))
    np.testing.assert_allclose(even.joint_BJK, alone.joint_BJK)


def test_copies_of_an_item_in_a_cluster_are_one_item() -> None:
    model, gold = pairs([[20, 5], [4, 21]])
    once = confusion(model, gold, [480, 520], 2, rng=stream(0, "t")).measure("accuracy")
    names = [str(i) for i in range(50)]
    three = confusion(model * 3, gold * 3, [480, 520], 2, rng=stream(0, "t"), clusters=names * 3).measure("accuracy")
    apart = confusion(model * 3, gold * 3, [480, 520], 2, rng=stream(0, "t")).measure("accuracy")
    assert three.standard_error == pytest.approx(once.standard_error, rel=0.08)
    assert apart.standard_error < 0.7 * once.standard_error


def test_the_corpus_itself_is_known_once_all_is_coded() -> None:
    model, gold = pairs([[30, 10], [5, 15]])
    table = confusion(model, gold, [35, 25], 2, rng=stream(0, "t"), corpus_is_sample=False)
    found = table.measure("prevalence", 0)
    assert found.low == pytest.approx(found.high)
    assert found.value == pytest.approx(40 / 60)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gold_n": [0, 2]}, "outside the table"),
        ({"gold_n": [0]}, "expected one each"),
        ({"weights": [1.0, 0.0]}, "all above 0"),
        ({"clusters": ["a", "a"]}, "one cluster"),
    ],
)
def test_bad_input(changes: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"model_n": [0, 1], "gold_n": [0, 1], "counts_K": [5, 5], "gold_labels": 2}
    with pytest.raises(DataError, match=words):
        confusion(**given | changes, rng=stream(0, "t"))


def test_the_interval_covers_with_three_labels_and_a_rare_one() -> None:
    rng, truth, hits = stream(0, "cover"), np.array([0.85, 0.1, 0.05]), 0
    for _ in range(300):
        gold = rng.choice(3, size=1000, p=truth)
        model = np.where(rng.random(1000) < 0.8, gold, (gold + rng.integers(1, 3, 1000)) % 3)
        coded = rng.permutation(1000)[:100]
        table = confusion(model[coded], gold[coded], np.bincount(model, minlength=3), 3, rng=rng, draws=500)
        found = table.measure("prevalence", 2)
        hits += found.low <= truth[2] <= found.high
    assert 0.91 <= hits / 300 <= 0.99


def test_the_cluster_effect_of_shares() -> None:
    """Clusters of m equal labels: m times the variance; clusters of one: 1."""
    labels = [0, 1, 1, 0, 1, 0, 0, 1] * 25
    assert cluster_effect_of_shares(labels, [str(i) for i in range(200)]) == pytest.approx(200 / 199)
    whole = [label for label in labels for _ in range(5)]
    assert cluster_effect_of_shares(whole, [str(i // 5) for i in range(1000)]) == pytest.approx(5 * 200 / 199)
