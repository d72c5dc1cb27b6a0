"""`consilience gold`: the sample that people code, its page, its spreadsheets, its state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from consilience.cli.options import AsJson

gold = typer.Typer(
    help="Gold: draw a probability sample of texts, have people code it blind, see how far they agree.",
    no_args_is_help=True,
)

Project = Annotated[Path, typer.Argument(help="The project's folder, with codebook.yaml (and recipe.yaml).")]


@gold.command()
def plan(
    project: Project,
    corpus: Annotated[Path | None, typer.Option(help="The table of texts; else that of recipe.yaml.")] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="The column of texts.")] = None,
    id_: Annotated[
        str | None, typer.Option("--id", metavar="COLUMN", help="The column of identifiers; else the row's number.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Which texts belong together: author, document, speech.")
    ] = None,
    encoding: Annotated[str | None, typer.Option(help="Of a CSV or TSV file, for example cp1252.")] = None,
    n: Annotated[int | None, typer.Option("--n", help="How many texts in all.")] = None,
    width: Annotated[
        float | None, typer.Option(help="In place of --n: so many that a share is known -+ this from the test part.")
    ] = None,
    share: Annotated[float, typer.Option(help="The share that --width is for; 0.5 takes the most texts.")] = 0.5,
    level: Annotated[float, typer.Option(help="The level of that interval.")] = 0.95,
    stratify: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Stratify by this column of model labels.")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Stratify by what `annotate run` wrote: labels/NAME.jsonl.")
    ] = None,
    confidence: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Divide the strata of --stratify by this number too.")
    ] = None,
    bins: Annotated[
        int | None, typer.Option(help="Bins of confidence in every model label; 2 with --confidence, else 1.")
    ] = None,
    at_least: Annotated[
        int | None, typer.Option(help="Texts of every stratum at least; else 25, or an equal part of a small --n.")
    ] = None,
    equal: Annotated[bool, typer.Option("--equal", help="Equal numbers of every stratum, not proportional.")] = False,
    per_cluster: Annotated[
        int | None, typer.Option(help="Draw clusters first, then so many texts of each (two stages).")
    ] = None,
    correlation: Annotated[
        float | None, typer.Option(help="How alike texts of one cluster are, 0 to 1; for --width.")
    ] = None,
    drawn: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw nothing: take the texts whose identifiers this table has.")
    ] = None,
    probability: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Of --drawn: the probability with which each was drawn.")
    ] = None,
    dev: Annotated[float, typer.Option(help="The share for choosing prompts, kept out of the estimates.")] = 0.25,
    double: Annotated[float, typer.Option(help="The random share that several people code.")] = 0.25,
    coders: Annotated[int, typer.Option(help="How many people code a text of that share.")] = 2,
    seed: Annotated[int, typer.Option(help="Of the random order that all draws of this project come from.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw the gold sample; with more texts than before, extend it."""
    from consilience.annotate.coding.adopt import adopt_sample
    from consilience.annotate.coding.plan import GoldDesign, plan_gold
    from consilience.annotate.coding.project import few_shot_texts, project_codebook, project_corpus

    if drawn is not None:
        codebook = project_codebook(project)
        adopted = adopt_sample(
            project,
            codebook,
            project_corpus(project, path=corpus, text=text, id=id_, cluster=cluster, encoding=encoding),
            drawn,
            id_column=id_ or "id",
            probability_column=probability,
            development=dev,
            twice=double,
            coders=coders,
            seed=seed,
            never=few_shot_texts(project, codebook),
        )
        print(json.dumps(adopted) if as_json else f"{adopted['texts']} of {adopted['corpus']} texts taken over")
        if adopted["assumed"] and not as_json:
            print(f"as {adopted['assumed']}; if they had other probabilities, name their column with --probability")
        return
    design = GoldDesign(
        texts=n,
        width=width,
        share=share,
        level=level,
        stratify=stratify,
        labels=labels,
        confidence=confidence,
        bins=bins if bins is not None else 2 if confidence else 1,
        at_least=at_least,
        equal=equal,
        per_cluster=per_cluster,
        correlation=correlation,
        development=dev,
        twice=double,
        coders=coders,
        seed=seed,
    )
    codebook = project_codebook(project)
    texts = project_corpus(project, path=corpus, text=text, id=id_, cluster=cluster, encoding=encoding)
    found = plan_gold(project, codebook, texts, design, few_shot_texts(project, codebook))
    if as_json:
        print(json.dumps(found))
        return
    from consilience.cli.gold_tables import plan_table

    print(plan_table(found, project))


