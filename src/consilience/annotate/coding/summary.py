"""The state of the gold: what is coded, by whom, and how far the coders agree, each number with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np

from consilience.annotate.codebook import JOINT, Codebook, Level
from consilience.annotate.coding.labels import STATUSES, GoldLabel, gold_labels
from consilience.annotate.coding.store import CODED, UNCLEAR, GoldStore
from consilience.errors import DataError
from consilience.stats import Estimate, gwet_ac, krippendorff_alpha, mean, share_interval

UNCLEAR_CATEGORY = "(unclear)"


def gold_status(store: GoldStore, codebook: Codebook, *, level: float = 0.95) -> dict[str, Any]:
    """Counts by status, part and coder, and the agreement of the coders on the texts that several coded."""
    labels = gold_labels(store, codebook)
    coders = store.coders()
    history = store.history()
    return {
        "variable": codebook.variable,
        "level_of_measurement": str(codebook.level),
        "texts": len(labels),
        "status": {status: sum(label.status == status for label in labels) for status in STATUSES},
        "parts": {
            part: dict(Counter(label.status for label in labels if label.text.part == part))
            for part in dict.fromkeys(label.text.part for label in labels)
        },
        "adjudicated": sum(label.adjudicated for label in labels),
        "coders": {coder: _coder(coder, labels, history) for coder in coders},
        "codebooks": len({row["codebook"] for row in history if row["undone"] is None and row["codebook"]}),
        "agreement": human_agreement(labels, coders, codebook, level=level),
    }


def human_agreement(
    labels: Sequence[GoldLabel], coders: Sequence[str], codebook: Codebook, *, level: float = 0.95
) -> dict[str, Any]:
    """How far the coders agree on the texts that at least two of them coded, before any adjudication.

    Observed agreement, each label's share of the codings, Krippendorff's alpha of the variable's level and Gwet's AC1
    side by side, and the observed agreement of every pair of coders, all weighted by the design: how far these coders
    would agree on the whole corpus. Units are the sampled clusters, else the texts;
    "unclear" is a category of its own for nominal variables and a missing value for others. Of a multi-label variable
    every label is a yes or no of its own. A measure that is undefined says why.
    """
    double = [label for label in labels if len(label.by_coder) > 1]
    found: dict[str, Any] = {
        "texts": len(double),
        "unclear": sum(coding.status == UNCLEAR for label in double for coding in label.by_coder.values()),
        "does_not_include": "other coders, and how alike these coders were trained",
        "variables": {},
    }
    if not double or codebook.level is Level.FREE_TEXT:
        return found
    clustered = all(label.text.cluster for label in double)
    units = [label.text.cluster if clustered else label.text.item for label in double]
    unit_kind = "clusters" if clustered else "texts"
    weights = np.array([1 / label.text.probability for label in double])
    over: Any = {"unit_kind": unit_kind, "level": level}
    found["weighted"] = bool(weights.max() > weights.min() * (1 + 1e-9))
    for name, table, categories, scale in _rating_tables(double, coders, codebook):
        by_design: Any = {**over, "item_weights": weights}
        found["variables"][name] = {
            "scale": scale,
            "observed_agreement": _or_reason(_observed, table, units, weights, **over),
            "krippendorff_alpha": _or_reason(
                krippendorff_alpha, table, units, scale=scale, categories=categories or None, **by_design
            ),
            **(
                {}
                if scale == "interval"
                else {"gwet_ac1": _or_reason(gwet_ac, table, units, categories=categories, **by_design)}
            ),
            "prevalence": {str(one): _or_reason(_prevalence, table, one, units, weights, **over) for one in categories},
            "pairs": {
                f"{first} and {second}": _or_reason(_observed, table[:, [i, j]], units, weights, **over)
                for (i, first), (j, second) in combinations(enumerate(coders), 2)
                if any(a is not None and b is not None for a, b in table[:, [i, j]])
            },
        }
    return found


def _rating_tables(
    double: Sequence[GoldLabel], coders: Sequence[str], codebook: Codebook
) -> list[tuple[str, np.ndarray, list[Any], str]]:
    """Name, ratings [N texts, R coders] with None for none, categories and scale: one, or one for every label."""

    def table(value_of: Callable[[str, str], Any]) -> np.ndarray:
        cells = np.full((len(double), len(coders)), None, dtype=object)
        for i, label in enumerate(double):
            for j, coder in enumerate(coders):
                if coder in label.by_coder:
                    cells[i, j] = value_of(label.by_coder[coder].status, label.by_coder[coder].value)
        return cells

    name, names = codebook.variable, list(codebook.names)
    if codebook.level is Level.MULTI_LABEL:
        return [
            (
                f"{name}: {one}",
                table(lambda status, value, one=one: None if status != CODED else str(one in value.split(JOINT))),  # type: ignore[misc]
                ["False", "True"],
                "nominal",
            )
            for one in names
        ]
    if codebook.level is Level.INTERVAL:
        return [(name, table(lambda status, value: float(value) if status == CODED else None), [], "interval")]
    if codebook.level is Level.ORDINAL:
        return [(name, table(lambda status, value: value if status == CODED else None), names, "ordinal")]
    if codebook.level is Level.SPAN:
        return [(f"{name}: any span", table(_any_span), ["False", "True"], "nominal")]
    with_unclear = table(lambda status, value: value if status == CODED else UNCLEAR_CATEGORY)
    used = [UNCLEAR_CATEGORY] if UNCLEAR_CATEGORY in set(with_unclear.ravel()) else []
    return [(name, with_unclear, names + used, "nominal")]


def _any_span(status: str, value: str) -> str | None:
    return str(value not in ("", "[]")) if status == CODED else None


def _observed(
    table: np.ndarray, units: Sequence[str], weights: Sequence[float], *, unit_kind: str, level: float
) -> Estimate:
    """The share of pairs of codings of a text that are alike, averaged over the texts with at least two."""
    kept = [place for place, row in enumerate(table) if sum(cell is not None for cell in row) > 1]
    alike = []
    for place in kept:
        pairs = [a == b for a, b in combinations([cell for cell in table[place] if cell is not None], 2)]
        alike.append(sum(pairs) / len(pairs))
    return _share(alike, [units[i] for i in kept], [weights[i] for i in kept], unit_kind, level)


def _prevalence(
    table: np.ndarray, category: Any, units: Sequence[str], weights: Sequence[float], *, unit_kind: str, level: float
) -> Estimate:
    """The share of a category among a text's codings, averaged over the texts."""
    kept = [place for place, row in enumerate(table) if any(cell is not None for cell in row)]
    shares = []
    for place in kept:
        given = [cell for cell in table[place] if cell is not None]
        shares.append(sum(cell == category for cell in given) / len(given))
    return _share(shares, [units[i] for i in kept], [weights[i] for i in kept], unit_kind, level)


def _share(
    values: Sequence[float], units: Sequence[str], weights: Sequence[float], unit_kind: str, level: float
) -> Estimate:
    share = mean(values, units, weights=weights, unit_kind=unit_kind, level=level)
    method = f"{share.method}; Wilson score interval at the effective sample size"
    return replace(share, interval=share_interval(share), method=method)


def _or_reason(compute: Callable[..., Estimate], *arguments: Any, **named: Any) -> dict[str, Any]:
    """The estimate as JSON, or why there is none."""
    try:
        return compute(*arguments, **named).to_json()
    except DataError as error:
        return {"undefined": str(error)}


def _coder(coder: str, labels: Sequence[GoldLabel], history: Sequence[dict[str, Any]]) -> dict[str, int]:
    mine = [label.by_coder[coder] for label in labels if coder in label.by_coder]
    return {
        "coded": sum(coding.status == CODED for coding in mine),
        "unclear": sum(coding.status == UNCLEAR for coding in mine),
        "with_a_note": sum(bool(coding.note) for coding in mine),
        "undone": sum(row["coder"] == coder and row["undone"] is not None for row in history),
    }
