"""The wall time of weak-to-strong search on a GPU over that of plain sampling: `bench_search.py --wall SIZE`.

Random Llamas in bfloat16, one prompt of P tokens, T new ones, nothing ends; a small one is a seventh of the large.
Plain sampling is transformers' `generate` of R = W·K rows from the large model alone. Medians, in one run, after one
that warms up. The size `debug` rehearses it anywhere.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
import transformers
from rich.table import Table

from consilience.models import ChatModel
from consilience.records import Message
from consilience.search import METHODS, Models, Prompt, SearchSettings, TreeModel, search
from published_search import words_of

# Layers, width, width of the feed-forward part, heads, heads of keys: of the large model and of the small ones.
WALL = {
    "8b": ((32, 4096, 14336, 32, 8), (16, 2048, 8192, 32, 8)),  # Llama 3's
    "debug": ((2, 64, 128, 4, 2), (1, 32, 64, 4, 2)),
}
SETTINGS = {  # W, K, L, P, T
    "4,4,5 P=64": (4, 4, 5, 64, 128),
    "4,4,5 P=512": (4, 4, 5, 512, 128),
    "2,2,30 P=512": (2, 2, 30, 512, 240),
}
Json = dict[str, Any]


def wall(size: str, repeats: int) -> dict[str, Json]:
    """Seconds of searches and of plain sampling, their ratio, and the positions read, by setting."""
    cuda = torch.cuda.is_available()
    if size != "debug" and not cuda:
        raise SystemExit(f"--wall {size} needs a GPU; --wall debug rehearses it without one.")
    vocabulary = 200 if size == "debug" else 32_000
    tokenizer = words_of(vocabulary)
    tokenizer.eos_token = None  # nothing ends
    large_shape, small_shape = WALL[size]
    large, *pair = (_llama(each, vocabulary, seed) for seed, each in enumerate((large_shape, small_shape, small_shape)))
    plain_s = {name: _plain_s(large, *setting, repeats) for name, setting in SETTINGS.items()}
    trees = [TreeModel(ChatModel(name, one, tokenizer)) for name, one in zip(("l", "t", "u"), (large, *pair))]
    found = {}
    for name, (width, successors, chunk, prompt, tokens) in SETTINGS.items():
        settings = SearchSettings(width=width, successors=successors, chunk=chunk, max_new_tokens=tokens)
        words = " ".join(f"w{2 + i % (vocabulary - 2)}" for i in range(prompt))
        took = []
        for seed in range(repeats + 1):
            for tree in trees:
                tree.reset()
            searches, settings = METHODS["cbs"](Models(*trees, raw=True), settings)
            began = _seconds()
            list(search(searches, [Prompt("p", (Message("user", words),), seed)], settings))
            took.append(_seconds() - began)
        found[name] = {
            "wall_s": statistics.median(took[1:]),
            "plain_wall_s": plain_s[name],
            "ratio": statistics.median(took[1:]) / plain_s[name],
            "large_positions": trees[0].counts.positions,
            "small_positions": trees[1].counts.positions,
            "device": torch.cuda.get_device_name() if cuda else "cpu",
        }
    return found


def wall_table_of(found: dict[str, Json]) -> Table:
    table = Table("setting", "search, s", "plain sampling of R rows, s", "ratio", "large", "small", "device")
    for name, one in found.items():
        numbers = (f"{one[key]:.3g}" for key in ("wall_s", "plain_wall_s", "ratio"))
        table.add_row(name, *numbers, str(one["large_positions"]), str(one["small_positions"]), one["device"])
    return table


def _llama(shape: tuple[int, ...], vocabulary: int, seed: int) -> Any:
    """A random Llama, drawn where it is used."""
    layers, width, inner, heads, key_heads = shape
    config = transformers.LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(seed)
    device, dtype = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
    with torch.device(device):
        return transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def _plain_s(model: Any, width: int, successors: int, chunk: int, prompt: int, tokens: int, repeats: int) -> float:
    ids = torch.randint(2, model.config.vocab_size, (1, prompt), device=model.device)
    took = []
    for _ in range(repeats + 1):
        began = _seconds()
        sample_rows(model, ids, width * successors, tokens)
        took.append(_seconds() - began)
    return statistics.median(took[1:])


def sample_rows(model: Any, ids: torch.Tensor, rows: int, tokens: int) -> None:
    """Plain sampling: transformers' `generate` of so many rows from one prompt, ids of shape [1, P]."""
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=0.7,
        top_k=50,
        num_return_sequences=rows,
        max_new_tokens=tokens,
    )


def _seconds() -> float:
    """Now, when all that was asked of the GPU is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()
