"""Ways of teaching on one reply, "velkak.", small enough to be worked out by hand.

The pivot reads it as vel|kak|., the coarser source as velkak|., the finer one as v|el|kak|. . Tokens by number:
pivot 0 vel, 1 kak, 2 ".", 3 velkak; coarser 0 velkak, 1 velith, 2 ".", 3 vel; finer 0 v, 1 el, 2 kak, 3 ".", 4 vel.
"""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from scipy import sparse
from transformers import LlamaConfig, LlamaForCausalLM

from consilience.align import Vocabularies, align_spans
from consilience.fuse.learn import Example, collate, fusion_objective
from consilience.fuse.represent import Shard
from consilience.fuse.teach import MERGED, PIECES, PIECES_BARE_PIVOT, TEACHINGS, TOKENS, Lesson, Link
from consilience.train import head

PIVOT, COARSER, FINER = (
    [b"vel", b"kak", b".", b"velkak"],
    [b"velkak", b"velith", b".", b"vel"],
    [b"v", b"el", b"kak", b".", b"vel"],
)
Row = tuple[int, int, float, dict[int, float]]  # token, bytes, its probability, what was kept


def shard(rows: list[Row]) -> Shard:
    ids, sizes, gold, kept = zip(*rows)
    ends = np.cumsum(sizes, dtype=np.int32)
    count, width = len(rows), max(map(len, kept))
    ids_NK = np.array([[*row, *[0] * (width - len(row))] for row in kept], dtype=np.int32)
    probs_NK = np.array([[*row.values(), *[0.0] * (width - len(row))] for row in kept])
    with np.errstate(divide="ignore"):
        logprobs_NK = np.log(probs_NK).astype(np.float16)
    zeros = np.zeros(count, dtype=np.int32)
    return Shard(
        zeros, zeros, np.arange(1, count + 1, dtype=np.int32), ends - np.array(sizes, dtype=np.int32), ends,
        zeros.astype(bool), np.array(ids, dtype=np.int32), np.log(gold).astype(np.float32), ids_NK, logprobs_NK,
    )  # fmt: skip


pivot = shard([(0, 3, 0.5, {0: 0.5, 3: 0.25, 2: 0.1}), (1, 3, 0.5, {1: 0.5}), (2, 1, 0.9, {2: 0.9})])
coarser = shard([(0, 6, 0.6, {0: 0.6, 1: 0.2, 3: 0.1}), (2, 1, 0.8, {2: 0.8})])
finer = shard(
    [(0, 1, 0.8, {0: 0.8, 2: 0.1}), (1, 2, 0.5, {1: 0.5}), (2, 3, 0.7, {2: 0.7, 3: 0.2}), (3, 1, 0.9, {3: 0.9})]
)


def taught(way: str, source: Shard, source_texts: list[bytes], pivot_texts: list[bytes] = PIVOT) -> Lesson:
    alignment = align_spans(pivot.starts_N, pivot.ends_N, source.starts_N, source.ends_N)
    return TEACHINGS[way](pivot, source, alignment, link(source_texts, pivot_texts))


def link(source_texts: list[bytes], pivot_texts: list[bytes]) -> Link:
    unseen = sparse.csr_array((len(source_texts), len(pivot_texts)))
    matches = sparse.csr_array(np.array([[float(a == b) for b in pivot_texts] for a in source_texts]))
    return Link(Vocabularies(unseen, matches, source_texts, pivot_texts), "exact")


def row(lesson: Lesson, position: int) -> dict[int, float]:
    ids, probs = lesson.rows.ids_NJ[position], lesson.rows.probs_NJ[position]
    return {int(id_): round(float(prob), 3) for id_, prob in zip(ids, probs) if prob > 1e-4}


def test_tokens_are_mapped_where_both_begin() -> None:
    lesson = taught("tokens", coarser, COARSER)
    assert [row(lesson, p) for p in range(3)] == [{3: 0.6, 0: 0.1}, {}, {2: 0.8}]
    assert set(lesson.space_P) == {TOKENS}
    assert lesson.taught_P.tolist() == [True, False, True]


