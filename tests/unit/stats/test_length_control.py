"""The length-controlled win rate: the solver against closed forms, the estimate on data made by its own model."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit, logit

from consilience.errors import DataError
from consilience.stats import difference
from consilience.stats.length_control import GamedBaselines, fit_logistic, length_controlled_win_rate


def made(n: int, *, quality: float, length_effect: float, seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Verdicts of a candidate whose replies are longer than the baseline's by 500 characters on average."""
    rng = np.random.default_rng(seed)
    gaps = rng.normal(-500, 800, n)
    difficulty = rng.normal(0, 1.5, n)
    eta = quality + length_effect * np.tanh(gaps / gaps.std(ddof=1)) + 0.8 * difficulty
    names = [str(i) for i in range(n)]
    return (rng.random(n) < expit(eta)).astype(float), gaps, dict(zip(names, difficulty))


def test_solver_with_one_coefficient_by_hand():
    # penalty |b| + n (log(1 + e^b) - x b) with n = 10, x = 0.8: sigmoid(b) = 0.8 - penalty / 10, and 0 from 3 on.
    ones, x = np.ones((10, 1)), np.repeat([1.0, 0.0], [8, 2])
    for penalty, share in ((0.0, 0.8), (1.0, 0.7), (2.9, 0.51), (3.0, 0.5), (5.0, 0.5)):
        assert fit_logistic(ones, x, np.ones(10), penalty=penalty)[0] == pytest.approx(logit(share), abs=1e-9)


@pytest.mark.parametrize("penalty", [0.0, 0.5, 8.0])
def test_solver_against_a_general_optimiser(penalty):
    rng = np.random.default_rng(5)
    design, weights = rng.normal(size=(60, 3)), rng.random(60)
    x = expit(design @ [1.0, -0.3, 0.0] + rng.normal(size=60))

    def split(c):  # b = c[:3] - c[3:], both parts >= 0: smooth
        eta = design @ (c[:3] - c[3:])
        return penalty * c.sum() + weights @ (np.logaddexp(0, eta) - x * eta)

    best = minimize(split, np.full(6, 0.1), bounds=[(0, None)] * 6, method="L-BFGS-B", options={"ftol": 1e-15})
    assert fit_logistic(design, x, weights, penalty=penalty) == pytest.approx(best.x[:3] - best.x[3:], abs=1e-4)


def test_unpenalised_score_equations_hold():
    # At the maximum of the likelihood the fitted wins have the mean of the observed ones: with the length term left in.
    wins, gaps, difficulty = made(300, quality=0.2, length_effect=-0.9, seed=1)
    found = length_controlled_win_rate(wins, gaps, difficulty=difficulty, penalty_c=math.inf)
    eta = found.quality + found.length_effect * np.tanh(gaps / gaps.std(ddof=1))
    eta += found.difficulty_effect * np.array([*difficulty.values()])
    assert expit(eta).mean() == pytest.approx(wins.mean(), abs=1e-9)


def test_length_is_taken_out():
    # A candidate of the baseline's quality that wins by length alone: its raw rate is well above 50.
    wins, gaps, difficulty = made(4000, quality=0.0, length_effect=-1.5, seed=7)
    found = length_controlled_win_rate(wins, gaps, difficulty=difficulty)
    assert 100 * wins.mean() > 58
    assert found.estimate.low < 50 < found.estimate.high


def test_a_question_set_of_ones_own_needs_no_difficulty():
    wins, gaps, _ = made(400, quality=0.3, length_effect=0.0, seed=3)
    found = length_controlled_win_rate(wins, gaps, penalty_c=math.inf)
    assert found.difficulty_effect == 0
    assert found.estimate.value == pytest.approx(100 * expit(found.quality))


def test_order_of_the_replies_does_not_matter_with_missing_ones():
    wins, gaps, difficulty = made(200, quality=0.1, length_effect=-0.5, seed=4)
    names = np.array([*difficulty])
    order = np.random.default_rng(0).permutation(200)[:150]
    plain = length_controlled_win_rate(
        wins[np.sort(order)], gaps[np.sort(order)], names[np.sort(order)], difficulty=difficulty
    )
    mixed = length_controlled_win_rate(wins[order], gaps[order], names[order], difficulty=difficulty)
    assert mixed.estimate.value == pytest.approx(plain.estimate.value, abs=1e-9)
    assert mixed.estimate.standard_error == pytest.approx(plain.estimate.standard_error, abs=1e-9)
    assert difference(mixed.estimate, plain.estimate).standard_error == pytest.approx(0, abs=1e-7)


def test_several_replies_to_one_instruction_are_one_unit():
    wins, gaps, difficulty = made(100, quality=0.1, length_effect=-0.5, seed=6)
    once = length_controlled_win_rate(wins, gaps, difficulty=difficulty, penalty_c=math.inf)
    twice = length_controlled_win_rate(
        np.tile(wins, 2), np.tile(gaps * math.sqrt(99 / 100 * 200 / 199), 2), [*difficulty, *difficulty],
        difficulty=difficulty, penalty_c=math.inf,
    )  # fmt: skip
    assert twice.estimate.n == 100
    assert twice.estimate.standard_error == pytest.approx(once.estimate.standard_error, rel=0.02)


GAMED = GamedBaselines([0.9, 0.1], [-1.0, 1.0], ["0", "unheard of"])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1, 0, 1], [3, 4]), {}, "2 length gaps for 3 wins"),
        (([1, 0], [3, 3]), {}, "equally longer"),
        (([1, 0], [3, 4]), {"penalty_c": 0.0}, "C is 0"),
        (([1, 0], [3, 4]), {"difficulty": {"0": 1.0}, "difficulty_by_row": True}, "1 difficulties for 2 replies"),
        (([2.0, 1.0], [3, 4]), {}, "a preference minus 1"),
        (([1, 0], [3, 4]), {"difficulty": {"0": 1.0}}, "1 of 2 instructions have no difficulty, such as '1'"),
        (([1, 0], [3, 4]), {"difficulty": {"0": 1.0, "1": 0.0}, "gamed": GAMED}, "'unheard of'"),
        (([1, 0], [3, 4], ["a", "a"]), {}, "all 2 items are of 1 instructions"),
        (([1, 1, 1, 1], [3, 4, 5, 9]), {"penalty_c": math.inf}, "no finite best coefficients"),
        (([math.nan] * 2, [3, 4]), {}, "2 of 2 wins are not finite"),
    ],
)
def test_what_cannot_be_fitted_says_so(arguments, options, message):
    with pytest.raises(DataError, match=message):
        length_controlled_win_rate(*arguments, **options)
