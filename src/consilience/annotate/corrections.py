"""Corrections of label scores for a model's bias towards some labels: affine on the log scale, fitted before a run.

They shift the borders between labels, so they change prevalences: they are fitted on the development sample or on texts
without content, fixed by `freeze`, and shown before and after. Fitted once, a run is the same whatever its batches are.

Shapes: N texts of the development sample, C contentless texts, K labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from consilience.errors import DataError

Floats = NDArray[np.float64]
CONTENTLESS = ("N/A", "", "[MASK]")  # Zhao et al. 2021
RIDGE = 1.0  # of the affine correction's weights, around the identity


@dataclass(frozen=True, slots=True)
class Affine:
    """Corrected scores = scores @ weights + offsets, up to a constant per text."""

    weights_KK: Floats
    offsets_K: Floats

    def __call__(self, scores_NK: Floats) -> Floats:
        found: Floats = scores_NK @ self.weights_KK + self.offsets_K
        return found


@dataclass(frozen=True, slots=True)
class Fitting:
    """What corrections are fitted on: scores of contentless texts and of the development sample, gold as places."""

    contentless_CK: Floats
    scores_NK: Floats
    gold_N: NDArray[np.intp]  # -1 where there is none


def none(given: Fitting) -> Affine:
    """The scores as they are."""
    return _shifted(np.zeros(given.scores_NK.shape[1]))


def contextual(given: Fitting) -> Affine:
    """Divides by the probabilities of texts without content (Zhao et al. 2021, arXiv:2102.09690), their mean."""
    return _shifted(-np.log(_softmax(given.contentless_CK).mean(0)))


def mutual_information(given: Fitting) -> Affine:
    """log p(label | text) - log p(label | empty text): lm-evaluation-harness's `acc_mutual_info`."""
    return _shifted(-given.contentless_CK[CONTENTLESS.index("")])


def batch(given: Fitting) -> Affine:
    """Subtracts the mean log-probability over the development texts (Zhou et al. 2023, arXiv:2309.17249).

    It assumes that labels are about equally frequent: not for rare ones.
    """
    return _shifted(-np.log(_softmax(given.scores_NK)).mean(0))


def affine(given: Fitting) -> Affine:
    """Multinomial logistic regression of gold on the scores, shrunk towards the scores as they are.

    Raises `DataError` where the development sample has fewer gold labels than there are labels.
    """
    from scipy.optimize import minimize

    labelled = given.gold_N >= 0
    count = given.scores_NK.shape[1]
    centre_KK = np.eye(count) - 1 / count  # a constant per text must not matter, in the fit and in the run
    x_NK = given.scores_NK[labelled] @ centre_KK
    gold_N = given.gold_N[labelled]
    if len(gold_N) < count:
        raise DataError(f"the affine correction takes gold of {count} labels, got {len(gold_N)} labelled dev texts.")
    chosen_NK = np.eye(count)[gold_N]

    def loss(flat: Floats) -> tuple[float, Floats]:
        weights_KK, offsets_K = flat[:-count].reshape(count, count), flat[-count:]
        p_NK = _softmax(x_NK @ weights_KK + offsets_K)
        apart_KK = weights_KK - np.eye(count)
        value = -float(np.log((p_NK * chosen_NK).sum(1)).sum())
        value += RIDGE / 2 * float((apart_KK**2).sum() + (offsets_K**2).sum())
        slope_KK = x_NK.T @ (p_NK - chosen_NK) + RIDGE * apart_KK
        slope_K = (p_NK - chosen_NK).sum(0) + RIDGE * offsets_K
        return value, np.concatenate([slope_KK.ravel(), slope_K])

    start = np.concatenate([np.eye(count).ravel(), np.zeros(count)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return Affine(centre_KK @ found[:-count].reshape(count, count), found[-count:])


CORRECTIONS: dict[str, Callable[[Fitting], Affine]] = {
    "none": none,
    "contextual": contextual,
    "mutual_information": mutual_information,
    "batch": batch,
    "affine": affine,
}


def _shifted(offsets_K: Floats) -> Affine:
    return Affine(np.eye(len(offsets_K)), offsets_K)


def _softmax(scores_NK: Floats) -> Floats:
    raised_NK = np.exp(scores_NK - scores_NK.max(1, keepdims=True))
    found: Floats = raised_NK / raised_NK.sum(1, keepdims=True)
    return found
