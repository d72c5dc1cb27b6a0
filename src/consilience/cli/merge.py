"""`consilience merge`. Starts without torch and transformers."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from consilience.cli.options import AsJson, Overrides
from consilience.errors import ConfigError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def merge(
    paths: Annotated[list[Path], typer.Argument(help="RECIPE.yaml (ours or mergekit's) and OUT, a new folder.")],
    compare: Annotated[
        bool, typer.Option("--compare", help="Several recipes in one pass over the inputs: A.yaml B.yaml ... OUT.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan: tensors, bytes, memory, time.")] = False,
    inspect: Annotated[
        bool, typer.Option("--inspect", help="Print how far each input and the merge moved from the base.")
    ] = False,
    extract_lora: Annotated[
        int | None,
        typer.Option(min=1, metavar="RANK", help="Also write OUT/lora, the change from the base as a LoRA adapter."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, or what torch calls a GPU: cuda, cuda:1.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Default: the cores of this machine.")] = None,
    shard_size: Annotated[str, typer.Option(help="Bytes of a file of weights at most: 5GB, 500MB.")] = "5GB",
    overrides: Overrides = [],  # noqa: B006 (typer reads the default, nobody changes it)
    force: Annotated[bool, typer.Option("--force", help="Replace a model that OUT holds.")] = False,
    copy_missing: Annotated[
        bool, typer.Option("--copy-missing", help="Copy tensors that only some inputs have, as they are.")
    ] = False,
    untie: Annotated[
        bool, typer.Option("--untie", help="Merge tied heads with untied ones into a model with an untied head.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Also read pickled weights (.bin); none of their code is run.")
    ] = False,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Merge models that need code of their own; copies it, runs none."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Merge fine-tunes of one base: a recipe of ours, or mergekit's YAML as it stands."""
    from consilience.merge.inspect import read_manifest, table, travelled

    if inspect and len(paths) == 1:
        shown = travelled(read_manifest(paths[0]))
        print(json.dumps({"out": str(paths[0].resolve()), "inspect": shown}) if as_json else table(shown))
        return
    *recipes, out = paths
    if not recipes or (len(recipes) > 1 and not compare):
        raise ConfigError(
            "expected RECIPE.yaml OUT (a new folder), or with --compare A.yaml B.yaml ... OUT; "
            f"got {' '.join(map(str, paths))}."
        )
    from consilience.merge.make import extract, make_merges, outline, plan_recipes, refuse_without_base
    from consilience.merge.resolve import Options

    options = Options(
        copy_missing=copy_missing,
        untie=untie,
        allow_pickle=allow_pickle,
        trust_remote_code=trust_remote_code,
        shard_bytes=_bytes(shard_size),
    )
    merges = plan_recipes(recipes, out, overrides, options, compare=compare)
    if extract_lora is not None:
        refuse_without_base(merges)
    if not as_json:
        for line in dict.fromkeys(note for merge in merges for note in merge.plan.recipe["notes"]):
            print(f"note: {line}", file=sys.stderr)
    if dry_run:
        outlines = [outline(merge.plan).to_json() | {"out": str(merge.out.resolve())} for merge in merges]
        print(json.dumps(outlines[0] if not compare else {"merges": outlines}) if as_json else _outlined(outlines))
        return
    began = time.monotonic()
    with _watching() as on_bytes:
        manifests = make_merges(merges, threads=threads, force=force, device=device, on_bytes=on_bytes)
    results = []
    for merge, manifest in zip(merges, manifests):
        result: dict[str, Any] = {
            "out": str(merge.out.resolve()),
            "tensors": len(merge.plan.tensors),
            "notes": merge.plan.recipe["notes"],
        }
        if extract_lora is not None:
            result["lora"] = extract(merge, extract_lora, force=force)
        if inspect:
            result["inspect"] = travelled(manifest)
        results.append(result)
    seconds = round(time.monotonic() - began, 3)
    if as_json:
        print(json.dumps({"merges": results, "seconds": seconds} if compare else results[0] | {"seconds": seconds}))
        return
    for result in results:
        if inspect:
            print(table(result["inspect"]))
        if "lora" in result:
            lora = result["lora"]
            print(
                f"adapter {lora['out']}: rank {lora['rank']}, {lora['matrices']} matrices, "
                f"{100 * lora['kept']:.1f} % of the change's square; "
                f"{len(lora['whole'])} tensors whole, {len(lora['left_out'])} left out"
            )
        print(f"model   {result['out']} ({result['tensors']} tensors)")


def _outlined(outlines: Sequence[Mapping[str, Any]]) -> str:
    blocks = []
    for plan in outlines:
        methods = ", ".join(f"{count} {method}" for method, count in plan["methods"].items())
        low, high = plan["seconds"]
        blocks.append(
            f"{plan['out']}\n"
            f"  tensors  {plan['tensors']} ({methods})\n"
            f"  reads    {_sized(plan['bytes_in'])} (at {_sized(plan['read_bytes_per_s'])}/s, measured now)\n"
            f"  writes   {_sized(plan['bytes_out'])}\n"
            f"  memory   {_sized(plan['peak_memory_bytes'])} at most, beside the system's cache\n"
            f"  time     {low:.2g} to {high:.2g} s and the start"
        )
    return "\n".join(blocks)


@contextmanager
def _watching() -> Iterator[Callable[[int, int], None]]:
    """A function `(bytes done, bytes in all)` that shows a bar with rate and time left, or plain lines."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    columns = (BarColumn(bar_width=40), DownloadColumn(), TransferSpeedColumn(), "left", TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("merge", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


class _Lines:
    """A line every ten seconds, and one at the end of what took longer."""

    def __init__(self) -> None:
        self.began = self.spoke = time.monotonic()
        self.first: int | None = None  # a merge that goes on does not begin at zero

    def __call__(self, done: int, total: int) -> None:
        self.first = done if self.first is None else self.first
        now = time.monotonic()
        if done == self.first or (now - self.spoke < 10 and (done < total or self.spoke == self.began)):
            return
        self.spoke = now
        rate = (done - self.first) / max(now - self.began, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if rate and done < total else ""
        print(f"merge: {_sized(done)} of {_sized(total)}, {_sized(rate)}/s{left}", file=sys.stderr, flush=True)


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([KMGT]?)B?", text.strip().upper())
    if not found or float(found[1]) <= 0:
        raise ConfigError(f"--shard-size {text!r}: expected a size such as 5GB or 500MB.")
    return int(float(found[1]) * UNITS[found[2]])


def _sized(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
