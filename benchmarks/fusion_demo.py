"""The demonstration's recipe on several model sets: what fusion gives beside its controls, with intervals over sets.

    python benchmarks/fusion_demo.py --seeds 10-17 --out RUNS [--jobs 2] [--recipe recipes/tiny-fuse.yaml] [--json]

Every seed makes its own four models, data, and training order. A set is one independent unit: the interval over sets
covers pretraining, data and training, which the intervals inside a run's report do not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from consilience.stats import Estimate, over_sets

HERE = Path(__file__).resolve().parents[1]


def run_set(seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """The results of one model set; a finished or half-finished run is gone on with."""
    out = args.out / f"set-{seed}"
    command = [sys.executable, "-c", "from consilience.cli import main; main()", "fuse", str(args.recipe)]
    command += ["--out", str(out), "--set", f"tiny.seed={seed}", "--set", f"seed={seed}"]
    command += [part for change in args.set for part in ("--set", change)]
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / f"set-{seed}.log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return json.loads((out / "results.json").read_text())  # type: ignore[no-any-return]


def over(sets: Mapping[int, Any], number: Any) -> Estimate:
    return over_sets([number(results["models"]) for results in sets.values()], [str(seed) for seed in sets])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", required=True, help="10-17, or 3,5,8")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--recipe", type=Path, default=HERE / "recipes" / "tiny-fuse.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    first, dash, last = args.seeds.partition("-")
    seeds = list(range(int(first), int(last) + 1)) if dash else [int(seed) for seed in args.seeds.split(",")]
    with ThreadPoolExecutor(args.jobs) as pool:
        sets = dict(zip(seeds, pool.map(lambda seed: run_set(seed, args), seeds)))

    any_set = next(iter(sets.values()))
    tasks = list(any_set["models"]["pivot"]["accuracy_by_task"])
    summary: dict[str, Any] = {}
    print(f"{len(sets)} model sets, seeds {args.seeds}; accuracy in %, NLL in nats per byte")
    print("[ ]: 95 % t-intervals over model sets")
    print("| model | " + " | ".join(tasks) + " | average | minus sft | minus pivot | NLL minus sft |")
    print("|---|" + "---|" * (len(tasks) + 4))
    for name in any_set["models"]:
        by_task = {
            task: over(sets, lambda models, n=name, t=task: 100 * models[n]["accuracy_by_task"][t]["value"])
            for task in tasks
        }
        average = over(sets, lambda models, n=name: 100 * models[n]["accuracy"]["value"])
        cells = [f"{estimate.value:.0f}" for estimate in by_task.values()] + [shown(average)]
        summary[name] = {"accuracy": average.to_json(), "by_task": {t: e.to_json() for t, e in by_task.items()}}
        for measure, other, scale in (("accuracy", "sft", 100), ("accuracy", "pivot", 100), ("nll", "sft", 1)):
            if name == other:
                cells.append("")
                continue
            apart = over(
                sets,
                lambda models, n=name, m=measure, o=other, k=scale: k * (models[n][m]["value"] - models[o][m]["value"]),
            )
            summary[name][f"{measure}_minus_{other}"] = apart.to_json()
            cells.append(shown(apart, signed=True, digits=3 if measure == "nll" else 1))
        print(f"| {name} | " + " | ".join(cells) + " |")
    if args.json:
        versions = any_set["versions"]
        print(json.dumps({"seeds": seeds, "models": summary, "versions": versions, "recipe": any_set["recipe"]}))


def shown(estimate: Estimate, *, signed: bool = False, digits: int = 1) -> str:
    sign = "+" if signed else ""
    interval = f" [{estimate.low:{sign}.{digits}f}, {estimate.high:{sign}.{digits}f}]" if estimate.n > 1 else ""
    return f"{estimate.value:{sign}.{digits}f}{interval}"


if __name__ == "__main__":
    main()
