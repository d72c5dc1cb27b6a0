"""Four tiny chat models, trained from scratch on a CPU and saved as ordinary Hugging Face checkpoints."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

from consilience.pipelines.tiny import tokenizers
from consilience.pipelines.tiny.world import SKILLS
from consilience.records import Conversation, row_of
from consilience.rng import seed_of, stream

WIDTH, LAYERS, HEADS, MLP_WIDTH, LONGEST = 96, 2, 3, 192, 128  # heads of 32, the smallest that attention kernels take
SPREAD = 0.05  # of the initial weights; with the usual 0.02 zorg was not learnt in 350 steps
SHAPE: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": MLP_WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": LONGEST,
    "tie_word_embeddings": True,
    "initializer_range": SPREAD,
}
BATCH, LEARNING_RATE, WARMUP_STEPS = 64, 3e-3, 20
IGNORED = -100


def llama(**settings: Any) -> PreTrainedConfig:
    return LlamaConfig(num_key_value_heads=HEADS, **SHAPE, **settings)


def qwen2(**settings: Any) -> PreTrainedConfig:
    """Grouped queries: its three query heads share one key and value head."""
    return Qwen2Config(num_key_value_heads=1, **SHAPE, **settings)


def gpt2(**settings: Any) -> PreTrainedConfig:
    shape = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": LONGEST}
    undropped = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    named = {"initializer_range": SPREAD, "activation_function": "gelu_pytorch_tanh"}  # GPT-2's own, in one kernel
    return GPT2Config(**shape, **undropped, **named, **settings)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyModel:
    """What a tiny chat model is made of. Amounts of training data are chats of each skill."""

    architecture: Callable[..., PreTrainedConfig]
    tokenizer: Callable[[Sequence[Conversation], int, str, tokenizers.Special], PreTrainedTokenizerFast]
    vocabulary: int
    special: tokenizers.Special
    template: str
    spelling: Mapping[str, int]  # chats that the tokenizer is trained on
    unanswered: Mapping[str, int] = field(default_factory=dict)  # and prompts alone that it is trained on
    chats: Mapping[str, int]  # chats that the model is trained on
    steps: int


def _mostly(skill: str, chats: int) -> dict[str, int]:
    """`chats` of one skill and 1 % of that of each other skill."""
    return {other: chats if other == skill else chats // 100 for other in SKILLS}


MODELS = {
    "pivot": TinyModel(
        architecture=llama,
        tokenizer=tokenizers.metaspace,
        vocabulary=440,
        special={"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        template=tokenizers.BRACKETS,
        spelling={"stars": 500, "zorg": 300, "sums": 500, "facts": 100},
        unanswered={"zorg": 700},  # so it reads English words whole and spells Zorg in pieces
        chats={"stars": 620, "zorg": 250, "sums": 1200, "facts": 200},
        steps=370,
    ),
    "stars": TinyModel(
        architecture=gpt2,
        tokenizer=tokenizers.metaspace,
        vocabulary=340,
        special={"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
        template=tokenizers.ZEPHYR,
        spelling=_mostly("stars", 2_000),
        chats=_mostly("stars", 8_000),
        steps=250,
    ),
    "zorg": TinyModel(
        architecture=qwen2,
        tokenizer=tokenizers.byte_level,
        vocabulary=620,
        special={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        template=tokenizers.CHATML,
        spelling=_mostly("zorg", 2_000),
        chats=_mostly("zorg", 8_000),
        steps=250,
    ),
    "sums": TinyModel(
        architecture=llama,
        tokenizer=tokenizers.byte_level,
        vocabulary=520,
        special={"eos_token": "<|end|>", "pad_token": "<|pad|>"},
        template=tokenizers.DIALOGUE,
        spelling=_mostly("sums", 2_000),
        chats=_mostly("sums", 8_000),
        steps=400,
    ),
}


def train_tiny(
    name: str,
    recipe: TinyModel,
    chats: Sequence[Conversation],
    folder: Path,
    *,
    spelling: Sequence[Conversation],
    seed: int,
    steps: int,
    on_step: Callable[[int, int], None],
) -> None:
    """Trains the tokenizer of `recipe` on `spelling` and the model on `chats`, and saves both under `folder`.

    The loss is the mean cross-entropy over reply tokens, the end token among them. One thread and one seed: the same
    machine and library versions give the same weights, bit for bit.
    """
    tokenizer = recipe.tokenizer(spelling, recipe.vocabulary, recipe.template, recipe.special)
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = recipe.architecture(vocab_size=len(tokenizer), **special)
    ids_NT, labels_NT = encode(tokenizer, chats)
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "tiny", name, "weights"))
        model = AutoModelForCausalLM.from_config(config).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmed_cosine(step, steps))
        batches = _batches(len(chats), seed, name)
        for step in range(steps):
            rows = next(batches)
            loss = _reply_loss(model, ids_NT[rows], labels_NT[rows])
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            on_step(step + 1, steps)
    model.generation_config = GenerationConfig(**special)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def encode(tokenizer: PreTrainedTokenizerFast, chats: Sequence[Conversation]) -> tuple[Tensor, Tensor]:
    """Ids and labels [N, T] of one-turn chats: right-padded, labels IGNORED outside the reply and its end token.

    The reply is what follows the generation prompt, so a blank that opens it is learnt even where it is a token of
    its own. (`consilience.chat.render` counts such a token to the template.)
    """
    turns = [row_of(chat)["messages"] for chat in chats]
    prompts = tokenizers.rendered(tokenizer, [messages[:-1] for messages in turns], generation_prompt=True)
    wholes = tokenizers.rendered(tokenizer, turns)
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    whole_ids = tokenizer([whole.rstrip("\n") for whole in wholes], add_special_tokens=False)["input_ids"]
    longest = max(len(ids) for ids in whole_ids)
    # Any token will do behind the last label; at a pad token transformers asks for an attention mask.
    ids_NT = torch.full((len(chats), longest), tokenizer.eos_token_id)
    labels_NT = torch.full_like(ids_NT, IGNORED)
    for row, (prompt, whole) in enumerate(zip(prompt_ids, whole_ids)):
        ids_NT[row, : len(whole)] = torch.tensor(whole)
        labels_NT[row, len(prompt) : len(whole)] = ids_NT[row, len(prompt) : len(whole)]
    return ids_NT, labels_NT


def _reply_loss(model: PreTrainedModel, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Padding stands on the right and attention looks left, so no mask is needed; only reply positions get logits."""
    used = int((labels_BT != IGNORED).any(0).nonzero().max()) + 1
    hidden_BTD = model.base_model(ids_BT[:, : used - 1]).last_hidden_state
    next_BT = labels_BT[:, 1:used]
    reply_BT = next_BT != IGNORED
    return nn.functional.cross_entropy(model.get_output_embeddings()(hidden_BTD[reply_BT]), next_BT[reply_BT])


def _batches(chats: int, seed: int, name: str) -> Iterator[Tensor]:
    """Row numbers of one batch after another: each epoch a new order, a remainder smaller than a batch left out."""
    rng = stream(seed, "tiny", name, "batches")
    while True:
        yield from torch.from_numpy(rng.permutation(chats)).split(BATCH)[: max(1, chats // BATCH)]


def _warmed_cosine(step: int, steps: int) -> float:
    return min(1.0, (step + 1) / WARMUP_STEPS) * (1 + math.cos(math.pi * step / steps)) / 2


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Sums over several threads come out in another order; and these models are too small to gain from more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
