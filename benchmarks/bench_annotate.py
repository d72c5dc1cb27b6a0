"""Coding one text with five labels under a codebook of some 600 tokens: what sharing work saves, in CPU seconds.

Three ways with one model and the same texts, in one process: all labels in one pass over a kept codebook (ours), every
label scored as a text of its own, and the label generated greedily (a batch at a time, as transformers does it). The
log-probabilities of the first two are compared. `prefix_speedup` and `vs_generate` are ratios of texts per CPU second.

    python benchmarks/bench_annotate.py [--texts 64] [--hidden 256] [--layers 4] [--rounds 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from consilience.annotate.codebook import Codebook
from consilience.annotate.coder import Coder
from consilience.annotate.engines import LocalEngine, load_engine
from consilience.annotate.recipe import ModelSettings, StrategySettings
from consilience.chat import render_prompt
from consilience.config import parse
from consilience.models import Prompt, Sampling
from consilience.models.options import option_ids
from consilience.pipelines.tiny import tokenizers
from consilience.records import Conversation, Message

LABELS = ("strongly in favour", "somewhat in favour", "no side taken", "somewhat against", "strongly against")
WORDS = "the minister said that taxes on fuel and schools will rise because of war and weather in the north".split()
SPECIAL = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}


def codebook(rng: np.random.Generator) -> Codebook:
    """Five labels whose definitions and examples make a prompt of some 600 tokens."""

    def sentence(words: int) -> str:
        return " ".join(rng.choice(WORDS, size=words))

    labels = [{"name": name, "definition": sentence(32), "examples": [sentence(16), sentence(16)]} for name in LABELS]
    tree = {
        "variable": "position",
        "question": sentence(30),
        "level": "ordinal",
        "labels": labels,
        "unclear": sentence(30),
    }
    return parse(tree, Codebook, where="codebook")


def make_model(folder: Path, book: Codebook, hidden: int, layers: int) -> None:
    """A Llama with random weights and a byte-level tokenizer that reads the codebook's words whole."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    chats = [Conversation("0", (Message("user", book.definitions()), Message("assistant", name))) for name in LABELS]
    tokenizer = tokenizers.byte_level(chats, 600, tokenizers.CHATML, SPECIAL)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 32, num_key_value_heads=hidden // 32, max_position_embeddings=2048,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def cpu_seconds(work: Callable[[], Any], rounds: int) -> tuple[float, Any]:
    """The least of `rounds`, and what the last one gave."""
    best, found = float("inf"), None
    for _ in range(rounds):
        began = time.process_time()
        found = work()
        best = min(best, time.process_time() - began)
    return best, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    book = codebook(rng)
    texts = [" ".join(rng.choice(WORDS, size=rng.integers(15, 40))) for _ in range(given.texts)]
    ids = [str(i) for i in range(len(texts))]
    with tempfile.TemporaryDirectory() as folder:
        make_model(Path(folder), book, given.hidden, given.layers)
        engine = load_engine("bench", ModelSettings(path=folder), Path(), 32)
        assert isinstance(engine, LocalEngine)
        coder = Coder(engine, book, StrategySettings(kind="zero_shot"))
        coder.code(ids[:2], texts[:2])  # loads, compiles, and checks itself
        prompts, _ = coder._prompts(coder.asks(texts), ids)
        tokenizer = engine.sampler.chat_model.tokenizer
        options, dropped = option_ids(tokenizer, prompts[0], LABELS)
        longest = max(map(len, options))
        tokens = int(np.median([len(render_prompt(tokenizer, prompt)) for prompt in prompts]))

        def separately() -> np.ndarray:
            found = []
            for prompt in prompts:
                prompt_T = render_prompt(tokenizer, prompt)
                found.append(engine.scorer.separately(prompt_T[: len(prompt_T) - dropped], options))
            return np.array(found)

        def generated() -> list[Any]:
            asked = [Prompt(id_, prompt) for id_, prompt in zip(ids, prompts)]
            return list(engine.sample(asked, Sampling(max_new_tokens=longest)))

        shared_s, annotations = cpu_seconds(lambda: coder.code(ids, texts), given.rounds)
        separate_s, scores_NK = cpu_seconds(separately, 1)
        generate_s, _ = cpu_seconds(generated, given.rounds)
    ours_NK = np.array([list(found.logprobs.values()) for found in annotations])
    result = {
        "texts": len(texts),
        "labels": len(LABELS),
        "prompt_tokens": tokens,
        "hidden": given.hidden,
        "layers": given.layers,
        "texts_per_cpu_s": {
            "shared": len(texts) / shared_s,
            "separate": len(texts) / separate_s,
            "generate": len(texts) / generate_s,
        },
        "prefix_speedup": separate_s / shared_s,
        "vs_generate": generate_s / shared_s,
        "largest_difference_nats": float(np.abs(ours_NK - scores_NK).max()),
    }
    rates = result["texts_per_cpu_s"]
    print(f"{len(texts)} texts, {len(LABELS)} labels, prompts of {tokens} tokens; texts per CPU second")
    for name in ("shared", "separate", "generate"):
        print(f"    {name:10} {rates[name]:8.1f}")
    print(f"prefix_speedup {result['prefix_speedup']:.1f}   vs_generate {result['vs_generate']:.1f}")
    print(f"log-probabilities differ by at most {result['largest_difference_nats']:.1e} nats")
    if given.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
