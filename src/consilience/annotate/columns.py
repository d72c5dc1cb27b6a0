"""The user's columns of a million rows in a few bytes each: a place among the values, or a number.

Shapes: N rows, L different values.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from consilience.errors import DataError

MOST_VALUES = 4096  # a column of numbers that has more is kept as numbers
MISSING = "(missing)"


@dataclass(frozen=True, slots=True)
class Column:
    """The cells of a column as text: `levels[place_N]`; or `numbers_N` alone, NaN where blank, where there are many."""

    levels: tuple[str, ...] = ()
    place_N: NDArray[np.int32] | None = None
    numbers_N: NDArray[np.float64] | None = None

    @property
    def values(self) -> int:
        """How many different ones there are."""
        return len(self.levels) if self.numbers_N is None else len(np.unique(self.numbers_N))

    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """Which rows hold a value, by value in sorted order; blank cells are `(missing)`. Of a column with levels."""
        assert self.place_N is not None
        names = [level or MISSING for level in self.levels]
        return {
            name: np.isin(self.place_N, [place for place, own in enumerate(names) if own == name])
            for name in sorted(set(names))
        }

    def group(self, row: int) -> str:
        """The group of one row."""
        assert self.place_N is not None
        return self.levels[self.place_N[row]] or MISSING

    def as_numbers(self) -> NDArray[np.float64] | None:
        """The cells as numbers, NaN where blank; None where one of them is text."""
        if self.numbers_N is not None:
            return self.numbers_N
        try:
            numbers_L = np.array([_number(level) for level in self.levels])
        except ValueError:
            return None
        return numbers_L[self.place_N]


@dataclass(slots=True)
class ColumnReader:
    """Takes a column's cells one after the other."""

    name: str
    rows: int = 0
    levels: dict[str, int] = field(default_factory=dict)
    place_N: array[int] = field(default_factory=lambda: array("i"))
    numbers_N: array[float] | None = None

    def add(self, cell: str) -> None:
        """The next cell. Raises `DataError` at text below thousands of different numbers: it would be no category."""
        self.rows += 1
        if self.numbers_N is not None:
            try:
                self.numbers_N.append(_number(cell))
            except ValueError:
                raise DataError(
                    f"column {self.name!r}, row {self.rows}: {cell!r} is no number, and the rows before hold over "
                    f"{MOST_VALUES:,} different ones. Leave the cell blank, or write a number."
                ) from None
            return
        before = len(self.levels)
        self.place_N.append(self.levels.setdefault(cell, before))
        if before == MOST_VALUES < len(self.levels):
            try:
                numbers_L = [_number(level) for level in self.levels]
            except ValueError:
                return  # a text of many values stays one
            self.numbers_N = array("d", (numbers_L[place] for place in self.place_N))
            self.levels, self.place_N = {}, array("i")

    def column(self) -> Column:
        """All that was taken."""
        if self.numbers_N is not None:
            return Column(numbers_N=np.frombuffer(self.numbers_N, dtype=np.float64))
        return Column(tuple(self.levels), np.array(self.place_N, dtype=np.int32))


def column_of(name: str, cells: list[str]) -> Column:
    """The column of these cells."""
    reader = ColumnReader(name)
    for cell in cells:
        reader.add(cell)
    return reader.column()


def _number(cell: str) -> float:
    return float(cell) if cell.strip() else math.nan
