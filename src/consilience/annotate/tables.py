"""The user's tables: CSV, TSV, Parquet, Excel, SPSS and Stata, read row by row and written back with columns beside.

CSV, TSV, Parquet and Excel are streamed both ways; SPSS and Stata files are read in chunks and written whole. Their
variable labels, value labels and missing-value ranges come back as they were. CSV cells stay the text that they are;
of an Excel file the first sheet is read.
"""

from __future__ import annotations

import csv
import gzip
import importlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from consilience.errors import BackendError, DataError, nearest, pick

CHUNK = 4096  # rows held at a time
LONGEST_CELL = 1 << 27


class Rows(NamedTuple):
    """A table that is being read: its columns, and its rows one by one, numbered from 1 in errors."""

    columns: tuple[str, ...]
    rows: Iterator[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class NewColumn:
    """A column to write beside the user's. `codes` are its value labels in SPSS and Stata, where it is a number."""

    name: str
    label: str = ""
    codes: Mapping[int, str] | None = None
    numeric: bool = False


def read_table(path: Path, encoding: str = "utf-8") -> Rows:
    """The table at `path`, by its ending. Raises `DataError` where it cannot be read, naming the row if it is one.

    `encoding` is that of CSV and TSV files; the others say themselves.
    """
    if not path.is_file():
        beside = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise DataError(f"no file {path}.{nearest(path.name, beside)} Paths in a recipe are relative to the recipe.")
    return pick(READERS, kind_of(path), "kind of table")(path, encoding)


def kind_of(path: Path) -> str:
    """The ending that says how a table is read: csv, tsv, parquet, xlsx, sav, dta."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind not in READERS:
        raise DataError(f"{path} ends in .{kind}; expected one of .{', .'.join(READERS)} (.csv and .tsv may be .gz).")
    return kind


def records(path: Path, encoding: str = "utf-8") -> Iterator[dict[str, Any]]:
    """The rows of a table, each a mapping from column to value."""
    table = read_table(path, encoding)
    return (dict(zip(table.columns, row)) for row in table.rows)


def place_of(columns: Sequence[str], name: str, path: Path, key: str) -> int:
    """Where column `name` stands; raises `DataError` naming the recipe's `key` and the columns that there are."""
    if name not in columns:
        raise DataError(
            f"{path} has no column {name!r} ({key}).{nearest(name, columns)} There are: {', '.join(columns)}."
        )
    return columns.index(name)


def text_of(cell: Any) -> str:
    """A cell as text: nothing for a missing one, and whole numbers without `.0`."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell)


def write_beside(
    source: Path, target: Path, new: Sequence[NewColumn], values: Iterable[Sequence[Any]], encoding: str = "utf-8"
) -> None:
    """The table at `source` with `new` columns beside its own, at `target`; whole or not at all.

    `values` has a row for each of the source's, None where there is none. Both have one ending, but a table of any
    kind may become a CSV or TSV file. Raises `DataError` where a new column has the name of an old one.
    """
    columns = read_table(source, encoding).columns
    for column in new:
        if column.name in columns:
            raise DataError(f"{source} has a column {column.name!r} already; set `prefix` in the recipe to another.")
    kind = kind_of(target)
    if kind != kind_of(source) and kind not in ("csv", "tsv"):
        raise DataError(f"{source.name} can be written as .{kind_of(source)}, .csv or .tsv, not as .{kind}.")
    with _whole(target) as partial:
        WRITERS[kind](source, partial, new, iter(values), encoding)


@contextmanager
def _whole(target: Path) -> Iterator[Path]:
    """A temporary name beside `target`, with its ending, renamed to it when all went well."""
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".partial-"))
    try:
        yield folder / target.name
        os.replace(folder / target.name, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read_csv(path: Path, encoding: str, delimiter: str = ",") -> Rows:
    rows = _csv_rows(path, encoding, delimiter)
    header = next(rows, None)
    if header is None:
        raise DataError(f"{path} is empty; expected a line of column names and rows below.")
    columns = tuple(name.strip() for name in header)
    if doubled := sorted({name for name in columns if columns.count(name) > 1}):
        raise DataError(f"{path} has {len(columns)} columns, but two are called {doubled[0]!r}. Rename one.")
    return Rows(columns, _even(rows, path, columns))


def _csv_rows(path: Path, encoding: str, delimiter: str) -> Iterator[tuple[str, ...]]:
    csv.field_size_limit(LONGEST_CELL)
    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    opened: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        # Bytes that are no text are kept as lone surrogates until the row that holds them is known.
        with opened(path, "rt", encoding=encoding, errors="surrogateescape", newline="") as lines:
            for number, row in enumerate(csv.reader(lines, delimiter=delimiter)):
                if row and (bad := _undecodable(row)):
                    place, byte = bad
                    where = f"row {number}" if number else "the line of column names"
                    raise DataError(
                        f"{path}, {where}, column {place + 1}: byte 0x{byte:02x} is not {encoding.removesuffix('-sig')}"
                        " text. Set data.encoding, for example to cp1252 (Windows) or latin-1."
                    )
                if row:  # a blank line is no row
                    yield tuple(row)
    except LookupError:
        raise DataError(
            f"no text encoding is called {encoding!r} (data.encoding); try utf-8, cp1252 or latin-1."
        ) from None
    except csv.Error as error:
        raise DataError(f"{path}, after row {number}: not readable as a table ({error}).") from None
    except (UnicodeError, gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{path}, after row {number}: not readable as {encoding} text ({error}).") from None


def _undecodable(row: Sequence[str]) -> tuple[int, int] | None:
    """The place of the first cell with a byte that was no text, and the byte."""
    for place, cell in enumerate(row):
        if not cell.isascii() and (found := re.search("[\udc80-\udcff]", cell)):
            return place, ord(found[0]) - 0xDC00
    return None


def _even(rows: Iterator[tuple[str, ...]], path: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise DataError(
                f"{path}, row {number}: {len(row)} cells, expected {len(columns)}. "
                "A cell that holds the separator or a line break must stand in double quotes."
            )
        yield row


def _read_tsv(path: Path, encoding: str) -> Rows:
    return _read_csv(path, encoding, "\t")


def _read_parquet(path: Path, encoding: str) -> Rows:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        file = parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error}).") from None
    batches = (batch.to_pydict().values() for batch in file.iter_batches(batch_size=CHUNK))
    return Rows(tuple(file.schema_arrow.names), chain.from_iterable(zip(*batch) for batch in batches))


def _read_excel(path: Path, encoding: str) -> Rows:
    import zipfile

    openpyxl = library("openpyxl")
    try:
        sheet = openpyxl.load_workbook(path, read_only=True, data_only=True).worksheets[0]
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(f"{path}: not an .xlsx workbook ({error}).") from None
    rows = sheet.iter_rows(values_only=True)
    header = next(rows, ())
    if not any(cell is not None for cell in header):
        raise DataError(f"the first sheet of {path} is empty; expected column names in its first row.")
    width = max(place for place, cell in enumerate(header) if cell is not None) + 1
    columns = tuple(text_of(cell) for cell in header[:width])
    padded = ((*row, *[None] * width)[:width] for row in rows)
    return Rows(columns, (row for row in padded if any(cell is not None for cell in row)))


def _read_labelled(path: Path, encoding: str) -> Rows:
    """SPSS and Stata: codes as they are stored, without their value labels."""
    pyreadstat = library("pyreadstat")
    read = pyreadstat.read_sav if kind_of(path) == "sav" else pyreadstat.read_dta
    try:
        _, about = read(path, metadataonly=True)
    except (pyreadstat.ReadstatError, pyreadstat.PyreadstatError) as error:
        raise DataError(f"{path}: not readable as .{kind_of(path)} ({error}).") from None

    def rows() -> Iterator[tuple[Any, ...]]:
        begin = 0
        while True:
            columns, _ = read(path, row_offset=begin, row_limit=CHUNK, user_missing=True, output_format="dict")
            found = len(next(iter(columns.values()), ()))
            yield from zip(*columns.values())
            begin += found
            if found < CHUNK:
                return

    return Rows(tuple(about.column_names), rows())


READERS: dict[str, Callable[[Path, str], Rows]] = {
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "xlsx": _read_excel,
    "sav": _read_labelled,
    "dta": _read_labelled,
}


def _write_csv(
    source: Path,
    target: Path,
    new: Sequence[NewColumn],
    values: Iterator[Sequence[Any]],
    encoding: str,
    delimiter: str = ",",
) -> None:
    table = read_table(source, encoding)
    text = encoding if kind_of(source) in ("csv", "tsv") else "utf-8"
    opened: Callable[..., Any] = gzip.open if target.suffix == ".gz" else open
    with opened(target, "wt", encoding=text, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        writer.writerow([*table.columns, *(column.name for column in new)])
        for row, added in zip(table.rows, values, strict=True):
            writer.writerow([*map(text_of, row), *map(_short, added)])


def _short(value: Any) -> str:
    """A number of ours in six digits; the user's own keep all of theirs."""
    cut = isinstance(value, float) and math.isfinite(value) and not value.is_integer()
    return f"{value:.6g}" if cut else text_of(value)


def _write_tsv(
    source: Path, target: Path, new: Sequence[NewColumn], values: Iterator[Sequence[Any]], encoding: str
) -> None:
    _write_csv(source, target, new, values, encoding, "\t")


def _write_parquet(
    source: Path, target: Path, new: Sequence[NewColumn], values: Iterator[Sequence[Any]], encoding: str
) -> None:
    import pyarrow
    import pyarrow.parquet as parquet

    file = parquet.ParquetFile(source)
    schema = file.schema_arrow
    for column in new:
        schema = schema.append(pyarrow.field(column.name, pyarrow.float64() if column.numeric else pyarrow.string()))
    with parquet.ParquetWriter(target, schema) as writer:
        for batch in file.iter_batches(batch_size=CHUNK):
            rows = [next(values) for _ in range(batch.num_rows)]
            kinds = [schema.field(column.name).type for column in new]
            added = [pyarrow.array(list(cells), kind) for cells, kind in zip(zip(*rows), kinds)]
            writer.write_batch(pyarrow.RecordBatch.from_arrays([*batch.columns, *added], schema=schema))


def _write_excel(
    source: Path, target: Path, new: Sequence[NewColumn], values: Iterator[Sequence[Any]], encoding: str
) -> None:
    openpyxl = library("openpyxl")
    table = read_table(source, encoding)
    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet(source.stem[:31])
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    def cell(value: Any) -> Any:
        """A text as a text: one that begins with "=" would else become a formula in the reader's hands."""
        if not isinstance(value, str):
            return value
        made = WriteOnlyCell(sheet, value=ILLEGAL_CHARACTERS_RE.sub("\ufffd", value))
        made.data_type = "s"
        return made

    sheet.append([cell(name) for name in (*table.columns, *(column.name for column in new))])
    for row, added in zip(table.rows, values, strict=True):
        sheet.append([cell(value) for value in (*row, *added)])
    book.save(target)


def _write_labelled(
    source: Path, target: Path, new: Sequence[NewColumn], values: Iterator[Sequence[Any]], encoding: str
) -> None:
    pandas, pyreadstat = library("pandas"), library("pyreadstat")
    spss = kind_of(source) == "sav"
    frame, about = (pyreadstat.read_sav if spss else pyreadstat.read_dta)(source, user_missing=True)
    labels = dict(zip(about.column_names, about.column_labels))
    value_labels = dict(about.variable_value_labels)
    for column, cells in zip(new, zip(*values)):
        codes = {label: code for code, label in (column.codes or {}).items()}
        numeric = column.numeric or bool(codes)
        given = [codes.get(cell) if codes else cell for cell in cells]
        kept = [math.nan if cell is None else float(cell) for cell in given] if numeric else map(text_of, given)
        frame[column.name] = pandas.Series([*kept], index=frame.index, dtype="float64" if numeric else "object")
        labels[column.name] = column.label
        if column.codes:
            value_labels[column.name] = dict(column.codes)
    of_columns = {"column_labels": [labels.get(name) or "" for name in frame.columns], "file_label": about.file_label}
    if spss:
        ranges = {name: found for name, found in about.missing_ranges.items() if found}
        pyreadstat.write_sav(
            frame,
            target,
            variable_value_labels=value_labels,
            missing_ranges=ranges or None,
            variable_measure={k: v for k, v in about.variable_measure.items() if v != "unknown"},
            variable_format={k: v for k, v in about.original_variable_types.items() if v},
            **of_columns,
        )
    else:
        pyreadstat.write_dta(frame, target, variable_value_labels=value_labels, version=15, **of_columns)


WRITERS: dict[str, Callable[[Path, Path, Sequence[NewColumn], Iterator[Sequence[Any]], str], None]] = {
    "csv": _write_csv,
    "tsv": _write_tsv,
    "parquet": _write_parquet,
    "xlsx": _write_excel,
    "sav": _write_labelled,
    "dta": _write_labelled,
}


def library(name: str) -> Any:
    """A package of the extra `annotate`. Raises `BackendError` where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise BackendError(f"this needs the package {name}: pip install 'consilience[annotate]'.") from None
