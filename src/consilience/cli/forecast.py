"""`--dry-run`: the options and the table that `fuse` and `prefer` have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what every stage will take: disk, memory, FLOPs.")]
Tflops = Annotated[
    float, typer.Option(min=0.001, help="With --dry-run: 10^12 FLOPs a second that your machine sustains.")
]
StepsPerSecond = Annotated[
    float, typer.Option(min=0.001, help="With --dry-run: tokens a second of one reply, 64 written at once.")
]
TFLOPS, STEPS_PER_SECOND = 60.0, 25.0


def print_forecast(
    found: Mapping[str, Any], *, as_json: bool, tflops: float, steps_per_second: float = STEPS_PER_SECOND
) -> None:
    """What a run will take, as JSON or as a table."""
    print(json.dumps(found) if as_json else forecast_table(found, tflops, steps_per_second))


def forecast_table(found: Mapping[str, Any], tflops: float, steps_per_second: float = STEPS_PER_SECOND) -> str:
    """What every stage will take.

    Hours are at `tflops` · 10^12 FLOPs a second, or at `steps_per_second` writing steps where these take longer.
    """
    from consilience.cli.tables import columns  # and scipy with it: not for --help

    writes = found["writing_steps"] > 0
    rates = f"{tflops:g} TFLOP/s" + (f", {steps_per_second:g} steps/s" if writes else "")
    rows = [("stage", "disk", "memory", "FLOPs", *(("writing steps",) if writes else ()), f"hours at {rates}")]
    hours_of = [
        max(one["flops"] / tflops / 3.6e15, one["writing_steps"] / steps_per_second / 3600) for one in found["stages"]
    ]
    names = ("disk_bytes", "memory_bytes", "flops", "writing_steps")
    total = {key: found[key] for key in names} | {"name": "in all"}
    for stage, hours in zip((*found["stages"], total), (*hours_of, sum(hours_of)), strict=True):
        spent = (f"{hours:,.0f}" if hours >= 10 else f"{hours:.2g}") if hours else ""
        steps = (f"{stage['writing_steps']:,}" if stage["writing_steps"] else "",) if writes else ()
        flops = f"{stage['flops']:.1e}" if stage["flops"] else ""
        rows.append((stage["name"], _sized(stage["disk_bytes"]), _sized(stage["memory_bytes"]), flops, *steps, spent))
    passing = f"and {_sized(found['passing_bytes'])} of disk while a model is trained, for its checkpoints"
    return "\n".join([columns(rows), "", passing, *found["assumptions"]])


def _sized(count: int) -> str:
    if not count:
        return ""
    return f"{count / 1e9:,.1f} GB" if count >= 5e7 else f"{count / 1e6:,.1f} MB"
