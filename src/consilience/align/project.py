"""A source's distribution in the pivot's vocabulary: mapped, collisions added, what found no token kept as "other".

Shapes: N positions, K candidates kept by the source, J candidates kept after the mapping.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

BLOCK = 4096  # rows


class SparseRows(NamedTuple):
    """Likeliest pivot tokens per position; a row sums to at most one, and what is missing is "any other token"."""

    ids_NJ: NDArray[np.int32]
    probs_NJ: NDArray[np.float32]  # descending; 0 (with id 0) where a row has fewer than J candidates


def project(ids_NK: NDArray[Any], logprobs_NK: NDArray[Any], mapping: Any, *, keep: int) -> SparseRows:
    """The top-k rows of a source (log-probabilities in nats) as at most `keep` pivot tokens per position.

    `mapping` is a sparse [Vs, Vp] matrix of `align.vocabulary`. Candidates that fall on the same pivot token add up.
    """
    positions, candidates = ids_NK.shape
    indptr = np.arange(positions + 1, dtype=np.int64) * candidates
    probs = np.exp(logprobs_NK.astype(np.float64)).ravel()
    rows = sparse.csr_array((probs, ids_NK.ravel().astype(np.int64), indptr), shape=(positions, mapping.shape[0]))
    return _likeliest((rows @ mapping).tocsr(), keep)


def _likeliest(rows: Any, keep: int) -> SparseRows:
    """The `keep` largest entries of every row; ties go to the lower id, so the result does not depend on storage."""
    rows.eliminate_zeros()
    rows.sort_indices()
    found = SparseRows(
        np.zeros((rows.shape[0], keep), dtype=np.int32), np.zeros((rows.shape[0], keep), dtype=np.float32)
    )
    for first in range(0, rows.shape[0], BLOCK):
        indptr = rows.indptr[first : first + BLOCK + 1]
        entries, counts = slice(indptr[0], indptr[-1]), np.diff(indptr)
        row_of = np.repeat(np.arange(len(counts)), counts)
        rank = np.arange(len(row_of)) - (indptr[:-1] - indptr[0])[row_of]
        # A block is small enough to be sorted as a dense table; ids ascend in it, so a stable sort keeps the lower.
        shape = len(counts), max(int(counts.max()), keep)
        ids_NW, probs_NW = np.zeros(shape, dtype=np.int32), np.zeros(shape)
        ids_NW[row_of, rank], probs_NW[row_of, rank] = rows.indices[entries], rows.data[entries]
        best_NJ = np.argsort(-probs_NW, axis=1, kind="stable")[:, :keep]
        found.ids_NJ[first : first + BLOCK] = np.take_along_axis(ids_NW, best_NJ, axis=1)
        found.probs_NJ[first : first + BLOCK] = np.take_along_axis(probs_NW, best_NJ, axis=1)
    return found
