"""Means, ratios and shares against scipy, hand formulas and the pinned numbers of ../shared/checks/evaluation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats

from consilience.errors import DataError
from consilience.stats import mean, over_sets, proportion, ratio

CHECKS = Path(__file__).parents[4] / "shared" / "checks" / "evaluation"


def pinned(name: str) -> dict:
    if not (CHECKS / name).is_file():
        pytest.skip(f"no ../shared/checks/evaluation/{name} beside the repository")
    return json.loads((CHECKS / name).read_text())


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_mean_is_the_t_interval(level):
    x = np.random.default_rng(0).lognormal(size=25)
    found = mean(x, level=level)
    low, high = scipy_stats.t.interval(level, len(x) - 1, loc=x.mean(), scale=scipy_stats.sem(x))
    assert (found.value, found.low, found.high) == pytest.approx((x.mean(), low, high), rel=1e-12)


def test_clustered_mean_by_hand():
    # Items a: 1 2, b: 6, c: 3 3 9; mean 4; cluster sums of residuals -5, 2, 3; n = 6, G = 3.
    found = mean([1, 2, 6, 3, 3, 9], ["a", "a", "b", "c", "c", "c"], unit_kind="conversations")
    assert found.value == 4
    assert found.n == 3
    assert found.standard_error == pytest.approx(math.sqrt(3 / 2 * (25 + 4 + 9) / 36))
    assert list(found.influence) == pytest.approx([3 / 6 * -5, 3 / 6 * 2, 3 / 6 * 3])
    assert found.method == "mean of 6 items, clustered, Student t"


def test_clustered_mean_against_statsmodels():
    expected = pinned("resampling_expected.json")
    scores = np.array(expected["scores"], dtype=float)
    questions, runs = scores.shape
    found = mean(scores.ravel(), [f"q{i}" for i in range(questions) for _ in range(runs)])
    assert found.value == pytest.approx(expected["mean"])
    small_sample = math.sqrt(questions / (questions - 1))  # CR0 lacks it
    assert found.standard_error == pytest.approx(expected["se_cluster_CR0_statsmodels"] * small_sample, rel=1e-9)
    assert found.standard_error == pytest.approx(expected["se_of_question_means"], rel=1e-9)
    assert mean(scores.ravel()).standard_error == pytest.approx(expected["se_naive_iid"], rel=1e-9)


def test_degrees_of_freedom_of_unlike_clusters():
    assert mean([1, 5, 2, 8, 3, 4], list("aabbcc")).degrees_of_freedom == pytest.approx(2)
    # By matrices, from the definition: trace^2 / |O|^2 with O = (I - a 1') diag(size^2) (I - 1 a').
    sizes = np.array([1.0, 2, 7, 3])
    projection = np.eye(4) - np.outer(sizes / sizes.sum(), np.ones(4))
    covariance = projection @ np.diag(sizes**2) @ projection.T
    expected = np.trace(covariance) ** 2 / (covariance**2).sum()
    found = mean(np.arange(13.0), [label for label, size in zip("abcd", sizes) for _ in range(int(size))])
    assert found.degrees_of_freedom == pytest.approx(expected)
    assert expected < 3


def test_unlike_clusters_cover_near_the_level():
    rng = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        sizes = np.maximum(1, rng.lognormal(1.5, 1.0, 15).astype(int))
        cluster = np.repeat(np.arange(15), sizes)
        found = mean(rng.normal(size=15)[cluster] + rng.normal(size=len(cluster)), [str(i) for i in cluster])
        covered += found.low <= 0 <= found.high
    assert 0.94 < covered / 1000 < 0.99  # 0.89 on 14 degrees of freedom


def test_ratio_by_hand():
    # Nats 2 6 4 over bytes 1 2 3: R = 2, residuals 0 2 -2; SE^2 = 3/2 (4 + 4) / 6^2.
    found = ratio([2, 6, 4], [1, 2, 3])
    assert found.value == 2
    assert found.standard_error == pytest.approx(math.sqrt(1.5 * 8 / 36))
    # The items of one text are one unit: residuals 2 and -2 of one text cancel.
    assert ratio([2, 6, 4], [1, 2, 3], ["a", "b", "b"]).standard_error == 0


def test_ratio_covers_near_the_level():
    # Texts of unequal length whose rate depends on the length: truth E[N] / E[D], here from the lognormal's moments.
    rng = np.random.default_rng(4)
    mu, sigma = 3.0, 0.5
    length_mean = math.exp(mu + sigma**2 / 2)
    truth = 1 + 0.01 * math.exp(2 * mu + 2 * sigma**2) / length_mean
    covered = 0
    for _ in range(2000):
        lengths = rng.lognormal(mu, sigma, 60)
        nats = lengths * (1 + 0.01 * lengths + rng.normal(0, 0.2, 60))
        found = ratio(nats, lengths)
        covered += found.low <= truth <= found.high
    assert 0.91 < covered / 2000 < 0.96


def test_proportion_against_pinned_wilson():
    for name, model in pinned("small_n_expected.json")["models"].items():
        outcomes = [1] * model["k"] + [0] * (model["n"] - model["k"])
        found = proportion(outcomes)
        assert (found.low, found.high) == pytest.approx(tuple(model["wilson95"]), abs=1e-9), name
        assert found.value == model["k"] / model["n"]


def test_proportion_against_scipy():
    found = proportion([1] * 7 + [0] * 93, level=0.9)
    expected = scipy_stats.binomtest(7, 100).proportion_ci(0.9, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_over_sets_is_a_t_interval():
    found = over_sets([0.10, 0.12, 0.17], ["set 0", "set 1", "set 2"])
    low, high = scipy_stats.t.interval(0.95, 2, loc=0.13, scale=scipy_stats.sem([0.10, 0.12, 0.17]))
    assert (found.value, found.low, found.high) == pytest.approx((0.13, low, high))
    assert found.unit_kind == "model sets"


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: mean([]), "at least one"),
        (lambda: mean([[1, 2]]), r"shape \(1, 2\)"),
        (lambda: mean([1, math.nan, math.inf]), "2 of 3 values are not finite"),
        (lambda: mean([1, 2], ["a"]), "1 unit labels for 2 values"),
        (lambda: ratio([1, 2], [1]), "2 numerators for 1 denominators"),
        (lambda: ratio([1, 2], [0, 0]), "sum to 0"),
        (lambda: proportion([0.5, 1]), "zeros and ones"),
        (lambda: mean([1, 2], ["a", "a"]), "all 2 values are of one unit"),
        (lambda: mean([math.nan] * 3), "3 of 3 values are not finite"),
        (lambda: mean([1, 2], weights=[0, 0]), "summing to 0"),
        (lambda: mean([1, 2], weights=[1, -1]), "none < 0"),
        (lambda: over_sets([1, 2], ["a", "a"]), "one value per set"),
    ],
)
def test_what_cannot_be_measured_says_so(measure, message):
    with pytest.raises(DataError, match=message):
        measure()
