"""Vocabulary mapping: which pivot token a source token stands for.

A mapping is a sparse matrix [source vocabulary, pivot vocabulary] whose rows sum to one, or to nothing where a source
token has no counterpart: its probability is then kept as "other". Vs is the source's vocabulary size, Vp the pivot's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

Ints = NDArray[np.integer[Any]]
VocabularyMapping = Callable[[Any, Any], Any]


def count_pairs(source_ids_N: Ints, pivot_ids_N: Ints, shape: tuple[int, int]) -> Any:
    """How often source token s and pivot token p began at the same byte, a sparse [Vs, Vp] matrix of counts."""
    ones = np.ones(len(source_ids_N), dtype=np.int64)
    return sparse.coo_array((ones, (source_ids_N, pivot_ids_N)), shape=shape).tocsr()


def exact_matches(source_bytes: Sequence[bytes | None], pivot_bytes: Sequence[bytes | None]) -> Any:
    """One where two tokens stand for the same bytes, a sparse [Vs, Vp] matrix; `None` (a control token) has no match.

    Where several pivot tokens have the same bytes the lowest id counts.
    """
    pivot_id = {token: id_ for id_, token in reversed(list(enumerate(pivot_bytes))) if token}
    pairs = [(id_, pivot_id[token]) for id_, token in enumerate(source_bytes) if token in pivot_id]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    shape = (len(source_bytes), len(pivot_bytes))
    return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()


def exact(counts: Any, matches: Any) -> Any:
    """Only tokens of the same bytes (`matches`): the control that uses no statistics."""
    del counts
    return matches.astype(np.float32)


def statistics(counts: Any, matches: Any) -> Any:
    """Each source token goes to the pivot token that most often begins where it begins (FuseChat, arXiv 2408.07990).

    The published rule multiplies an edit distance by a sigmoid of the count and so prefers *rare* pairings; here the
    count itself decides. A match of bytes counts as one and a half observations: it decides where nothing was seen
    and outweighs a single one. Among equals the lowest pivot id is taken.
    """
    scores = (counts + 1.5 * matches).tocsr()
    scores.sort_indices()
    seen = np.flatnonzero(np.diff(scores.indptr))
    best = np.array(
        [
            scores.indices[a + np.argmax(scores.data[a:b])]
            for a, b in zip(scores.indptr[seen], scores.indptr[seen + 1], strict=True)
        ],
        dtype=np.int64,
    )
    return sparse.coo_array((np.ones(len(seen), dtype=np.float32), (seen, best)), shape=scores.shape).tocsr()


VOCABULARY_MAPPINGS: dict[str, VocabularyMapping] = {"exact": exact, "statistics": statistics}
