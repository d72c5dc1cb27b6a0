"""A regression by formula, with the coded variable on either side: DSL, PPI++, gold alone, and uncorrected.

The formula is R's, read by formulaic. In it the codebook's variable stands for itself (a nominal one as categories, an
ordinal one as 1, 2, 3 ..., an interval one as the number), and `VARIABLE_LABEL` is 1 where the label was given, else 0.

Of a million rows only a few arrays fit beside one another: what is the same for all rows is held once, and what a split
of the gold expects is made when it is asked for.

Shapes: N rows, n gold texts, P coefficients, C labels.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.annotate.codebook import CLOSED, Codebook, Level
from consilience.annotate.columns import Column
from consilience.annotate.corpus import Row
from consilience.annotate.estimates import GOLD, NAIVE, PPI, bought
from consilience.annotate.measured import measured
from consilience.annotate.sample import Sample
from consilience.annotate.tables import library, text_of
from consilience.annotate.validate import design_of
from consilience.errors import ConfigError, DataError
from consilience.rng import stream
from consilience.stats import Estimate
from consilience.stats.regression import (
    Expected,
    Observed,
    design_based,
    folds,
    more_gold,
    prediction_powered_regression,
    weighted_regression,
)
from consilience.stats.units import unit_index

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

DSL = "DSL"
SPLITS, FOLDS = 10, 5  # as in the R package dsl
LEAST_GOLD = 20


def variables_of(formula: str, codebook: Codebook) -> tuple[list[str], set[str]]:
    """The user's columns that a formula names, and its names for the coded variable.

    Raises `ConfigError` where formulaic cannot read the formula, or it lacks `~`.
    """
    formulaic = library("formulaic")
    if "~" not in formula:
        raise ConfigError(f"the formula {formula!r} lacks '~'; expected outcome ~ covariate + covariate.")
    try:
        names = {str(variable) for variable in formulaic.Formula(formula).required_variables}
    except (formulaic.errors.FormulaicError, SyntaxError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(f"the formula {formula!r} cannot be read: {reason}.") from None
    measured_names = {codebook.variable, *indicators(codebook)}
    return sorted(names - measured_names), names & measured_names


def indicators(codebook: Codebook) -> dict[str, str]:
    """`VARIABLE_LABEL` -> the label, with letters, digits and underscores only."""
    return {f"{codebook.variable}_{re.sub(r'[^0-9A-Za-z]+', '_', name).strip('_')}": name for name in codebook.names}


@dataclass(frozen=True)
class _Designs:
    """Outcome and design as functions of the coded variable, over the rows whose other columns are all there."""

    rows: Places  # places of the kept rows among all, in order
    outcomes_C: list[Floats]
    designs_C: list[Floats]
    names: tuple[str, ...]
    makes: Callable[[Any], tuple[Floats, Floats]]  # from labels' places, or numbers, of every kept row or of all

    @property
    def outcome_is_measured(self) -> bool:
        return any((outcome != self.outcomes_C[0]).any() for outcome in self.outcomes_C[1:])

    @property
    def covariates_are_measured(self) -> bool:
        return any(design is not self.designs_C[0] for design in self.designs_C[1:])

    def places(self, rows: Places) -> Places:
        """Where rows of the corpus stand among the kept ones."""
        return np.searchsorted(self.rows, rows)


@dataclass(frozen=True)
class _Splits(Sequence[Expected]):
    """What is expected of the coded variable in every split of the gold into folds, made when it is asked for."""

    make: Callable[[int], Expected]

    def __len__(self) -> int:
        return SPLITS

    def __getitem__(self, split: Any) -> Any:
        if not 0 <= split < SPLITS:
            raise IndexError(split)
        return self.make(split)


def regression(
    sample: Sample, codebook: Codebook, formula: str, *, family: str | None, seed: int, corpus_is_sample: bool = True
) -> dict[str, Any]:
    """Every coefficient of `formula` in four ways. `family` is linear or logistic; by default by the outcome's values.

    Without `corpus_is_sample` DSL and the gold alone are about these rows and no others.

    Raises `ConfigError` at a formula that does not fit, `DataError` at too little gold and where there is no solution.
    """
    columns, names = variables_of(formula, codebook)
    if not names:
        there_are = ", ".join([codebook.variable, *indicators(codebook)])
        raise ConfigError(f"nothing in the formula {formula!r} was coded; it is about {there_are}.")
    if codebook.level not in (*CLOSED, Level.INTERVAL):
        raise ConfigError(f"--formula is for one label or number to a text, not for level {codebook.level}.")
    designs = _designs(sample, codebook, formula, columns, names)
    gold_rows = np.intersect1d(sample.gold_rows, designs.rows, assume_unique=True)
    if len(gold_rows) < max(LEAST_GOLD, 2 * len(designs.names)):
        raise DataError(
            f"{len(gold_rows)} gold texts for {len(designs.names)} coefficients; expected at least "
            f"{max(LEAST_GOLD, 2 * len(designs.names))}, better hundreds."
        )
    observed = _observed(sample, codebook, designs, gold_rows)
    found_family = family or _family(designs, observed)
    units = _units(sample, designs.rows)
    kind = "texts" if units is None else "clusters"
    unit_N = np.arange(len(designs.rows)) if units is None else unit_index(units)[1]
    expected = _Splits(partial(_expected, sample, codebook, designs, gold_rows, unit_N, seed))
    of: dict[str, Any] = {"family": found_family, "unit_kind": kind}
    all_units = np.arange(len(designs.rows)) if units is None else units
    whole = {"clusters": units, "corpus_is_sample": corpus_is_sample} | of
    dsl = design_based(observed, expected, designs.names, **whole)
    gold_units = None if units is None else units[observed.places_n]
    gold = _tried(
        lambda: weighted_regression(
            observed.outcome_n,
            observed.design_nP,
            designs.names,
            weights=1 / observed.probability_n,
            clusters=gold_units,
            drawn=None if corpus_is_sample or units is not None else observed.probability_n,
            method=f"gold texts alone, {found_family}, sandwich, Student t",
            **of,
        )
    )
    twice = more_gold(observed, expected[0], dsl, 2.0, family=found_family, corpus_is_sample=corpus_is_sample)
    by_way = {DSL: _at_both_levels(dsl), GOLD: _at_both_levels(gold)}
    del dsl  # a number per row and coefficient
    naive, dropped = _naive(sample, codebook, designs, all_units, of)
    by_way[NAIVE] = _at_both_levels(naive)
    del naive
    by_way[PPI] = _at_both_levels(None)
    if designs.outcome_is_measured and not designs.covariates_are_measured:
        model_outcome = _model_outcome(sample, codebook, designs)
        by_way[PPI] = _at_both_levels(
            _tried(
                lambda: prediction_powered_regression(
                    observed, model_outcome, designs.designs_C[0], designs.names, clusters=all_units, **of
                )
            )
        )
    coefficients: dict[str, dict[str, Any]] = {}
    for name in designs.names:
        ways = {way: by_way[way].get(name) for way in (DSL, PPI, GOLD, NAIVE)}
        coefficients[name] = ways | {"bought": bought(ways[DSL], ways[GOLD], len(gold_rows))}
        coefficients[name]["standard_error_with_twice_the_gold"] = twice[name]
    return {
        "formula": formula,
        "family": found_family,
        "coefficients": coefficients,
        "gold": len(gold_rows),
        "rows": len(designs.rows),
        "rows_left_out": sample.rows - len(designs.rows),
        "uncorrected_left_out": dropped,
        "not_included": ["other coders", "other prompts and models", "whether the formula is the right one"]
        + ([] if corpus_is_sample else ["texts beyond this corpus"]),
    }


def write_dsl_table(
    sample: Sample, codebook: Codebook, columns: Sequence[str], rows: Iterable[Row], path: Path
) -> None:
    """A table that R's dsl package reads: gold (blank where there is none), the model's, probability, cluster.

    `rows` are those of the corpus, in order, with the cluster first where the sample has them, then the `columns`.

    Variables are those of a formula here: `VARIABLE` (of an interval or ordinal one) or `VARIABLE_LABEL`, each with
    `pred_` for the model's. Where the model gave no label, `pred_` holds the mean of those that it gave.
    """
    names = [*indicators(codebook)] if codebook.level is Level.NOMINAL else [codebook.variable]
    predictions = {name: _named_numbers(sample, codebook, name) for name in names}
    chance = len(sample.coded) / sample.rows
    with path.with_name(path.name + ".partial").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        cluster = ["cluster"] if sample.cluster_N is not None else []
        own = [*cluster, *columns]
        writer.writerow(["id", *names, *(f"pred_{name}" for name in names), "labelled", "sample_prob", *own])
        for row, place, category in zip(rows, sample.gold_N.tolist(), sample.category_N.tolist(), strict=True):
            item = sample.coded[place].gold if place >= 0 else None
            gold = ["" if item is None else f"{_number_of(item.label, codebook, name):g}" for name in names]
            pred = [f"{predictions[name][category]:g}" for name in names]
            probability = chance if item is None or item.probability is None else item.probability
            values = [text_of(value) for value in row.values]
            writer.writerow([row.id, *gold, *pred, int(item is not None), f"{probability:.8g}", *values])
    path.with_name(path.name + ".partial").rename(path)


def _named_numbers(sample: Sample, codebook: Codebook, name: str) -> np.ndarray:
    numbers = np.array([_number_of(category, codebook, name) for category in sample.categories])
    counts = np.bincount(sample.category_N, minlength=len(numbers))
    there = np.isfinite(numbers) & (counts > 0)
    typical = float(numbers[there] @ counts[there] / counts[there].sum()) if there.any() else 0.0
    return np.where(np.isfinite(numbers), numbers, typical)


def _number_of(label: str, codebook: Codebook, name: str) -> float:
    """A label as the number that a formula's `name` stands for; NaN where it is no label."""
    if codebook.level is Level.INTERVAL:
        try:
            return float(label)
        except ValueError:
            return math.nan
    if label not in codebook.names:
        return math.nan
    if name == codebook.variable:
        return float(codebook.names.index(label) + 1)
    return float(indicators(codebook)[name] == label)


