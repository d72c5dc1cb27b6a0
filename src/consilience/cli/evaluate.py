"""`consilience evaluate`: a thin door to `pipelines.evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from consilience.cli.options import AsJson, Overrides


def evaluate(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe: models and tasks; ready ones are in recipes/.")],
    out: Annotated[Path, typer.Option(help="The run folder. The same command goes on with a run that was stopped.")],
    overrides: Overrides = [],  # noqa: B006 (typer reads the default, nobody changes it)
    retry: Annotated[bool, typer.Option("--retry", help="Ask again what ended with a server's error.")] = False,
    as_json: AsJson = False,
) -> None:
    """Models on tasks: replies, scores, paired differences with intervals, and a report."""
    from consilience.cli.progress import watching

    with watching() as on_progress:
        from consilience.pipelines.evaluate import evaluate_recipe

        found = evaluate_recipe(recipe, out, overrides, retry=retry, on_progress=on_progress)
    if as_json:
        print(json.dumps(dict(found.results) | {"run": str(found.run), "report": str(found.report)}))
        return
    print(_table(found.results) + f"\n\nreport  {found.report}")


def _table(results: Mapping[str, Any]) -> str:
    """Every task's comparisons, and once for all what the intervals leave out."""
    from consilience.cli.comparison_table import brief_comparison
    from consilience.evaluate.logs import printable

    blocks = []
    for name, task in results["tasks"].items():
        for metric, result in task["comparisons"].items():
            blocks.append(f"== {printable(name)}: {metric}")
            missing = [f"{model}: no score; {told}" for model, told in result["not_measured"].items()]
            blocks.append(result["refused"] if "refused" in result else brief_comparison(result))
            blocks += missing
        controlled = task.get("length_control", {}).get("comparison")
        if controlled:
            blocks += [f"== {printable(name)}: {controlled['metric']}", brief_comparison(controlled)]
    foot = ["The intervals do not include:", *(f"- {line}" for line in results["not_included"])]
    return "\n\n".join([*blocks, "\n".join(foot)])
