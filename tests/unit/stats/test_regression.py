"""DSL and PPI++ regressions: against statsmodels, against the R package's published output, and by simulation."""

from __future__ import annotations

import csv
import gzip
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import statsmodels.api as sm

from consilience.errors import DataError
from consilience.rng import stream
from consilience.stats.regression import (
    Expected,
    Observed,
    design_based,
    folds,
    more_gold,
    prediction_powered_regression,
    weighted_regression,
)

DATA = Path(__file__).parents[4] / "shared" / "data" / "annotation" / "dsl_examples"
RNG = np.random.default_rng(5)
X = np.column_stack([np.ones(400), RNG.normal(size=(400, 2))])
Y = X @ [1.0, 0.5, -0.5] + RNG.normal(size=400)
YES = (RNG.random(400) < 1 / (1 + np.exp(-(X @ [-0.5, 1.0, 0.0])))).astype(float)
NAMES = ("Intercept", "a", "b")


@pytest.mark.parametrize("family", ["linear", "logistic"])
@pytest.mark.parametrize("clustered", [False, True])
def test_weighted_regression_is_statsmodels(family: str, clustered: bool) -> None:
    outcome = Y if family == "linear" else YES
    weights = RNG.uniform(0.5, 2, size=400)
    groups = np.arange(400) // 4 if clustered else np.arange(400)
    found = weighted_regression(
        outcome, X, NAMES, family=family, weights=weights, clusters=[str(g) for g in groups] if clustered else None
    )
    if family == "linear":
        model: Any = sm.WLS(outcome, X, weights=weights)
    else:
        model = sm.GLM(outcome, X, family=sm.families.Binomial(), freq_weights=weights)
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": groups, "use_correction": False})
    count = len(set(groups.tolist()))
    for name, value, error in zip(NAMES, fit.params, fit.bse):
        assert found[name].value == pytest.approx(value, abs=1e-6)
        assert found[name].standard_error == pytest.approx(error * np.sqrt(count / (count - 1)), rel=1e-4)


def sample_of(outcome: np.ndarray, coded: np.ndarray, chance: Any = None) -> Observed:
    probability = np.full(len(coded), len(coded) / len(outcome)) if chance is None else chance[coded]
    return Observed(places_n=coded, outcome_n=outcome[coded], design_nP=X[coded], probability_n=probability)


def test_with_gold_of_everything_dsl_is_the_plain_regression() -> None:
    everything = sample_of(Y, np.arange(400))
    useless = Expected(chances_C=[np.ones(400)], outcomes_C=[RNG.normal(size=400)], designs_C=[X])
    found, plain = design_based(everything, [useless], NAMES), weighted_regression(Y, X, NAMES)
    for name in NAMES:
        assert found[name].value == pytest.approx(plain[name].value)
        assert found[name].standard_error == pytest.approx(plain[name].standard_error)


def test_with_a_measured_outcome_dsl_is_least_squares_on_the_pseudo_outcome() -> None:
    """g + (R / pi) (Y - g), as the reference says."""
    coded, model = np.arange(0, 400, 3), Y + RNG.normal(size=400) + 0.7
    observed = sample_of(Y, coded)
    found = design_based(observed, [Expected(chances_C=[np.ones(400)], outcomes_C=[model], designs_C=[X])], NAMES)
    pseudo = model.copy()
    pseudo[coded] += (Y[coded] - model[coded]) / observed.probability_n
    # With the slope's gold part: X'X of all rows stands for both, as no covariate is measured.
    fit = sm.OLS(pseudo, X).fit(cov_type="HC0")
    for name, value, error in zip(NAMES, fit.params, fit.bse):
        assert found[name].value == pytest.approx(value)
        assert found[name].standard_error == pytest.approx(error * np.sqrt(400 / 399))


def test_intervals_are_students_t_of_the_gold_units_at_every_level() -> None:
    """scipy's quantiles; the other items are many and know nothing of the gold's spread."""
    coded, model = np.arange(0, 400, 20), Y + RNG.normal(size=400)
    observed = sample_of(Y, coded)
    expected = [Expected(chances_C=[np.ones(400)], outcomes_C=[model], designs_C=[X])]
    for found in (
        design_based(observed, expected, NAMES)["a"],
        prediction_powered_regression(observed, model, X, NAMES)["a"],
        weighted_regression(Y[coded], X[coded], NAMES)["a"],
    ):
        for level in (0.95, 0.5):
            half = scipy.stats.t.ppf((1 + level) / 2, len(coded) - 1) * found.standard_error
            assert replace(found, level=level).high - found.value == pytest.approx(half)


