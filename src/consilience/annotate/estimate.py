"""The whole of `annotate estimate`: validation on test gold, prevalence, groups and regressions, the multiverse."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

from consilience.annotate.codebook import CLOSED, Level
from consilience.annotate.configuration import digest
from consilience.annotate.corpus import corpus
from consilience.annotate.estimates import NAIVE, by_group, default_of, prevalence
from consilience.annotate.freeze import Frozen, read_frozen
from consilience.annotate.gold import Gold, GoldItem
from consilience.annotate.labels import read_labels
from consilience.annotate.measured import Measured, measured
from consilience.annotate.methods import run_records
from consilience.annotate.recipe import Project
from consilience.annotate.regress import regression, variables_of, write_dsl_table
from consilience.annotate.run import FOLDER
from consilience.annotate.sample import Sample, read_sample
from consilience.annotate.unlabelled import undecided_share, without_label
from consilience.annotate.validate import agreement_with_gold, category_of, design_of, validate
from consilience.errors import DataError
from consilience.rng import stream
from consilience.run import fingerprint, write_json
from consilience.stats import krippendorff_alpha, shown_decimals
from consilience.stats.planning import items_for_half_width

FILE = "estimates.json"
DSL_TABLE = "dsl.csv"
STABILITY_ROWS = 5000
WIDTHS = (0.05, 0.03, 0.02)  # half widths that the planning table is about


def estimate(project: Project, *, by: str | None, formula: str | None, family: str | None) -> dict[str, Any]:
    """Everything that the gold sample and the labels say; kept in PROJECT/estimates.json, with earlier calls' results.

    Results of other labels, another freeze, other gold or other data are dropped. With a formula, PROJECT/dsl.csv is
    the table that R's dsl package reads.
    """
    frozen = read_frozen(project)
    book, seed = project.codebook, project.recipe.seed
    in_formula = variables_of(formula, book)[0] if formula else []
    columns = list(dict.fromkeys([*([by] if by else []), *in_formula]))
    sample = read_sample(project, frozen, frozen.primary, columns)
    made_of = {
        "frozen": frozen.record["digest"],
        "gold": _gold_digest(c.gold for c in sample.coded),
        "unlabelled": digest([[text.id, text.why] for text in sample.unlabelled]),
        "rows": sample.rows,
        "labels": digest(run_records(project, frozen)),
        "corpus_is_sample": project.recipe.corpus_is_sample,
        # Another cluster column, or another value of a covariate, gives other intervals.
        "data": _data_now(project),
    }
    found = _earlier(project.folder / FILE, made_of)
    if "prevalence" not in found:
        found |= _about_the_whole(project, frozen, sample)
    of: dict[str, Any] = {"seed": seed, "corpus_is_sample": project.recipe.corpus_is_sample}
    if by:
        found["by"][by] = by_group(sample, book, by, **of)
        found["validation_by"][by] = _validation_by(sample, project, by)
    if formula:
        found["formulas"][formula] = regression(sample, book, formula, family=family, **of)
        cluster = [project.recipe.data.cluster] if project.recipe.data.cluster else []
        write_dsl_table(sample, book, columns, corpus(project, [*cluster, *columns]), project.folder / DSL_TABLE)
    write_json(project.folder / FILE, {"made_of": made_of} | found)
    return found


def read_estimates(project: Project, gold: Gold) -> dict[str, Any]:
    """What `estimate` kept. Raises `DataError` where there is nothing, or it is of other data or gold than these."""
    path = project.folder / FILE
    if not path.is_file():
        raise DataError(f"no estimates in {project.folder}. Run consilience annotate estimate first.")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    now = {"data": _data_now(project), "gold": _gold_digest(gold.test)}
    others = [name for name in now if found["made_of"][name] != now[name]]
    if others:
        raise DataError(
            f"{path} was made of other {' and '.join(others)} than there are now. Run consilience annotate estimate "
            "again, with the same --by and --formula."
        )
    return found


def _data_now(project: Project) -> list[Any]:
    data = project.recipe.data
    return [data.model_dump(mode="json"), fingerprint(project.file(data.path))]


def _gold_digest(items: Iterable[GoldItem]) -> str:
    return digest(sorted([item.id, item.label, item.probability, item.cluster] for item in items))


def _earlier(path: Path, made_of: dict[str, Any]) -> dict[str, Any]:
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if found.pop("made_of") == made_of:
            return found
    return {"by": {}, "validation_by": {}, "formulas": {}}


def _about_the_whole(project: Project, frozen: Frozen, sample: Sample) -> dict[str, Any]:
    book, seed = project.codebook, project.recipe.seed
    of: dict[str, Any] = {"seed": seed, "corpus_is_sample": project.recipe.corpus_is_sample}
    shares = prevalence(sample, book, **of) if book.level not in (Level.SPAN, Level.FREE_TEXT) else {}
    multiverse = {frozen.primary: shares}
    for name in frozen.names[1:]:
        multiverse[name] = prevalence(read_sample(project, frozen, name), book, **of) if shares else {}
    return {
        "configuration": frozen.primary,
        "variable": book.variable,
        "unit": book.unit,
        "rows": sample.rows,
        "gold": len(sample.coded),
        "clusters": None if sample.cluster_N is None else len(sample.clusters),
        "counts": sample.counts,
        "validation": validate(sample.coded, book, counts=sample.counts, seed=seed),
        "prevalence": shares,
        "multiverse": multiverse,
        "stability": stability(project, frozen, sample.rows),
        "without_label": without_label(sample, book, shares),
        "planning": _planning(shares, len(sample.coded)),
        "not_included": not_included(sample, frozen, project),
        "sentences": [_sentence(name, ways, multiverse, frozen, sample, book.unit) for name, ways in shares.items()],
    }


def not_included(sample: Sample, frozen: Frozen, project: Project) -> list[str]:
    """What no interval of an estimate contains."""
    several = any(len(item.gold.coders) > 1 for item in sample.coded)
    coders = "disagreement of the coders" if several else "other coders: each gold text has one code"
    found = [coders]
    found.append("other prompts and models" + ("" if len(frozen.names) == 1 else ", but for those shown beside"))
    if undecided_share(sample):
        found.append("drawn texts without a final label, which may be harder than the others")
    if not project.recipe.corpus_is_sample:
        found.append("texts beyond this corpus")
    return found


def stability(project: Project, frozen: Frozen, rows: int) -> Measured | None:
    """Krippendorff's alpha over the frozen configurations' labels, texts as the units; at most 5000 of them.

    Texts are what is resampled, all codings of a text together: resampling codings one by one makes intervals two to
    three times too narrow.
    """
    if len(frozen.names) < 2 or project.codebook.level not in (*CLOSED, Level.INTERVAL):
        return None
    chosen = np.ones(rows, dtype=bool)
    if rows > STABILITY_ROWS:
        chosen[stream(project.recipe.seed, "stability").permutation(rows)[STABILITY_ROWS:]] = False
    files = [read_labels(project.folder / FOLDER / f"{name}.jsonl") for name in frozen.names]
    ratings = [
        tuple(category_of(line["label"], line["status"]) for line in lines) for lines in compress(zip(*files), chosen)
    ]
    try:
        return measured(lambda level: krippendorff_alpha(ratings, unit_kind="texts", level=level))
    except DataError:
        return None  # all configurations give one and the same label to everything


def _planning(shares: dict[str, Any], gold: int) -> dict[str, dict[str, int]]:
    """How many gold texts, drawn as these were, would bring the default interval of a share to a half width."""
    found: dict[str, dict[str, int]] = {}
    for name, ways in shares.items():
        now = ways.get(default_of(ways))
        if now and now["standard_error"]:
            spread = now["standard_error"] * gold**0.5
            found[name] = {f"{width:g}": items_for_half_width(width, spread=spread) for width in WIDTHS}
    return found


def _validation_by(sample: Sample, project: Project, column: str) -> dict[str, Any]:
    """The agreement with gold within every value of a column."""
    groups: dict[str, list[Any]] = {}
    for row in sample.gold_rows:
        groups.setdefault(sample.columns[column].group(row), []).append(sample.coded[sample.gold_N[row]])
    return {
        group: {"gold": len(coded), "agreement": agreement_with_gold(coded, project.codebook, design_of(coded))}
        for group, coded in sorted(groups.items())
        if len(coded) > 1
    }


def _sentence(
    label: str, ways: dict[str, Any], multiverse: dict[str, Any], frozen: Frozen, sample: Sample, unit: str
) -> str:
    """What is estimated, in words: value, interval, how it was had, what it leaves out, what the model alone says."""
    way = default_of(ways)
    now = ways[way]
    if now is None:
        return f"{label}: no corrected estimate."
    percent = label != "mean"
    digits = shown_decimals(now["value"], now["low"], now["high"])  # two digits of the interval's half width

    def number(value: float) -> str:
        return f"{100 * value:.{max(digits - 2, 0)}f} %" if percent else f"{value:.{digits}f}"

    def span(low: float, high: float) -> str:
        return f"{number(low).removesuffix(' %')} to {number(high)}"

    what = f"{number(now['value'])} of the {unit}s are {label}" if percent else f"the mean is {number(now['value'])}"
    said = f"We estimate that {what} (95 % interval {span(now['low'], now['high'])}; {way}; {len(sample.coded)} "
    said += f"hand-coded of {sample.rows:,}; coder disagreement not included)."
    if ways.get(NAIVE):
        said += f" The model's labels as they are give {number(ways[NAIVE]['value'])}."
    others = [
        found[label].get(default_of(found[label])) for name, found in multiverse.items() if name != frozen.primary
    ]
    values = [other["value"] for other in others if other]
    if values:
        said += (
            f" {len(values)} other configurations fixed in advance, corrected alike, give "
            f"{span(min(values), max(values))}."
            if len(values) > 1
            else f" The other configuration fixed in advance, corrected alike, gives {number(values[0])}."
        )
    worth = ways.get("bought")
    if worth:
        said += (
            f" The model's labels make the interval {worth['width_ratio']:.2f} times as wide as that of the gold texts "
            f"alone: they are worth {worth['gold_texts_worth']:.0f} gold texts instead of {len(sample.coded)}."
        )
    return said
