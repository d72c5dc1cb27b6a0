"""Weak-to-strong search against the published code and against the ideal count of positions.

    python benchmarks/bench_search.py [--reference CLONE [--reference-packages DIR]] [--settings NAME ...]
                                      [--repeats 2] [--json]
    python benchmarks/bench_search.py --wall 8b [--repeats 2] [--json]     on a GPU: wall time over plain sampling's

Random models of 30 and 5 million parameters, one prompt, 128 new tokens, nothing ends, float32, one thread. CLONE is
one of github.com/ZHZisZZ/weak-to-strong-search; DIR holds transformers 4.41, which it was written for (see
published_search.py), and without DIR it runs on the present transformers, patched where it would fail. Both do the
same search in `mode published`, and their replies are compared token by token; the default mode is timed beside it.

Ideal is the count of positions to be read where every prefix is read once: P + W(C − 1) + R(T − C) in each of the
three models, C = ⌈T/L⌉ chunks, R = W·K rows. Siblings that begin alike are read once, so ours can be below it. Keys
and values are held for at most P + W·T + R·L tokens. `plain` samples R rows from the large model alone by
transformers' `generate`.

`--json`: one object as the last line, per setting {"cpu_s", "reference_cpu_s", "speedup", "large_positions",
"small_positions", "ideal_positions", "kv_tokens", "kv_bound", "plain_cpu_s", "equal_to_reference", ...}.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from consilience.models import ChatModel
from consilience.records import Message
from consilience.search import METHODS, Models, Prompt, Result, SearchSettings, TreeModel, search
from published_search import models_of, prompt_of
from search_wall import WALL, sample_rows, wall, wall_table_of

TOKENS = 128
LARGE, SMALL = [8, 512], [4, 256]
SETTINGS = {
    "gpt2 2,4,8 P=64": ("gpt2", 2, 4, 8, 64),
    "gpt2 4,4,5 P=64": ("gpt2", 4, 4, 5, 64),
    "llama 2,4,8 P=64": ("llama", 2, 4, 8, 64),
    "llama 4,4,5 P=64": ("llama", 4, 4, 5, 64),
    "gpt2 2,4,8 P=512": ("gpt2", 2, 4, 8, 512),
}
Json = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--reference-packages", type=Path)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--wall", choices=WALL)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if asked.wall:
        timed = wall(asked.wall, asked.repeats)
        Console(width=150).print(wall_table_of(timed))
        if asked.json:
            print(json.dumps(timed))
        return
    torch.set_num_threads(1)
    found = {name: measure(job_of(name, asked), asked) for name in asked.settings}
    Console(width=150).print(table_of(found))
    if asked.json:
        print(json.dumps(found))


def job_of(name: str, asked: argparse.Namespace) -> Json:
    kind, width, successors, chunk, prompt = SETTINGS[name]
    models = {"kind": kind, "vocabulary": 8192, "large": LARGE, "small": SMALL, "model_seed": 0, "ends": False}
    search_ = {"width": width, "successors": successors, "chunk": chunk, "max_new_tokens": asked.tokens, "seed": 1}
    return models | search_ | {"prompt": prompt, "repeats": asked.repeats}


def measure(job: Json, asked: argparse.Namespace) -> Json:
    loaded, tokenizer, _ = models_of(job)
    trees = [TreeModel(ChatModel(name, model, tokenizer)) for name, model in zip(("large", "tuned", "untuned"), loaded)]
    tokenizer.eos_token = None  # nothing ends, in ours as in theirs
    prompt, tokens, rows = job["prompt"], job["max_new_tokens"], job["width"] * job["successors"]
    chunks = -(-tokens // job["chunk"])
    default, reply = ours(trees, job, "default")
    tokenizer.eos_token = "</s>"  # as published, a text that reaches the cap is scored with its end
    published, reply = ours(trees, job, "published")
    one = default | {
        "published_mode_cpu_s": published["cpu_s"],
        "ideal_positions": prompt + job["width"] * (chunks - 1) + rows * (tokens - chunks),
        "kv_bound": prompt + job["width"] * tokens + rows * job["chunk"],
        "plain_cpu_s": plain(models_of(job)[0][0], job),  # one that no TreeModel has changed
    }
    if asked.reference:
        theirs = reference(job, asked)
        one |= {
            "reference_cpu_s": theirs["cpu_s"],
            "reference_transformers": theirs["transformers"],
            "speedup": theirs["cpu_s"] / default["cpu_s"],
            "published_mode_speedup": theirs["cpu_s"] / published["cpu_s"],
            "reference_large_positions": theirs["large_positions"],
            "reference_small_positions": theirs["small_positions"],
            "equal_to_reference": theirs["reply"] == reply,
        }
    return one


def ours(trees: list[TreeModel], job: Json, mode: str) -> tuple[Json, list[int]]:
    """CPU seconds of the quickest run, what it read and held, and its reply."""
    keys = ("width", "successors", "chunk", "max_new_tokens")
    settings = SearchSettings(mode=mode, **{key: job[key] for key in keys})
    took = []
    for _ in range(job["repeats"] + 1):  # the first one warms up
        for tree in trees:
            tree.reset()
        searches, settings = METHODS["cbs"](Models(*trees, raw=True), settings)
        prompt = Prompt("p", (Message("user", prompt_of(job)),), job["seed"])
        began = time.process_time()
        (result,) = search(searches, [prompt], settings)
        took.append(time.process_time() - began)
    assert isinstance(result, Result)
    large, tuned, _ = (tree.counts for tree in trees)
    found = {
        "cpu_s": min(took[1:]),
        "large_positions": large.positions,
        "small_positions": tuned.positions,
        "kv_tokens": allocated(trees[0]),
        "kv_tokens_in_use": large.peak_slots,
    }
    return found, list(result.replies[0].ids)


def allocated(tree: TreeModel) -> int:
    """Tokens that the keys and values allocated at most have room for."""
    config = tree.model.config
    return tree.counts.peak_bytes // (2 * 4 * config.num_hidden_layers * config.hidden_size)


def plain(model: Any, job: Json) -> float:
    """CPU seconds of sampling R rows from the large model alone."""
    ids = torch.randint(2, job["vocabulary"], (1, job["prompt"]), generator=torch.Generator().manual_seed(0))
    rows = job["width"] * job["successors"]
    took = []
    for _ in range(job["repeats"]):
        began = time.process_time()
        sample_rows(model, ids, rows, job["max_new_tokens"])
        took.append(time.process_time() - began)
    return min(took)


def reference(job: Json, asked: argparse.Namespace) -> Json:
    """The same search by the published code, in a process of its own."""
    environment = dict(os.environ)
    if asked.reference_packages:
        environment["PYTHONPATH"] = str(asked.reference_packages.resolve())
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "jobs.json"
        file.write_text(json.dumps([job]))
        script = Path(__file__).with_name("published_search.py")
        command = [sys.executable, str(script), str(asked.reference.resolve()), str(file)]
        run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise SystemExit(f"the published code failed:\n{run.stderr[-2000:]}")
    answer: Json = json.loads(run.stdout.splitlines()[-1])[0]
    return answer


def table_of(found: dict[str, Json]) -> Table:
    table = Table("setting", "CPU s", "reference", "ratio", "published mode", "plain R rows", "large", "small", "ideal",
                  "kv tokens (bound)", "equal")  # fmt: skip
    for name, one in found.items():
        has = "reference_cpu_s" in one
        table.add_row(
            name,
            f"{one['cpu_s']:.2f}",
            f"{one['reference_cpu_s']:.1f}" if has else "",
            f"{one['speedup']:.1f}" if has else "",
            f"{one['published_mode_cpu_s']:.2f}",
            f"{one['plain_cpu_s']:.2f}",
            str(one["large_positions"]),
            str(one["small_positions"]),
            str(one["ideal_positions"]),
            f"{one['kv_tokens']} ({one['kv_bound']})",
            str(one["equal_to_reference"]) if has else "",
        )
    return table


if __name__ == "__main__":
    main()
