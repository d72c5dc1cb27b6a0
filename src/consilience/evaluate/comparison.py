"""Models compared on the same items: each one's estimate, every paired difference, ranks; no file, no torch.

Shapes: M models, N items. A score that is not there is NaN. A model's estimate is of all the items that it has a score
on; a difference is of the items that both have; ranks are of the items that all have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from consilience.errors import DataError
from consilience.evaluate.pooling import FEWEST, Pooled, partially_pooled
from consilience.stats import (
    Estimate,
    RankProbabilities,
    average,
    difference,
    mean,
    paired_counts,
    paired_difference,
    probability_above,
    probability_above_by,
    probability_within,
    proportion,
    rank_probabilities,
    ratio,
    share_interval,
    simultaneous,
)

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Interval = tuple[float, float]
BANDS = (0.5, 0.8)  # levels drawn inside the interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What is compared. `clusters` and `categories` have an entry per item; no category is an empty one.

    `scale` holds the least and the largest possible score, where there are such.
    """

    models: tuple[str, ...]
    values_MN: Floats
    weights_MN: Floats
    clusters: tuple[str, ...]
    categories: tuple[str, ...]
    unit_kind: str = "items"
    scale: Interval | None = None
    lower_is_better: bool = False


class Measured(NamedTuple):
    """An estimate, the same one's intervals at the levels of BANDS, and how it is in every category."""

    estimate: Estimate
    bands: tuple[Interval | None, ...]
    by_category: Mapping[str, Estimate]
    same_categories: Estimate | None  # over new items of the same categories, in the same numbers
    pooled: Mapping[str, Pooled]  # the categories in the light of one another, where there are enough of them


class Bounds(NamedTuple):
    """The mean over all items if what has no score were worth the least, or the most."""

    least: float
    most: float
    scale: Interval
    is_observed: bool  # the scale is that of the scores seen, for want of a known one
    items: int  # without a score


class Pair(NamedTuple):
    """`first - second` on the items that both have a score on."""

    first: str
    second: str
    difference: Measured
    items: int
    unlike: int | None  # items on which the two scores differ; None where the estimates are no means of scores
    better: float  # P(first is the better one); NaN where the items show no spread at all
    within: float | None  # P(-margin < difference < margin), where a margin was given
    together: Interval | None  # the interval that holds jointly with those of all other pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What `compare` found. `ranks` is None where too few items have a score under every model."""

    models: Mapping[str, Measured]
    bounds: Mapping[str, Bounds]
    pairs: Sequence[Pair]
    ranks: RankProbabilities | None
    items_of_all: int
    level: float
    margin: float | None


def compare(
    scores: Scores, *, rng: np.random.Generator, level: float = 0.95, margin: float | None = None
) -> Comparison:
    """Every model and every pair of models; the pairs in the order of the models.

    Shares of ones have Wilson's interval, their differences the Dirichlet posterior's; win rates Wilson's at the
    effective sample size; everything else Student's t over the clusters. Raises `DataError` where two models have no
    scored item in common, and where all scored items are of one cluster.
    """
    for m, name in enumerate(scores.models):
        if not np.isfinite(scores.values_MN[m]).any():
            raise DataError(f"{name} has no score on any item.")
    pairs = [_pair(scores, one, other, level, margin) for one, other in combinations(range(len(scores.models)), 2)]
    pairs = _all_at_once(pairs, rng)
    everywhere_N: Mask = ~np.isnan(scores.values_MN.sum(0))
    ranks = None
    units_of_all = {cluster for cluster, kept in zip(scores.clusters, everywhere_N) if kept}
    if len(scores.models) > 1 and len(units_of_all) > 1:
        of_all = {name: _mean(scores, m, everywhere_N, level) for m, name in enumerate(scores.models)}
        ranks = rank_probabilities(of_all, rng=rng, lower_is_better=scores.lower_is_better)
    return Comparison(
        models={
            name: _measured(scores, np.isfinite(scores.values_MN[m]), level, partial(_mean, scores, m), scores.scale)
            for m, name in enumerate(scores.models)
        },
        bounds={name: found for m, name in enumerate(scores.models) if (found := _bounds(scores, m))},
        pairs=pairs,
        ranks=ranks,
        items_of_all=int(everywhere_N.sum()),
        level=level,
        margin=margin,
    )


