"""The length-controlled win rate of AlpacaEval 2.0 (arXiv:2404.04475), with the standard error of the whole estimate.

Shapes: N judged replies of the candidate, R rows of the gamed baselines, D coefficients, G instructions.

A win x in [0, 1] is modelled as sigmoid(quality + length_effect tanh(gap / sd) + difficulty_effect difficulty), gap =
characters of the baseline's reply minus the candidate's. The estimate is 100 times the mean fitted win with the length
term at zero. The rows of two "gamed" baselines (the baseline told to be concise, and to be verbose), with a tenth of
a reply's weight each and no quality of their own, steady the two effects. Fitted by minimising
|coefficients|_1 + C sum weight (log(1 + e^eta) - x eta).

Three departures from alpaca_eval 0.6.6, whose own numbers come out with `difficulty_by_row` and the C it drew:
an instruction's difficulty is found by its name, not by the row's number, which is wrong from the first missing reply
on; C is fixed, not drawn by cross-validation on a loss that is flat above it (0.1 points at most); and the standard
error is that of the estimate, by influence over instructions, where theirs has the spread of the fitted wins alone.
Taken as known: the sd of the gaps and the difficulties.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.errors import DataError
from consilience.stats.estimate import Estimate, Floats
from consilience.stats.proportions import in_percent
from consilience.stats.units import Units, finite, several_units, unit_labels

PUBLISHED_C = 10 ** (4 / 9)  # of alpaca_eval's ten from 1e-4 to 1e4, the one that most published rows were fitted at
MAX_STEPS = 100
MAX_ETA = 30.0  # a fitted win of 1 - 1e-13: the coefficients are on their way to infinity


class GamedBaselines(NamedTuple):
    """Judgments of the gamed baselines: wins in [0, 1], gaps already over their own sd, and their instructions."""

    wins_R: ArrayLike
    standard_gaps_R: ArrayLike
    units_R: Sequence[str]
    weight: float = 0.1  # alpaca_eval: lambda = 0.2, over two baselines


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthControlled:
    """A length-controlled win rate in percent, the fit behind it, and alpaca_eval's own standard error."""

    estimate: Estimate
    quality: float
    length_effect: float
    difficulty_effect: float
    published_standard_error: float  # of the mean of the fitted wins, as if the fit were exact


