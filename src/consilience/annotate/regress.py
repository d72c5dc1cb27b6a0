"""A regression by formula, with the coded variable on either side: DSL, PPI++, gold alone, and uncorrected.

The formula is R's, read by formulaic. In it the codebook's variable stands for itself (a nominal one as categories, an
ordinal one as 1, 2, 3 ..., an interval one as the number), and `VARIABLE_LABEL` is 1 where the label was given, else 0.

Shapes: N rows, n gold texts, P coefficients, C labels.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from consilience.annotate.codebook import CLOSED, Codebook, Level
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

DSL = "DSL"
SPLITS, FOLDS = 10, 5  # as in the R package dsl
LEAST_GOLD = 20


def variables_of(formula: str, codebook: Codebook) -> tuple[list[str], bool]:
    """The user's columns that a formula names, and whether the coded variable is in it.

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
    return sorted(names - measured_names), bool(names & measured_names)


def indicators(codebook: Codebook) -> dict[str, str]:
    """`VARIABLE_LABEL` -> the label, with letters, digits and underscores only."""
    return {f"{codebook.variable}_{re.sub(r'[^0-9A-Za-z]+', '_', name).strip('_')}": name for name in codebook.names}


@dataclass(frozen=True)
class _Designs:
    """Outcome and design as functions of the coded variable, over the rows whose other columns are all there."""

    rows: np.ndarray  # places of the kept rows among all
    outcomes_C: list[np.ndarray]
    designs_C: list[np.ndarray]
    names: tuple[str, ...]
    makes: Any  # the coded variable of every kept row, as values -> (outcome, design)

    @property
    def outcome_is_measured(self) -> bool:
        return any((outcome != self.outcomes_C[0]).any() for outcome in self.outcomes_C[1:])

    @property
    def covariates_are_measured(self) -> bool:
        return any((design != self.designs_C[0]).any() for design in self.designs_C[1:])


def regression(sample: Sample, codebook: Codebook, formula: str, *, family: str | None, seed: int) -> dict[str, Any]:
    """Every coefficient of `formula` in four ways. `family` is linear or logistic; by default by the outcome's values.

    Raises `ConfigError` at a formula that does not fit, `DataError` at too little gold and where there is no solution.
    """
    columns, has_measured = variables_of(formula, codebook)
    if not has_measured:
        names = ", ".join([codebook.variable, *indicators(codebook)])
        raise ConfigError(f"nothing in the formula {formula!r} was coded; it is about {names}.")
    if codebook.level not in (*CLOSED, Level.INTERVAL):
        raise ConfigError(f"--formula is for one label or number to a text, not for level {codebook.level}.")
    designs = _designs(sample, codebook, formula, columns)
    place_of = {row: i for i, row in enumerate(designs.rows.tolist())}
    gold_rows = [row for row in np.flatnonzero(sample.gold_N >= 0).tolist() if row in place_of]
    if len(gold_rows) < max(LEAST_GOLD, 2 * len(designs.names)):
        raise DataError(
            f"{len(gold_rows)} gold texts for {len(designs.names)} coefficients; expected at least "
            f"{max(LEAST_GOLD, 2 * len(designs.names))}, better hundreds."
        )
    observed = _observed(sample, codebook, designs, gold_rows, place_of)
    found_family = family or _family(designs, observed)
    units = _units(sample, designs.rows)
    kind = "texts" if units is None else "clusters"
    unit_N = np.arange(len(designs.rows)) if units is None else unit_index(units)[1]
    expected = [
        _expected(sample, codebook, designs, gold_rows, place_of, unit_N, split, seed) for split in range(SPLITS)
    ]
    of: dict[str, Any] = {"family": found_family, "unit_kind": kind}
    dsl = design_based(observed, expected, designs.names, clusters=units, **of)
    gold_units = None if units is None else [units[place] for place in observed.places_n]
    gold = _tried(
        lambda: weighted_regression(
            observed.outcome_n,
            observed.design_nP,
            designs.names,
            weights=1 / observed.probability_n,
            clusters=gold_units,
            method=f"gold texts alone, {found_family}, sandwich, Student t",
            **of,
        )
    )
    naive, dropped = _naive(sample, codebook, designs, units, of)
    ppi = None
    if designs.outcome_is_measured and not designs.covariates_are_measured:
        model_outcome = _model_outcome(sample, codebook, designs)
        ppi = _tried(
            lambda: prediction_powered_regression(
                observed, model_outcome, designs.designs_C[0], designs.names, clusters=units, **of
            )
        )
    twice = more_gold(observed, expected[0], dsl, 2.0, family=found_family)
    coefficients: dict[str, dict[str, Any]] = {}
    for name in designs.names:
        found = {DSL: dsl, PPI: ppi, GOLD: gold, NAIVE: naive}
        ways = {way: None if of_all is None else _at_both_levels(of_all[name]) for way, of_all in found.items()}
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
        "not_included": ["other coders", "other prompts and models", "whether the formula is the right one"],
    }


