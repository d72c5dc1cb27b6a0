"""The page of `consilience evaluate`: every task with its comparisons, and what the intervals leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from consilience.report.comparison import methods, view
from consilience.report.page import environment, write_page

KINDS = {
    "checked": "replies checked by a rule",
    "choice": "multiple choice by likelihood",
    "ifeval": "instructions that a reply can be checked to follow (IFEval)",
}


def write_evaluation_report(results: Mapping[str, Any], path: Path) -> None:
    """One self-contained HTML file at `path`, from the results of `evaluate_recipe`. All text is escaped."""
    compared = [
        comparison
        for task in results["tasks"].values()
        for comparison in task["comparisons"].values()
        if "refused" not in comparison
    ]
    page = (
        environment()
        .get_template("evaluation.html.j2")
        .render(
            title=results["title"],
            results=results,
            tasks=[_task(place, name, task) for place, (name, task) in enumerate(results["tasks"].items())],
            not_included=_each_once(compared, "not_included"),
            notes=[*results["notes"], *_each_once(compared, "notes")],
            methods=methods(compared),
        )
    )
    write_page(page, path)


def _task(place: int, name: str, task: Mapping[str, Any]) -> dict[str, Any]:
    views = []
    for number, (metric, comparison) in enumerate(task["comparisons"].items()):
        head = {"metric": metric, "not_measured": comparison["not_measured"], "refused": comparison.get("refused")}
        drawn = {} if head["refused"] else view(comparison, prefix=f"task-{place}-{number}-", heading="h4")
        views.append(head | drawn)
    return {
        "id": f"task-{place}",
        "name": name,
        "about": f"{task['items']:,} items: {KINDS[task['kind']]}",
        "views": views,
        "samples": task["samples"],
    }


def _each_once(comparisons: Sequence[Mapping[str, Any]], key: str) -> list[str]:
    return [*dict.fromkeys(line for comparison in comparisons for line in comparison[key])]
