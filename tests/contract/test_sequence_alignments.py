"""What every sequence alignment promises. A new method is covered by its line in SEQUENCE_ALIGNMENTS."""

from __future__ import annotations

from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.align import SEQUENCE_ALIGNMENTS, Spelling, TokenText, align_spans, text_keys

methods = pytest.mark.parametrize("name", sorted(SEQUENCE_ALIGNMENTS))
examples = settings(deadline=None, max_examples=60)  # the first call compiles

replies_in_pieces = st.lists(st.lists(st.text("ab ", min_size=1, max_size=3), min_size=1, max_size=6), max_size=3)


def read(replies: list[list[str]], mark: str = "▁", first: int = 0) -> TokenText:
    """Replies, one per conversation, in pieces; every piece is a vocabulary entry of its own."""
    spans = [
        (text_keys(*(np.array([value]) for value in (conversation, 0, end - len(piece)))), len(piece), piece)
        for conversation, pieces in enumerate(replies, start=first)
        for end, piece in zip(accumulate(map(len, pieces)), pieces)
    ]
    starts_N = np.array([key[0] for key, _, _ in spans], dtype=np.int64)
    ends_N = starts_N + np.array([length for _, length, _ in spans], dtype=np.int64)
    pieces = [piece for _, _, piece in spans]
    return TokenText(
        starts_N, ends_N, np.arange(len(spans)), Spelling([p.replace(" ", mark) for p in pieces], pieces, mark)
    )


@st.composite
def two_readings(draw: st.DrawFn) -> tuple[list[list[str]], list[list[str]]]:
    """The same texts cut in two ways."""
    texts = draw(st.lists(st.text("ab ", min_size=1, max_size=12), min_size=1, max_size=3))

    def cut(text: str) -> list[str]:
        at = [0, *sorted(draw(st.sets(st.integers(1, len(text)), max_size=6)) - {len(text)}), len(text)]
        return [text[start:end] for start, end in pairwise(at)]

    return [cut(text) for text in texts], [cut(text) for text in texts]


@methods
@examples
@given(replies=replies_in_pieces)
def test_a_text_aligned_with_itself_is_the_identity(name: str, replies: list[list[str]]) -> None:
    alignment = SEQUENCE_ALIGNMENTS[name](read(replies), read(replies))
    assert alignment.source_P.tolist() == list(range(sum(map(len, replies))))
    assert alignment.one_to_one_P.all()


@methods
@examples
@given(both=two_readings())
def test_partners_lie_in_the_same_reply_and_chunks_cover_the_same_bytes(
    name: str, both: tuple[list[list[str]], list[list[str]]]
) -> None:
    pivot, source = read(both[0], "▁"), read(both[1], "Ġ")
    alignment = SEQUENCE_ALIGNMENTS[name](pivot, source)
    assert len(alignment.source_P) == len(pivot.starts_N)
    at = alignment.matched_P
    reply_of = [np.repeat(np.arange(len(side)), [len(pieces) for pieces in side]) for side in both]
    assert (reply_of[0][at] == reply_of[1][alignment.source_P[at]]).all()
    chunk_P, chunk_S = alignment.chunk_P, alignment.chunk_S
    texts = ["".join(pieces) for pieces in both[0]]
    for side, chunk_N in ((pivot, chunk_P), (source, chunk_S)):
        assert (chunk_N >= 0).all()  # both sides have all of the text
        assert (side.ends_N - side.starts_N).sum() == sum(map(len, texts))
    for chunk in np.unique(chunk_P):
        assert pivot.starts_N[chunk_P == chunk].min() == source.starts_N[chunk_S == chunk].min()
        assert pivot.ends_N[chunk_P == chunk].max() == source.ends_N[chunk_S == chunk].max()


@methods
@examples
@given(first=two_readings(), second=two_readings())
def test_joined_corpora_join_their_alignments(
    name: str, first: tuple[list[list[str]], ...], second: tuple[list[list[str]], ...]
) -> None:
    align = SEQUENCE_ALIGNMENTS[name]
    apart = [align(read(pivot), read(source)) for pivot, source in (first, second)]
    whole = align(read(first[0] + second[0]), read(first[1] + second[1]))
    source_tokens = sum(map(len, first[1]))
    shifted = np.where(apart[1].source_P >= 0, apart[1].source_P + source_tokens, -1)
    assert whole.source_P.tolist() == [*apart[0].source_P, *shifted]
    assert whole.one_to_one_P.tolist() == [*apart[0].one_to_one_P, *apart[1].one_to_one_P]


@methods
@examples
@given(both=two_readings())
def test_chunks_are_those_of_the_spans(name: str, both: tuple[list[list[str]], list[list[str]]]) -> None:
    pivot, source = read(both[0], "▁"), read(both[1], "Ġ")
    alignment = SEQUENCE_ALIGNMENTS[name](pivot, source)
    expected = align_spans(pivot.starts_N, pivot.ends_N, source.starts_N, source.ends_N)
    assert alignment.chunk_P.tolist() == expected.chunk_P.tolist()
    assert alignment.chunk_S.tolist() == expected.chunk_S.tolist()


@methods
def test_a_reply_that_one_side_lacks_has_no_partners(name: str) -> None:
    whole, second_only = read([["a", "b"], ["a", "b"]]), read([["a", "b"]], first=1)
    assert SEQUENCE_ALIGNMENTS[name](whole, second_only).source_P.tolist() == [-1, -1, 0, 1]
    assert SEQUENCE_ALIGNMENTS[name](second_only, whole).source_P.tolist() == [2, 3]
    nothing = read([])
    assert SEQUENCE_ALIGNMENTS[name](whole, nothing).source_P.tolist() == [-1] * 4
    assert SEQUENCE_ALIGNMENTS[name](nothing, whole).source_P.tolist() == []
