"""Figures as inline SVG: text stays text, colours come from the page, and the same numbers give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from consilience.report.numbers import EstimateJson, decimals_of, number, with_interval

WIDTH = 900  # user units of a whole figure; the page scales it
LABELS, NUMBERS, GAP = 146, 188, 20  # widths: model names, a panel's numbers, the air before a panel
ROW, HEADING = 25, 30  # heights: a model, the name of a group of models

# The three lines of a training panel: what the record calls it, what the reader does.
SERIES = {"loss": "the loss in training", "gold": "its gold part", "fusion": "its fusion part"}
POINTS = 120  # a training curve of more points is drawn as means of neighbours


@dataclass(frozen=True, slots=True)
class ForestRow:
    """One model: its name, the group it stands under, a remark, and one estimate (or None) per panel.

    The axes span the rows in focus; an interval that leaves them ends in an arrow, its numbers stand beside it.
    """

    label: str
    group: str
    estimates: Sequence[EstimateJson | None]
    remark: str = ""
    in_focus: bool = True


@dataclass(frozen=True, slots=True)
class Axis:
    """A linear map from the values `low` .. `high` to the horizontal positions `left` .. `right`."""

    low: float
    high: float
    left: float
    right: float

    def at(self, value: float) -> float:
        """The position of `value`."""
        return self.left + (value - self.low) / (self.high - self.low) * (self.right - self.left)

    def holds(self, value: float) -> bool:
        """Whether `value` lies on the axis."""
        return self.low <= value <= self.high


def forest_plot(rows: Sequence[ForestRow], panels: Sequence[str], *, name: str) -> Markup:
    """Signed estimates with their intervals, one row per model and one panel per quantity in `panels`.

    `name` says what the figure shows to those who cannot see it. Zero is always on the axis.
    """
    groups = [row.group for row in rows]
    opens = [i == 0 or groups[i - 1] != group for i, group in enumerate(groups)]
    tops = [28 + ROW * i + HEADING * sum(opens[: i + 1]) for i in range(len(rows))]
    bottom = tops[-1] + ROW + 4
    parts = [
        Markup('<text class="group" x="0" y="{:.0f}">{}</text>').format(top - 8, row.group)
        for row, top, first in zip(rows, tops, opens)
        if first
    ]
    parts += [_row_label(row, top) for row, top in zip(rows, tops)]
    width = (WIDTH - LABELS) / len(panels)
    for i, title in enumerate(panels):
        left = LABELS + i * width
        found = [row.estimates[i] for row in rows]
        focus = [estimate for row, estimate in zip(rows, found) if estimate and row.in_focus]
        axis = signed_axis(focus or [estimate for estimate in found if estimate], left + GAP, left + width - NUMBERS)
        parts.append(_forest_panel(title, axis, found, tops, bottom))
    return svg(parts, WIDTH, bottom + 26, name)


def _row_label(row: ForestRow, top: float) -> Markup:
    remark = Markup('<tspan class="remark" dx="7">{}</tspan>').format(row.remark) if row.remark else ""
    label = row.label if len(row.label) <= 20 else row.label[:19] + "…"
    return Markup('<text class="label" x="0" y="{:.0f}"><title>{}</title>{}{}</text>').format(
        top + 17, row.label, label, remark
    )


def signed_axis(estimates: Sequence[EstimateJson], left: float, right: float) -> Axis:
    """An axis that holds zero and all `estimates`, with a little air."""
    ends = [0.0]
    for found in estimates:
        ends += [end for end in (found["value"], found["low"], found["high"]) if end is not None]
    low, high = min(ends), max(ends)
    air = 0.06 * (high - low) or 1.0
    return Axis(low - air, high + air, left, right)


def _forest_panel(
    title: str, axis: Axis, found: Sequence[EstimateJson | None], tops: Sequence[float], bottom: float
) -> Markup:
    steps = ticks(axis.low, axis.high, 4)
    step_decimals = tick_decimals(steps)
    parts = [Markup('<text class="title" x="{:.1f}" y="16">{}</text>').format(axis.left, title)]
    for tick in steps:
        x = axis.at(tick)
        kind = "zero" if tick == 0 else "grid"
        parts.append(
            Markup('<line class="{}" x1="{:.2f}" x2="{:.2f}" y1="28" y2="{:.0f}"/>').format(kind, x, x, bottom)
        )
        text = number(tick, step_decimals, signed=True)
        parts.append(Markup('<text class="tick" x="{:.2f}" y="{:.0f}">{}</text>').format(x, bottom + 17, text))
    digits = decimals_of(found)
    for estimate, top in zip(found, tops):
        if estimate:
            text = with_interval(estimate, digits, signed=True)
            parts += [
                Markup("<g><title>{}</title>").format(text),
                _interval_mark(estimate, axis, top + 13),
                Markup("</g>"),
            ]
            parts.append(
                Markup('<text class="number end" x="{:.1f}" y="{:.0f}">{}</text>').format(
                    axis.right + NUMBERS, top + 17, text
                )
            )
    return Markup("").join(parts)


def _interval_mark(estimate: EstimateJson, axis: Axis, y: float) -> Markup:
    """Line and point; a hollow point without an interval; an arrow where they leave the axis."""
    known = estimate["low"] is not None
    low, high = (estimate["low"], estimate["high"]) if known else (estimate["value"], estimate["value"])
    parts = []
    if max(low, axis.low) < min(high, axis.high):
        x1, x2 = axis.at(max(low, axis.low)), axis.at(min(high, axis.high))
        line = '<line class="interval" x1="{:.2f}" x2="{:.2f}" y1="{:.1f}" y2="{:.1f}"/>'
        parts.append(Markup(line).format(x1, x2, y, y))
    for beyond, x, sign in ((low < axis.low, axis.left, -1), (high > axis.high, axis.right, 1)):
        if beyond:
            shape = '<path class="arrow" d="M{:.1f},{:.1f} l{},4 v-8 z"/>'
            parts.append(Markup(shape).format(x, y, -7 * sign))
    if axis.holds(estimate["value"]):
        shape = '<circle class="{}" cx="{:.2f}" cy="{:.1f}" r="3.6"/>'
        parts.append(Markup(shape).format("point" if known else "point hollow", axis.at(estimate["value"]), y))
    return Markup("").join(parts)


def curves(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup:
    """Small multiples, one per training run, all on the same axes: the loss and its parts by optimiser step.

    Every record has `step`, `loss` and possibly `gold` and `fusion`. A value that is not finite leaves a gap, and the
    panel says how many there are.
    """
    drawn = {name: [_thinned(_points(records, key)) for key in SERIES] for name, records in runs.items()}
    points = [point for lines in drawn.values() for line in lines for point in line if point[1] is not None]
    if not points:
        return Markup("")
    width, height = 290, 172
    steps, values = [step for step, _ in points], [value for _, value in points if value is not None]
    across = Axis(min(0, *steps), max(max(steps), 1), 34, width - 8)
    up = Axis(min(0.0, *values), max(*values, 1e-9) * 1.04, height - 24, 30)
    figures = []
    for name, lines in drawn.items():
        parts = [Markup('<text class="title" x="0" y="15">{}</text>').format(name), _curve_axes(across, up)]
        parts += [_line(kind, line, across, up) for kind, line in zip(SERIES, lines)]
        gaps = sum(value is None for _, value in _points(runs[name], "loss"))
        if gaps:
            text = '<text class="remark end" x="{}" y="15">{} steps not finite</text>'
            parts.append(Markup(text).format(width - 8, gaps))
        figures.append(svg(parts, width, height, f"Training of {name}: loss by step"))
    return Markup('<div class="multiples">{}</div>').format(Markup("").join(figures))


Point = tuple[float, float | None]


def _points(records: Sequence[Mapping[str, Any]], key: str) -> list[Point]:
    """`(step, value)` where the run has this part; None for a value that is not finite."""
    present = [(record["step"], record[key]) for record in records if record.get(key) is not None]
    return [(float(step), float(value) if math.isfinite(value) else None) for step, value in present]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most POINTS points: means of as many neighbours as it takes, a gap where any of them is one."""
    many = math.ceil(len(points) / POINTS) or 1
    thin: list[Point] = []
    for start in range(0, len(points), many):
        near = points[start : start + many]
        values = [value for _, value in near if value is not None]
        mean = sum(values) / len(near) if len(values) == len(near) else None
        thin.append((sum(step for step, _ in near) / len(near), mean))
    return thin


