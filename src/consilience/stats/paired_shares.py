"""Two yes-or-no results on the same items: the difference of their shares, and how probable it is to exceed a number.

With a few hundred items or less neither the t interval nor Wald's is to be trusted: all items alike give it no width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from consilience.errors import DataError, pick
from consilience.stats.estimate import Estimate, Floats, difference
from consilience.stats.means import mean
from consilience.stats.proportions import Interval, wilson
from consilience.stats.units import finite

NODES = 100  # of the Gauss-Legendre rule: probabilities to 1e-7


class PairedCounts(NamedTuple):
    """Items by who got them right."""

    both: int
    ours_only: int
    theirs_only: int
    neither: int

    @property
    def n(self) -> int:
        """All items."""
        return sum(self)


def paired_counts(ours: ArrayLike, theirs: ArrayLike) -> PairedCounts:
    """The four cells of two lists of zeros and ones over the same items."""
    a, b = finite(ours, "our results"), finite(theirs, "their results")
    if len(a) != len(b):
        raise DataError(f"{len(a)} and {len(b)} results; expected both for the same items.")
    if not np.isin([*a, *b], (0.0, 1.0)).all():
        raise DataError("shares are of zeros and ones; for other values take the difference of means.")
    cells = [(a * b).sum(), (a * (1 - b)).sum(), ((1 - a) * b).sum(), ((1 - a) * (1 - b)).sum()]
    return PairedCounts(*map(int, cells))


def paired_difference(
    ours: ArrayLike,
    theirs: ArrayLike,
    units: Sequence[str] | None = None,
    *,
    interval: str = "dirichlet",
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """The share of ones in `ours` minus that in `theirs`, with an interval of `PAIRED_INTERVALS`.

    The Dirichlet posterior's is the default: where few items tell the two apart, Newcombe's covers 99 % and is a sixth
    wider. One item per unit; where several are, take the difference of two means or proportions.
    """
    of = pick(PAIRED_INTERVALS, interval, "interval of a paired difference")
    counts = paired_counts(ours, theirs)
    sides = [mean(side, units, unit_kind=unit_kind, level=level) for side in (ours, theirs)]
    if sides[0].n != counts.n:
        raise DataError(f"{counts.n} items of {sides[0].n} {unit_kind}: take the difference of two clustered means.")
    method = f"paired difference of shares, {interval.capitalize()} interval"
    return replace(difference(*sides), interval=of(counts, level), method=method)


def newcombe(counts: PairedCounts, level: float = 0.95) -> Interval:
    """Newcombe's method 10 (1998, Statistics in Medicine 17, 2635): Wilson's limits, joined through the correlation."""
    n = counts.n
    a, b = counts.both + counts.ours_only, counts.both + counts.theirs_only
    low_a, high_a = wilson(a, n, level)
    low_b, high_b = wilson(b, n, level)
    share_a, share_b = a / n, b / n
    margins = a * (n - a) * b * (n - b)
    excess: float = counts.both * counts.neither - counts.ours_only * counts.theirs_only
    if excess > 0:
        excess = max(excess - n / 2, 0)  # his correction for continuity
    phi = excess / math.sqrt(margins) if margins else 0.0

    def joined(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * phi * one * other + other**2, 0.0))

    gap = share_a - share_b
    return gap - joined(share_a - low_a, high_b - share_b), gap + joined(high_a - share_a, share_b - low_b)


def dirichlet(counts: PairedCounts, level: float = 0.95) -> Interval:
    """The equal-tailed posterior interval of the difference, under a flat prior on the four shares."""
    from scipy.optimize import brentq

    def quantile(mass: float) -> float:
        return float(brentq(lambda gap: 1 - probability_above_by(counts, gap) - mass, -1.0, 1.0, xtol=1e-9))

    return quantile((1 - level) / 2), quantile((1 + level) / 2)


PAIRED_INTERVALS: dict[str, Callable[[PairedCounts, float], Interval]] = {"newcombe": newcombe, "dirichlet": dirichlet}


def probability_above_by(counts: PairedCounts, margin: float = 0.0, *, prior: float = 1.0) -> float:
    """P(our share - their share > margin) under a Dirichlet(prior, prior, prior, prior) on the four shares.

    The difference is s (2 u - 1): s the share of items that one side alone got right, Beta distributed, and u ours of
    these, Beta distributed and independent of s. At margin 0 it is P(u > 1/2).
    """
    from scipy.special import betainc, betaln

    if margin < 0:
        swapped = counts._replace(ours_only=counts.theirs_only, theirs_only=counts.ours_only)
        return 1 - probability_above_by(swapped, -margin, prior=prior)
    a, b = counts.ours_only + prior, counts.theirs_only + prior
    rest = counts.both + counts.neither + 2 * prior
    if margin == 0:
        return 1 - float(betainc(a, b, 0.5))
    # u = sin^2(angle): no pole at the ends for priors from 1/2 on, and a spread of 1 / (2 sqrt(a + b)) everywhere.
    centre, reach = math.asin(math.sqrt(a / (a + b))), 5 / math.sqrt(a + b)
    start = max(math.asin(math.sqrt(min(1.0, (1 + margin) / 2))), centre - reach)
    end = min(math.pi / 2, centre + reach)
    if end <= start:
        return 0.0
    nodes, weights = _rule()
    angles = start + (end - start) * (nodes + 1) / 2
    log_density = (2 * a - 1) * np.log(np.sin(angles)) + (2 * b - 1) * np.log(np.cos(angles)) - betaln(a, b)
    beyond = 1 - betainc(a + b, rest, np.minimum(1.0, margin / -np.cos(2 * angles)))  # 2 u - 1
    return float((end - start) * (weights @ (np.exp(log_density) * beyond)))


@cache
def _rule() -> tuple[Floats, Floats]:
    return np.polynomial.legendre.leggauss(NODES)
