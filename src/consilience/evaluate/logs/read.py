"""A file or a folder -> its scores: the kind is told by the content, never by the name alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from consilience.errors import DataError
from consilience.evaluate.logs import harnesses, judgments, tables
from consilience.evaluate.logs.scores import Log, printable
from consilience.evaluate.logs.source import Source, read_json, read_lines


class Kind(NamedTuple):
    """A format: `recognises` looks at a first row (of inspect_ai: at the header), `read` gives all scores."""

    recognises: Callable[[Mapping[str, Any]], bool]
    read: Callable[[Source, str | None], Log]


KINDS: dict[str, Kind] = {
    "lm-evaluation-harness samples_*.jsonl (--log_samples)": Kind(harnesses.is_lm_eval, harnesses.read_lm_eval),
    "inspect_ai .eval or .json": Kind(harnesses.is_inspect, harnesses.read_inspect),
    "alpaca_eval annotations.json": Kind(judgments.is_alpaca_eval, judgments.read_alpaca_eval),
    "MT-Bench single judgments (FastChat)": Kind(judgments.is_mt_bench, judgments.read_mt_bench),
    "MT-Bench pair judgments (FastChat)": Kind(judgments.is_mt_bench_pair, judgments.read_mt_bench_pairs),
    "consilience scores.jsonl": Kind(tables.is_scores, tables.read_scores),
    "consilience task-*.jsonl": Kind(tables.is_answers, tables.read_answers),
    "consilience likelihood.jsonl": Kind(tables.is_likelihood, tables.read_likelihood),
    "a table with item and score (CSV, TSV, JSON, JSONL, Parquet)": Kind(tables.is_table, tables.read_table),
}
IN_FOLDERS = ("scores.jsonl", "samples_*.jsonl", "task-*.jsonl", "*.eval")


def read_log(path: Path, *, cluster: str | None = None) -> Log:
    """The scores of a file, or of a folder with one log per task; `cluster` names the field that items cluster by.

    Raises `DataError` at a file of no known kind, an empty one, and at a field to cluster by that is not there.
    """
    if path.is_dir():
        return _read_folder(path, cluster)
    if not path.is_file():
        raise DataError(f"no file or folder {path}. Check the path.")
    source = _open(path)
    if not source.first and not source.header:
        raise DataError(f"{path} holds no scores.")
    for kind in KINDS.values():
        if kind.recognises(source.header) or kind.recognises(source.first):
            return kind.read(source, cluster)
    keys = ", ".join(printable(str(key)) for key in source.first or source.header)
    raise DataError(f"{path}: no log of a known kind; its first record has {keys[:200]}. Known: {'; '.join(KINDS)}.")


def _open(path: Path) -> Source:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip:
        return harnesses.read_inspect_archive(path)
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind in ("csv", "tsv"):
        return tables.read_delimited(path)
    if kind == "json":
        return read_json(path)
    if kind in ("jsonl", "ndjson", "parquet"):
        return read_lines(path)
    raise DataError(f"{path}: no log of a known kind. Known: {'; '.join(KINDS)}.")


def _read_folder(folder: Path, cluster: str | None) -> Log:
    """One log per task, joined: an item is known by its task too, and the task is its category."""
    pattern = next((one for one in IN_FOLDERS if any(folder.glob(one))), None)
    if pattern is None:
        raise DataError(f"{folder} holds none of {', '.join(IN_FOLDERS)}. Give the file itself.")
    logs: dict[str, Log] = {}
    for path in sorted(folder.glob(pattern)):
        task = _task_of(path)
        if task in logs:
            raise DataError(f"{folder} holds two logs of {task!r}. Give the files that are meant, one by one.")
        logs[task] = read_log(path, cluster=cluster)
    first = next(iter(logs.values()))
    if len(logs) == 1:
        return first
    scores = [
        score._replace(item=f"{task}/{score.item}", cluster=score.cluster and f"{task}/{score.cluster}", category=task)
        for task, log in logs.items()
        for score in log.scores
    ]
    notes = dict.fromkeys(note for log in logs.values() for note in log.notes)
    metrics = {name: metric for log in logs.values() for name, metric in log.metrics.items()}
    return replace(first, scores=scores, metrics=metrics, notes=[*notes])


def _task_of(path: Path) -> str:
    named = harnesses.SAMPLES_FILE.fullmatch(path.name) or harnesses.EVAL_FILE.fullmatch(path.name)
    return printable(named["task"] if named else path.stem.removeprefix("task-"))
