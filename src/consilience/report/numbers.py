"""How a report writes numbers: as many digits as the interval bears, a true minus sign, a named absence."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from consilience.stats import shown_decimals

EstimateJson = Mapping[str, Any]  # what Estimate.to_json gives


def decimals_of(estimates: Iterable[EstimateJson | None]) -> int:
    """One number of decimals for a column: the median of what each of its estimates would show alone."""
    each = [shown_decimals(found["value"], found["low"], found["high"]) for found in estimates if found]
    return statistics.median_high(each) if each else 3


def number(value: float, decimals: int, signed: bool = False) -> str:
    """`0.031`, or `+0.031` and `−0.031`; what rounds to zero has no sign."""
    text = f"{value:+.{decimals}f}" if signed else f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def interval(estimate: EstimateJson, decimals: int, signed: bool = False) -> str:
    """`[0.004, 0.058]`, or `[no interval]` where it is unknown."""
    if estimate["low"] is None or estimate["high"] is None:
        return "[no interval]"
    return f"[{number(estimate['low'], decimals, signed)}, {number(estimate['high'], decimals, signed)}]"


def with_interval(estimate: EstimateJson, decimals: int | None = None, signed: bool = False) -> str:
    """`0.031 [0.004, 0.058]`."""
    digits = decimals_of([estimate]) if decimals is None else decimals
    return f"{number(estimate['value'], digits, signed)} {interval(estimate, digits, signed)}"


def estimates_in(tree: Any) -> Iterator[EstimateJson]:
    """Every estimate in a tree of results."""
    if isinstance(tree, Mapping):
        if {"value", "level", "method"} <= tree.keys():
            yield tree
        else:
            for part in tree.values():
                yield from estimates_in(part)
    elif isinstance(tree, Sequence) and not isinstance(tree, str):
        for part in tree:
            yield from estimates_in(part)


def duration(seconds: float) -> str:
    """`5.0 s`, `2 min 13 s` or `3 h 4 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return (
        f"{int(seconds // 60)} min {int(seconds % 60)} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
    )
