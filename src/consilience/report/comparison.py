"""The page of `consilience compare`: differences, means, ranks and categories, with a table behind every figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from consilience.evaluate.comparison import shown_probability
from consilience.report import numbers
from consilience.report.figures import WIDTH, Axis, signed_axis, svg, tick_decimals, ticks
from consilience.report.numbers import EstimateJson, number, with_interval
from consilience.report.page import environment, write_page

LABELS, NUMBERS, GAP, ROW = 300, 150, 20, 27
THICKNESS = (15, 9, 2)  # of the bands at 50 %, at 80 % and at the interval's level
CELL = 46
MOST_CATEGORIES = 5  # pairs that are drawn by category


def write_comparison_report(result: Mapping[str, Any], path: Path) -> None:
    """One self-contained HTML file at `path`, from what `compare_logs` returns. All text is escaped."""
    template = environment().get_template("comparison.html.j2")
    page = template.render(**view(result), title=_title(result), methods=methods([result]))
    write_page(page, path)


def view(result: Mapping[str, Any], *, prefix: str = "", heading: str = "h2") -> dict[str, Any]:
    """What `comparison_body.html.j2` shows of one comparison; the ids of its sections begin with `prefix`."""
    pairs = [pair for pair in result["pairs"] if pair["shown"]]
    return {
        "result": result,
        "prefix": prefix,
        "heading": heading,
        "drawn": pairs,
        "forest": intervals(
            [(f"{pair['first']} − {pair['second']}", pair["difference"], pair["bands"]) for pair in pairs],
            name="Paired differences with their intervals",
            signed=True,
        ),
        "means": intervals(
            [(name, model["estimate"], model["bands"]) for name, model in result["models"].items()],
            name="Every model's mean with its intervals",
        ),
        "heat_map": heat_map(result["ranks"]) if result["ranks"] and len(result["models"]) > 2 else None,
        "by_category": [(pair, categories(pair)) for pair in pairs[:MOST_CATEGORIES] if pair["by_category"]],
        "decimals": numbers.decimals_of,
        "probability": shown_probability,
    }


Row = tuple[str, EstimateJson, Sequence[Sequence[float] | None]]


def intervals(rows: Sequence[Row], *, name: str, signed: bool = False) -> Markup:
    """A row per estimate: three nested bands around the point, the widest and thinnest at the interval's level."""
    left, right = LABELS + GAP, WIDTH - NUMBERS - GAP
    axis = signed_axis([estimate for _, estimate, _ in rows], left, right) if signed else _axis(rows, left, right)
    bottom = 16 + ROW * len(rows)
    steps = ticks(axis.low, axis.high, 5)
    step_decimals = tick_decimals(steps)
    parts = []
    for step in steps:
        x = axis.at(step)
        kind = "zero" if signed and step == 0 else "grid"
        line = '<line class="{}" x1="{:.2f}" x2="{:.2f}" y1="8" y2="{:.0f}"/>'
        parts.append(Markup(line).format(kind, x, x, bottom))
        text = number(step, step_decimals, signed=signed)
        parts.append(Markup('<text class="tick" x="{:.2f}" y="{:.0f}">{}</text>').format(x, bottom + 17, text))
    digits = numbers.decimals_of([estimate for _, estimate, _ in rows])
    for i, (label, estimate, bands) in enumerate(rows):
        y = 16 + ROW * i + ROW / 2
        text = with_interval(estimate, digits, signed=signed)
        parts.append(_label(label, y))
        parts.append(Markup("<g><title>{}: {}</title>{}</g>").format(label, text, _bands(estimate, bands, axis, y)))
        shape = '<text class="number end" x="{:.0f}" y="{:.1f}">{}</text>'
        parts.append(Markup(shape).format(WIDTH, y + 4, text))
    return svg(parts, WIDTH, bottom + 26, name)


