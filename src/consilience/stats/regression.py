"""Regression on a variable that a model measured of all items, and people of some: design-based, PPI++, gold only.

The measured variable may be the outcome, a covariate, or both sides' part; any term of a formula may be made of it. The
estimating equations of linear and logistic regression, sum x (y - mean(x'b)) = 0, are averaged over all items with what
is expected of the measured variable given the model's label, and put right by the gold items, each weighted by one over
its known probability of being drawn. So the estimate is right however wrong the model is; how good the model is decides
only how much narrower the interval gets. (Design-based supervised learning: Egami, Hinck, Stewart and Wei 2023.)

Shapes: N items, n gold items, P coefficients, C values that the measured variable may have.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.errors import DataError, pick
from consilience.stats.estimate import Estimate, Floats
from consilience.stats.units import Units, several_units, unit_index, unit_labels

Places = NDArray[np.intp]
MOST_STEPS = 100
CLOSE = 1e-8


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Expected:
    """What the measured variable may be, per item: for each value its chance, and outcome and design with that value.

    A design that does not depend on the variable may be the same array for all values.
    """

    chances_C: Sequence[Floats]  # each [N]; for an item they sum to 1
    outcomes_C: Sequence[Floats]  # each [N]
    designs_C: Sequence[Floats]  # each [N, P]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Observed:
    """The gold items: their places among the N items, outcome, design, and probability of having been drawn."""

    places_n: Places
    outcome_n: Floats
    design_nP: Floats
    probability_n: Floats


def design_based(
    observed: Observed,
    expected: Sequence[Expected],
    names: Sequence[str],
    *,
    family: str = "linear",
    clusters: Units | None = None,
    corpus_is_sample: bool = True,
    unit_kind: str = "items",
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Every coefficient by design-based supervised learning, with its interval on Student's t of the gold units.

    `expected` has one entry per random split into folds: value and influences are the means over splits. `family` is
    a key of `FAMILIES`. Without `corpus_is_sample` the coefficients are those that gold of all these items would give,
    and which items were drawn for gold is all that the interval contains: with the finite-population correction where
    they were drawn one by one, without it (so too wide) in clusters. Raises `DataError` where the equations have no
    solution: too little gold, or collinear terms.
    """
    mean_of = pick(FAMILIES, family, "family of regressions")
    items = len(expected[0].chances_C[0])
    labels = np.arange(items) if clusters is None else unit_labels(clusters, items)
    unit_names, index_N = several_units(labels, unit_kind)
    start = _gold_alone(observed, mean_of, names)
    solved = [_solve(partial(_dsl_equations, observed, each, mean_of), len(start), names, start) for each in expected]

    def influence(split: int) -> Floats:
        if not corpus_is_sample:
            return _drawing_influence(observed, expected[split], solved[split], mean_of, unit_n, alone=clusters is None)
        return _dsl_influence(observed, expected[split], solved[split], mean_of, index_N)

    drawn, unit_n = unit_index(index_N[observed.places_n])
    gold_units = len(drawn)
    if not corpus_is_sample:
        unit_names = drawn
    method = f"DSL, {family}, {len(observed.places_n)} gold labels, {len(expected)} splits, Student t"
    method += "" if corpus_is_sample else ", of these items alone"
    return _combined(solved, influence, unit_names, names, gold_units - 1, unit_kind, method, level)