@gold.command()
def code(
    project: Project,
    port: Annotated[int, typer.Option(min=0, max=65535, help="The page's port; 0 takes any that is free.")] = 8642,
    host: Annotated[
        str, typer.Option(help="Where to listen: 127.0.0.1 is this machine only, 0.0.0.0 the local network too.")
    ] = "127.0.0.1",
) -> None:
    """Code the gold sample in the browser, blind to every model; stop with Ctrl-C."""
    from consilience.annotate.coding.project import project_codebook
    from consilience.errors import BackendError
    from consilience.serve.guard import is_loopback

    codebook = project_codebook(project)
    try:
        from consilience.serve.coding import coding_page
    except ModuleNotFoundError as error:
        raise BackendError(
            f"the coding page needs the package {error.name}: pip install 'consilience[annotate]'. "
            "Without it, consilience gold export writes a spreadsheet to code in."
        ) from None
    page = coding_page(project, codebook, host=host, port=port)
    print("code here (stop with Ctrl-C; everything is saved as you type):")
    if not is_loopback(host):
        print("anyone on this network with an address below can code and read; the connection is not encrypted:")
    print(*page.urls, sep="\n", flush=True)
    page.server.run(sockets=[page.socket])


@gold.command("import")
def import_(
    project: Project,
    sheet: Annotated[Path, typer.Argument(help="A finished spreadsheet: .xlsx, .csv, .tsv (or .parquet, .sav, .dta).")],
    coder: Annotated[str, typer.Option(help="Whose labels these are.")],
    label: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The column of labels; else the variable's name, or label.")
    ] = None,
    id_: Annotated[str, typer.Option("--id", metavar="COLUMN", help="The column of identifiers.")] = "id",
    text: Annotated[str, typer.Option(metavar="COLUMN", help="The column of texts, compared if it is there.")] = "text",
    encoding: Annotated[str, typer.Option(help="Of a CSV or TSV file, for example cp1252.")] = "utf-8",
    replace: Annotated[
        bool, typer.Option("--replace", help="Let labels differ from this coder's former ones.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take in what was coded in a spreadsheet: all of it, or nothing and what is wrong in which row."""
    from dataclasses import asdict

    from consilience.annotate.coding.project import few_shot_texts, open_gold, project_codebook
    from consilience.annotate.coding.sheets import read_sheet

    codebook = project_codebook(project)
    with open_gold(project, codebook) as store:
        found = read_sheet(
            store,
            codebook,
            coder,
            sheet,
            id_column=id_,
            label_column=label,
            text_column=text,
            never=few_shot_texts(project, codebook),
            replace=replace,
            encoding=encoding,
        )
    _after(project, codebook)
    if as_json:
        print(json.dumps(asdict(found)))
        return
    print(
        f"{found.new} new codings of {found.coder}, {found.same} as before, {found.replaced} changed; "
        f"{found.empty} rows without a label"
    )


@gold.command()
def export(
    project: Project,
    coder: Annotated[str | None, typer.Option(help="Write this coder's texts to --out, to code there.")] = None,
    out: Annotated[Path | None, typer.Option(help="The spreadsheet: .xlsx, .csv or .tsv.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the spreadsheet.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write gold.csv anew; with --coder and --out, a spreadsheet for a coder to fill in."""
    from consilience.annotate.coding.project import open_gold, project_codebook
    from consilience.annotate.coding.sheets import write_sheet
    from consilience.errors import ConfigError

    codebook = project_codebook(project)
    if (coder is None) != (out is None):
        raise ConfigError("a spreadsheet to code in takes both --coder NAME and --out FILE.")
    result: dict[str, Any] = {"gold": str(_after(project, codebook))}
    if coder is not None and out is not None:
        with open_gold(project, codebook) as store:
            result |= {"sheet": str(out), "texts": write_sheet(store, codebook, coder, out, force=force)}
    print(json.dumps(result) if as_json else "\n".join(f"{key}  {value}" for key, value in result.items()))


@gold.command()
def status(
    project: Project,
    level: Annotated[float, typer.Option(help="The level of the intervals.")] = 0.95,
    as_json: AsJson = False,
) -> None:
    """How much is coded, by whom, and how far the coders agree."""
    from consilience.annotate.coding.project import open_gold, project_codebook
    from consilience.annotate.coding.summary import gold_status

    codebook = project_codebook(project)
    with open_gold(project, codebook) as store:
        found = gold_status(store, codebook, level=level)
    _after(project, codebook)
    if as_json:
        print(json.dumps(found))
        return
    from consilience.cli.gold_tables import status_table

    print(status_table(found))


def _after(project: Path, codebook: Any) -> Path:
    """Writes gold.csv from what is coded by now."""
    from consilience.annotate.coding.labels import write_gold
    from consilience.annotate.coding.project import open_gold
    from consilience.annotate.coding.store import GOLD_TABLE

    path = project / GOLD_TABLE
    with open_gold(project, codebook) as store:
        write_gold(store, codebook, path)
    return path
