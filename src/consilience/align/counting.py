"""How often a source token and a pivot token begin at the same byte: a sparse count over a corpus.

Shapes: N pairs, D distinct pairs, Vs source vocabulary, Vp pivot vocabulary.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Ints = NDArray[np.integer[Any]]
Counted = tuple[NDArray[np.int64], NDArray[np.int64]]  # distinct pairs as one ascending number each, and their counts

SLICE = 1 << 22  # pairs sorted at once: 32 MB


class PairCounter:
    """Counts pairs of tokens shard by shard in memory that grows with the *distinct* pairs only.

    Threads may add at the same time: sums of integers do not depend on the order.
    """

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self._lock = threading.Lock()
        self._parts: list[Counted] = []

    def add(self, source_ids_N: Ints, pivot_ids_N: Ints) -> None:
        """Counts the N pairs of tokens of one shard."""
        for first in range(0, len(source_ids_N), SLICE):
            part = slice(first, first + SLICE)
            pairs = source_ids_N[part].astype(np.int64) * self.shape[1] + pivot_ids_N[part]
            counted: Counted = np.unique(pairs, return_counts=True)  # sorting lets other threads run
            with self._lock:
                self._parts.append(counted)
                # A part is merged with those that are no larger, so that each pair is merged a few times only.
                while len(self._parts) > 1 and len(self._parts[-2][0]) <= len(self._parts[-1][0]):
                    self._parts.append(_merged(self._parts.pop(), self._parts.pop()))

    def total(self) -> Any:
        """What was counted so far, a sparse [Vs, Vp] matrix with its rows in order."""
        with self._lock:
            pairs_D, counts_D = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
            for part in self._parts:
                pairs_D, counts_D = _merged((pairs_D, counts_D), part)
        row_ends = np.searchsorted(pairs_D, np.arange(self.shape[0] + 1) * self.shape[1])
        return sparse.csr_array((counts_D, (pairs_D % self.shape[1]).astype(np.int32), row_ends), shape=self.shape)


def _merged(one: Counted, other: Counted) -> Counted:
    pairs = np.concatenate([one[0], other[0]])
    order = np.argsort(pairs, kind="stable")  # of two sorted runs: one pass
    pairs, counts = pairs[order], np.concatenate([one[1], other[1]])[order]
    first = np.flatnonzero(np.diff(pairs, prepend=-1))
    return pairs[first], np.add.reduceat(counts, first) if len(first) else counts


def count_pairs(source_ids_N: Ints, pivot_ids_N: Ints, shape: tuple[int, int]) -> Any:
    """How often source token s and pivot token p began at the same byte, a sparse [Vs, Vp] matrix of counts."""
    counter = PairCounter(shape)
    counter.add(source_ids_N, pivot_ids_N)
    return counter.total()
