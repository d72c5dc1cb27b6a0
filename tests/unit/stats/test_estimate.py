"""Differences and averages against scipy's t intervals and hand formulas; the properties that every estimate has."""

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats as scipy_stats

from consilience.errors import DataError
from consilience.stats import Estimate, average, difference, mean, ratio, shown_decimals

NAMES = [f"q{i}" for i in range(40)]


def interval(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def test_paired_difference_is_the_t_interval_of_the_differences():
    rng = np.random.default_rng(1)
    ours = rng.normal(size=40)
    theirs = 0.8 * ours + rng.normal(size=40)
    order = rng.permutation(40)
    found = difference(mean(ours, NAMES), mean(theirs[order], [NAMES[i] for i in order]))
    expected = scipy_stats.ttest_rel(ours, theirs).confidence_interval()
    assert interval(found) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert found.value == pytest.approx((ours - theirs).mean())
    assert found.degrees_of_freedom == pytest.approx(39)
    assert found.method == "paired difference, Student t"


def test_difference_of_other_units_is_welch():
    ours, theirs = [1.0, 2, 4, 7], [1.0, 3, 3.5, 9, 2]
    found = difference(mean(ours, list("abcd")), mean(theirs, list("vwxyz")))
    expected = scipy_stats.ttest_ind(ours, theirs, equal_var=False)
    assert interval(found) == pytest.approx(tuple(expected.confidence_interval()), rel=1e-12)
    assert found.degrees_of_freedom == pytest.approx(expected.df)
    assert found.n == 9


def test_difference_with_some_units_in_common_by_hand():
    # ours a=1 b=2 c=6 (mean 3, residuals -2 -1 3), theirs b=4 c=8 (mean 6, residuals -2 2).
    # Shares are residual / sqrt(n (n - 1)): over sqrt(6), and over sqrt(2).
    found = difference(mean([1, 2, 6], ["a", "b", "c"]), mean([4, 8], ["b", "c"]))
    a, b, c = -2 / math.sqrt(6), -1 / math.sqrt(6) + 2 / math.sqrt(2), 3 / math.sqrt(6) - 2 / math.sqrt(2)
    assert found.value == -3
    assert found.units == ("a", "b", "c")
    assert found.standard_error == pytest.approx(math.sqrt(a * a + b * b + c * c))
    assert found.method == "difference, 2 of 3 items paired, Student t"


def test_average_of_independent_skills_by_hand():
    skills = [[0.0, 1, 1, 0, 1], [1.0, 1, 0], [0.0, 0, 0, 1]]
    parts = [mean(x, [f"{k}{i}" for i in range(len(x))]) for k, x in enumerate(skills)]
    found = average(parts)
    variances = [np.var(x, ddof=1) / len(x) for x in skills]
    assert found.value == pytest.approx((3 / 5 + 2 / 3 + 1 / 4) / 3)
    assert found.standard_error == pytest.approx(math.sqrt(sum(variances)) / 3)
    degrees = sum(variances) ** 2 / sum(v * v / (len(x) - 1) for v, x in zip(variances, skills))
    assert found.degrees_of_freedom == pytest.approx(degrees)


def test_weighted_average_with_the_sizes_as_weights_is_the_pooled_value():
    parts = [mean([1, 2, 3], ["a", "b", "c"]), mean([10, 20], ["d", "e"])]
    assert average(parts, weights=[3, 2]).value == pytest.approx(36 / 5)


def test_parts_over_the_same_units_are_one_sample():
    x, y = np.array([1.0, 5, 2, 8]), np.array([2.0, 2, 9, 1])
    found = average([mean(x), mean(y)])
    expected = scipy_stats.ttest_1samp((x + y) / 2, 0).confidence_interval()
    assert interval(found) == pytest.approx(tuple(expected), rel=1e-12)


def test_difference_of_macro_averages_is_the_macro_average_of_differences():
    rng = np.random.default_rng(2)
    skills = [
        (rng.normal(size=n), rng.normal(size=n), [f"{k}/{i}" for i in range(n)]) for k, n in enumerate((5, 9, 30))
    ]
    ours = average([mean(x, names) for x, _, names in skills])
    theirs = average([mean(y, names) for _, y, names in skills])
    found = difference(ours, theirs)
    variances = [np.var(x - y, ddof=1) / len(x) for x, y, _ in skills]
    assert found.standard_error == pytest.approx(math.sqrt(sum(variances)) / 3)
    degrees = sum(variances) ** 2 / sum(v * v / (len(x) - 1) for v, (x, _, _) in zip(variances, skills))
    assert found.degrees_of_freedom == pytest.approx(degrees)


def test_an_estimate_of_one_unit_has_no_interval():
    alone = mean([3.0])
    assert alone.to_json()["value"] == 3.0
    assert all(alone.to_json()[name] is None for name in ("low", "high", "standard_error"))
    assert str(alone) == "3.00 [no interval] (95 %, 1 items)"
    with_company = average([mean([1.0, 2, 3], ["a", "b", "c"]), mean([3.0], ["d"])])
    assert with_company.value == pytest.approx(2.5)
    assert math.isnan(with_company.low)


def test_a_difference_without_variation_has_no_width():
    found = difference(mean([1, 0, 1]), mean([1, 0, 1]))
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_text_and_json():
    # Two values m -+ d: s / sqrt(2) = d, and t(1 degree of freedom, 97.5 %) is tan(0.475 pi) = 12.706.
    estimate = mean([0.030, 0.032], ["a", "b"], unit_kind="questions")
    half = 0.001 * math.tan(0.475 * math.pi)
    assert str(estimate) == f"0.031 [{0.031 - half:.3f}, {0.031 + half:.3f}] (95 %, 2 questions)"
    assert estimate.to_json() == {
        "value": pytest.approx(0.031),
        "low": pytest.approx(0.031 - half),
        "high": pytest.approx(0.031 + half),
        "standard_error": pytest.approx(0.001),
        "n": 2,
        "units": "questions",
        "level": 0.95,
        "method": "mean, Student t",
    }


@pytest.mark.parametrize(
    ("numbers", "decimals"),
    [((0.031, 0.004, 0.058), 3), ((71.2, 70.1, 72.3), 1), ((812, 700, 920), 0), ((0.5, None, None), 3), ((0, 0, 0), 3)],
)
def test_shown_decimals(numbers, decimals):
    assert shown_decimals(*numbers) == decimals


def test_what_cannot_be_combined_says_so():
    with pytest.raises(DataError, match="conversations, questions cannot be combined"):
        difference(mean([1, 2], unit_kind="questions"), mean([1, 2], unit_kind="conversations"))
    with pytest.raises(DataError, match=r"levels \[0.9, 0.95\]"):
        average([mean([1, 2]), mean([1, 2], level=0.9)])
    with pytest.raises(DataError, match="no estimates"):
        average([])
    with pytest.raises(DataError, match="level is 95"):
        mean([1, 2], level=95)


# Values are kept at one scale: a sum of 1e300 and 1e-300 tests floating point, not statistics.
samples = hnp.arrays(np.float64, st.integers(2, 30), elements=st.floats(-100, 100, width=32))


@given(samples, st.floats(-50, 50), st.floats(-3, 3))
def test_shift_and_scale(x, shift, scale):
    plain, moved = mean(x), mean(scale * x + shift)
    assert moved.value == pytest.approx(scale * plain.value + shift, abs=1e-9)
    assert moved.standard_error == pytest.approx(abs(scale) * plain.standard_error, abs=1e-9)
    assert plain.influence.sum() == pytest.approx(0, abs=1e-8)


@given(samples, st.randoms(use_true_random=False))
def test_order_of_the_items_does_not_matter(x, random):
    names = [f"unit {i % 7}" for i in range(len(x))]
    order = list(range(len(x)))
    random.shuffle(order)
    plain, shuffled = mean(x, names), mean(x[order], [names[i] for i in order])
    assert shuffled.value == pytest.approx(plain.value, abs=1e-9)
    assert shuffled.standard_error == pytest.approx(plain.standard_error, abs=1e-9, nan_ok=True)


@given(samples, samples)
def test_swapping_the_sides_changes_only_the_sign(x, y):
    ours, theirs = mean(x), mean(y)
    there, back = difference(ours, theirs), difference(theirs, ours)
    assert there.value == pytest.approx(-back.value)
    assert there.standard_error == pytest.approx(back.standard_error, abs=1e-12)
    assert there.degrees_of_freedom == pytest.approx(back.degrees_of_freedom)
    assert difference(ours, ours).standard_error == pytest.approx(0, abs=1e-9)


def test_paired_difference_of_ratios_covers_near_the_level():
    # Two models on the same 50 texts of unequal length: nats per byte 1.0 and 0.9 in truth.
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(1000):
        sizes = rng.lognormal(3, 0.7, 50)
        difficulty = rng.normal(0, 0.3, 50)
        nats = [sizes * (rate + difficulty + rng.normal(0, 0.1, 50)) for rate in (1.0, 0.9)]
        found = difference(ratio(nats[0], sizes), ratio(nats[1], sizes))
        covered += found.low <= 0.1 <= found.high
    assert 0.91 < covered / 1000 < 0.97  # 0.95 would be 0.93 to 0.97 in 1000 draws; linearising costs a little


def test_import_is_light():
    code = "import sys, consilience.stats; print('torch' in sys.modules, 'scipy' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]
