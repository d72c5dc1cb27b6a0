"""The models of the search experiment: a larger one that stays as it is, and a small one that DPO tunes into a guide.

Tuning has a loop of its own over `prefer`'s loss and not the common trainer: 128 steps on padded tensors need no
checkpoints, and its other order of the pairs would move every figure of docs/search.md by chance.

Shapes: N texts, B those of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from consilience.chat import render_prompt
from consilience.models import ChatModel
from consilience.pipelines.tiny import reviews
from consilience.pipelines.tiny.models import IGNORED, encode
from consilience.pipelines.weak_to_strong_recipe import ReviewsSettings
from consilience.prefer.losses import LossSettings, PairLogprobs, pair_loss
from consilience.records import Conversation, Message
from consilience.rng import seed_of, stream

LONGEST = 48  # tokens of a sampled reply; a correct one has at most 42


def large_architecture(**settings: Any) -> LlamaConfig:
    return _llama(96, 3, **settings)


def small_architecture(**settings: Any) -> LlamaConfig:
    return _llama(32, 1, **settings)


def _llama(width: int, layers: int, **settings: Any) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 32),
        num_key_value_heads=max(1, width // 32),
        max_position_embeddings=96,
        tie_word_embeddings=True,
        initializer_range=0.05,
        **settings,
    )


def tune(
    untuned: ChatModel,
    folder: Path,
    settings: ReviewsSettings,
    seed: int,
    *,
    on_step: Callable[[int, int], None] = lambda step, steps: None,
) -> None:
    """DPO of a small model on pairs of its own samples, which the gold reward labels by Bradley and Terry's rule."""
    pairs = _sampled_pairs(untuned, settings.pairs, seed)
    rng = stream(seed, "reviews", "labels")
    rewards = np.array([[reviews.reward(reply) for reply in replies] for _, replies in pairs])
    first_wins = rng.random(len(pairs)) < 1 / (1 + np.exp(rewards[:, 1] - rewards[:, 0]))
    chosen, rejected = (
        encode(
            untuned.tokenizer, [_chat(prompt, replies[int(which)]) for (prompt, replies), which in zip(pairs, index)]
        )
        for index in (~first_wins, first_wins)
    )
    policy = AutoModelForCausalLM.from_pretrained(untuned.name).train()
    with torch.inference_mode():
        reference = [label_logprobs(untuned.model, *side).sum(-1) for side in (chosen, rejected)]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=settings.dpo_learning_rate)
    loss_settings = LossSettings(name="dpo", beta=settings.dpo_beta)
    batches = list(_batches(len(pairs), settings.dpo_epochs, stream(seed, "reviews", "dpo")))
    for step, rows in enumerate(batches):
        ours = [
            label_logprobs(policy, ids_NT[rows], labels_NT[rows]).sum(-1) for ids_NT, labels_NT in (chosen, rejected)
        ]
        loss = pair_loss(_pair_logprobs(ours, [side[rows] for side in reference]), loss_settings).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        on_step(step + 1, len(batches))
    policy.save_pretrained(folder)
    untuned.tokenizer.save_pretrained(folder)


def _chat(prompt: str, reply: str) -> Conversation:
    return Conversation("", (Message("user", prompt), Message("assistant", reply)))


def _sampled_pairs(model: ChatModel, count: int, seed: int) -> list[tuple[str, tuple[str, str]]]:
    """Prompts with two replies of `model` each, at temperature 1; equal replies teach nothing and are left out."""
    rng = stream(seed, "reviews", "pairs")
    prompts = [reviews.draw_prompt(rng, reviews.HOW_MANY[rng.integers(2)]) for _ in range(count)]
    ids_NT = torch.tensor([render_prompt(model.tokenizer, (Message("user", prompt),)).tolist() for prompt in prompts])
    pairs: list[tuple[str, tuple[str, str]]] = []
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "reviews", "replies"))
        for rows in torch.arange(count).split(256):
            found = model.model.generate(
                ids_NT[rows],
                attention_mask=torch.ones_like(ids_NT[rows]),
                do_sample=True,
                top_k=0,
                num_return_sequences=2,
                max_new_tokens=LONGEST,
            )
            texts = model.tokenizer.batch_decode(found[:, ids_NT.shape[1] :], skip_special_tokens=True)
            pairs += zip([prompts[row] for row in rows.tolist()], zip(texts[::2], texts[1::2]))
    return [pair for pair in pairs if pair[1][0] != pair[1][1]]


def _batches(count: int, epochs: int, rng: np.random.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.from_numpy(rng.permutation(count)).split(64)


def label_logprobs(model: Any, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Log-probability in nats of every label, 0 where there is none, shape [B, T - 1]."""
    logprobs = model(ids_BT[:, :-1]).logits.float().log_softmax(-1)
    labels = labels_BT[:, 1:]
    return logprobs.gather(-1, labels.clamp_min(0)[..., None])[..., 0] * (labels != IGNORED)


def _pair_logprobs(ours: Sequence[Tensor], reference: Sequence[Tensor]) -> PairLogprobs:
    ones = torch.ones_like(ours[0])
    chosen, rejected = ours
    ref_chosen, ref_rejected = reference
    return PairLogprobs(chosen, rejected, chosen, ref_chosen, ref_rejected, ref_chosen, ones, ones, ones)