def length_controlled_win_rate(
    wins: ArrayLike,
    length_gaps: ArrayLike,
    units: Sequence[str] | None = None,
    *,
    difficulty: Mapping[str, float] | None = None,
    gamed: GamedBaselines | None = None,
    difficulty_by_row: bool = False,
    penalty_c: float = PUBLISHED_C,
    unit_kind: str = "instructions",
    level: float = 0.95,
) -> LengthControlled:
    """The win rate that the candidate would have with replies as long as the baseline's; the model is this module's.

    `length_gaps` are characters, baseline minus candidate; `units` the instructions, the keys of `difficulty`. Without
    `difficulty` (a question set of one's own) that term falls away, without `gamed` those rows. `penalty_c` may be
    `math.inf`: no penalty. `difficulty_by_row` takes the n-th difficulty for the n-th reply, as alpaca_eval does: for
    its published numbers only. Raises `DataError` at an instruction without difficulty, at wins outside 0 to 1, at
    gaps that are all alike, at a single instruction, and where no finite coefficients are best (no penalty, and all is
    won).
    """
    if not penalty_c > 0:
        raise DataError(f"C is {penalty_c:g}; expected a positive number, or infinity for no penalty.")
    x_N, gaps_N = finite(wins, "wins"), finite(length_gaps, "length gaps")
    if len(gaps_N) != len(x_N):
        raise DataError(f"{len(gaps_N)} length gaps for {len(x_N)} wins; expected one for one.")
    labels = unit_labels(units, len(x_N))
    names, unit_N = several_units(labels, unit_kind)
    if not gaps_N.std() > 0:
        raise DataError(f"all {len(x_N)} replies are equally longer than the baseline's; take the plain win rate.")
    difficulty_N = _difficulties(difficulty, labels, difficulty_by_row)
    design_ND = np.column_stack([np.tanh(gaps_N / gaps_N.std(ddof=1)), difficulty_N, np.ones_like(x_N)])
    all_x, all_design, weights = x_N, design_ND, np.ones_like(x_N)
    if gamed:
        gamed_x_R = finite(gamed.wins_R, "wins of the gamed baselines")
        standard_R = finite(gamed.standard_gaps_R, "length gaps of the gamed baselines")
        if not len(gamed_x_R) == len(standard_R) == len(gamed.units_R):
            lengths = f"{len(gamed_x_R)} wins, {len(standard_R)} length gaps, {len(gamed.units_R)} units"
            raise DataError(f"{lengths} of the gamed baselines; expected one each.")
        gamed_difficulty_R = _difficulties(difficulty, gamed.units_R, by_row=False)
        gamed_RD = np.column_stack([np.tanh(standard_R), gamed_difficulty_R, np.zeros_like(standard_R)])
        all_x, all_design = np.append(x_N, gamed_x_R), np.vstack([design_ND, gamed_RD])
        weights = np.append(weights, np.full(len(gamed_x_R), gamed.weight))
    if all_x.min() < 0 or all_x.max() > 1:
        raise DataError(f"wins go from {all_x.min():g} to {all_x.max():g}; expected 0 to 1 (a preference minus 1).")
    used = np.array([True, difficulty is not None, True])
    coefficients = np.zeros(3)
    coefficients[used] = fit_logistic(all_design[:, used], all_x, weights, penalty=1 / penalty_c)

    controlled_ND = design_ND * [0, 1, 1]
    fitted_N = _sigmoid(controlled_ND @ coefficients)
    influence_G = _influence(coefficients, all_design, all_x, weights, controlled_ND, fitted_N, unit_N, names, gamed)
    how = f"C = {penalty_c:.3g}" + (", difficulty by row as published" if difficulty_by_row else "")
    share = Estimate(
        value=float(fitted_N.mean()),
        units=names,
        influence=influence_G,
        unit_kind=unit_kind,
        method="mean fitted win",
        level=level,
    )
    return LengthControlled(
        estimate=in_percent(share, f"length-controlled win rate in percent, {how}"),
        length_effect=float(coefficients[0]),
        difficulty_effect=float(coefficients[1]),
        quality=float(coefficients[2]),
        published_standard_error=100 * float(fitted_N.std(ddof=1)) / math.sqrt(len(fitted_N)),
    )


def fit_logistic(design_ND: Floats, x_N: Floats, weights_N: Floats, *, penalty: float) -> Floats:
    """argmin_b penalty |b|_1 + sum weight (log(1 + e^eta) - x eta), eta = design b, to machine precision.

    Proximal Newton: each step minimises the quadratic model with its absolute values by coordinate descent, and is
    halved until the objective falls. Raises `DataError` where the minimum is at infinity.
    """

    def objective(b_D: Floats) -> float:
        eta_N = design_ND @ b_D
        losses_N = np.logaddexp(0, eta_N) - x_N * eta_N
        return penalty * float(np.abs(b_D).sum()) + float(weights_N @ losses_N)

    b_D = np.zeros(design_ND.shape[1])
    now = objective(b_D)
    for _ in range(MAX_STEPS):
        p_N = _sigmoid(design_ND @ b_D)
        gradient_D = design_ND.T @ (weights_N * (p_N - x_N))
        hessian_DD = (design_ND.T * (weights_N * p_N * (1 - p_N))) @ design_ND
        step_D = _penalised_quadratic(gradient_D, hessian_DD, b_D, penalty) - b_D
        size = 1.0
        rounding = 1e-12 * abs(now)  # the sum of thousands of losses is known no better
        while (then := objective(b_D + size * step_D)) > now + rounding:
            size /= 2
        b_D, now = b_D + size * step_D, then
        if np.abs(design_ND @ b_D).max() > MAX_ETA:
            break
        if np.abs(step_D).max() < 1e-8:  # steps shrink quadratically: the next would be 1e-16
            return b_D
    raise DataError("the fit has no finite best coefficients: too few items, or all won or lost; use a finite C.")


