"""Jackknife and bootstrap over units, for statistics that are a function of sums over the units.

A statistic is a function of sums [..., D] -> [...] and of each unit's parts of these sums, parts_GD: a mean of the
column sums (x, 1) is s[0] / s[1], kappa a function of the summed confusion table. So leaving a unit out is a
subtraction, and a resample of units a product with their counts: no loop over items. A statistic of anything else
takes the identity as parts, and gets the counts of the units themselves.

Shapes: G units, D sums, B draws.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from consilience.errors import DataError
from consilience.stats.estimate import Estimate, Floats
from consilience.stats.units import Units

Statistic = Callable[[Floats], Floats]
BLOCK = 1 << 22  # numbers held at a time


def jackknife(
    statistic: Statistic,
    parts_GD: Floats,
    units: Units,
    *,
    unit_kind: str,
    method: str,
    level: float = 0.95,
) -> Estimate:
    """The statistic of all units; a unit's influence is (G - 1) times what it falls by without that unit.

    In the convention of `Estimate` the standard error is then the jackknife's (Tukey 1958). Where the statistic is
    undefined without one of the units, all influences are G times its slope in the unit's weight instead (the
    infinitesimal jackknife). Raises `DataError` at a single unit, and where the statistic of all is undefined.
    """
    count = len(units)
    if count < 2:
        raise DataError(f"a spread from {count} of {unit_kind}; expected at least two.")
    total_D = parts_GD.sum(0)
    value = float(statistic(total_D))
    if not np.isfinite(value):
        raise DataError(f"the statistic is undefined for these {count} {unit_kind}.")
    left_out_G = _at_weights(statistic, total_D, parts_GD, -1.0)
    if np.isfinite(left_out_G).all():
        influence_G: Floats = (count - 1) * (left_out_G.mean() - left_out_G)
    else:
        step = 1e-4  # the error of the slope, step^2, and its rounding, 1e-16 / step, are both below 1e-7
        more_G, less_G = (_at_weights(statistic, total_D, parts_GD, sign * step) for sign in (1, -1))
        slope_G = (more_G - less_G) / (2 * step)
        influence_G = count * (slope_G - slope_G.mean())
    return Estimate(value=value, units=units, influence=influence_G, unit_kind=unit_kind, method=method, level=level)


def _at_weights(statistic: Statistic, total_D: Floats, parts_GD: Floats, change: float) -> Floats:
    """The statistic with each unit's weight, in turn, changed from 1 by `change`: [G]."""
    rows = max(1, BLOCK // max(1, parts_GD[0].size))
    blocks = range(0, len(parts_GD), rows)
    return np.concatenate([statistic(total_D + change * parts_GD[at : at + rows]) for at in blocks])


def bootstrap_draws(statistic: Statistic, parts_GD: Floats, *, rng: np.random.Generator, draws: int = 10_000) -> Floats:
    """The statistic on `draws` samples of G units drawn with replacement; [B], or [B, ...] of several statistics.

    Two statistics of the same draws are paired. Raises `DataError` at a single unit, and where a draw has no value.
    """
    count = len(parts_GD)
    if count < 2 or draws < 1:
        raise DataError(f"{draws} draws from {count} units; expected at least one, from at least two.")
    found = []
    rows = max(1, BLOCK // count)
    for at in range(0, draws, rows):
        size = min(rows, draws - at)
        drawn_BG = rng.integers(count, size=(size, count)) + np.arange(0, size * count, count)[:, None]
        counts_BG = np.bincount(drawn_BG.ravel(), minlength=size * count).reshape(size, count)
        found.append(statistic(np.asarray(np.tensordot(counts_BG, parts_GD, 1), dtype=np.float64)))
    values_B = np.concatenate(found)
    if undefined := int((~np.isfinite(values_B)).sum()):
        raise DataError(
            f"the statistic is undefined on {undefined} of {draws} resamples of {count} units; "
            "there are too few for the bootstrap: take the jackknife's interval."
        )
    return values_B


def percentile(estimate: Estimate, draws_B: Floats) -> Estimate:
    """`estimate` with the interval between the draws' quantiles."""
    tail = (1 - estimate.level) / 2
    low, high = np.quantile(draws_B, [tail, 1 - tail])
    method = f"{_name(estimate)}, percentile bootstrap of {len(draws_B)} draws"
    return replace(estimate, interval=(float(low), float(high)), method=method)


def bca(estimate: Estimate, draws_B: Floats) -> Estimate:
    """`estimate` with the bias-corrected and accelerated interval (Efron 1987).

    The bias is read from the draws, half of those equal to the value counting as below; the acceleration is
    sum(phi^3) / (6 sum(phi^2)^1.5) over the influences. Where all draws are alike, or all on one side of the value,
    there is no such interval, and `DataError` says so.
    """
    from scipy.special import ndtr, ndtri

    below = float((draws_B < estimate.value).mean() + (draws_B == estimate.value).mean() / 2)
    squares = float((estimate.influence**2).sum())
    if not (0 < below < 1 and squares > 0 and np.ptp(draws_B) > 0):
        raise DataError("the resamples do not vary around the value: the bootstrap has no interval for this sample.")
    bias = float(ndtri(below))
    acceleration = float((estimate.influence**3).sum()) / (6 * squares**1.5)
    z = ndtri(np.array([(1 - estimate.level) / 2, (1 + estimate.level) / 2]))
    low, high = np.quantile(draws_B, ndtr(bias + (bias + z) / (1 - acceleration * (bias + z))))
    method = f"{_name(estimate)}, BCa bootstrap of {len(draws_B)} draws"
    return replace(estimate, interval=(float(low), float(high)), method=method)


def _name(estimate: Estimate) -> str:
    return estimate.method.removesuffix(", Student t").removesuffix(", jackknife")