def write_dsl_table(sample: Sample, codebook: Codebook, ids: Sequence[str], path: Path) -> None:
    """A table that R's dsl package reads: gold (blank where there is none), the model's, probability, cluster.

    Variables are those of a formula here: `VARIABLE` (of an interval or ordinal one) or `VARIABLE_LABEL`, each with
    `pred_` for the model's. Where the model gave no label, `pred_` holds the mean of those that it gave.
    """
    names = [*indicators(codebook)] if codebook.level is Level.NOMINAL else [codebook.variable]
    predictions = {name: _named_numbers(sample, codebook, name) for name in names}
    chance = len(sample.coded) / sample.rows
    with path.with_name(path.name + ".partial").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        cluster = ["cluster"] if sample.clusters_N is not None else []
        kept = [*sample.columns]
        writer.writerow(["id", *names, *(f"pred_{name}" for name in names), "labelled", "sample_prob", *cluster, *kept])
        for row, id_ in enumerate(ids):
            place = sample.gold_N[row]
            item = sample.coded[place].gold if place >= 0 else None
            gold = ["" if item is None else f"{_number_of(item.label, codebook, name):g}" for name in names]
            pred = [f"{predictions[name][sample.category_N[row]]:g}" for name in names]
            probability = chance if item is None or item.probability is None else item.probability
            own = [sample.clusters_N[row]] if sample.clusters_N is not None else []
            values = [text_of(sample.columns[name][row]) for name in kept]
            writer.writerow([id_, *gold, *pred, int(item is not None), f"{probability:.8g}", *own, *values])
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


def _designs(sample: Sample, codebook: Codebook, formula: str, columns: Sequence[str]) -> _Designs:
    pandas, formulaic = library("pandas"), library("formulaic")
    frame = pandas.DataFrame({name: _column(sample.columns[name]) for name in columns}, index=range(sample.rows))
    complete = frame.notna().all(axis=1).to_numpy() if columns else np.ones(sample.rows, dtype=bool)
    rows = np.flatnonzero(complete)
    frame = frame.loc[complete].reset_index(drop=True)
    frame = frame.astype(
        {name: "category" for name in frame if frame[name].dtype == object}
    )  # once, not at every value
    if not len(frame):
        raise DataError(f"no row has a value in all of {', '.join(columns)}.")
    spec: Any = None

    def makes(values: Any) -> tuple[np.ndarray, np.ndarray]:
        nonlocal spec
        whole = frame.assign(**_as_columns(values, codebook, len(frame)))
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

    values = codebook.names if codebook.level in CLOSED else [codebook.range[0] if codebook.range else 0.0]
    pairs = [makes(value) for value in values]
    if codebook.level is Level.INTERVAL and codebook.range:
        pairs.append(makes(codebook.range[1]))  # shows which side the variable is on
    names = tuple(str(name) for name in spec.rhs.column_names)
    return _Designs(rows, [outcome for outcome, _ in pairs], [design for _, design in pairs], names, makes)


def _column(values: Sequence[Any]) -> Any:
    """A column as numbers where all its values are, else as texts; blanks are missing."""
    import pandas

    texts = [text_of(value) for value in values]
    given = [text for text in texts if text.strip()]
    try:
        [float(text) for text in given]
    except ValueError:
        return pandas.Series([text if text.strip() else None for text in texts], dtype="object")
    return pandas.Series([float(text) if text.strip() else math.nan for text in texts], dtype="float64")


def _as_columns(values: Any, codebook: Codebook, rows: int) -> dict[str, Any]:
    """The coded variable and its indicators, of one value for all rows or of a value per row."""
    import pandas

    if codebook.level is Level.INTERVAL:
        return {codebook.variable: np.broadcast_to(np.asarray(values, dtype=np.float64), rows)}
    labels = np.asarray([values] * rows if isinstance(values, str) else values, dtype=object)
    of_label = {name: (labels == label).astype(np.float64) for name, label in indicators(codebook).items()}
    if codebook.level is Level.ORDINAL:
        place = {name: float(i + 1) for i, name in enumerate(codebook.names)}
        return of_label | {codebook.variable: np.array([place[label] for label in labels])}
    return of_label | {codebook.variable: pandas.Categorical(labels, categories=[*codebook.names])}


def _observed(
    sample: Sample, codebook: Codebook, designs: _Designs, gold_rows: Sequence[int], place_of: dict[int, int]
) -> Observed:
    items = [sample.coded[sample.gold_N[row]].gold for row in gold_rows]
    places = np.array([place_of[row] for row in gold_rows], dtype=np.intp)
    filler: Any = codebook.names[0] if codebook.level in CLOSED else (codebook.range or (0.0, 0.0))[0]
    values: list[Any] = [filler] * len(designs.rows)
    for place, item in zip(places, items):
        values[place] = float(item.label) if codebook.level is Level.INTERVAL else item.label
    outcome, design = designs.makes(values)
    chance = len(sample.coded) / sample.rows
    probability = np.array([item.probability if item.probability is not None else chance for item in items])
    return Observed(places_n=places, outcome_n=outcome[places], design_nP=design[places], probability_n=probability)


