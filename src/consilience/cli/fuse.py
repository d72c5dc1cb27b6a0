"""`consilience fuse` and `consilience demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from consilience.cli.forecast import TFLOPS, DryRun, Tflops, print_forecast
from consilience.cli.options import AsJson, Overrides


def fuse(
    recipe: Annotated[Path, typer.Argument(help="A YAML recipe; ready ones are in recipes/.")],
    out: Annotated[Path, typer.Option(help="The run folder. The same command goes on with a run that was stopped.")],
    overrides: Overrides = [],  # noqa: B006 (typer reads the default, nobody changes it)
    debug: Annotated[
        bool, typer.Option("--debug", help="Rehearse it in a minute: tiny random models of the same architectures.")
    ] = False,
    reuse: Annotated[
        list[Path], typer.Option(metavar="RUN", help="Take what an earlier run made from the same. May be repeated.")
    ] = [],  # noqa: B006
    dry_run: DryRun = False,
    tflops: Tflops = TFLOPS,
    as_json: AsJson = False,
) -> None:
    """Fuse chat models: represent, align, train pairwise, merge, evaluate, report."""
    from consilience.cli.progress import watching

    if dry_run:
        from consilience.pipelines.forecast import forecast_recipe

        print_forecast(forecast_recipe(recipe, out, overrides).to_json(), as_json=as_json, tflops=tflops)
        return

    with watching() as on_progress:
        from consilience.pipelines.fuse import fuse_recipe

        result = fuse_recipe(recipe, out, overrides, debug=debug, reuse=reuse, on_progress=on_progress)
    _print_fusion(result, as_json)


def demo(
    out: Annotated[Path, typer.Option(help="The run folder.")] = Path("demo-run"),
    overrides: Overrides = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """The whole story on tiny models: train them from scratch, fuse, merge, evaluate, report."""
    from consilience.cli.progress import watching

    with watching() as on_progress:
        from consilience.pipelines.demo import demo_recipe
        from consilience.pipelines.fuse import fuse_recipe

        result = fuse_recipe(demo_recipe(), out, overrides, on_progress=on_progress)
    _print_fusion(result, as_json)


def _print_fusion(result: Any, as_json: bool) -> None:
    from consilience.run import rank_of_this_process

    if rank_of_this_process():  # of several processes the first one speaks
        return
    models = result.results["models"]
    if not as_json:
        from consilience.cli.tables import fusion_table

        print(fusion_table(result.results))
        print(f"\nmodel   {result.model}\nreport  {result.report}")
        return
    shown = {
        name: {key: model[key] for key in ("role", "nll", "accuracy", "differences")} for name, model in models.items()
    }
    paths = {name: str(getattr(result, name).resolve()) for name in ("run", "model", "report")}
    print(json.dumps(paths | {"result": result.results["result"], "models": shown}))
