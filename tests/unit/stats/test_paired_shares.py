"""Paired shares: Newcombe's published example, the Dirichlet posterior by hand and against draws."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest

from consilience.errors import DataError
from consilience.stats.paired_latent import probability_better_latent
from consilience.stats.paired_shares import (
    PairedCounts,
    dirichlet,
    newcombe,
    paired_counts,
    paired_difference,
    probability_above_by,
)


def results(counts: PairedCounts) -> tuple[list[int], list[int]]:
    cells = [(1, 1)] * counts.both + [(1, 0)] * counts.ours_only + [(0, 1)] * counts.theirs_only
    cells += [(0, 0)] * counts.neither
    return [a for a, _ in cells], [b for _, b in cells]


def test_newcombes_example():
    # Newcombe (1998), table III: 36 both, 12 and 2 one only, none neither.
    counts = PairedCounts(36, 12, 2, 0)
    assert newcombe(counts) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    found = paired_difference(*results(counts), interval="newcombe")
    assert found.value == pytest.approx(0.2)
    assert (found.low, found.high) == newcombe(counts)
    # The spread of the differences: 12 + 2 of size 1 around 10 / 50.
    assert found.standard_error == pytest.approx(math.sqrt((14 - 50 * 0.04) / 49 / 50))


def test_no_difference_still_has_a_width():
    for of in (newcombe, dirichlet):
        low, high = of(PairedCounts(20, 0, 0, 0), 0.95)
        assert -0.2 < low < -0.05
        assert high == pytest.approx(-low, abs=1e-6)


def test_probability_of_the_better_by_hand():
    # Nobody alone right twice against never, flat prior: 1 - I(1/2; 3, 1) = 1 - 1/8.
    assert probability_above_by(PairedCounts(18, 2, 0, 0)) == pytest.approx(7 / 8)
    assert probability_above_by(PairedCounts(5, 4, 4, 9)) == pytest.approx(0.5)


def test_latent_model_against_bayes_evals():
    # Their two directions are drawn apart and sum to 0.992 to 1.009: half of that is their error.
    pinned = Path(__file__).parents[4] / "shared" / "checks" / "evaluation" / "small_n_expected.json"
    if not pinned.is_file():
        pytest.skip("no ../shared/checks/evaluation/small_n_expected.json beside the repository")
    found = json.loads(pinned.read_text())
    answers = {name: [int(digit) for digit in digits] for name, digits in found["items"].items()}
    beats = found["paired_prob_row_beats_col"]
    for one, other in itertools.combinations(answers, 2):
        expected = (beats[one][other] + 1 - beats[other][one]) / 2
        ours = probability_better_latent(paired_counts(answers[one], answers[other]))
        assert ours == pytest.approx(expected, abs=4e-3), (one, other)


def test_latent_model_without_any_item_that_tells_is_even():
    assert probability_better_latent(PairedCounts(9, 3, 3, 5)) == pytest.approx(0.5)
    better, worse = PairedCounts(9, 6, 2, 3), PairedCounts(9, 2, 6, 3)
    assert probability_better_latent(better) == pytest.approx(1 - probability_better_latent(worse))


@pytest.mark.parametrize(
    "counts", [PairedCounts(3, 5, 2, 8), PairedCounts(0, 0, 1, 19), PairedCounts(400, 90, 60, 250)]
)
@pytest.mark.parametrize("prior", [0.5, 1.0])
def test_posterior_against_draws(counts, prior):
    theta = np.random.default_rng(0).dirichlet(np.array(counts) + prior, 400_000)
    gaps = theta[:, 1] - theta[:, 2]
    for margin in (-0.2, -0.03, 0.0, 0.001, 0.05, 0.3):
        expected = (gaps > margin).mean()
        assert probability_above_by(counts, margin, prior=prior) == pytest.approx(expected, abs=4e-3)
    if prior == 1:
        assert dirichlet(counts) == pytest.approx(np.quantile(gaps, [0.025, 0.975]), abs=3e-3)


def test_swapping_the_sides_mirrors():
    counts, swapped = PairedCounts(3, 9, 4, 4), PairedCounts(3, 4, 9, 4)
    for of in (newcombe, dirichlet):
        low, high = of(counts, 0.9)
        assert of(swapped, 0.9) == pytest.approx((-high, -low), abs=1e-7)
    assert probability_above_by(counts, 0.1) == pytest.approx(1 - probability_above_by(swapped, -0.1))


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: paired_counts([1, 0], [1]), "2 and 1 results"),
        (lambda: paired_counts([1, 0.5], [1, 0]), "zeros and ones"),
        (lambda: paired_counts([], []), "at least one"),
        (lambda: paired_difference([1, 0, 1], [1, 1, 1], ["a", "a", "b"]), "3 items of 2 items"),
        (lambda: probability_better_latent(PairedCounts(300, 1, 1, 1)), "303 items; expected 1 to 200"),
        (lambda: paired_difference([1, 0], [1, 1], ["a", "a"]), "all 2 values are of one unit"),
    ],
)
def test_what_is_not_paired_says_so(measure, message):
    with pytest.raises(DataError, match=message):
        measure()