def test_pieces_of_a_coarser_source_reach_inside_its_tokens() -> None:
    lesson = taught("pieces", coarser, COARSER)
    pieces = [b".", b"vel", b"velkak"]
    # velkak 0.6; velith 0.2 and vel 0.1 begin with vel. Inside velkak, "vel" is out: velkak goes on with "kak" and
    # velith with "ith", which are no shared pieces, so nothing is known there.
    assert row(lesson, 0) == {pieces.index(b"velkak"): 0.6, pieces.index(b"vel"): 0.3}
    assert row(lesson, 1) == {}
    assert row(lesson, 2) == {pieces.index(b"."): 0.8}
    with_kak = taught("pieces", coarser, [*COARSER, b"kak"])
    # Now "kak" is shared: 0.6 for it; velith goes on otherwise, vel may go on, 0.1 was not kept: 0.6 / 1.0.
    assert row(with_kak, 1) == {[b".", b"kak", b"vel", b"velkak"].index(b"kak"): pytest.approx(0.6, abs=2e-3)}


def test_pieces_of_a_finer_source_stand_for_all_tokens_that_begin_with_them() -> None:
    lesson = taught("pieces", finer, FINER, [*PIVOT, b"v"])
    pieces = [b".", b"kak", b"v", b"vel"]
    assert row(lesson, 0) == {pieces.index(b"v"): 0.8, pieces.index(b"kak"): 0.1}
    assert row(lesson, 1) == {pieces.index(b"kak"): 0.7, pieces.index(b"."): 0.2}


def test_a_blank_of_the_pivots_template_is_left_out() -> None:
    lesson = taught("pieces", finer, [b"v", b"el", b"kak", b".", b"vel"], [b" vel", b"kak", b".", b"velkak"])
    assert lesson.space_P.tolist() == [PIECES_BARE_PIVOT, PIECES, PIECES]
    assert row(lesson, 0) == {[b".", b"kak", b"vel"].index(b"kak"): 0.1}  # no token of the pivot begins with "v" alone


def test_chunks_have_the_likelihood_of_their_text() -> None:
    assert taught("chunks", coarser, COARSER).chunk_logprob_P == pytest.approx(np.log([0.6, 0.6, 0.8]), abs=1e-6)
    assert taught("chunks", finer, FINER).chunk_logprob_P == pytest.approx(np.log([0.8 * 0.5, 0.7, 0.9]), abs=1e-6)
    assert not taught("chunks", finer, FINER).has_rows_P.any()


def test_merged_multiplies_up_the_tokens_of_a_chunk() -> None:
    lesson = taught("merged", finer, FINER)
    # v|el: 0.8 before, then "el" 0.5 makes the pivot's "vel".
    assert [row(lesson, p) for p in range(3)] == [{0: 0.4}, {1: 0.7, 2: 0.2}, {2: 0.9}]
    assert set(lesson.space_P) == {MERGED}
    # A coarser source's "velkak" is the pivot's "vel", then "kak": taught at the latter, nothing at the former.
    assert [row(taught("merged", coarser, COARSER), p) for p in range(3)] == [{}, {1: 0.6}, {2: 0.8}]


