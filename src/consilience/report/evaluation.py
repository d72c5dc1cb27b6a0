"""The page of `consilience evaluate`: every task with its comparisons, and what the intervals leave out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from consilience.report.comparison import Row, intervals, methods, view
from consilience.report.numbers import decimals_of
from consilience.report.page import environment, write_page

KINDS = {
    "checked": "replies checked by a rule",
    "choice": "multiple choice by likelihood",
    "ifeval": "instructions that a reply can be checked to follow (IFEval)",
    "mt_bench": "turns rated by a judge, as MT-Bench has it",
    "pairwise": "replies compared with a baseline's by a judge, as AlpacaEval has it",
    "rated": "replies rated by a judge",
}
BIASES = {"order": "shown first − shown second", "longer": "longer − other replies"}


def write_evaluation_report(results: Mapping[str, Any], path: Path) -> None:
    """One self-contained HTML file at `path`, from the results of `evaluate_recipe`. All text is escaped."""
    compared = [
        comparison
        for task in results["tasks"].values()
        for comparison in [*task["comparisons"].values(), task.get("length_control", {}).get("comparison")]
        if comparison and "refused" not in comparison
    ]
    page = (
        environment()
        .get_template("evaluation.html.j2")
        .render(
            title=results["title"],
            results=results,
            tasks=[_task(place, name, task) for place, (name, task) in enumerate(results["tasks"].items())],
            notes=[*results["notes"], *dict.fromkeys(note for comparison in compared for note in comparison["notes"])],
            methods=methods(compared),
            decimals=decimals_of,
        )
    )
    write_page(page, path)


def _task(place: int, name: str, task: Mapping[str, Any]) -> dict[str, Any]:
    views = []
    for number, (metric, comparison) in enumerate(task["comparisons"].items()):
        head = {"metric": metric, "not_measured": comparison["not_measured"], "refused": comparison.get("refused")}
        drawn = {} if head["refused"] else view(comparison, prefix=f"task-{place}-{number}-", heading="h4")
        views.append(head | drawn)
    control = task.get("length_control")
    if control and control.get("comparison"):
        comparison = control["comparison"]
        head = {"metric": comparison["metric"], "not_measured": {}, "refused": None, "control": control}
        views.append(head | view(comparison, prefix=f"task-{place}-length-", heading="h4"))
    return {
        "id": f"task-{place}",
        "name": name,
        "about": f"{task['items']:,} items: {KINDS[task['kind']]}",
        "views": views,
        "judge": task.get("judge") and task["judge"] | {"figure": _bias_figure(task["judge"]["bias"])},
        "no_length_control": control["refused"] if control else {},
        "samples": task["samples"],
    }


def _bias_figure(bias: Mapping[str, Mapping[str, Any]]) -> Markup | None:
    """Every model's order effect and length effect; a panel of these shows whether the judge treats models alike."""
    rows: list[Row] = [
        (f"{model}: {said}", found[key], [None, None])
        for key, said in BIASES.items()
        for model, found in bias.items()
        if found.get(key)
    ]
    return intervals(rows, name="What the judge's verdicts owe to order and length", signed=True) if rows else None
