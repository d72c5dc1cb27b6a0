"""Small chat models of ours that code tweets, trained from scratch on the 2,000 labelled tweets that they are given.

What a bag of words knows is most of what so few tweets can teach, so the models are near to one: a single layer, whose
attention starts out nearly even over all tokens before the reply, or stays even. Words are lower case, byte-pair merges
are learnt on the tweets themselves. A batch has as many tweets of every label, words of a tweet are hidden at random,
and what is saved is the running average of the weights. The loss is on the reply: the label and the end of the turn.

Shapes: N chats, B chats in a batch, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
)

from consilience.annotate.codebook import Codebook
from consilience.annotate.strategies import Ask, Wording, answer_of, zero_shot
from consilience.pipelines.tiny import tokenizers
from consilience.pipelines.tiny.models import IGNORED, encode
from consilience.records import Conversation, Message
from consilience.rng import seed_of, stream

SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
# Words, hashtags and @user with the blank before them; punctuation that stands together, emoticons among it.
WORDS = r" ?[#@]?[\p{L}\p{N}_']+| ?[^\s\p{L}\p{N}#@]+| ?[#@]|\s+"


@dataclass(frozen=True, kw_only=True)
class TweetModel:
    """What a model is made of and how it is trained."""

    architecture: Callable[..., PreTrainedConfig]
    steps: int
    vocabulary: int = 6000
    batch: int = 48
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    hidden_words: float = 0.2
    averaged_over: int = 200  # steps that the running average of the weights looks back
    even_attention: bool = False  # queries and keys stay zero: every token counts the same


def llama(**settings: Any) -> PreTrainedConfig:
    return LlamaConfig(
        hidden_size=96, intermediate_size=96, num_hidden_layers=1, num_attention_heads=3, num_key_value_heads=3,
        max_position_embeddings=512, tie_word_embeddings=False, initializer_range=0.02, attention_dropout=0.1,
        **settings,
    )  # fmt: skip


def gpt2(**settings: Any) -> PreTrainedConfig:
    return GPT2Config(
        n_embd=96, n_layer=1, n_head=3, n_inner=96, n_positions=512, initializer_range=0.02, resid_pdrop=0.2,
        embd_pdrop=0.2, attn_pdrop=0.1, tie_word_embeddings=False, **settings,
    )  # fmt: skip


MODELS = {
    "llama": TweetModel(architecture=llama, steps=240, even_attention=True),
    "gpt2": TweetModel(architecture=gpt2, steps=400, hidden_words=0.3),
}


def chats_of(labelled: Sequence[tuple[str, str]], book: Codebook, wording: Wording) -> list[Conversation]:
    """Tweets and labels as the zero-shot strategy asks for them, the label as the reply."""
    chats = []
    for i, (text, label) in enumerate(labelled):
        ask = Ask(codebook=book, text=text, wording=wording, order=tuple(range(len(book.labels))))
        turns = (*zero_shot(ask).messages, Message("assistant", answer_of(ask, label)))
        chats.append(Conversation(str(i), turns))
    return chats


def train_tweet_model(
    name: str,
    made_of: TweetModel,
    chats: Sequence[Conversation],
    labels: Sequence[str],
    folder: Path,
    *,
    seed: int,
    on_step: Callable[[int, int], None],
) -> None:
    """Trains tokenizer and model on `chats`, whose replies are `labels`, and saves both under `folder`."""
    tokenizer = lower_case_bytes(chats, made_of.vocabulary)
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    ids_NT, labels_NT = encode(tokenizer, chats)
    tweet_NT = _between_what_all_share(ids_NT, labels_NT)
    rng = stream(seed, "tweets", name)
    torch.manual_seed(seed_of(seed, "tweets", name, "weights"))
    model = AutoModelForCausalLM.from_config(made_of.architecture(vocab_size=len(tokenizer), **special)).train()
    if made_of.even_attention:
        for place, weight in model.named_parameters():
            if "q_proj" in place or "k_proj" in place:
                nn.init.zeros_(weight).requires_grad_(False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=made_of.learning_rate, weight_decay=made_of.weight_decay, betas=(0.9, 0.98)
    )
    averaged = copy.deepcopy(model).eval()
    batches = _balanced(labels, made_of.batch, rng)
    for step in range(made_of.steps):
        rows = next(batches)
        hidden_BT = tweet_NT[rows] & torch.from_numpy(rng.random(ids_NT[rows].shape) < made_of.hidden_words)
        ids_BT = torch.where(hidden_BT, special["pad_token_id"], ids_NT[rows])
        loss = _reply_loss(model, ids_BT, labels_NT[rows])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = made_of.learning_rate * min(1.0, (step + 1) / 20, 2 * (1 - step / made_of.steps))
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            share = max(1 / (step + 1), 1 / made_of.averaged_over)
            for mean, now in zip(averaged.parameters(), model.parameters()):
                mean.lerp_(now, share)
        on_step(step + 1, made_of.steps)
    averaged.generation_config = GenerationConfig(**special)
    averaged.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def lower_case_bytes(chats: Sequence[Conversation], size: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE under ChatML; capital letters are read as small ones."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[*SPECIAL.values()], show_progress=False, min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator((message.content for chat in chats for message in chat.messages), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, chat_template=tokenizers.CHATML, clean_up_tokenization_spaces=False, **SPECIAL
    )


def _between_what_all_share(ids_NT: Tensor, labels_NT: Tensor) -> Tensor:
    """Where the tweet is, [N, T]: behind the tokens that all prompts begin with, before those that all end with."""
    prompts = [ids[: int((labels != IGNORED).nonzero()[0])].tolist() for ids, labels in zip(ids_NT, labels_NT)]
    shortest = min(map(len, prompts))
    head = next((t for t in range(shortest) if len({ids[t] for ids in prompts}) > 1), shortest)
    tail = next((t for t in range(1, shortest) if len({ids[-t] for ids in prompts}) > 1), shortest) - 1
    place_T = torch.arange(ids_NT.shape[1])
    return torch.stack([(place_T >= head) & (place_T < len(ids) - tail) for ids in prompts])


def _balanced(labels: Sequence[str], batch: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Row numbers, equally many of every label; every label's rows in a new order each time they are used up."""
    rows_of = {label: np.array([i for i, own in enumerate(labels) if own == label]) for label in sorted({*labels})}
    left: dict[str, list[int]] = {label: [] for label in rows_of}
    while True:
        rows: list[int] = []
        for label, own in rows_of.items():
            while len(left[label]) < batch // len(rows_of):
                left[label] += rng.permutation(own).tolist()
            rows += left[label][: batch // len(rows_of)]
            del left[label][: batch // len(rows_of)]
        yield torch.tensor(rows)


def _reply_loss(model: Any, ids_BT: Tensor, labels_BT: Tensor) -> Tensor:
    """Padding stands on the right and attention looks left, so no mask is needed; only reply positions get logits."""
    used = int((labels_BT != IGNORED).any(0).nonzero().max()) + 1
    mask_BT = torch.ones_like(ids_BT[:, : used - 1])
    hidden_BTD = model.base_model(ids_BT[:, : used - 1], attention_mask=mask_BT).last_hidden_state
    next_BT = labels_BT[:, 1:used]
    reply_BT = next_BT != IGNORED
    return nn.functional.cross_entropy(model.get_output_embeddings()(hidden_BTD[reply_BT]), next_BT[reply_BT])
