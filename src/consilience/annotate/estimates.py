"""Prevalence, and differences between groups, put right with the gold sample; beside them gold alone and model alone.

Every number is given in four ways: Bayesian post-stratification (the default), PPI++, the gold texts alone, and the
model's labels as they are, which is there for contrast only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from consilience.annotate.agreement import NO_LABEL
from consilience.annotate.answers import Status
from consilience.annotate.codebook import CLOSED, JOINT, Codebook, Level
from consilience.annotate.measured import LEVEL, Measured, measured
from consilience.annotate.sample import Sample
from consilience.annotate.validate import Coded, design_of
from consilience.errors import DataError
from consilience.rng import stream
from consilience.stats import (
    Estimate,
    difference,
    mean,
    prediction_powered,
    probability_curve,
    share_difference,
    share_interval,
)
from consilience.stats.confusion import Confusion, cluster_effect_of_shares, confusion
from consilience.stats.estimate import Floats
from consilience.stats.posterior import Posterior, combined
from consilience.stats.units import Units, unit_index

POST, PPI, GOLD, NAIVE = "post-stratified", "PPI++", "gold only", "uncorrected"
MOST_GROUPS = 40
CURVE_POINTS = 41


def prevalence(sample: Sample, codebook: Codebook, *, seed: int, corpus_is_sample: bool) -> dict[str, Any]:
    """The share of every label in the corpus, in four ways; of an interval variable, the mean.

    `bought` says what the model's labels were worth: how many gold texts alone would give the same interval.
    """
    if codebook.level not in (*CLOSED, Level.MULTI_LABEL, Level.INTERVAL):
        raise DataError(f"a variable of level {codebook.level} has no prevalence; read its texts.")
    return {name: one.in_all_ways() for name, one in _estimated(sample, codebook, seed, corpus_is_sample).items()}


def by_group(sample: Sample, codebook: Codebook, column: str, *, seed: int, corpus_is_sample: bool) -> dict[str, Any]:
    """Prevalence within every value of a column, and its difference to the first one's, as a curve and in four ways.

    Of an interval variable it is the mean, in three ways. Groups are taken apart wholly: the model may err otherwise in
    one than in another. A group without gold texts to every label it would take has only wide intervals, which is what
    is known of it.
    """
    if codebook.level not in (*CLOSED, Level.MULTI_LABEL, Level.INTERVAL):
        raise DataError(f"--by is of shares and means, which a variable of level {codebook.level} has none of.")
    values = sample.columns[column].values
    if not 1 < values <= MOST_GROUPS:
        raise DataError(f"column {column!r} has {values} values; --by takes 2 to {MOST_GROUPS}.")
    parts = {group: sample.part(chosen_N) for group, chosen_N in sample.columns[column].groups().items()}
    enough = {group: part for group, part in parts.items() if len(part.coded) >= 2}
    found: dict[str, Any] = {
        "column": column,
        "groups": {
            group: {"rows": part.rows, "gold": len(part.coded), "prevalence": None} for group, part in parts.items()
        },
        "differences": {},
    }
    reference = next(iter(enough), "")
    theirs: Mapping[str, Any] = {}
    for group, part in enough.items():
        ours = _estimated(part, codebook, seed, corpus_is_sample, group)
        found["groups"][group]["prevalence"] = {name: one.in_all_ways() for name, one in ours.items()}
        if group == reference:
            theirs = ours
        else:
            apart = {name: one.minus(theirs[name]) for name, one in ours.items()}
            found["differences"][f"{group} − {reference}"] = apart
    return found


def _estimated(
    sample: Sample, codebook: Codebook, seed: int, corpus_is_sample: bool, group: str = ""
) -> Mapping[str, _Mean | _Share]:
    """What is estimated: the mean of an interval variable, else the share of every label."""

    def posteriors(part: Sample) -> list[Confusion]:
        return [_confusion(each, seed, corpus_is_sample, group) for each in (part, _unlabelled(part))]

    if codebook.level is Level.INTERVAL:
        return {"mean": _Mean(sample)}
    if codebook.level is Level.MULTI_LABEL:
        binary = {name: _binary(sample, name) for name in codebook.names}
        return {name: _Share(part, 1, *posteriors(part)) for name, part in binary.items()}
    of_all = posteriors(sample)
    return {name: _Share(sample, place, *of_all) for place, name in enumerate(codebook.names)}


@dataclass(frozen=True)
class _Share:
    """The share of one label in a sample, with the posteriors of all shares with the model's labels and without."""

    sample: Sample
    label: int
    posterior: Confusion
    alone: Confusion

    def in_all_ways(self) -> dict[str, Any]:
        sample, label = self.sample, self.label
        names = sample.categories
        found: dict[str, Any] = {POST: measured(self.posterior.measure("prevalence", label))}
        found |= {way: _tried(partial(make, sample, label)) for way, make in SHARES.items()}
        found["without_gold"] = [
            names[k]
            for k in range(len(names))
            if (sample.category_N == k).any() and not any(item.category == names[k] for item in sample.coded)
        ]
        found["bought"] = bought(found[POST], measured(self.alone.measure("prevalence", label)), len(sample.coded))
        return found

    def minus(self, other: _Share) -> dict[str, Any]:
        label = self.label
        parts = [one.posterior.measure("prevalence", label) for one in (self, other)]
        post = combined(parts, np.subtract, "difference of post-stratified shares, posterior draws")
        return {
            POST: measured(post),
            **{way: _tried(partial(_apart, make, (self.sample, other.sample), label)) for way, make in SHARES.items()},
            "curve": curve(post),
        }


