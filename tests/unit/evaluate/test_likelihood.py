"""Held-out likelihood against transformers' own loss, and its accounting of what was not scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from consilience.evaluate import held_out_likelihood
from consilience.models import load_model
from consilience.records import Conversation, Message, read_conversations


@pytest.mark.parametrize("name", ["wren", "finch"])
def test_nats_are_transformers_loss_on_the_replys_text(world: Path, name: str) -> None:
    turns = [{"role": "user", "content": "Hello there"}, {"role": "assistant", "content": "Bread, salt and time."}]
    chat = Conversation("c", tuple(Message(**turn) for turn in turns))
    [record] = held_out_likelihood(load_model(world / name), [chat], max_tokens=512)

    tokenizer = AutoTokenizer.from_pretrained(world / name)
    ids = tokenizer.apply_chat_template(turns, return_dict=False)
    prompt = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, return_dict=False)
    assert ids[: len(prompt)] == prompt
    end = ids.index(tokenizer.eos_token_id, len(prompt))  # the token that ends the reply is no text
    labels = [id_ if len(prompt) <= i < end else -100 for i, id_ in enumerate(ids)]
    model = AutoModelForCausalLM.from_pretrained(world / name)
    with torch.no_grad():
        mean_nats = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
    assert (record.bytes, record.tokens) == (len("Bread, salt and time."), end - len(prompt))
    assert record.nats == pytest.approx(mean_nats * record.tokens, rel=1e-4)


def test_every_conversation_has_a_record_in_order(world: Path) -> None:
    chats = read_conversations(world / "chats.jsonl")
    empty = Conversation("none", (Message("user", "a"), Message("assistant", "")))
    records = held_out_likelihood(load_model(world / "wren"), [*chats, empty], max_tokens=90)
    assert [record.id for record in records] == [chat.id for chat in [*chats, empty]]
    statuses = {record.status for record in records}
    assert {"scored", "truncated", "empty reply"} <= statuses
    assert all((record.status == "scored") == (record.bytes > 0) for record in records)
    assert np.isfinite([record.nats for record in records]).all()
