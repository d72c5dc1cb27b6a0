"""The rows of a recipe's data: of a file, of a folder, or of a `datasets` data set by its name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Protocol

from consilience.errors import ConfigError, DataError, first_line
from consilience.folders import split_of
from consilience.pipelines.places import Places
from consilience.records import read_rows
from consilience.run import fingerprint
from consilience.weights.hub import broken_connections

Rows = Iterator[tuple[str, Any]]  # where a row is, and the row


class Named(Protocol):
    """A block of a recipe that names data."""

    @property
    def path(self) -> str | None: ...
    @property
    def split(self) -> str | None: ...
    @property
    def limit(self) -> int | None: ...


def rows_of(named: Named, places: Places) -> Rows:
    """The first `limit` rows of the data, each with its place for an error's text.

    Raises `DataError` where there is no such file, data set or split, or a row cannot be read.
    """
    name = str(named.path)
    if places.is_data_set(name):
        return _of_data_set(name, named)
    return islice(read_rows(places.file(name), split=named.split), named.limit)


def fingerprints(data: Mapping[str, Named], files: Mapping[str, str], places: Places) -> dict[str, str]:
    """A hash of all data and files that a recipe names, by key; what the run makes itself follows from its seeds.

    Raises `DataError` where one is missing. Of a data set, whose name stays the same when its rows change, the rows
    are hashed.
    """
    names = {key: str(named.path) for key, named in data.items()} | dict(files)
    for key, name in names.items():
        file = places.file(name)
        there = file.is_file() if key in files else file.exists() or places.is_data_set(name)
        if not (there or places.is_made_here(name)):
            raise DataError(f"{key}: no file {name!r}. Paths are relative to the recipe ({places.recipe_folder}).")
    return {
        key: _fingerprint(name, data.get(key), places) for key, name in names.items() if not places.is_made_here(name)
    }


def _fingerprint(name: str, named: Named | None, places: Places) -> str:
    """Of the file or folder; else of the rows of the data set that is `named`."""
    file = places.file(name)
    if named is None or file.exists():
        return fingerprint(file)
    return digest_of(row for _, row in rows_of(named, places))


def digest_of(rows: Iterable[Any]) -> str:
    """A hash of rows in their order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, default=str).encode())
    return digest.hexdigest()[:16]


def _of_data_set(name: str, named: Named) -> Rows:
    """Rows of a data set from the hub or its cache."""
    try:
        import datasets
    except ImportError:
        raise ConfigError(f"{name!r} is no file; for a data set of the hub: pip install 'consilience[hub]'.") from None
    try:
        split = named.split or split_of(name, datasets.get_dataset_split_names(name), None)
        rows = datasets.load_dataset(name, split=split if named.limit is None else f"{split}[:{named.limit}]")
    except (datasets.exceptions.DatasetsError, ValueError, *broken_connections()) as error:
        raise DataError(
            f"{name!r} is no file, and no data set can be loaded by that name: {first_line(error)}."
        ) from None
    for number, row in enumerate(rows):
        yield f"{name}[{split}], row {number}", row
