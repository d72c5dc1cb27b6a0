"""Jackknife and bootstrap against closed forms, scipy's, and the pinned intervals of real scores."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from consilience.errors import DataError
from consilience.stats import mean
from consilience.stats.resampling import bca, bootstrap_draws, jackknife, percentile
from consilience.stats.units import sums_by_unit, unit_index

X = np.random.default_rng(0).lognormal(size=30)


def ratio_of_sums(sums: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def parts(x: np.ndarray) -> np.ndarray:
    return np.column_stack([x, np.ones_like(x)])


def test_jackknife_of_a_mean_is_the_standard_error():
    found = jackknife(ratio_of_sums, parts(X), tuple(map(str, range(30))), unit_kind="items", method="mean")
    assert found.value == pytest.approx(X.mean())
    assert found.standard_error == pytest.approx(scipy_stats.sem(X))
    assert found.influence == pytest.approx(X - X.mean())


def test_jackknife_without_a_unit_that_decides_is_the_slope():
    # x / y with y only in one unit: undefined without it. d(x / y) = dx / y - x dy / y^2, at (6, 2).
    data = np.array([[1.0, 2.0], [2.0, 0.0], [3.0, 0.0]])
    found = jackknife(ratio_of_sums, data, ("a", "b", "c"), unit_kind="items", method="ratio")
    assert found.influence == pytest.approx(3 * np.array([1 / 2 - 6 * 2 / 4, 2 / 2, 3 / 2]), abs=1e-6)


def test_bootstrap_of_a_mean_has_its_moments():
    draws = bootstrap_draws(ratio_of_sums, parts(X), rng=np.random.default_rng(1), draws=20_000)
    assert draws.shape == (20_000,)
    assert draws.mean() == pytest.approx(X.mean(), abs=5 * X.std() / math.sqrt(30 * 20_000))
    assert draws.std() == pytest.approx(X.std() / math.sqrt(30), rel=5 / math.sqrt(2 * 20_000))


def test_bca_against_scipys():
    draws = bootstrap_draws(ratio_of_sums, parts(X), rng=np.random.default_rng(1), draws=40_000)
    found = bca(mean(X), draws)
    expected = scipy_stats.bootstrap(
        (X,), np.mean, n_resamples=40_000, rng=np.random.default_rng(2)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx(
        (expected.low, expected.high), abs=0.03 * (expected.high - expected.low)
    )
    assert found.method == "mean, BCa bootstrap of 40000 draws"
    plain = percentile(mean(X), draws)
    assert (plain.low, plain.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]))
    assert found.low > plain.low  # a long right tail moves it to the right
    assert found.high > plain.high


def test_clusters_are_drawn_whole():
    # Two turns of each question alike: as many units as questions.
    names, index = unit_index([str(i // 2) for i in range(60)])
    twice = np.repeat(X, 2)
    draws = bootstrap_draws(
        ratio_of_sums, sums_by_unit(parts(twice), index), rng=np.random.default_rng(3), draws=20_000
    )
    assert len(names) == 30
    assert draws.std() == pytest.approx(X.std() / math.sqrt(30), rel=5 / math.sqrt(2 * 20_000))


def test_two_statistics_of_the_same_draws_are_paired():
    both = np.column_stack([X, X + 1, np.ones_like(X)])
    draws = bootstrap_draws(lambda s: s[..., :2] / s[..., 2:], both, rng=np.random.default_rng(4), draws=50)
    assert draws.shape == (50, 2)
    assert draws[:, 1] - draws[:, 0] == pytest.approx(np.ones(50))


def test_the_generator_decides_and_blocks_do_not(monkeypatch):
    first = bootstrap_draws(ratio_of_sums, parts(X), rng=np.random.default_rng(5), draws=100)
    monkeypatch.setattr("consilience.stats.resampling.BLOCK", 300)
    again = bootstrap_draws(ratio_of_sums, parts(X), rng=np.random.default_rng(5), draws=100)
    assert first == pytest.approx(again, rel=1e-12)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: bootstrap_draws(ratio_of_sums, parts(X[:1]), rng=np.random.default_rng(0)), "from 1 units"),
        (lambda: jackknife(ratio_of_sums, parts(X[:1]), ("a",), unit_kind="items", method=""), "spread from 1"),
        (
            lambda: bootstrap_draws(ratio_of_sums, np.eye(3)[:, :2], rng=np.random.default_rng(0), draws=500),
            "undefined on .* of 500 resamples of 3 units",
        ),
        (lambda: bca(mean([1, 1, 1]), np.ones(100)), "do not vary around the value"),
        (lambda: bca(mean([1, 2]), np.full(100, 9.0)), "do not vary around the value"),
    ],
)
def test_what_has_no_resamples_says_so(measure, message):
    with pytest.raises(DataError, match=message):
        measure()