def weighted_regression(
    outcome: ArrayLike,
    design: ArrayLike,
    names: Sequence[str],
    *,
    family: str = "linear",
    weights: ArrayLike | None = None,
    drawn: ArrayLike | None = None,
    clusters: Units | None = None,
    unit_kind: str = "items",
    method: str = "",
    level: float = 0.95,
) -> dict[str, Estimate]:
    """Linear or logistic regression with weights, its errors by the sandwich over units (CR0 times G / (G - 1)).

    `drawn` are the probabilities by which the items were drawn one by one, where the rows that they were drawn from
    are all that is meant: the variance is (1 - probability) times as large.
    """
    mean_of = pick(FAMILIES, family, "family of regressions")
    y, x = np.asarray(outcome, dtype=np.float64), np.asarray(design, dtype=np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, dtype=np.float64)
    unit_names, index = several_units(unit_labels(clusters, len(y)), unit_kind)
    alone = Observed(places_n=np.arange(len(y)), outcome_n=y, design_nP=x, probability_n=1 / w)
    b = _solve(lambda b: _weighted(alone, b, mean_of), x.shape[1], names)
    mean, slope = mean_of(x @ b)
    left = 1.0 if drawn is None else np.sqrt(1 - np.asarray(drawn, dtype=np.float64))
    moments = (w * (y - mean) * left)[:, None] * x
    bread = (x * (w * slope)[:, None]).T @ x
    influence_NP = _by_unit(moments, index) @ np.linalg.inv(bread).T * len(unit_names)
    named = method or f"{family} regression, sandwich over {unit_kind}, Student t"
    return _combined([b], lambda _: influence_NP, unit_names, names, len(unit_names) - 1, unit_kind, named, level)


def prediction_powered_regression(
    observed: Observed,
    model_outcome: ArrayLike,
    design: ArrayLike,
    names: Sequence[str],
    *,
    family: str = "linear",
    clusters: Units | None = None,
    unit_kind: str = "items",
    level: float = 0.95,
) -> dict[str, Estimate]:
    """PPI++ (arXiv:2311.01453) of a regression whose outcome alone is measured: `model_outcome` of all items.

    lambda = tr(H^-1 (C + C') H^-1) / (2 (1 + n / N) tr(H^-1 V H^-1)) within 0 and 1, C the covariance of the gold
    items' gradients with those at the model's outcome, V the variance of the latter over all items.
    """
    mean_of = pick(FAMILIES, family, "family of regressions")
    f_N, x_NP = np.asarray(model_outcome, dtype=np.float64), np.asarray(design, dtype=np.float64)
    places = observed.places_n
    rest = np.setdiff1d(np.arange(len(f_N)), places)
    if len(rest) < 2:
        raise DataError("PPI++ takes items without gold beside those with it; all have gold: take the gold alone.")
    unit_names, index_N = several_units(unit_labels(clusters, len(f_N)), unit_kind)
    w_n = 1 / observed.probability_n
    w_n = w_n / w_n.sum()
    y_n, x_nP = observed.outcome_n, observed.design_nP
    count, all_ = len(places), len(rest)

    def equations(weight: float) -> Callable[[Floats], tuple[Floats, Floats]]:
        def at(b: Floats) -> tuple[Floats, Floats]:
            mean_r, slope_r = mean_of(x_NP[rest] @ b)
            mean_n, slope_n = mean_of(x_nP @ b)
            gap = weight * (x_NP[rest].T @ (f_N[rest] - mean_r)) / all_
            gap += x_nP.T @ (w_n * ((y_n - mean_n) - weight * (f_N[places] - mean_n)))
            slope = weight * (x_NP[rest] * slope_r[:, None]).T @ x_NP[rest] / all_
            slope += (1 - weight) * (x_nP * (w_n * slope_n)[:, None]).T @ x_nP
            return gap, slope

        return at

    b = _solve(equations(0.0), x_nP.shape[1], names)
    tuned = 1.0
    for _ in range(2):  # lambda at the gold's estimate, then at its own
        tuned = _tuned(b, f_N, x_NP, y_n, x_nP, places, w_n, mean_of)
        b = _solve(equations(tuned), x_nP.shape[1], names)
    _, slope_N = mean_of(x_NP @ b)
    inverse = np.linalg.inv((x_NP * slope_N[:, None]).T @ x_NP / len(f_N))
    moments = np.zeros_like(x_NP)
    model_N = (f_N - mean_of(x_NP @ b)[0])[:, None] * x_NP
    gold_n = (y_n - mean_of(x_nP @ b)[0])[:, None] * x_nP - tuned * (f_N[places] - mean_of(x_nP @ b)[0])[:, None] * x_nP
    moments[rest] = tuned * (model_N[rest] - model_N[rest].mean(0)) / all_
    moments[places] = w_n[:, None] * (gold_n - w_n @ gold_n)
    influence = _by_unit(moments, index_N) @ inverse.T * len(unit_names)
    gold_units = len(np.unique(index_N[places]))
    method = f"PPI++, {family}, lambda {tuned:.2f}, {count} gold labels, Student t"
    return _combined([b], lambda _: influence, unit_names, names, gold_units - 1, unit_kind, method, level)


