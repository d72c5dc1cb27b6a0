"""The fusion functions on a corpus small enough to work out by hand.

Two conversations of one reply, "abcd". The pivot reads it as ab|cd, the source as abcd (conversation 0) and ab|cd (1).
Pivot vocabulary: 0 unused, 1 "ab", 2 "cd". Source vocabulary: 0 "abcd", 1 "ab", 2 "cd".
"""

from __future__ import annotations

import json
from math import exp, log
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from consilience.errors import ConfigError, DataError
from consilience.fuse import SelectSettings, match, select
from consilience.fuse.match import AlignSettings
from consilience.fuse.represent import Representation, Shard
from consilience.fuse.select import GOLD, NO_CHUNK, load_targets
from consilience.run import write_json

PIVOT_BYTES = [None, b"ab", b"cd"]
SOURCE_BYTES = [b"abcd", b"ab", b"cd"]


def representation(folder: Path, rows: list[tuple[int, int, int, int, float, dict[int, float]]]) -> Representation:
    """Rows of (conversation, start, end, gold id, gold probability, {id: probability})."""
    folder.mkdir(parents=True)
    conversation, start, end, gold, gold_prob, top = zip(*rows)
    ids = np.array([list(candidates) for candidates in top], dtype=np.int32)
    probs = np.array([list(candidates.values()) for candidates in top])
    ints = {"conversation_N": conversation, "start_N": start, "end_N": end, "gold_ids_N": gold}
    arrays = {name: np.array(values, dtype=np.int32) for name, values in ints.items()}
    arrays |= {
        "reply_N": np.zeros(len(rows), dtype=np.int32),
        "position_N": np.arange(len(rows), dtype=np.int32),
        "closing_N": np.zeros(len(rows), dtype=bool),
        "gold_logprobs_N": np.log(gold_prob).astype(np.float32),
        "ids_NK": ids,
        "logprobs_NK": np.log(probs).astype(np.float16),
    }
    assert set(arrays) == set(Shard.__slots__)
    save_file(arrays, folder / "shard-00000.safetensors")
    write_json(
        folder / "manifest.json",
        {
            "model": folder.name,
            "vocabulary_size": 3,
            "max_tokens": 99,
            "conversations": 2,
            "shards": ["shard-00000"],
            "set_aside": {},
        },
    )
    return Representation(folder)


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Representation, dict[str, tuple]]:
    pivot = representation(
        tmp_path / "pivot",
        [
            (0, 0, 2, 1, 0.5, {1: 0.5, 2: 0.25}),
            (0, 2, 4, 2, 0.5, {2: 0.5, 1: 0.25}),
            (1, 0, 2, 1, 0.8, {1: 0.8, 2: 0.1}),
            (1, 2, 4, 2, 0.5, {2: 0.5, 1: 0.25}),
        ],
    )
    source = representation(
        tmp_path / "source",
        [
            (0, 0, 4, 0, 0.5, {0: 0.5, 1: 0.25}),
            (1, 0, 2, 1, 0.4, {1: 0.4, 0: 0.4}),
            (1, 2, 4, 2, 0.9, {2: 0.9, 1: 0.05}),
        ],
    )
    folder = tmp_path / "align"
    folder.mkdir()
    found = match(pivot, source, PIVOT_BYTES, SOURCE_BYTES, AlignSettings(), folder)
    return pivot, {"s": (source, found, "statistics")}


def targets_of(corpus: tuple, tmp_path: Path, groups: list[str], **settings: object):
    pivot, sources = corpus
    folder = tmp_path / "select"
    folder.mkdir()
    select(pivot, sources, groups, SelectSettings(**({"teach": "tokens"} | settings)), folder)
    return load_targets(folder, 0), json.loads((folder / "teachers.json").read_text())


