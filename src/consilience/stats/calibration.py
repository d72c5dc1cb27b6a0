"""Whether a coder model's probabilities can be taken at their word: Brier and log score, reliability, and its error.

Shapes: N items, K labels, Q bins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.errors import DataError
from consilience.stats.estimate import Estimate, Floats
from consilience.stats.means import mean
from consilience.stats.resampling import bootstrap_draws, jackknife, percentile
from consilience.stats.units import finite, several_units, sums_by_unit, unit_labels

LEAST = 1e-12  # a probability that a model states as 0 costs 27.6 nats


class Bin(NamedTuple):
    """Items of like stated probability: the mean that was stated, and the share that was right, with its interval."""

    stated: float
    right: float
    low: float
    high: float
    n: int


def brier_score(
    p_NK: ArrayLike,
    gold_N: Sequence[int],
    units: Sequence[str] | None = None,
    *,
    weights: ArrayLike | None = None,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """The mean squared distance of the probabilities from 1 for the true label and 0 for all others (Brier 1950)."""
    p, gold = _checked(p_NK, gold_N)
    distance_N = ((p - np.eye(p.shape[1])[gold]) ** 2).sum(1)
    return mean(distance_N, units, weights=weights, unit_kind=unit_kind, level=level)


def log_score(
    p_NK: ArrayLike,
    gold_N: Sequence[int],
    units: Sequence[str] | None = None,
    *,
    weights: ArrayLike | None = None,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """The mean of -log p(true label), in nats."""
    p, gold = _checked(p_NK, gold_N)
    cost_N = -np.log(np.maximum(p[np.arange(len(p)), gold], LEAST))
    return mean(cost_N, units, weights=weights, unit_kind=unit_kind, level=level)


def reliability(
    stated: ArrayLike,
    right: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    bins: int = 10,
    level: float = 0.95,
) -> list[Bin]:
    """Bins of equally many items by the probability stated for the label given, with Jeffreys intervals.

    Weighted items count as Kish's effective number of them.
    """
    from scipy.special import betaincinv

    p, is_right = finite(stated, "probabilities"), finite(right, "right or wrong")
    w = np.ones_like(p) if weights is None else finite(weights, "weights")
    found = []
    for places in np.array_split(np.argsort(p, kind="stable"), min(bins, len(p))):
        w_n = w[places]
        share = float(w_n @ is_right[places] / w_n.sum())
        size = float(w_n.sum() ** 2 / (w_n**2).sum())
        ends = betaincinv(size * share + 0.5, size * (1 - share) + 0.5, [(1 - level) / 2, (1 + level) / 2])
        found.append(Bin(float(w_n @ p[places] / w_n.sum()), share, float(ends[0]), float(ends[1]), len(places)))
    return found


def calibration_error(
    stated: ArrayLike,
    right: ArrayLike,
    units: Sequence[str] | None = None,
    *,
    rng: np.random.Generator,
    weights: ArrayLike | None = None,
    bins: int = 10,
    draws: int = 2000,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """The expected calibration error over bins of equally many items: mean |stated - right| (Guo et al. 2017).

    Its interval is the bootstrap's over units. With few items it is too large even where calibration is perfect, for
    the share right in a bin strays from its probability by chance; so its lower end is, too.
    """
    p, is_right = finite(stated, "probabilities"), finite(right, "right or wrong")
    w = np.ones_like(p) if weights is None else finite(weights, "weights")
    bin_of = np.empty(len(p), dtype=np.intp)
    count = min(bins, len(p))
    for number, places in enumerate(np.array_split(np.argsort(p, kind="stable"), count)):
        bin_of[places] = number
    parts_NQ2 = np.zeros((len(p), count, 2))
    parts_NQ2[np.arange(len(p)), bin_of] = np.column_stack([w * (p - is_right), w])
    names, index = several_units(unit_labels(units, len(p)), unit_kind)
    parts_GQ2 = sums_by_unit(parts_NQ2, index)

    def error(sums: Floats) -> Floats:
        found: Floats = np.abs(sums[..., 0]).sum(-1) / sums[..., 1].sum(-1)
        return found

    method = f"expected calibration error, {count} bins of equally many"
    estimate = jackknife(error, parts_GQ2, names, unit_kind=unit_kind, method=method, level=level)
    return percentile(estimate, bootstrap_draws(error, parts_GQ2, rng=rng, draws=draws))


def _checked(p_NK: ArrayLike, gold_N: Sequence[int]) -> tuple[Floats, NDArray[np.intp]]:
    p, gold = np.asarray(p_NK, dtype=np.float64), np.asarray(gold_N, dtype=np.intp)
    if p.ndim != 2 or len(p) != len(gold) or not len(gold):
        raise DataError(f"probabilities of shape {p.shape} for {len(gold)} gold labels; expected a row each.")
    if not np.isfinite(p).all() or p.min() < 0 or np.abs(p.sum(1) - 1).max() > 1e-3:
        raise DataError("probabilities of an item are to be 0 or more, and to sum to 1.")
    return p, gold