def folds(unit_N: Places, count: int, rng: np.random.Generator) -> Places:
    """The fold of every item, given its unit's place: units stay together, folds have equally many, or one fewer."""
    fold_of: Places = rng.permutation(int(unit_N.max()) + 1) % count
    return fold_of[unit_N]


def _linear(linear: Floats) -> tuple[Floats, Floats]:
    return linear, np.ones_like(linear)


def _logistic(linear: Floats) -> tuple[Floats, Floats]:
    from scipy.special import expit

    mean = np.asarray(expit(linear), dtype=np.float64)
    return mean, mean * (1 - mean)


# The mean of the outcome and its slope, as functions of x'b.
FAMILIES: dict[str, Callable[[Floats], tuple[Floats, Floats]]] = {"linear": _linear, "logistic": _logistic}
Mean = Callable[[Floats], tuple[Floats, Floats]]


def _weighted(observed: Observed, b: Floats, mean_of: Mean) -> tuple[Floats, Floats]:
    x, w = observed.design_nP, 1 / observed.probability_n
    mean, slope = mean_of(x @ b)
    return x.T @ (w * (observed.outcome_n - mean)) / w.sum(), (x * (w * slope)[:, None]).T @ x / w.sum()


def _gold_alone(observed: Observed, mean_of: Mean, names: Sequence[str]) -> Floats:
    """Where the equations of all items are solved from: 0 if gold alone has no solution, for they may have one."""
    try:
        return _solve(lambda b: _weighted(observed, b, mean_of), len(names), names)
    except DataError:
        return np.zeros(len(names))


def _dsl_equations(observed: Observed, expected: Expected, mean_of: Mean, b: Floats) -> tuple[Floats, Floats]:
    """The mean moment of all items, and its negative slope [P, P], with the chances of one split."""
    scale_N, w_n = _counted(observed, len(expected.chances_C[0]))
    gap, slope = np.zeros(len(b)), np.zeros((len(b), len(b)))
    for chance_N, y_N, x_NP in zip(expected.chances_C, expected.outcomes_C, expected.designs_C):
        mean_N, slope_N = mean_of(x_NP @ b)
        gap += (scale_N * chance_N * (y_N - mean_N)) @ x_NP
        slope += (x_NP * (scale_N * chance_N * slope_N)[:, None]).T @ x_NP
    mean_n, slope_n = mean_of(observed.design_nP @ b)
    gap += (w_n * (observed.outcome_n - mean_n)) @ observed.design_nP
    slope += (observed.design_nP * (w_n * slope_n)[:, None]).T @ observed.design_nP
    return gap / len(scale_N), slope / len(scale_N)


def _dsl_influence(observed: Observed, expected: Expected, b: Floats, mean_of: Mean, index_N: Places) -> Floats:
    """Every unit's influence on the coefficients of one split [G, P]."""
    scale_N, w_n = _counted(observed, len(index_N))
    moments_NP = np.zeros((len(index_N), len(b)))
    for chance_N, y_N, x_NP in zip(expected.chances_C, expected.outcomes_C, expected.designs_C):
        moments_NP += (scale_N * chance_N * (y_N - mean_of(x_NP @ b)[0]))[:, None] * x_NP
    residual_n = w_n * (observed.outcome_n - mean_of(observed.design_nP @ b)[0])
    moments_NP[observed.places_n] += residual_n[:, None] * observed.design_nP
    _, slope = _dsl_equations(observed, expected, mean_of, b)
    by_unit = _by_unit(moments_NP, index_N)
    return by_unit @ (np.linalg.inv(slope).T * (len(by_unit) / len(index_N)))