def _designs(
    sample: Sample, codebook: Codebook, formula: str, columns: Sequence[str], names: Collection[str]
) -> _Designs:
    """`names` are those of the formula for the coded variable."""
    pandas, formulaic = library("pandas"), library("formulaic")
    frame = pandas.DataFrame({name: _column(sample.columns[name]) for name in columns}, index=range(sample.rows))
    complete = frame.notna().all(axis=1).to_numpy() if columns else np.ones(sample.rows, dtype=bool)
    rows = np.flatnonzero(complete)
    if not complete.all():
        frame = frame.loc[complete].reset_index(drop=True)
        texts = [name for name in frame if frame[name].dtype == "category"]
        frame = frame.assign(**{name: frame[name].cat.remove_unused_categories() for name in texts})
    if not len(frame):
        raise DataError(f"no row has a value in all of {', '.join(columns)}.")
    spec: Any = None

    def makes(values: Any) -> tuple[Floats, Floats]:
        nonlocal spec
        whole = frame.assign(**_as_columns(values, codebook, len(frame), names))
        try:
            matrices = (
                formulaic.model_matrix(formula, whole, na_action="raise")
                if spec is None
                else spec.get_model_matrix(whole)
            )
        except (formulaic.errors.FormulaicError, ValueError, TypeError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ConfigError(f"the formula {formula!r} does not fit the data: {reason}.") from None
        if spec is None:
            spec = matrices.model_spec
        outcome, design = np.asarray(matrices.lhs, dtype=np.float64), np.asarray(matrices.rhs, dtype=np.float64)
        if outcome.shape[1] != 1:
            example = f"{next(iter(indicators(codebook)), 'y')} ~ ..."
            raise ConfigError(f"the outcome of {formula!r} has {outcome.shape[1]} columns; take one, such as {example}")
        return outcome[:, 0], design

    values: Sequence[float] = range(len(codebook.names)) if codebook.level in CLOSED else _ends(codebook)
    outcomes_C: list[Floats] = []
    designs_C: list[Floats] = []
    for value in values:
        outcome, design = makes(value)
        outcomes_C.append(_once(outcome, outcomes_C))
        designs_C.append(_once(design, designs_C))
    terms = tuple(str(name) for name in spec.rhs.column_names)
    return _Designs(rows, outcomes_C, designs_C, terms, makes)


def _ends(codebook: Codebook) -> Sequence[float]:
    """Two numbers of an interval variable, which show on which side of a formula it is."""
    return codebook.range or (0.0,)


def _once(made: Floats, before: Sequence[Floats]) -> Floats:
    """What is the same as the first of those before is that one; what is one number throughout is held once."""
    if before and np.array_equal(made, before[0]):
        return before[0]
    return np.broadcast_to(made[0], made.shape) if made.ndim == 1 and (made == made[0]).all() else made


def _column(column: Column) -> Any:
    """A column as numbers where all its values are, else as categories in sorted order; blanks are missing."""
    import pandas

    numbers_N = column.as_numbers()
    if numbers_N is not None:
        return pandas.Series(numbers_N, dtype="float64")
    texts = sorted(level for level in column.levels if level.strip())
    place = {text: i for i, text in enumerate(texts)}
    codes_L = np.array([place.get(level, -1) for level in column.levels])
    return pandas.Series(pandas.Categorical.from_codes(codes_L[column.place_N], categories=texts))


def _as_columns(values: Any, codebook: Codebook, rows: int, names: Collection[str]) -> dict[str, Any]:
    """Those of the coded variable and its indicators that are in `names`.

    `values` are numbers, or places of labels, one for all rows or one per row.
    """
    import pandas

    if codebook.level is Level.INTERVAL:
        return {codebook.variable: np.broadcast_to(np.asarray(values, dtype=np.float64), rows)}
    label_N = np.broadcast_to(np.asarray(values), rows)
    made: dict[str, Any] = {
        name: (label_N == codebook.names.index(label)).astype(np.float64)
        for name, label in indicators(codebook).items()
        if name in names
    }
    if codebook.variable not in names:
        return made
    if codebook.level is Level.ORDINAL:
        return made | {codebook.variable: label_N + 1.0}
    return made | {codebook.variable: pandas.Categorical.from_codes(label_N, categories=[*codebook.names])}


def _of_category(sample: Sample, codebook: Codebook, designs: _Designs) -> Floats:
    """What the model gave every kept row: the place of its label, or its number; NaN where it gave none."""
    if codebook.level is Level.INTERVAL:
        of_each = [float(name) if _is_number(name) else math.nan for name in sample.categories]
    else:
        place = {name: float(i) for i, name in enumerate(codebook.names)}
        of_each = [place.get(name, math.nan) for name in sample.categories]
    found: Floats = np.array(of_each)[sample.category_N[designs.rows]]
    return found


def _made_of(designs: _Designs, codebook: Codebook, value_N: Floats) -> tuple[Floats, Floats]:
    """Outcome and design at a value per kept row; a filler stands in where it is NaN."""
    filler = 0.0 if codebook.level in CLOSED else _ends(codebook)[0]
    filled_N = np.where(np.isnan(value_N), filler, value_N)
    return designs.makes(filled_N if codebook.level is Level.INTERVAL else filled_N.astype(np.int16))


def _observed(sample: Sample, codebook: Codebook, designs: _Designs, gold_rows: Places) -> Observed:
    items = [sample.coded[sample.gold_N[row]].gold for row in gold_rows]
    places = designs.places(gold_rows)
    value_N = np.full(len(designs.rows), math.nan)
    numeric = codebook.level is Level.INTERVAL
    value_N[places] = [float(item.label) if numeric else codebook.names.index(item.label) for item in items]
    outcome, design = _made_of(designs, codebook, value_N)
    chance = len(sample.coded) / sample.rows
    probability = np.array([item.probability if item.probability is not None else chance for item in items])
    return Observed(places_n=places, outcome_n=outcome[places], design_nP=design[places], probability_n=probability)


def _expected(
    sample: Sample,
    codebook: Codebook,
    designs: _Designs,
    gold_rows: Places,
    unit_N: Places,
    seed: int,
    split: int,
) -> Expected:
    """What gold is expected to be given the model's label, learnt for every fold from the gold of the others."""
    items = len(designs.rows)
    category = sample.category_N[designs.rows]
    places = designs.places(gold_rows)
    gold = [sample.coded[sample.gold_N[row]].gold for row in gold_rows]
    weights = np.array([1 / (item.probability or 1.0) for item in gold])
    fold = folds(unit_N, FOLDS, stream(seed, "dsl", str(split)))
    if codebook.level is Level.INTERVAL:
        expected_N = _expected_numbers(sample, category, places, [float(item.label) for item in gold], weights, fold)
        outcome, design = designs.makes(expected_N)
        return Expected(chances_C=[np.broadcast_to(1.0, items)], outcomes_C=[outcome], designs_C=[design])
    label = np.array([codebook.names.index(item.label) for item in gold])
    shares_FKC = np.zeros((FOLDS, len(sample.categories), len(codebook.names)))
    for number in range(FOLDS):
        train = fold[places] != number
        seen = np.zeros((len(sample.categories), len(codebook.names)))
        np.add.at(seen, (category[places][train], label[train]), weights[train])
        of_all = seen.sum(0) / max(seen.sum(), 1e-300)
        total = seen.sum(1, keepdims=True)
        shares_FKC[number] = np.where(total > 0, seen / np.maximum(total, 1e-300), of_all)
    chances_C = [shares_FKC[fold, category, c] for c in range(len(codebook.names))]
    return Expected(chances_C=chances_C, outcomes_C=designs.outcomes_C, designs_C=designs.designs_C)


def _expected_numbers(
    sample: Sample,
    category: np.ndarray,
    places: np.ndarray,
    gold: Sequence[float],
    weights: np.ndarray,
    fold: np.ndarray,
) -> np.ndarray:
    """A straight line from the model's number to gold's, by weighted least squares."""
    numbers = []
    for name in sample.categories:
        try:
            numbers.append(float(name))
        except ValueError:
            numbers.append(math.nan)
    model_N = np.array(numbers)[category]
    model_N = np.where(np.isfinite(model_N), model_N, np.nanmean(model_N))
    y = np.array(gold)
    found = np.zeros(len(model_N))
    for number in range(FOLDS):
        train = fold[places] != number
        x, w = model_N[places][train], weights[train]
        centre, level = np.average(x, weights=w), np.average(y[train], weights=w)
        spread = float(w @ (x - centre) ** 2)
        slope = float(w @ ((x - centre) * (y[train] - level))) / spread if spread > 0 else 0.0
        found[fold == number] = level + slope * (model_N[fold == number] - centre)
    return found


def _naive(
    sample: Sample, codebook: Codebook, designs: _Designs, units: Places, of: dict[str, Any]
) -> tuple[dict[str, Estimate] | None, int]:
    """The regression on the model's labels as they are; rows without one are left out, and counted."""
    value_N = _of_category(sample, codebook, designs)
    usable = ~np.isnan(value_N)
    outcome, design = _made_of(designs, codebook, value_N)
    found = _tried(
        lambda: weighted_regression(
            outcome[usable],
            design[usable],
            designs.names,
            clusters=units[usable],
            method=f"the model's labels as they are, {of['family']}, sandwich, Student t",
            **of,
        )
    )
    return found, int((~usable).sum())


def _model_outcome(sample: Sample, codebook: Codebook, designs: _Designs) -> np.ndarray:
    """The outcome at the model's labels; where it gave none, the mean of the others: gold puts that right."""
    value_N = _of_category(sample, codebook, designs)
    outcome, _ = _made_of(designs, codebook, value_N)
    there = ~np.isnan(value_N)
    return np.where(there, outcome, outcome[there].mean() if there.any() else 0.0)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _family(designs: _Designs, observed: Observed) -> str:
    values = set(np.unique(observed.outcome_n)) | {v for y in designs.outcomes_C for v in np.unique(y)[:3]}
    return "logistic" if values <= {0.0, 1.0} else "linear"


def _units(sample: Sample, rows: Places) -> Places | None:
    """Clusters of the data, else those that the gold was drawn by, else None: each row alone."""
    if sample.cluster_N is None and design_of(sample.coded).clusters is None:
        return None
    return sample.unit_with_gold_N[rows]


def _at_both_levels(estimates: dict[str, Estimate] | None) -> dict[str, dict[str, Any]]:
    """Every coefficient as numbers; nothing where there is no solution."""

    def shown(estimate: Estimate) -> dict[str, Any]:
        return measured(lambda level: replace(estimate, level=level))

    return {name: shown(estimate) for name, estimate in (estimates or {}).items()}


def _tried(make: Callable[[], dict[str, Estimate]]) -> dict[str, Estimate] | None:
    """None where the equations have no solution."""
    try:
        return make()
    except DataError:
        return None
