"""Merging checkpoints: whole runs of `consilience merge` against the floor of the disk, and against mergekit.

    python benchmarks/bench_merge.py --work DIR [--sizes 0.5b 1.24b] [--methods linear ties ...] [--runs 3]
                                     [--mergekit PYTHON [--mergekit-runs 1]] [--json]

Makes a base and three fine-tunes from seeds (bfloat16, four or more shards each; 4 GB and 10 GB, kept in DIR for the
next run unless --clean). Floor: every input byte of that merge read and the output's bytes written once, one thread,
16 MiB at a time, no fsync, same folder, inputs in the page cache. Times are of the whole process with its start-up.
Floor, ours and mergekit take turns, so that a busy machine is busy for all; ratios are medians of the ratios within a
turn. One run of each method before them is not counted: it compiles and fills the page cache. Anonymous memory is
sampled every 10 ms over the process and its children. Both read the same mergekit YAML; VaRM is in no mergekit.

The sweeps "ten_..." make ten merges of one method in one pass (`--compare`); "ratio_to_one" is their time over that of
one of them, and their floor writes ten outputs. Sweeps and mergekit are run at the first size only: 0.5b with mergekit
and 1.24b without take a quarter of an hour on two free cores. On a machine that was just started, memory that was never
used makes every first write slow; the run that is not counted uses it.

`--json`: one object as the last line, per method {"wall_s", "floor_ratio", "mergekit_ratio", "peak_anon_mb", ...} for
the first size, and the same under the name of each further size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import yaml
from rich.console import Console
from rich.table import Table

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 192, "num_hidden_layers": 4, "intermediate_size": 512, "num_attention_heads": 6,
             "num_key_value_heads": 2, "vocab_size": 8000, "tie_word_embeddings": False},
    "0.5b": {"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 4096, "num_attention_heads": 16,
             "num_key_value_heads": 8, "vocab_size": 32000, "tie_word_embeddings": False},
    # Llama-3.2-1B's shape: one tensor holds a fifth of the weights
    "1.24b": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "num_attention_heads": 32,
              "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True},
}  # fmt: skip
MODELS = ("base", "ft0", "ft1", "ft2")
WEIGHTS = (0.5, 0.3, 0.2)
CHANGE = (5e-4, 3e-4, 8e-4)  # standard deviation of each fine-tune's change in the middle layer
BLOCK = 16 << 20  # of the floor's reads and writes


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One merge: mergekit's name of the method, its parameters, and the models that it reads."""

    method: str
    shared: dict[str, Any] = field(default_factory=dict)
    each: dict[str, Any] = field(default_factory=dict)  # given to every fine-tune
    weighted: bool = True
    reads: tuple[str, ...] = MODELS
    in_mergekit: bool = True

    def yaml(self, models: Path) -> str:
        """mergekit's file; our own recipe for what mergekit has not."""
        tree: dict[str, Any]
        if not self.in_mergekit:
            tree = {"method": self.method, "base": str(models / "base"), "dtype": "bfloat16"}
            tree["models"] = {name: str(models / name) for name in self.reads if name != "base"}
            return yaml.safe_dump(tree, sort_keys=False)
        listed = []
        for name, weight in zip(MODELS[1:], WEIGHTS):
            if name in self.reads:
                own = ({"weight": weight} if self.weighted else {}) | self.each
                listed.append({"model": str(models / name)} | ({"parameters": own} if own else {}))
        tree = {"merge_method": self.method, "models": listed, "dtype": "bfloat16"}
        if "base" in self.reads:
            tree["base_model"] = str(models / "base")
        if self.shared:
            tree["parameters"] = self.shared
        return yaml.safe_dump(tree, sort_keys=False)