def test_hybrid_adds_the_likelihood_of_chunks_that_are_not_one_to_one() -> None:
    lesson = taught("hybrid", finer, FINER)
    assert lesson.chunk_logprob_P == pytest.approx([log(0.4), np.nan, np.nan], abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("way", TEACHINGS)
@pytest.mark.parametrize(("source", "texts"), [(coarser, COARSER), (finer, FINER), (pivot, PIVOT)])
def test_rows_are_probabilities_of_distinct_outcomes(way: str, source: Shard, texts: list[bytes]) -> None:
    lesson = taught(way, source, texts)
    assert (lesson.rows.probs_NJ >= 0).all()
    assert (lesson.rows.probs_NJ.sum(1) <= 1 + 1e-3).all()
    for p in range(3):
        ids = lesson.rows.ids_NJ[p][lesson.rows.probs_NJ[p] > 0]
        assert len(set(ids.tolist())) == len(ids)
    assert lesson.taught_P.any()


@pytest.mark.parametrize("way", ["tokens", "pieces", "merged"])
def test_a_source_like_the_pivot_teaches_its_own_distributions(way: str) -> None:
    lesson = taught(way, pivot, PIVOT)
    names = sorted(PIVOT) if way == "pieces" else PIVOT
    found = {names[id_]: prob for id_, prob in row(lesson, 0).items()}
    assert found == pytest.approx({b"vel": 0.5, b"velkak": 0.25, b".": 0.1}, abs=1e-3)


def uniform() -> LlamaForCausalLM:
    """A student that thinks all four tokens alike likely, whatever it reads."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    student = LlamaForCausalLM(LlamaConfig(vocab_size=4, **sizes))
    torch.nn.init.zeros_(student.lm_head.weight)
    return student


def loss_of(lesson: Lesson, chunk_N: list[int], source_texts: list[bytes] = COARSER) -> float:
    example = Example(
        "velkak.", np.array([3, 0, 1, 2], dtype=np.int32), np.array([1, 2, 3]),
        ids_NJ=lesson.rows.ids_NJ, probs_NJ=lesson.rows.probs_NJ,
        gold_weight_N=np.zeros(3, dtype=np.float32), fusion_weight_N=lesson.taught_P.astype(np.float32),
        teacher_N=np.ones(3, dtype=np.int8), space_N=lesson.space_P, chunk_N=np.array(chunk_N, dtype=np.int32),
        chunk_logprob_N=lesson.chunk_logprob_P,
    )  # fmt: skip
    return fusion_objective("ce", {1: link(source_texts, PIVOT).pieces}.__getitem__)(uniform(), collate([example]))[
        "loss"
    ].item()


@pytest.fixture(params=[1, 2, 100])
def positions_held(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many positions of the student's four logits at once, but for a chunk: the sums are the same."""
    monkeypatch.setattr(head, "BLOCK_LOGITS", {"cpu": 4 * request.param, "cuda": 4 * request.param})


@pytest.mark.usefixtures("positions_held")
def test_the_objective_of_chunks_by_hand() -> None:
    # The student gives velkak (two tokens) 1/16 and "." 1/4.
    def coin(p: float, q: float) -> float:
        return p * log(p / q) + (1 - p) * log((1 - p) / (1 - q))

    expected = coin(0.6, 1 / 16) + coin(0.8, 1 / 4)
    assert loss_of(taught("chunks", coarser, COARSER), [7, 7, 9]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.usefixtures("positions_held")
def test_the_objective_of_merged_rows_by_hand() -> None:
    # At "kak" the student has said "vel" with 1/4: "kak" after it is 1/16, anything else 15/16.
    expected = -(0.6 * log(1 / 16) + 0.4 * log(15 / 16)) - (0.8 * log(1 / 4) + 0.2 * log(3 / 4))
    assert loss_of(taught("merged", coarser, COARSER), [7, 7, 9]) == pytest.approx(expected, abs=2e-3)


@pytest.mark.usefixtures("positions_held")
def test_the_objective_of_pieces_by_hand() -> None:
    lesson = taught("pieces", coarser, COARSER)
    # Pieces ".", "vel", "velkak" stand for one token each; "kak" is in none: "any other" has 1/4 + what is not kept.
    first = -(0.6 * log(1 / 4) + 0.3 * log(1 / 4) + 0.1 * log(1 / 2))
    last = -(0.8 * log(1 / 4) + 0.2 * log(3 / 4))
    assert loss_of(lesson, [7, 7, 9]) == pytest.approx(first + last, abs=2e-3)
