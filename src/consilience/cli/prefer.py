"""`consilience prefer`: a thin door to `pipelines.prefer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.forecast import STEPS_PER_SECOND, TFLOPS, DryRun, StepsPerSecond, Tflops, print_forecast
from consilience.cli.options import AsJson, Overrides


def prefer(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; ready ones are in recipes/.")],
    out: Annotated[Path, typer.Option(help="The run folder. The same command goes on with a run that was stopped.")],
    overrides: Overrides = [],  # noqa: B006 (typer reads the default, nobody changes it)
    dry_run: DryRun = False,
    tflops: Tflops = TFLOPS,
    steps_per_second: StepsPerSecond = STEPS_PER_SECOND,
    as_json: AsJson = False,
) -> None:
    """Align a chat model online: rounds of sample, judge, pair, train, swap the reference; every arm in one report."""
    from consilience.cli.progress import watching

    if dry_run:
        from consilience.pipelines.prefer_forecast import forecast_alignment

        found = forecast_alignment(recipe, out, overrides).to_json()
        print_forecast(found, as_json=as_json, tflops=tflops, steps_per_second=steps_per_second)
        return
    with watching() as on_progress:
        from consilience.pipelines.prefer import prefer_recipe

        result = prefer_recipe(recipe, out, overrides, on_progress=on_progress)
    from consilience.run import rank_of_this_process

    if rank_of_this_process():  # of several processes the first one speaks
        return
    if as_json:
        paths = {name: str(getattr(result, name).resolve()) for name in ("run", "model", "report")}
        shown = ("baseline", "result", "seeds", "start", "arms", "decompositions", "notes")
        print(json.dumps(paths | {key: result.results[key] for key in shown}))
        return
    from consilience.cli.preference_table import handed_over, preference_table

    print(preference_table(result.results))
    for note in result.results["notes"]:
        print(f"note    {note}")
    print(f"\nmodel   {result.model}: {handed_over(result.results)}\nreport  {result.report}")
