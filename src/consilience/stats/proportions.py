"""Shares of yes and their intervals: Wilson, Clopper-Pearson, Jeffreys and a flat prior; for clusters, Wilson's at the
effective sample size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from consilience.errors import DataError, pick
from consilience.stats.estimate import Estimate, difference
from consilience.stats.means import mean
from consilience.stats.units import finite

Interval = tuple[float, float]


def proportion(
    successes: ArrayLike,
    units: Sequence[str] | None = None,
    *,
    interval: str = "wilson",
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """The share of ones among `successes` (0 or 1, one per unit), with an interval of `PROPORTION_INTERVALS`.

    Unlike the t interval these keep their width when all units agree: 20 of 20 is 1.0 [0.84, 1.0]. In a difference or
    an average the share counts through its influences, as any mean does. Several items of one unit are clustered:
    then only Wilson's interval is there, at the effective sample size (`share_interval`).
    """
    x = finite(successes, "successes")
    if not np.isin(x, (0.0, 1.0)).all():
        raise DataError("a proportion is of zeros and ones; for other values take the mean.")
    of = pick(PROPORTION_INTERVALS, interval, "interval of a proportion")
    share = mean(x, units, unit_kind=unit_kind, level=level)
    if share.n == len(x):
        return replace(share, method=f"share, {NAMES[interval]}", interval=of(int(x.sum()), len(x), level))
    if interval != "wilson":
        raise DataError(f"{len(x)} items of {share.n} {unit_kind}: {NAMES[interval]} needs one per unit; take wilson.")
    method = f"share of {len(x)} items, clustered, Wilson score interval at the effective sample size"
    return replace(share, method=method, interval=share_interval(share))


def share_interval(share: Estimate) -> Interval:
    """Wilson's interval around a mean of numbers between 0 and 1, on Student's t, from its standard error.

    The effective sample size is that of yes-or-no answers with the same standard error, value (1 - value) / SE^2. All
    units alike show no spread: then it is the number of units, as if each were one yes or no.
    Raises `DataError` at a single unit.
    """
    from scipy.special import stdtrit

    if share.n < 2:
        raise DataError(f"an interval from {share.n} of {share.unit_kind}; the spread between them takes at least two.")
    se = share.standard_error
    size = share.value * (1 - share.value) / se**2 if se > 1e-12 else share.n
    return _score_interval(share.value, size, float(stdtrit(share.degrees_of_freedom, (1 + share.level) / 2)))


def share_difference(ours: Estimate, theirs: Estimate) -> Estimate:
    """The difference of two shares; of independent ones with their own intervals, Newcombe's.

    That joins the limits of the two by their squared distances from the shares (1998, Statistics in Medicine 17, 873,
    method 10): it keeps a width where no unit has a yes, or all have one. Shares over common units have Student's t.
    """
    found = difference(ours, theirs)
    if ours.interval is None or theirs.interval is None or found.n < ours.n + theirs.n:
        return found
    low = found.value - math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    high = found.value + math.hypot(ours.high - ours.value, theirs.value - theirs.low)
    return replace(found, interval=(low, high), method="difference of independent shares, Newcombe's interval")


def in_percent(share: Estimate, method: str) -> Estimate:
    """A mean of numbers between 0 and 1 as a percentage, with its `share_interval`."""
    low, high = share_interval(share)
    return replace(
        share,
        value=100 * share.value,
        influence=100 * share.influence,
        interval=(100 * low, 100 * high),
        method=f"{method}, Wilson score interval at the effective sample size",
    )


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """The shares p with |share - p| <= z sqrt(p (1 - p) / n) (Wilson 1927)."""
    from scipy.special import ndtri

    _check(successes, n)
    return _score_interval(successes / n, n, float(ndtri((1 + level) / 2)))


def clopper_pearson(successes: int, n: int, level: float = 0.95) -> Interval:
    """The shares that neither binomial tail excludes at (1 - level) / 2 (1934); it never covers too little."""
    from scipy.special import betaincinv

    _check(successes, n)
    tail = (1 - level) / 2
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    return low, float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0


def jeffreys(successes: int, n: int, level: float = 0.95) -> Interval:
    """The equal-tailed posterior interval under the prior Beta(1/2, 1/2)."""
    return _posterior(successes, n, level, prior=0.5)


def flat_prior(successes: int, n: int, level: float = 0.95) -> Interval:
    """The equal-tailed posterior interval under the prior Beta(1, 1) (arXiv:2503.01747)."""
    return _posterior(successes, n, level, prior=1.0)


PROPORTION_INTERVALS: dict[str, Callable[[int, int, float], Interval]] = {
    "wilson": wilson,
    "clopper_pearson": clopper_pearson,
    "jeffreys": jeffreys,
    "flat_prior": flat_prior,
}
NAMES = {
    "wilson": "Wilson score interval",
    "clopper_pearson": "Clopper and Pearson's interval",
    "jeffreys": "Jeffreys posterior interval",
    "flat_prior": "posterior interval under a flat prior",
}


def _posterior(successes: int, n: int, level: float, prior: float) -> Interval:
    from scipy.special import betaincinv

    _check(successes, n)
    a, b, tail = successes + prior, n - successes + prior, (1 - level) / 2
    return float(betaincinv(a, b, tail)), float(betaincinv(a, b, 1 - tail))


def _score_interval(share: float, n: float, z: float) -> Interval:
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def _check(successes: int, n: int) -> None:
    if not 0 <= successes <= n or not n:
        raise DataError(f"{successes} successes of {n}; expected 0 to n of at least one.")