def compare_estimates(
    at: Callable[[float], Mapping[str, Estimate]],
    *,
    rng: np.random.Generator,
    level: float = 0.95,
    margin: float | None = None,
) -> Comparison:
    """The same for estimates that are no means of scores, such as length-controlled win rates.

    `at(level)` gives every model's estimate at a level; differences are paired by unit, with Student's t.
    """
    models, *at_bands = (at(one) for one in (level, *BANDS))

    def measured(whole: Estimate, parts: Sequence[Estimate]) -> Measured:
        bands = tuple(map(_ends, parts))
        return Measured(estimate=whole, bands=bands, by_category={}, same_categories=None, pooled={})

    pairs = []
    for first, second in combinations(models, 2):
        found, *in_bands = (without_spread(difference(of[first], of[second])) for of in (models, *at_bands))
        pairs.append(
            Pair(
                first=first,
                second=second,
                difference=measured(found, in_bands),
                items=len(set(models[first].units) & set(models[second].units)),
                unlike=None,
                better=probability_above(found),
                within=margin and probability_within(found, margin),
                together=None,
            )
        )
    return Comparison(
        models={name: measured(whole, [of[name] for of in at_bands]) for name, whole in models.items()},
        bounds={},
        pairs=_all_at_once(pairs, rng),
        ranks=rank_probabilities(models, rng=rng) if len(models) > 1 else None,
        items_of_all=len(set.intersection(*(set(whole.units) for whole in models.values()))),
        level=level,
        margin=margin,
    )


def _ends(estimate: Estimate) -> Interval | None:
    """The interval's ends, where there is one."""
    return None if math.isnan(estimate.low) else (estimate.low, estimate.high)


def _all_at_once(pairs: Sequence[Pair], rng: np.random.Generator) -> list[Pair]:
    """The pairs with intervals that hold jointly for all of them, where there are several."""
    joint = [pair for pair in pairs if pair.difference.estimate.n > 1 and pair.difference.estimate.standard_error > 0]
    if len(joint) < 2:
        return [*pairs]
    # Student's t for all: the posterior of shares has no joint form with other pairs.
    plain = [replace(pair.difference.estimate, interval=None) for pair in joint]
    together = {id(pair): (float(e.low), float(e.high)) for pair, e in zip(joint, simultaneous(plain, rng=rng))}
    return [pair._replace(together=together.get(id(pair))) for pair in pairs]


Estimator = Callable[[Mask, float], Estimate]  # on the items of a mask, at a level


def _measured(scores: Scores, on_N: Mask, level: float, estimate: Estimator, scale: Interval | None) -> Measured:
    """The estimate on the items of a mask, with its bands, and in every category."""
    whole = estimate(on_N, level)
    intervals = [estimate(on_N, band) for band in BANDS] if whole.n > 1 else []
    labels_N = np.array(scores.categories, dtype=object)
    names = sorted({name for name, on in zip(scores.categories, on_N) if on and name})
    by_category = {name: estimate(on_N & (labels_N == name), level) for name in names} if len(names) > 1 else {}
    weights = [float(scores.weights_MN[:, on_N & (labels_N == name)].sum()) for name in by_category]
    # Without any spread in a category its standard error says nothing, and neither would that of their average.
    whole_categories = by_category and all(part.n > 1 and part.standard_error > 0 for part in by_category.values())
    return Measured(
        estimate=whole,
        bands=tuple(map(_ends, intervals)) or (None,) * len(BANDS),
        by_category=by_category,
        same_categories=_within(average([*by_category.values()], weights), scale) if whole_categories else None,
        pooled=_pooled(by_category, level),
    )


def _pooled(by_category: Mapping[str, Estimate], level: float) -> dict[str, Pooled]:
    """Categories that show no spread stay out: their standard error says nothing."""
    known = {name: part for name, part in by_category.items() if part.n > 1 and part.standard_error > 0}
    if len(known) < FEWEST:
        return {}
    values, errors = zip(*((part.value, part.standard_error) for part in known.values()))
    return dict(zip(known, partially_pooled(values, errors, level=level)))


def _mean(scores: Scores, model: int, on_N: Mask, level: float) -> Estimate:
    """One model's mean score on the items of a mask."""
    values, weights = scores.values_MN[model][on_N], scores.weights_MN[model][on_N]
    units = _units(scores, on_N)
    if len(set(units)) == 1 < len(units):  # a category of one cluster has a mean, and no interval
        return ratio(weights * values, weights, units, unit_kind=scores.unit_kind, level=level)
    if (weights != weights[0]).any():
        return mean(values, units, weights=weights, unit_kind=scores.unit_kind, level=level)
    if len(units) > 1 and _all_ones_and_zeros(values):
        return proportion(values, units, unit_kind=scores.unit_kind, level=level)
    plain = mean(values, units, unit_kind=scores.unit_kind, level=level)
    if scores.scale is None or plain.n < 2 or scores.scale not in ((0, 1), (0, 100)):
        return _within(plain, scores.scale)
    share = mean(values / scores.scale[1], units, unit_kind=scores.unit_kind, level=level)
    low, high = (scores.scale[1] * end for end in share_interval(share))
    return replace(plain, interval=(low, high), method="mean, Wilson score interval at the effective sample size")


