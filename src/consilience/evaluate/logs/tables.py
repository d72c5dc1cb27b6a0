"""Tables of scores: CSV and TSV, or JSON and Parquet rows, with `item`, `score`, and what else there is of `COLUMNS`.

And what `consilience fuse` writes for every model: the answers to a task, the likelihood of the held-out chats.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilience.errors import DataError
from consilience.evaluate.logs.scores import Log, Metric, Score, Status, field_of, number_of, printable
from consilience.evaluate.logs.source import Source, read_text, source_of

COLUMNS = ("item", "model", "score", "cluster", "category", "metric", "sample")
DELIMITERS = "\t;,"


def read_delimited(path: Path) -> Source:
    """A CSV or TSV file; the delimiter is the one of tab, semicolon and comma that the header has."""
    text = read_text(path)
    header, _, _ = text.partition("\n")
    delimiter = next((sign for sign in DELIMITERS if sign in header), ",")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval=None)
    names = [name.strip() for name in reader.fieldnames or ()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise DataError(f"{path}: the header has {printable(', '.join(sorted(twice)))!r} twice.")
    reader.fieldnames = names
    rows = []
    try:
        for row in reader:
            where = f"{path}, line {reader.line_num}"
            if None in row:
                raise DataError(f"{where}: {len(names) + len(row[None])} columns, expected {len(names)}.")
            if delimiter == ";" and (row.get("score") or "").count(",") == 1:  # decimal comma
                row["score"] = row["score"].replace(",", ".")
            rows.append((where, row))
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: not readable as CSV ({error}).") from None
    return source_of(path, rows)


def is_table(row: Mapping[str, Any]) -> bool:
    """Rows with an item and a score."""
    return "item" in row and "score" in row


def read_table(source: Source, cluster: str | None) -> Log:
    """Scores as they stand; a model without a name is called like the file."""
    scores = []
    cluster = cluster or ("cluster" if "cluster" in source.first else None)
    for where, row in source.rows:
        if not is_table(row) or row["item"] in (None, ""):
            raise DataError(f"{where}: expected an 'item' and a 'score'; got {printable(str(dict(row)))[:120]}.")
        value, status = number_of(row["score"])
        scores.append(
            Score(
                model=printable(str(row.get("model") or source.name)),
                metric=printable(str(row.get("metric") or "score")),
                item=printable(str(row["item"])),
                value=value,
                status=status,
                sample=printable(str(row.get("sample") or "")),
                cluster=field_of(row, cluster, where) if cluster else "",
                category=printable(str(row.get("category") or "")),
            )
        )
    return Log(kind="table", scores=scores, cluster_kind=cluster or "clusters")


ANSWERED = {
    "correct": (1.0, Status.SCORED),
    "wrong": (0.0, Status.SCORED),
    "unreadable": (0.0, Status.UNREADABLE),
    "cut off": (0.0, Status.CUT_OFF),
    "not asked": (0.0, Status.NOT_ASKED),
}


def is_answers(row: Mapping[str, Any]) -> bool:
    """The answers to a task of one of our runs."""
    return {"id", "reply", "answer", "outcome"} <= row.keys()


def read_answers(source: Source, cluster: str | None) -> Log:
    """The share of correct answers, as the run's own report counts it: what cannot be read is not correct."""
    scores = []
    for where, row in source.rows:
        if row.get("outcome") not in ANSWERED:
            raise DataError(f"{where}: the outcome is {row.get('outcome')!r}; expected one of {', '.join(ANSWERED)}.")
        value, status = ANSWERED[row["outcome"]]
        belongs = field_of(row, cluster, where) if cluster else ""
        category = printable(str(row.get("group") or ""))
        scores.append(
            Score(source.name, "accuracy", printable(str(row["id"])), value, status, cluster=belongs, category=category)
        )
    return Log(
        kind="answers to a task (consilience)",
        scores=scores,
        metrics={"accuracy": Metric((0, 1))},
        item_kind="questions",
        cluster_kind=cluster or "clusters",
    )


def is_likelihood(row: Mapping[str, Any]) -> bool:
    """The held-out likelihood of one of our runs."""
    return {"id", "nats", "bytes", "status"} <= row.keys()


def read_likelihood(source: Source, cluster: str | None) -> Log:
    """Nats per byte: the sum of the nats over that of the bytes; chats that begin alike are one cluster."""
    scores = []
    for where, row in source.rows:
        scored = row.get("status") == "scored" and row["bytes"] > 0
        cluster_of_row = field_of(row, cluster or "opening", where)
        scores.append(
            Score(
                model=source.name,
                metric="nats per byte",
                item=printable(str(row["id"])),
                value=row["nats"] / row["bytes"] if scored else math.nan,
                status=Status.SCORED if scored else Status.UNSCORED,
                cluster=cluster_of_row,
                category=printable(str(row.get("group") or "")),
                weight=row["bytes"] if scored else 1.0,
            )
        )
    return Log(
        kind="held-out likelihood (consilience)",
        scores=scores,
        metrics={"nats per byte": Metric(None, lower_is_better=True)},
        item_kind="chats",
        cluster_kind=cluster or "openings",
    )


def is_scores(row: Mapping[str, Any]) -> bool:
    """The scores of one of our evaluations."""
    return {"task", "metric", "model", "item", "value", "status"} <= row.keys()


def read_scores(source: Source, cluster: str | None) -> Log:
    """What `consilience evaluate` scored: a metric is called `task: metric`."""
    scores: list[Score] = []
    metrics: dict[str, Metric] = {}
    judges: dict[str, None] = {}
    for where, row in source.rows:
        if not is_scores(row) or row["status"] not in STATUSES:
            raise DataError(f"{where}: expected a score with 'task', 'metric', 'item', 'value' and a known 'status'.")
        metric = printable(f"{row['task']}: {row['metric']}")
        value, _ = number_of(row["value"])
        scores.append(
            Score(
                model=printable(str(row["model"])),
                metric=metric,
                item=printable(str(row["item"])),
                value=value,
                status=STATUSES[row["status"]],
                sample=str(row.get("sample") or ""),
                cluster=field_of(row, cluster, where) if cluster else printable(str(row.get("cluster") or "")),
                category=printable(str(row.get("category") or "")),
                weight=float(row.get("weight", 1.0)),
            )
        )
        scale = row.get("scale")
        metrics[metric] = Metric((scale[0], scale[1]) if scale else None)
        if row.get("judge"):
            judges[printable(str(row["judge"]))] = None
    return Log(
        kind="evaluation (consilience)",
        scores=scores,
        metrics=metrics,
        cluster_kind=cluster or "clusters",
        judged=", ".join(judges),
    )


STATUSES = {str(status): status for status in Status}


def scores_row(task: str, score: Score, metric: Metric, judge: str) -> dict[str, Any]:
    """One line of `scores.jsonl`, which `read_scores` reads."""
    row: dict[str, Any] = {"task": task, **score._asdict()}
    row["value"] = None if math.isnan(score.value) else score.value
    row["status"] = score.status.value
    return row | {"scale": metric.scale and [*metric.scale], "judge": judge}
