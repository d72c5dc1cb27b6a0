"""How much memory `annotate run` and `annotate estimate` take for a table of many rows, with a stub for the model.

Every step is a process of its own; what is told is its peak resident set. The stub answers at once with the
probabilities of two labels, so that the labels' files are as large as a model's. 200 rows have gold.

    python benchmarks/annotate_memory.py [--rows 100000 1000000] [--json]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import yaml

GOLD = 200
HERE = str(Path(__file__).parent)


class Stub:
    """An engine that reads no text."""

    about: Mapping[str, Any] = {"engine": "stub"}
    scores = constrains = True

    def fit(self, asked: Any) -> Any:
        return asked

    def score(self, prompts: Sequence[Any], options: Sequence[str]) -> tuple[np.ndarray, dict[int, Any]]:
        odd_N = np.array([len(prompt[-1].content) % 2 for prompt in prompts])
        return np.log(np.where(odd_N[:, None] == np.arange(2), 0.6, 0.3)), {}

    def sample(self, *_: Any) -> Iterator[Any]:
        raise NotImplementedError

    def close(self) -> None: ...


def make_project(folder: Path, rows: int) -> None:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_text("{}")
    with (folder / "texts.csv").open("w") as file:
        file.write("id,text,group,x\n")
        x_N = np.random.default_rng(0).normal(size=rows)
        file.writelines(
            f"row-{i},a text of some length that is number {i * i},{'ab'[i % 2]},{x:.5f}\n" for i, x in enumerate(x_N)
        )
    with (folder / "gold.csv").open("w") as file:
        file.write("id,label\n")
        file.writelines(f"row-{i * (rows // GOLD)},{('no', 'yes')[i % 3 > 0]}\n" for i in range(GOLD))
    recipe = {
        "data": {"path": "texts.csv", "id": "id"},
        "models": {"stub": {"path": "model"}},
        "strategies": {"zero_shot": {}},
        "dev": {"items": 0},
        "batch_size": 512,
    }
    book = {"variable": "v", "question": "Is it so?", "labels": ["no", "yes"]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "codebook.yaml").write_text(yaml.safe_dump(book))


def step(words: Sequence[str]) -> None:
    """One command, in this process, with the stub in the model's place; then its peak memory in MiB."""
    import resource

    from consilience.annotate import run
    from consilience.cli import main

    with mock.patch.object(run, "load_engine", return_value=Stub()), mock.patch.object(sys, "argv", [*words]):
        with suppress(SystemExit):
            main()
    print(f"\n{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f}")


def measure(rows: int) -> dict[str, float]:
    """Peak MiB and seconds by step."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "project"
        make_project(folder, rows)
        steps = {
            "freeze": [], "run": [], "estimate": [], "estimate --by": ["--by", "group"],
            "estimate --formula": ["--formula", "v_yes ~ x + group"],
        }  # fmt: skip
        for what, more in steps.items():
            words = ["consilience", "annotate", what.split()[0], str(folder), *more]
            began = time.perf_counter()
            code = f"import sys; sys.path.insert(0, {HERE!r}); import annotate_memory; annotate_memory.step({words!r})"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            if "consilience:" in done.stderr:
                raise SystemExit(done.stderr)
            found |= {f"{what}, MiB": float(done.stdout.split()[-1]), f"{what}, s": time.perf_counter() - began}
        lines = sum(1 for _ in (folder / "labels" / "stub.zero_shot.jsonl").open())
        assert lines == rows
    return found


def main_() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = {rows: measure(rows) for rows in given.rows}
    for rows, of in found.items():
        print(f"{rows:,} rows: " + ", ".join(f"{what} {number:,.0f}" for what, number in of.items()))
    if given.json:
        print(json.dumps({str(rows): of for rows, of in found.items()}))


if __name__ == "__main__":
    main_()
