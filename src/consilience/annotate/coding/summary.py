"""The state of the gold: what is coded, by whom, and how far the coders agree, each number with its interval."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from itertools import combinations
from typing import Any

from consilience.annotate.agreement import Design, Make, agreement, codings_of, observed, prevalence
from consilience.annotate.codebook import Codebook, Level
from consilience.annotate.coding.labels import STATUSES, GoldLabel, gold_labels
from consilience.annotate.coding.store import CODED, UNCLEAR, Coding, GoldStore
from consilience.errors import DataError

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

    The measures of `annotate.agreement` side by side, each label's share of the codings, and the observed agreement of
    every pair of coders, all weighted by the design: how far these coders would agree on the whole corpus. Units are
    the sampled clusters, else the texts; "unclear" is a category of nominal variables and missing for others. A measure
    that is undefined says why.
    """
    double = [label for label in labels if len(label.by_coder) > 1]
    found: dict[str, Any] = {
        "texts": len(double),
        "unclear": sum(coding.status == UNCLEAR for label in double for coding in label.by_coder.values()),
        "does_not_include": "other coders, and how alike these coders were trained",
        "variables": {},
    }
    if not double:
        return found
    clusters = [label.text.cluster for label in double]
    weights = tuple(1 / label.text.probability for label in double)
    design = Design(weights, tuple(clusters) if all(clusters) else None)
    found["weighted"] = max(weights) > min(weights) * (1 + 1e-9)
    rows = [[_code_of(label.by_coder.get(coder), codebook) for coder in coders] for label in double]
    for codings in codings_of(rows, codebook, [len(label.text.text) for label in double]):
        ratings = codings.ratings
        named = list(codebook.names) if codings.scale == "ordinal" else codings.categories
        found["variables"][codings.name] = {
            "scale": codings.scale,
            "measures": {name: _or_reason(make, level) for name, make in agreement(codings, design).items()},
            "prevalence": {
                str(name): _or_reason(partial(prevalence, ratings, category, design), level)
                for name, category in zip(named, codings.categories)
            },
            "pairs": {
                f"{first} and {second}": _or_reason(
                    partial(observed, [[row[i], row[j]] for row in ratings], design), level
                )
                for (i, first), (j, second) in combinations(enumerate(coders), 2)
                if any(row[i] is not None and row[j] is not None for row in ratings)
            },
        }
    return found


def _code_of(coding: Coding | None, codebook: Codebook) -> str | None:
    """What a coder said, as `agreement` takes it: unclear is a category of a nominal variable, else no coding."""
    if coding is None or (coding.status == UNCLEAR and codebook.level is not Level.NOMINAL):
        return None
    return coding.value if coding.status == CODED else UNCLEAR_CATEGORY


def _or_reason(make: Make, level: float) -> dict[str, Any]:
    """The estimate as JSON, or why there is none."""
    try:
        return make(level).to_json()
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
