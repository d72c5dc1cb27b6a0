"""What every vocabulary mapping promises. A new method is covered by its line in VOCABULARY_MAPPINGS."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from consilience.align import END, VOCABULARY_MAPPINGS, Vocabularies, exact_matches, project

mappings = pytest.mark.parametrize("name", sorted(VOCABULARY_MAPPINGS))
examples = settings(deadline=None, max_examples=60)  # the first call compiles or imports

# Control tokens, empty ones, the end of a reply, halves of characters, doubles.
texts = st.one_of(st.none(), st.just(END), st.text("ab é漢", max_size=4).map(str.encode), st.binary(max_size=2))
tables = st.lists(texts, min_size=1, max_size=7)


@st.composite
def vocabularies(draw: st.DrawFn) -> Vocabularies:
    source, pivot = draw(tables), draw(tables)
    size = len(source) * len(pivot)
    counted = draw(st.lists(st.sampled_from([0, 0, 0, 1, 2, 50]), min_size=size, max_size=size))
    counts = sparse.csr_array(np.array(counted, dtype=np.int64).reshape(len(source), len(pivot)))
    return Vocabularies(counts, exact_matches(source, pivot), source, pivot)


@mappings
@examples
@given(known=vocabularies())
def test_rows_sum_to_one_or_to_nothing(name: str, known: Vocabularies) -> None:
    mapping = VOCABULARY_MAPPINGS[name](known)
    assert mapping.shape == (len(known.source_bytes), len(known.pivot_bytes))
    assert (mapping.data > 0).all()
    sums = mapping.sum(1)
    assert sums[sums != 0] == pytest.approx(1, abs=1e-6)


@mappings
@examples
@given(known=vocabularies())
def test_a_token_without_text_goes_only_where_it_was_seen(name: str, known: Vocabularies) -> None:
    mapping = VOCABULARY_MAPPINGS[name](known).toarray()
    never = (known.counts + known.matches).toarray() == 0
    for id_, text in enumerate(known.source_bytes):
        if not text or text == END:
            assert not mapping[id_][never[id_]].any()


@mappings
@examples
@given(known=vocabularies())
def test_what_goes_in_is_left_alone(name: str, known: Vocabularies) -> None:
    before = known.counts.toarray(), known.matches.toarray(), [*known.source_bytes], [*known.pivot_bytes]
    VOCABULARY_MAPPINGS[name](known)
    assert np.array_equal(known.counts.toarray(), before[0])
    assert np.array_equal(known.matches.toarray(), before[1])
    assert ([*known.source_bytes], [*known.pivot_bytes]) == before[2:]


@mappings
@examples
@given(table=st.lists(texts, min_size=1, max_size=7, unique=True), times=st.integers(0, 9))
def test_a_vocabulary_meets_itself_token_by_token(name: str, table: list[bytes | None], times: int) -> None:
    has_text = np.array([bool(text) for text in table])
    counts = sparse.csr_array(np.diag(times * has_text))
    mapping = VOCABULARY_MAPPINGS[name](Vocabularies(counts, exact_matches(table, table), table, table))
    assert np.array_equal(mapping.toarray(), np.diag(has_text))


@mappings
def test_the_token_that_closes_a_reply_is_the_other_ones(name: str) -> None:
    source, pivot = [b"a", END, b"\xff"], [b"\xff", None, b"<end of reply>", END]
    known = Vocabularies(sparse.csr_array((3, 4), dtype=np.int64), exact_matches(source, pivot), source, pivot)
    assert VOCABULARY_MAPPINGS[name](known).toarray()[1].tolist() == [0, 0, 0, 1]
    alone = Vocabularies(sparse.csr_array((3, 3), dtype=np.int64), exact_matches(source, pivot[:3]), source, pivot[:3])
    assert not VOCABULARY_MAPPINGS[name](alone).toarray()[1].any()


@mappings
@examples
@given(known=vocabularies(), seed=st.integers(0, 99))
def test_probability_is_kept_or_becomes_other(name: str, known: Vocabularies, seed: int) -> None:
    """Top-k rows of a source: what lands on pivot tokens and what does not make up what the source kept."""
    mapping, (size, columns) = VOCABULARY_MAPPINGS[name](known), known.counts.shape
    probs = np.random.default_rng(seed).dirichlet(np.ones(size + 1))[:size]  # one share for what top-k cut off
    rows = project(np.arange(size)[None], np.log(probs[None]), mapping, keep=columns)
    assert rows.probs_NJ.min() >= 0
    has_partner = mapping.sum(1) > 0.5
    assert rows.probs_NJ.sum() == pytest.approx(probs[has_partner].sum(), abs=1e-6)
    by_hand = probs @ mapping.toarray()
    landed = rows.probs_NJ[0] > 0
    assert rows.probs_NJ[0][landed] == pytest.approx(by_hand[rows.ids_NJ[0][landed]], abs=1e-6)  # collisions add up
    assert len(set(rows.ids_NJ[0][landed])) == landed.sum()
