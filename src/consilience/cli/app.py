"""`consilience` and `csl`. Heavy imports sit in the commands' bodies, so that `--help` answers at once."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from consilience import __version__
from consilience.cli.align import align
from consilience.cli.annotate import annotate
from consilience.cli.compare import compare, power
from consilience.cli.evaluate import evaluate
from consilience.cli.forecast import TFLOPS, DryRun, Tflops, print_forecast
from consilience.cli.gold import gold
from consilience.cli.merge import merge
from consilience.cli.options import AsJson, Overrides
from consilience.cli.prefer import prefer
from consilience.cli.search import search
from consilience.cli.serve import serve
from consilience.errors import ConsilienceError

UsageError: Any = typer.BadParameter.__mro__[1]  # click's, which typer has under no public name of its own
INTERRUPTED = 130

app = typer.Typer(
    help="Several open chat models in, one better model out, and an honest account of how much better.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Exit codes: 0 done, 1 our bug (with traceback), 2 the user's input or a missing component, 130 interrupted."""
    try:
        code = app(standalone_mode=False, prog_name="consilience")
    except ConsilienceError as error:
        _stop(str(error))
    except UsageError as error:
        _stop(_misused(error))
    except Exception as error:
        # Writers in other languages (safetensors, pyarrow) say "no space" in an exception of their own.
        if getattr(error, "errno", None) != errno.ENOSPC and "os error 28" not in str(error):
            raise
        _stop(f"the disk is full ({error}). Free some space, then give the same command again: it goes on from here.")
    if code == INTERRUPTED:
        print("\ninterrupted; the same command goes on from here.", file=sys.stderr)
    sys.exit(code)


def _misused(error: Any) -> str:
    """One line for words that typer cannot make sense of; nothing where it has shown the help already."""
    message = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(error.__cause__, ValidationError):  # it says what was expected, and not what was got
        message += f", got {error.__cause__.errors()[0]['input']}"
    return f"{message}. See {error.ctx.command_path if error.ctx else 'consilience'} --help." if message else ""


def _stop(line: str) -> NoReturn:
    from consilience.run import rank_of_this_process

    if line and not rank_of_this_process():  # of several processes the first one speaks
        print("consilience: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(2)


@app.callback(invoke_without_command=True)
def _version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if show:
        print(f"consilience {__version__}")
        raise typer.Exit


@app.command()
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


@app.command()
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


app.add_typer(annotate, name="annotate")
app.add_typer(gold, name="gold")
for command in (align, compare, evaluate, merge, power, prefer, search, serve):
    app.command()(command)


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


# transformers asks the hub for newer files of a local model unless told not to; a recipe's hub names are fetched once,
# by name, in pipelines.recipe.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
