"""Tiny random models that share a tokenizer of words, and what a plain reading of a text says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from consilience.models import ChatModel
from consilience.records import Message
from consilience.search import Prompt

WORDS = 40
END = 1


def word_tokenizer(words: int = WORDS) -> Any:
    """Word i is token i, so a text says its ids; token 1 ends a text."""
    vocabulary = {f"w{i}": i for i in range(words)}
    del vocabulary[f"w{END}"]
    tokenizer = Tokenizer(models.WordLevel({**vocabulary, "</s>": END}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>")


def model_of(config: Any, *, seed: int = 0, name: str = "", tokenizer: Any = None, ends: bool = True) -> ChatModel:
    """A random model; with `ends` its token 1 ends a text, without nothing does."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = END if ends else None
    tokenizer = tokenizer or word_tokenizer(config.vocab_size)
    if not ends:
        tokenizer.eos_token = None
    return ChatModel(name or f"{config.model_type}-{seed}", model, tokenizer)


def gpt2(size: int = 16, **changes: Any) -> GPT2Config:
    shape = {"vocab_size": WORDS, "n_embd": size, "n_layer": 2, "n_head": 2, "n_positions": 64}
    return GPT2Config(**(shape | {"initializer_range": 0.5, "bos_token_id": None, "eos_token_id": END} | changes))


def llama(size: int = 16, **changes: Any) -> LlamaConfig:
    shape = {"vocab_size": WORDS, "hidden_size": size, "intermediate_size": 2 * size, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.5}
    return LlamaConfig(**(shape | heads | {"bos_token_id": None, "eos_token_id": END, "pad_token_id": None} | changes))


def prompt_of(text: str, id_: str = "p", seed: int = 0) -> Prompt:
    return Prompt(id_, (Message("user", text),), seed)


def plain_logprobs(chat_model: ChatModel, ids: Sequence[int], begin: int) -> list[float]:
    """The log-probability of every token from `begin` on, the text read in one go."""
    with torch.inference_mode():
        logprobs = chat_model.model(torch.tensor([list(ids)])).logits[0].float().log_softmax(-1)
    return [float(logprobs[place - 1, ids[place]]) for place in range(begin, len(ids))]
