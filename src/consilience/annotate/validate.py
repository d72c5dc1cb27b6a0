"""Model against people, and people against one another: agreement, confusions, calibration, all with intervals.

Design weights and clusters enter every number. A text that the model gave no label counts as disagreement, and is a
column of its own in the confusions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from consilience.annotate.agreement import MEASURED, Design, Make, left_out, measures_of
from consilience.annotate.answers import Status
from consilience.annotate.codebook import CLOSED, JOINT, Codebook, Level
from consilience.annotate.gold import GoldItem
from consilience.annotate.measured import LEVEL, Measured, measured
from consilience.errors import DataError
from consilience.rng import stream
from consilience.stats import (
    Estimate,
    cohens_kappa,
    difference,
    gwet_ac,
    mean,
    observed_agreement,
)
from consilience.stats.advantage import advantage_probability
from consilience.stats.calibration import brier_score, calibration_error, log_score, reliability
from consilience.stats.confusion import OF_EACH_LABEL, Confusion, confusion


@dataclass(frozen=True, slots=True)
class Coded:
    """One gold text with what the model made of it."""

    gold: GoldItem
    label: str | None
    status: str
    probabilities: Mapping[str, float] | None = None
    cluster: str = ""
    length: int = 0  # characters of the text

    @property
    def category(self) -> str:
        """The label, or the status in brackets where there is none."""
        return category_of(self.label, self.status)


def category_of(label: str | None, status: str) -> str:
    """What the model made of a text, as one of a set: its label, or why there is none."""
    return label if label is not None and status == Status.OK else f"({status})"


def design_of(coded: Sequence[Coded]) -> Design:
    """Weights are one over the probability of being drawn; clusters those of the gold, else those of the data."""
    probabilities = [item.gold.probability for item in coded]
    weights = None if None in probabilities else tuple(1 / (p or 1.0) for p in probabilities)
    if weights is not None and max(weights) <= min(weights) * (1 + 1e-9):
        weights = None
    clusters = tuple(item.gold.cluster or item.cluster for item in coded)
    return Design(weights, clusters if any(clusters) and len(set(clusters)) < len(clusters) else None)


def validate(
    coded: Sequence[Coded], codebook: Codebook, *, counts: Mapping[str, int] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Everything that is measured of one configuration on gold texts.

    `counts` are how often the model gives each category in the whole corpus; without them, as on the development
    sample, the gold texts stand for it.
    """
    design = design_of(coded)
    found: dict[str, Any] = {
        "n": len(coded),
        "clusters": None if design.clusters is None else len(set(design.clusters)),
        "weighted": design.weights is not None,
        "statuses": dict(Counter(item.status for item in coded)),
        "note": left_out([item.label for item in coded], codebook),
        "agreement": agreement_with_gold(coded, codebook, design),
        "not_included": not_included(coded),
    }
    if codebook.level in CLOSED:
        table = confusion_of(coded, codebook.names, design, counts, seed)
        found |= of_table(table, coded, codebook.names)
        found["calibration"] = calibration_of(coded, codebook, design, seed)
    if codebook.level is Level.MULTI_LABEL:
        found["by_label"] = {name: _one_of_many(coded, name, design, seed) for name in codebook.names}
    found["humans"] = humans(coded, codebook, design)
    return found


def not_included(coded: Sequence[Coded]) -> list[str]:
    """What no interval of a validation contains."""
    several = any(len(item.gold.coders) > 1 for item in coded)
    return [
        "other prompts, other models, other ways to decode",
        "what the coders' disagreement does to the gold labels" if several else "other coders: each text has one code",
    ]


