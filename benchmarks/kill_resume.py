"""kill -9 in the middle of `consilience fuse` or `prefer`, then the same command: are the weights those of a quiet run?

    python benchmarks/kill_resume.py --out DIR [--verb fuse] [--kills 10] [--seed 0] [--json]

Runs a tiny recipe once undisturbed, then again with SIGKILLs, and compares every weight file of both runs by SHA-256,
and every estimate. `fuse` is killed `--kills` times at random moments; `prefer` in each of its stages, as soon as that
is seen to be in the making.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from consilience.pipelines.tiny import make_tiny_world

HERE = Path(__file__).resolve().parents[1]
# Stages of two rounds of `prefer`, in the order in which they are made. Of a training a checkpoint is waited for: it is
# gone on with, and the swap is what round 2 begins from.
STAGES = (
    "tiny",
    "start/measure",
    "start/sample/*",
    *(f"online/round-1/{stage}" for stage in ("judge", "pair", "reference", "train", "measure")),
    "online/round-1/sample/*",
    *(f"online/round-2/{stage}" for stage in ("judge", "pair", "reference", "train", "measure")),
    "selm/round-2/train",
    "model",
)


def start(verb: str, recipe: Path, run: Path) -> subprocess.Popen[bytes]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "consilience.cli", verb, str(recipe), "--out", str(run)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **quiet)  # type: ignore[call-overload]


def weights_of(run: Path) -> dict[str, str]:
    """SHA-256 of every weight file of a finished run, by its path in the run folder."""
    files = sorted(path for path in run.rglob("*.safetensors") if path.relative_to(run).parts[0] != "tiny")
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def estimates_of(run: Path) -> Any:
    """What was measured of every model."""
    results = json.loads((run / "results.json").read_text())
    return results.get("models") or results["arms"]


def at_work(run: Path) -> str:
    """The stage that was being made when the process died."""
    partial = [path for path in run.rglob("*.partial") if path.is_dir()]
    return str(partial[0].relative_to(run)).removesuffix(".partial") if partial else "between stages"


def fusion(out: Path, seed: int) -> Path:
    make_tiny_world(out / "world", seed=seed, steps_scale=0.05)
    tree = yaml.safe_load((HERE / "recipes" / "tiny-fuse.yaml").read_text())
    del tree["tiny"]
    tree = yaml.safe_load(yaml.safe_dump(tree).replace("tiny:", "world/"))
    tree["train"] |= {"epochs": 2, "save_steps": 20}
    tree["represent"]["shard_conversations"] = 100
    return written(out, tree)


def alignment(out: Path, seed: int) -> Path:
    tree = yaml.safe_load((HERE / "recipes" / "tiny-selm.yaml").read_text())
    kept = ("online", "selm-0.1")
    tree |= {
        "tiny": {"pairs": 96, "held_out": 24, "steps_scale": 0.2},
        "rounds": 2,
        "seeds": [seed],
        "arms": {name.removesuffix("-0.1"): tree["arms"][name] for name in kept},
        "result": "selm",
    }
    tree["train"] |= {"save_steps": 2}
    return written(out, tree)


def written(out: Path, tree: dict[str, Any]) -> Path:
    (out / "recipe.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return out / "recipe.yaml"


def killed_at_random(recipe: Path, run: Path, kills: int, rng: np.random.Generator, duration_s: float) -> list[str]:
    """The stages in which `fuse` was killed."""
    found: list[str] = []
    while len(found) < kills:
        process = start("fuse", recipe, run)
        try:
            process.wait(timeout=float(rng.uniform(1, duration_s / 3)))
            sys.exit(f"the run ended after {len(found)} kills; give a smaller --kills or another --seed")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            found.append(at_work(run))
            print(f"kill {len(found)}: in {found[-1]}", flush=True)
    return found


def killed_in_every_stage(recipe: Path, run: Path) -> list[str]:
    """The stages in which `prefer` was killed."""
    found: list[str] = []
    for stage in STAGES:
        process = start("prefer", recipe, run)
        inside = "checkpoints/checkpoint-*/whole.json" if stage.endswith("train") else ""
        while process.poll() is None and not [*run.glob(f"{stage}.partial/{inside}")]:
            time.sleep(0.0005)
        process.kill()
        if process.wait() == 0:
            sys.exit(f"the run ended before {stage} was seen in the making")
        found.append(at_work(run))
        print(f"kill {len(found)}: meant for {stage}, in {found[-1]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--verb", choices=["fuse", "prefer"], default="fuse")
    parser.add_argument("--kills", type=int, default=10, help="of fuse")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    recipe = (fusion if args.verb == "fuse" else alignment)(args.out, args.seed)

    began = time.monotonic()
    if start(args.verb, recipe, args.out / "quiet").wait():
        sys.exit("the undisturbed run failed")
    duration = time.monotonic() - began
    print(f"undisturbed: {duration:.0f} s")

    run = args.out / "killed"
    if args.verb == "fuse":
        killed_in = killed_at_random(recipe, run, args.kills, np.random.default_rng(args.seed), duration)
    else:
        killed_in = killed_in_every_stage(recipe, run)
    if start(args.verb, recipe, run).wait():
        sys.exit("the run that was killed does not finish")
    quiet, killed = weights_of(args.out / "quiet"), weights_of(run)
    equal = {name: quiet[name] == killed.get(name) for name in quiet}
    same = estimates_of(args.out / "quiet") == estimates_of(run)
    print(f"{sum(equal.values())} of {len(equal)} weight files are equal bit for bit")
    print(f"estimates of all models equal: {same}")
    if args.json:
        result = {"kills": dict(Counter(killed_in)), "files": len(equal), "equal": sum(equal.values())}
        print(json.dumps(result | {"estimates_equal": same, "seconds": duration}))
    sys.exit(0 if all(equal.values()) and quiet.keys() == killed.keys() and same else 1)


if __name__ == "__main__":
    main()
