"""`consilience annotate`: thin doors to the annotate room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from consilience.cli.options import AsJson, Overrides

annotate = typer.Typer(
    help="Texts coded by open models under a codebook, checked against people, estimates corrected with their labels.",
    no_args_is_help=True,
)

Recipe = Annotated[Path, typer.Argument(metavar="RECIPE", help="The project's recipe.yaml, or the folder it is in.")]


@annotate.command()
def init(
    folder: Annotated[Path, typer.Argument(help="The project's folder.")] = Path(),
    example: Annotated[
        bool,
        typer.Option("--example", help="A whole small project: invented reviews, gold, and a tiny model of its own."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """A commented recipe and codebook to fill in; or a whole small project to try everything on."""
    from consilience.annotate.init import init as make
    from consilience.annotate.init import refuse_overwriting

    if example:
        from consilience.cli.progress import watching

        refuse_overwriting(folder)
        with watching() as on_progress:
            from consilience.pipelines.tiny.annotation import make_annotation_example

            make_annotation_example(folder, on_progress=on_progress)
        paths = [folder / name for name in ("recipe.yaml", "codebook.yaml", "reviews.csv", "gold.csv", "models/tiny")]
    else:
        paths = make(folder)
    if as_json:
        print(json.dumps({"files": [str(path.resolve()) for path in paths]}))
        return
    print("\n".join(f"wrote   {path}" for path in paths))
    if not example:
        print(
            f"\nFill in both. Are no texts coded by people yet? consilience gold plan {folder} --n 300, and gold code."
        )
    print(f"\nThen: consilience annotate dev {folder}")


@annotate.command()
def prompts(recipe: Recipe, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """What every strategy asks about the first text, and the templates that `wording:` may change. Loads no model."""
    from consilience.annotate.dev import prompts as asked

    project = _project(recipe, overrides)
    found = asked(project)
    if as_json:
        print(json.dumps({"prompts": found, "wording": project.recipe.wording.model_dump()}))
        return
    for name, turns in found.items():
        print(f"=== {name}")
        print("\n".join(f"--- {turn['role']}\n{turn['content']}" for turn in turns) + "\n")
    print("=== wording")
    print("\n".join(f"{key}: {json.dumps(words)}" for key, words in project.recipe.wording.model_dump().items()))


@annotate.command()
def dev(recipe: Recipe, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Every model with every strategy on the development sample: agreement, confusions, errors, cost."""
    from consilience.cli.annotate_tables import dev_table
    from consilience.cli.progress import watching

    with watching() as on_progress:
        from consilience.annotate.dev import compare_configurations

        results = compare_configurations(_project(recipe, overrides), on_progress)
    if as_json:
        print(json.dumps(results))
        return
    print(f"{dev_table(results)}\n\nThen: consilience annotate freeze {recipe} --choose MODEL.STRATEGY")


@annotate.command()
def freeze(
    recipe: Recipe,
    choose: Annotated[
        list[str], typer.Option(metavar="MODEL.STRATEGY", help="What is run; the first is reported. May be repeated.")
    ] = [],  # noqa: B006
    force: Annotated[bool, typer.Option("--force", help="Freeze again, and start the labels anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Fix the chosen configurations by hash."""
    from consilience.annotate.freeze import freeze as fix

    frozen = fix(_project(recipe, []), choose, force=force)
    if as_json:
        print(json.dumps({"digest": frozen.record["digest"], "names": frozen.names}))
        return
    print(f"frozen  {', '.join(frozen.names)}\nhash    {frozen.record['digest']}")
    print(f"\nThen: consilience annotate run {recipe}")


@annotate.command()
def run(
    recipe: Recipe,
    retry: Annotated[
        bool, typer.Option("--retry", help="Code again what ended in an error, and nothing else.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """The whole corpus, coded by what is frozen; the labels beside the columns of the table. Resumes."""
    from consilience.cli.annotate_tables import run_table
    from consilience.cli.progress import watching

    with watching() as on_progress:
        from consilience.annotate.run import run as code

        results = code(_project(recipe, []), on_progress, retry=retry)
    if as_json:
        print(json.dumps(results))
        return
    print(run_table(results, f"consilience annotate run {recipe} --retry", retried=retry))
    print(f"\nThen: consilience annotate estimate {recipe}")


@annotate.command()
def estimate(
    recipe: Recipe,
    by: Annotated[str | None, typer.Option(metavar="COLUMN", help="Also within every value of this column.")] = None,
    formula: Annotated[
        str | None, typer.Option(metavar="'Y ~ X1 + X2'", help="A regression with the coded variable on either side.")
    ] = None,
    family: Annotated[str | None, typer.Option(help="linear or logistic; else by the outcome's values.")] = None,
    as_json: AsJson = False,
) -> None:
    """Prevalence, groups and regressions, corrected with the gold sample, beside gold alone and the model alone."""
    from consilience.annotate.estimate import estimate as compute
    from consilience.cli.annotate_tables import estimate_table

    found = compute(_project(recipe, []), by=by, formula=formula, family=family)
    if as_json:
        print(json.dumps(found))
        return
    print(f"{estimate_table(found, by, formula)}\n\nThen: consilience annotate report {recipe}")


@annotate.command()
def report(recipe: Recipe, as_json: AsJson = False) -> None:
    """One page, and CSV files, that a reviewer can check."""
    from consilience.pipelines.annotation import annotation_report

    page = annotation_report(_project(recipe, []))
    files = sorted(entry.name for entry in page.parent.glob("*.csv"))
    if as_json:
        print(json.dumps({"html": str(page.resolve()), "csv": files}))
        return
    print(f"page    {page}\ntables  {', '.join(files)}")


def _project(recipe: Path, overrides: list[str]) -> Any:
    from consilience.annotate.recipe import read_project

    return read_project(recipe, tuple(overrides))