def test_dsl_has_a_solution_where_gold_alone_has_none() -> None:
    """Gold of 6 and 8 of 200 items whose group tells it exactly; by hand, the logits of the pseudo-outcome's means.

    0.3 + 6 * 10 * (0 - 0.3) / 100 = 0.12 in one group, 0.6 + 8 * 10 * (1 - 0.6) / 100 = 0.92 in the other.
    """
    group = np.repeat([0.0, 1.0], 100)
    design = np.column_stack([np.ones(200), group])
    coded = np.array([*range(6), *range(100, 108)])
    observed = Observed(
        places_n=coded, outcome_n=group[coded], design_nP=design[coded], probability_n=np.full(len(coded), 0.1)
    )
    expected = Expected(chances_C=[np.ones(200)], outcomes_C=[0.3 + 0.3 * group], designs_C=[design])
    with pytest.raises(DataError, match="no finite solution"):
        weighted_regression(group[coded], design[coded], ("1", "group"), family="logistic")
    found = design_based(observed, [expected], ("1", "group"), family="logistic")
    assert found["1"].value == pytest.approx(np.log(0.12 / 0.88))
    assert found["group"].value == pytest.approx(np.log(0.92 / 0.08) - np.log(0.12 / 0.88))


def pan_chen() -> tuple[Observed, list[Expected], list[str]]:
    if not (DATA / "PanChen.csv.gz").is_file():
        pytest.skip("no ../shared/data/annotation/dsl_examples beside the repository")
    with gzip.open(DATA / "PanChen.csv.gz", "rt", newline="") as file:
        rows = [*csv.DictReader(file)]
    names = ["prefecWrong", "connect2b", "prevalence", "regionj", "groupIssue"]
    others = np.array([[float(row[name]) for name in names] for row in rows])
    outcome = np.array([float(row["SendOrNot"]) for row in rows])
    model = np.array([int(float(row["pred_countyWrong"])) for row in rows])
    coded = np.array([i for i, row in enumerate(rows) if row["countyWrong"]])
    gold = np.array([int(float(rows[i]["countyWrong"])) for i in coded])
    one = np.ones(len(rows))

    def design(value: Any) -> np.ndarray:
        return np.column_stack([one, one * value, others])

    whole = np.zeros(len(rows))
    whole[coded] = gold
    observed = Observed(
        places_n=coded,
        outcome_n=outcome[coded],
        design_nP=design(whole)[coded],
        probability_n=np.full(len(coded), len(coded) / len(rows)),
    )
    expected = []
    for split in range(10):
        fold = folds(np.arange(len(rows)), 5, stream(split, "pan chen"))
        yes = np.empty(len(rows))
        for number in range(5):
            for label in (0, 1):
                train = (fold[coded] != number) & (model[coded] == label)
                yes[(fold == number) & (model == label)] = gold[train].mean()
        expected.append(Expected(chances_C=[1 - yes, yes], outcomes_C=[outcome] * 2, designs_C=[design(0), design(1)]))
    return observed, expected, ["Intercept", "countyWrong", *names]


def test_pan_chen_as_the_r_package_prints_it() -> None:
    """A measured covariate in a logistic regression; R's package has -0.2617 (0.2230), and 0.1616 with twice the gold.

    Its chances come from a random forest, ours from the model's labels: they differ within a tenth of an error.
    """
    observed, expected, names = pan_chen()
    found = design_based(observed, expected, names, family="logistic")
    assert found["countyWrong"].value == pytest.approx(-0.2617, abs=0.0223)
    assert found["countyWrong"].standard_error == pytest.approx(0.2230, rel=0.02)
    twice = more_gold(observed, expected[0], found, 2.0, family="logistic")
    assert twice["countyWrong"] == pytest.approx(0.1616, rel=0.02)


def test_splits_are_averaged_and_their_influences_too() -> None:
    observed, expected, names = pan_chen()
    found = design_based(observed, expected[:3], names, family="logistic")
    alone = [design_based(observed, [each], names, family="logistic") for each in expected[:3]]
    for name in names:
        assert found[name].value == pytest.approx(np.mean([each[name].value for each in alone]))
        assert found[name].influence == pytest.approx(np.mean([each[name].influence for each in alone], axis=0))


def test_dsl_and_ppi_cover_where_the_models_labels_do_not() -> None:
    rng, hits, naive_hits, ppi_hits, rounds = stream(0, "cover"), 0, 0, 0, 150
    for _ in range(rounds):
        x = np.column_stack([np.ones(1500), rng.normal(size=1500)])
        y = (rng.random(1500) < 1 / (1 + np.exp(-(x @ [0.0, 0.6])))).astype(float)
        model = np.where(rng.random(1500) < 0.1 + 0.2 * (x[:, 1] > 0), 1 - y, y)
        chance = np.where(model > 0.5, 0.15, 0.25)  # gold drawn at unlike rates
        coded = np.flatnonzero(rng.random(1500) < chance)
        observed = Observed(places_n=coded, outcome_n=y[coded], design_nP=x[coded], probability_n=chance[coded])
        yes = np.array([np.average(y[coded][model[coded] == k], weights=1 / chance[coded][model[coded] == k])
                        for k in (0, 1)])[model.astype(int)]  # fmt: skip
        expected = Expected(chances_C=[1 - yes, yes], outcomes_C=[np.zeros(1500), np.ones(1500)], designs_C=[x, x])
        of: dict[str, Any] = {"family": "logistic"}
        dsl = design_based(observed, [expected], ("1", "x"), **of)["x"]
        ppi = prediction_powered_regression(observed, model, x, ("1", "x"), **of)["x"]
        naive = weighted_regression(model, x, ("1", "x"), **of)["x"]
        hits += dsl.low <= 0.6 <= dsl.high
        ppi_hits += ppi.low <= 0.6 <= ppi.high
        naive_hits += naive.low <= 0.6 <= naive.high
    assert hits / rounds > 0.9
    assert ppi_hits / rounds > 0.9
    assert naive_hits / rounds < 0.5


