"""From codings to gold: the final label of every drawn text, the table `gold.csv`, and who agreed with whom."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from consilience.annotate.codebook import Codebook, Level
from consilience.annotate.coding.store import ADJUDICATOR, CODED, CODER, Coding, GoldStore, GoldText
from consilience.annotate.gold import GOLD_STATUS, UNCODED
from consilience.run import write_text

NO_LABEL = "(none)"  # of a multi-label variable: coded, and none applies; an empty cell is not coded yet
UNCLEAR, DISAGREEMENT = "unclear", "disagreement"
STATUSES = (CODED, DISAGREEMENT, UNCLEAR, UNCODED)


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldLabel:
    """A drawn text, what its coders said, and the label that counts.

    `label` is the adjudicator's, else the one that all coders or most of them gave (of an interval variable their
    mean), else "" with the reason as `status`, one of STATUSES.
    """

    text: GoldText
    status: str
    label: str
    by_coder: Mapping[str, Coding]
    adjudicated: bool


def gold_labels(store: GoldStore, codebook: Codebook) -> list[GoldLabel]:
    """Every drawn text in coding order with its final label."""
    codings = store.codings()
    found = []
    for text in store.texts():
        status, label, adjudicated = _final(codings.get(text.item, ()), codebook)
        by_coder = {coding.coder: coding for coding in codings.get(text.item, ()) if coding.role == CODER}
        found.append(
            GoldLabel(
                text=text,
                status=status,
                label=label,
                by_coder=by_coder,
                adjudicated=adjudicated,
            )
        )
    return found


def _final(codings: Sequence[Coding], codebook: Codebook) -> tuple[str, str, bool]:
    """Status and label of a text, and whether an adjudicator decided."""
    if decided := [coding for coding in codings if coding.role == ADJUDICATOR]:
        last = decided[-1]
        return (CODED, last.value, True) if last.status == CODED else (UNCLEAR, "", True)
    given = [coding.value for coding in codings if coding.status == CODED]
    if not codings:
        return UNCODED, "", False
    if not given:
        return UNCLEAR, "", False
    if codebook.level is Level.INTERVAL:
        return CODED, f"{math.fsum(map(float, given)) / len(given):g}", False
    value, times = Counter(given).most_common(1)[0]
    return (CODED, value, False) if times > len(codings) / 2 else (DISAGREEMENT, "", False)


def disagreements(labels: Sequence[GoldLabel]) -> list[GoldLabel]:
    """What an adjudicator looks at: texts that their coders labelled unlike or could not decide, all coders done."""
    return [
        label
        for label in labels
        if len(label.by_coder) >= label.text.wanted
        and (label.adjudicated or label.status in (DISAGREEMENT, UNCLEAR) or not _alike(label))
    ]


def _alike(label: GoldLabel) -> bool:
    return len({(coding.status, coding.value) for coding in label.by_coder.values()}) == 1


def shown(value: str, codebook: Codebook) -> str:
    """A coded value as a table's cell."""
    return NO_LABEL if codebook.level is Level.MULTI_LABEL and not value else value


def write_gold(store: GoldStore, codebook: Codebook, path: Path) -> list[GoldLabel]:
    """Writes the gold table that `annotate dev` and `annotate estimate` read; the labels that are in it."""
    labels = gold_labels(store, codebook)
    coders = store.coders()
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    head = ["id", "split", "probability", "stratum", "cluster", "label", GOLD_STATUS]
    writer.writerow([*head, *(f"coder:{coder}" for coder in coders)])
    for label in labels:
        text = label.text
        cells = [text.item, text.part, f"{text.part_probability:.12g}", text.stratum, text.cluster]
        cells += [shown(label.label, codebook) if label.status == CODED else "", label.status]
        writer.writerow([*cells, *(_cell(label.by_coder.get(coder), codebook) for coder in coders)])
    write_text(path, table.getvalue())
    return labels


def _cell(coding: Coding | None, codebook: Codebook) -> str:
    return shown(coding.value, codebook) if coding is not None and coding.status == CODED else ""
