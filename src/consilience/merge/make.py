"""Merges from recipe files to folders: planned, shown, carried out; several in one pass over the inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilience.errors import ConfigError
from consilience.merge.inputs import Input
from consilience.merge.plan import MergePlan, Rows
from consilience.merge.read import read_recipe
from consilience.merge.resolve import Options, plan_merge
from consilience.weights.headers import ITEM_BYTES

PEAK_BYTES = 300_000_000  # anonymous memory of the whole process; blocks are of one size whatever the model's
SAMPLE_BYTES = 128 << 20  # read to time the disk
MEASURED = ("ties", "dare_ties", "dare_linear", "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce")


@dataclass(frozen=True, slots=True)
class Merge:
    """A merge to be made: its plan, its folder, and the base that `--extract-lora` measures it against."""

    plan: MergePlan
    out: Path
    base: Input | None


@dataclass(frozen=True, slots=True)
class Outline:
    """What a merge will read, write and take: known before a number was read."""

    tensors: int
    methods: Mapping[str, int]
    bytes_in: int
    bytes_out: int
    read_rate: float  # bytes a second, measured on the first input
    seconds: tuple[float, float]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "tensors": self.tensors,
            "methods": dict(self.methods),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "peak_memory_bytes": PEAK_BYTES,
            "read_bytes_per_s": round(self.read_rate),
            "seconds": [round(bound, 1) for bound in self.seconds],
            "notes": list(self.notes),
        }


def plan_recipes(
    recipes: Sequence[Path],
    out: Path,
    overrides: Sequence[str] = (),
    options: Options | None = None,
    *,
    compare: bool = False,
) -> list[Merge]:
    """A merge for every recipe: into `out`, or to compare them into `out/<name of the file>`."""
    stems = [recipe.stem for recipe in recipes]
    for stem in stems:
        if stems.count(stem) > 1:
            raise ConfigError(f"two recipes are called {stem}; their results would share a folder. Rename one.")
    folders = [out / stem for stem in stems] if compare else [out]
    chosen = options or Options()
    merges = []
    for recipe, folder in zip(recipes, folders):
        resolved = plan_merge(read_recipe(recipe, overrides), chosen)
        merges.append(Merge(resolved.plan, folder, resolved.base))
    return merges


def outline(plan: MergePlan) -> Outline:
    """What `plan` will read, write and take. Times the disk on at most SAMPLE_BYTES of the inputs."""
    stored = {
        (part.tensor.file, part.tensor.offset): part.tensor
        for tensor in plan.tensors
        for rows in _inputs(tensor.base, tensor.models)
        for part in rows.parts
    }
    methods: dict[str, int] = {}
    for tensor in plan.tensors:
        methods[tensor.method] = methods.get(tensor.method, 0) + 1
    bytes_in = sum(tensor.nbytes for tensor in stored.values())
    bytes_out = sum(ITEM_BYTES[tensor.dtype] * _size(tensor.shape) for tensor in plan.tensors)
    rate = _read_rate(sorted({file for file, _ in stored}))
    floor = (bytes_in + bytes_out) / rate
    # The bounds that benchmarks/bench_merge.py is held to, over reading the inputs and writing the result.
    slowest = 3.5 if any(method in MEASURED for method in methods) else 2.0
    notes = tuple(plan.recipe.get("notes", ()))
    return Outline(len(plan.tensors), methods, bytes_in, bytes_out, rate, (floor, slowest * floor), notes)


def make_merges(
    merges: Sequence[Merge],
    *,
    threads: int | None = None,
    device: str = "cpu",
    force: bool = False,
    on_bytes: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """The merges carried out in one pass over the inputs, on the cpu or a `device` of torch's; their manifests."""
    from consilience.merge.execute import execute

    return execute(
        [(merge.plan, merge.out) for merge in merges],
        threads=threads,
        device=device,
        on_bytes=on_bytes,
        replace=force,
    )


def refuse_without_base(merges: Sequence[Merge]) -> None:
    """Raises `ConfigError` for a merge whose change nothing could be measured against."""
    for merge in merges:
        if merge.base is None:
            raise ConfigError("--extract-lora takes the change from the base. Give the recipe a base.")


def extract(merge: Merge, rank: int, *, force: bool = False) -> dict[str, Any]:
    """The finished merge's change from its base as a LoRA adapter of `rank`, in the folder `lora` of the merge."""
    from consilience.merge.extract import extract_lora

    if merge.base is None:
        raise ConfigError("--extract-lora takes the change from the base. Give the recipe a base.")
    folder = merge.out / "lora"
    return extract_lora(merge.base, merge.out, folder, rank=rank, replace=force).to_json() | {"out": str(folder)}


def _inputs(base: Rows | None, models: Sequence[Rows]) -> list[Rows]:
    return [*models, *([base] if base is not None else [])]


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _read_rate(files: Sequence[Path]) -> float:
    """Bytes a second at which the inputs are read, from the disk or from its cache as they are now."""
    began, done = time.perf_counter(), 0
    for path in files:
        with path.open("rb", buffering=0) as file:
            while done < SAMPLE_BYTES and (chunk := file.read(8 << 20)):
                done += len(chunk)
        if done >= SAMPLE_BYTES:
            break
    return done / max(time.perf_counter() - began, 1e-6)