def _penalised_quadratic(gradient_D: Floats, hessian_DD: Floats, b_D: Floats, penalty: float) -> Floats:
    """argmin_c gradient (c - b) + (c - b) hessian (c - b) / 2 + penalty |c|_1."""
    if penalty == 0:
        newton_D: Floats = b_D - np.linalg.pinv(hessian_DD, hermitian=True) @ gradient_D
        return newton_D
    c_D = b_D.copy()
    slope_D = gradient_D.copy()  # of the quadratic at c
    curve_D = np.maximum(np.diag(hessian_DD), 1e-12)
    for _ in range(10_000):
        largest = 0.0
        for i in range(len(c_D)):
            aim = c_D[i] - slope_D[i] / curve_D[i]
            new = math.copysign(max(abs(aim) - penalty / curve_D[i], 0.0), aim)
            change = new - c_D[i]
            c_D[i] = new
            slope_D += change * hessian_DD[:, i]
            largest = max(largest, abs(change))
        if largest < 1e-13:
            break
    return c_D


def _influence(
    coefficients: Floats,
    design: Floats,
    x: Floats,
    weights: Floats,
    controlled_ND: Floats,
    fitted_N: Floats,
    unit_N: NDArray[np.intp],
    names: Units,
    gamed: GamedBaselines | None,
) -> Floats:
    """psi = (fitted - mean) + (d mean / d coefficients) G H^-1 score, per instruction; what is penalised to 0 stays.

    A gamed row belongs to its instruction; where the candidate has no reply to that, the row counts as fixed.
    """
    n, count = len(fitted_N), len(names)
    free = coefficients != 0
    p = _sigmoid(design @ coefficients)
    scores = (weights * (x - p))[:, None] * design
    hessian_DD = (design.T * (weights * p * (1 - p))) @ design
    slope_D = (fitted_N * (1 - fitted_N)) @ controlled_ND / n
    through_D = np.zeros_like(coefficients)
    if free.any():
        through_D[free] = np.linalg.solve(hessian_DD[np.ix_(free, free)], slope_D[free])
    per_row = scores @ through_D
    place = {unit: i for i, unit in enumerate(names)}
    gamed_rows = [place.get(unit, -1) for unit in gamed.units_R] if gamed else []
    unit_of_row = np.append(unit_N, np.array(gamed_rows, dtype=np.intp))
    known = unit_of_row >= 0
    from_fit_G = np.bincount(unit_of_row[known], count * per_row[known], minlength=count)
    from_items_G = count / n * np.bincount(unit_N, fitted_N - fitted_N.mean(), minlength=count)
    # The penalty keeps the scores from summing to 0.
    influence_G: Floats = from_fit_G + from_items_G - from_fit_G.mean()
    return influence_G


def _difficulties(difficulty: Mapping[str, float] | None, labels: Units, by_row: bool) -> Floats:
    if difficulty is None:
        return np.zeros(len(labels))
    if by_row and len(difficulty) < len(labels):
        raise DataError(f"{len(difficulty)} difficulties for {len(labels)} replies; expected one for each row.")
    if by_row:
        return finite([*difficulty.values()][: len(labels)], "difficulties")
    missing = [label for label in labels if label not in difficulty]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(labels)} instructions have no difficulty, such as {missing[0]!r}; "
            "leave `difficulty` out for questions of your own."
        )
    return finite([difficulty[label] for label in labels], "difficulties")


def _sigmoid(eta: Floats) -> Floats:
    found: Floats = 0.5 * (1 + np.tanh(0.5 * eta))
    return found
