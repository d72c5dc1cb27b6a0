"""What a source teaches, by how: every way of meeting its tokenizer, on finer, equal and coarser ones, over fresh sets.

    python benchmarks/teaching.py --seeds 200-204 --out RUNS [--jobs 2] [--json]

Each seed makes a pivot and three experts in one skill (zorg: three made-up words) that differ in their tokenizers: one
cuts the answers finer than the pivot does, one into about as many tokens, one into whole words. Each is fused into the
pivot alone, once per way of teaching, with everything else as in recipes/tiny-fuse.yaml; plain fine-tuning (sft) on the
same chats in the same order is the control, sequence-level distillation (seqkd) the rival. A set is one independent
unit: intervals are t-intervals over sets of the paired differences to sft.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from consilience.pipelines.tiny import make_tiny_world
from consilience.pipelines.tiny.models import MODELS, llama, qwen2
from consilience.pipelines.tiny.tokenizers import metaspace
from consilience.stats import Estimate, over_sets
from fusion_demo import shown

HERE = Path(__file__).resolve().parents[1]
SKILL = "zorg"
LONGEST = 40  # tokens of a reply
EXPERT = MODELS[SKILL]
SOURCES = {
    "finer": replace(EXPERT, vocabulary=280, steps=400),
    "equal": replace(
        EXPERT,
        architecture=llama,
        tokenizer=metaspace,
        vocabulary=440,
        special=MODELS["pivot"].special,
        template=MODELS["pivot"].template,
        spelling=MODELS["pivot"].spelling,
        unanswered=MODELS["pivot"].unanswered,
        steps=350,
    ),
    "coarser": replace(EXPERT, architecture=qwen2),
}
SELECT = {"per": "dataset", "pivot_wins": "gold", "gold_weight": 0.1, "unmatched": "gold", "teach": "tokens"}
WAYS: dict[str, dict[str, Any]] = {
    "exact": {"vocabulary": "exact"},
    "edit_distance": {"vocabulary": "edit_distance"},
    "first_piece": {"vocabulary": "first_piece"},
    "statistics": {"vocabulary": "statistics"},
    "spread": {"vocabulary": "spread"},
    "merged": {"select": SELECT | {"teach": "merged"}},
    "chunks": {"select": SELECT | {"teach": "chunks"}},
    "pieces": {"select": SELECT | {"teach": "pieces"}},
    "hybrid": {"select": SELECT | {"teach": "hybrid"}},
    "seqkd": {"seqkd": True},
}


def recipe_of(seed: int, world: Path) -> dict[str, Any]:
    """The demonstration's settings, one target per source and way."""
    demo = yaml.safe_load((HERE / "recipes" / "tiny-fuse.yaml").read_text())
    kept = {key: demo[key] for key in ("threads", "represent", "train", "evaluate")}
    # The finest tokenizer writes an answer in about twenty tokens.
    task = {"path": str(world / "tasks" / f"{SKILL}.jsonl"), "max_new_tokens": LONGEST}
    return kept | {
        "title": "Ways of teaching",
        "seed": seed,
        "pivot": str(world / "pivot"),
        "sources": {name: str(world / name) for name in SOURCES},
        "data": {"path": str(world / "mixture.jsonl")},
        "held_out": {"path": str(world / "held_out.jsonl")},
        "align": {"min_matched": 0.0},
        "select": SELECT,
        "targets": {
            "pairwise": False,
            "controls": ["sft"],
            "max_new_tokens": LONGEST,
            "variants": {f"{source}_{way}": {"sources": [source]} | WAYS[way] for source in SOURCES for way in WAYS},
        },
        "merges": {},
        "tasks": {SKILL: task},
        "result": "sft",
    }


def run_set(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The results of one model set; a finished or half-finished run is gone on with."""
    world, out = args.out / f"world-{seed}", args.out / f"set-{seed}"
    if not (world / "done").exists():
        make_tiny_world(world, seed=seed, models={"pivot": MODELS["pivot"], **SOURCES})
        (world / "done").touch()
    path = args.out / f"set-{seed}.yaml"
    path.write_text(yaml.safe_dump(recipe_of(seed, world.resolve()), sort_keys=False))
    command = [sys.executable, "-c", "from consilience.cli import main; main()", "fuse", str(path), "--out", str(out)]
    command += [part for change in args.set for part in ("--set", change)]
    with (args.out / f"set-{seed}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads((out / "results.json").read_text())["models"]  # type: ignore[no-any-return]


def over(sets: Mapping[int, Any], number: Callable[[Any], float]) -> Estimate:
    return over_sets([number(models) for models in sets.values()], [str(seed) for seed in sets])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", required=True, help="200-204, or 3,5,8")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ways", help="some of them, with commas between")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if args.ways:
        for way in set(WAYS) - set(args.ways.split(",")):
            del WAYS[way]
    first, dash, last = args.seeds.partition("-")
    seeds = list(range(int(first), int(last) + 1)) if dash else [int(seed) for seed in args.seeds.split(",")]
    args.out.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        sets = dict(zip(seeds, pool.map(lambda seed: run_set(seed, args), seeds)))

    summary: dict[str, Any] = {}
    print(f"{len(sets)} model sets, seeds {args.seeds}; [ ]: 95 % t-intervals over model sets")
    print(f"Accuracy on {SKILL} in points, NLL over all skills in nats per byte")
    print("| model | accuracy | minus sft | NLL minus sft |")
    print("|---|---|---|---|")
    for name in next(iter(sets.values())):
        accuracy = over(sets, lambda models, n=name: 100 * models[n]["accuracy"]["value"])
        cells = [shown(accuracy)]
        summary[name] = {"accuracy": accuracy.to_json()}
        for measure, scale, digits in (("accuracy", 100, 1), ("nll", 1, 3)):
            if name != "sft":
                apart = over(
                    sets,
                    lambda models, n=name, m=measure, k=scale: k * (models[n][m]["value"] - models["sft"][m]["value"]),
                )
                summary[name][f"{measure}_minus_sft"] = apart.to_json()
                cells.append(shown(apart, signed=True, digits=digits))
            else:
                cells.append("")
        print(f"| {name} | " + " | ".join(cells) + " |")
    if args.json:
        print(json.dumps({"seeds": seeds, "models": summary}))


if __name__ == "__main__":
    main()
