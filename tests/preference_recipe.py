"""The recipe of `consilience prefer` that tests begin with: two rounds on a random model, in seconds."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

TRAIN = {"epochs": 1, "batch_size": 2, "micro_batch_size": 2, "learning_rate": 0.01, "log_steps": 1}


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_recipe(folder: Path, model: Path, pairs: Iterable[dict[str, Any]], /, **changes: Any) -> Path:
    """recipe.yaml in `folder`, with its data and a reward that prefers long replies; `changes` replace whole blocks."""
    write_rows(folder / "pairs.jsonl", pairs)
    (folder / "reward.py").write_text("def score(prompt, reply): return len(reply) + reply.count('e') / 7\n")
    tree = {
        "model": str(model),
        "data": {"path": "pairs.jsonl"},
        "held_out": {"share": 0.2},
        "judge": {"kind": "function", "function": "reward.py:score"},
        "rounds": 2,
        "sample": {"max_new_tokens": 6},
        "measure": {"sample": {"temperature": 1.0, "max_new_tokens": 6}},
        "train": TRAIN,
        "threads": 1,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree | changes, sort_keys=False))
    return path
