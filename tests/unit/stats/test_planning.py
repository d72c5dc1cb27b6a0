"""Planning against Miller's numbers (pinned), and against the intervals that it plans."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from consilience.errors import DataError
from consilience.stats import mean
from consilience.stats.planning import (
    design_effect,
    effective_gold_items,
    half_width,
    items_for_difference,
    items_for_half_width,
    items_for_share,
    smallest_difference,
)
from consilience.stats.proportions import wilson

PINNED = Path(__file__).parents[4] / "shared" / "checks" / "evaluation" / "power_expected.json"


def test_items_and_smallest_differences_against_pinned():
    if not PINNED.is_file():
        pytest.skip("no ../shared/checks/evaluation/power_expected.json beside the repository")
    for case in json.loads(PINNED.read_text()):
        if "n_ceil" in case:
            found = items_for_difference(
                case["delta"],
                between=case["omega2"],
                within=(case["sigma2_A"], case["sigma2_B"]),
                answers=(case["K_A"], case["K_B"]),
                power=case["power"],
            )
            assert found == case["n_ceil"]
        else:
            spread = math.sqrt(case["var_paired_diff"])
            found = smallest_difference(case["mde_for_n"], spread=spread, power=case["power"])
            assert found == pytest.approx(case["mde"], abs=1e-12)


def test_items_for_a_difference_by_hand():
    # Miller (2024): (1.96 + 0.84)^2 (1/9) / 0.03^2 = 969.
    assert items_for_difference(0.03, between=1 / 9) == 969
    assert items_for_difference(-0.03, between=1 / 9) == 969


def test_the_planned_width_is_the_one_of_the_interval():
    x = np.random.default_rng(0).normal(size=50)
    found = mean(x)
    spread = found.standard_error * math.sqrt(found.n)
    assert half_width(50, spread=spread) == pytest.approx((found.high - found.low) / 2)


@pytest.mark.parametrize("width", [0.01, 0.2, 1.5])
def test_items_for_a_width_are_the_fewest(width):
    items = items_for_half_width(width, spread=1.0)
    assert half_width(items, spread=1.0) <= width
    assert items == 2 or half_width(items - 1, spread=1.0) > width


def test_items_for_a_share():
    # Textbook n = z^2 / (4 h^2) for a half, less z^2 for Wilson's: 384.15 - 3.84 at 5 points.
    items = items_for_share(0.05)
    assert items == pytest.approx(1.959964**2 * (1 / 0.01 - 1), abs=2)
    low, high = wilson(items // 2, items)
    assert high - low <= 0.1
    assert items_for_share(0.05, share=0.1) < items


def test_clusters_and_gold():
    assert design_effect(5, 0.2) == pytest.approx(1.8)
    assert effective_gold_items(100, 10**9, 0.0) == 100
    assert effective_gold_items(100, 10**9, math.sqrt(0.5)) == pytest.approx(200)
    assert effective_gold_items(100, 100, 0.9) == 100


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (lambda: half_width(1, spread=1), "1 items"),
        (lambda: items_for_half_width(0, spread=1), "width is 0"),
        (lambda: items_for_difference(0, between=1), "difference is 0"),
        (lambda: smallest_difference(100, spread=1, power=80), "power is 80"),
        (lambda: half_width(10, spread=1, level=95), "level is 95"),
        (lambda: items_for_share(0.1, share=2), "share is 2"),
        (lambda: effective_gold_items(0, 10, 0.5), "0 hand-coded items"),
    ],
)
def test_what_cannot_be_planned_says_so(plan, message):
    with pytest.raises(DataError, match=message):
        plan()