def _curve_axes(across: Axis, up: Axis) -> Markup:
    parts = []
    levels = ticks(up.low, up.high, 4)
    for level in levels:
        y = up.at(level)
        kind = "zero" if level == 0 else "grid"
        line = '<line class="{}" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        parts.append(Markup(line).format(kind, across.left, across.right, y, y))
        text = number(level, tick_decimals(levels))
        parts.append(Markup('<text class="tick end" x="{}" y="{:.1f}">{}</text>').format(across.left - 6, y + 4, text))
    for step in ticks(across.low, across.high, 4):
        text = Markup('<text class="tick" x="{:.1f}" y="{}">{}</text>')
        parts.append(text.format(across.at(step), up.left + 17, f"{step:,.0f}" if step >= 1 or step == 0 else step))
    return Markup("").join(parts)


def _line(kind: str, points: Sequence[Point], across: Axis, up: Axis) -> Markup:
    """One polyline per stretch without a gap."""
    stretches: list[list[str]] = [[]]
    for step, value in points:
        if value is None:
            stretches.append([])
        else:
            stretches[-1].append(f"{across.at(step):.1f},{up.at(value):.1f}")
    shape = Markup('<polyline class="curve {}" points="{}"/>')
    return Markup("").join(shape.format(kind, " ".join(stretch)) for stretch in stretches if stretch)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten apart) within `low` .. `high`, at most `about` + 1 of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def tick_decimals(values: Sequence[float]) -> int:
    """The fewest decimals that tell `values` exactly."""
    return next(decimals for decimals in range(12) if all(abs(round(x, decimals) - x) < 1e-12 for x in values))


def svg(parts: Sequence[Markup], width: float, height: float, name: str) -> Markup:
    """A figure of so many user units; `name` says what it shows to those who cannot see it."""
    frame = '<svg role="img" aria-label="{}" viewBox="0 0 {:.0f} {:.0f}" width="{:.0f}">{}</svg>'
    return Markup(frame).format(name, width, height, width, Markup("").join(parts))
