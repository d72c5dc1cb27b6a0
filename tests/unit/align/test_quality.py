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
    TokenText,
    align_spans,
    chunk_types,
    likeliest_partner,
    most_frequent,
    side_by_side,
)
from consilience.align.quality import chunk_type, likeliest_successors, right_positions, weight_of_pairs


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


def test_the_type_of_a_chunk() -> None:
    found = [chunk_type(*tokens) for tokens in ((1, 1), (1, 3), (2, 1), (2, 2), (0, 1), (1, 0))]
    assert found == ["1-1", "1-n", "n-1", "n-m", "no chunk", "no chunk"]


def test_right_positions_by_hand() -> None:
    # pivot   ||ab|cd|e|    the first token has no bytes
    # source  |ab|c|de|
    pivot, source = TokenText(*spans(0, 2, 2, 1)), TokenText(*spans(2, 1, 2))
    none = np.zeros(4, dtype=np.int32)

    def right(*source_P: int) -> list[bool]:
        return right_positions(Alignment(np.array(source_P, dtype=np.int32), none, none[:3]), pivot, source).tolist()

    assert right(-1, 0, 1, -1) == [False, True, True, False]
    assert right(0, 0, 2, 2) == [False, True, False, False]  # "de" begins at neither place


@given(lengths, lengths)
def test_spans_are_right_wherever_anything_can_be(ours: list[int], theirs: list[int]) -> None:
    pivot, source = TokenText(*spans(*ours)), TokenText(*spans(*theirs))
    by_spans = align_spans(pivot.starts_N, pivot.ends_N, source.starts_N, source.ends_N)
    assert right_positions(by_spans, pivot, source).tolist() == by_spans.matched_P.tolist()
    if theirs:
        shifted = by_spans._replace(source_P=np.roll(by_spans.source_P, 1))
        assert not (right_positions(shifted, pivot, source) & ~by_spans.matched_P).any()


def test_likeliest_successors_by_hand() -> None:
    # 7 is followed by 1, 1, 2, 3; 9 by 2 twice; the start of a text (-1) by 7
    previous, ids = np.array([-1, 7, 7, 9, 7, 7, 9]), np.array([7, 1, 2, 2, 1, 3, 2])
    rows, row_N = likeliest_successors(previous, ids, 10, 2)
    dense = np.asarray(rows.todense())
    assert row_N.tolist() == [0, 1, 1, 2, 1, 1, 2]
    assert dense[0].tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    assert dense[1].tolist() == [0, 0.5, 0.25, 0, 0, 0, 0, 0, 0, 0]  # of 2 and 3, as frequent, the lower id is kept
    assert dense[2].tolist() == [0, 0, 1, 0, 0, 0, 0, 0, 0, 0]


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 5)), min_size=1), st.integers(1, 6))
def test_successors_are_shares_of_what_follows(pairs: list[tuple[int, int]], keep: int) -> None:
    previous, ids = np.array(pairs).T
    rows, row_N = likeliest_successors(previous, ids, 6, keep)
    assert np.diff(rows.indptr).max() <= keep
    held = np.asarray(rows.sum(1)).ravel()
    kept = [len({id_ for other, id_ in pairs if other == before}) <= keep for before in np.unique(previous).tolist()]
    assert ((held > 1 - 1e-12) == np.array(kept)).all()
    assert (previous[np.unique(row_N, return_index=True)[1]] == np.unique(previous)).all()


def test_the_weight_of_pairs_by_hand() -> None:
    mapping = sparse.csr_array(np.array([[0.25, 0.75], [0, 0], [0, 1]], dtype=np.float32))
    found = weight_of_pairs(mapping, np.array([0, 2, 0, 1, 0]), np.array([1, 0, 0, 1, 1]))
    assert found.tolist() == [0.75, 0, 0.25, 0, 0.75]
    assert not len(weight_of_pairs(mapping, np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)))
