"""Shared pieces, against spellings small enough to be read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from consilience.align.pieces import NO_PIECE, bare, inside_rows, longest_piece, merged_rows, shared_pieces, to_pieces
from consilience.align.project import project

FINE = [b"v", b"vel", b"kak", b"ith", b" ", None, b" v"]
COARSE = [b"velkak", b"velith", b"kak", b"vel", b" vel", b"x", None]


def test_a_token_belongs_to_the_longest_shared_piece_it_begins_with() -> None:
    pieces = shared_pieces(FINE, COARSE)
    assert pieces.texts == [b"kak", b"vel"]
    assert pieces.of_source.tolist() == [NO_PIECE, 1, 0, NO_PIECE, NO_PIECE, NO_PIECE, NO_PIECE]
    assert pieces.of_pivot.tolist() == [1, 1, 0, 1, NO_PIECE, NO_PIECE, NO_PIECE]
    assert shared_pieces(FINE, bare(COARSE)).of_pivot.tolist() == [1, 1, 0, 1, 1, NO_PIECE, NO_PIECE]


def test_the_same_vocabulary_shares_every_token() -> None:
    pieces = shared_pieces(COARSE, COARSE)
    assert [pieces.texts[number] for number in pieces.of_source[:6]] == COARSE[:6]
    assert pieces.of_source[6] == NO_PIECE


def test_what_tokens_really_begin_with_outweighs_the_longest_piece() -> None:
    # The pivot knows " conference" but writes " conferences" as " con" and "ferences": three times, once otherwise.
    source, pivot = [b" conferences", b" con", b" conference"], [b" conference", b" con", b"ferences"]
    counts = sparse.csr_array(np.array([[1, 3, 0], [0, 5, 0], [2, 0, 0]]))
    pieces = shared_pieces(source, pivot, counts)
    assert [pieces.texts[number] for number in pieces.of_source] == [b" con", b" con", b" conference"]
    assert [pieces.texts[number] for number in pieces.of_pivot[:2]] == [b" conference", b" con"]
    # A token of the other side that is no beginning of it says nothing: another template's blank, for instance.
    counts = sparse.csr_array(np.array([[9]]))
    assert shared_pieces([b"G"], [b" G"], counts).of_source.tolist() == [NO_PIECE]


def test_a_coarser_source_is_projected_onto_the_pieces() -> None:
    pieces = shared_pieces(COARSE, FINE)
    rows = project(
        np.array([[0, 1, 2]]), np.log([[0.5, 0.3, 0.1]]), to_pieces(pieces.of_source, len(pieces.texts)), keep=3
    )
    assert rows.ids_NJ[0, :2].tolist() == [1, 0]  # "vel", "kak"
    assert rows.probs_NJ[0].tolist() == pytest.approx([0.8, 0.1, 0.0])


def test_inside_a_longer_token_the_candidates_that_go_on_are_left() -> None:
    # "vel" is out. velkak 0.4 and velith 0.2 go on, "vel" 0.1 may, "kak" 0.2 says otherwise, 0.1 was not kept.
    rows = inside_rows(
        np.array([[0, 1, 3, 2]]), np.log([[0.4, 0.2, 0.1, 0.2]]), [b"vel"], COARSE, [b"ith", b"kak", b"vel"]
    )
    assert rows.ids_NJ[0, :2].tolist() == [1, 0]
    assert rows.probs_NJ[0, :3].tolist() == pytest.approx([0.4 / 0.8, 0.2 / 0.8, 0.0])


def test_inside_a_token_that_the_source_hardly_thinks_of_nothing_is_taught() -> None:
    rows = inside_rows(np.array([[0, 2]]), np.log([[0.1, 0.6]]), [b"vel"], COARSE, [b"kak"])
    assert not rows.probs_NJ.any()  # 0.1 goes on, 0.3 was not kept and may


def test_the_tokens_of_a_chunk_are_multiplied_up() -> None:
    # A finer source wrote "vel" with 0.8 and now thinks "kak" 0.5, "ith" 0.25: the pivot's "velkak" 0.4, "velith" 0.2.
    rows = merged_rows(
        np.array([[2, 3]]), np.log([[0.5, 0.25]]), np.log([0.8]), [b"vel"], [b""], np.array([0]), FINE, COARSE
    )
    assert dict(zip(rows.ids_NJ[0].tolist(), rows.probs_NJ[0].tolist())) == pytest.approx({0: 0.4, 1: 0.2})


def test_a_blank_of_one_template_is_no_part_of_what_is_said() -> None:
    here, there = [b" vel", b"kak"], [b"vel", b"kak"]
    one, said = np.log([[0.5, 0.25]]), ([b""], [b""])
    on_source = merged_rows(np.array([[0, 1]]), one, np.zeros(1), *said, np.array([1]), here, there)
    assert on_source.ids_NJ[0].tolist() == [0, 1]
    on_pivot = merged_rows(np.array([[0, 1]]), one, np.zeros(1), *said, np.array([-1]), there, here)
    assert on_pivot.probs_NJ[0].tolist() == pytest.approx([0.5, 0.0])  # " vel"; the pivot has no " kak"


def test_of_several_pivot_tokens_with_one_text_the_written_one_is_taught() -> None:
    # Sentencepiece's <0x30> has a low id and text never shows it; '0' is written with the other one.
    rows = merged_rows(
        np.array([[0, 1]]), np.log([[0.5, 0.25]]), np.zeros(1), [b""], [b""], np.array([0]), [b"0", b"1"],
        [b"0", b"1", b"x", b"0"],
    )  # fmt: skip
    assert rows.ids_NJ[0].tolist() == [3, 1]


def test_merged_rows_put_the_likeliest_first() -> None:
    # " vel" 0.3, "vel" 0.25 and "velkak" 0.4: without the template's blank the first two are one token, with 0.55.
    rows = merged_rows(
        np.array([[1, 0, 2]]), np.log([[0.4, 0.3, 0.25]]), np.zeros(1), [b""], [b""], np.array([1]),
        [b" vel", b"velkak", b"vel"], [b"vel", b"velkak"],
    )  # fmt: skip
    assert rows.ids_NJ[0].tolist() == [0, 1, 0]
    assert rows.probs_NJ[0].tolist() == pytest.approx([0.55, 0.4, 0.0])


texts = st.lists(st.binary(min_size=1, max_size=4), min_size=1, max_size=12)


@given(texts, texts, st.binary(min_size=1, max_size=6))
def test_a_piece_is_a_beginning_and_no_longer_one_exists(source, pivot, text) -> None:
    pieces = shared_pieces(source, pivot).texts
    number = {piece: index for index, piece in enumerate(pieces)}
    found = longest_piece(text, number)
    beginnings = [piece for piece in pieces if text.startswith(piece)]
    assert (found == NO_PIECE) == (not beginnings)
    assert found == NO_PIECE or pieces[found] == max(beginnings, key=len)
