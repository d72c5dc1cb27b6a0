"""kill -9 at random moments of `consilience fuse`, then the same command: are the final weights those of a quiet run?

    python benchmarks/kill_resume.py --out DIR [--kills 10] [--seed 0] [--json]

Makes a small tiny world, runs the recipe once undisturbed, then again with `--kills` SIGKILLs at random moments, and
compares every weight file of both runs by SHA-256, and every estimate.
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

import numpy as np
import yaml

from consilience.pipelines.tiny import make_tiny_world

HERE = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-c", "from consilience.cli import main; main()", "fuse"]


def start(recipe: Path, run: Path) -> subprocess.Popen[bytes]:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [*COMMAND, str(recipe), "--out", str(run)]
    return subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **quiet)  # type: ignore[call-overload]


def weights_of(run: Path) -> dict[str, str]:
    """SHA-256 of every weight file of a finished run, by its path in the run folder."""
    files = sorted(path for part in ("train", "merge", "model") for path in (run / part).rglob("*.safetensors"))
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def at_work(run: Path) -> str:
    """The stage that was being made when the process died."""
    partial = [path for path in run.rglob("*.partial") if path.is_dir()]
    return str(partial[0].relative_to(run)).removesuffix(".partial") if partial else "between stages"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    make_tiny_world(args.out / "world", seed=args.seed, steps_scale=0.05)
    tree = yaml.safe_load((HERE / "recipes" / "tiny-fuse.yaml").read_text())
    recipe = args.out / "recipe.yaml"
    del tree["tiny"]
    text = yaml.safe_dump(tree).replace("tiny:", "world/")
    recipe.write_text(text)
    recipe_tree = yaml.safe_load(text)
    recipe_tree["train"] |= {"epochs": 2, "save_steps": 20}
    recipe_tree["represent"]["shard_conversations"] = 100
    recipe.write_text(yaml.safe_dump(recipe_tree))

    began = time.monotonic()
    if start(recipe, args.out / "quiet").wait():
        sys.exit("the undisturbed run failed")
    duration = time.monotonic() - began
    print(f"undisturbed: {duration:.0f} s")

    rng = np.random.default_rng(args.seed)
    killed_in: list[str] = []
    while len(killed_in) < args.kills:
        process = start(recipe, args.out / "killed")
        try:
            process.wait(timeout=float(rng.uniform(1, duration / 3)))
            sys.exit(f"the run ended after {len(killed_in)} kills; give a smaller --kills or another --seed")
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed_in.append(at_work(args.out / "killed"))
            print(f"kill {len(killed_in)}: in {killed_in[-1]}", flush=True)
    if start(recipe, args.out / "killed").wait():
        sys.exit("the run that was killed does not finish")
    quiet, killed = weights_of(args.out / "quiet"), weights_of(args.out / "killed")
    equal = {name: quiet[name] == killed.get(name) for name in quiet}
    models = [json.loads((args.out / run / "results.json").read_text())["models"] for run in ("quiet", "killed")]
    print(f"{sum(equal.values())} of {len(equal)} weight files are equal bit for bit")
    print(f"estimates of all models equal: {models[0] == models[1]}")
    if args.json:
        result = {"kills": dict(Counter(killed_in)), "files": len(equal), "equal": sum(equal.values())}
        print(json.dumps(result | {"estimates_equal": models[0] == models[1], "seconds": duration}))
    sys.exit(0 if all(equal.values()) and quiet.keys() == killed.keys() and models[0] == models[1] else 1)


if __name__ == "__main__":
    main()
