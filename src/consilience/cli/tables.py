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
                shown(model["accuracy"]),
                shown(apart.get("accuracy"), signed=True),
                shown(model["nll"]),
                shown(apart.get("nll"), signed=True),
            )
        )
    level = next(iter(results["models"].values()))["nll"]["level"]
    notes = [f"[ ]: {100 * level:g} % intervals; differences are paired."]
    for kept, what in ((False, "left out of"), (True, "computed in")):
        shares = [found["share"] for found in results["padding"].values() if found["left_out"] is not kept]
        if shares:
            notes.append(f"padding {what} training: {100 * sum(shares) / len(shares):.0f} % of padded batches")
    return "\n".join([columns(rows), "", *notes])


def alignment_table(result: Mapping[str, Any]) -> str:
    """How well the tokens of every source meet the pivot's, a section per source."""
    head = f"pivot   {result['pivot']}\ntexts   {result['texts']}\n" + (
        "read as plain text, without a chat template"
        if result["template"] == "none"
        else f"replies of chats; chat template: {result['template']}"
    )
    sections = [_alignment_section(name, found, result) for name, found in result["sources"].items()]
    some = next(iter(result["sources"].values()))["matched"]
    foot = f"[ ]: {100 * some['level']:g} % intervals over {some['units']}, n = {some['n']}."
    return "\n\n\n".join([head, *sections, foot])


def _alignment_section(name: str, found: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    kind, tokens, top_k = result["kind"], found["tokens"], result["top_k"]

    def shares(qualities: Mapping[str, Any], *keys: str) -> list[str]:
        return [_share(qualities[key]) for key in keys]

    chunks = [("chunk, pivot-source", "chunks", "positions", "of positions", "of bytes")]
    for type_, count in found["chunk_types"].items():
        of_all = (f"{count[share]:.4f}" for share in ("share_of_positions", "share_of_bytes"))
        chunks.append((type_, f"{count['chunks']}", f"{count['positions']}", *of_all))
    mappings = [["vocabulary mapping", "mapped, of occurrences", "right, of matched positions", "mass kept"]]
    for method, quality in found["vocabulary"].items():
        mappings.append([method, *shares(quality, "mapped", "right", "mass")])
        if method in found["other_half"]:
            mappings.append(["  other half", *shares(found["other_half"][method], "mapped", "right", "mass")])
    blocks = [
        f"source  {name}" + (f"  ({found['source']})" if name != found["source"] else ""),
        f"{found['texts']} {kind}, {found['pivot_positions']} positions of the pivot, "
        f"{found['source_positions']} of the source"
        + ("; both tokenizers cut them alike" if found["cut_alike"] else ""),
        columns(
            [
                ("of the pivot's positions", ""),
                ("matched", _share(found["matched"])),
                ("in 1-1 chunks", _share(found["one_to_one"])),
            ]
        ),
        columns(
            [
                (f"alignment, on {found['warped']} of {found['texts']} {kind}", "matched", "right", "wrong"),
                *(
                    (method, *shares(quality, "matched", "right", "wrong"))
                    for method, quality in found["sequence"].items()
                ),
            ]
        )
        + _about_the_published(found, kind),
        columns(chunks),
        columns(mappings)
        + f"\nmass kept: no weights are read, so the {top_k} tokens that most often follow a token in these texts\n"
        f"stand in for a model's top {top_k}. They hold {_share(found['top_k_mass'])} of what follows; the\n"
        "column is the share of that which reaches a pivot token, right or not.",
        columns(
            [
                (f"source tokens that occur, under {result['listed']}", f"{sum(tokens.values())}"),
                ("mapped to the same bytes", f"{tokens['same_bytes']}"),
                ("mapped to other bytes", f"{tokens['other_bytes']}"),
                ("not mapped", f"{tokens['unmapped']}"),
            ]
        ),
        _listed(("source tokens without a mapping", "occurs"), found["unmapped"]),
        _listed(("pivot tokens without a partner", "without", "of"), found["unmatched"]),
        _set_aside(found["set_aside"], kind),
    ]
    return "\n\n".join(blocks)


def _about_the_published(found: Mapping[str, Any], kind: str) -> str:
    if found["not_warped"]:
        return f"\nthe published alignments: {found['not_warped']}"
    if found["warped"] == found["texts"]:
        return ""
    longer = f", none of the {found['too_long']} that are too long for them" if found["too_long"] else ""
    return (
        "\nthe published ones take time that grows with the square of a text's length: all are compared on\n"
        f"{found['warped']} evenly spaced {kind} (--warped){longer}"
    )


def _listed(head: Sequence[str], tokens: Sequence[Mapping[str, Any]]) -> str:
    """The first LISTED tokens, quoted, with as many counts as `head` has room for."""
    if not tokens:
        return f"{head[0]}: none"
    # repr, because a token may hold what moves a terminal's cursor
    rows = [(repr(found["token"]), f"{found['times']}", f"{found['occurrences']}") for found in tokens[:LISTED]]
    more = f"\n  and more; --json and --html list {len(tokens)}" if len(tokens) > LISTED else ""
    return columns([head, *(row[: len(head)] for row in rows)]) + more


def _set_aside(reasons: Mapping[str, int], kind: str) -> str:
    if not reasons:
        return f"{kind} set aside: none"
    lines = [f"{count:>6}  {' '.join(reason.split())}" for reason, count in list(reasons.items())[:REASONS]]
    rest = sum(list(reasons.values())[REASONS:])
    more = [f"{rest:>6}  for other reasons; --json has them all"] if rest else []
    return "\n".join([f"{kind} set aside: {sum(reasons.values())}", *lines, *more])


def columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)
    return "\n".join(lines)


def _share(estimate: Mapping[str, Any]) -> str:
    low, high = estimate["low"], estimate["high"]
    return f"{estimate['value']:.4f} " + ("[no interval]" if low is None else f"[{low:.4f}, {high:.4f}]")


def shown(estimate: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if estimate is None:
        return ""
    value, low, high = estimate["value"], estimate["low"], estimate["high"]
    form = f"{'+' if signed else ''}.{shown_decimals(value, low, high)}f"
    return f"{value:{form}}" if low is None else f"{value:{form}} [{low:{form}}, {high:{form}}]"
