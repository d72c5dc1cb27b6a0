"""Vocabulary mappings and the projection of distributions, by hand and by property."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from consilience.align import VOCABULARY_MAPPINGS, count_pairs, exact_matches, project

SOURCE = [b"the", b" cat", b"cats", None, b"xyz"]
PIVOT = [None, b" cat", b"the", b"ca", b"the"]


def test_exact_matches_go_by_bytes_and_to_the_lowest_id() -> None:
    assert np.argwhere(exact_matches(SOURCE, PIVOT).toarray()).tolist() == [[0, 2], [1, 1]]


def test_statistics_by_hand() -> None:
    pairs = [(0, 2), (2, 3), (2, 3), (2, 1), (1, 3)]
    source_ids, pivot_ids = (np.array(ids) for ids in zip(*pairs, strict=True))
    mapping = VOCABULARY_MAPPINGS["statistics"](
        count_pairs(source_ids, pivot_ids, (5, 5)), exact_matches(SOURCE, PIVOT)
    )
    dense = mapping.toarray()
    assert dense[0].argmax() == 2
    assert dense[1].argmax() == 1  # one observation of " cat" -> "ca" does not outweigh equal bytes
    assert dense[2].argmax() == 3  # "cats" begins with "ca" twice, with " cat" once
    assert dense[3].sum() == dense[4].sum() == 0  # never seen, nothing alike


def test_two_observations_outweigh_equal_bytes() -> None:
    # The finer source writes "a" where the pivot has "apple": what is seen counts more than the spelling.
    counts = count_pairs(np.array([0, 0]), np.array([1, 1]), (1, 2))
    mapping = VOCABULARY_MAPPINGS["statistics"](counts, exact_matches([b"a"], [b"a", b"apple"]))
    assert mapping.toarray().tolist() == [[0, 1]]


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