def _minus(scores: Scores, first: int, second: int, on_N: Mask, level: float) -> Estimate:
    """The first model's mean minus the second's, on the same items."""
    if _is_two_by_two(scores, first, second, on_N):
        ours, theirs = scores.values_MN[first][on_N], scores.values_MN[second][on_N]
        return paired_difference(ours, theirs, _units(scores, on_N), unit_kind=scores.unit_kind, level=level)
    sides = [_mean(scores, model, on_N, level) for model in (first, second)]
    return _within(without_spread(difference(*sides)), _of_differences(scores.scale))


def without_spread(estimate: Estimate) -> Estimate:
    """The estimate, with no interval where all units say the same: that does not tell how far others would differ."""
    rounding = 1e-12 * max(abs(estimate.value), 1e-300)
    if estimate.n < 2 or estimate.standard_error > rounding or estimate.interval is not None:
        return estimate
    return replace(estimate, interval=(math.nan, math.nan), method=f"{estimate.method}; no spread, no interval")


def _of_differences(scale: Interval | None) -> Interval | None:
    """The least and the largest possible difference of two scores."""
    return None if scale is None else (scale[0] - scale[1], scale[1] - scale[0])


def _within(estimate: Estimate, scale: Interval | None) -> Estimate:
    """The estimate, with an interval that does not leave the scale: few units make for t intervals that do."""
    if scale is None or not (estimate.low < scale[0] or estimate.high > scale[1]):
        return estimate
    ends = max(estimate.low, scale[0]), min(estimate.high, scale[1])
    return replace(estimate, interval=ends, method=f"{estimate.method}, within {scale[0]:g} and {scale[1]:g}")


def _pair(scores: Scores, first: int, second: int, level: float, margin: float | None) -> Pair:
    names = scores.models[first], scores.models[second]
    ours, theirs = scores.values_MN[first], scores.values_MN[second]
    on_N = np.isfinite(ours) & np.isfinite(theirs)
    if not on_N.any():
        raise DataError(f"{names[0]} and {names[1]} have no item in common that both have a score on.")
    _refuse_one_cluster(scores, on_N)
    found = _measured(scores, on_N, level, partial(_minus, scores, first, second), _of_differences(scores.scale))
    within: float | None
    if _is_two_by_two(scores, first, second, on_N):
        counts = paired_counts(ours[on_N], theirs[on_N])
        above = probability_above_by(counts)
        within = margin and probability_above_by(counts, -margin) - probability_above_by(counts, margin)
    else:
        above = probability_above(found.estimate)
        within = margin and probability_within(found.estimate, margin)
    return Pair(
        first=names[0],
        second=names[1],
        difference=found,
        items=int(on_N.sum()),
        unlike=int((ours[on_N] != theirs[on_N]).sum()),
        better=1 - above if scores.lower_is_better else above,
        within=within,
        together=None,
    )


def _is_two_by_two(scores: Scores, first: int, second: int, on_N: Mask) -> bool:
    """Whether both models' scores are ones and zeros, one per unit."""
    pair_MN = scores.values_MN[[first, second]][:, on_N]
    units = _units(scores, on_N)
    unweighted = (scores.weights_MN[[first, second]][:, on_N] == 1).all()
    return bool(unweighted) and len(units) > 1 and len(set(units)) == len(units) and _all_ones_and_zeros(pair_MN)


def _all_ones_and_zeros(values: Floats) -> bool:
    return bool(((values == 0) | (values == 1)).all())


def _units(scores: Scores, on_N: Mask) -> list[str]:
    return [scores.clusters[i] for i in np.flatnonzero(on_N)]


def _refuse_one_cluster(scores: Scores, on_N: Mask) -> None:
    units = _units(scores, on_N)
    if len(set(units)) == 1:
        many = f"all {len(units)} items" if len(units) > 1 else "the only item"
        raise DataError(
            f"{many} with a score under both models belong to one of the {scores.unit_kind}, {units[0]!r}: a spread "
            "takes at least two. Cluster by another column, or leave --cluster out."
        )


def _bounds(scores: Scores, model: int) -> Bounds | None:
    """What the mean over all items could be, whatever the items without a score were worth."""
    values_N = scores.values_MN[model]
    known_N = np.isfinite(values_N)
    missing = int((~known_N).sum())
    if not missing:
        return None
    seen = scores.values_MN[np.isfinite(scores.values_MN)]
    scale = scores.scale or (float(seen.min()), float(seen.max()))
    weights_N = scores.weights_MN[model]
    least, most = (float(np.average(np.where(known_N, values_N, end), weights=weights_N)) for end in scale)
    return Bounds(least, most, scale, scores.scale is None, missing)


def shown_probability(value: float | None) -> str:
    """`0.93`; three digits near 0 and 1; in words where it is not known because nothing varies."""
    if value is None:
        return "unknown"
    if value < 0.001 or value > 0.999:
        return "< 0.001" if value < 0.5 else "> 0.999"
    return f"{value:.3f}" if value < 0.01 or value > 0.99 else f"{value:.2f}"
