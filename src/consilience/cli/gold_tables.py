"""The gold sample's state as plain text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilience.cli.tables import columns, shown
from consilience.records import printable

FEW_CLUSTERS = 30


def plan_table(found: Mapping[str, Any], project: Path) -> str:
    """What was drawn, by stratum, and what to do next."""
    head = ("stratum", "texts of the corpus", "development", "test", "coded by several")
    rows = [
        (printable(name), str(row["corpus"]), str(row["dev"]), str(row["test"]), str(row["twice"]))
        for name, row in found["strata"].items()
    ]
    left_out = ", ".join(f"{count} {why}" for why, count in found["left_out"].items() if count)
    lines = [
        f"{found['texts']} of {found['corpus']} texts drawn"
        + (f", {found['added']} of them new" if 0 < found["added"] < found["texts"] else "")
        + (f"; never drawn: {left_out}" if left_out else ""),
        "",
        columns([head, *rows]),
        "",
    ]
    if found["clusters"]:
        few = f"; with fewer than {FEW_CLUSTERS} intervals are rough" if found["clusters"] < FEW_CLUSTERS else ""
        lines.append(f"from {found['clusters']} clusters{few}")
    if found["design_effect"] > 1.005:
        lines.append(
            f"unequal probabilities: for a share of the whole corpus, {found['test']} test texts of this design are "
            f"worth {found['test'] / found['design_effect']:.0f} drawn evenly"
        )
    return "\n".join([*lines, f"next: consilience gold code {project}"])


def status_table(found: Mapping[str, Any]) -> str:
    """How much is coded by whom, and the agreement of the coders."""
    counts = ", ".join(f"{count} {status}" for status, count in found["status"].items() if count)
    blocks = [f"{found['variable']}: {found['texts']} texts, {counts}"]
    if found["adjudicated"]:
        blocks[0] += f"; {found['adjudicated']} adjudicated"
    if found["codebooks"] > 1:
        blocks[0] += f"\ncoded under {found['codebooks']} versions of the codebook"
    if found["coders"]:
        head = ("coder", "coded", "unclear", "notes", "undone")
        rows = [(printable(name), *(str(count) for count in row.values())) for name, row in found["coders"].items()]
        blocks.append(columns([head, *rows]))
    agreement = found["agreement"]
    for name, measures in agreement["variables"].items():
        rows = [
            (f"{printable(name)}, {measures['scale']}", ""),
            *((measure, _estimate(number)) for measure, number in measures["measures"].items()),
        ]
        rows += [(f"share of {printable(label)}", _estimate(share)) for label, share in measures["prevalence"].items()]
        if len(measures["pairs"]) > 1:
            rows += [(f"observed, {printable(pair)}", _estimate(share)) for pair, share in measures["pairs"].items()]
        blocks.append(columns(rows))
        known = next(iter(measures["measures"].values()))
        if "undefined" not in known:
            blocks.append(
                f"[ ]: {100 * known['level']:g} % intervals over {known['n']} {known['units']} that several coded, "
                f"before adjudication{', weighted by the design' if agreement['weighted'] else ''}.\n"
                f"Do not include: {agreement['does_not_include']}."
            )
    if not agreement["texts"]:
        blocks.append("no text is coded by two people yet, so nothing is known of how far coders agree")
    return "\n\n".join(blocks)


def _estimate(found: Mapping[str, Any]) -> str:
    return f"undefined: {found['undefined']}" if "undefined" in found else shown(found)
