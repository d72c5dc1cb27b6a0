"""Logs of the harnesses: lm-evaluation-harness `samples_*.jsonl`, inspect_ai `.eval` and `.json`."""

from __future__ import annotations

import json
import math
import re
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilience.errors import DataError
from consilience.evaluate.logs.scores import Log, Metric, Score, Status, field_of, number_of, printable
from consilience.evaluate.logs.source import Source, source_of

SAMPLES_FILE = re.compile(r"samples_(?P<task>.+)_\d{4}-\d{2}-\d{2}T[\d.:-]+\.jsonl?(\.gz)?")
EVAL_FILE = re.compile(r"\d{4}-\d{2}-\d{2}T[^_]+_(?P<task>.+)_[A-Za-z0-9]+\.eval")
NOT_METRICS = {
    "doc_id", "doc", "target", "arguments", "resps", "filtered_resps", "filter", "metrics", "doc_hash", "prompt_hash",
    "target_hash", "logit_0", "truth",
}  # fmt: skip
SHARES = {"acc", "acc_norm", "exact_match", "exact", "em", "pass@1", "mcc_acc"}
LOWER = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter", "wer", "mse"}


def is_lm_eval(row: Mapping[str, Any]) -> bool:
    """A row of lm-evaluation-harness' logged samples."""
    return "doc_id" in row and "doc" in row and ("resps" in row or "filtered_resps" in row)


def read_lm_eval(source: Source, cluster: str | None) -> Log:
    """Every metric that has a number per item. The model is the folder's name, as the harness lays its logs out.

    An item is its `doc_id` with the beginning of its `doc_hash`: the same question in another version of the task
    does not match. A metric under a filter is called `metric,filter`, as in the harness' results. A list of booleans
    (the instructions of an IFEval prompt) is their mean, weighted by their number.
    """
    named = SAMPLES_FILE.fullmatch(source.path.name)
    model = printable(source.path.resolve().parent.name.replace("__", "/")) if named else source.name
    scores: list[Score] = []
    corpus_wide: Counter[str] = Counter()
    for where, row in source.rows:
        if not is_lm_eval(row):
            raise DataError(f"{where}: no sample of lm-evaluation-harness; expected 'doc_id', 'doc' and 'resps'.")
        item = f"{row['doc_id']}#{row['doc_hash'][:8]}" if row.get("doc_hash") else f"{row['doc_id']}"
        belongs = field_of(row, cluster, where) if cluster else ""
        filtered = f",{row['filter']}" if row.get("filter") not in (None, "none") else ""
        for name in row.get("metrics") or [key for key in row if key not in NOT_METRICS]:
            value: Any = row.get(name)
            weight = 1.0
            if isinstance(value, list) and value and all(isinstance(part, bool) for part in value):
                value, weight = sum(value) / len(value), float(len(value))
            if isinstance(value, list | str | Mapping):
                corpus_wide[name] += 1
                continue
            number, status = number_of(value)
            scores.append(
                Score(model, printable(f"{name}{filtered}"), item, number, status, cluster=belongs, weight=weight)
            )
    if not scores:
        of = ", ".join(map(printable, corpus_wide)) or "none"
        raise DataError(
            f"{source.path}: no metric with a number per item; there are: {of}, which the harness computes over all "
            "items at once. Choose a task or a metric that scores every item."
        )
    names = {score.metric for score in scores}
    skipped = [f"{printable(name)} is computed over all items at once and cannot be paired." for name in corpus_wide]
    return Log(
        kind="lm-evaluation-harness samples",
        scores=scores,
        metrics={name: _lm_eval_metric(name) for name in names},
        item_kind="questions",
        cluster_kind=cluster or "clusters",
        notes=skipped,
    )


def _lm_eval_metric(name: str) -> Metric:
    plain = name.partition(",")[0]
    is_share = plain in SHARES or plain.startswith(("prompt_level", "inst_level"))
    return Metric((0, 1) if is_share else None, lower_is_better=plain in LOWER)


VERDICTS = {"C": 1.0, "P": 0.5, "I": 0.0, "yes": 1.0, "no": 0.0}
NO_ANSWER = "N"


def is_inspect(header: Mapping[str, Any]) -> bool:
    """The header of an inspect_ai log."""
    return isinstance(header.get("eval"), Mapping) and "model" in header["eval"] and "task" in header["eval"]


