"""Tables of six kinds: what goes in comes back, with columns beside it; what cannot be read says which row."""

from __future__ import annotations

from pathlib import Path

import openpyxl
import pandas
import pyarrow
import pyarrow.parquet as parquet
import pyreadstat
import pytest

from consilience.annotate.tables import NewColumn, read_table, records, write_beside
from consilience.errors import DataError

TEXTS = ["plain", 'with "quotes", a comma\nand a line break', "Grüße, 你好", ""]
PARTIES = [1.0, 2.0, 1.0, 9.0]
NEW = (
    NewColumn("stance", "Stance, by a model", codes={1: "for", 2: "against"}),
    NewColumn("stance_status"),
    NewColumn("stance_p", numeric=True),
)
VALUES = [("for", "ok", 0.75), ("against", "ok", 0.5), (None, "refused", None), (None, "empty", None)]


def write(path: Path) -> None:
    frame = pandas.DataFrame({"text": TEXTS, "party": PARTIES})
    about = {"column_labels": ["Text", "Party"], "variable_value_labels": {"party": {1: "Left", 2: "Right"}}}
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".tsv":
        frame.to_csv(path, index=False, sep="\t")
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.table({"text": TEXTS, "party": PARTIES}), path)
    elif path.suffix == ".xlsx":
        frame.to_excel(path, index=False)
    elif path.suffix == ".sav":
        pyreadstat.write_sav(frame, path, missing_ranges={"party": [9]}, variable_measure={"party": "nominal"}, **about)
    else:
        pyreadstat.write_dta(frame, path, **about)


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet", "xlsx", "sav", "dta"])
def test_every_kind_comes_back_with_columns_beside(ending: str, tmp_path: Path) -> None:
    source, target = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
    write(source)
    table = read_table(source)
    assert table.columns == ("text", "party")
    assert [row[0] or "" for row in table.rows] == TEXTS
    write_beside(source, target, NEW, VALUES)
    rows = [*records(target)]
    assert [float(row["party"]) for row in rows] == PARTIES
    assert [row["text"] or "" for row in rows] == TEXTS
    assert [row["stance_status"] for row in rows] == ["ok", "ok", "refused", "empty"]
    assert [float(row["stance_p"]) for row in rows[:2]] == [0.75, 0.5]
    assert [entry.name for entry in tmp_path.iterdir() if "partial" in entry.name] == []


@pytest.mark.parametrize("ending", ["sav", "dta"])
def test_value_labels_come_in_and_go_out(ending: str, tmp_path: Path) -> None:
    source, target = tmp_path / f"in.{ending}", tmp_path / f"out.{ending}"
    write(source)
    write_beside(source, target, NEW, VALUES)
    read = pyreadstat.read_sav if ending == "sav" else pyreadstat.read_dta
    frame, about = read(target, user_missing=True)
    assert about.variable_value_labels == {"party": {1: "Left", 2: "Right"}, "stance": {1: "for", 2: "against"}}
    assert about.column_labels[:3] == ["Text", "Party", "Stance, by a model"]
    assert frame["stance"].tolist()[:2] == [1, 2]
    assert frame["stance"].isna().tolist() == [False, False, True, True]
    if ending == "sav":
        assert about.missing_ranges == {"party": [{"lo": 9, "hi": 9}]}
        assert about.variable_measure["party"] == "nominal"


def test_an_encoding_error_names_its_row(tmp_path: Path) -> None:
    path = tmp_path / "tweets.csv"
    path.write_bytes("id,text\n1,fine\n2,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"row 2, column 2: byte 0xe9 is not utf-8 text. Set data.encoding"):
        [*read_table(path).rows]
    assert [*read_table(path, "latin-1").rows][1] == ("2", "café")
    with pytest.raises(DataError, match="no text encoding is called"):
        read_table(path, "latin-one")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"id,text\n1,two,three\n", "row 1: 3 cells, expected 2"),
        ("a.csv", b"id,id\n", "two are called 'id'"),
        ("a.parquet", b"no", "not a Parquet file"),
        ("a.xlsx", b"no", "not an .xlsx workbook"),
        ("a.sav", b"no", "not readable as .sav"),
        ("a.doc", b"no", "ends in .doc"),
    ],
)
def test_what_is_no_table_is_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as refusal:
        [*read_table(tmp_path / name).rows]
    assert words in str(refusal.value)


def test_a_column_of_the_users_is_not_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "in.csv")
    with pytest.raises(DataError, match="has a column 'party' already"):
        write_beside(tmp_path / "in.csv", tmp_path / "out.csv", [NewColumn("party")], [])
    assert not (tmp_path / "out.csv").exists()


def test_excel_reads_the_first_sheet_and_skips_blank_rows(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    book.active.append(["id", "text", None])
    book.active.append([1, "a"])
    book.active.append([None, None])
    book.active.append([2, "b", "beyond the header"])
    book.create_sheet("other").append(["x"])
    book.save(tmp_path / "in.xlsx")
    table = read_table(tmp_path / "in.xlsx")
    assert (table.columns, [*table.rows]) == (("id", "text"), [(1, "a"), (2, "b")])


def test_a_text_that_looks_like_a_formula_stays_a_text(tmp_path: Path) -> None:
    link = '=HYPERLINK("http://example.org", "click")'
    book = openpyxl.Workbook()
    book.active.append(["text"])
    book.active.append([link])
    book.active["A2"].data_type = "s"
    book.save(tmp_path / "in.xlsx")
    write_beside(tmp_path / "in.xlsx", tmp_path / "out.xlsx", [NewColumn("label")], [["=1+1\x01"]])
    cells = openpyxl.load_workbook(tmp_path / "out.xlsx").active[2]
    assert [(cell.data_type, cell.value) for cell in cells] == [("s", link), ("s", "=1+1\ufffd")]


def test_the_user_s_numbers_keep_their_digits_in_a_csv_file(tmp_path: Path) -> None:
    table = pyarrow.table({"income": [1234567.89, None, float("nan")], "text": ["a", "b", "c"]})
    parquet.write_table(table, tmp_path / "in.parquet")
    write_beside(
        tmp_path / "in.parquet", tmp_path / "out.csv", [NewColumn("p", numeric=True)], [[1 / 3], [1.0], [None]]
    )
    assert (tmp_path / "out.csv").read_text() == "income,text,p\n1234567.89,a,0.333333\n,b,1\n,c,\n"
