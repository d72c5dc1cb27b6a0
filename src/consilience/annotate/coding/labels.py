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
from consilience.run import write_text

NO_LABEL = "(none)"  # of a multi-label variable: coded, and none applies; an empty cell is not coded yet
UNCODED, UNCLEAR, DISAGREEMENT = "uncoded", "unclear", "disagreement"
STATUSES = (CODED, DISAGREEMENT, UNCLEAR, UNCODED)


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldLabel:
    """A drawn text, what its coders said, and the label that counts.

    `label` is the adjudicator's, else the one that all coders or most of them gave (of an interval variable their
    mean), else "" with the reason as `status`, one of STATUSES. `probability` is that of being in its part, times the
    share of its stratum's drawn texts of that part that have a label: a gold sample that is coded in part is weighted
    as the smaller random sample that it is, as texts are coded in a random order.
    """

    text: GoldText
    status: str
    label: str
    probability: float
    by_coder: Mapping[str, Coding]
    adjudicated: bool


def gold_labels(store: GoldStore, codebook: Codebook) -> list[GoldLabel]:
    """Every drawn text in coding order with its final label."""
    codings = store.codings()
    texts = store.texts()
    finals = {text.item: _final(codings.get(text.item, ()), codebook) for text in texts}
    drawn = Counter((text.part, text.stratum) for text in texts)
    labelled = Counter((text.part, text.stratum) for text in texts if finals[text.item][0] == CODED)
    found = []
    for text in texts:
        status, label, adjudicated = finals[text.item]
        cell = text.part, text.stratum
        by_coder = {coding.coder: coding for coding in codings.get(text.item, ()) if coding.role == CODER}
        found.append(
            GoldLabel(
                text=text,
                status=status,
                label=label,
                probability=text.part_probability * labelled[cell] / drawn[cell],
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
    head = ["id", "split", "probability", "stratum", "cluster", "label", "status"]
    writer.writerow([*head, *(f"coder:{coder}" for coder in coders)])
    for label in labels:
        text = label.text
        probability = label.probability or text.part_probability  # nothing of the stratum is coded yet
        cells = [text.item, text.part, f"{probability:.12g}", text.stratum, text.cluster]
        cells += [shown(label.label, codebook) if label.status == CODED else "", label.status]
        writer.writerow([*cells, *(_cell(label.by_coder.get(coder), codebook) for coder in coders)])
    write_text(path, table.getvalue())
    return labels


def _cell(coding: Coding | None, codebook: Codebook) -> str:
    return shown(coding.value, codebook) if coding is not None and coding.status == CODED else ""
