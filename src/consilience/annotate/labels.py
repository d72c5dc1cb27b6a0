"""The file of labels that a run leaves: a line per row of the corpus, in its order, safe against being killed.

Lines are appended batch by batch and forced to disk; what a kill leaves of the last one is cut off when the run goes
on. So at most the batch in flight is coded again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from consilience.annotate.answers import Status
from consilience.annotate.coder import Annotation
from consilience.errors import DataError


def append(path: Path, annotations: Sequence[Annotation]) -> None:
    """The annotations at the end of the file, on the disk when this returns."""
    lines = "".join(json.dumps(annotation.to_json(), ensure_ascii=False) + "\n" for annotation in annotations)
    with path.open("ab") as file:
        # A lone surrogate in a reply, which UTF-8 cannot hold, is written as JSON's own escape.
        file.write(lines.encode("utf-8", "backslashreplace"))
        file.flush()
        os.fsync(file.fileno())


def ids_so_far(path: Path) -> Iterator[str]:
    """The ids of the complete lines, in order; an incomplete last line is cut off first."""
    if not path.is_file():
        return
    _cut_incomplete(path)
    for row in read_labels(path):
        yield row["id"]


def read_labels(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a label file: `id`, `label`, `status`, and what else the run kept."""
    if not path.is_file():
        raise DataError(f"no labels {path}. Run consilience annotate run first.")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except ValueError:
                raise DataError(
                    f"{path}, line {number}: not JSON; the run has not finished, or the file is damaged."
                ) from None


def put_in_place(path: Path, again: Path) -> int:
    """Lines of `path` that ended in an error give way to those of `again`, whose texts were coded anew in their order.

    Returns how many; `again` is then removed. Stopped anywhere, the same call ends alike: the file is replaced as a
    whole, and lines that took their places before find no error to take the place of.
    """
    if not again.is_file():
        return 0
    placed = 0
    _cut_incomplete(again)
    partial = path.with_name(path.name + ".partial")
    with path.open("rb") as old, partial.open("wb") as new, again.open("rb") as file:
        anew = next(file, None)
        for line in old:
            row = json.loads(line)
            if anew is not None and row["status"] == Status.ERROR and json.loads(anew)["id"] == row["id"]:
                line, anew, placed = anew, next(file, None), placed + 1
            new.write(line)
        new.flush()
        os.fsync(new.fileno())
    partial.rename(path)
    again.unlink()
    return placed


def _cut_incomplete(path: Path) -> None:
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        block = 1 << 16
        at = end
        while at > 0:
            begin = max(0, at - block)
            file.seek(begin)
            newline = file.read(at - begin).rfind(b"\n")
            if newline >= 0:
                if begin + newline + 1 < end:
                    file.truncate(begin + newline + 1)
                return
            at = begin
        file.truncate(0)
