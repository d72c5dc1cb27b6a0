"""Comparisons worked by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from consilience.errors import DataError
from consilience.evaluate.comparison import Scores, compare, shown_probability

NAN = math.nan


def scores(
    *values: Sequence[float], clusters: str | None = None, categories: Sequence[str] | None = None, **given: object
) -> Scores:
    n = len(values[0])
    return Scores(
        models=tuple("abcdef"[: len(values)]),
        values_MN=np.array(values, dtype=float),
        weights_MN=np.ones((len(values), n)),
        clusters=tuple(clusters or [str(i) for i in range(n)]),
        categories=tuple(categories or [""] * n),
        **given,  # type: ignore[arg-type]
    )


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_paired_difference_by_hand() -> None:
    # Differences 1, 2, 0, 1: mean 1, s = sqrt(2/3), SE = s/2 = 0.4082; t(3, 0.975) = 3.1824.
    found = compare(scores([5, 7, 3, 4], [4, 5, 3, 3]), rng=rng(), margin=0.5)
    pair = found.pairs[0]
    assert pair.difference.estimate.value == pytest.approx(1)
    assert pair.difference.estimate.standard_error == pytest.approx(math.sqrt(2 / 3) / 2)
    assert pair.difference.estimate.high == pytest.approx(1 + 3.182446 * math.sqrt(2 / 3) / 2, abs=1e-6)
    # P(t3 > -1 / 0.40825) = 0.95407 by Student's distribution function with 3 degrees of freedom, in closed form:
    t = 1 / (math.sqrt(2 / 3) / 2)
    exact = 0.5 + (math.atan(t / math.sqrt(3)) + t / math.sqrt(3) / (1 + t * t / 3)) / math.pi
    assert pair.better == pytest.approx(exact, abs=1e-9)
    assert (pair.items, pair.unlike) == (4, 3)
    assert pair.within is not None
    assert 0 < pair.within < 1 - exact + 0.2
    assert found.models["a"].estimate.value == 4.75


def test_clusters_count_once() -> None:
    # Two clusters of two: their difference sums are 3 and 1, n = 4, mean 1; CR0 x G/(G-1): SE = sqrt(2) * sqrt(2) / 4.
    found = compare(scores([5, 7, 3, 4], [4, 5, 3, 3], clusters="xxyy"), rng=rng())
    difference = found.pairs[0].difference.estimate
    assert difference.n == 2
    assert difference.standard_error == pytest.approx(math.sqrt(2 * ((3 - 2) ** 2 + (1 - 2) ** 2)) / 4)


def test_shares_use_the_items_that_only_one_got_right() -> None:
    # 8 items that only a got right, 2 that only b did: P(a better) = P(Beta(9, 3) > 1/2), a binomial tail of 11.
    ours = [1] * 8 + [0] * 2 + [1] * 5 + [0] * 5
    theirs = [0] * 8 + [1] * 2 + [1] * 5 + [0] * 5
    pair = compare(scores(ours, theirs), rng=rng()).pairs[0]
    tail = sum(math.comb(11, k) for k in range(9)) / 2**11
    assert pair.better == pytest.approx(tail, abs=1e-9)
    assert pair.difference.estimate.value == pytest.approx(0.3)


def test_a_loss_is_better_when_lower() -> None:
    up = compare(scores([5, 7, 3, 4], [4, 5, 3, 3.5]), rng=rng())
    down = compare(scores([5, 7, 3, 4], [4, 5, 3, 3.5], lower_is_better=True), rng=rng())
    assert up.pairs[0].better + down.pairs[0].better == pytest.approx(1)
    assert up.ranks is not None
    assert down.ranks is not None
    assert up.ranks.of("a")[0] == pytest.approx(down.ranks.of("a")[1], abs=0.02)


def test_swapping_the_models_changes_the_sign_only() -> None:
    values = rng().normal(size=(2, 30))
    one = compare(scores(*values), rng=rng(), margin=0.3).pairs[0]
    other = compare(scores(*values[::-1]), rng=rng(), margin=0.3).pairs[0]
    assert one.difference.estimate.value == pytest.approx(-other.difference.estimate.value)
    assert one.better == pytest.approx(1 - other.better)
    assert one.within == pytest.approx(other.within)


def test_an_item_without_a_score_is_left_out_of_its_pairs_and_bounded() -> None:
    found = compare(scores([1, 2, 3, NAN], [1, 1, 1, 1], scale=(1, 10)), rng=rng())
    assert found.models["a"].estimate.value == 2
    assert found.models["b"].estimate.n == 4
    assert found.pairs[0].items == 3
    assert found.items_of_all == 3
    bounds = found.bounds["a"]
    assert (bounds.least, bounds.most) == ((6 + 1) / 4, (6 + 10) / 4)
    assert "b" not in found.bounds


def test_bounds_without_a_scale_are_of_the_scores_seen() -> None:
    bounds = compare(scores([1, 2, 3, NAN], [1, 1, 7, 1]), rng=rng()).bounds["a"]
    assert bounds.is_observed
    assert bounds.scale == (1, 7)


def test_bands_are_nested_and_joint_intervals_are_wider() -> None:
    found = compare(scores(*rng().normal(size=(3, 40))), rng=rng())
    for pair in found.pairs:
        (low50, high50), (low80, high80) = pair.difference.bands  # type: ignore[misc]
        interval = pair.difference.estimate
        assert interval.low < low80 < low50 < interval.value < high50 < high80 < interval.high
        assert pair.together is not None
        assert pair.together[0] < interval.low
    assert found.ranks is not None
    assert found.ranks.probabilities.sum(0) == pytest.approx(np.ones(3))


def test_categories_and_their_average() -> None:
    found = compare(scores([1, 2, 3, 5], [1, 1, 1, 1], categories=["x", "x", "y", "y"]), rng=rng())
    measured = found.pairs[0].difference
    assert {name: part.value for name, part in measured.by_category.items()} == {"x": 0.5, "y": 3.0}
    assert measured.same_categories is not None
    assert measured.same_categories.value == pytest.approx(1.75)
    assert measured.same_categories.standard_error < measured.estimate.standard_error
    assert not measured.pooled  # of two categories nothing can be said of their spread


def test_same_categories_keep_their_numbers() -> None:
    found = compare(scores([1, 2, 3, 5, 6], [1, 1, 1, 1, 1], categories=["x", "x", "y", "y", "y"]), rng=rng())
    same = found.models["a"].same_categories
    assert same is not None
    assert same.value == pytest.approx(17 / 5)
    # Strata of 2 and 3: s^2 / n is 0.25 and (7/3) / 3, weighted by (2/5)^2 and (3/5)^2.
    assert same.standard_error == pytest.approx(math.sqrt(0.16 * 0.25 + 0.36 * 7 / 9))


def test_intervals_do_not_leave_the_scale() -> None:
    found = compare(scores([10, 9, 10], [1, 10, 9], scale=(1, 10)), rng=rng())
    assert found.models["a"].estimate.high == 10
    assert found.models["b"].estimate.low == 1
    assert (found.pairs[0].difference.estimate.low, found.pairs[0].difference.estimate.high) == (-9, 9)


def test_scores_that_are_the_same_everywhere_say_nothing_of_the_error() -> None:
    pair = compare(scores([1, 2, 3], [1, 2, 3]), rng=rng()).pairs[0]
    assert math.isnan(pair.better)
    assert pair.unlike == 0


def test_one_cluster_and_nothing_in_common_are_refused() -> None:
    with pytest.raises(DataError, match=r"all 3 items .* 'x'.*leave --cluster out"):
        compare(scores([1, 2, 3], [2, 2, 2], clusters="xxx"), rng=rng())
    with pytest.raises(DataError, match="no item in common"):
        compare(scores([1, 2, NAN, NAN], [NAN, NAN, 1, 2]), rng=rng())
    with pytest.raises(DataError, match="b has no score"):
        compare(scores([1, 2], [NAN, NAN]), rng=rng())


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "unknown"), (0.5, "0.50"), (0.9951, "0.995"), (0.99999, "> 0.999"), (0.0001, "< 0.001"), (0.005, "0.005")],
)
def test_probabilities_are_never_rounded_to_certainty(value: float | None, text: str) -> None:
    assert shown_probability(value) == text


def test_differences_that_are_all_alike_have_no_interval() -> None:
    values = np.array([[2.0, 5.0, 3.5, 4.0], [1.5, 4.5, 3.0, 3.5], [2.0, 5.0, 3.5, 1.0]])
    scores = Scores(
        models=("a", "b", "c"),
        values_MN=values,
        weights_MN=np.ones_like(values),
        clusters=("1", "2", "3", "4"),
        categories=("",) * 4,
    )
    found = {(pair.first, pair.second): pair for pair in compare(scores, rng=np.random.default_rng(0)).pairs}
    same, other = found["a", "b"], found["a", "c"]
    assert same.difference.estimate.value == 0.5
    assert np.isnan([same.difference.estimate.low, same.difference.estimate.high]).all()
    assert same.difference.bands == (None, None)
    assert same.together is None
    assert np.isnan(same.better)
    assert other.difference.estimate.low < 0.75 < other.difference.estimate.high
