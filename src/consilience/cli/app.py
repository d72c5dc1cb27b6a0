"""`consilience` and `csl`. Heavy imports sit in the commands' bodies, so that `--help` answers at once."""

from __future__ import annotations

import errno
import gc
import os
import sys
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from consilience import __version__
from consilience.errors import ConsilienceError

UsageError: Any = typer.BadParameter.__mro__[1]  # click's, which typer has under no public name of its own
INTERRUPTED = 130

# The module of this room that each verb is in: a function, or an app with verbs of its own.
VERBS = {
    "fuse": "fuse",
    "demo": "fuse",
    "align": "align",
    "compare": "compare",
    "evaluate": "evaluate",
    "merge": "merge",
    "power": "compare",
    "prefer": "prefer",
    "search": "search",
    "serve": "serve",
    "annotate": "annotate",
    "gold": "gold",
}


def _app(words: list[str]) -> typer.Typer:
    """The command with the verb that `words` name, or with all: all take longer to put together."""
    app = typer.Typer(
        help="Several open chat models in, one better model out, and an honest account of how much better.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(_version)
    for verb in [word for word in words if word in VERBS] or VERBS:
        found = getattr(import_module(f"consilience.cli.{VERBS[verb]}"), verb)
        if isinstance(found, typer.Typer):
            app.add_typer(found, name=verb)
        else:
            app.command()(found)
    return app


def _version(
    show: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if show:
        print(f"consilience {__version__}")
        raise typer.Exit


def main() -> None:
    """Exit codes: 0 done, 1 our bug (with traceback), 2 the user's input or a missing component, 130 interrupted."""
    words = sys.argv[1:2]
    if words == ["merge"]:  # what it imports and plans is used to the end, and its loops leave nothing
        gc.disable()
    try:
        code = _app(words)(standalone_mode=False, prog_name="consilience")
    except ConsilienceError as error:
        _stop(str(error))
    except UsageError as error:
        _stop(_misused(error))
    except Exception as error:
        # Writers in other languages (safetensors, pyarrow) say "no space" in an exception of their own.
        if getattr(error, "errno", None) != errno.ENOSPC and "os error 28" not in str(error):
            raise
        _stop(f"the disk is full ({error}). Free some space, then give the same command again: it goes on from here.")
    finally:
        gc.enable()
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


# transformers asks the hub for newer files of a local model unless told not to; a recipe's hub names are fetched once,
# by name, in pipelines.recipe.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
