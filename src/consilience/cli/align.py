"""`consilience align`: a thin door to `pipelines.align`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from consilience.cli.options import AsJson, Overrides
from consilience.errors import ConfigError


def align(
    pivot: Annotated[
        str, typer.Argument(metavar="RECIPE|PIVOT", help="A fuse recipe alone, or the pivot's folder or hub name.")
    ],
    source: Annotated[str | None, typer.Argument(metavar="SOURCE", help="The source's folder or hub name.")] = None,
    chats: Annotated[Path | None, typer.Option(help="Align the replies of chats: JSONL, JSON or Parquet.")] = None,
    text: Annotated[
        list[Path], typer.Option(help="Align plain text (UTF-8), paragraph by paragraph. May be repeated.")
    ] = [],  # noqa: B006 (typer reads the default, nobody changes it)
    limit: Annotated[int | None, typer.Option(min=1, help="Read only so many chats or paragraphs.")] = None,
    template: Annotated[
        str | None, typer.Option(help="Whose chat template a source reads: native (its own) or pivot.")
    ] = None,
    warped: Annotated[
        int, typer.Option(min=0, help="Texts on which the published, quadratic alignments are compared.")
    ] = 50,
    overrides: Overrides = [],  # noqa: B006
    html: Annotated[Path | None, typer.Option(help="Write a page about it, with examples, to this file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file of --html.")] = False,
    as_json: AsJson = False,
) -> None:
    """How well the tokens of sources meet a pivot's on your texts: positions, chunks, vocabulary. Needs no weights."""
    from consilience.cli.progress import watching

    if source is None and not _is_recipe(pivot):
        raise ConfigError(
            f"a source is missing: got {pivot!r} alone, which is no recipe (.yaml). "
            "Give PIVOT SOURCE and --chats FILE or --text FILE, or a recipe alone."
        )
    if source is None and (chats or text):
        raise ConfigError("a recipe names its own chats. Leave out --chats and --text, or give PIVOT SOURCE.")
    if source is not None and (_is_recipe(pivot) or overrides):
        given = f"the recipe {pivot}" if _is_recipe(pivot) else "--set, which is for recipes,"
        raise ConfigError(f"{given} is given together with a source. Give a recipe alone, or PIVOT SOURCE.")
    with watching() as on_progress:
        from consilience.pipelines.align import Output, align_recipe, align_report

        output = Output(warped=warped, html=html, force=force, on_progress=on_progress)
        if source is None:
            found = align_recipe(Path(pivot), overrides, limit=limit, template=template, output=output)
        else:
            found = align_report(pivot, source, chats, text=text, limit=limit, template=template, output=output)
    result = found.to_json()
    if as_json:
        print(json.dumps(result | {"html": str(html.resolve()) if html else None}))
        return
    from consilience.cli.tables import alignment_table

    print(alignment_table(result) + (f"\n\npage    {html}" if html else ""))


def _is_recipe(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))
