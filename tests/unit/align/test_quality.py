"""Chunk types, pairs and counts, by hand and by property."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from consilience.align import (
    CHUNK_TYPES,
    Alignment,
    align_spans,
    chunk_types,
    likeliest_partner,
    most_frequent,
    side_by_side,
)


def spans(*lengths: int) -> tuple[np.ndarray, np.ndarray]:
    """Consecutive spans of so many bytes each."""
    ends = np.array(list(accumulate(lengths)), dtype=np.int64)
    return ends - np.array(lengths, dtype=np.int64), ends


def test_chunk_types_by_hand() -> None:
    # pivot   |ab|cdef |gh|ij|kl|mno|p|  and a token without bytes in front
    # source  |ab|cd|ef|ghij  |k|lmno|    which has no "p"
    pivot, source = spans(0, 2, 4, 2, 2, 2, 3, 1), spans(2, 2, 2, 4, 1, 4)
    counts = chunk_types(align_spans(*pivot, *source), *pivot)
    assert {name: tuple(count) for name, count in counts.items()} == {
        "1-1": (1, 1, 2),  # ab
        "1-n": (1, 1, 4),  # cdef | cd ef
        "n-1": (1, 2, 4),  # gh ij | ghij
        "n-m": (1, 2, 5),  # kl mno | k lmno
        "no chunk": (0, 2, 1),  # the one without bytes, and p
    }


def test_nothing_to_count() -> None:
    none = np.zeros(0, dtype=np.int64)
    counts = chunk_types(align_spans(none, none, none, none), none, none)
    assert all(tuple(count) == (0, 0, 0) for count in counts.values())


lengths = st.lists(st.integers(0, 4), max_size=30)


@given(lengths, lengths)
def test_the_counts_add_up_to_all_positions_and_bytes(ours: list[int], theirs: list[int]) -> None:
    pivot, source = spans(*ours), spans(*theirs)
    alignment = align_spans(*pivot, *source)
    counts = chunk_types(alignment, *pivot)
    assert list(counts) == list(CHUNK_TYPES)
    assert sum(count.positions for count in counts.values()) == len(ours)
    assert sum(count.bytes for count in counts.values()) == sum(ours)
    assert counts["1-1"].chunks == counts["1-1"].positions == alignment.one_to_one_P.sum()
    assert counts["1-n"].chunks == counts["1-n"].positions
    assert all(counts[name].positions >= 2 * counts[name].chunks for name in ("n-1", "n-m"))


@given(lengths)
def test_a_tokenization_meets_itself_one_to_one(ours: list[int]) -> None:
    pivot = spans(*ours)
    counts = chunk_types(align_spans(*pivot, *pivot), *pivot)
    assert counts["1-1"].positions == sum(length > 0 for length in ours)
    assert counts["no chunk"].positions == ours.count(0)


@given(lengths, lengths)
def test_every_position_stands_once_in_reading_order(ours: list[int], theirs: list[int]) -> None:
    pivot, source = spans(*ours), spans(*theirs)
    pairs = side_by_side(align_spans(*pivot, *source), pivot[0], source[0])
    assert [position for mine, _ in pairs for position in mine] == list(range(len(ours)))
    assert [position for _, yours in pairs for position in yours] == list(range(len(theirs)))


def test_side_by_side_by_hand() -> None:
    alignment = Alignment(np.array([0, 1, -1]), np.array([0, 3, 3]), np.array([0, 3]))
    assert side_by_side(alignment, np.array([0, 2, 4]), np.array([0, 2])) == [([0], [0]), ([1, 2], [1])]


def test_the_likeliest_partner_is_the_one_with_most_weight() -> None:
    mapping = sparse.csr_array(np.array([[0.2, 0.5, 0.3], [0, 0, 0], [0, 0, 1.0]]))
    assert likeliest_partner(mapping).tolist() == [1, -1, 2]


def test_most_frequent_by_hand() -> None:
    ids = np.array([5, 3, 5, 3, 7, 5, 2])
    chosen = np.array([True, True, False, True, True, True, False])
    found = [tuple(token) for token in most_frequent(ids, chosen, 2)]
    assert found == [(3, 2, 2), (5, 2, 3)]  # id, at the chosen positions, at all
    assert most_frequent(ids, np.zeros(7, dtype=bool), 2) == []