# Both keep their compiled modules, as they do where nobody forbids it: installed packages have theirs, sources do not.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
HALF = {"density": 0.5}
JOBS = {
    "linear": Job(method="linear", reads=MODELS[1:]),
    "task_arithmetic": Job(method="task_arithmetic"),
    "slerp": Job(method="slerp", shared={"t": 0.4}, weighted=False, reads=MODELS[:2]),
    "varm": Job(method="varm", weighted=False, in_mergekit=False),
    "model_stock": Job(method="model_stock", weighted=False),
    "ties": Job(method="ties", each=HALF),
    "dare_ties": Job(method="dare_ties", each=HALF),
    "della": Job(method="della", each=HALF | {"epsilon": 0.15}),
    "breadcrumbs": Job(method="breadcrumbs", each=HALF | {"gamma": 0.01}),
    "sce_1.0": Job(method="sce", shared={"select_topk": 1.0}, weighted=False),
    "sce_0.1": Job(method="sce", shared={"select_topk": 0.1}, weighted=False),
}
TEN = {  # ten merges of the same four models each
    "ten_task_arithmetic": [Job(method="task_arithmetic", shared={"lambda": k / 10}) for k in range(1, 11)],
    "ten_ties": [Job(method="ties", each={"density": k / 11}) for k in range(1, 11)],
}


class Run(NamedTuple):
    """What one process took."""

    wall_s: float
    cpu_s: float
    peak_anon_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder for models and results, outside the repo")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["0.5b", "1.24b"])
    parser.add_argument("--methods", nargs="+", choices=[*JOBS, *TEN], default=[*JOBS, *TEN])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of ours; all cores by default")
    parser.add_argument("--mergekit", type=Path, help="the Python of an environment with mergekit 0.1.5")
    parser.add_argument("--mergekit-runs", type=int, default=1, help="of each method, in the first turns")
    parser.add_argument("--clean", action="store_true", help="delete the models afterwards")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    args = parser.parse_args()

    found: dict[str, Any] = {}
    for size in args.sizes:
        models = make_models(args.work / size, SIZES[size])
        if size != args.sizes[0]:
            args.methods, args.mergekit = [name for name in args.methods if name in JOBS], None
        rows = {name: measure(name, models, args) for name in args.methods}
        print_table(f"{size} parameters", rows)
        found |= rows if size == args.sizes[0] else {size: rows}
        if args.clean:
            shutil.rmtree(models)
    if args.json:
        print(json.dumps({"size": args.sizes[0], "cores": os.cpu_count(), "runs": args.runs} | found))


