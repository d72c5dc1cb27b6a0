"""`consilience compare` and `consilience power`: thin doors to `pipelines.compare` and to `stats.planning`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.options import AsJson


def compare(
    logs: Annotated[
        list[str],
        typer.Argument(
            metavar="LOG...",
            help="Files or folders: lm-evaluation-harness samples_*.jsonl, inspect_ai .eval or .json, alpaca_eval "
            "annotations.json, MT-Bench judgments, our own, or CSV with item, model, score. NAME=PATH names a model.",
        ),
    ],
    metric: Annotated[str | None, typer.Option(help="The metric to compare by; else the first that all have.")] = None,
    model: Annotated[list[str], typer.Option(help="Compare only this model of a file. May be repeated.")] = [],  # noqa: B006 (typer reads the default, nobody changes it)
    reference: Annotated[str | None, typer.Option(help="Show the differences to this model.")] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column or field (doc.subject) whose items go together.")
    ] = None,
    margin: Annotated[
        float | None, typer.Option(help="A difference that would matter, in units of the metric.")
    ] = None,
    level: Annotated[float, typer.Option(help="The level of the intervals.")] = 0.95,
    lower_is_better: Annotated[bool, typer.Option("--lower-is-better", help="The metric is a loss.")] = False,
    min_shared: Annotated[
        float, typer.Option(help="Refuse two models that share less of the smaller one's items than this.")
    ] = 0.8,
    html: Annotated[Path | None, typer.Option(help="Write a page about it to this file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file of --html.")] = False,
    as_json: AsJson = False,
) -> None:
    """Which model is better, by how much, and how sure that is: paired differences of evaluation logs."""
    from consilience.pipelines.compare import CompareSettings, compare_logs

    settings = CompareSettings(
        metric=metric,
        models=tuple(model),
        cluster=cluster,
        margin=margin,
        level=level,
        min_shared=min_shared,
        reference=reference,
        lower_is_better=lower_is_better,
    )
    result = compare_logs(logs, settings, html=html, force=force)
    if as_json:
        print(json.dumps(result | {"html": str(html.resolve()) if html else None}))
        return
    from consilience.cli.comparison_table import comparison_table

    print(comparison_table(result) + (f"\n\npage    {html}" if html else ""))


def power(
    items: Annotated[int | None, typer.Option(min=2, help="What can so many items show?")] = None,
    width: Annotated[float | None, typer.Option(help="How many items for an interval of value -+ this?")] = None,
    difference: Annotated[float | None, typer.Option(help="How many items to tell such a difference from 0?")] = None,
    spread: Annotated[
        float | None, typer.Option(help="Standard deviation of what is averaged: of scores, or of paired differences.")
    ] = None,
    share: Annotated[float | None, typer.Option(help="In place of --spread: a share of ones near this value.")] = None,
    logs: Annotated[
        list[str], typer.Option("--pilot", metavar="LOG", help="Take the spread from two models' logs. Repeat it.")
    ] = [],  # noqa: B006
    metric: Annotated[str | None, typer.Option(help="The pilot's metric.")] = None,
    probability: Annotated[float, typer.Option(help="P(the interval leaves out 0), for a difference.")] = 0.8,
    level: Annotated[float, typer.Option(help="The level of the interval.")] = 0.95,
    cluster_size: Annotated[float, typer.Option(min=1, help="Items to a cluster.")] = 1.0,
    correlation: Annotated[float, typer.Option(help="Correlation of the items within a cluster.")] = 0.0,
    as_json: AsJson = False,
) -> None:
    """How many items for a given width, or what difference so many items can show."""
    from consilience.pipelines.plan import Plan, plan

    asked = Plan(
        items=items,
        width=width,
        difference=difference,
        spread=spread,
        share=share,
        pilot=tuple(logs),
        metric=metric,
        probability=probability,
        level=level,
        cluster_size=cluster_size,
        correlation=correlation,
    )
    result = plan(asked)
    print(json.dumps(result) if as_json else "\n".join(result["sentences"]))