def test_min_ce_per_sequence(corpus: tuple, tmp_path: Path) -> None:
    # Conversation 0: pivot 2 ln 2, source ln 2: the source teaches. 1: pivot -ln .40, source -ln .36: the pivot.
    targets, teachers = targets_of(corpus, tmp_path, ["g", "g"], gold_weight=0.9)
    assert targets.teacher_N.tolist() == [1, 1, 0, 0]
    assert teachers["conversations"] == ["s", None]
    # "abcd" and "ab" both begin where the pivot's "ab" begins: statistics send both there, and their mass adds up.
    assert targets.ids_NJ[0, 0] == 1
    assert targets.probs_NJ[0] == pytest.approx([0.75, 0], abs=1e-3)
    # Position 1 begins inside the source's token: no fusion term, gold at gold_weight.
    assert targets.fusion_weight_N == pytest.approx([0.1, 0, 0.1, 0.1])
    assert targets.gold_weight_N == pytest.approx([0.9, 0.9, 0.9, 0.9])
    assert targets.probs_NJ[2] == pytest.approx([0.8, 0.1], abs=1e-3)  # the pivot's own distribution


def test_unmatched_positions_can_take_gold_at_full_weight(corpus: tuple, tmp_path: Path) -> None:
    targets, _ = targets_of(corpus, tmp_path, ["g", "g"], gold_weight=0.2, unmatched="gold", pivot_wins="gold")
    assert targets.teacher_N.tolist() == [1, 1, GOLD, GOLD]
    assert targets.gold_weight_N == pytest.approx([0.2, 1, 1, 1])
    assert targets.fusion_weight_N == pytest.approx([0.8, 0, 0, 0])


def test_min_ce_per_data_set_pools_the_conversations(corpus: tuple, tmp_path: Path) -> None:
    # Pooled: pivot 2 ln 2 - ln .40 = 2.30, source ln 2 - ln .36 = 1.71: the source teaches all of group g.
    targets, teachers = targets_of(corpus, tmp_path, ["g", "g"], per="dataset")
    assert targets.teacher_N.tolist() == [1, 1, 1, 1]
    assert teachers["conversations"] == ["s", "s"]
    assert teachers["positions"] == {"g": {"s": 3, "unmatched": 1}}


def test_min_ce_per_token_decides_in_every_chunk(corpus: tuple, tmp_path: Path) -> None:
    # Conversation 1, chunk "ab": pivot .8 against .4; chunk "cd": source .9 against .5.
    targets, _ = targets_of(corpus, tmp_path, ["g", "g"], per="token")
    assert targets.teacher_N.tolist() == [1, 1, 0, 1]


def test_avg_ce_weighs_by_the_softmax_of_likelihoods(corpus: tuple, tmp_path: Path) -> None:
    targets, _ = targets_of(corpus, tmp_path, ["g", "g"], function="avg_ce")
    # Conversation 1, in nats per pivot token: pivot -ln(.40)/2, source -ln(.36)/2.
    pivot, source = exp(exp(log(0.40) / 2)), exp(exp(log(0.36) / 2))
    weight = pivot / (pivot + source)
    assert targets.ids_NJ[3, 0] == 2
    assert targets.probs_NJ[3, 0] == pytest.approx(weight * 0.5 + (1 - weight) * 0.9, abs=1e-3)
    assert targets.fusion_weight_N[1] == 0  # no partner: no fusion term
    assert (targets.probs_NJ.sum(1) <= 1 + 1e-6).all()


def test_without_sources_gold_is_all_there_is(corpus: tuple, tmp_path: Path) -> None:
    targets, teachers = targets_of((corpus[0], {}), tmp_path, ["g", "g"])
    assert set(targets.teacher_N.tolist()) == {GOLD}
    assert targets.gold_weight_N.tolist() == [1, 1, 1, 1]
    assert not targets.fusion_weight_N.any()
    assert teachers["conversations"] == [None, None]


def another_source(corpus: tuple, tmp_path: Path, rows: list) -> tuple:
    """The corpus with a second source `t`, which sees the text as the pivot does."""
    pivot, sources = corpus
    source = representation(tmp_path / "another", rows)
    folder = tmp_path / "align_another"
    folder.mkdir()
    found = match(pivot, source, PIVOT_BYTES, SOURCE_BYTES, AlignSettings(), folder)
    return pivot, sources | {"t": (source, found, "statistics")}


