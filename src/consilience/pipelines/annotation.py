"""The report of `consilience annotate`: what the annotate room left on disk, gathered for the page."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from consilience.annotate.dev import read_dev
from consilience.annotate.estimate import read_estimates
from consilience.annotate.freeze import read_frozen
from consilience.annotate.gold import read_gold
from consilience.annotate.methods import methods_paragraph, run_records
from consilience.annotate.recipe import Project
from consilience.report.annotation import write_annotation_report

FOLDER = "report"


def annotation_results(project: Project) -> dict[str, Any]:
    """Everything that the page and its tables show. Raises `DataError` where the estimates are not made yet."""
    frozen = read_frozen(project)
    gold = read_gold(project, frozen.record["dev_gold"])
    estimates = read_estimates(project, gold)
    book = project.codebook
    return {
        "title": project.recipe.title or f"{book.variable} in {project.recipe.data.path}",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "estimates": estimates,
        "frozen": {"digest": frozen.record["digest"], "versions": frozen.record["versions"]},
        "runs": run_records(project, frozen),
        "dev": read_dev(project),
        "paragraph": methods_paragraph(project, frozen, estimates, gold),
        "codebook": book.as_markdown(),
        "prompt": frozen.record["configurations"][frozen.primary]["prompt"],
    }


def annotation_report(project: Project) -> Path:
    """Writes PROJECT/report/report.html and CSV files beside it."""
    return write_annotation_report(annotation_results(project), project.folder / FOLDER)
