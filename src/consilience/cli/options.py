"""Options that several commands have in common."""

from __future__ import annotations

from typing import Annotated

import typer

from consilience.errors import ConfigError

Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one setting of the recipe.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]


def pair_of(guide: str | None) -> tuple[str, str] | None:
    """The two of TUNED:UNTUNED. Raises `ConfigError`."""
    if guide is None:
        return None
    tuned, colon, untuned = guide.partition(":")
    if not (tuned and colon and untuned):
        raise ConfigError(f"--guide {guide!r}: expected TUNED:UNTUNED, two folders or hub names.")
    return tuned, untuned
