"""The compiled loop of the room. This file imports numba: import it in the body of the function that needs it.

Shapes: S source positions, P pivot positions, A distinct source tokens, B distinct pivot tokens, V cells of a path.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

DIAGONAL, UP, LEFT = 0, 1, 2  # one back on both sides, on the source's, on the pivot's


def _warp(
    costs_AB: NDArray[np.float64],
    source_S: NDArray[np.int64],
    pivot_P: NDArray[np.int64],
    left_before_up: bool,
) -> tuple[NDArray[np.int32], NDArray[np.int32], float]:
    """The cheapest monotone path through the S x P pairs of positions: its cells (source_V, pivot_V) and its cost.

    `source_S` and `pivot_P` number the tokens of `costs_AB`. A pair costs its two tokens plus the cheapest of its
    three predecessors; among equals the diagonal comes first. Takes one byte of memory per pair.
    """
    sources, pivots = len(source_S), len(pivot_P)
    moves = np.empty((sources, pivots), dtype=np.uint8)
    above = np.full(pivots + 1, np.inf)
    above[0] = 0.0
    here = np.empty(pivots + 1)
    for s in range(sources):
        here[0] = np.inf
        costs_B = costs_AB[source_S[s]]
        for p in range(pivots):
            best, move = above[p], DIAGONAL
            if left_before_up and here[p] < best:
                best, move = here[p], LEFT
            if above[p + 1] < best:
                best, move = above[p + 1], UP
            if not left_before_up and here[p] < best:
                best, move = here[p], LEFT
            moves[s, p] = move
            here[p + 1] = costs_B[pivot_P[p]] + best
        above, here = here, above

    source_V = np.zeros(sources + pivots - 1, dtype=np.int32)
    pivot_V = np.zeros(sources + pivots - 1, dtype=np.int32)
    s, p, first = sources - 1, pivots - 1, sources + pivots - 2
    while s > 0 or p > 0:
        source_V[first], pivot_V[first] = s, p
        move = moves[s, p]
        s -= move != LEFT
        p -= move != UP
        first -= 1
    return source_V[first:], pivot_V[first:], above[pivots]


warp: Any = njit(nogil=True)(_warp)  # no cache on disk: it fails where neither package nor home can be written
