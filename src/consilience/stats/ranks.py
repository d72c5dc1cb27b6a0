"""Who is first, second, ...: the probability of every rank, from the joint error of all models' estimates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from consilience.errors import DataError
from consilience.stats.estimate import Estimate, Floats
from consilience.stats.probabilities import joint_draws


@dataclass(frozen=True, kw_only=True, slots=True)
class RankProbabilities:
    """`probabilities[m, k]`: that model m has rank k + 1; rows and columns sum to 1."""

    models: tuple[str, ...]
    probabilities: Floats

    def of(self, model: str) -> Floats:
        """The probabilities of the ranks 1, 2, ... of a model."""
        found: Floats = self.probabilities[self.models.index(model)]
        return found


def rank_probabilities(
    estimates: Mapping[str, Estimate],
    *,
    rng: np.random.Generator,
    draws: int = 20_000,
    lower_is_better: bool = False,
) -> RankProbabilities:
    """Draws of all true numbers around the estimates, paired by unit, ranked; equal numbers share their ranks.

    Raises `DataError` at fewer than two models, and where one of them was measured on a single unit.
    """
    if len(estimates) < 2:
        raise DataError(f"ranks of {len(estimates)} models; expected at least two.")
    if any(estimate.n < 2 for estimate in estimates.values()):
        raise DataError("a model that was measured on a single unit has no error; leave it out.")
    values_M = np.array([estimate.value for estimate in estimates.values()])
    drawn_BM = values_M + joint_draws([*estimates.values()], rng=rng, draws=draws)
    if not lower_is_better:
        drawn_BM = -drawn_BM
    # Models with the same answers are equal up to rounding in every draw; chance then decides between them.
    drawn_BM = np.round(drawn_BM / max(float(np.abs(drawn_BM).max()), 1e-300), 9)
    order_BK = np.lexsort((rng.random(drawn_BM.shape), drawn_BM), axis=1)
    count = len(values_M)
    flat = (order_BK * count + np.arange(count)).ravel()
    return RankProbabilities(
        models=tuple(estimates),
        probabilities=np.bincount(flat, minlength=count * count).reshape(count, count) / draws,
    )
