"""A column of many rows: its cells come back, numbers and texts alike, and what is neither is refused."""

from __future__ import annotations

import numpy as np
import pytest

from consilience.annotate.columns import MOST_VALUES, Column, ColumnReader, column_of
from consilience.errors import DataError


def test_few_values_are_places_among_them() -> None:
    column = column_of("party", ["b", "", "a", "b"])
    assert column.values == 3
    assert {name: rows.tolist() for name, rows in column.groups().items()} == {
        "(missing)": [False, True, False, False],
        "a": [False, False, True, False],
        "b": [True, False, False, True],
    }
    assert [column.group(row) for row in range(4)] == ["b", "(missing)", "a", "b"]
    assert column.as_numbers() is None


def test_numbers_come_back_however_many() -> None:
    for count in (10, 3 * MOST_VALUES):
        cells = [f"{i / 7:.6f}" for i in range(count)]
        column = column_of("x", [*cells, "", cells[3]])
        np.testing.assert_array_equal(column.as_numbers(), [*map(float, cells), np.nan, float(cells[3])])
        assert (column.numbers_N is None) == (count == 10)


def test_texts_of_many_values_stay_texts() -> None:
    cells = [f"author {i}" for i in range(MOST_VALUES + 50)]
    column: Column = column_of("author", [*cells, cells[0]])
    assert column.values == len(cells)
    assert column.group(len(cells)) == cells[0]


def test_a_text_below_thousands_of_numbers_is_no_value() -> None:
    reader = ColumnReader("income")
    for i in range(MOST_VALUES + 1):
        reader.add(str(i))
    with pytest.raises(DataError, match=rf"column 'income', row {MOST_VALUES + 2:}: 'n/a' is no number"):
        reader.add("n/a")
