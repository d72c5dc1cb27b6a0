"""What a coder model's labels say about the true ones: the posterior of the whole table, corrected for the design.

The model's label is known of all items, gold of a sample. Within each of the model's labels (a stratum) the shares of
the gold labels have a Dirichlet posterior; the strata's sizes are as counted, or a sample's themselves. All else is a
function of the joint table: prevalences, accuracy, recall, precision, F1, kappa. So gold that was drawn at other rates
from other strata does not bias any of them (verification bias), and the interval of a rare label keeps its width.

Shapes: B draws, J gold labels, K labels of the model (what has no label is one of its own), n gold items.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.errors import DataError, pick
from consilience.stats.estimate import Floats
from consilience.stats.posterior import Posterior
from consilience.stats.units import Units, finite, unit_index

Places = NDArray[np.intp]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Confusion:
    """Draws of the joint table of gold and model labels; a draw sums to 1. The first J strata are the gold labels."""

    joint_BJK: Floats
    plug_in_JK: Floats
    n: int
    clusters: int | None
    method: str
    level: float

    def measure(self, metric: str, label: int | None = None) -> Posterior:
        """A metric of `CONFUSION_METRICS`; of one label where it is about one."""
        function = pick(CONFUSION_METRICS, metric, "metric of a confusion table")
        return self._posterior(lambda joint: function(joint) if label is None else function(joint)[..., label], metric)

    def cell(self, gold: int, model: int) -> Posterior:
        """The share of the items that the model gives label `model`, among those of gold label `gold`."""
        return self._posterior(
            lambda joint: joint[..., gold, model] / joint[..., gold, :].sum(-1), "share of a gold label"
        )

    def _posterior(self, function: Callable[[Floats], Floats], what: str) -> Posterior:
        with np.errstate(invalid="ignore", divide="ignore"):
            plug_in = float(function(self.plug_in_JK))
        return Posterior(
            draws_B=function(self.joint_BJK),
            plug_in=plug_in,
            n=self.n,
            unit_kind="gold items" if self.clusters is None else "gold items in clusters",
            method=f"{what.replace('_', ' ')}, {self.method}",
            level=self.level,
        )


def confusion(
    model_n: Sequence[int],
    gold_n: Sequence[int],
    counts_K: ArrayLike,
    gold_labels: int,
    *,
    rng: np.random.Generator,
    weights: ArrayLike | None = None,
    clusters: Sequence[str] | None = None,
    corpus_effect: float = 1.0,
    corpus_is_sample: bool = True,
    prior: float | None = None,
    draws: int = 10_000,
    level: float = 0.95,
) -> Confusion:
    """The posterior of the table of J = `gold_labels` gold labels by K labels of the model.

    `model_n` and `gold_n` are places of the gold items' labels; `counts_K` how often the model gives each label in the
    whole corpus. The prior of a stratum is Dirichlet(`prior`), 1 / J unless given: its total weight is that of one
    item, so that empty cells invent no errors. `weights`, one over the probability of being drawn, matter where they
    vary within a stratum; then, and with `clusters`, a stratum counts as so many items as a simple random sample of
    the same variance would have (Kish; clusters' effect pooled over strata, and Student's t on their number).
    `corpus_effect` is the clusters' design effect on the model's own shares. Where the corpus is not a sample, its
    labels are as counted, and only what nobody coded is unknown.

    Raises `DataError` at no gold, places outside the table, and a single cluster.
    """
    model, gold = np.asarray(model_n, dtype=np.intp), np.asarray(gold_n, dtype=np.intp)
    counts = finite(counts_K, "counts of the model's labels")
    if len(model) != len(gold) or not len(gold):
        raise DataError(
            f"{len(model)} labels of the model and {len(gold)} gold labels; expected one each, at least one."
        )
    if gold.min() < 0 or gold.max() >= gold_labels or model.min() < 0 or model.max() >= len(counts):
        raise DataError(f"labels outside the table of {gold_labels} gold and {len(counts)} model labels.")
    w = np.ones(len(gold)) if weights is None else finite(weights, "weights")
    if len(w) != len(gold) or not w.min() > 0:
        raise DataError(f"{len(w)} weights for {len(gold)} gold items; expected one each, all above 0.")
    a = 1 / gold_labels if prior is None else prior

    strata = len(counts)
    seen_KJ = np.zeros((strata, gold_labels))
    np.add.at(seen_KJ, (model, gold), w)
    weight_K = seen_KJ.sum(1)
    squares_K = np.bincount(model, w**2, strata)
    kish_K = np.divide(weight_K**2, squares_K, out=np.zeros(strata), where=squares_K > 0)
    shares_KJ = np.divide(seen_KJ, weight_K[:, None], out=np.zeros_like(seen_KJ), where=weight_K[:, None] > 0)
    size_K = counts / counts.sum()
    effect, groups = 1.0, None
    if clusters is not None:
        effect, groups = _cluster_effect(gold, model, w, shares_KJ, size_K, weight_K, clusters)
    items_K = kish_K / effect

    shape_BKJ = np.broadcast_to(items_K[:, None] * shares_KJ + a, (draws, strata, gold_labels))
    gamma_BKJ = rng.standard_gamma(shape_BKJ)
    theta_BKJ = gamma_BKJ / np.maximum(gamma_BKJ.sum(-1, keepdims=True), 1e-300)
    if corpus_is_sample:
        size_BK = rng.dirichlet(counts / corpus_effect + 0.5, draws)
    else:
        size_BK = np.broadcast_to(size_K, (draws, strata))
        theta_BKJ = _with_the_coded(theta_BKJ, shares_KJ, counts, np.bincount(model, minlength=strata), rng)
    how = f"{len(gold)} gold items within the model's labels, Dirichlet({a:.3g}) prior"
    if groups is not None:
        how += f", design effect {effect:.2f} of {groups} clusters"
    return Confusion(
        joint_BJK=np.swapaxes(size_BK[:, :, None] * theta_BKJ, 1, 2),
        plug_in_JK=_plug_in(shares_KJ, size_K, weight_K),
        n=len(gold),
        clusters=groups,
        method=f"posterior of {how}",
        level=level,
    )


def cluster_effect_of_shares(labels: ArrayLike, clusters: Units) -> float:
    """The clusters' design effect on the shares of labels: their variance over that of as many independent items.

    Averaged over the labels by their variances; at least 1.
    """
    places = np.asarray(labels, dtype=np.intp)
    names, index = unit_index(clusters)
    shares_K = np.bincount(places) / len(places)
    sums_GK = np.zeros((len(names), len(shares_K)))
    np.add.at(sums_GK, (index, places), 1.0)
    sums_GK -= np.bincount(index)[:, None] * shares_K
    alone = float((shares_K * (1 - shares_K)).sum()) * len(places)
    if len(names) < 2 or not alone > 0:
        return 1.0
    return max(1.0, float((sums_GK**2).sum()) * len(names) / (len(names) - 1) / alone)


def _cluster_effect(
    gold: Places,
    model: Places,
    w: Floats,
    shares_KJ: Floats,
    size_K: Floats,
    weight_K: Floats,
    clusters: Sequence[str],
) -> tuple[float, int]:
    """Variance of the post-stratified shares by clusters over that by items, pooled over labels, at least 1.

    With few clusters that ratio is itself uncertain: it is multiplied by (t / z)^2 at 95 % and G - 1 degrees.
    """
    from scipy.special import ndtri, stdtrit

    if len(clusters) != len(gold):
        raise DataError(f"{len(clusters)} clusters for {len(gold)} gold items; expected one each.")
    names, index = unit_index(clusters)
    if len(names) < 2:
        raise DataError(f"all {len(gold)} gold items are of one cluster: the spread between clusters is unknown.")
    if len(names) == len(gold):
        return 1.0, len(names)
    one_hot_nJ = np.eye(shares_KJ.shape[1])[gold]
    residual_nJ = (w * size_K[model] / weight_K[model])[:, None] * (one_hot_nJ - shares_KJ[model])
    sums_GJ = np.zeros((len(names), shares_KJ.shape[1]))
    np.add.at(sums_GJ, index, residual_nJ)
    alone = float((residual_nJ**2).sum())
    groups = len(names)
    together = float((sums_GJ**2).sum()) * groups / (groups - 1)
    few = float(stdtrit(groups - 1, 0.975) / ndtri(0.975)) ** 2
    return max(1.0, together / alone if alone > 0 else 1.0) * few, groups


def _with_the_coded(
    theta_BKJ: Floats, shares_KJ: Floats, counts_K: Floats, coded_K: Places, rng: np.random.Generator
) -> Floats:
    """Shares of the corpus itself: the coded items are known, of the others the labels are drawn."""
    rest_K = np.maximum(counts_K - coded_K, 0).round().astype(np.int64)
    drawn_BKJ = rng.multinomial(np.broadcast_to(rest_K, theta_BKJ.shape[:2]), theta_BKJ)
    known_KJ = shares_KJ * coded_K[:, None]
    found: Floats = (known_KJ + drawn_BKJ) / np.maximum(coded_K + rest_K, 1)[:, None]
    return found


def _plug_in(shares_KJ: Floats, size_K: Floats, weight_K: Floats) -> Floats:
    """The table of observed shares [J, K]; strata without gold are left out, and the rest scaled up."""
    known_K = np.where(weight_K > 0, size_K, 0.0)
    found: Floats = (known_K[:, None] * shares_KJ).T / known_K.sum()
    return found


def _accuracy(joint: Floats) -> Floats:
    found: Floats = np.trace(joint[..., : joint.shape[-2]], axis1=-2, axis2=-1)
    return found


def _prevalence(joint: Floats) -> Floats:
    found: Floats = joint.sum(-1)
    return found


def _diagonal(joint: Floats) -> Floats:
    return np.diagonal(joint[..., : joint.shape[-2]], axis1=-2, axis2=-1)


def _recall(joint: Floats) -> Floats:
    found: Floats = _diagonal(joint) / joint.sum(-1)
    return found


def _model_shares(joint: Floats) -> Floats:
    found: Floats = joint.sum(-2)[..., : joint.shape[-2]]
    return found


def _precision(joint: Floats) -> Floats:
    found: Floats = _diagonal(joint) / _model_shares(joint)
    return found


def _f1(joint: Floats) -> Floats:
    found: Floats = 2 * _diagonal(joint) / (joint.sum(-1) + _model_shares(joint))
    return found


def _macro_f1(joint: Floats) -> Floats:
    found: Floats = _f1(joint).mean(-1)
    return found


def _kappa(joint: Floats) -> Floats:
    chance = (joint.sum(-1) * _model_shares(joint)).sum(-1)
    found: Floats = (_accuracy(joint) - chance) / (1 - chance)
    return found


# Metrics of the whole table, and of each label: joint [..., J, K] -> [...] or [..., J].
CONFUSION_METRICS: dict[str, Callable[[Floats], Floats]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
    "kappa": _kappa,
    "prevalence": _prevalence,
    "recall": _recall,
    "precision": _precision,
    "f1": _f1,
}
OF_EACH_LABEL = ("prevalence", "recall", "precision", "f1")