def read_inspect(source: Source, cluster: str | None) -> Log:
    """Every scorer's value per sample, as inspect_ai turns it into a number: C 1, P 0.5, I and N 0.

    Epochs are several answers to one item. A sample that ended with an error and a score of NaN are not scored.
    """
    model, task = (printable(str(source.header["eval"][key])) for key in ("model", "task"))
    status = source.header.get("status")
    notes = [] if status in ("success", None) else [f"the log of {model} has the status {printable(str(status))}."]
    scores: list[Score] = []
    scorers: dict[str, bool] = {}  # whether all its values are letters or booleans: shares, from 0 to 1
    failed: list[tuple[str, str, str, Status]] = []
    for where, row in source.rows:
        item, sample = printable(str(row.get("id"))), str(row.get("epoch", 1))
        belongs = field_of(row, cluster, where) if cluster else ""
        found = row.get("scores") or {}
        if not found:
            failed.append((item, sample, belongs, Status.ERROR if row.get("error") else Status.UNSCORED))
        for scorer, score in found.items():
            value = score.get("value") if isinstance(score, Mapping) else score
            parts = {f"{scorer}/{key}": part for key, part in value.items()} if isinstance(value, Mapping) else None
            for name, part in ({scorer: value} if parts is None else parts).items():
                number, state = _inspect_number(part)
                scorers[printable(name)] = scorers.get(printable(name), True) and isinstance(part, str | bool)
                scores.append(Score(model, printable(name), item, number, state, sample, belongs))
    scores += [
        Score(model, name, item, math.nan, state, sample, belongs)
        for name in scorers
        for item, sample, belongs, state in failed
    ]
    if not scores:
        raise DataError(f"{source.path}: the log of {task} has no scores; its status is {printable(str(status))}.")
    return Log(
        kind="inspect_ai log",
        scores=scores,
        metrics={name: Metric((0, 1) if share else None) for name, share in scorers.items()},
        item_kind="samples",
        cluster_kind=cluster or "clusters",
        notes=notes,
    )


def _inspect_number(value: Any) -> tuple[float, Status]:
    if value == NO_ANSWER:
        return 0.0, Status.UNREADABLE
    if isinstance(value, str) and value in VERDICTS:
        return VERDICTS[value], Status.SCORED
    return number_of(value) if not isinstance(value, list) else (math.nan, Status.UNPARSED)


def read_inspect_archive(path: Path) -> Source:
    """An `.eval` file: a zip of `header.json` and `summaries.json`, or of what a run that was stopped had written."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            header = next(
                (name for name in ("header.json", "_journal/start.json", "start.json") if name in names), None
            )
            if header is None:
                raise DataError(f"{path} is a zip file without header.json: no log of inspect_ai.")
            head = json.loads(_member(archive, header))
            if not isinstance(head, Mapping):
                raise DataError(f"{path}, {header}: expected an object.")
            if "status" not in head:
                head = {**head, "status": "started, not finished"}
            whole = next((name for name in ("summaries.json", "summary.json") if name in names), None)
            parts = [whole] if whole else sorted(name for name in names if re.search(r"summaries/\d+\.json$", name))
            rows: list[tuple[str, Any]] = []
            for part in parts or [name for name in names if name.startswith("samples/")]:
                found = json.loads(_member(archive, part))
                rows += [(f"{path}, {part}", row) for row in (found if isinstance(found, list) else [found])]
    except (zipfile.BadZipFile, EOFError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: a damaged log of inspect_ai ({error}).") from None
    return source_of(path, rows, head)


ZSTANDARD = 93  # inspect_ai's own choice since 2026; Python's zipfile reads it from 3.14 on


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    info = archive.getinfo(name)
    if info.compress_type != ZSTANDARD:
        return archive.read(name)
    import pyarrow

    file = archive.fp
    assert file is not None
    file.seek(info.header_offset + 26)  # the lengths of the name and of the extra field end the local header
    lengths = file.read(4)
    file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)
    try:
        packed = file.read(info.compress_size)
        return bytes(pyarrow.decompress(packed, decompressed_size=info.file_size, codec="zstd", asbytes=True))
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise zipfile.BadZipFile(str(error)) from None
