"""Results as plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consilience.stats import shown_decimals

LISTED = 15  # tokens shown of a longer list
REASONS = 5


def fusion_table(results: Mapping[str, Any]) -> str:
    """Every model of a run: accuracy, held-out NLL and the paired difference in accuracy to the baseline."""
    baseline = results["baseline"] or results["pivot"]
    head = ("model", "role", "accuracy", f"minus {baseline}", "NLL, nats per byte", f"minus {baseline}")
    rows = [head]
    for name, model in results["models"].items():
        apart = model["differences"].get(baseline, {})
        rows.append(
            (
                name,
                model["role"],
                _shown(model["accuracy"]),
                _shown(apart.get("accuracy"), signed=True),
                _shown(model["nll"]),
                _shown(apart.get("nll"), signed=True),
            )
        )
    level = next(iter(results["models"].values()))["nll"]["level"]
    return f"{_columns(rows)}\n\n[ ]: {100 * level:g} % intervals; differences are paired."


def alignment_table(result: Mapping[str, Any]) -> str:
    """How well a source's tokens meet the pivot's: positions, chunks, vocabulary, what is left without partner."""
    matched, vocabulary = result["matched"], result["vocabulary"]
    chunks = [("chunk, pivot-source", "chunks", "positions", "of positions", "of bytes")]
    for name, count in result["chunk_types"].items():
        shares = (f"{count[share]:.4f}" for share in ("share_of_positions", "share_of_bytes"))
        chunks.append((name, f"{count['chunks']}", f"{count['positions']}", *shares))
    blocks = [
        f"pivot   {result['pivot']}\nsource  {result['source']}\n"
        f"{result['conversations']} conversations, {result['pivot_positions']} reply positions of the pivot, "
        f"{result['source_positions']} of the source",
        _columns(
            [
                ("of the pivot's positions", ""),
                ("matched", _shown(matched)),
                ("in 1-1 chunks", _shown(result["one_to_one"])),
            ]
        ),
        _columns(chunks),
        _columns(
            [
                ("source tokens that occur", f"{sum(vocabulary.values())}"),
                ("mapped to the same bytes", f"{vocabulary['exact']}"),
                ("mapped by statistics", f"{vocabulary['statistics']}"),
                ("not mapped", f"{vocabulary['unmapped']}"),
            ]
        ),
        _columns(
            [
                ("mapping", "right, of matched positions"),
                *((name.replace("_", " "), _shown(share)) for name, share in result["right"].items()),
            ]
        ),
        _listed(("source tokens without a mapping", "occurs"), result["unmapped"]),
        _listed(("pivot tokens without a partner", "without", "of"), result["unmatched"]),
        _set_aside(result["set_aside"]),
        f"[ ]: {100 * matched['level']:g} % intervals over {matched['n']} {matched['units']}.",
    ]
    return "\n\n".join(blocks)


def _listed(head: Sequence[str], tokens: Sequence[Mapping[str, Any]]) -> str:
    """The first LISTED tokens, quoted, with as many counts as `head` has room for."""
    if not tokens:
        return f"{head[0]}: none"
    # repr, because a token may hold what moves a terminal's cursor
    rows = [(repr(found["token"]), f"{found['times']}", f"{found['occurrences']}") for found in tokens[:LISTED]]
    return _columns([head, *(row[: len(head)] for row in rows)])


def _set_aside(reasons: Mapping[str, int]) -> str:
    if not reasons:
        return "conversations set aside: none"
    lines = [f"{count:>6}  {' '.join(reason.split())}" for reason, count in list(reasons.items())[:REASONS]]
    rest = sum(list(reasons.values())[REASONS:])
    more = [f"{rest:>6}  for other reasons; --json has them all"] if rest else []
    return "\n".join([f"conversations set aside: {sum(reasons.values())}", *lines, *more])


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _shown(estimate: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if estimate is None:
        return ""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    form = f"{'+' if signed else ''}.{shown_decimals(value, low, high)}f"
    return f"{value:{form}}" if low is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"
