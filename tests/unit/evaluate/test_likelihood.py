"""Held-out likelihood against transformers' own loss, and its accounting of what was not scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from consilience.evaluate import held_out_likelihood
from consilience.models import ChatModel, load_model
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


def test_a_token_that_reaches_past_the_reply_covers_only_the_replys_bytes() -> None:
    vocabulary = {piece: i for i, piece in enumerate([*ByteLevel.alphabet(), ".Ċ"])}
    tokenizer = Tokenizer(BPE(vocabulary, [(".", "Ċ")]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(False, use_regex=False), ByteLevelDecoder()
    template = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}\n{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<e>", chat_template=template)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=len(fast), n_embd=8, n_head=1, n_layer=1)).eval()
    chat = Conversation("c", (Message("user", "?"), Message("assistant", "Ab.")))
    [record] = held_out_likelihood(ChatModel("m", model, fast), [chat], max_tokens=99)
    assert (record.tokens, record.bytes) == (3, 3)  # "A", "b" and ".\n", of which "\n" is the template's
