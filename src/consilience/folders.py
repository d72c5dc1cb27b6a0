"""Folders of data as hubs lay them out and `datasets` saves them: the files, or the table, of a split.

FOLDER/data/train-00000-of-00003.parquet ...   a data set of the Hub; its README.md may say which files are a split
FOLDER/*.jsonl, train/*.jsonl.gz ...           shards
FOLDER/state.json, data-*.arrow                `Dataset.save_to_disk`; of a DatasetDict a folder per split
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from consilience.errors import ConfigError, DataError, first_line, nearest

USUAL = "train"
SAVED = ("state.json", "dataset_dict.json")  # what `save_to_disk` leaves


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved the folder with `save_to_disk`."""
    return any((folder / name).is_file() for name in SAVED)


def saved_rows(folder: Path, split: str | None = None) -> Iterator[tuple[str, Any]]:
    """`(where, row)` of every row of a folder that `save_to_disk` wrote.

    Raises `DataError` where `datasets` cannot read it, or it has no such split.
    """
    datasets = _datasets(folder)
    try:
        found = datasets.load_from_disk(str(folder))
    except (ValueError, OSError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{folder}: not readable as a saved data set ({first_line(error)}).") from None
    if isinstance(found, datasets.DatasetDict):
        split = split_of(folder, found, split)
        found, folder = found[split], folder / split
    elif split not in (None, str(found.split)):
        raise DataError(f"{folder} is the split {found.split}; asked for was {split!r}. Leave out the split.")
    for number, row in enumerate(found, start=1):
        yield f"{folder}, row {number}", row


def shards_of(folder: Path, split: str | None = None) -> list[Path]:
    """The files of a split, in order: as the folder's README.md says, else by the names of files and folders.

    Raises `DataError` where there are none, or no such split.
    """
    datasets = _datasets(folder)
    try:
        found = datasets.load_dataset_builder(str(folder.resolve())).config.data_files
    except (ValueError, OSError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"{folder} is a folder without data that can be told: {first_line(error)}. Expected files ending in "
            ".parquet, .jsonl or .json, or what `save_to_disk` writes."
        ) from None
    if not found:
        raise DataError(f"{folder} holds no data. Expected files ending in .parquet, .jsonl or .json.")
    files = [Path(file) for file in found[split_of(folder, found, split)]]
    return [folder / file.relative_to(folder.resolve()) for file in files]


def split_of(place: Path | str, splits: Collection[Any], asked: str | None) -> str:
    """The split that is asked for; without one the only one, or `train`."""
    names = [str(name) for name in splits]
    if asked is None and len(names) == 1:
        return names[0]
    split = asked or USUAL
    if split not in names:
        said = f"has no split {split!r}" if asked else "has several splits"
        raise DataError(
            f"{place} {said}.{nearest(split, names)} Give one (`split` in a recipe), or a file: {', '.join(names)}."
        )
    return split


def _datasets(folder: Path) -> Any:
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"{folder} is a folder; for one of data: pip install 'consilience[hub]'. Files are read without."
        ) from None
    return datasets