def _drawing_influence(
    observed: Observed, expected: Expected, b: Floats, mean_of: Mean, unit_n: Places, *, alone: bool
) -> Floats:
    """Every gold unit's influence by its having been drawn [G, P], as the gap between what is seen and expected."""
    gap_n = _gap(observed, expected, b, mean_of) / observed.probability_n[:, None]
    by_unit = _by_unit(gap_n, unit_n)
    by_unit = by_unit - by_unit.mean(0)  # as many are drawn each time
    if alone:
        by_unit *= np.sqrt(1 - observed.probability_n)[:, None]
    _, slope = _dsl_equations(observed, expected, mean_of, b)
    found: Floats = by_unit @ (np.linalg.inv(slope).T * (len(by_unit) / len(expected.chances_C[0])))
    return found


def _gap(observed: Observed, expected: Expected, b: Floats, mean_of: Mean) -> Floats:
    """The gold items' moments less what was expected of them [n, P]."""
    places = observed.places_n
    gap_nP = (observed.outcome_n - mean_of(observed.design_nP @ b)[0])[:, None] * observed.design_nP
    for chance_N, y_N, x_NP in zip(expected.chances_C, expected.outcomes_C, expected.designs_C):
        x_nP = x_NP[places]
        gap_nP -= (chance_N[places] * (y_N[places] - mean_of(x_nP @ b)[0]))[:, None] * x_nP
    return gap_nP


def _counted(observed: Observed, items: int) -> tuple[Floats, Floats]:
    """What the expected moment of every item counts, 1 - R / pi; and 1 / pi of the gold items."""
    w_n = 1 / observed.probability_n
    scale_N = np.ones(items)
    scale_N[observed.places_n] -= w_n
    return scale_N, w_n


def _tuned(
    b: Floats,
    f_N: Floats,
    x_NP: Floats,
    y_n: Floats,
    x_nP: Floats,
    places: Places,
    w_n: Floats,
    mean_of: Mean,
) -> float:
    mean_N, slope_N = mean_of(x_NP @ b)
    inverse = np.linalg.inv((x_NP * slope_N[:, None]).T @ x_NP / len(f_N))
    model_NP = (f_N - mean_N)[:, None] * x_NP
    gold_nP = (y_n - mean_of(x_nP @ b)[0])[:, None] * x_nP
    apart = gold_nP - w_n @ gold_nP
    model_apart = model_NP[places] - w_n @ model_NP[places]
    covariance = (apart * w_n[:, None]).T @ model_apart
    variance = np.cov(model_NP.T, ddof=0).reshape(len(b), len(b))
    over = float(np.trace(inverse @ (covariance + covariance.T) @ inverse))
    under = 2 * (1 + len(places) / (len(f_N) - len(places))) * float(np.trace(inverse @ variance @ inverse))
    return float(np.clip(over / under, 0, 1)) if under > 0 else 0.0


def _by_unit(moments_NP: Floats, index_N: Places) -> Floats:
    if np.array_equal(index_N, np.arange(len(index_N))):
        return moments_NP
    sums = np.zeros((int(index_N.max()) + 1, moments_NP.shape[1]))
    np.add.at(sums, index_N, moments_NP)
    return sums


