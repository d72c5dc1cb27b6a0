"""Estimates from samples: means, ratios of sums, and means over model sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from consilience.errors import DataError
from consilience.stats.estimate import Estimate, Floats
from consilience.stats.units import Units, finite, unit_index, unit_labels


def mean(
    values: ArrayLike,
    units: Units | None = None,
    *,
    weights: ArrayLike | None = None,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """The mean of `values`; items with the same label in `units` are one unit, and their number may vary.

    With one item per unit this is the t interval of a mean; with several, the cluster-robust one, whose
    influence is G/n * sum(x_i - mean) over the n items' G units (CR0 times G / (G - 1)), on G - 1 degrees of freedom,
    or fewer where the units' sizes are unlike (`effective_degrees`). Without `units` an item is
    known by its position, and two estimates pair by position. `weights` (one over the probability with which an item
    was sampled) give the weighted mean. Raises `DataError` at no items, at several that are all of one unit, and at a
    value that is not finite: what to do about a missing item is the caller's to say.
    """
    x = finite(values, "values")
    w = np.ones_like(x) if weights is None else finite(weights, "weights")
    if len(w) != len(x) or w.min() < 0 or not w.sum() > 0:
        raise DataError(f"{len(w)} weights for {len(x)} values, summing to {w.sum():g}; expected one each, none < 0.")
    labels = unit_labels(units, len(x))
    estimate = ratio(w * x, w, labels, unit_kind=unit_kind, level=level)
    if estimate.n == 1 < len(x):
        raise DataError(f"all {len(x)} values are of one unit: the spread between {unit_kind} is unknown.")
    items = "mean" if estimate.n == len(x) else f"mean of {len(x)} items, clustered"
    method = f"{items if weights is None else 'weighted ' + items}, Student t"
    if estimate.n == 1 or (weights is None and estimate.n == len(x)):
        return replace(estimate, method=method)
    sizes_G = np.bincount(unit_index(labels)[1], w).astype(np.float64)
    each = np.broadcast_to(effective_degrees(sizes_G) / estimate.n, estimate.n)
    return replace(estimate, method=method, strata=np.broadcast_to(0, estimate.n), unit_degrees=each)


def effective_degrees(sizes_G: Floats) -> float:
    """Degrees of freedom of a clustered mean's variance: G - 1 for clusters of one size, fewer for unlike ones.

    Satterthwaite's, for clusters that differ as wholes: cluster sums of variance size^2 around the common mean (as
    Bell and McCaffrey 2002, who take the items as independent). With G - 1, 20 clusters of lognormal sizes (sigma 1)
    cover 90 % where 95 is meant, 10 cover 88; with these 97.
    """
    a_G, v_G = sizes_G / sizes_G.sum(), sizes_G**2
    aa, av, vv, total = a_G @ a_G, a_G @ v_G, v_G @ v_G, v_G.sum()
    # The residual sums have covariance O = diag(v) - a v' - v a' + sum(v) a a'; these are its trace and |O|^2.
    trace = total - 2 * av + total * aa
    square = vv - 4 * (a_G @ v_G**2) + 2 * total * (v_G @ a_G**2) + 2 * aa * vv
    square += 2 * av**2 - 4 * total * aa * av + total**2 * aa**2
    return float(trace**2 / square)


def ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    units: Units | None = None,
    *,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """sum(numerators) / sum(denominators), such as nats over bytes; labels in `units` as for `mean`.

    The influence of unit g is G (N_g - R D_g) / sum(D): the linearised ratio (Cochran, Sampling Techniques, 6.4).
    """
    over, under = finite(numerators, "numerators"), finite(denominators, "denominators")
    if len(over) != len(under):
        raise DataError(f"{len(over)} numerators for {len(under)} denominators; expected one for one.")
    if not under.sum() > 0:
        raise DataError(f"the denominators sum to {under.sum():g}; a ratio needs a positive sum.")
    names, index_N = unit_index(unit_labels(units, len(over)))
    value = float(over.sum() / under.sum())
    residuals = np.bincount(index_N, over - value * under)
    return Estimate(
        value=value,
        units=names,
        influence=len(names) * residuals / under.sum(),
        unit_kind=unit_kind,
        method="ratio of sums, linearised, Student t",
        level=level,
    )


def over_sets(values: ArrayLike, labels: Sequence[str], *, level: float = 0.95) -> Estimate:
    """The mean of one value per independently trained model set: the interval that includes training anew."""
    if len(set(labels)) != len(labels):
        raise DataError(f"{len(labels)} values of {len(set(labels))} model sets; expected one value per set.")
    estimate = mean(values, labels, unit_kind="model sets", level=level)
    return replace(estimate, method="mean over model sets, Student t")