def _apart(
    make: Callable[[Sample, int, float], Estimate], samples: tuple[Sample, Sample], label: int, level: float
) -> Estimate:
    ours, theirs = (make(sample, label, level) for sample in samples)
    return share_difference(ours, theirs)


@dataclass(frozen=True)
class _Mean:
    """The mean of an interval variable in a sample."""

    sample: Sample

    def in_all_ways(self) -> dict[str, Any]:
        found: dict[str, Any] = {way: _tried(partial(make, self.sample)) for way, make in MEANS.items()}
        found["bought"] = bought(found[PPI], found[GOLD], len(self.sample.coded))
        return found

    def minus(self, other: _Mean) -> dict[str, Any]:
        ours, theirs = self.sample, other.sample
        found: dict[str, Any] = {
            way: _tried(lambda level, make=make: difference(make(ours, level), make(theirs, level)))
            for way, make in MEANS.items()
        }
        with suppress(DataError):
            apart = difference(_mean_by_ppi(ours, LEVEL), _mean_by_ppi(theirs, LEVEL))
            if apart.standard_error > 0:
                reach = abs(apart.value) + 3.5 * apart.standard_error
                at = np.linspace(-reach, reach, CURVE_POINTS)
                found["curve"] = [*zip(at.tolist(), probability_curve(apart, at).tolist())]
        return found


def _unlabelled(sample: Sample) -> Sample:
    """The sample as if the model gave one and the same label: what the same estimator makes of gold alone."""
    coded = tuple(replace(item, label=sample.categories[0], status=str(Status.OK)) for item in sample.coded)
    return replace(sample, category_N=np.zeros_like(sample.category_N), coded=coded)


def bought(corrected: Measured | None, gold_only: Measured | None, gold: int) -> dict[str, float] | None:
    """How wide the corrected interval is next to gold alone, and how many gold texts alone would make it so narrow.

    For shares, gold alone is here the same posterior without the model's labels, so that like is compared with like.
    """
    if not corrected or not gold_only or corrected["low"] is None or gold_only["low"] is None:
        return None
    width, alone = corrected["high"] - corrected["low"], gold_only["high"] - gold_only["low"]
    if not (width > 0 and alone > 0):
        return None
    return {"width_ratio": width / alone, "gold_texts_worth": gold * (alone / width) ** 2}


def _confusion(sample: Sample, seed: int, corpus_is_sample: bool, group: str = "") -> Confusion:
    place = {name: i for i, name in enumerate(sample.categories)}
    design = design_of(sample.coded)
    return confusion(
        [place[item.category] for item in sample.coded],
        [place[item.gold.label] for item in sample.coded],
        np.bincount(sample.category_N, minlength=len(sample.categories)),
        sample.labels,
        rng=stream(seed, "prevalence", group),
        weights=design.weights,
        clusters=design.clusters,
        corpus_effect=corpus_effect(sample),
        corpus_is_sample=corpus_is_sample,
        level=LEVEL,
    )


def corpus_effect(sample: Sample) -> float:
    """The clusters' design effect on the model's own shares."""
    if sample.cluster_N is None:
        return 1.0
    return cluster_effect_of_shares(sample.category_N, sample.unit_N)


def _powered(sample: Sample, model_N: Floats, gold_n: Sequence[float], level: float) -> Estimate:
    """PPI++ with the gold texts' weights; `gold_n` in the order of `coded`."""
    rows, units, weights = sample.gold_rows, sample.unit_with_gold_N, design_of(sample.coded).weights
    gold_N, weights_N = np.full(sample.rows, np.nan), np.ones(sample.rows)
    gold_N[rows] = np.asarray(gold_n, dtype=np.float64)[sample.gold_N[rows]]
    if weights:
        weights_N[rows] = np.asarray(weights)[sample.gold_N[rows]]
    return prediction_powered(model_N, gold_N, units, weights=weights_N, unit_kind=_kind_of(units), level=level)


