"""Agreement against published examples, Gwet's formulas, and properties that hold for every measure."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consilience.errors import ConfigError, DataError
from consilience.stats import difference
from consilience.stats.agreement import (
    cohens_kappa,
    fleiss_kappa,
    gwet_ac,
    krippendorff_alpha,
    observed_agreement,
)

CHECKS = Path(__file__).parents[4] / "shared" / "checks" / "annotation"
# Krippendorff (2011), example C: 4 observers, 12 units; also the 4 raters of Gwet's examples.
EXAMPLE_C = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ],
    dtype=object,
).T


def pinned(name: str) -> dict:
    if not (CHECKS / name).is_file():
        pytest.skip(f"no ../shared/checks/annotation/{name} beside the repository")
    return json.loads((CHECKS / name).read_text())


def pairs(table: list[list[int]]) -> tuple[list[int], list[int]]:
    cells = [(i, j) for i, row in enumerate(table) for j, count in enumerate(row) for _ in range(count)]
    return [i for i, _ in cells], [j for _, j in cells]


@pytest.mark.parametrize(
    ("scale", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849), ("ratio", 0.797)]
)
def test_alpha_of_krippendorffs_example(scale, alpha):
    assert krippendorff_alpha(EXAMPLE_C, scale=scale).value == pytest.approx(alpha, abs=6e-4)


def test_alpha_of_every_pinned_example():
    checked = 0
    for case in pinned("krippendorff_alpha.json")["cases"]:
        ratings = np.array(case["data"], dtype=object).T
        for scale, alpha in case["expected"].items():
            if isinstance(alpha, str):
                with pytest.raises(DataError, match="undefined"):
                    krippendorff_alpha(ratings, scale=scale)
            else:
                assert krippendorff_alpha(ratings, scale=scale).value == pytest.approx(alpha, abs=case["tol"])
            checked += 1
    assert checked >= 13


def test_kappas_of_every_pinned_table():
    for case in pinned("kappa_textbook.json")["cases"]:
        if "table" in case:
            found = cohens_kappa(*pairs(case["table"]))
        else:
            rows = case["counts_units_by_category"]
            found = fleiss_kappa([[k for k, count in enumerate(row) for _ in range(count)] for row in rows])
        assert found.value == pytest.approx(case["kappa"], abs=case["tol"]), case["name"]


def test_cohens_kappa_by_hand_and_its_asymptotic_error():
    # 20 5 / 10 15: observed 0.7, chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5. The variance is that of Fleiss et al. (1969).
    found = cohens_kappa(*pairs([[20, 5], [10, 15]]))
    assert found.value == pytest.approx(0.4)
    p = np.array([[20, 5], [10, 15]]) / 50
    rows, columns = p.sum(1), p.sum(0)
    first = sum(p[i, i] * (0.5 - (columns[i] + rows[i]) * 0.3) ** 2 for i in range(2))
    second = 0.09 * sum(p[i, j] * (columns[i] + rows[j]) ** 2 for i in range(2) for j in range(2) if i != j)
    variance = (first + second - (0.7 * 0.5 - 2 * 0.5 + 0.7) ** 2) / (50 * 0.5**4)
    assert found.standard_error == pytest.approx(math.sqrt(variance), rel=0.05)  # the jackknife's, at n = 50


def test_weighted_kappa_by_hand():
    # One pair of neighbours and one of ends apart among four items on 0 1 2.
    first, second = [0, 0, 1, 2], [0, 2, 1, 1]
    # Linear weights: seen (1 + 0 + 1 + 0.5) / 4. Shares: first 1/2 1/4 1/4, second 1/4 1/2 1/4.
    chance = (1 / 8 + 1 / 8 + 1 / 16) + 0.5 * (1 / 4 + 1 / 16 + 1 / 16 + 1 / 8)
    assert cohens_kappa(first, second, weights="linear").value == pytest.approx((0.625 - chance) / (1 - chance))
    chance = (1 / 8 + 1 / 8 + 1 / 16) + 0.75 * (1 / 4 + 1 / 16 + 1 / 16 + 1 / 8)
    assert cohens_kappa(first, second, weights="quadratic").value == pytest.approx((0.6875 - chance) / (1 - chance))


def test_gwet_ac1_and_fleiss_with_missing_ratings():
    # Gwet's handbook, 4 raters of 12 subjects: AC1 0.775, Fleiss' kappa 0.761.
    assert gwet_ac(EXAMPLE_C).value == pytest.approx(0.775, abs=5e-4)
    assert fleiss_kappa(EXAMPLE_C).value == pytest.approx(0.761, abs=5e-4)


def test_gwet_ac1_has_his_standard_error():
    rng = np.random.default_rng(0)
    truth = rng.choice(3, 200, p=[0.6, 0.3, 0.1])
    ratings = np.where(rng.random((200, 3)) < 0.8, truth[:, None], rng.choice(3, (200, 3)))
    found = gwet_ac(ratings)
    counts = (ratings[:, :, None] == np.arange(3)).sum(1)
    seen_N = (counts * (counts - 1)).sum(1) / 6
    shares = (counts / 3).mean(0)
    chance = (shares * (1 - shares)).sum() / 2
    chance_N = (counts / 3 * (1 - shares)).sum(1) / 2
    ac = (seen_N.mean() - chance) / (1 - chance)
    influence = (seen_N - chance) / (1 - chance) - 2 * (1 - ac) * (chance_N - chance) / (1 - chance)
    assert found.value == pytest.approx(ac)
    assert found.standard_error == pytest.approx(math.sqrt(((influence - ac) ** 2).sum() / (200 * 199)), rel=0.01)


def test_ac2_with_quadratic_weights_by_hand():
    # Items (0, 0), (0, 1), (2, 2), (2, 0) on 0 1 2; quadratic weights are 1, 3/4, 0 at distances 0, 1, 2.
    seen = (1 + 0.75 + 1 + 0) / 4
    shares = np.array([4, 1, 3]) / 8
    chance = (3 + 4 * 0.75) / 6 * (shares * (1 - shares)).sum()
    found = gwet_ac([[0, 0], [0, 1], [2, 2], [2, 0]], weights="quadratic")
    assert found.value == pytest.approx((seen - chance) / (1 - chance))


def test_full_agreement_still_has_a_width():
    # None of 20 items disagrees; Wilson's limit for that is 0.1611, chance disagreement of halves is 1/2.
    ratings = [["yes", "yes"], ["no", "no"]] * 10
    for found in (krippendorff_alpha(ratings), cohens_kappa(*zip(*ratings)), fleiss_kappa(ratings)):
        assert (found.value, found.high) == (1, 1)
        assert found.low == pytest.approx(1 - 2 * 0.1611251580528194)


def test_one_disagreement_has_a_value_although_it_is_gone_without_that_item():
    found = krippendorff_alpha([[1, 1], [1, 1], [1, 1], [1, 2]])
    # 8 ratings, 7 and 1: observed 2, expected 7 * 1 * 2 / 7 = 2.
    assert found.value == pytest.approx(0)
    assert found.low < 0 < found.high < 1


def test_items_of_one_text_are_one_unit():
    rng = np.random.default_rng(1)
    ratings = np.repeat(rng.integers(0, 2, (30, 2)), 4, axis=0)
    texts = [f"text {i // 4}" for i in range(120)]
    apart, together = gwet_ac(ratings), gwet_ac(ratings, texts)
    assert together.n == 30
    assert together.value == apart.value
    assert together.standard_error == pytest.approx(2 * apart.standard_error, rel=0.03)


def test_a_difference_of_agreements_is_paired():
    rng = np.random.default_rng(2)
    gold = rng.integers(0, 3, 80)
    good = np.where(rng.random(80) < 0.9, gold, 0)
    found = difference(cohens_kappa(gold, good), cohens_kappa(gold, good))
    assert (found.value, found.standard_error) == (0, 0)


rating_tables = st.lists(st.lists(st.sampled_from([0, 1, 2, None]), min_size=3, max_size=3), min_size=6, max_size=15)


@settings(max_examples=60)
@given(rating_tables, st.permutations(range(3)))
def test_order_of_raters_and_names_of_categories_do_not_matter(table, order):
    renamed = [[None if cell is None else "abc"[cell] for cell in row] for row in table]
    turned = [[row[i] for i in order] for row in renamed]
    for measure in (krippendorff_alpha, gwet_ac, fleiss_kappa):
        try:
            found = measure(table)
        except DataError:
            with pytest.raises(DataError):
                measure(turned)
            continue
        assert measure(turned).value == pytest.approx(found.value)
        assert measure(turned).standard_error == pytest.approx(found.standard_error, abs=1e-9)
        assert found.value <= 1
        assert found.low <= found.value + 1e-12
        assert found.value <= found.high + 1e-12


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: cohens_kappa([1, 2], [1]), "2 and 1 ratings"),
        (lambda: observed_agreement([], []), "0 and 0 ratings"),
        (lambda: cohens_kappa([1, None], [1, 2]), "1 of 2 items lack a rating"),
        (lambda: cohens_kappa([1, 2, 1], [1, 1, 1]), "one of the two gave 1 to all 3 items"),
        (lambda: cohens_kappa([1, 1], [1, 1]), "Cohen's kappa is undefined"),
        (lambda: cohens_kappa([1, 2], [1, 2], ["a", "a"]), "all 2 items are of 1 items"),
        (lambda: krippendorff_alpha([[1, None], [None, 2]]), "none of 2 items has two ratings"),
        (lambda: krippendorff_alpha([[math.nan, None]]), "all are missing"),
        (lambda: krippendorff_alpha([1, 2]), r"shape \(2,\)"),
        (lambda: krippendorff_alpha([["a", "b"], ["b", "b"]], scale="interval"), "is of numbers"),
        (lambda: gwet_ac([[1, 1], [1, 1]]), "name the categories"),
        (lambda: gwet_ac([[1, "a"], [1, 1]]), r"several kinds \(int, str\)"),
        (lambda: gwet_ac([[1, 3], [1, 1]], categories=[1, 2]), r"\['3'\] are not among the categories"),
    ],
)
def test_what_has_no_agreement_says_so(measure, message):
    with pytest.raises(DataError, match=message):
        measure()


def test_an_unknown_scale_names_the_known_ones():
    with pytest.raises(ConfigError, match="Did you mean 'ordinal'"):
        krippendorff_alpha([[1, 2], [1, 1]], scale="ordinl")


def test_ac1_of_one_category_only_has_an_interval() -> None:
    # Chance is 0 then, so the lower end is one minus Wilson's upper limit for 0 of 20, z^2 / (20 + z^2).
    found = gwet_ac([["yes", "yes"]] * 20, categories=["yes", "no"])
    assert (found.value, found.high) == (1, 1)
    assert found.low == pytest.approx(1 - 1.959964**2 / (20 + 1.959964**2))


def test_an_item_of_weight_two_counts_as_two():
    """Whole-number weights are repeated items, in the values; in the units too where the repeats are one unit."""
    first, second = [*"aabbcab"], [*"ababcac"]
    weights = [1, 2, 1, 3, 1, 2, 1]
    index = np.repeat(np.arange(7), weights)
    ratings = np.array([first, second], dtype=object).T
    repeated, units = ratings[index], [str(i) for i in index]
    for measure in (fleiss_kappa, gwet_ac, krippendorff_alpha):
        weighted, counted = measure(ratings, item_weights=weights), measure(repeated, units)
        if measure is not krippendorff_alpha:  # whose correction for small samples knows 7 items from 11
            assert weighted.value == pytest.approx(counted.value)
            assert weighted.standard_error == pytest.approx(counted.standard_error)
        assert measure(ratings, item_weights=[4] * 7).value == pytest.approx(measure(ratings).value)
    weighted = cohens_kappa(first, second, item_weights=weights)
    assert weighted.value == pytest.approx(cohens_kappa(*repeated.T, units).value)
    seen = observed_agreement(first, second, item_weights=weights)
    assert seen.value == pytest.approx(np.average([a == b for a, b in zip(first, second)], weights=weights))