def agreement_with_gold(coded: Sequence[Coded], codebook: Codebook, design: Design) -> dict[str, Measured]:
    """Agreement of the model's labels with gold, in the measures that fit the level; several, for none is the one."""
    gold, model = [item.gold.label for item in coded], [item.category for item in coded]
    whole: dict[str, Any] = {"item_weights": design.weights, "unit_kind": design.unit_kind}
    measures = measures_of([*zip(gold, model)], codebook, design, [item.length for item in coded])
    if codebook.level is not Level.FREE_TEXT and codebook.level is not Level.SPAN:
        same: Make = lambda level: observed_agreement(gold, model, design.clusters, **whole, level=level)  # noqa: E731
        measures = {"observed agreement": same} | {k: v for k, v in measures.items() if k != "observed agreement"}
    if codebook.level is Level.INTERVAL:
        measures |= _of_numbers(coded, design)
    if codebook.level in CLOSED:
        names = [*codebook.names, *sorted(set(model) - {*codebook.names})]
        measures["Cohen's kappa"] = lambda level: cohens_kappa(
            gold, model, design.clusters, categories=names, **whole, level=level
        )
        measures["Gwet's AC1"] = lambda level: gwet_ac(
            [*zip(gold, model)], design.clusters, categories=names, **whole, level=level
        )
    if codebook.level is Level.MULTI_LABEL:
        overlap = [_overlap(item.gold.label, item.label) for item in coded]
        measures["mean overlap (Jaccard)"] = lambda level: mean(
            overlap, design.clusters, weights=design.weights, unit_kind=design.unit_kind, level=level
        )
    return {name: found for name, make in measures.items() if (found := _tried(make))}


def _of_numbers(coded: Sequence[Coded], design: Design) -> dict[str, Any]:
    there = [i for i, item in enumerate(coded) if item.label is not None]
    apart = [float(coded[i].label or 0) - float(coded[i].gold.label) for i in there]
    units = None if design.clusters is None else [design.clusters[i] for i in there]
    weights = None if design.weights is None else [design.weights[i] for i in there]
    of: dict[str, Any] = {"weights": weights, "unit_kind": design.unit_kind}
    return {
        "mean difference (model minus gold)": lambda level: mean(apart, units, **of, level=level),
        "mean absolute difference": lambda level: mean(np.abs(apart), units, **of, level=level),
    }


def confusion_of(
    coded: Sequence[Coded], names: Sequence[str], design: Design, counts: Mapping[str, int] | None, seed: int
) -> Confusion:
    """The posterior of the confusion table; the model's categories beyond the labels are statuses."""
    counts = counts or Counter(item.category for item in coded)
    categories = categories_of(names, [*counts, *(item.category for item in coded)])
    place = {name: i for i, name in enumerate(categories)}
    return confusion(
        [place[item.category] for item in coded],
        [place[item.gold.label] for item in coded],
        [counts.get(name, 0) for name in categories],
        len(names),
        rng=stream(seed, "confusion"),
        weights=design.weights,
        clusters=design.clusters,
        level=LEVEL,
    )


def categories_of(names: Sequence[str], seen: Sequence[str]) -> list[str]:
    """The labels, and behind them the statuses that were seen."""
    return [*names, *sorted(set(seen) - {*names})]


