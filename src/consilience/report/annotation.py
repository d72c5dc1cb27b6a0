"""The report of an annotation: one page and CSV files that a reviewer can check.

Every number comes with its 95 % and 50 % interval, its n, its method and what it leaves out; there are no verdicts.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from consilience.report import numbers
from consilience.report.comparison import intervals
from consilience.report.figures import WIDTH, Axis, svg, tick_decimals, ticks
from consilience.report.numbers import number
from consilience.report.page import environment, write_page
from consilience.run import write_text

Tree = Mapping[str, Any]
NUMBER = ("value", "low", "high")
COUNT = re.compile(r"\b\d+(?= (gold|of|texts|clusters|items|paired))|(?<=lambda )[\d.]+|(?<=effect )[\d.]+")
PLOT_HEIGHT, PLOT_LEFT = 210, 60


def write_annotation_report(found: Tree, folder: Path) -> Path:
    """`report.html` and CSV files in `folder`, which is made. `found` is what `annotation_results` gathers."""
    folder.mkdir(parents=True, exist_ok=True)
    estimates = found["estimates"]
    page = (
        environment()
        .get_template("annotation.html.j2")
        .render(
            found=found,
            estimates=estimates,
            validation=estimates["validation"],
            prevalence=prevalence_figure(estimates),
            multiverse=multiverse_figure(estimates),
            changes=changes(estimates),
            reliability=reliability_figure(estimates["validation"].get("calibration")),
            curves={
                column: {name: curve_figure(by_label) for name, by_label in by["differences"].items()}
                for column, by in estimates["by"].items()
            },
            regressions={formula: regression_figure(of) for formula, of in estimates["formulas"].items()},
            is_number=is_number,
            decimals=numbers.decimals_of,
            methods=methods_of(estimates),
        )
    )
    path = folder / "report.html"
    write_page(page, path)
    for name, rows in tables(found).items():
        write_text(folder / f"{name}.csv", _as_csv(rows))
    return path


def is_number(found: Any) -> bool:
    """Whether a part of the results is a number with its interval."""
    return isinstance(found, Mapping) and set(NUMBER) <= found.keys()


def prevalence_figure(estimates: Tree) -> Markup:
    """Every label in every way it was estimated."""
    rows = [
        (f"{label}: {way}", found, [found["half"], None])
        for label, ways in estimates["prevalence"].items()
        for way, found in ways.items()
        if is_number(found)
    ]
    return intervals(rows, name="Every label's share, in four ways") if rows else Markup()


def multiverse_figure(estimates: Tree) -> Markup | None:
    """Every label under every frozen configuration: corrected, and as the model's labels are."""
    rows = [
        (f"{label}: {name}, {way}", of[label][way], [of[label][way]["half"], None])
        for label in estimates["prevalence"]
        for name, of in estimates["multiverse"].items()
        for way in (next(iter(of[label])), "uncorrected")
        if is_number(of[label].get(way))
    ]
    several = len(estimates["multiverse"]) > 1
    return intervals(rows, name="Every label's share under all frozen configurations") if rows and several else None


def changes(estimates: Tree) -> list[dict[str, Any]]:
    """From uncorrected to corrected: both values, and their difference."""
    found = []
    for label, ways in estimates["prevalence"].items():
        corrected = ways[next(iter(ways))]
        if is_number(corrected) and is_number(ways.get("uncorrected")):
            apart = corrected["value"] - ways["uncorrected"]["value"]
            found.append({"label": label, "from": ways["uncorrected"], "to": corrected, "change": apart})
    return found


def regression_figure(of: Tree) -> Markup:
    """Every coefficient in every way."""
    rows = [
        (f"{name}: {way}", found, [found["half"], None])
        for name, ways in of["coefficients"].items()
        for way, found in ways.items()
        if is_number(found)
    ]
    return intervals(rows, name=f"Coefficients of {of['formula']}", signed=True)


def reliability_figure(calibration: Tree | None) -> Markup | None:
    """The share right against the probability that was stated, with intervals; the diagonal is where both agree."""
    if not calibration:
        return None
    axis_x = Axis(0.0, 1.0, PLOT_LEFT, PLOT_LEFT + 300)
    axis_y = Axis(0.0, 1.0, PLOT_HEIGHT, 12)
    parts = [_grid(axis_x, axis_y)]
    diagonal = '<line class="zero" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'
    parts.append(Markup(diagonal).format(axis_x.at(0), axis_y.at(0), axis_x.at(1), axis_y.at(1)))
    for found in calibration["reliability"]:
        x = axis_x.at(found["stated"])
        told = "stated {:.2f}, right {:.2f} [{:.2f}, {:.2f}], {} texts".format(
            found["stated"], found["right"], found["low"], found["high"], found["n"]
        )
        line = '<line class="interval" x1="{0:.1f}" x2="{0:.1f}" y1="{1:.1f}" y2="{2:.1f}"/>'
        shape = Markup(line).format(x, axis_y.at(found["low"]), axis_y.at(found["high"]))
        point = Markup('<circle class="point" cx="{:.1f}" cy="{:.1f}" r="3.4"/>').format(x, axis_y.at(found["right"]))
        parts.append(Markup("<g><title>{}</title>{}{}</g>").format(told, shape, point))
    return svg(parts, PLOT_LEFT + 320, PLOT_HEIGHT + 30, "Share right against probability stated")


