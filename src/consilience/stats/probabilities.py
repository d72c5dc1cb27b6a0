"""How probable it is that a measured number is above a value, or within a margin: numbers to show, not verdicts.

They are read from Student's t around the estimate: the posterior under flat priors of a mean and its spread. Where the
sample shows no spread at all, nothing is known of the error, and the probability is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from consilience.errors import DataError
from consilience.stats.estimate import Estimate, Floats
from consilience.stats.units import all_units


def probability_above(estimate: Estimate, value: float = 0.0) -> float:
    """P(true number > value); for a difference and 0, the probability that ours is the higher."""
    from scipy.special import stdtr

    se = estimate.standard_error
    return float(stdtr(estimate.degrees_of_freedom, (estimate.value - value) / se)) if se > 0 else math.nan


def probability_within(estimate: Estimate, margin: float) -> float:
    """P(-margin < true number < margin); for a difference, that it is smaller than what one cares about."""
    if not margin > 0:
        raise DataError(f"the margin is {margin:g}; expected a positive difference that would matter.")
    return probability_above(estimate, -margin) - probability_above(estimate, margin)


def probability_curve(estimate: Estimate, values: ArrayLike) -> Floats:
    """P(true number > value) at each of `values`: a picture of all margins, in place of one."""
    return np.array([probability_above(estimate, float(value)) for value in np.asarray(values, dtype=np.float64)])


def covariance(estimates: Sequence[Estimate]) -> Floats:
    """The estimates' joint covariance [M, M], by the units that they share."""
    shares_MU = _shares(estimates)
    found: Floats = shares_MU @ shares_MU.T
    return found


def simultaneous(estimates: Sequence[Estimate], *, rng: np.random.Generator, draws: int = 20_000) -> list[Estimate]:
    """The same estimates with intervals that hold all at once at their level.

    Each is value -+ c SE with one c for all, the level's quantile of max |t| over the estimates' joint distribution
    (Student's t, the least degrees of freedom among them); narrower than Bonferroni's where they go together.
    Estimates without any spread keep their width of none, and do not count.
    """
    levels = {estimate.level for estimate in estimates}
    if len(levels) != 1:
        raise DataError(f"simultaneous intervals of {len(estimates)} estimates at levels {sorted(levels)}; give one.")
    errors_M = np.array([estimate.standard_error for estimate in estimates])
    if np.isnan(errors_M).any():
        raise DataError("an estimate from a single unit has no error; leave it out.")
    moves = errors_M > 0
    factor = 0.0
    if moves.any():
        deviations_BM = joint_draws([e for e, kept in zip(estimates, moves) if kept], rng=rng, draws=draws)
        factor = float(np.quantile(np.abs(deviations_BM / errors_M[moves]).max(1), estimates[0].level))
    method = f"{len(estimates)} simultaneous intervals, max t"
    return [
        replace(estimate, interval=(estimate.value - factor * se, estimate.value + factor * se), method=method)
        for estimate, se in zip(estimates, errors_M)
    ]


def joint_draws(estimates: Sequence[Estimate], *, rng: np.random.Generator, draws: int) -> Floats:
    """Draws [B, M] of the estimates' errors: multivariate t, with the least degrees of freedom among them."""
    covariance_MM = covariance(estimates)
    values_M, vectors_MM = np.linalg.eigh(covariance_MM)
    # Estimates with the same shares have eigenvalues of 0, up to rounding whose root would tell them apart.
    root_MM = vectors_MM * np.sqrt(np.where(values_M > 1e-12 * values_M.max(initial=0), values_M, 0))
    degrees = min(estimate.degrees_of_freedom for estimate in estimates)
    if not degrees > 0:
        raise DataError("an estimate from a single unit has no error; leave it out.")
    stretch_B = np.sqrt(degrees / rng.chisquare(degrees, draws))
    found: Floats = rng.standard_normal((draws, len(estimates))) @ root_MM.T * stretch_B[:, None]
    return found


def _shares(estimates: Sequence[Estimate]) -> Floats:
    """Every estimate's shares over the union of the units: [M, U]."""
    kinds = {estimate.unit_kind for estimate in estimates}
    if len(kinds) != 1:
        raise DataError(f"{len(estimates)} estimates over {', '.join(sorted(kinds))}; expected one kind of unit.")
    units, places = all_units([estimate.units for estimate in estimates])
    shares_MU = np.zeros((len(estimates), len(units)))
    for row, estimate, at in zip(shares_MU, estimates, places):
        row[at] = estimate.shares
    return shares_MU
