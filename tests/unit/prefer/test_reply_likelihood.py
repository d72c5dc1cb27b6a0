"""Replies' log-probabilities in packed rows and head blocks against transformers' own dense logits, text by text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

from consilience.models.packed import can_pack
from consilience.prefer.likelihood import ReadReply, collate_replies, reading, reply_logprobs, score_texts
from consilience.train import logprobs_through_head

SHAPE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
PACKING = {
    "llama": LlamaConfig(**SHAPE),
    "qwen2, tied": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "mistral, window wider than the texts": MistralConfig(**SHAPE, sliding_window=64),
    "granite, scaled": GraniteConfig(**SHAPE, logits_scaling=3.0),
    "gpt2": GPT2Config(
        vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=64, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}
OTHERS = {
    "gemma2, soft caps": Gemma2Config(**SHAPE, head_dim=8, attn_logit_softcapping=2.0),
    "mistral, window": MistralConfig(**SHAPE, sliding_window=8),
    "falcon h1, a state that runs on": FalconH1Config(**SHAPE, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8),
}


def model_of(config: Any) -> Any:
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(config).eval()


def drawn(prompts: int = 3, replies: int = 3) -> list[list[ReadReply]]:
    """Replies of 1 to 12 tokens to prompts of 1 to 20; the last reply begins as the first one does."""
    draw = np.random.default_rng(2)
    made = []
    for _ in range(prompts):
        prompt = draw.integers(1, 61, draw.integers(1, 21))
        endings = [draw.integers(1, 61, draw.integers(1, 13)) for _ in range(replies - 1)]
        endings.append(np.append(endings[0], 5))
        made.append([ReadReply(np.concatenate([prompt, e]).astype(np.int32), len(prompt)) for e in endings])
    return made


def dense(model: Any, reply: ReadReply) -> torch.Tensor:
    ids = torch.from_numpy(reply.ids_T.astype(np.int64))
    logprobs_TV = model(input_ids=ids[None]).logits[0].double().log_softmax(-1)
    return logprobs_TV[reply.first - 1 : -1].gather(-1, ids[reply.first :, None]).sum()


@pytest.mark.parametrize("name", [*PACKING, *OTHERS])
def test_sums_and_gradients_are_those_of_every_text_alone(name: str) -> None:
    model, replies_of = model_of((PACKING | OTHERS)[name]), drawn()
    weights = torch.linspace(-1, 2, 9)
    expected = torch.stack([dense(model, reply) for of_prompt in replies_of for reply in of_prompt])
    (weights * expected).sum().backward()
    gradients = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    with reading(model, 33) as packed:
        assert packed == (name in PACKING)
        sums_R = reply_logprobs(model, collate_replies(replies_of, packed=packed))
        (weights * sums_R).sum().backward()
    torch.testing.assert_close(sums_R.double(), expected, rtol=1e-5, atol=1e-5)
    for key, parameter in model.named_parameters():
        if key in gradients:
            torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("block_logits", [1, 61 * 4, 1 << 20])
def test_blocks_of_any_size_give_the_same(block_logits: int) -> None:
    model = model_of(LlamaConfig(**SHAPE))
    batch = collate_replies(drawn(), packed=False)
    found = logprobs_through_head(model, batch["inputs"], batch["place"], batch["token"], block_logits=block_logits)
    whole = model(**batch["inputs"]).logits.log_softmax(-1).flatten(0, 1)[batch["place"]]
    torch.testing.assert_close(found, whole.gather(-1, batch["token"][:, None])[:, 0], rtol=1e-5, atol=1e-5)


def test_a_packed_row_has_every_prompt_once_and_no_padding() -> None:
    replies_of = drawn()
    row = collate_replies(replies_of, packed=True)
    expected = sum(r[0].first + sum(reply.tokens - 1 for reply in r) for r in replies_of)
    assert row["inputs"]["input_ids"].shape == (1, expected)
    assert row["tokens"].tolist() == [reply.tokens for r in replies_of for reply in r]


def test_gradient_checkpointing_sees_the_same_row() -> None:
    model, replies_of = model_of(LlamaConfig(**SHAPE)), drawn()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train().zero_grad()
        with reading(model.eval(), 33):
            model.train()
            reply_logprobs(model, collate_replies(replies_of, packed=True)).sum().backward()
        found.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(found[0], found[1])


def test_scores_come_in_small_batches_and_the_attention_is_given_back() -> None:
    model, replies_of = model_of(LlamaConfig(**SHAPE)), drawn()
    before = model.config._attn_implementation
    found = dict(score_texts(model, replies_of, batch_tokens=40))
    assert sorted(found) == [0, 1, 2]
    for index, sums in found.items():
        expected = [float(dense(model, reply)) for reply in replies_of[index]]
        assert sums == pytest.approx(expected, rel=1e-5)
    assert model.config._attn_implementation == before


def test_whether_a_model_packs_depends_on_how_long_the_texts_are() -> None:
    model = model_of(MistralConfig(**SHAPE, sliding_window=64))
    assert can_pack(model, 64)
    assert not can_pack(model, 65)