def test_of_these_items_alone_a_mean_has_the_variance_of_a_drawn_sample() -> None:
    """The difference estimator's, sqrt((1 - n / N) s^2 / n) of gold minus expected (Cochran, Sampling Techniques)."""
    coded, model = np.arange(0, 400, 4), Y + RNG.normal(size=400)
    one = np.ones((400, 1))
    observed = Observed(
        places_n=coded, outcome_n=Y[coded], design_nP=one[coded], probability_n=np.full(len(coded), 0.25)
    )
    expected = Expected(chances_C=[np.ones(400)], outcomes_C=[model], designs_C=[one])
    found = design_based(observed, [expected], ("1",), corpus_is_sample=False)["1"]
    gap = Y[coded] - model[coded]
    assert found.value == pytest.approx(model.mean() + gap.mean())
    assert found.standard_error == pytest.approx(math.sqrt(0.75 * gap.var(ddof=1) / len(coded)))
    assert (found.n, found.degrees_of_freedom) == (100, pytest.approx(99))
    twice = more_gold(observed, expected, {"1": found}, 2.0, family="linear", corpus_is_sample=False)
    assert twice["1"] == pytest.approx(found.standard_error * math.sqrt(0.5 / 2 / 0.75), rel=0.02)
    alone = weighted_regression(Y[coded], one[coded], ("1",), weights=np.full(100, 4.0), drawn=observed.probability_n)
    assert alone["1"].standard_error == pytest.approx(math.sqrt(0.75 * Y[coded].var(ddof=1) / 100))


def test_gold_of_everything_leaves_nothing_open_about_these_items() -> None:
    everything = sample_of(Y, np.arange(400))
    useless = Expected(chances_C=[np.ones(400)], outcomes_C=[RNG.normal(size=400)], designs_C=[X])
    for name, found in design_based(everything, [useless], NAMES, corpus_is_sample=False).items():
        assert found.value == pytest.approx(weighted_regression(Y, X, NAMES)[name].value)
        assert found.standard_error == pytest.approx(0, abs=1e-12)


def test_of_these_items_alone_the_interval_covers_what_gold_of_all_would_give() -> None:
    """600 items that stay as they are, 180 of them drawn for gold again and again."""
    rng = stream(3, "finite")
    x = np.column_stack([np.ones(600), rng.normal(size=600)])
    y = (rng.random(600) < 1 / (1 + np.exp(-(x @ [0.0, 0.6])))).astype(float)
    model = np.where(rng.random(600) < 0.15, 1 - y, y)
    truth = weighted_regression(y, x, ("1", "x"), family="logistic")["x"].value
    hits, wide, rounds = 0, 0, 200
    for _ in range(rounds):
        coded = np.sort(rng.permutation(600)[:180])
        observed = Observed(places_n=coded, outcome_n=y[coded], design_nP=x[coded], probability_n=np.full(180, 0.3))
        yes = np.array([y[coded][model[coded] == k].mean() for k in (0, 1)])[model.astype(int)]
        expected = Expected(chances_C=[1 - yes, yes], outcomes_C=[np.zeros(600), np.ones(600)], designs_C=[x, x])
        for alone in (True, False):
            found = design_based(observed, [expected], ("1", "x"), family="logistic", corpus_is_sample=not alone)["x"]
            hits += alone and found.low <= truth <= found.high
            wide += not alone and found.low <= truth <= found.high
    assert 0.91 < hits / rounds < 0.98
    assert wide / rounds > 0.98


def test_ppi_with_a_useless_model_is_gold_alone() -> None:
    coded = np.arange(0, 400, 2)
    observed = sample_of(Y, coded)
    found = prediction_powered_regression(observed, RNG.normal(size=400), X, NAMES)
    alone = weighted_regression(Y[coded], X[coded], NAMES)
    for name in NAMES:
        assert found[name].value == pytest.approx(alone[name].value, abs=2 * alone[name].standard_error)
        assert found[name].standard_error == pytest.approx(alone[name].standard_error, rel=0.15)


def test_collinear_terms_and_perfect_separation_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be told apart"):
        weighted_regression(Y, np.column_stack([X, X[:, 1]]), (*NAMES, "again"))
    with pytest.raises(DataError, match="no finite solution"):
        weighted_regression((X[:, 1] > 0).astype(float), X, NAMES, family="logistic")


def test_folds_keep_units_together() -> None:
    fold = folds(np.array([0, 0, 1, 2, 1, 3]), 2, stream(0, "folds"))
    assert fold[0] == fold[1]
    assert fold[2] == fold[4]
    assert sorted(np.bincount(fold[[0, 2, 3, 5]])) == [2, 2]
