"""Bradley-Terry ratings from battles with ties, on Elo's scale, with standard errors clustered by prompt.

Shapes: B battles, M models, G units (prompts).

P(first wins) = 1 / (1 + 10^((rating of second - rating of first) / 400)); a tie is half a win and half a loss (Bradley
and Terry 1952; the ties as in FastChat's `compute_bt`). Battles on one prompt are not independent, so the standard
errors are by influence over units; without that, intervals of shared prompts are 1.5 times too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from consilience.errors import DataError
from consilience.stats.estimate import Estimate, Floats
from consilience.stats.units import finite, several_units, unit_labels

ELO = 400 / math.log(10)  # Elo points per unit of log odds
MAX_STEPS = 100


def bradley_terry(
    first: Sequence[str],
    second: Sequence[str],
    wins: ArrayLike,
    units: Sequence[str] | None = None,
    *,
    reference: str | None = None,
    unit_kind: str = "prompts",
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Every model's rating in Elo points above `reference`, or above the mean of all models.

    `wins` is from 0 to 1 for the battle's first model (1 won, 0.5 tie, 0 lost); `units` are the prompts, without them
    every battle is its own. Ratings pair: `difference(a, b)` of two of them is free of the reference. The reference
    itself is 0 with no error. Raises `DataError` where a rating is not finite or not comparable: a model, or a group,
    that won or lost all its battles against the rest, or never met them.
    """
    x_B = finite(wins, "wins")
    if not len(first) == len(second) == len(x_B):
        raise DataError(f"{len(first)} first and {len(second)} second models for {len(x_B)} wins; expected one each.")
    if x_B.min() < 0 or x_B.max() > 1:
        raise DataError(f"wins go from {x_B.min():g} to {x_B.max():g}; expected 0 to 1.")
    names, unit_B = several_units(unit_labels(units, len(x_B)), unit_kind)
    models = sorted({*first, *second})
    place = {model: i for i, model in enumerate(models)}
    if reference is not None and reference not in place:
        raise DataError(f"the reference {reference!r} is in no battle; there are {', '.join(models)}.")
    first_B, second_B = (np.array([place[model] for model in side]) for side in (first, second))
    if alone := [models[i] for i in np.unique(first_B[first_B == second_B])]:
        raise DataError(f"{alone[0]!r} battles itself; expected two models.")

    won_MM = np.zeros((len(models), len(models)))
    np.add.at(won_MM, (first_B, second_B), x_B)
    np.add.at(won_MM, (second_B, first_B), 1 - x_B)
    _check_comparable(won_MM, models)
    ratings_M, inverse_MM = _fit(won_MM)

    residual_B = x_B - 1 / (1 + np.exp(ratings_M[second_B] - ratings_M[first_B]))
    residual_GM = np.zeros((len(names), len(models)))
    np.add.at(residual_GM, (unit_B, first_B), residual_B)
    np.add.at(residual_GM, (unit_B, second_B), -residual_B)
    influence_GM = len(names) * residual_GM @ inverse_MM
    if reference is not None:
        ratings_M = ratings_M - ratings_M[place[reference]]
        influence_GM = influence_GM - influence_GM[:, [place[reference]]]
    above = f"above {reference}" if reference is not None else "above the mean of the models"
    return {
        model: Estimate(
            value=ELO * float(ratings_M[i]),
            units=names,
            influence=ELO * influence_GM[:, i],
            unit_kind=unit_kind,
            method=f"Bradley-Terry, Elo points {above}, Student t",
            level=level,
        )
        for i, model in enumerate(models)
    }


def _fit(won_MM: Floats) -> tuple[Floats, Floats]:
    """Log-odds ratings of mean zero at the maximum of the likelihood, and the inverse Hessian on that subspace."""
    battles_MM = won_MM + won_MM.T
    ratings_M = np.zeros(len(won_MM))
    for _ in range(MAX_STEPS):
        p_MM = 1 / (1 + np.exp(ratings_M[None, :] - ratings_M[:, None]))
        gradient_M = (won_MM - battles_MM * p_MM).sum(1)
        curve_MM = battles_MM * p_MM * (1 - p_MM)
        # A shift of all ratings changes nothing: 1/M everywhere fills that direction, and is taken out again.
        filled_MM = np.diag(curve_MM.sum(1)) - curve_MM + 1 / len(won_MM)
        inverse_MM = np.asarray(np.linalg.inv(filled_MM) - 1 / len(won_MM), dtype=np.float64)
        step_M = inverse_MM @ gradient_M
        # The likelihood is concave but not quadratic: a model far ahead would be thrown beyond its place.
        ratings_M = ratings_M + step_M * min(1.0, 2.0 / max(np.abs(step_M).max(), 1e-300))
        if np.abs(step_M).max() < 1e-10:
            return ratings_M, inverse_MM
    raise ArithmeticError("Bradley-Terry did not converge on comparable models")


def _check_comparable(won_MM: Floats, models: Sequence[str]) -> None:
    """Ford's condition (1957): from every model a chain of wins, or ties, leads to every other."""
    from scipy.sparse.csgraph import connected_components

    count, group_M = connected_components(won_MM > 0, connection="strong")
    if count == 1:
        return
    sizes = np.bincount(group_M)
    apart = [model for model, group in zip(models, group_M) if group == int(sizes.argmin())]
    raise DataError(
        f"{', '.join(apart)} won all or lost all battles against the other models, or never met them: the rating has "
        "no finite value. Leave them out, or add battles."
    )
