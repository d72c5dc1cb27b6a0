"""Probabilities, simultaneous intervals and ranks against closed forms of the normal and the studentized range."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from consilience.errors import DataError
from consilience.stats import Estimate, difference, mean
from consilience.stats.probabilities import (
    covariance,
    probability_above,
    probability_curve,
    probability_within,
    simultaneous,
)
from consilience.stats.ranks import rank_probabilities


def made(value: float, influence: np.ndarray, units: list[str] | None = None) -> Estimate:
    names = tuple(units or map(str, range(len(influence))))
    return Estimate(value=value, units=names, influence=influence, unit_kind="items", method="made")


def orthogonal(count: int, size: int = 4096) -> np.ndarray:
    """Influences of `count` independent estimates of standard error 1, of many units: all but normal."""
    waves = np.sin(2 * np.pi * np.outer(np.arange(1, count + 1), np.arange(size)) / size)
    return waves * math.sqrt(2 * (size - 1))


def test_probability_above_is_students():
    x = np.array([0.1, 0.4, -0.2, 0.5, 0.3])
    found = mean(x)
    t = x.mean() / (x.std(ddof=1) / math.sqrt(5))
    assert probability_above(found) == pytest.approx(scipy_stats.t.cdf(t, 4))
    assert probability_above(found, found.high) == pytest.approx(0.025)
    assert probability_within(found, 0.2) == pytest.approx(
        scipy_stats.t.cdf((0.2 - x.mean()) / found.standard_error, 4)
        - scipy_stats.t.cdf((-0.2 - x.mean()) / found.standard_error, 4)
    )
    assert probability_curve(found, [0.0, found.value]) == pytest.approx([probability_above(found), 0.5])


def test_no_spread_tells_nothing():
    assert math.isnan(probability_above(difference(mean([1, 0, 1]), mean([1, 0, 1]))))
    assert math.isnan(probability_above(mean([3.0])))


def test_covariance_by_hand():
    # Shares 1 -1 over sqrt(2) each on units a b, and b c: only b is common.
    first, second = mean([1, 3], ["a", "b"]), mean([2, 6], ["b", "c"])
    assert covariance([first, second]) == pytest.approx(np.array([[1, -1], [-1, 4]]))


def test_simultaneous_intervals_of_independent_estimates_are_sidaks():
    estimates = [made(0.0, row) for row in orthogonal(5)]
    found = simultaneous(estimates, rng=np.random.default_rng(0), draws=200_000)
    sidak = scipy_stats.norm.ppf((1 + 0.95 ** (1 / 5)) / 2)
    assert [estimate.high for estimate in found] == pytest.approx([sidak] * 5, rel=0.01)


def test_simultaneous_intervals_of_all_pairs_are_tukeys():
    rows = orthogonal(4)
    pairs = [made(0.0, rows[i] - rows[j]) for i in range(4) for j in range(i)]
    found = simultaneous(pairs, rng=np.random.default_rng(0), draws=200_000)
    tukey = scipy_stats.studentized_range.ppf(0.95, 4, np.inf)
    assert [estimate.high for estimate in found] == pytest.approx([tukey] * 6, rel=0.01)


def test_one_interval_is_simultaneous_with_itself():
    alone = mean([1.0, 4, 2, 8, 3])
    found = simultaneous([alone], rng=np.random.default_rng(0), draws=400_000)[0]
    assert (found.low, found.high) == pytest.approx((alone.low, alone.high), abs=0.02 * (alone.high - alone.low))


def test_estimates_without_spread_keep_no_width_and_do_not_count():
    alone = mean([1.0, 4, 2, 8, 3])
    still = difference(alone, alone)
    found = simultaneous([alone, still], rng=np.random.default_rng(0), draws=50_000)
    assert (found[1].low, found[1].high) == (0, 0)
    assert found[0].high == pytest.approx(alone.high, rel=0.05)


def test_ranks_of_two_are_the_probability_of_the_better():
    rows = orthogonal(2)
    estimates = {"a": made(1.0, rows[0]), "b": made(0.0, rows[1])}
    found = rank_probabilities(estimates, rng=np.random.default_rng(0), draws=100_000)
    expected = scipy_stats.norm.cdf(1 / math.sqrt(2))
    assert found.of("a") == pytest.approx([expected, 1 - expected], abs=6e-3)
    assert found.probabilities.sum(0) == pytest.approx([1, 1])
    lower = rank_probabilities(estimates, rng=np.random.default_rng(0), draws=1000, lower_is_better=True)
    assert lower.of("b")[0] > 0.5


def test_ranks_are_paired():
    # A large common swing of both models does not hide that one is always a little better.
    rng = np.random.default_rng(1)
    hard = rng.normal(0, 10, 50)
    estimates = {"a": mean(hard + 0.2 + rng.normal(0, 0.1, 50)), "b": mean(hard)}
    assert rank_probabilities(estimates, rng=rng).of("a")[0] > 0.999


def test_equal_models_share_their_ranks():
    x = np.random.default_rng(2).normal(size=30)
    found = rank_probabilities({name: mean(x) for name in "abc"}, rng=np.random.default_rng(0), draws=30_000)
    assert found.probabilities == pytest.approx(np.full((3, 3), 1 / 3), abs=0.015)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: probability_within(mean([1, 2]), 0), "margin is 0"),
        (lambda: rank_probabilities({"a": mean([1, 2])}, rng=np.random.default_rng(0)), "ranks of 1 models"),
        (lambda: rank_probabilities({"a": mean([1]), "b": mean([2])}, rng=np.random.default_rng(0)), "single unit"),
        (lambda: simultaneous([], rng=np.random.default_rng(0)), "0 estimates"),
        (lambda: simultaneous([mean([1.0])], rng=np.random.default_rng(0)), "single unit"),
        (lambda: covariance([mean([1, 2]), mean([1, 2], unit_kind="prompts")]), "items, prompts"),
    ],
)
def test_what_has_no_probability_says_so(measure, message):
    with pytest.raises(DataError, match=message):
        measure()