def _label(label: str, y: float) -> Markup:
    short = label if len(label) <= 46 else label[:45] + "…"
    return Markup('<text class="label" x="0" y="{:.1f}"><title>{}</title>{}</text>').format(y + 4, label, short)


def _axis(rows: Sequence[Row], left: float, right: float) -> Axis:
    ends = [end for _, found, _ in rows for end in (found["value"], found["low"], found["high"]) if end is not None]
    air = 0.06 * (max(ends) - min(ends)) or 1.0
    return Axis(min(ends) - air, max(ends) + air, left, right)


def _bands(estimate: EstimateJson, bands: Sequence[Sequence[float] | None], axis: Axis, y: float) -> Markup:
    parts = []
    widest = None if estimate["low"] is None else (estimate["low"], estimate["high"])
    for band, thickness in reversed([*zip([*bands, widest], THICKNESS)]):
        if band is not None:
            shape = '<rect class="band b{}" x="{:.2f}" width="{:.2f}" y="{:.1f}" height="{}"/>'
            x1, x2 = axis.at(band[0]), axis.at(band[1])
            parts.append(Markup(shape).format(thickness, x1, max(x2 - x1, 0.5), y - thickness / 2, thickness))
    point = '<circle class="{}" cx="{:.2f}" cy="{:.1f}" r="3.4"/>'
    kind = "point hollow" if estimate["low"] is None else "point on-band"
    return Markup("").join([*parts, Markup(point).format(kind, axis.at(estimate["value"]), y)])


def heat_map(ranks: Mapping[str, Any]) -> Markup:
    """P(rank) of every model: the darker the likelier, and the number in the cell."""
    models, rows = ranks["models"], ranks["probabilities"]
    cell = min(CELL, (WIDTH - LABELS) / len(models))
    parts = [
        Markup('<text class="tick" x="{:.1f}" y="14">{}</text>').format(LABELS + cell * (k + 0.5), k + 1)
        for k in range(len(models))
    ]
    for i, (model, row) in enumerate(zip(models, rows)):
        top = 22 + ROW * i
        parts.append(_label(model, top + ROW / 2))
        for k, p in enumerate(row):
            x = LABELS + cell * k
            shape = '<rect class="cell" x="{:.1f}" y="{}" width="{:.1f}" height="{}" fill-opacity="{:.3f}"/>'
            told = Markup("<title>{}, rank {}: {:.3f}</title>").format(model, k + 1, p)
            parts.append(Markup("<g>{}{}</g>").format(told, Markup(shape).format(x, top, cell - 2, ROW - 2, p)))
            if cell >= 34:
                kind = "in-cell dark" if p > 0.75 else "in-cell"
                text = '<text class="{}" x="{:.1f}" y="{:.1f}">{}</text>'
                parts.append(Markup(text).format(kind, x + cell / 2 - 1, top + ROW / 2 + 3, f"{p:.2f}"))
    return svg(parts, LABELS + cell * len(models) + 2, 26 + ROW * len(models), "Probability of every rank")


def categories(pair: Mapping[str, Any]) -> Markup:
    """A pair's difference in every category: as measured, and under it in the light of the other categories."""
    rows: list[Row] = []
    for name, found in pair["by_category"].items():
        rows.append((f"{name} ({found['n']} {found['units']})", found, [None, None]))
        pooled = pair["pooled"].get(name)
        if pooled:
            rows.append(("   partially pooled", {**found, **pooled}, [None, None]))
    return intervals(rows, name=f"{pair['first']} minus {pair['second']} by category", signed=True)


def _title(result: Mapping[str, Any]) -> str:
    models = [*result["models"]]
    return f"{models[0]} and {models[1]}" if len(models) == 2 else f"{len(models)} models"


def methods(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The methods of all estimates, each once."""
    estimates = [model["estimate"] for result in results for model in result["models"].values()]
    estimates += [pair["difference"] for result in results for pair in result["pairs"]]
    return [*dict.fromkeys(found["method"] for found in estimates)]
