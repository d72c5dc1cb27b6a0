"""Estimates from samples: means, ratios of sums, shares of yes, and means over model sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from consilience.errors import DataError
from consilience.stats.estimate import Estimate, Floats


def mean(
    values: ArrayLike, units: Sequence[str] | None = None, *, unit_kind: str = "items", level: float = 0.95
) -> Estimate:
    """The mean of `values`; items with the same label in `units` are one unit, and their number may vary.

    With one item per unit this is the t interval of a mean; with several, the cluster-robust one, whose
    influence is G/n * sum(x_i - mean) over the n items' G units (CR0 times G / (G - 1)). Without `units` an item is
    known by its position, and two estimates pair by position. Raises `DataError` at no items and at a value that
    is not finite: what to do about a missing item is the caller's to say.
    """
    x = _finite(values, "values")
    labels = _labels(units, len(x))
    estimate = ratio(x, np.ones_like(x), labels, unit_kind=unit_kind, level=level)
    items = "mean" if estimate.n == len(x) else f"mean of {len(x)} items, clustered"
    return _with_method(estimate, f"{items}, Student t")


def ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    units: Sequence[str] | None = None,
    *,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """sum(numerators) / sum(denominators), such as nats over bytes; labels in `units` as for `mean`.

    The influence of unit g is G (N_g - R D_g) / sum(D): the linearised ratio (Cochran, Sampling Techniques, 6.4).
    """
    over, under = _finite(numerators, "numerators"), _finite(denominators, "denominators")
    if len(over) != len(under):
        raise DataError(f"{len(over)} numerators for {len(under)} denominators; expected one for one.")
    if not under.sum() > 0:
        raise DataError(f"the denominators sum to {under.sum():g}; a ratio needs a positive sum.")
    labels = _labels(units, len(over))
    index = {unit: i for i, unit in enumerate(dict.fromkeys(labels))}
    value = float(over.sum() / under.sum())
    residuals = np.bincount([index[label] for label in labels], over - value * under)
    return Estimate(
        value=value,
        units=tuple(index),
        influence=len(index) * residuals / under.sum(),
        unit_kind=unit_kind,
        method="ratio of sums, linearised, Student t",
        level=level,
    )


def proportion(
    successes: ArrayLike, units: Sequence[str] | None = None, *, unit_kind: str = "items", level: float = 0.95
) -> Estimate:
    """The share of ones among `successes` (0 or 1, one per unit), with Wilson's score interval.

    Unlike the t interval it keeps its width when all units agree: 20 of 20 is 1.0 [0.84, 1.0]. In a difference or an
    average the share counts through its influences, as any mean does.
    """
    x = _finite(successes, "successes")
    if not np.isin(x, (0.0, 1.0)).all():
        raise DataError("a proportion is of zeros and ones; for other values take the mean.")
    estimate = mean(x, units, unit_kind=unit_kind, level=level)
    if estimate.n != len(x):
        raise DataError(f"{len(x)} items of {estimate.n} {unit_kind}; a proportion has one per unit. Take the mean.")
    interval = _wilson(estimate.value, estimate.n, level)
    return _with_method(estimate, "share, Wilson score interval", interval)


def over_sets(values: ArrayLike, labels: Sequence[str], *, level: float = 0.95) -> Estimate:
    """The mean of one value per independently trained model set: the interval that includes training anew."""
    estimate = mean(values, labels, unit_kind="model sets", level=level)
    if estimate.n != len(labels):
        raise DataError(f"{len(labels)} values of {estimate.n} model sets; expected one value per set.")
    return _with_method(estimate, "mean over model sets, Student t")


def _wilson(share: float, n: int, level: float) -> tuple[float, float]:
    """Wilson (1927): the shares p with |share - p| <= z sqrt(p (1 - p) / n)."""
    from scipy.special import ndtri

    z = float(ndtri((1 + level) / 2))
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _with_method(estimate: Estimate, method: str, interval: tuple[float, float] | None = None) -> Estimate:
    return replace(estimate, method=method, interval=interval)


def _finite(values: ArrayLike, name: str) -> Floats:
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise DataError(f"{name} have shape {x.shape}; expected a list of at least one number.")
    if not np.isfinite(x).all():
        raise DataError(
            f"{(~np.isfinite(x)).sum()} of {len(x)} {name} are not finite; name and count them apart first."
        )
    return x


def _labels(units: Sequence[str] | None, n: int) -> Sequence[str]:
    if units is None:
        return [str(i) for i in range(n)]
    if len(units) != n:
        raise DataError(f"{len(units)} unit labels for {n} values; expected one each.")
    return units
