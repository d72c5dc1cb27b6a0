"""Intervals of one share against statsmodels' (pinned), bayes_evals' (pinned) and closed forms; clustered shares."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import confint_proportions_2indep

from consilience.errors import ConfigError, DataError
from consilience.stats import difference, mean, proportion, share_difference
from consilience.stats.proportions import PROPORTION_INTERVALS, clopper_pearson, flat_prior, jeffreys, wilson

CHECKS = Path(__file__).parents[4] / "shared" / "checks"


def pinned(name: str) -> dict:
    if not (CHECKS / name).is_file():
        pytest.skip(f"no ../shared/checks/{name} beside the repository")
    return json.loads((CHECKS / name).read_text())


def test_intervals_against_statsmodels():
    for row in pinned("annotation/proportion_intervals.json")["expected"]:
        k, n = row["k"], row["n"]
        assert wilson(k, n) == pytest.approx(row["wilson"], abs=1e-9)
        assert clopper_pearson(k, n) == pytest.approx(row["clopper_pearson"], abs=1e-9)
        assert jeffreys(k, n) == pytest.approx(row["jeffreys_equal_tailed"], abs=1e-9)


def test_twenty_items_against_bayes_evals():
    for model in pinned("evaluation/small_n_expected.json")["models"].values():
        assert flat_prior(model["k"], model["n"]) == pytest.approx(model["bayes_evals95"], abs=1e-9)
        assert clopper_pearson(model["k"], model["n"]) == pytest.approx(model["clopper95"], abs=1e-9)


def test_ends_by_hand():
    # None of n: Clopper-Pearson's upper end p has (1 - p)^n = 0.025, the flat prior's (1 - p)^(n + 1) = 0.025.
    assert clopper_pearson(0, 20) == pytest.approx((0, 1 - 0.025 ** (1 / 20)))
    assert flat_prior(0, 20)[1] == pytest.approx(1 - 0.025 ** (1 / 21))
    assert clopper_pearson(20, 20)[1] == 1


@pytest.mark.parametrize("name", sorted(PROPORTION_INTERVALS))
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_every_interval_mirrors_and_nests(name, level):
    of = PROPORTION_INTERVALS[name]
    for k in range(11):
        low, high = of(k, 10, level)
        assert 0 <= low < high <= 1
        assert (1 - high, 1 - low) == pytest.approx(of(10 - k, 10, level))
        assert of(k, 10, 0.99)[0] <= low


@pytest.mark.parametrize("name", sorted(PROPORTION_INTERVALS))
def test_coverage_of_twenty_items_on_average(name):
    # Summed over the 21 outcomes, averaged over shares: the flat prior's is 95 % there exactly.
    ends = np.array([PROPORTION_INTERVALS[name](k, 20, 0.95) for k in range(21)])
    shares = (np.arange(2000) + 0.5) / 2000
    chances = scipy_stats.binom.pmf(np.arange(21), 20, shares[:, None])
    inside = (ends[:, 0] <= shares[:, None]) & (shares[:, None] <= ends[:, 1])
    coverage = (chances * inside).sum(1).mean()
    if name == "flat_prior":
        assert coverage == pytest.approx(0.95, abs=5e-4)
    assert 0.945 < coverage < (0.98 if name == "clopper_pearson" else 0.96)


def test_the_interval_is_chosen_by_name():
    found = proportion([1] * 7 + [0] * 13, interval="jeffreys")
    assert (found.low, found.high) == jeffreys(7, 20)
    assert found.method == "share, Jeffreys posterior interval"
    with pytest.raises(ConfigError, match="Did you mean 'wilson'"):
        proportion([1, 0], interval="wilsom")


def test_clustered_share_is_wilsons_at_the_effective_size():
    # Ten clusters of five equal answers are ten answers; the t of 9 degrees of freedom is 2.262.
    answers = np.repeat([1, 1, 1, 1, 1, 1, 1, 0, 0, 0], 5)
    found = proportion(answers, [str(i // 5) for i in range(50)])
    size, t = 0.21 / (0.21 / 9), 2.2621571628  # SE^2 of ten answers is p (1 - p) / (n - 1)
    centre = (0.7 + t * t / (2 * size)) / (1 + t * t / size)
    half = t * math.sqrt(0.21 / size + (t / (2 * size)) ** 2) / (1 + t * t / size)
    assert (found.low, found.high) == pytest.approx((centre - half, centre + half))
    assert found.standard_error == pytest.approx(math.sqrt(0.21 / 9))


def test_clusters_that_all_agree_have_the_width_of_as_many_answers():
    found = proportion([1] * 60, [str(i // 3) for i in range(60)])
    t = 2.0930240544
    assert (found.low, found.high) == pytest.approx((20 / (20 + t * t), 1))


def test_a_weighted_mean_is_that_of_repeated_items():
    weighted = mean([1, 4, 10], ["a", "b", "c"], weights=[3, 2, 1])
    repeated = mean([1, 1, 1, 4, 4, 10], ["a", "a", "a", "b", "b", "c"])
    assert weighted.value == pytest.approx(repeated.value)
    assert weighted.standard_error == pytest.approx(repeated.standard_error)
    assert weighted.method == "weighted mean, Student t"


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: wilson(3, 2), "3 successes of 2"),
        (lambda: jeffreys(0, 0), "0 successes of 0"),
        (lambda: proportion([0, 1, 1], ["a", "a", "b"], interval="jeffreys"), "needs one per unit; take wilson"),
        (lambda: proportion([0, 1], ["a", "a"]), "all 2 values are of one unit"),
        (lambda: proportion([math.nan]), "1 of 1 successes are not finite"),
    ],
)
def test_what_is_no_share_says_so(measure, message):
    with pytest.raises(DataError, match=message):
        measure()


SHARES = [((0, 0), (30, 20)), ((9, 3), (10, 10)), ((56, 48), (70, 80)), ((5, 0), (56, 29))]  # yes, of how many


@pytest.mark.parametrize(("yes", "n"), SHARES)
def test_independent_shares_differ_by_newcombes_interval(yes: tuple[int, int], n: tuple[int, int]) -> None:
    shares = [
        proportion([1.0] * k + [0.0] * (size - k), [f"{side}{i}" for i in range(size)])
        for side, k, size in zip("ab", yes, n)
    ]
    found = share_difference(*shares)
    expected = confint_proportions_2indep(yes[0], n[0], yes[1], n[1], method="newcomb", compare="diff")
    assert (found.low, found.high) == pytest.approx(expected)


def test_shares_of_the_same_units_have_students_interval() -> None:
    ours, theirs = proportion([1.0, 0.0, 1.0]), proportion([0.0, 0.0, 1.0])
    assert share_difference(ours, theirs).high == difference(ours, theirs).high
