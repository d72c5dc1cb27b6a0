"""Options that several commands have in common."""

from __future__ import annotations

from typing import Annotated

import typer

Overrides = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one setting of the recipe.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
