"""A comparison as plain text: estimates, paired differences, ranks, and what has no score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consilience.cli.tables import columns, shown
from consilience.evaluate.comparison import shown_probability

MOST_RANKED = 12
NO_SPREAD = "no interval: all items say the same, which does not tell how far others would differ."


def comparison_table(result: Mapping[str, Any]) -> str:
    """The whole of a comparison, but for the categories of more pairs than one."""
    pairs = [pair for pair in result["pairs"] if pair["shown"]]
    blocks = [
        _head(result),
        _models(result),
        _pairs(pairs, result),
        _categories(pairs[0]) if len(result["pairs"]) == 1 else "",
        _ranks(result["ranks"]),
        _statuses(result),
        _foot(result, pairs),
    ]
    return "\n\n".join(block for block in blocks if block)


def brief_comparison(result: Mapping[str, Any]) -> str:
    """Estimates, paired differences and what has no score, of one comparison among several."""
    pairs = [pair for pair in result["pairs"] if pair["shown"]]
    has_statuses = any(model["statuses"] for model in result["models"].values())
    blocks = [
        _head(result),
        _models(result),
        _pairs(pairs, result) if pairs else "",
        NO_SPREAD if any(pair["difference"]["low"] is None for pair in pairs) else "",
        _statuses(result) if has_statuses else "",
    ]
    return "\n\n".join(block for block in blocks if block)


def _head(result: Mapping[str, Any]) -> str:
    scale = result["scale"]
    direction = "lower is better" if result["lower_is_better"] else "higher is better"
    of = f", from {scale[0]:g} to {scale[1]:g}" if scale else ""
    units = f" in {result['units']} {result['unit_kind']}" if result["unit_kind"] != result["item_kind"] else ""
    rows = [("metric", f"{result['metric']}{of}; {direction}")]
    if result["other_metrics"]:
        rows.append(("also", ", ".join(result["other_metrics"])))
    rows.append(
        ("items", f"{result['items']} {result['item_kind']}{units}; {result['items_of_all']} scored under every model")
    )
    if result["judged"]:
        rows.append(("judge", ", ".join(result["judged"])))
    return columns(rows)


def _models(result: Mapping[str, Any]) -> str:
    has_categories = any(model["same_categories"] for model in result["models"].values())
    rows = [["model", "mean", *(["same categories"] if has_categories else []), "no score"]]
    for name, model in result["models"].items():
        same = [shown(model["same_categories"])] if has_categories else []
        rows.append([name, shown(model["estimate"]), *same, f"{model['no_score']}"])
    return columns(rows)


def _pairs(pairs: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> str:
    margin = result["margin"]
    near = [f"P(|difference| < {margin:g})"] if margin is not None else []
    joint = ["all at once"] if any(pair["together"] for pair in pairs) else []
    rows = [["first - second", "paired difference", *joint, "P(first better)", *near, "unlike items"]]
    for pair in pairs:
        found = pair["difference"]
        together = pair["together"]
        both = found | {"low": together[0], "high": together[1]} if together else None
        rows.append(
            [
                f"{pair['first']} - {pair['second']}",
                shown(found, signed=True),
                *([shown(both, signed=True).partition(" ")[2]] if joint else []),
                shown_probability(pair["better"]),
                *([shown_probability(pair["within"])] if near else []),
                f"{pair['unlike']} of {pair['items']}" if pair["unlike"] is not None else f"- of {pair['items']}",
            ]
        )
    return columns(rows)


def _categories(pair: Mapping[str, Any]) -> str:
    if not pair["by_category"]:
        return ""
    rows = [("category", "paired difference", "partially pooled", "n")]
    for name, found in pair["by_category"].items():
        pooled = pair["pooled"].get(name)
        rows.append((name, shown(found, signed=True), shown(pooled, signed=True), f"{found['n']} {found['units']}"))
    return columns(rows)


def _ranks(ranks: Mapping[str, Any] | None) -> str:
    if ranks is None or not 2 < len(ranks["models"]) <= MOST_RANKED:
        return ""
    rows = [["P(rank)", *(f"{k}" for k in range(1, len(ranks["models"]) + 1))]]
    rows += [[model, *(f"{p:.2f}" for p in row)] for model, row in zip(ranks["models"], ranks["probabilities"])]
    return columns(rows)


def _statuses(result: Mapping[str, Any]) -> str:
    lines = []
    for name, model in result["models"].items():
        told = [f"{count} {status}" for status, count in model["statuses"].items()]
        bounds = model["bounds"]
        between = ""
        if bounds:
            of = "seen" if bounds["is_observed"] else "possible"
            between = (
                f"; mean between {bounds['least']:.4g} and {bounds['most']:.4g} if these had the least or the most "
                f"{of} score"
            )
        lines.append((name, ", ".join(told) + between))
    return columns([("model", "what became of the items"), *lines])


def _foot(result: Mapping[str, Any], pairs: Sequence[Mapping[str, Any]]) -> str:
    lines = [f"[ ]: {100 * result['level']:g} % intervals over {result['unit_kind']}; differences are paired."]
    if any(pair["together"] for pair in pairs):
        lines.append(f"all at once: intervals that hold jointly for all {len(result['pairs'])} differences.")
    if len(pairs) < len(result["pairs"]):
        lines.append(f"{len(pairs)} of {len(result['pairs'])} differences are shown; --json and --html have all.")
    if any(pair["difference"]["low"] is None for pair in pairs):
        lines.append(NO_SPREAD)
    lines += [f"note: {note}" for note in result["notes"]]
    lines += ["The intervals do not include:", *(f"- {left_out}" for left_out in result["not_included"])]
    return "\n".join(lines)
