"""Numbers from a model's labels of all items, put right by hand-made labels of some of them.

A judge's or a coder model's labels alone are biased, and their interval is silent about it. Given `model`, a label or
score of every item, and `gold`, the hand's where there is one and NaN elsewhere, both estimators are about the mean of
gold over all items. They beat the gold labels alone only as far as the model's labels go with them.

Shapes: N items, n of them with gold, K strata.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from consilience.errors import DataError
from consilience.stats.estimate import Estimate, Floats, weighted_sum
from consilience.stats.means import mean
from consilience.stats.units import Units, finite, several_units, unit_labels

SMALL_GOLD = 3  # below, not even a covariance is left when one is set aside


def post_stratified(
    model: Sequence[Any],
    gold: ArrayLike,
    units: Sequence[str] | None = None,
    *,
    rng: np.random.Generator,
    draws: int = 20_000,
    corpus_is_sample: bool = True,
    prior: float = 0.5,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """The share of ones in gold over all items: the default for yes or no, above all for a rare yes or few gold labels.

    The items are stratified by the model's label (any kind; also bins of a score). The share of gold within a stratum
    has a Beta(prior, prior), the strata's sizes a Dirichlet(1/2) posterior, or are as counted if the corpus itself is
    meant. Gold may be drawn at other rates from other strata, but at random within each. The value is the
    posterior's mean, the interval its quantiles. One item per unit.
    """
    gold_N, has_gold_N = _gold(gold, len(model))
    if not np.isin(gold_N[has_gold_N], (0.0, 1.0)).all():
        raise DataError("gold labels are to be 0 or 1; for scores take prediction_powered.")
    labels = unit_labels(units, len(model))
    names, _ = several_units(labels, unit_kind)
    if len(names) != len(labels):
        raise DataError(f"{len(labels)} items of {len(names)} {unit_kind}; post-stratification takes one per unit.")
    place = {label: i for i, label in enumerate(dict.fromkeys(model))}
    stratum_N = np.array([place[label] for label in model])
    items_K = np.bincount(stratum_N).astype(np.float64)
    gold_K = np.bincount(stratum_N[has_gold_N], minlength=len(items_K))
    yes_K = np.bincount(stratum_N[has_gold_N], gold_N[has_gold_N], minlength=len(items_K))
    if not gold_K.all():
        without = [str(label) for label, i in place.items() if not gold_K[i]]
        raise DataError(f"no gold label among the items that the model calls {', '.join(without)}; code some of them.")

    share_K = (yes_K + prior) / (gold_K + 2 * prior)
    size_K = (items_K + 0.5) / (items_K + 0.5).sum() if corpus_is_sample else items_K / items_K.sum()
    value = float(size_K @ share_K)
    shares_BK = rng.beta(yes_K + prior, gold_K - yes_K + prior, (draws, len(items_K)))
    sizes_BK = rng.dirichlet(items_K + 0.5, draws) if corpus_is_sample else size_K
    tail = (1 - level) / 2
    low, high = np.quantile((sizes_BK * shares_BK).sum(1), [tail, 1 - tail])

    total = len(labels)
    residual_N = np.where(has_gold_N, gold_N - share_K[stratum_N], 0.0)
    # Scaled to the posterior's variance: the residuals themselves all but vanish where a stratum's gold is all alike.
    variance_K = share_K * (1 - share_K) / (gold_K + 2 * prior + 1)
    scale_K = np.sqrt(variance_K / np.bincount(stratum_N, residual_N**2))
    influence_N = total * (size_K * scale_K)[stratum_N] * residual_N
    if corpus_is_sample:
        influence_N = influence_N + share_K[stratum_N] - value
    return Estimate(
        value=value,
        units=names,
        influence=influence_N - influence_N.mean(),
        unit_kind=unit_kind,
        method=f"post-stratified by the model's label, {has_gold_N.sum()} gold labels, posterior interval",
        level=level,
        interval=(float(low), float(high)),
    )


def prediction_powered(
    model: ArrayLike,
    gold: ArrayLike,
    units: Units | None = None,
    *,
    weights: ArrayLike | None = None,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """The mean of gold over all items by PPI++ (arXiv:2311.01453): mean(lambda model) + mean over gold (gold - lambda
    model).

    lambda = Cov(gold, model) / Var(model) within 0 and 1, for each gold item from the others: used on the items that
    it was tuned on it flatters the interval. `weights` (one over the probability with which an item was given to the
    hand) are for gold drawn at unlike rates. With less than some 200 gold labels, or 20 of a rare kind, the interval
    is too narrow (88 to 93 % where 95 is meant): take `post_stratified`.
    Raises `DataError` at fewer than three gold labels, and labels of the model that do not vary.
    """
    model_N = finite(model, "model labels")
    gold_N, has_gold_N = _gold(gold, len(model_N))
    labels = unit_labels(units, len(model_N))
    several_units(labels, unit_kind)
    weights_N = np.ones_like(model_N) if weights is None else finite(weights, "weights")
    if len(weights_N) != len(model_N) or weights_N.min() < 0 or not weights_N[has_gold_N].sum() > 0:
        total = f"summing to {weights_N.sum():g}"
        raise DataError(f"{len(weights_N)} weights for {len(model_N)} items, {total}; expected one each, none < 0.")
    f_n, y_n, w_n = model_N[has_gold_N], gold_N[has_gold_N], weights_N[has_gold_N]
    if len(y_n) < SMALL_GOLD:
        raise DataError(f"{len(y_n)} gold labels; expected at least {SMALL_GOLD}, better 200.")
    if not model_N.std() > 0:
        raise DataError("the model labels all items alike; take the mean of the gold labels.")
    lambda_n = _tuned_without_itself(y_n, f_n, w_n, float(model_N.var()))
    gold_units = labels[has_gold_N] if isinstance(labels, np.ndarray) else [*compress(labels, has_gold_N)]
    rest = mean(y_n - lambda_n * f_n, gold_units, weights=w_n, unit_kind=unit_kind, level=level)
    whole = mean(model_N, labels, unit_kind=unit_kind, level=level)
    tuned = float((w_n * lambda_n).sum() / w_n.sum())
    method = f"PPI++, lambda {tuned:.2f}, {len(y_n)} gold labels, Student t"
    return weighted_sum([rest, whole], [1.0, tuned], method)


def _tuned_without_itself(y_n: Floats, f_n: Floats, w_n: Floats, variance: float) -> Floats:
    """Cov(y, f) / `variance`, over all gold items but one, for each that is left out; clipped to [0, 1]."""
    total = w_n.sum()
    apart_n = (y_n - (w_n @ y_n) / total) * (f_n - (w_n @ f_n) / total)
    without_n = (w_n @ apart_n - w_n * total / (total - w_n) * apart_n) / (total - w_n)
    found: Floats = np.clip(without_n / variance, 0.0, 1.0)
    return found


def _gold(gold: ArrayLike, items: int) -> tuple[Floats, np.ndarray]:
    gold_N = np.asarray(gold, dtype=np.float64)
    if gold_N.shape != (items,):
        raise DataError(f"gold has shape {gold_N.shape} for {items} items; expected one each, NaN where there is none.")
    has_gold_N = ~np.isnan(gold_N)
    if not has_gold_N.any():
        raise DataError(f"none of {items} items has a gold label; code some by hand.")
    if math.isinf(float(np.abs(gold_N[has_gold_N]).max())):
        raise DataError("a gold label is infinite.")
    return gold_N, has_gold_N
