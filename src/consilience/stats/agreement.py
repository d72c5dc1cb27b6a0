"""Agreement of coders or judges: observed, Cohen's and Fleiss' kappa, Krippendorff's alpha, Gwet's AC1 and AC2.

Shapes: N items, R raters, K categories.

All are 1 - (disagreement seen) / (disagreement expected by chance) and differ in what chance is; under skew they differ
much, so a report shows the observed agreement beside them. Items drawn at unlike rates carry `item_weights`, one over
the probability of being drawn; only their proportions matter. The units are the items, or whatever the items are
sampled in; raters are taken as they are. The influences are the jackknife's over units, the intervals Student's t on
the scale log(1 - agreement), which ends at 1 as the measures do. Where no unit disagrees there is no spread: then the
interval's lower end is what the measure would be if items disagreed as often as Wilson's upper limit for none, and
disagreeing items were as far apart as chance pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.errors import DataError, pick
from consilience.stats.estimate import Estimate, Floats
from consilience.stats.means import mean
from consilience.stats.proportions import proportion, share_interval, wilson
from consilience.stats.resampling import Statistic, jackknife
from consilience.stats.units import finite, several_units, sums_by_unit, unit_labels

Codes = NDArray[np.intp]  # [N, R]: a category's place, -1 where there is no rating


def observed_agreement(
    first: Sequence[Any],
    second: Sequence[Any],
    units: Sequence[str] | None = None,
    *,
    item_weights: ArrayLike | None = None,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """The share of items that two raters gave the same rating."""
    _check_pairs(first, second)
    same = np.array([a == b for a, b in zip(first, second)], dtype=np.float64)
    if item_weights is None:
        return proportion(same, units, unit_kind=unit_kind, level=level)
    share = mean(same, units, weights=item_weights, unit_kind=unit_kind, level=level)
    method = "weighted share, Wilson score interval at the effective sample size"
    return replace(share, method=method, interval=share_interval(share))


def cohens_kappa(
    first: Sequence[Any],
    second: Sequence[Any],
    units: Sequence[str] | None = None,
    *,
    weights: str = "nominal",
    categories: Sequence[Any] | None = None,
    item_weights: ArrayLike | None = None,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """Kappa of two raters, each with their own shares of the categories as chance (Cohen 1960, weighted 1968).

    `weights` is a key of `AGREEMENT_WEIGHTS`: for other than nominal ones the order is that of `categories`, or
    sorted. Raises `DataError` where one of them uses a single category: kappa is then 0 whatever the other says,
    without any spread, or undefined.
    """
    _check_pairs(first, second)
    codes_NR, names = encode(np.column_stack([_objects(first), _objects(second)]), categories)
    if (codes_NR < 0).any():
        raise DataError(f"{(codes_NR < 0).any(1).sum()} of {len(codes_NR)} items lack a rating; leave them out.")
    for codes_N in codes_NR.T:
        if (codes_N == codes_N[0]).all():
            raise DataError(
                f"Cohen's kappa is undefined: one of the two gave {names[codes_N[0]]!r} to all {len(codes_N)} items, "
                "and it would be 0 whatever the other says."
            )
    count = len(names)
    w_KK = pick(AGREEMENT_WEIGHTS, weights, "weighting")(count)
    table_NKK = np.zeros((len(codes_NR), count, count))
    table_NKK[np.arange(len(codes_NR)), codes_NR[:, 0], codes_NR[:, 1]] = 1

    def kappa(tables: Floats) -> Floats:
        table = tables / tables.sum((-2, -1), keepdims=True)
        seen = (table * w_KK).sum((-2, -1))
        chance = (table.sum(-1, keepdims=True) * table.sum(-2, keepdims=True) * w_KK).sum((-2, -1))
        return _beyond(seen, chance)

    kind = "Cohen's kappa" if weights == "nominal" else f"Cohen's kappa, {weights} weights"
    table_NKK *= relative_weights(item_weights, len(codes_NR))[:, None, None]
    return measured_by_units(kappa, table_NKK, codes_NR, units, kind, unit_kind, level)


def fleiss_kappa(
    ratings: Any,
    units: Sequence[str] | None = None,
    *,
    categories: Sequence[Any] | None = None,
    item_weights: ArrayLike | None = None,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """Kappa of any number of raters, with the shares of the categories among all ratings as chance (Fleiss 1971).

    `ratings` has a row per item and a column per rater; None or NaN is no rating. With another number of ratings per
    item it is Gwet's generalisation: an item counts once, however many rated it.
    """
    codes_NR, names = encode(ratings, categories)
    w_KK = np.eye(len(names))

    def kappa(sums: Floats) -> Floats:
        seen, shares_K = _seen_and_shares(sums)
        return _beyond(seen, (shares_K**2).sum(-1))

    parts = _item_parts(codes_NR, w_KK) * relative_weights(item_weights, len(codes_NR))[:, None]
    return measured_by_units(kappa, parts, codes_NR, units, "Fleiss' kappa", unit_kind, level)


def gwet_ac(
    ratings: Any,
    units: Sequence[str] | None = None,
    *,
    weights: str = "nominal",
    categories: Sequence[Any] | None = None,
    item_weights: ArrayLike | None = None,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """Gwet's AC1, and AC2 with weights of `AGREEMENT_WEIGHTS` (Gwet 2008, doi:10.1348/000711006X126600).

    Chance is that of raters who guess on some items: it stays low when nearly all items are of one category. It
    depends on how many categories there are, so name them in `categories` if some may be unused. `ratings` as for
    `fleiss_kappa`.
    """
    codes_NR, names = encode(ratings, categories)
    count = len(names)
    if count < 2:
        raise DataError(f"all ratings are {names[0]!r}; name the categories there were to choose from.")
    w_KK = pick(AGREEMENT_WEIGHTS, weights, "weighting")(count)

    def chance(shares_K: Floats) -> Floats:
        found: Floats = w_KK.sum() / (count * (count - 1)) * (shares_K * (1 - shares_K)).sum(-1)
        return found

    def coefficient(sums: Floats) -> Floats:
        seen, shares_K = _seen_and_shares(sums)
        return _beyond(seen, chance(shares_K))

    kind = "Gwet's AC1" if weights == "nominal" else f"Gwet's AC2, {weights} weights"
    parts = _item_parts(codes_NR, w_KK) * relative_weights(item_weights, len(codes_NR))[:, None]
    return measured_by_units(coefficient, parts, codes_NR, units, kind, unit_kind, level, chance=chance)


def krippendorff_alpha(
    ratings: Any,
    units: Sequence[str] | None = None,
    *,
    scale: str = "nominal",
    categories: Sequence[Any] | None = None,
    item_weights: ArrayLike | None = None,
    repeats: Sequence[int] | None = None,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """1 - observed over expected disagreement among all pairs of ratings of an item (Krippendorff 2011).

    `ratings` as for `fleiss_kappa`; items with one rating count for nothing. `scale` is a key of `DISTANCES`: the
    interval and ratio scales need numbers, the ordinal one takes the order of `categories`, or sorted. With `repeats` a
    row stands for so many items that are rated alike, such as a run of characters. Raises `DataError` where all ratings
    are alike (agreement is 100 %, alpha undefined) or no item has two.
    """
    distance = pick(DISTANCES, scale, "scale")
    codes_NR, names = encode(ratings, categories)
    numbers_K = _numbers(names, scale) if scale in ("interval", "ratio") else np.arange(len(names), dtype=np.float64)
    counts_NK = _counts(codes_NR, len(names))
    rated_N = counts_NK.sum(1)
    pairs_NKK = counts_NK[:, :, None] * counts_NK[:, None, :] - counts_NK[:, :, None] * np.eye(len(names))
    paired_N = rated_N >= 2
    pairs_NKK = pairs_NKK * (paired_N / np.maximum(rated_N - 1, 1))[:, None, None]
    weights_N = relative_weights(item_weights, len(codes_NR))
    repeats_N = np.ones(len(codes_NR)) if repeats is None else finite(repeats, "repeats")
    typical = float(np.average(weights_N[paired_N], weights=repeats_N[paired_N])) if paired_N.any() else 1.0
    pairs_NKK *= (weights_N * repeats_N / max(typical, 1e-300))[:, None, None]

    def alpha(coincidences: Floats) -> Floats:
        ratings_K = coincidences.sum(-1)
        total = ratings_K.sum(-1)
        apart_KK = distance(ratings_K, numbers_K)
        seen = (coincidences * apart_KK).sum((-2, -1))
        expected = (ratings_K[..., :, None] * ratings_K[..., None, :] * apart_KK).sum((-2, -1))
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = 1 - (total - 1) * seen / expected
        return found

    if not paired_N.any():
        raise DataError(f"none of {len(codes_NR)} items has two ratings; agreement is between ratings of one item.")
    labels = unit_labels(units, len(codes_NR))
    labels = [label for label, paired in zip(labels, paired_N) if paired]
    kind = f"Krippendorff's alpha, {scale}"
    shown_NR = codes_NR[paired_N] if repeats is None else np.repeat(codes_NR, repeats_N.astype(int) * paired_N, axis=0)
    return measured_by_units(alpha, pairs_NKK[paired_N], shown_NR, labels, kind, unit_kind, level)


def overlap_f1(
    overlaps: ArrayLike,
    sizes: ArrayLike,
    units: Sequence[str] | None = None,
    *,
    item_weights: ArrayLike | None = None,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """2 sum(overlaps) / sum(sizes): the F1 of what was marked, such as characters of texts, pooled over items.

    An item's `overlaps` are what both of a pair of raters marked, `sizes` what the one marked plus what the other did.
    Raises `DataError` where nobody marked anything.
    """
    parts_N2 = np.column_stack([finite(overlaps, "overlaps"), finite(sizes, "sizes")])
    if not parts_N2[:, 1].sum() > 0:
        raise DataError(f"nobody marked anything in {len(parts_N2)} items: F1 is undefined.")

    def f1(sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = 2 * sums[..., 0] / sums[..., 1]
        return found

    codes_N1 = np.zeros((len(parts_N2), 1), dtype=np.intp)
    parts_N2 = parts_N2 * relative_weights(item_weights, len(parts_N2))[:, None]
    found = measured_by_units(
        f1, parts_N2, codes_N1, units, "F1", unit_kind, level, chance=lambda shares_K: np.zeros(())
    )
    high = found.high if found.value > 0 else wilson(0, found.n, level)[1]  # no overlap at all shows no spread either
    return replace(found, interval=(max(0.0, found.low), high))


def _linear(count: int) -> Floats:
    apart_KK = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    found: Floats = 1 - apart_KK / max(count - 1, 1)
    return found


def _quadratic(count: int) -> Floats:
    return 1 - (1 - _linear(count)) ** 2


AGREEMENT_WEIGHTS: dict[str, Callable[[int], Floats]] = {
    "nominal": lambda count: np.eye(count),
    "linear": _linear,
    "quadratic": _quadratic,
}


def _nominal_distance(ratings_K: Floats, numbers_K: Floats) -> Floats:
    return 1 - np.eye(len(numbers_K))


def _ordinal_distance(ratings_K: Floats, numbers_K: Floats) -> Floats:
    """The ratings between two categories, half of their own included, squared: the difference of their mean ranks."""
    return _interval_distance(ratings_K, ratings_K.cumsum(-1) - ratings_K / 2)


def _interval_distance(ratings_K: Floats, numbers_K: Floats) -> Floats:
    found: Floats = (numbers_K[..., :, None] - numbers_K[..., None, :]) ** 2
    return found


def _ratio_distance(ratings_K: Floats, numbers_K: Floats) -> Floats:
    sums_KK = np.add.outer(numbers_K, numbers_K)
    found: Floats = (np.subtract.outer(numbers_K, numbers_K) / np.where(sums_KK == 0, 1, sums_KK)) ** 2
    return found


DISTANCES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "nominal": _nominal_distance,
    "ordinal": _ordinal_distance,
    "interval": _interval_distance,
    "ratio": _ratio_distance,
}


def encode(ratings: Any, categories: Sequence[Any] | None = None) -> tuple[Codes, list[Any]]:
    """The places [N, R] of ratings among their categories, -1 for None or NaN; and the categories, sorted or as given.

    Raises `DataError` at another shape, at no rating at all, and at a rating that is not in `categories`.
    """
    cells = np.asarray(ratings, dtype=object)
    if cells.ndim != 2 or not cells.size:
        raise DataError(f"ratings have shape {cells.shape}; expected a row per item and a column per rater.")
    there = np.array([[cell is not None and cell == cell for cell in row] for row in cells])
    found = set(cells[there])
    if not found:
        raise DataError(f"none of {cells.size} ratings is there: all are missing.")
    try:
        names = sorted(found) if categories is None else [*categories]
    except TypeError:
        kinds = ", ".join(sorted({type(cell).__name__ for cell in found}))
        raise DataError(f"ratings are of several kinds ({kinds}) and have no order; name the categories.") from None
    if unknown := found - {*names}:
        raise DataError(f"ratings {sorted(map(str, unknown))} are not among the categories {names}.")
    place = {name: i for i, name in enumerate(names)}
    codes = [[place[cell] if here else -1 for cell, here in zip(*row)] for row in zip(cells, there)]
    return np.array(codes, dtype=np.intp), names


def measured_by_units(
    statistic: Statistic,
    parts_N: Floats,
    codes_NR: Codes,
    units: Sequence[str] | None,
    kind: str,
    unit_kind: str,
    level: float,
    chance: Callable[[Floats], Floats] | None = None,
) -> Estimate:
    """A measure of agreement as a statistic of sums over units, by the jackknife, with this module's interval.

    `chance` is the agreement by chance under shares of the categories, where it is not that of two random draws.
    """
    names, index_N = several_units(unit_labels(units, len(parts_N)), unit_kind)
    if not np.isfinite(statistic(parts_N.sum(0))):
        raise DataError(
            f"{kind} is undefined: no item has two ratings, or all are of one category: 100 % observed agreement."
        )
    method = f"{kind}, jackknife over {unit_kind}, Student t on log(1 - agreement)"
    estimate = jackknife(
        statistic, sums_by_unit(parts_N, index_N), names, unit_kind=unit_kind, method=method, level=level
    )
    return replace(estimate, interval=_interval(estimate, codes_NR, chance))


def _interval(estimate: Estimate, codes_NR: Codes, chance: Callable[[Floats], Floats] | None) -> tuple[float, float]:
    """Student's t on log(1 - value); for full agreement, from Wilson's limit for none of n disagreeing."""
    from scipy.special import stdtrit

    disagreement = 1 - estimate.value
    if disagreement < 1e-12:
        shares_K = np.bincount(codes_NR[codes_NR >= 0]) / (codes_NR >= 0).sum()
        by_chance = float(chance(shares_K) if chance else (shares_K**2).sum())
        return 1 - wilson(0, estimate.n, estimate.level)[1] / (1 - by_chance), 1.0
    t = float(stdtrit(estimate.degrees_of_freedom, (1 + estimate.level) / 2))
    factor = math.exp(t * estimate.standard_error / disagreement)
    return 1 - disagreement * factor, 1 - disagreement / factor


def _beyond(seen: Floats, chance: Floats) -> Floats:
    """(seen - chance) / (1 - chance), NaN where chance alone agrees."""
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Floats = np.where(chance < 1 - 1e-12, (seen - chance) / (1 - chance), np.nan)
    return found


def _item_parts(codes_NR: Codes, w_KK: Floats) -> Floats:
    """Per item: its pairwise agreement, has it two ratings, its shares of the categories, has it one."""
    counts_NK = _counts(codes_NR, len(w_KK))
    rated_N = counts_NK.sum(1)
    alike_N = (counts_NK * (counts_NK @ w_KK - 1)).sum(1) / np.maximum(rated_N * (rated_N - 1), 1)
    shares_NK = counts_NK / np.maximum(rated_N, 1)[:, None]
    return np.column_stack([alike_N * (rated_N >= 2), rated_N >= 2, shares_NK, rated_N >= 1])


def _seen_and_shares(sums: Floats) -> tuple[Floats, Floats]:
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1], sums[..., 2:-1] / sums[..., -1:]


def _counts(codes_NR: Codes, count: int) -> Floats:
    found: Floats = (codes_NR[:, :, None] == np.arange(count)).sum(1).astype(np.float64)
    return found


def relative_weights(item_weights: ArrayLike | None, items: int) -> Floats:
    """The items' weights around a mean of 1."""
    if item_weights is None:
        return np.ones(items)
    weights_N = finite(item_weights, "item weights")
    if len(weights_N) != items or not weights_N.min() > 0:
        raise DataError(f"{len(weights_N)} weights for {items} items; expected one each, all above 0.")
    found: Floats = weights_N / weights_N.mean()
    return found


def _numbers(names: Sequence[Any], scale: str) -> Floats:
    try:
        return np.array([float(name) for name in names])
    except (TypeError, ValueError):
        raise DataError(f"the {scale} scale is of numbers, not {names}; take nominal or ordinal.") from None


def _objects(ratings: Sequence[Any]) -> NDArray[np.object_]:
    cells = np.empty(len(ratings), dtype=object)
    cells[:] = list(ratings)
    return cells


def _check_pairs(first: Sequence[Any], second: Sequence[Any]) -> None:
    if len(first) != len(second) or not len(first):
        raise DataError(f"{len(first)} and {len(second)} ratings; expected the two raters' ratings of the same items.")
