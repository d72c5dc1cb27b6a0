"""The corpus: the rows of the user's table, known by their ids, read one after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from consilience.annotate.recipe import Project
from consilience.annotate.tables import place_of, read_table, text_of
from consilience.errors import DataError


class Row(NamedTuple):
    """A row of the corpus. `values` are those of the columns that were asked for."""

    id: str
    text: str
    values: tuple[Any, ...] = ()


def corpus(project: Project, columns: Sequence[str] = ()) -> Iterator[Row]:
    """The rows in order. Raises `DataError` at a column that is not there, an id that is blank or comes twice."""
    data = project.recipe.data
    path = project.file(data.path)
    table = read_table(path, data.encoding)
    text_at = place_of(table.columns, data.text, path, "data.text")
    id_at = None if data.id is None else place_of(table.columns, data.id, path, "data.id")
    if data.cluster is not None:
        place_of(table.columns, data.cluster, path, "data.cluster")
    places = [place_of(table.columns, name, path, "asked for") for name in columns]
    seen: set[bytes] = set()
    number = 0
    for number, row in enumerate(table.rows, start=1):
        id_ = str(number) if id_at is None else text_of(row[id_at])
        if id_at is not None:
            if not id_:
                raise DataError(f"{path}, row {number}: no id in column {data.id!r}.")
            key = hashlib.blake2b(id_.encode(errors="surrogatepass"), digest_size=8).digest()  # a million ids in memory
            if key in seen:
                raise DataError(f"{path}, row {number}: the id {id_!r} comes twice in column {data.id!r}.")
            seen.add(key)
        yield Row(id_, text_of(row[text_at]), tuple(row[place] for place in places))
    if not number:
        raise DataError(f"{path} has no rows below its column names.")


def rows_of(project: Project, ids: Collection[str], columns: Sequence[str] = ()) -> dict[str, Row]:
    """The rows with these ids, by id. Raises `DataError` naming ids that the corpus does not have."""
    found = {row.id: row for row in corpus(project, columns) if row.id in ids}
    if missing := [id_ for id_ in ids if id_ not in found]:
        how = f"column {project.recipe.data.id!r}" if project.recipe.data.id else "row numbers, from 1"
        raise DataError(
            f"{len(missing)} gold ids are not in {project.recipe.data.path} ({how}): {', '.join(missing[:3])} ..."
        )
    return found