def measure(name: str, models: Path, args: argparse.Namespace) -> dict[str, Any]:
    """`args.runs` turns of floor, ours and, in the first ones, mergekit."""
    jobs = TEN.get(name) or [JOBS[name]]
    folder = models.parent / "jobs" / models.name / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    recipes = [folder / f"{number:02d}.yaml" for number in range(len(jobs))]
    for recipe, job in zip(recipes, jobs):
        recipe.write_text(job.yaml(models), encoding="utf-8")
    threads = ["--threads", str(args.threads)] if args.threads else []
    ours = [sys.executable, "-m", "consilience.cli", "merge"]
    one = [*ours, str(recipes[0]), str(folder / "out"), *threads]
    command = [*ours, "--compare", *map(str, recipes), str(folder / "out"), *threads] if name in TEN else one
    inputs = [file for model in jobs[0].reads for file in sorted((models / model).glob("*.safetensors"))]
    bytes_out = len(jobs) * sum(file.stat().st_size for file in (models / "base").glob("*.safetensors"))

    first = watched(command, folder / "out", bytes_out)
    turns: dict[str, list[Run]] = {"floor": [], "ours": [], "one": [], "mergekit": []}
    for turn in range(args.runs):
        turns["floor"].append(floor(inputs, bytes_out, folder / "floor"))
        turns["ours"].append(watched(command, folder / "out", bytes_out))
        if name in TEN:
            turns["one"].append(watched(one, folder / "out", bytes_out // len(jobs)))
        if args.mergekit and name in JOBS and jobs[0].in_mergekit and turn < args.mergekit_runs:
            peer = [str(args.mergekit), "-m", "mergekit.scripts.run_yaml", str(recipes[0]), str(folder / "out")]
            turns["mergekit"].append(watched(peer, folder / "out", bytes_out))
        shown = (f"{who} {runs[-1].wall_s:.2f} s ({runs[-1].cpu_s:.2f} CPU)" for who, runs in turns.items() if runs)
        print(f"{name}: {', '.join(shown)}", file=sys.stderr, flush=True)
    shutil.rmtree(folder)
    return summary(turns, first)


def summary(turns: dict[str, list[Run]], first: Run) -> dict[str, Any]:
    ours, floors, peers, ones = turns["ours"], turns["floor"], turns["mergekit"], turns["one"]
    row: dict[str, Any] = {
        "wall_s": median(run.wall_s for run in ours),
        "floor_ratio": median(run.wall_s / low.wall_s for run, low in zip(ours, floors)),
        "mergekit_ratio": median(peer.wall_s / run.wall_s for peer, run in zip(peers, ours)) if peers else None,
        "peak_anon_mb": max(run.peak_anon_mb for run in (first, *ours)),
        "wall_s_least": min(run.wall_s for run in ours),
        "floor_ratio_of_least": min(run.wall_s for run in ours) / min(low.wall_s for low in floors),
        "cpu_s": median(run.cpu_s for run in ours),
        "cpu_floor_ratio": median(run.cpu_s for run in ours) / median(low.cpu_s for low in floors),
        "floor_s": median(low.wall_s for low in floors),
        "first_s": first.wall_s,
    }
    if peers:
        row |= {
            "mergekit_s": median(peer.wall_s for peer in peers),
            "mergekit_cpu_ratio": median(peer.cpu_s for peer in peers) / row["cpu_s"],
            "mergekit_peak_anon_mb": max(peer.peak_anon_mb for peer in peers),
        }
    if ones:
        row["ratio_to_one"] = median(run.wall_s / one.wall_s for run, one in zip(ours, ones))
    return row


def print_table(title: str, rows: dict[str, dict[str, Any]]) -> None:
    table = Table("method", "wall s", "least", "CPU s", "/ floor", "CPU / floor", "mergekit /", "CPU", "anon MB",
                  "mergekit's", title=title)  # fmt: skip
    for name, row in rows.items():
        cells = [
            f"{row['wall_s']:.2f}",
            f"{row['wall_s_least']:.2f}",
            f"{row['cpu_s']:.2f}",
            f"{row['floor_ratio']:.2f}",
            f"{row['cpu_floor_ratio']:.2f}",
            f"{row['mergekit_ratio']:.1f}" if row["mergekit_ratio"] else "",
            f"{row['mergekit_cpu_ratio']:.1f}" if row["mergekit_ratio"] else "",
            f"{row['peak_anon_mb']:.0f}",
            f"{row['mergekit_peak_anon_mb']:.0f}" if row["mergekit_ratio"] else "",
        ]
        told = f" ({row['ratio_to_one']:.2f} of one)" if "ratio_to_one" in row else ""
        table.add_row(name + told, *cells)
    Console(width=120).print(table)


def floor(inputs: Sequence[Path], bytes_out: int, target: Path) -> Run:
    """Every byte of `inputs` read, `bytes_out` written to `target`, which is deleted; one thread, one buffer."""
    buffer = memoryview(bytearray(BLOCK))
    began, began_cpu = time.perf_counter(), time.process_time()
    for path in inputs:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    with target.open("wb", buffering=0) as file:
        left = bytes_out
        while left:
            left -= file.write(buffer[: min(left, BLOCK)])
    took = Run(time.perf_counter() - began, time.process_time() - began_cpu, 0.0)
    target.unlink()
    return took


def watched(command: Sequence[str], out: Path, bytes_out: int) -> Run:
    """Runs `command`, which must leave at least `bytes_out` bytes of weights in `out`; then deletes `out`."""
    with (out.parent / "log").open("wb") as log:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT)
        peak = [0.0]
        watcher = threading.Thread(target=watch_memory, args=(process.pid, peak))
        watcher.start()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        watcher.join()
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n" + (out.parent / "log").read_text()[-3000:])
    written = sum(file.stat().st_size for file in out.rglob("*.safetensors"))
    if written < 0.999 * bytes_out:  # headers differ by a few bytes
        sys.exit(f"{' '.join(command)} wrote {written} bytes of weights, expected {bytes_out}")
    shutil.rmtree(out)
    return Run(wall, usage.ru_utime + usage.ru_stime, peak[0])


def watch_memory(pid: int, peak: list[float]) -> None:
    """Keeps in `peak[0]` the largest anonymous memory, in MB, of a process and its children until it ends."""
    while True:
        total = sum(anonymous_bytes(process) for process in family(pid))
        if not total:
            return
        peak[0] = max(peak[0], total / 1e6)
        time.sleep(0.01)


def family(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in children:
        yield from family(int(child))


def anonymous_bytes(pid: int) -> int:
    """0 for a process that has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    lines = [line.split() for line in status.splitlines() if line.startswith("RssAnon:")]
    return 1024 * int(lines[0][1]) if lines else 0


def make_models(folder: Path, shape: dict[str, Any]) -> Path:
    """A base and three fine-tunes in `folder`, from seeds; made once. Changes grow with depth, 0.5 to 1.5 times."""
    if (folder / "complete").is_file():
        return folder
    import torch
    from safetensors.torch import save_file

    shutil.rmtree(folder, ignore_errors=True)
    tensors = list(tensors_of(shape))
    shard_elements = max(sum(torch.Size(size).numel() for _, size in tensors) // 4, 1)
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    for name, size in tensors:
        if sum(torch.Size(other).numel() for _, other in shards[-1]) >= shard_elements:
            shards.append([])
        shards[-1].append((name, size))
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        made: dict[str, dict[str, Any]] = {model: {} for model in MODELS}
        for name, size in shard:
            weight_map[name] = file
            random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            base = torch.randn(size, generator=random).mul_(0.02).add_(1.0 if len(size) == 1 else 0.0).bfloat16()
            made["base"][name] = base
            layer = int(name.split(".")[2]) if ".layers." in name else 0
            depth = 0.5 + layer / max(shape["num_hidden_layers"] - 1, 1)
            for model, change in zip(MODELS[1:], CHANGE):
                delta = torch.randn(size, generator=random).mul_(change * depth)
                made[model][name] = delta.add_(base).bfloat16()
        for model, weights in made.items():
            (folder / model).mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / model / file, metadata={"format": "pt"})
    total_size = 2 * sum(torch.Size(size).numel() for _, size in tensors)
    for model in MODELS:
        write_companions(folder / model, shape)
        index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
        (folder / model / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "complete").touch()
    return folder


def tensors_of(shape: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, inner, vocabulary = shape["hidden_size"], shape["intermediate_size"], shape["vocab_size"]
    keys = hidden // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(shape["num_hidden_layers"]):
        sizes = {
            "input_layernorm": (hidden,),
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (keys, hidden),
            "self_attn.v_proj": (keys, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
        }
        yield from ((f"model.layers.{layer}.{part}.weight", size) for part, size in sizes.items())
    yield "model.norm.weight", (hidden,)
    if not shape["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)


def write_companions(folder: Path, shape: dict[str, Any]) -> None:
    """Configuration and a byte-level tokenizer of 256 tokens: the matrices have more rows than it has tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    config = shape | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "head_dim": shape["hidden_size"] // shape["num_attention_heads"],
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: token for token, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


if __name__ == "__main__":
    main()