def curve_figure(by_label: Tree) -> Markup:
    """P(difference > d) for every d, a line per label, named at its end."""
    by_label = {label: ways for label, ways in by_label.items() if ways.get("curve")}
    every = [point for ways in by_label.values() for point in ways["curve"]]
    if not every:
        return Markup()
    reach = max(abs(d) for d, _ in every)
    axis_x, axis_y = Axis(-reach, reach, PLOT_LEFT, WIDTH - 260), Axis(0.0, 1.0, PLOT_HEIGHT, 12)
    parts = [_grid(axis_x, axis_y, signed=True)]
    for place, (label, ways) in enumerate(by_label.items()):
        points = " ".join(f"{axis_x.at(d):.1f},{axis_y.at(p):.1f}" for d, p in ways["curve"])
        dashes = ("none", "6 3", "2 3", "8 3 2 3")[place % 4]
        line = '<polyline class="curve" stroke-dasharray="{}" points="{}"/>'
        key = '<line class="curve" stroke-dasharray="{}" x1="{}" x2="{}" y1="{}" y2="{}"/>'
        y, x = 24 + 20 * place, WIDTH - 230
        parts.append(Markup(line).format(dashes, points))
        parts.append(Markup(key).format(dashes, x, x + 34, y - 4, y - 4))
        parts.append(Markup('<text class="label" x="{}" y="{}">{}</text>').format(x + 42, y, label))
    return svg(parts, WIDTH, max(PLOT_HEIGHT + 30, 30 + 20 * len(by_label)), "P(difference > d) for every d")


def _grid(axis_x: Axis, axis_y: Axis, signed: bool = False) -> Markup:
    parts = []
    steps = ticks(axis_x.low, axis_x.high, 6)
    for step in steps:
        x = axis_x.at(step)
        line = '<line class="{}" x1="{:.1f}" x2="{:.1f}" y1="12" y2="{}"/>'
        parts.append(Markup(line).format("zero" if signed and step == 0 else "grid", x, x, PLOT_HEIGHT))
        text = number(step, tick_decimals(steps), signed=signed)
        parts.append(Markup('<text class="tick" x="{:.1f}" y="{}">{}</text>').format(x, PLOT_HEIGHT + 18, text))
    for step in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = axis_y.at(step)
        line = '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
        parts.append(Markup(line).format(axis_x.at(axis_x.low), axis_x.at(axis_x.high), y, y))
        label = '<text class="tick end" x="{:.1f}" y="{:.1f}">{:g}</text>'
        parts.append(Markup(label).format(PLOT_LEFT - 8, y + 4, step))
    return Markup("").join(parts)


def methods_of(tree: Any) -> list[str]:
    """Every method that a number in the results names, once; what it says of one number's n or lambda left out."""
    return list(dict.fromkeys(COUNT.sub("…", method) for method in _methods(tree)))


def _methods(tree: Any) -> list[str]:
    if is_number(tree):
        return [tree["method"]]
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list) else ()
    return [method for part in parts for method in _methods(part)]


HEAD = ["value", "low_95", "high_95", "low_50", "high_50", "standard_error", "n", "units", "method"]


def tables(found: Tree) -> dict[str, list[list[Any]]]:
    """The CSV files by name: a head, and rows that hold every number of the page."""
    estimates = found["estimates"]
    validation = estimates["validation"]
    prevalence = [
        [name, label, way, *_cells(number_)]
        for name, of in estimates["multiverse"].items()
        for label, ways in of.items()
        for way, number_ in ways.items()
        if is_number(number_)
    ]
    agreement = [["all", "", measure, *_cells(number_)] for measure, number_ in validation["agreement"].items()]
    agreement += [["all", "", metric, *_cells(number_)] for metric, number_ in validation.get("table", {}).items()]
    agreement += [
        ["all", label, metric, *_cells(number_)]
        for label, metrics in validation.get("by_label", {}).items()
        for metric, number_ in metrics.items()
        if is_number(number_)
    ]
    agreement += [
        [f"{column}={group}", "", measure, *_cells(number_)]
        for column, groups in estimates["validation_by"].items()
        for group, of in groups.items()
        for measure, number_ in of["agreement"].items()
    ]
    made: dict[str, list[list[Any]]] = {
        "prevalence": [["configuration", "label", "way", *HEAD], *prevalence],
        "agreement": [["texts", "label", "measure", *HEAD], *agreement],
    }
    if "confusion" in validation:
        table = validation["confusion"]
        made["confusion"] = [["gold", "model", "texts", *HEAD]] + [
            [gold, model, table["counts"][j][k], *_cells(table["shares"][j][k])]
            for j, gold in enumerate(table["gold"])
            for k, model in enumerate(table["model"])
        ]
    if estimates["by"]:
        made["groups"] = [["column", "group", "label", "way", *HEAD]] + [
            [column, group, label, way, *_cells(number_)]
            for column, by in estimates["by"].items()
            for group, of in _groups(by).items()
            for label, ways in of.items()
            for way, number_ in ways.items()
            if is_number(number_)
        ]
    if estimates["formulas"]:
        made["regression"] = [["formula", "term", "way", *HEAD]] + [
            [formula, term, way, *_cells(number_)]
            for formula, of in estimates["formulas"].items()
            for term, ways in of["coefficients"].items()
            for way, number_ in ways.items()
            if is_number(number_)
        ]
    return made


def _groups(by: Tree) -> dict[str, Tree]:
    groups = {group: part["prevalence"] or {} for group, part in by["groups"].items()}
    return {**groups, **by["differences"]}


def _cells(found: Tree) -> list[Any]:
    half = found.get("half") or [None, None]
    return [
        found["value"], found["low"], found["high"], *half, found["standard_error"], found["n"], found["units"],
        found["method"],
    ]  # fmt: skip


def _as_csv(rows: Sequence[Sequence[Any]]) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else _safe(cell) for cell in row])
    return file.getvalue()


def _safe(cell: Any) -> Any:
    """A text that a spreadsheet would run as a formula has an apostrophe in front."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in "=+-@\t" and cell[:1] else cell
