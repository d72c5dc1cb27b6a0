"""The corpus: the rows of the user's table, known by their ids, read one after the other."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from consilience.annotate.recipe import Project
from consilience.annotate.tables import place_of, read_table, text_of
from consilience.errors import DataError


class Row(NamedTuple):
    """A row of the corpus. `values` are those of the columns that were asked for."""

    id: str
    text: str
    values: tuple[Any, ...] = ()


class TextsDigest:
    """What ids and texts are there, and in which order: the same for a table that has only gained other columns."""

    def __init__(self) -> None:
        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, row: Row) -> None:
        """The next row."""
        for part in (row.id, row.text):
            encoded = part.encode(errors="surrogatepass")
            self._hash.update(len(encoded).to_bytes(8, "little") + encoded)

    def __str__(self) -> str:
        return self._hash.hexdigest()


def corpus(project: Project, columns: Sequence[str] = (), *, text: str | None = None) -> Iterator[Row]:
    """The rows in order; `text` is another column than the recipe's to read as the text.

    Raises `DataError` at a column that is not there, and at an id that is blank or comes twice.
    """
    data = project.recipe.data
    path = project.file(data.path)
    table = read_table(path, data.encoding)
    text_at = place_of(table.columns, text or data.text, path, "column" if text else "data.text")
    id_at = None if data.id is None else place_of(table.columns, data.id, path, "data.id")
    if data.cluster is not None:
        place_of(table.columns, data.cluster, path, "data.cluster")
    places = [place_of(table.columns, name, path, "asked for") for name in columns]
    seen = array("Q")  # eight bytes an id: a million rows are 8 MB
    number = 0
    for number, row in enumerate(table.rows, start=1):
        id_ = str(number) if id_at is None else text_of(row[id_at])
        if id_at is not None:
            if not id_:
                raise DataError(f"{path}, row {number}: no id in column {data.id!r}.")
            hashed = hashlib.blake2b(id_.encode(errors="surrogatepass"), digest_size=8).digest()
            seen.append(int.from_bytes(hashed, "little"))
        yield Row(id_, text_of(row[text_at]), tuple(row[place] for place in places))
    if not number:
        raise DataError(f"{path} has no rows below its column names.")
    _refuse_twins(seen, path, data.id or "")


def _refuse_twins(seen: array[int], path: Path, column: str) -> None:
    ids = np.frombuffer(seen, dtype=np.uint64) if seen else np.zeros(0, dtype=np.uint64)
    order = np.argsort(ids, kind="stable")
    twins = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    if len(twins):
        first, second = order[twins[0]] + 1, order[twins[0] + 1] + 1
        raise DataError(f"{path}: rows {first} and {second} have one and the same id in column {column!r}.")


def rows_of(
    project: Project, ids: Collection[str], columns: Sequence[str] = (), *, text: str | None = None
) -> dict[str, Row]:
    """The rows with these ids, by id. Raises `DataError` naming ids that the corpus does not have."""
    wanted = {*ids}
    found = {row.id: row for row in corpus(project, columns, text=text) if row.id in wanted}
    if missing := [id_ for id_ in ids if id_ not in found]:
        how = f"column {project.recipe.data.id!r}" if project.recipe.data.id else "row numbers, from 1"
        raise DataError(
            f"{len(missing)} gold ids are not in {project.recipe.data.path} ({how}): {', '.join(missing[:3])} ..."
        )
    return found
