"""Which options stand on the command line: those that would not be heeded are refused, not ignored."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from consilience.errors import ConfigError


def given(context: typer.Context, names: Iterable[str]) -> list[str]:
    """The flags of those of the parameters `names` that were given."""
    return [f"--{name.replace('_', '-')}" for name in names if _is_given(context, name)]


def refuse(flags: list[str], need: str) -> None:
    """Raises `ConfigError` where there are any `flags`: they are of something that was not asked for."""
    if flags:
        what = flags[0] if len(flags) == 1 else f"{', '.join(flags[:-1])} and {flags[-1]}"
        raise ConfigError(f"{what} {'is' if len(flags) == 1 else 'are'} {need}")


def _is_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