def _expected(
    sample: Sample,
    codebook: Codebook,
    designs: _Designs,
    gold_rows: Sequence[int],
    place_of: dict[int, int],
    unit_N: np.ndarray,
    split: int,
    seed: int,
) -> Expected:
    """What gold is expected to be given the model's label, learnt for every fold from the gold of the others."""
    items = len(designs.rows)
    category = sample.category_N[designs.rows]
    places = np.array([place_of[row] for row in gold_rows], dtype=np.intp)
    gold = [sample.coded[sample.gold_N[row]].gold for row in gold_rows]
    weights = np.array([1 / (item.probability or 1.0) for item in gold])
    fold = folds(unit_N, FOLDS, stream(seed, "dsl", str(split)))
    if codebook.level is Level.INTERVAL:
        expected_N = _expected_numbers(sample, category, places, [float(item.label) for item in gold], weights, fold)
        outcome, design = designs.makes(expected_N)
        return Expected(chances_C=[np.ones(items)], outcomes_C=[outcome], designs_C=[design])
    label = np.array([codebook.names.index(item.label) for item in gold])
    chances_NC = np.zeros((items, len(codebook.names)))
    for number in range(FOLDS):
        train = fold[places] != number
        seen = np.zeros((len(sample.categories), len(codebook.names)))
        np.add.at(seen, (category[places][train], label[train]), weights[train])
        of_all = seen.sum(0) / max(seen.sum(), 1e-300)
        total = seen.sum(1, keepdims=True)
        shares = np.where(total > 0, seen / np.maximum(total, 1e-300), of_all)
        chances_NC[fold == number] = shares[category[fold == number]]
    return Expected(chances_C=[*chances_NC.T], outcomes_C=designs.outcomes_C, designs_C=designs.designs_C)


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
    sample: Sample, codebook: Codebook, designs: _Designs, units: Sequence[str] | None, of: dict[str, Any]
) -> tuple[dict[str, Estimate] | None, int]:
    """The regression on the model's labels as they are; rows without one are left out, and counted."""
    categories = [sample.categories[place] for place in sample.category_N[designs.rows]]
    if codebook.level is Level.INTERVAL:
        usable = np.array([_is_number(category) for category in categories])
        values: list[Any] = [float(c) if ok else 0.0 for c, ok in zip(categories, usable)]
    else:
        usable = np.array([category in codebook.names for category in categories])
        values = [c if ok else codebook.names[0] for c, ok in zip(categories, usable)]
    outcome, design = designs.makes(values)
    own = None if units is None else [unit for unit, ok in zip(units, usable) if ok]
    found = _tried(
        lambda: weighted_regression(
            outcome[usable],
            design[usable],
            designs.names,
            clusters=own,
            method=f"the model's labels as they are, {of['family']}, sandwich, Student t",
            **of,
        )
    )
    return found, int((~usable).sum())


def _model_outcome(sample: Sample, codebook: Codebook, designs: _Designs) -> np.ndarray:
    """The outcome at the model's labels; where it gave none, the mean of the others: gold puts that right."""
    categories = [sample.categories[place] for place in sample.category_N[designs.rows]]
    known = [c in codebook.names if codebook.level in CLOSED else _is_number(c) for c in categories]
    filler: Any = codebook.names[0] if codebook.level in CLOSED else 0.0
    as_value: Any = str if codebook.level in CLOSED else float
    outcome, _ = designs.makes([as_value(c) if ok else filler for c, ok in zip(categories, known)])
    there = np.array(known)
    return np.where(there, outcome, outcome[there].mean() if there.any() else 0.0)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _family(designs: _Designs, observed: Observed) -> str:
    values = set(np.unique(observed.outcome_n)) | {v for y in designs.outcomes_C for v in np.unique(y)[:3]}
    return "logistic" if values <= {0.0, 1.0} else "linear"


def _units(sample: Sample, rows: np.ndarray) -> list[str] | None:
    """Clusters of the data, else those that the gold was drawn by, else None: each row alone."""
    if sample.clusters_N is not None:
        return [sample.clusters_N[row] for row in rows]
    clusters = design_of(sample.coded).clusters
    if clusters is None:
        return None
    return [f"cluster {clusters[sample.gold_N[row]]}" if sample.gold_N[row] >= 0 else f"row {row}" for row in rows]


def _at_both_levels(estimate: Estimate) -> dict[str, Any]:
    return measured(lambda level: replace(estimate, level=level))


def _tried(make: Callable[[], dict[str, Estimate]]) -> dict[str, Estimate] | None:
    """None where the equations have no solution."""
    try:
        return make()
    except DataError:
        return None
