"""Spreadsheets of a coder's texts, out and back in: CSV, TSV or Excel, strict about what comes back.

Out: identifier, text, label (and its code where the codebook has codes), note; what the coder has coded is filled in.
Excel files have a second sheet, the codebook. Nothing of the design or of a model is in them. Text that a spreadsheet
would run as a formula is kept from it. Back: every label is checked against the codebook, every text against the one
that was drawn, and all of a file is taken or nothing.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from consilience.annotate.codebook import Codebook
from consilience.annotate.coding.labels import shown
from consilience.annotate.coding.store import CODED, CODER, UNCLEAR, GoldStore
from consilience.annotate.coding.values import checked
from consilience.annotate.tables import kind_of, place_of, read_table, text_of
from consilience.errors import ConfigError, DataError, nearest
from consilience.run import write_text

UNCLEAR_CELL = "(unclear)"
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
FAULTS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Imported:
    """What a spreadsheet brought: codings new and as they were before, and rows left empty."""

    coder: str
    new: int
    same: int
    replaced: int
    empty: int


def write_sheet(store: GoldStore, codebook: Codebook, coder: str, path: Path, *, force: bool = False) -> int:
    """Writes the texts that `coder` has coded or may code to a spreadsheet, in coding order; how many.

    Raises `ConfigError` where `path` is there already and not `force`, and where there is nothing to code.
    """
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already. Give another name, or --force to overwrite it.")
    kind = kind_of(path)
    if kind not in ("csv", "tsv", "xlsx") or path.suffix == ".gz":
        raise ConfigError(f"{path} ends in {path.suffix}; a spreadsheet to code in is .xlsx, .csv or .tsv.")
    coder = store.coder_called(coder) or coder
    head = ["id", "text", codebook.variable, *([f"{codebook.variable}_code"] if _has_codes(codebook) else []), "note"]
    rows = [head]
    others = store.codings()
    for text in store.texts():
        mine = store.coding_of(text.item, coder)
        by_others = {c.coder for c in others.get(text.item, ()) if c.role == CODER and c.coder != coder}
        if mine is None and len(by_others) >= text.wanted:
            continue
        value = note = ""
        if mine is not None:
            note = mine.note
            value = {CODED: shown(mine.value, codebook), UNCLEAR: UNCLEAR_CELL}.get(mine.status, "")
        code = [_code_of(value, codebook)] if _has_codes(codebook) else []
        rows.append([text.item, text.text, value, *code, note])
    if len(rows) == 1:
        raise ConfigError(
            f"no text waits for {coder}: each has its coders. consilience gold plan with --double 1 or --coders 3 lets "
            "more people code more of them."
        )
    if kind == "xlsx":
        _write_excel(rows, codebook, path)
    else:
        table = io.StringIO()
        writer = csv.writer(table, delimiter="," if kind == "csv" else "\t", lineterminator="\n")
        writer.writerows([[_kept_from_running(cell) for cell in row] for row in rows])
        write_text(path, "\ufeff" + table.getvalue())  # the mark by which Excel takes a CSV file as UTF-8
    return len(rows) - 1


def read_sheet(
    store: GoldStore,
    codebook: Codebook,
    coder: str,
    path: Path,
    *,
    id_column: str = "id",
    label_column: str | None = None,
    text_column: str = "text",
    never: Mapping[str, str] | None = None,
    replace: bool = False,
    encoding: str = "utf-8",
) -> Imported:
    """Takes the labels of a finished spreadsheet as `coder`'s codings: all of them, or nothing at a fault.

    The label stands in `label_column` (else the codebook's variable, else `label`) as a word or a code, or in a column
    of codes beside it. A column of texts, if there is one, must be that of the drawn texts. Raises `DataError` naming
    row and column of every fault (the first few): an unknown text or label, a text that is `never` gold, and a label
    other than the one that `coder` gave before, unless it may `replace` that; the former one stays in the history.
    """
    table = read_table(path, encoding)
    cells_of = _cell_reader(table.columns, path, codebook, id_column, label_column, text_column)
    drawn = {text.item: text.text for text in store.texts()}
    faults: list[str] = []
    found: dict[str, tuple[str, str, str]] = {}
    seen: set[str] = set()
    empty = 0
    for number, row in enumerate(table.rows, start=1):
        cells = cells_of(row)
        try:
            _check_row(cells, drawn, seen, never or {}, id_column, text_column)
            if cells.label or cells.code:
                found[cells.item] = (*_read_label(cells, codebook, drawn[cells.item]), cells.note)
            else:
                empty += 1
        except DataError as error:
            faults.append(f"row {number}, {error}")
    name = store.coder_called(coder)
    former = {item: store.coding_of(item, name) for item in found} if name else {}
    changed = []
    same = 0
    for item, before in former.items():
        if before is None or before.status not in (CODED, UNCLEAR):
            continue
        status, value, note = found[item]
        if (before.status, before.value, before.note) == (status, value, note):
            same += 1
            del found[item]
        elif (before.status, before.value) != (status, value) and not replace:
            faults.append(
                f"{item!r} was coded {before.value or before.status!r} by {name} and is {value or status!r} here; "
                "nothing is overwritten without --replace."
            )
        else:
            changed.append(item)
    if faults:
        more = f" And {len(faults) - FAULTS_SHOWN} more." if len(faults) > FAULTS_SHOWN else ""
        raise DataError(f"{path}: {' '.join(faults[:FAULTS_SHOWN])}{more}")
    name = store.add_coder(coder)
    rows = [(item, *coding) for item, coding in found.items()]
    store.code_many(rows, name, codebook=codebook.digest, origin=path.name)
    return Imported(name, len(found) - len(changed), same, len(changed), empty)


class _Cells(NamedTuple):
    """What a row says, and what the column of its label is called."""

    item: str
    label: str
    code: str
    note: str
    text: str | None
    label_column: str


def _cell_reader(
    columns: Sequence[str], path: Path, codebook: Codebook, id_column: str, label_column: str | None, text_column: str
) -> Callable[[Sequence[Any]], _Cells]:
    """Finds the columns of a spreadsheet, and gives the function that reads a row of it."""
    id_at = place_of(columns, id_column, path, "--id")
    name = label_column or next((n for n in (codebook.variable, "label") if n in columns), codebook.variable)
    label_at = place_of(columns, name, path, "--label")
    code_name = f"{codebook.variable}_code"
    has_code = _has_codes(codebook) and code_name in columns and label_column is None

    def cell(row: Sequence[Any], column: str) -> str:
        return _back(text_of(row[columns.index(column)]))

    def cells(row: Sequence[Any]) -> _Cells:
        label = _back(text_of(row[label_at])).strip()
        return _Cells(
            item=_back(text_of(row[id_at])).strip(),
            label=label,
            code=cell(row, code_name).strip() if has_code else "",
            note=cell(row, "note") if "note" in columns else "",
            text=text_of(row[columns.index(text_column)]) if text_column in columns else None,
            label_column=name if label or not has_code else code_name,
        )

    return cells


def _check_row(
    cells: _Cells,
    drawn: Mapping[str, str],
    seen: set[str],
    never: Mapping[str, str],
    id_column: str,
    text_column: str,
) -> None:
    """Raises `DataError` where a row is not, once, of a text that was drawn and may be gold."""
    item = cells.item
    if item not in drawn:
        raise DataError(f"column {id_column}: {item!r} is not in the gold sample{nearest(item, drawn) or '.'}")
    if item in seen:
        raise DataError(f"column {id_column}: {item!r} a second time.")
    seen.add(item)
    if cells.text is not None and not _same_text(cells.text, drawn[item]):
        raise DataError(f"column {text_column}: not the text of {item!r}; were rows moved or sorted apart?")
    if shown_in := never.get(" ".join(drawn[item].split())):
        raise DataError(f"column {id_column}: models are shown {item!r} as an example ({shown_in}); it cannot be gold.")


def _read_label(cells: _Cells, codebook: Codebook, text: str) -> tuple[str, str]:
    """Status and value of a row's label and code."""
    if UNCLEAR_CELL in (cells.label, cells.code):
        return UNCLEAR, ""
    try:
        values = {checked(given, codebook, text) for given in (cells.label, cells.code) if given}
    except DataError as error:
        raise DataError(f"column {cells.label_column}: {error}") from None
    if len(values) > 1:
        raise DataError(
            f"column {cells.label_column}: the label {cells.label!r} and the code {cells.code!r} beside it are of two "
            "labels."
        )
    return CODED, values.pop()


def _has_codes(codebook: Codebook) -> bool:
    return any(label.code is not None for label in codebook.labels)


def _code_of(name: str, codebook: Codebook) -> str:
    return next((str(label.code) for label in codebook.labels if label.name == name and label.code is not None), "")


def _kept_from_running(cell: str) -> str:
    return f"'{cell}" if cell.startswith(FORMULA_STARTS) else cell


def _back(cell: str) -> str:
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA_STARTS) else cell


