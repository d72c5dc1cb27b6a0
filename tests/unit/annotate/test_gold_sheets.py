"""Spreadsheets out and back in: what was filled in comes back, what is wrong is named by row and column."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from gold_example import MULTI, NOMINAL, code, gold_store, gold_texts

from consilience.annotate.coding.sheets import Imported, read_sheet, write_sheet
from consilience.annotate.coding.store import GoldStore
from consilience.errors import ConfigError, DataError

Edit = Callable[[list[list[str]]], object]
HEAD = ["id", "text", "mood", "mood_code", "note"]


def edited(path: Path, edit: Edit) -> Path:
    """A CSV file as a spreadsheet gives it back, after `edit`."""
    rows = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
    edit(rows)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def values(store: GoldStore, coder: str) -> dict[str, str]:
    return {item: c.value for item, codings in store.codings().items() for c in codings if c.coder == coder}


@pytest.fixture
def store(tmp_path: Path) -> GoldStore:
    return gold_store(tmp_path)


@pytest.fixture
def sheet(store: GoldStore, tmp_path: Path) -> Path:
    write_sheet(store, NOMINAL, "anna", tmp_path / "anna.csv")
    return tmp_path / "anna.csv"


def fill(*cells: Sequence[str]) -> Edit:
    def edit(rows: list[list[str]]) -> None:
        for row, (label, number) in zip(rows[1:], cells):
            row[2:4] = [label, number]

    return edit


def test_words_and_codes_come_back(store: GoldStore, sheet: Path) -> None:
    rows = list(csv.reader(sheet.open(encoding="utf-8-sig")))
    assert rows[0] == HEAD
    assert [row[0] for row in rows[1:]] == [f"t{i}" for i in range(6)]
    edited(sheet, fill(("sad", ""), ("", "1.0"), ("Angry", "3"), ("3", ""), ("(unclear)", "")))
    assert read_sheet(store, NOMINAL, "anna", sheet) == Imported("anna", new=5, same=0, replaced=0, empty=1)
    assert values(store, "anna") == {"t0": "sad", "t1": "glad", "t2": "angry", "t3": "angry", "t4": ""}
    assert store.coding_of("t4", "anna").status == "unclear"  # type: ignore[union-attr]
    assert read_sheet(store, NOMINAL, "anna", sheet) == Imported("anna", new=0, same=5, replaced=0, empty=1)
    assert {row["origin"] for row in store.history()} == {"anna.csv"}


def test_what_is_coded_goes_out_and_what_others_coded_does_not(store: GoldStore, tmp_path: Path) -> None:
    code(store, "anna", "t0", "sad", note="so sad")
    code(store, "ben", "t3", "glad")
    assert write_sheet(store, NOMINAL, "anna", tmp_path / "anna.tsv") == 5
    rows = list(csv.reader((tmp_path / "anna.tsv").open(encoding="utf-8-sig"), delimiter="\t"))
    assert rows[1] == ["t0", "Text number 0.", "sad", "2", "so sad"]
    assert "t3" not in [row[0] for row in rows]


def test_excel_there_and_back(store: GoldStore, tmp_path: Path) -> None:
    from openpyxl import load_workbook

    write_sheet(store, NOMINAL, "anna", tmp_path / "anna.xlsx")
    book = load_workbook(tmp_path / "anna.xlsx")
    assert book.sheetnames == ["coding", "codebook"]
    assert [cell.value for cell in book["coding"][1]] == HEAD
    book["coding"]["C2"] = "sad"
    book["coding"]["D3"] = 1  # a number, as Excel makes of a typed code
    book.save(tmp_path / "anna.xlsx")
    assert read_sheet(store, NOMINAL, "anna", tmp_path / "anna.xlsx").new == 2
    assert values(store, "anna") == {"t0": "sad", "t1": "glad"}


@pytest.mark.parametrize("text", ["=cmd|'/c calc'!A1", "+1 for this", "-", "@user hi", "\tindented", "'=quoted'"])
@pytest.mark.parametrize("kind", ["csv", "xlsx"])
def test_texts_that_a_spreadsheet_would_run(tmp_path: Path, text: str, kind: str) -> None:
    store = gold_store(tmp_path, texts=[replace(gold_texts(1)[0], text=text)])
    path = tmp_path / f"sheet.{kind}"
    write_sheet(store, NOMINAL, "anna", path)
    if kind == "csv":
        rows = list(csv.reader(path.open(encoding="utf-8-sig", newline="")))
        assert not rows[1][1].startswith(("=", "+", "-", "@", "\t"))
        edited(path, fill(("sad", "")))
    else:
        from openpyxl import load_workbook

        book = load_workbook(path)
        assert book["coding"]["B2"].data_type == "s"
        book["coding"]["C2"] = "sad"
        book.save(path)
    assert read_sheet(store, NOMINAL, "anna", path).new == 1  # the text is still that of the sample


def test_several_labels_and_none(tmp_path: Path) -> None:
    store = gold_store(tmp_path, MULTI)
    path = tmp_path / "s.csv"
    path.write_text("id,topics\nt0,play|work\nt1,(none)\nt2,\n")
    assert read_sheet(store, MULTI, "anna", path) == Imported("anna", new=2, same=0, replaced=0, empty=1)
    assert values(store, "anna") == {"t0": "work|play", "t1": ""}
    write_sheet(store, MULTI, "anna", tmp_path / "out.csv")
    assert "t1,Text number 1.,(none)," in (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (fill(("gald", "")), "row 1, column mood: 'gald' is no label of the codebook. Did you mean 'glad'?"),
        (fill(("", "7")), "row 1, column mood_code: '7' is no label of the codebook."),
        (fill(("glad", "2")), "row 1, column mood: the label 'glad' and the code '2' beside it are of two labels."),
        (lambda rows: rows[2].__setitem__(0, "t99"), "row 2, column id: 't99' is not in the gold sample"),
        (lambda rows: rows.insert(2, rows[1]), "row 2, column id: 't0' a second time."),
        (lambda rows: rows[3].__setitem__(1, "Other."), "row 3, column text: not the text of 't2'; were rows moved"),
        (lambda rows: rows[0].__setitem__(2, "mod"), "has no column 'mood' (--label). Did you mean 'mod'?"),
        (fill(*[("bad", "")] * 5), "And 2 more."),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_taken(store: GoldStore, sheet: Path, edit: Edit, said: str) -> None:
    edited(sheet, edit)
    with pytest.raises(DataError) as error:
        read_sheet(store, NOMINAL, "carla", sheet)
    assert said in str(error.value)
    assert store.codings() == {}
    assert "carla" not in store.coders()


def test_bytes_that_are_no_text_are_named_by_row(store: GoldStore, tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("id,mood\nt0,glad\nt1,fröhlich\n".encode("latin-1"))
    with pytest.raises(DataError, match="row 2, column 2: byte 0xf6 is not utf-8"):
        read_sheet(store, NOMINAL, "anna", tmp_path / "latin.csv")


def test_gold_that_models_are_shown_is_refused(store: GoldStore, tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("id,mood\nt0,glad\n")
    with pytest.raises(DataError, match=r"row 1, column id: models are shown 't0' as an example \(the codebook\)"):
        read_sheet(store, NOMINAL, "anna", tmp_path / "s.csv", never={"Text number 0.": "the codebook"})


def test_other_labels_than_before_take_replace(store: GoldStore, tmp_path: Path) -> None:
    code(store, "anna", "t0", "glad")
    (tmp_path / "s.csv").write_text("id,mood\nt0,sad\nt1,sad\n")
    with pytest.raises(DataError, match="'t0' was coded 'glad' by anna and is 'sad' here; nothing is overwritten"):
        read_sheet(store, NOMINAL, "Anna ", tmp_path / "s.csv")  # who is anna
    assert values(store, "anna") == {"t0": "glad"}
    assert read_sheet(store, NOMINAL, "anna", tmp_path / "s.csv", replace=True).replaced == 1
    assert values(store, "anna") == {"t0": "sad", "t1": "sad"}
    assert [row["value"] for row in store.history()] == ["glad", "sad", "sad"]


def test_a_spreadsheet_is_not_overwritten(store: GoldStore, sheet: Path, tmp_path: Path) -> None:
    before = sheet.read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        write_sheet(store, NOMINAL, "anna", sheet)
    assert sheet.read_bytes() == before
    assert write_sheet(store, NOMINAL, "anna", sheet, force=True) == 6
    with pytest.raises(ConfigError, match=r"is \.xlsx, \.csv or \.tsv"):
        write_sheet(store, NOMINAL, "anna", tmp_path / "s.parquet")
