"""Every correction of label scores keeps to one contract; each does what its paper says, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from consilience.annotate.corrections import CORRECTIONS, Fitting

RNG = np.random.default_rng(3)
GOLD = RNG.integers(0, 3, size=300)
SCORES = 2.0 * np.eye(3)[GOLD] + RNG.normal(size=(300, 3)) + [1.5, 0, -1] - 20
GIVEN = Fitting(np.log([[0.6, 0.3, 0.1], [0.5, 0.3, 0.2], [0.4, 0.3, 0.3]]) - 9, SCORES, GOLD)


@pytest.fixture(params=sorted(CORRECTIONS))
def correction(request: pytest.FixtureRequest) -> Any:
    return CORRECTIONS[request.param]


def probabilities(scores: Any) -> Any:
    raised = np.exp(scores - scores.max(-1, keepdims=True))
    return raised / raised.sum(-1, keepdims=True)


def test_a_constant_per_text_does_not_matter(correction: Any) -> None:
    fitted = correction(GIVEN)
    shifted = SCORES + RNG.normal(size=(300, 1)) * 50
    np.testing.assert_allclose(probabilities(fitted(SCORES)), probabilities(fitted(shifted)), atol=1e-9)


def test_the_inputs_are_left_alone(correction: Any) -> None:
    before = SCORES.copy()
    correction(GIVEN)(SCORES)
    np.testing.assert_array_equal(SCORES, before)


def test_contextual_calibration_makes_contentless_texts_even() -> None:
    fitted = CORRECTIONS["contextual"](GIVEN)
    np.testing.assert_allclose(probabilities(fitted(np.log([[0.5, 0.3, 0.2]]))), [[1 / 3] * 3])


def test_mutual_information_is_against_the_empty_text() -> None:
    fitted = CORRECTIONS["mutual_information"](GIVEN)
    np.testing.assert_allclose(probabilities(fitted(np.log([[0.5, 0.3, 0.2]]))), [[1 / 3] * 3])  # the second of three


def test_batch_calibration_takes_the_mean_log_probability_away() -> None:
    fitted = CORRECTIONS["batch"](GIVEN)
    normalised = np.log(probabilities(SCORES))
    after = fitted(normalised)
    np.testing.assert_allclose(after.mean(0), 0, atol=1e-12)


def test_the_affine_correction_is_scikit_learns_logistic_regression() -> None:
    """Around the identity instead of zero: the same as a regression on top of the scores as an offset."""
    fitted = CORRECTIONS["affine"](GIVEN)
    reference = LogisticRegression(C=1e6, max_iter=2000).fit(SCORES - SCORES.mean(1, keepdims=True), GOLD)
    ours = probabilities(fitted(SCORES))
    # The ridge is weak against 300 texts; both reach nearly the same likelihood.
    theirs = reference.predict_proba(SCORES - SCORES.mean(1, keepdims=True))
    assert np.abs(ours - theirs).mean() < 0.02
    at = np.arange(300), GOLD
    assert np.log(ours[at]).mean() > np.log(probabilities(SCORES)[at]).mean()
