"""Representations on disk: what a shard holds, and that a lost one is made again as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from consilience.errors import ConfigError, DataError
from consilience.fuse import Representation, RepresentSettings, represent
from consilience.models import load_model
from consilience.records import Conversation, read_conversations

SETTINGS = RepresentSettings(top_k=5, shard_conversations=10, batch_tokens=600)


@pytest.fixture
def chats(world: Path) -> list[Conversation]:
    return read_conversations(world / "chats.jsonl")


def made(world: Path, name: str, chats: list[Conversation], folder: Path, **changes: object) -> Representation:
    folder.mkdir(exist_ok=True)
    settings = SETTINGS.model_copy(update=changes)
    return represent(lambda: load_model(world / name, name=name), chats, settings, folder, model_hash="hash")


@pytest.mark.parametrize("name", ["wren", "finch"])
def test_a_row_is_what_transformers_predicts_before_the_token(
    world: Path, name: str, chats: list[Conversation], tmp_path: Path
) -> None:
    shard = made(world, name, chats, tmp_path / name).shard(0)
    tokenizer, model = AutoTokenizer.from_pretrained(world / name), AutoModelForCausalLM.from_pretrained(world / name)
    for index in range(3):
        turns = [{"role": message.role, "content": message.content} for message in chats[index].messages]
        ids = tokenizer.apply_chat_template(turns, return_dict=False)
        with torch.no_grad():
            logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
        mine = shard.conversation_N == index
        at = shard.position_N[mine]
        assert shard.gold_ids_N[mine].tolist() == [ids[t] for t in at]
        assert shard.gold_logprobs_N[mine] == pytest.approx(logprobs[at - 1, shard.gold_ids_N[mine]], abs=1e-4)
        expected = np.take_along_axis(logprobs[at - 1], shard.ids_NK[mine].astype(np.int64), 1)
        assert shard.logprobs_NK[mine].astype(float) == pytest.approx(expected, abs=5e-3)  # stored in float16
        # The texts of the tokens with bytes, in order, are the replies; the closing token has no text.
        text = [
            chats[index].replies[reply].encode()[a:b]
            for reply, a, b, closing in zip(
                shard.reply_N[mine], shard.start_N[mine], shard.end_N[mine], shard.closing_N[mine]
            )
            if not closing
        ]
        assert b"".join(text).decode() == "".join(chats[index].replies)
        assert shard.closing_N[mine].sum() == len(chats[index].replies)
        assert {ids[t] for t in at[shard.closing_N[mine]]} == {tokenizer.eos_token_id}


def test_a_candidate_takes_six_bytes(world: Path, chats: list[Conversation], tmp_path: Path) -> None:
    made(world, "wren", chats, tmp_path / "k5")
    made(world, "wren", chats, tmp_path / "k9", top_k=9)
    arrays = load_file(tmp_path / "k5" / "shard-00000.safetensors")
    positions = len(arrays["conversation_N"])
    sizes = [(tmp_path / k / "shard-00000.safetensors").stat().st_size for k in ("k5", "k9")]
    assert (sizes[1] - sizes[0]) / (4 * positions) == pytest.approx(6, abs=0.05)


def test_a_lost_shard_is_made_again_as_it_was(world: Path, chats: list[Conversation], tmp_path: Path) -> None:
    folder = tmp_path / "wren"
    before = made(world, "wren", chats, folder)
    contents = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert before.shards == 3  # 24 conversations, ten to a shard
    (folder / "shard-00001.safetensors").unlink()
    (folder / "manifest.json").unlink()
    kept = (folder / "shard-00000.safetensors").stat().st_mtime_ns
    made(world, "wren", chats, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents
    assert (folder / "shard-00000.safetensors").stat().st_mtime_ns == kept


def test_conversations_that_are_cut_are_named(world: Path, chats: list[Conversation], tmp_path: Path) -> None:
    whole = made(world, "wren", chats, tmp_path / "whole")
    cut = made(world, "wren", chats, tmp_path / "cut", max_tokens=60)
    assert not whole.set_aside
    assert set(cut.set_aside.values()) == {"truncated"}
    assert all(shard.position_N.max(initial=0) < 60 for shard in cut)


def test_more_candidates_than_tokens_are_refused(world: Path, chats: list[Conversation], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"top_k is 999.*vocabulary of \d+"):
        made(world, "wren", chats, tmp_path / "wren", top_k=999)


def test_a_damaged_shard_is_named(world: Path, chats: list[Conversation], tmp_path: Path) -> None:
    representation = made(world, "wren", chats, tmp_path / "wren")
    path = tmp_path / "wren" / "shard-00001.safetensors"
    stored = path.read_bytes()
    path.write_bytes(stored[:-1] + bytes([stored[-1] ^ 1]))
    representation.shard(0)
    with pytest.raises(DataError, match=r"shard-00001.safetensors is damaged.* Remove .*wren, then"):
        representation.shard(1)


def test_float16_moves_a_log_probability_by_at_most_a_2048th() -> None:
    # Half precision has ten stored bits of fraction (IEEE 754): half a unit in the last place is 2^-11 of the number.
    logprobs = -np.geomspace(1e-4, 100, 10_000, dtype=np.float32)
    assert (np.abs(logprobs.astype(np.float16).astype(np.float32) - logprobs) <= -logprobs / 2048).all()