def _same_text(given: str, drawn: str) -> bool:
    """Whether it is the same text, whatever a spreadsheet did to its blanks and line ends, or we to its first sign."""
    return "".join(drawn.split()) in ("".join(given.split()), "".join(_back(given).split()))


def _write_excel(rows: Sequence[Sequence[Any]], codebook: Codebook, path: Path) -> None:
    try:
        from openpyxl import Workbook
        from openpyxl.cell import WriteOnlyCell
        from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE
        from openpyxl.styles import Alignment
        from openpyxl.worksheet.datavalidation import DataValidation
    except ImportError:
        raise ConfigError("an Excel file needs the package openpyxl: pip install 'consilience[annotate]'.") from None

    book = Workbook(write_only=True)

    def cell(sheet: Any, value: str) -> Any:
        made = WriteOnlyCell(sheet, value=ILLEGAL_CHARACTERS_RE.sub("\ufffd", value))
        made.data_type = "s"  # never a formula
        made.alignment = Alignment(wrap_text=True, vertical="top")
        return made

    sheet = book.create_sheet("coding")
    sheet.freeze_panes = "C2"
    for column, width in {"A": 14, "B": 90, "C": 22}.items():
        sheet.column_dimensions[column].width = width
    names = ",".join(codebook.names)
    if codebook.names and '"' not in names and len(names) < 250 and not any("," in name for name in codebook.names):
        choice = DataValidation(
            type="list", formula1=f'"{names},{UNCLEAR_CELL}"', allow_blank=True, showErrorMessage=False
        )
        choice.add(f"C2:C{len(rows) + 1}")
        sheet.data_validations.append(choice)
    for row in rows:
        sheet.append([cell(sheet, value) for value in row])
    definitions = book.create_sheet("codebook")
    definitions.column_dimensions["A"].width = 120
    for line in codebook.as_markdown().splitlines():
        definitions.append([cell(definitions, line)])
    partial = path.with_name(f"{path.stem}.partial.xlsx")
    book.save(partial)
    partial.rename(path)
