"""Calibration measures against scikit-learn and by hand; the advantage probability by hand and on published data."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from consilience.errors import DataError
from consilience.rng import stream
from consilience.stats.advantage import advantage_probability
from consilience.stats.calibration import brier_score, calibration_error, log_score, reliability

RNG = np.random.default_rng(2)
YES = RNG.random(300)
P = np.column_stack([1 - YES, YES])
GOLD = (RNG.random(300) < YES).astype(int)


def test_scores_are_scikit_learns() -> None:
    assert log_score(P, GOLD).value == pytest.approx(log_loss(GOLD, P))
    assert brier_score(P, GOLD).value == pytest.approx(2 * brier_score_loss(GOLD, YES))  # theirs is of one label


def test_reliability_by_hand() -> None:
    bins = reliability([0.1, 0.2, 0.8, 0.9], [0, 1, 1, 1], bins=2)
    assert [(b.stated, b.right, b.n) for b in bins] == [(pytest.approx(0.15), 0.5, 2), (pytest.approx(0.85), 1.0, 2)]
    assert bins[1].low > 0.3  # Jeffreys' interval of 2 of 2
    assert bins[1].high > bins[1].right - 1e-3


def test_the_calibration_error_by_hand() -> None:
    found = calibration_error([0.1, 0.2, 0.8, 0.9], [0, 1, 1, 1], bins=2, rng=stream(0, "t"), draws=200)
    assert found.value == pytest.approx((abs(0.15 - 0.5) + abs(0.85 - 1)) / 2)
    assert found.low <= found.value <= found.high


def test_probabilities_have_to_be_some() -> None:
    with pytest.raises(DataError, match="sum to 1"):
        brier_score([[0.5, 0.6]], [0])


def test_the_advantage_by_hand() -> None:
    # Coder 1 against coder 2: the model meets coder 2 on items 1 and 3, coder 1 does on 1 and 2; so as well or better
    # on 1 and 3. Coder 2 against coder 1: the model meets coder 1 on 1 only, coder 2 on 1 and 2.
    model = ["a", "b", "c"]
    ratings = [["a", "a"], ["a", "a"], ["a", "c"]]
    found = advantage_probability(model, ratings)
    assert found.value == pytest.approx((2 / 3 + 2 / 3) / 2)  # item 3 is a tie of misses for coder 2


def test_a_model_that_says_nothing_never_agrees() -> None:
    assert advantage_probability([None, None], [["a", "b"], ["a", "a"]]).value == 0
    with pytest.raises(DataError, match="needs others to meet"):
        advantage_probability(["a"], [["a", None]])


def test_numbers_are_compared_by_their_distance() -> None:
    found = advantage_probability([2.0, 2.0], [[1.0, 3.0], [2.0, 5.0]], alignment="rmse")
    # Item 1: the model is 1 off either, each coder 2 off the other: better twice. Item 2: as far as coder 1; nearer to
    # coder 1 than coder 2 is.
    assert found.value == 1