def _solve(
    equations: Callable[[Floats], tuple[Floats, Floats]],
    size: int,
    names: Sequence[str],
    start: Floats | None = None,
) -> Floats:
    """Newton's method, steps halved while they make the gap larger. Raises `DataError` where it does not end."""
    b = np.zeros(size) if start is None else start.copy()
    gap, slope = equations(b)
    for number in range(MOST_STEPS):
        if np.linalg.matrix_rank(slope) < size:
            if number:
                break
            raise DataError(
                f"the terms {', '.join(names)} cannot be told apart: one is a sum of others, or does not vary among "
                "the gold texts. Leave one out, or code more."
            )
        step = np.linalg.solve(slope, gap)
        if float(np.abs(step).max()) < CLOSE * (1 + float(np.abs(b).max())):
            return b + step
        for _ in range(30):
            tried, slope_there = equations(b + step)
            if np.isfinite(tried).all() and np.abs(tried).max() <= np.abs(gap).max():
                break
            step /= 2
        b, gap, slope = b + step, tried, slope_there
    raise DataError(
        "the regression has no finite solution: among the gold texts a term tells the outcome exactly, or there are "
        "too few of them. Leave terms out, or code more."
    )


def _combined(
    solved: Sequence[Floats],
    influence: Callable[[int], Floats],
    units: Units,
    names: Sequence[str],
    degrees: int,
    unit_kind: str,
    method: str,
    level: float,
) -> dict[str, Estimate]:
    """Means over splits of coefficients and influences; one split at a time, ten of a million units are gigabytes."""
    if degrees < 1:
        raise DataError(f"the gold texts are of one {unit_kind.rstrip('s')}: the spread between them is unknown.")
    value_P = np.mean(solved, axis=0)
    influence_GP = reduce(np.add, map(influence, range(len(solved)))) / len(solved)
    groups = len(units)
    return {
        name: Estimate(
            value=float(value_P[p]),
            units=units,
            influence=influence_GP[:, p],
            unit_kind=unit_kind,
            method=method,
            level=level,
            strata=np.broadcast_to(0, groups),
            unit_degrees=np.broadcast_to(degrees / groups, groups),
        )
        for p, name in enumerate(names)
    }


def more_gold(
    observed: Observed,
    expected: Expected,
    coefficients: Mapping[str, Estimate],
    ratio: float,
    *,
    family: str,
    corpus_is_sample: bool = True,
) -> dict[str, float]:
    """The standard errors that `ratio` times as many gold labels would give, drawn as these were.

    V(r) = J^-1 (M1 / r + M23) J^-1 / N with M1 = mean[R / pi^2 (m - m^g)(m - m^g)'] and M23 the rest; of these items
    alone M23 is - mean[R / pi (m - m^g)(m - m^g)'], the finite-population correction.
    """
    mean_of = pick(FAMILIES, family, "family of regressions")
    b = np.array([estimate.value for estimate in coefficients.values()])
    items = len(expected.chances_C[0])
    places, w_n = observed.places_n, 1 / observed.probability_n
    scale_N = np.ones(items)
    scale_N[places] -= w_n
    expected_NP = np.zeros((items, len(b)))
    slope = np.zeros((len(b), len(b)))
    for chance_N, y_N, x_NP in zip(expected.chances_C, expected.outcomes_C, expected.designs_C):
        mean_N, slope_N = mean_of(x_NP @ b)
        expected_NP += (chance_N * (y_N - mean_N))[:, None] * x_NP
        slope += (x_NP * (scale_N * chance_N * slope_N)[:, None]).T @ x_NP
    mean_n, slope_n = mean_of(observed.design_nP @ b)
    slope += (observed.design_nP * (w_n * slope_n)[:, None]).T @ observed.design_nP
    gap_n = (observed.outcome_n - mean_n)[:, None] * observed.design_nP - expected_NP[places]
    moments_NP = expected_NP.copy()
    moments_NP[places] += w_n[:, None] * gap_n
    all_ = moments_NP.T @ moments_NP / items
    first = (gap_n * (w_n**2)[:, None]).T @ gap_n / items
    inverse = np.linalg.inv(slope / items)
    rest = all_ - first if corpus_is_sample else -(gap_n * w_n[:, None]).T @ gap_n / items
    variance = inverse @ (first / ratio + rest) @ inverse.T / items
    return {name: math.sqrt(max(float(variance[i, i]), 0.0)) for i, name in enumerate(coefficients)}
