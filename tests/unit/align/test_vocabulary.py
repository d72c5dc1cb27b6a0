"""Vocabulary mappings and the projection of distributions, by hand and by property."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from consilience.align import (
    VOCABULARY_MAPPINGS,
    Vocabularies,
    count_pairs,
    exact_matches,
    likeliest_partner,
    project,
)

SOURCE = [b"the", b" cat", b"cats", None, b"xyz"]
PIVOT = [None, b" cat", b"the", b"ca", b"the"]


def test_exact_matches_go_by_bytes_and_past_the_bytes_of_sentencepiece() -> None:
    assert np.argwhere(exact_matches(SOURCE, PIVOT).toarray()).tolist() == [[0, 4], [1, 1]]
    # '<0x30>' and '0', as Llama's and Mistral's vocabularies have them: the second is what stands in texts.
    assert np.argwhere(exact_matches([b"0"], [None, b"0", b"1", b"0"]).toarray()).tolist() == [[0, 3]]


def test_statistics_by_hand() -> None:
    pairs = [(0, 4), (2, 3), (2, 3), (2, 1), (1, 3)]
    source_ids, pivot_ids = (np.array(ids) for ids in zip(*pairs, strict=True))
    counts = count_pairs(source_ids, pivot_ids, (5, 5))
    mapping = VOCABULARY_MAPPINGS["statistics"](Vocabularies(counts, exact_matches(SOURCE, PIVOT), SOURCE, PIVOT))
    dense = mapping.toarray()
    assert dense[0].argmax() == 4
    assert dense[1].argmax() == 1  # one observation of " cat" -> "ca" does not outweigh equal bytes
    assert dense[2].argmax() == 3  # "cats" begins with "ca" twice, with " cat" once
    assert dense[3].sum() == dense[4].sum() == 0  # never seen, nothing alike


def test_two_observations_outweigh_equal_bytes() -> None:
    # The finer source writes "a" where the pivot has "apple": what is seen counts more than the spelling.
    counts = count_pairs(np.array([0, 0]), np.array([1, 1]), (1, 2))
    source, pivot = [b"a"], [b"a", b"apple"]
    mapping = VOCABULARY_MAPPINGS["statistics"](Vocabularies(counts, exact_matches(source, pivot), source, pivot))
    assert mapping.toarray().tolist() == [[0, 1]]


def table(
    source: list[bytes | None], pivot: list[bytes | None], counted: dict[tuple[int, int], int] | None = None
) -> Vocabularies:
    counts = np.zeros((len(source), len(pivot)), dtype=np.int64)
    for pair, times in (counted or {}).items():
        counts[pair] = times
    return Vocabularies(sparse.csr_array(counts), exact_matches(source, pivot), source, pivot)


def partners(name: str, known: Vocabularies) -> list[int]:
    return likeliest_partner(VOCABULARY_MAPPINGS[name](known)).tolist()


def test_statistics_takes_the_lowest_id_among_equals() -> None:
    known = table([b"x", b"y", b"z"], [b"p", b"q", b"r"], {(0, 2): 3, (0, 1): 3, (0, 0): 2, (2, 2): 1})
    assert partners("statistics", known) == [1, -1, 2]


def test_spread_by_hand() -> None:
    # "ab" was seen three times with "a" and twice with "abc", and equals "ab": 1.5 more.
    known = table([b"ab", b"x"], [b"a", b"ab", b"abc"], {(0, 0): 3, (0, 2): 2})
    dense = VOCABULARY_MAPPINGS["spread"](known).toarray()
    assert dense == pytest.approx(np.array([[3 / 6.5, 1.5 / 6.5, 2 / 6.5], [0, 0, 0]]))


def test_spread_leaves_rare_partners_out_and_shares_their_weight() -> None:
    known = table([b"x"], [b"p", b"q", b"r"], {(0, 0): 600, (0, 1): 395, (0, 2): 5})
    assert VOCABULARY_MAPPINGS["spread"](known).toarray() == pytest.approx(np.array([[600 / 995, 395 / 995, 0]]))


def test_spread_keeps_32_partners_and_at_least_one() -> None:
    pivot: list[bytes | None] = [bytes([id_]) for id_ in range(200)]
    forty = VOCABULARY_MAPPINGS["spread"](table([b"x" * 9], pivot, {(0, id_): 1 for id_ in range(40)})).toarray()
    assert forty[0] == pytest.approx(np.repeat([1 / 32, 0], [32, 168]))
    all_rare = VOCABULARY_MAPPINGS["spread"](table([b"x" * 9], pivot, {(0, id_): 1 for id_ in range(200)})).toarray()
    assert np.flatnonzero(all_rare[0]).tolist() == [0]


def test_first_piece_is_the_longest_beginning() -> None:
    pivot = [b"the", b"t", b" the", b"th", b"th", b"\xe6\xbc", b"", None]
    source = [b"there", b"thus", b" theory", b"tea", b"xyz", "漢".encode(), b"th", b"", None]
    assert partners("first_piece", table(source, pivot)) == [0, 4, 2, 1, -1, 5, 4, -1, -1]


def test_edit_distance_by_hand() -> None:
    pivot = [None, b"carts", b" cat", b"cut", b"na\xc3\xafve", b"\xc3", b"ca"]
    source = [b"carts", b"cats", b"cat", b" cats", b"naive", b"na\xc3\xaeve", b"\xc4", b"", None]
    # One edit: "cats" from "carts", "cat" from " cat", "cut" and "ca", " cats" from " cat", "naive" and "naîve" from
    # "naïve", where a character is one edit however many bytes it has. A lone byte is as far from any one character.
    assert partners("edit_distance", table(source, pivot)) == [1, 1, 2, 2, 4, 4, 5, -1, -1]


def test_edit_distance_goes_past_the_bytes_of_sentencepiece() -> None:
    assert partners("edit_distance", table([b"ab", b"abx"], [b"zz", b"ab", b"ab"])) == [2, 2]


def test_fusechat2_by_hand() -> None:
    source, pivot = [b"ab", b"never", b"\n", b" ", b"b"], [b"<unk>", b"b", b"a", b"\n", b"  "]
    known = table(source, pivot, {(0, 1): 5, (0, 2): 1, (2, 4): 9, (3, 4): 1, (3, 2): 1, (4, 2): 99})
    # "ab" is a tenth of one edit from "a" and from "b", times sigmoid(1) = 0.73 and sigmoid(5) = 0.99: the rarer one.
    # Never counted: no partner. The same bytes come before any count. A blank is one edit from two and from "a", both
    # counted once; not a tenth, because compared as a whole it is a part of two blanks: that is the tenth.
    assert partners("fusechat2", known) == [2, -1, 3, 4, 1]


def test_projection_adds_collisions_and_keeps_the_rest_as_other() -> None:
    mapping = sparse.csr_array(np.array([[0, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=np.float32))
    rows = project(np.array([[0, 1, 2, 3]]), np.log([[0.4, 0.2, 0.1, 0.25]]), mapping, keep=3)
    assert rows.ids_NJ.tolist() == [[1, 0, 0]]
    assert rows.probs_NJ == pytest.approx(np.array([[0.6, 0.1, 0.0]]), abs=1e-7)


def test_projection_keeps_only_the_likeliest() -> None:
    rows = project(np.array([[0, 1, 2]]), np.log([[0.2, 0.5, 0.3]]), sparse.eye_array(3, format="csr"), keep=2)
    assert rows.ids_NJ.tolist() == [[1, 2]]


@given(st.data())
def test_mass_is_never_made_nor_lost_but_to_other(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    logits = rng.normal(size=(4, 6))
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = rng.integers(-1, 5, size=6)  # -1: the token has no counterpart
    rows, columns = np.flatnonzero(target >= 0), target[target >= 0]
    mapping = sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=(6, 5)).tocsr()
    projected = project(np.tile(np.arange(6), (4, 1)), logprobs, mapping, keep=5)
    assert projected.probs_NJ.sum(1) == pytest.approx(np.exp(logprobs)[:, target >= 0].sum(1), abs=1e-6)
    assert (np.diff(projected.probs_NJ, axis=1) <= 0).all()
