"""A source's distribution in the pivot's vocabulary: mapped, collisions added, what found no token kept as "other".

Shapes: N positions, K candidates kept by the source, J candidates kept after the mapping.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


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
    row_of = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    order = np.lexsort((rows.indices, -rows.data, row_of))
    rank = np.arange(len(order)) - rows.indptr[row_of]
    kept = order[rank < keep]
    ids_NJ = np.zeros((rows.shape[0], keep), dtype=np.int32)
    probs_NJ = np.zeros((rows.shape[0], keep), dtype=np.float32)
    ids_NJ[row_of[kept], rank[rank < keep]] = rows.indices[kept]
    probs_NJ[row_of[kept], rank[rank < keep]] = rows.data[kept]
    return SparseRows(ids_NJ, probs_NJ)
