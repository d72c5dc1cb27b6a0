"""How well two tokenizers meet: kinds of chunks, how often a vocabulary mapping is right, what is left without partner.

Shapes: P positions of the pivot, S positions of the source, N any positions, Vs and Vp vocabulary sizes, C distinct
tokens that others come after.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from consilience.align.counting import count_pairs
from consilience.align.sequence import TokenText
from consilience.align.spans import Alignment

Ints = NDArray[np.integer[Any]]

ONE_TO_ONE = "1-1"
OUTSIDE = "no chunk"
CHUNK_TYPES = (ONE_TO_ONE, "1-n", "n-1", "n-m", OUTSIDE)  # pivot tokens - source tokens


class ChunkCount(NamedTuple):
    """What the chunks of one type hold of the pivot's side."""

    chunks: int
    positions: int
    bytes: int


class TokenCount(NamedTuple):
    """A token, at how many of the chosen positions it stands, and at how many in all."""

    id: int
    times: int
    occurrences: int


def chunk_types(alignment: Alignment, pivot_starts_P: Ints, pivot_ends_P: Ints) -> dict[str, ChunkCount]:
    """By CHUNK_TYPES, how many chunks there are, and how many of the pivot's positions and bytes lie in them.

    OUTSIDE holds the positions in no chunk, one by one: tokens without bytes, and text that the source does not have.
    Positions and bytes add up to all of the pivot's.
    """
    chunk_P, chunk_S = alignment.chunk_P, alignment.chunk_S
    inside_P = chunk_P >= 0
    chunks = int(max(chunk_P.max(initial=-1), chunk_S.max(initial=-1))) + 1
    pivot_tokens = np.bincount(chunk_P[inside_P], minlength=chunks)
    source_tokens = np.bincount(chunk_S[chunk_S >= 0], minlength=chunks)
    type_of = 2 * (pivot_tokens > 1) + (source_tokens > 1)  # the order of CHUNK_TYPES
    type_P = np.full(len(chunk_P), CHUNK_TYPES.index(OUTSIDE))
    type_P[inside_P] = type_of[chunk_P[inside_P]]
    size = len(CHUNK_TYPES)
    of_type = np.bincount(type_of[pivot_tokens > 0], minlength=size)
    positions = np.bincount(type_P, minlength=size)
    lengths = np.zeros(size, dtype=np.int64)
    np.add.at(lengths, type_P, pivot_ends_P - pivot_starts_P)
    return {name: ChunkCount(int(of_type[i]), int(positions[i]), int(lengths[i])) for i, name in enumerate(CHUNK_TYPES)}


def chunk_type(pivot_tokens: int, source_tokens: int) -> str:
    """Which of CHUNK_TYPES a chunk of so many tokens is; OUTSIDE where one side has none."""
    if not (pivot_tokens and source_tokens):
        return OUTSIDE
    return CHUNK_TYPES[2 * (pivot_tokens > 1) + (source_tokens > 1)]


def side_by_side(
    alignment: Alignment, pivot_starts_P: Ints, source_starts_S: Ints
) -> list[tuple[list[int], list[int]]]:
    """The positions of both sides, chunk by chunk in reading order: each position stands in exactly one pair.

    What lies in no chunk stands with what begins at the same byte outside of chunks, if anything does; a token without
    bytes between the tokens of a chunk stands with them.
    """
    groups: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
    sides = ((alignment.chunk_P, pivot_starts_P), (alignment.chunk_S, source_starts_S))
    for side, (chunk_N, starts_N) in enumerate(sides):
        last = {chunk: position for position, chunk in enumerate(chunk_N.tolist())}
        key = (0, -1)
        for position, (chunk, start) in enumerate(zip(chunk_N.tolist(), starts_N.tolist(), strict=True)):
            inside = key[1] >= 0 and position <= last[key[1]]
            if not inside:
                key = (start, chunk)
            groups.setdefault(key, ([], []))[side].append(position)
    return [groups[key] for key in sorted(groups)]


def right_positions(alignment: Alignment, pivot: TokenText, source: TokenText) -> NDArray[np.bool_]:
    """Which pivot positions have a source position whose token begins at the same byte, shape [P].

    Those that are matched otherwise are wrong: the two distributions answer different questions. A token without bytes
    is no answer to any.
    """
    right_P = alignment.matched_P & (pivot.ends_N > pivot.starts_N)
    partner = alignment.source_P[right_P]
    right_P[right_P] = (source.starts_N[partner] == pivot.starts_N[right_P]) & (
        source.ends_N[partner] > source.starts_N[partner]
    )
    return right_P


def likeliest_successors(previous_N: Ints, ids_N: Ints, vocabulary: int, keep: int) -> tuple[Any, NDArray[np.int64]]:
    """A corpus' own next-token distributions, cut off like a model's top-k: a sparse [C, V] matrix, and rows of it [N].

    Row c holds the shares of the `keep` tokens that most often come after token c (the lower id among equals), and sums
    to at most one; the second array says which row a position's previous token has.
    """
    previous_C, row_N = np.unique(previous_N, return_inverse=True)
    counts = count_pairs(row_N, ids_N, (len(previous_C), vocabulary))
    row_of = np.repeat(np.arange(len(previous_C)), np.diff(counts.indptr))
    order = np.lexsort((counts.indices, -counts.data, row_of))  # leaves every row where it is
    rank = np.arange(len(order)) - counts.indptr[row_of]
    shares = counts.astype(np.float64)
    shares.data /= np.bincount(row_of, counts.data)[row_of]
    shares.data[order[rank >= keep]] = 0.0
    shares.eliminate_zeros()
    return shares, row_N


def likeliest_partner(mapping: Any) -> NDArray[np.int64]:
    """The pivot token that a mapping gives most of each source token, shape [Vs]; -1 where it gives none."""
    entries = mapping.tocoo()
    rising = np.argsort(entries.data, kind="stable")
    partner = np.full(mapping.shape[0], -1, dtype=np.int64)
    partner[entries.row[rising]] = entries.col[rising]  # the last of several assignments stays
    return partner


def weight_of_pairs(mapping: Any, source_ids_N: Ints, pivot_ids_N: Ints) -> NDArray[np.float64]:
    """The weight with which a mapping gives each source token the pivot token beside it, shape [N]."""
    pairs, pair_N = np.unique(np.stack([source_ids_N, pivot_ids_N]), axis=1, return_inverse=True)
    weights = sparse.csr_matrix(mapping, dtype=np.float64)[pairs[0], pairs[1]]
    found: NDArray[np.float64] = np.asarray(weights).ravel()[pair_N]
    return found


def most_frequent(ids_N: Ints, chosen_N: NDArray[np.bool_], size: int) -> list[TokenCount]:
    """The `size` tokens that stand most often at the chosen positions; among equals the lowest id first."""
    ids, counts = np.unique(ids_N[chosen_N], return_counts=True)
    first = np.lexsort((ids, -counts))[:size]
    occurrences = np.bincount(ids_N, minlength=int(ids.max(initial=-1)) + 1)
    return [TokenCount(int(id_), int(count), int(occurrences[id_])) for id_, count in zip(ids[first], counts[first])]