def test_avg_ce_leaves_out_a_source_that_did_not_read_the_conversation(corpus: tuple, tmp_path: Path) -> None:
    both = another_source(
        corpus, tmp_path, [(0, 0, 2, 1, 0.5, {1: 0.5, 2: 0.25}), (0, 2, 4, 2, 0.5, {2: 0.5, 1: 0.25})]
    )
    targets, _ = targets_of(both, tmp_path, ["g", "g"], function="avg_ce")
    # Conversation 1 is weighed as without `t`.
    pivot, source = exp(exp(log(0.40) / 2)), exp(exp(log(0.36) / 2))
    weight = pivot / (pivot + source)
    assert targets.probs_NJ[3, 0] == pytest.approx(weight * 0.5 + (1 - weight) * 0.9, abs=1e-3)


def test_min_ce_per_token_compares_sources_per_byte(corpus: tuple, tmp_path: Path) -> None:
    # Conversation 0: s gains ln 2 on the four bytes of "abcd", 0.17 a byte; t ln 1.8 on the two of "ab", 0.29 a byte.
    both = another_source(
        corpus, tmp_path, [(0, 0, 2, 1, 0.9, {1: 0.9, 2: 0.05}), (0, 2, 4, 2, 0.5, {2: 0.5, 1: 0.25})]
    )
    targets, _ = targets_of(both, tmp_path, ["g", "g"], per="token")
    assert targets.teacher_N[:2].tolist() == [2, 1]


@pytest.mark.parametrize("teach", ["chunks", "merged", "hybrid"])
def test_a_chunk_that_two_sources_share_out_is_not_taught_as_a_whole(corpus: tuple, tmp_path: Path, teach: str) -> None:
    # As above: t teaches "ab" and s, whose chunk is "abcd", only "cd". What s thinks of "abcd" is not said of "cd".
    both = another_source(
        corpus, tmp_path, [(0, 0, 2, 1, 0.9, {1: 0.9, 2: 0.05}), (0, 2, 4, 2, 0.5, {2: 0.5, 1: 0.25})]
    )
    targets, teachers = targets_of(both, tmp_path, ["g", "h"], per="token", teach=teach)
    assert targets.teacher_N.tolist() == [2, 1, 0, 1]
    assert targets.fusion_weight_N[:2] == pytest.approx([0.1, 0])
    assert not targets.probs_NJ[1].any()
    assert not np.isfinite(targets.chunk_logprob_N[1])
    assert teachers["positions"]["g"] == {"t": 1, "unmatched": 1}
    # Of the chunks that are taught, each has a number of its own, in the order of the text.
    assert targets.chunk_N.tolist() == [0, NO_CHUNK, NO_CHUNK, 3]


def test_a_teacher_without_weight_is_still_named(corpus: tuple, tmp_path: Path) -> None:
    _, teachers = targets_of(corpus, tmp_path, ["g", "g"], gold_weight=1.0)
    assert teachers["positions"] == {"g": {"s": 1, "unmatched": 1, "pivot": 2}}


def test_a_source_that_matches_nowhere_is_refused_whatever_min_matched_says(corpus: tuple, tmp_path: Path) -> None:
    shifted = [(0, 1, 3, 1, 0.5, {1: 0.5, 2: 0.25}), (1, 1, 3, 2, 0.5, {2: 0.5, 1: 0.25})]
    source = representation(tmp_path / "shifted", shifted)
    with pytest.raises(DataError, match=r"only 0\.0%"):
        match(corpus[0], source, PIVOT_BYTES, SOURCE_BYTES, AlignSettings(min_matched=0), tmp_path)


def test_averaging_needs_distributions_over_tokens() -> None:
    with pytest.raises(ConfigError, match=r"avg_ce averages distributions over pivot tokens.*select\.teach=tokens"):
        SelectSettings(function="avg_ce")
    assert SelectSettings(function="avg_ce", teach="tokens").teach == "tokens"
