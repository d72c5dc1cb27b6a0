"""Corrected means: by hand, against ppi_py's numbers, and on simulated corpora."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from consilience.errors import DataError
from consilience.stats import mean
from consilience.stats.correction import post_stratified, prediction_powered

NAN = math.nan


def corpus(seed: int, *, items: int = 1000, gold: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """A model's yes or no and gold for the first items: 30 % yes, right in 85 % of both."""
    rng = np.random.default_rng(seed)
    truth = rng.random(items) < 0.3
    model = np.where(rng.random(items) < 0.85, truth, ~truth).astype(float)
    return model, np.where(np.arange(items) < gold, truth, NAN)


def test_post_stratification_by_hand():
    # Called yes: 40 of 100 items, gold 9 of 10 yes; called no: 60, gold 1 of 10. Sizes as counted, Beta(1/2) shares.
    model = ["yes"] * 40 + ["no"] * 60
    gold = [1] * 9 + [0] + [NAN] * 30 + [1] + [0] * 9 + [NAN] * 50
    rng = np.random.default_rng(0)
    found = post_stratified(model, gold, rng=rng, draws=200_000, corpus_is_sample=False)
    assert found.value == pytest.approx(0.4 * 9.5 / 11 + 0.6 * 1.5 / 11)
    yes, no = scipy_stats.beta(9.5, 1.5), scipy_stats.beta(1.5, 9.5)
    draws = 0.4 * yes.rvs(200_000, random_state=1) + 0.6 * no.rvs(200_000, random_state=2)
    assert (found.low, found.high) == pytest.approx(np.quantile(draws, [0.025, 0.975]), abs=2e-3)
    assert found.standard_error == pytest.approx(draws.std(), rel=0.08)


def test_a_perfect_model_leaves_only_the_corpus_as_a_sample():
    _, gold = corpus(0, gold=1000)
    truth = gold.copy()
    gold[500:] = NAN
    found = post_stratified([*truth], gold, rng=np.random.default_rng(0))
    plain = mean(truth)
    assert found.value == pytest.approx(plain.value, abs=0.003)
    assert plain.standard_error < found.standard_error < 1.15 * plain.standard_error
    counted = post_stratified([*truth], gold, rng=np.random.default_rng(0), corpus_is_sample=False)
    assert counted.high - counted.low < 0.02


def test_gold_from_other_strata_at_other_rates_is_no_bias():
    # All of the rare label's items coded, few of the others: the plain share of gold would be far off.
    model, gold = corpus(3, items=20_000, gold=20_000)
    truth_share = gold.mean()
    keep = np.where(model == 1, np.arange(20_000) % 4 == 0, np.arange(20_000) % 40 == 0)
    found = post_stratified([*model], np.where(keep, gold, NAN), rng=np.random.default_rng(0))
    assert np.nanmean(np.where(keep, gold, NAN)) > 0.5
    assert found.low < truth_share < found.high


def test_prediction_powered_by_hand_with_a_useless_model():
    # The model is wrong throughout: lambda is 0 and gold alone counts.
    model = [0.0, 0.0, 1.0, 1.0] * 5
    gold = [1, 1, 0, 0, 1, 1, 0, 0] + [NAN] * 12
    found = prediction_powered(model, gold)
    alone = mean(gold[:8])
    assert (found.value, found.standard_error) == pytest.approx((alone.value, alone.standard_error))


def test_prediction_powered_is_the_published_estimator():
    # theta = mean y + lambda (mean of f over all - mean f), lambda = Cov / Var f over all, in one piece.
    model, gold = corpus(1)
    y, f = gold[:200], model[:200]
    tuned = np.cov(y, f, ddof=0)[0, 1] / model.var()
    value = y.mean() + tuned * (model.mean() - f.mean())
    # Gold items are among all: y - lambda f + lambda f n / N for these, lambda f for the rest.
    error = math.sqrt((y - tuned * f * 0.8).var() / 200 + tuned**2 * model[200:].var() * 800 / 1000**2)
    found = prediction_powered(model, gold)
    assert found.value == pytest.approx(value, abs=2e-3)
    assert found.standard_error == pytest.approx(error, rel=0.03)
    assert found.standard_error < 0.9 * mean(y).standard_error


def test_prediction_powered_against_ppi_py():
    # ppi-python 0.2.3 on the same corpus, its 800 items without gold apart; it tunes lambda on the gold it is used on.
    found = prediction_powered(*corpus(1))
    low, high = 0.24104795, 0.34681399
    assert found.value == pytest.approx(0.29393097, abs=0.05 * found.standard_error)
    assert found.high - found.low == pytest.approx(high - low, rel=0.02)


def test_weights_are_for_gold_at_other_rates():
    model, gold = corpus(2, items=20_000, gold=20_000)
    keep = np.where(model == 1, np.arange(20_000) % 4 == 0, np.arange(20_000) % 40 == 0)
    weights = np.where(model == 1, 4.0, 40.0)
    found = prediction_powered(model, np.where(keep, gold, NAN), weights=weights)
    assert found.low < gold.mean() < found.high
    blind = prediction_powered(model, np.where(keep, gold, NAN))
    assert not blind.low < gold.mean() < blind.high


def test_clusters_are_the_units():
    model, gold = corpus(4)
    texts = [f"text {i // 5}" for i in range(1000)]
    found = prediction_powered(model, gold, texts)
    assert found.n == 200
    assert found.value == prediction_powered(model, gold).value


def test_post_stratified_interval_covers_where_gold_is_rare():
    # 5 % yes, 100 gold: the plain Wald and PPI++ intervals cover 88 to 89 % (references/annotation.md, 4.7).
    rng = np.random.default_rng(5)
    held, samples = 0, 400
    for _ in range(samples):
        truth = rng.random(1000) < 0.05
        model = np.where(truth, rng.random(1000) < 0.8, rng.random(1000) < 0.05)
        gold = np.where(np.arange(1000) < 100, truth.astype(float), NAN)
        found = post_stratified([*model], gold, rng=rng, draws=1000)
        held += found.low <= 0.05 <= found.high
    assert 0.92 < held / samples < 0.98  # 0.95 +- three of its errors, 0.011


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda rng: post_stratified(["a", "b"], [NAN, NAN], rng=rng), "none of 2 items has a gold label"),
        (lambda rng: post_stratified(["a", "b"], [1, NAN], rng=rng), "no gold label among the items .* calls b"),
        (lambda rng: post_stratified(["a", "b"], [1, 3], rng=rng), "0 or 1"),
        (lambda rng: post_stratified(["a", "b"], [1], rng=rng), r"shape \(1,\) for 2 items"),
        (lambda rng: post_stratified(["a"], [1], rng=rng), "all 1 items are of 1 items"),
        (lambda rng: prediction_powered([1, 2, 3], [1, NAN, 0]), "2 gold labels"),
        (lambda rng: prediction_powered([1, 1, 1], [1, 1, 0]), "labels all items alike"),
        (lambda rng: prediction_powered([1, 2, NAN], [1, 1, 0]), "1 of 3 model labels are not finite"),
        (lambda rng: prediction_powered([1, 2, 3], [1, math.inf, 0]), "infinite"),
        (lambda rng: prediction_powered([1, 2, 3], [1, 1, 0], weights=[0, 0, 0]), "summing to 0"),
    ],
)
def test_what_cannot_be_corrected_says_so(measure, message):
    with pytest.raises(DataError, match=message):
        measure(np.random.default_rng(0))
