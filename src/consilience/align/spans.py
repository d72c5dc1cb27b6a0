"""Sequence alignment by byte spans: exact, and linear in the number of tokens (after one sort of the boundaries).

A position is the prediction of one token. Two models' positions match when their tokens begin at the same byte of
the same reply: both distributions then answer the same question, "what comes after these bytes?". What the published
dynamic time warping estimates from the tokens' spelling is thus read off exactly.

Shapes: P positions of the pivot, S positions of the source.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.integer[Any]]

BYTES_BITS, REPLIES_BITS = 30, 10


def text_keys(conversation_N: Ints, reply_N: Ints, byte_N: Ints) -> NDArray[np.int64]:
    """One coordinate for every byte of a corpus of replies, so that a whole corpus is aligned in one call, shape [N].

    Room for 2^30 bytes in a reply, 1,024 replies in a conversation and 2^23 conversations.
    """
    return (
        (conversation_N.astype(np.int64) << (BYTES_BITS + REPLIES_BITS))
        | (reply_N.astype(np.int64) << BYTES_BITS)
        | byte_N.astype(np.int64)
    )


class Alignment(NamedTuple):
    """Which source position answers the same question as a pivot position, and the shortest stretches of equal text."""

    source_P: NDArray[np.int32]  # the source position that begins at the same byte; -1 where there is none
    chunk_P: NDArray[np.int32]  # the chunk that a pivot position lies in; -1 where the source has no text there
    chunk_S: NDArray[np.int32]

    @property
    def matched_P(self) -> NDArray[np.bool_]:
        """Which pivot positions have a source position."""
        return self.source_P >= 0

    @property
    def one_to_one_P(self) -> NDArray[np.bool_]:
        """Which pivot positions have a source token that is the very same stretch of text."""
        chunks = int(max(self.chunk_P.max(initial=-1), self.chunk_S.max(initial=-1))) + 1
        pivot_tokens = np.bincount(self.chunk_P[self.chunk_P >= 0], minlength=chunks)
        source_tokens = np.bincount(self.chunk_S[self.chunk_S >= 0], minlength=chunks)
        single = (pivot_tokens == 1) & (source_tokens == 1)
        return (self.chunk_P >= 0) & single[self.chunk_P] if chunks else np.zeros(len(self.chunk_P), dtype=bool)


def align_spans(pivot_starts_P: Ints, pivot_ends_P: Ints, source_starts_S: Ints, source_ends_S: Ints) -> Alignment:
    """The alignment of two tokenizations of the same replies. Spans are `text_keys`, in reading order.

    A token without bytes (a dummy prefix, the first parts of a split that offsets cannot tell apart) matches nothing
    and lies in no chunk. A chunk is the stretch between two neighbouring boundaries that both tokenizations share, and
    that both fill with tokens.
    """
    pivot_real = pivot_ends_P > pivot_starts_P
    source_real = source_ends_S > source_starts_S

    source_index = np.flatnonzero(source_real)
    found = _index_of(pivot_starts_P, source_starts_S[source_index])
    source_P = np.full(len(pivot_starts_P), -1, dtype=np.int32)
    matched = pivot_real & (found >= 0)
    source_P[matched] = source_index[found[matched]]

    shared = np.intersect1d(
        np.concatenate([pivot_starts_P[pivot_real], pivot_ends_P[pivot_real]]),
        np.concatenate([source_starts_S[source_real], source_ends_S[source_real]]),
    )
    chunk_P = _chunks(pivot_starts_P, pivot_ends_P, pivot_real, shared)
    chunk_S = _chunks(source_starts_S, source_ends_S, source_real, shared)
    # Blanks that one model's template trims off a reply are a stretch with tokens on the other side only.
    return Alignment(
        source_P,
        np.where(np.isin(chunk_P, chunk_S), chunk_P, np.int32(-1)),
        np.where(np.isin(chunk_S, chunk_P), chunk_S, np.int32(-1)),
    )


def _index_of(values: Ints, ascending: Ints) -> Ints:
    """Where each of `values` stands in `ascending`, -1 where it does not."""
    if not len(ascending):
        return np.full(len(values), -1, dtype=np.int64)
    at = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    return np.where(ascending[at] == values, at, -1)


def _chunks(starts: Ints, ends: Ints, real: NDArray[np.bool_], shared: Ints) -> NDArray[np.int32]:
    """The number of the shared stretch that each token lies in; -1 outside, for instance where one side was cut off."""
    first = np.searchsorted(shared, starts, side="right") - 1
    inside = real & (first >= 0) & (first + 1 < len(shared))
    inside[inside] &= ends[inside] <= shared[first[inside] + 1]
    # A stretch never runs from one reply into the next: keys of two replies differ above the byte's bits.
    inside[inside] &= (shared[first[inside]] >> BYTES_BITS) == (shared[first[inside] + 1] >> BYTES_BITS)
    return np.where(inside, first, -1).astype(np.int32)
