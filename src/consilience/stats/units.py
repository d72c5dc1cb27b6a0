"""From items to the independent units that they belong to: checks of the input, and sums by unit.

Units are known by names, or by whole numbers in an array where they are many: a million names take 200 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.errors import DataError

Floats = NDArray[np.float64]
Units = Sequence[str] | NDArray[np.intp]


def finite(values: ArrayLike, name: str) -> Floats:
    """A list of numbers as an array; raises `DataError` at none, and at one that is not finite."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise DataError(f"{name} have shape {x.shape}; expected a list of at least one number.")
    if not np.isfinite(x).all():
        raise DataError(
            f"{(~np.isfinite(x)).sum()} of {len(x)} {name} are not finite; name and count them apart first."
        )
    return x


def unit_labels(units: Units | None, n: int) -> Units:
    """`units`, or positions as labels; raises `DataError` unless there is one for each of `n` items."""
    if units is None:
        return [str(i) for i in range(n)]
    if len(units) != n:
        raise DataError(f"{len(units)} unit labels for {n} values; expected one each.")
    return units


def unit_index(labels: Units) -> tuple[Units, NDArray[np.intp]]:
    """The units in the order of their first item, and every item's place among them."""
    if isinstance(labels, np.ndarray):
        return _number_index(labels)
    index = {unit: i for i, unit in enumerate(dict.fromkeys(labels))}
    return tuple(index), np.fromiter((index[label] for label in labels), np.intp, len(labels))


def _number_index(labels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.intp]]:
    if (labels[1:] > labels[:-1]).all():
        return labels, np.arange(len(labels))
    found, first, place_N = np.unique(labels, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return found[order], rank[place_N]


def all_units(of_several: Sequence[Units]) -> tuple[Units, list[NDArray[np.intp]]]:
    """The units of several lists in the order of their first appearance, and the places of each list's among them."""
    if all(isinstance(units, np.ndarray) for units in of_several):
        together: Units = np.concatenate([np.asarray(units) for units in of_several])
    else:
        together = [unit for units in of_several for unit in units]
    found, index = unit_index(together)
    return found, np.split(index, np.cumsum([len(units) for units in of_several])[:-1])


def several_units(labels: Units, unit_kind: str) -> tuple[Units, NDArray[np.intp]]:
    """`unit_index` of at least two units; one alone shows no spread, and raises `DataError`."""
    units, index_N = unit_index(labels)
    if len(units) < 2:
        raise DataError(f"all {len(labels)} items are of {len(units)} {unit_kind}: the spread takes at least two.")
    return units, index_N


def sums_by_unit(parts_ND: Floats, index_N: NDArray[np.intp]) -> Floats:
    """The items' parts, summed within units: [N, D] -> [G, D]."""
    sums_GD = np.zeros((int(index_N.max()) + 1, *parts_ND.shape[1:]))
    np.add.at(sums_GD, index_N, parts_ND)
    return sums_GD
