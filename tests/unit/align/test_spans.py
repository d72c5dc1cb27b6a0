"""Sequence alignment, by hand and by property."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from consilience.align import align_spans, text_keys


def spans(*pieces: str) -> tuple[np.ndarray, np.ndarray]:
    """Byte spans of consecutive pieces of one text."""
    ends = np.cumsum([len(piece.encode()) for piece in pieces])
    return np.concatenate([[0], ends[:-1]]).astype(np.int64), ends.astype(np.int64)


def test_by_hand() -> None:
    #          0    5      9   11
    pivot = spans("hello", " wor", "ld", "!")
    source = spans("hel", "lo", " world", "!")
    alignment = align_spans(*pivot, *source)
    assert alignment.source_P.tolist() == [0, 2, -1, 3]  # "ld" begins inside the source's " world"
    assert alignment.chunk_P.tolist() == [0, 1, 1, 2]  # hello | " world" | !
    assert alignment.chunk_S.tolist() == [0, 0, 1, 2]
    assert alignment.one_to_one_P.tolist() == [False, False, False, True]


def test_characters_split_over_tokens_match_at_their_bytes() -> None:
    pivot = (np.array([0, 1, 2, 3]), np.array([1, 2, 3, 4]))  # an emoji, byte by byte
    source = (np.array([0, 2]), np.array([2, 4]))  # in two halves
    assert align_spans(*pivot, *source).source_P.tolist() == [0, -1, 1, -1]


def test_tokens_without_bytes_match_nothing() -> None:
    pivot = (np.array([0, 0]), np.array([0, 3]))  # a dummy prefix, then "abc"
    source = (np.array([0, 0]), np.array([0, 3]))
    alignment = align_spans(*pivot, *source)
    assert alignment.source_P.tolist() == [-1, 1]
    assert alignment.chunk_P.tolist() == [-1, 0]


def test_a_source_that_was_cut_off_leaves_the_rest_unmatched() -> None:
    alignment = align_spans(*spans("ab", "cd", "ef"), *spans("ab", "cd"))
    assert alignment.source_P.tolist() == [0, 1, -1]
    assert alignment.chunk_P.tolist() == [0, 1, -1]


def test_replies_and_conversations_do_not_run_into_one_another() -> None:
    # Two conversations of one three-byte reply each; the source has no token boundary of its own in between.
    conversation, reply = np.array([0, 1]), np.array([0, 0])
    starts = text_keys(conversation, reply, np.array([0, 0]))
    ends = text_keys(conversation, reply, np.array([3, 3]))
    alignment = align_spans(starts, ends, starts, ends)
    assert alignment.source_P.tolist() == [0, 1]
    assert alignment.chunk_P[0] != alignment.chunk_P[1]


cuts = st.sets(st.integers(1, 39), max_size=39).map(lambda inner: [0, *sorted(inner), 40])


@given(cuts, cuts)
def test_matches_are_exactly_the_shared_beginnings(pivot_cuts: list[int], source_cuts: list[int]) -> None:
    pivot, source = np.array(pivot_cuts), np.array(source_cuts)
    alignment = align_spans(pivot[:-1], pivot[1:], source[:-1], source[1:])
    for position, partner in enumerate(alignment.source_P):
        if partner >= 0:
            assert source_cuts[partner] == pivot_cuts[position]
        else:
            assert pivot_cuts[position] not in source_cuts[:-1]
    # Chunks cover the same bytes on both sides, and a boundary between chunks is one that both share.
    for chunk in range(alignment.chunk_P.max() + 1):
        of_pivot, of_source = np.flatnonzero(alignment.chunk_P == chunk), np.flatnonzero(alignment.chunk_S == chunk)
        assert pivot_cuts[of_pivot[0]] == source_cuts[of_source[0]]
        assert pivot_cuts[of_pivot[-1] + 1] == source_cuts[of_source[-1] + 1]
    assert alignment.chunk_P.max() + 1 == len(set(pivot_cuts) & set(source_cuts)) - 1


@given(cuts)
def test_a_text_aligned_with_itself_is_the_identity(some_cuts: list[int]) -> None:
    text = np.array(some_cuts)
    alignment = align_spans(text[:-1], text[1:], text[:-1], text[1:])
    assert alignment.source_P.tolist() == list(range(len(text) - 1))
    assert alignment.one_to_one_P.all()


def test_what_one_template_trims_off_a_reply_lies_in_no_chunk() -> None:
    # "hello" and two blanks, which the pivot's template drops; then the token that closes the reply.
    pivot = (np.array([0, 7]), np.array([5, 8]))
    source = (np.array([0, 5, 7]), np.array([5, 7, 8]))
    alignment = align_spans(*pivot, *source)
    assert alignment.source_P.tolist() == [0, 2]
    assert alignment.chunk_P.tolist() == [0, 2]
    assert alignment.chunk_S.tolist() == [0, -1, 2]  # nobody else has text there to be compared with
