"""Several answers per item: components of variance and pass@k against pinned numbers and by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from consilience.errors import DataError
from consilience.stats import mean
from consilience.stats.repeats import pass_at_k, variance_components

PINNED = Path(__file__).parents[4] / "shared" / "checks" / "evaluation" / "resampling_expected.json"


def test_against_pinned_resamples():
    if not PINNED.is_file():
        pytest.skip("no ../shared/checks/evaluation/resampling_expected.json beside the repository")
    expected = json.loads(PINNED.read_text())
    scores = np.array(expected["scores"])
    items = [str(i) for i, row in enumerate(scores) for _ in row]
    found = variance_components(scores.ravel(), items)
    assert found.within == pytest.approx(expected["within_var"], abs=1e-12)
    assert found.between == pytest.approx(expected["between_var"], abs=1e-12)
    assert found.of_the_mean(*scores.shape) == pytest.approx(expected["se_of_question_means"] ** 2, abs=1e-12)
    for k, share in expected["pass_at"].items():
        assert pass_at_k(scores.ravel(), items, int(k)).value == pytest.approx(share, abs=1e-12)


def test_components_of_unlike_numbers_of_answers_by_hand():
    # Items (1, 3), (5), (0, 0, 3): means 2 5 1, within sum 2 + 0 + 6 over 6 - 3 answers; grand mean 2.
    # Between sum 2 * 0 + 1 * 9 + 3 * 1 = 12 over 2; n0 = (6 - 14 / 6) / 2.
    found = variance_components([1, 3, 5, 0, 0, 3], ["a", "a", "b", "c", "c", "c"])
    assert found.within == pytest.approx(8 / 3)
    assert found.between == pytest.approx((6 - 8 / 3) / ((6 - 14 / 6) / 2))


def test_pass_at_k_by_hand():
    # One of three right: 2 of the 3 pairs hold it. None of three: never.
    found = pass_at_k([1, 0, 0, 0, 0, 0], ["a", "a", "a", "b", "b", "b"], 2)
    assert found.value == pytest.approx((2 / 3 + 0) / 2)
    assert found.n == 2


def test_pass_at_1_is_the_mean():
    rng = np.random.default_rng(0)
    right = (rng.random(60) < 0.4).astype(float)
    items = [str(i // 4) for i in range(60)]
    assert pass_at_k(right, items, 1).value == pytest.approx(mean(right, items).value)
    assert pass_at_k(right, items, 1).standard_error == pytest.approx(mean(right, items).standard_error)


@pytest.mark.parametrize(
    ("measure", "message"),
    [
        (lambda: variance_components([1, 2], ["a", "b"]), "2 answers to 2 items"),
        (lambda: variance_components([1, 2], ["a", "a"]), "2 answers to 1 items"),
        (lambda: pass_at_k([1, 0, 1], ["a", "a", "b"], 2), "pass@2 of items with as few as 1"),
        (lambda: pass_at_k([1, 0.5], ["a", "a"], 1), "zeros and ones"),
        (lambda: variance_components([math.nan] * 3, ["a", "a", "b"]), "3 of 3 values are not finite"),
    ],
)
def test_what_does_not_repeat_says_so(measure, message):
    with pytest.raises(DataError, match=message):
        measure()