def of_table(table: Confusion, coded: Sequence[Coded], names: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro-F1 and kappa; recall, precision and F1 of every label; the confusions with their intervals."""
    categories = categories_of(names, [item.category for item in coded])
    seen = Counter((item.gold.label, item.category) for item in coded)
    return {
        "table": {metric: measured(table.measure(metric)) for metric in ("accuracy", "macro_f1", "kappa")},
        "by_label": {
            name: {metric: measured(table.measure(metric, i)) for metric in OF_EACH_LABEL}
            | {"gold": sum(item.gold.label == name for item in coded)}
            for i, name in enumerate(names)
        },
        "confusion": {
            "gold": [*names],
            "model": categories,
            "counts": [[seen[gold, model] for model in categories] for gold in names],
            "shares": [[measured(table.cell(j, k)) for k in range(len(categories))] for j in range(len(names))],
        },
    }


def calibration_of(coded: Sequence[Coded], codebook: Codebook, design: Design, seed: int) -> dict[str, Any] | None:
    """Brier and log score, reliability and its error, over the texts that have probabilities of all labels."""
    places = {name: i for i, name in enumerate(codebook.names)}
    having = [
        i
        for i, item in enumerate(coded)
        if item.probabilities is not None and item.label is not None and set(item.probabilities) == {*places}
    ]
    if len(having) < 2:
        return None
    p = np.array([[(coded[i].probabilities or {})[name] for name in places] for i in having])
    p /= p.sum(1, keepdims=True)  # files keep seven digits
    gold = [places[coded[i].gold.label] for i in having]
    given = [places[coded[i].label or ""] for i in having]
    stated = p[np.arange(len(p)), given]
    right = np.equal(given, gold).astype(np.float64)
    weights = None if design.weights is None else [design.weights[i] for i in having]
    units = None if design.clusters is None else [design.clusters[i] for i in having]
    of: dict[str, Any] = {"weights": weights, "unit_kind": design.unit_kind}
    try:
        return {
            "brier": measured(lambda level: brier_score(p, gold, units, **of, level=level)),
            "log_score": measured(lambda level: log_score(p, gold, units, **of, level=level)),
            "error": measured(
                lambda level: calibration_error(
                    stated, right, units, rng=stream(seed, "calibration"), **of, level=level
                )
            ),
            "reliability": [found._asdict() for found in reliability(stated, right, weights=weights)],
        }
    except DataError:
        return None  # a single cluster: no spread


def _one_of_many(coded: Sequence[Coded], name: str, design: Design, seed: int) -> dict[str, Any]:
    """One label of a multi-label variable, as a table of yes and no."""

    def yes_or_no(label: str) -> str:
        return "yes" if name in label.split(JOINT) else "no"

    binary = [
        Coded(
            GoldItem(item.gold.id, yes_or_no(item.gold.label), probability=item.gold.probability),
            None if item.label is None else yes_or_no(item.label),
            item.status,
        )
        for item in coded
    ]
    table = confusion_of(binary, ("no", "yes"), design, None, seed)
    found = {metric: measured(table.measure(metric, 1)) for metric in OF_EACH_LABEL}
    return found | {"gold": sum(item.gold.label == "yes" for item in binary)}


def humans(coded: Sequence[Coded], codebook: Codebook, design: Design) -> dict[str, Any] | None:
    """The coders among themselves, with the model as one more, and whether it agrees with them as they do."""
    names = list(dict.fromkeys(name for item in coded for name in item.gold.coders))
    double = [i for i, item in enumerate(coded) if len(item.gold.coders) > 1]
    if len(names) < 2 or len(double) < 2 or codebook.level not in MEASURED:
        return None
    rows = [[coded[i].gold.coders.get(name) for name in names] for i in double]
    with_model = [[*row, coded[i].category] for row, i in zip(rows, double)]
    part, lengths = design.part(double), [coded[i].length for i in double]
    alone, beside = (measures_of(each, codebook, part, lengths) for each in (rows, with_model))
    model = [coded[i].label for i in double]
    numeric = codebook.level in (Level.ORDINAL, Level.INTERVAL)
    places = {name: float(i) for i, name in enumerate(codebook.names)}
    number = (lambda label: None if label is None else places.get(label, _number(label))) if numeric else (lambda x: x)
    advantage = partial(
        advantage_probability,
        [number(label) for label in model],
        [[number(label) for label in row] for row in rows],
        part.clusters,
        alignment="rmse" if numeric else "accuracy",
        unit_kind=part.unit_kind,
    )

    def apart(name: str) -> Callable[[float], Estimate]:
        return lambda level: difference(beside[name](level), alone[name](level))

    return {
        "coders": names,
        "texts": len(double),
        "among_coders": {name: value for name, make in alone.items() if (value := _tried(make))},
        "with_model": {name: value for name, make in beside.items() if (value := _tried(make))},
        "difference": {name: value for name in alone if (value := _tried(apart(name)))},
        "advantage": _tried(lambda level: advantage(level=level)),
    }


def _overlap(gold: str, label: str | None) -> float:
    if label is None:
        return 0.0
    ours, theirs = {*label.split(JOINT)} - {""}, {*gold.split(JOINT)} - {""}
    return len(ours & theirs) / len(ours | theirs) if ours | theirs else 1.0


def _number(label: str) -> float | None:
    try:
        return float(label)
    except ValueError:
        return None


def _tried(make: Callable[[float], Estimate]) -> Measured | None:
    """None where the measure is undefined: all labels alike, or a single cluster."""
    try:
        return measured(make)
    except DataError:
        return None