def _kind_of(units: Units) -> str:
    return "texts" if len(unit_index(units)[0]) == len(units) else "clusters"


def _ppi(sample: Sample, label: int, level: float) -> Estimate:
    gold_n = [float(item.gold.label == sample.categories[label]) for item in sample.coded]
    return _powered(sample, (sample.category_N == label).astype(np.float64), gold_n, level)


def _gold_only(sample: Sample, label: int, level: float) -> Estimate:
    design = design_of(sample.coded)
    yes = [float(item.gold.label == sample.categories[label]) for item in sample.coded]
    return _share(yes, design.clusters or [item.gold.id for item in sample.coded], design.weights, level)


def _naive(sample: Sample, label: int, level: float) -> Estimate:
    yes = (sample.category_N == label).astype(np.float64)
    return _share(yes, sample.unit_N, None, level)


def _share(yes: ArrayLike, units: Units, weights: Sequence[float] | None, level: float) -> Estimate:
    share = mean(yes, units, weights=weights, unit_kind=_kind_of(units), level=level)
    weighted = "weighted share" if weights is not None else "share"
    method = f"{weighted}, Wilson score interval at the effective sample size"
    return replace(share, interval=share_interval(share), method=method)


def curve(post: Posterior) -> list[tuple[float, float]]:
    """P(difference > d) for d over the range that the draws take."""
    low, high = np.quantile(post.draws_B, [0.001, 0.999])
    reach = max(abs(float(low)), abs(float(high)), 1e-9)
    return [(float(d), post.probability_above(float(d))) for d in np.linspace(-reach, reach, CURVE_POINTS)]


def _binary(sample: Sample, name: str) -> Sample:
    """A multi-label sample as yes (1) or no (0) of one label."""

    def yes_or_no(label: str) -> str:
        return "yes" if name in label.split(JOINT) else "no"

    categories = ["no", "yes"]
    place_of = []
    for category in sample.categories:
        if category in NO_LABEL:
            categories.append(category)
            place_of.append(len(categories) - 1)
        else:
            place_of.append(categories.index(yes_or_no(category)))
    coded = tuple(
        Coded(
            replace(item.gold, label=yes_or_no(item.gold.label)),
            None if item.label is None else yes_or_no(item.label),
            item.status,
            cluster=item.cluster,
        )
        for item in sample.coded
    )
    return replace(sample, categories=tuple(categories), category_N=np.array(place_of)[sample.category_N], coded=coded)


def _mean_by_ppi(sample: Sample, level: float) -> Estimate:
    """Where the model gave no number the mean of its others stands in, and gold puts it right."""
    model_N = _numbers_of_the_model(sample)
    there = np.isfinite(model_N)
    if not there.any():
        raise DataError("the model gave no number to any text.")
    filled_N = np.where(there, model_N, float(model_N[there].mean()))
    return _powered(sample, filled_N, [float(item.gold.label) for item in sample.coded], level)


def _mean_of_gold(sample: Sample, level: float) -> Estimate:
    design = design_of(sample.coded)
    units = design.clusters or [item.gold.id for item in sample.coded]
    gold = [float(item.gold.label) for item in sample.coded]
    return mean(gold, units, weights=design.weights, unit_kind=design.unit_kind, level=level)


def _mean_of_the_model(sample: Sample, level: float) -> Estimate:
    model_N = _numbers_of_the_model(sample)
    there = np.flatnonzero(np.isfinite(model_N))
    units = sample.unit_N[there]
    return mean(model_N[there], units, unit_kind=_kind_of(units), level=level)


def _numbers_of_the_model(sample: Sample) -> np.ndarray:
    """Of every row, NaN where it gave none."""
    found: np.ndarray = np.array([_number(category) for category in sample.categories])[sample.category_N]
    return found


SHARES: dict[str, Callable[[Sample, int, float], Estimate]] = {PPI: _ppi, GOLD: _gold_only, NAIVE: _naive}
MEANS: dict[str, Callable[[Sample, float], Estimate]] = {
    PPI: _mean_by_ppi,
    GOLD: _mean_of_gold,
    NAIVE: _mean_of_the_model,
}


def _number(category: str) -> float:
    try:
        return float(category)
    except ValueError:
        return float("nan")


def _tried(make: Any) -> Measured | None:
    """None where there is no such estimate: the model labels all alike, or a single unit."""
    try:
        return measured(make)
    except DataError:
        return None


def default_of(ways: Mapping[str, Any]) -> str:
    """The way that is reported first."""
    return POST if ways.get(POST) else PPI
