"""Results as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def fusion_table(results: Mapping[str, Any]) -> str:
    """Every model of a run: accuracy, held-out NLL and the paired difference in accuracy to the baseline."""
    baseline = results["baseline"] or results["pivot"]
    head = ("model", "role", "accuracy", "NLL, nats per byte", f"NLL minus {baseline}", f"accuracy minus {baseline}")
    rows = [head]
    for name, model in results["models"].items():
        apart = model["differences"].get(baseline, {})
        rows.append(
            (
                name,
                model["role"],
                _shown(model["accuracy"]),
                _shown(model["nll"]),
                _shown(apart.get("nll"), signed=True),
                _shown(apart.get("accuracy"), signed=True),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    level = next(iter(results["models"].values()))["nll"]["level"]
    return "\n".join([*lines, f"\n[ ]: {100 * level:g} % intervals; differences are paired."])


def _shown(estimate: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if estimate is None:
        return ""
    sign = "+" if signed else ""
    if estimate["low"] is None:
        return f"{estimate['value']:{sign}.3f}"
    return f"{estimate['value']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"
