"""A log file as rows, before anyone knows what they mean."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from consilience.errors import DataError
from consilience.evaluate.logs.scores import printable
from consilience.records import UNREADABLE, read_rows

Row = tuple[str, Mapping[str, Any]]  # where it stands (file and line), and what it holds


class Source(NamedTuple):
    """The rows of a file, read as they are asked for, once; the first of them, and the header where there is one.

    `first` is the row by which the format is told; it is empty where there is no row.
    """

    path: Path
    rows: Iterator[Row]
    first: Mapping[str, Any]
    header: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What a model without a name is called: the file, or the folder where the file's name says nothing of it."""
        stem = self.path.name.removesuffix(".gz").rpartition(".")[0] or self.path.name
        named_by_folder = stem == "likelihood" or stem.startswith("task-")
        return printable(self.path.resolve().parent.name if named_by_folder else stem)


def source_of(path: Path, rows: Iterable[tuple[str, Any]], header: Mapping[str, Any] | None = None) -> Source:
    """A source of `rows`, each of which must be an object."""
    checked = _objects(rows)
    first = next(checked, None)
    return Source(path, chain([first], checked) if first else iter(()), first[1] if first else {}, header or {})


def read_text(path: Path) -> str:
    """The text of a file or of a .gz; raises `DataError` where it is none."""
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except UNREADABLE as error:
        raise DataError(f"{path}: not readable as UTF-8 text ({error}).") from None


def read_json(path: Path) -> Source:
    """A JSON file: a list of rows; or one object, whose `samples` are the rows and which itself is the header."""
    try:
        whole = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}).") from None
    header = whole if isinstance(whole, Mapping) else {}
    rows = whole.get("samples") or [] if isinstance(whole, Mapping) else whole
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(whole).__name__}; expected a list of scores, or a log with 'samples'.")
    return source_of(path, ((f"{path}, item {i}", row) for i, row in enumerate(rows, start=1)), header)


def read_lines(path: Path) -> Source:
    """A JSONL or Parquet file."""
    return source_of(path, read_rows(path))


def _objects(rows: Iterable[tuple[str, Any]]) -> Iterator[Row]:
    for where, row in rows:
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: got {type(row).__name__}, expected an object.")
        yield where, row
