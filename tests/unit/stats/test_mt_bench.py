"""MT-Bench scores by hand."""

import math

import pytest

from consilience.errors import DataError
from consilience.stats.mt_bench import mt_bench_score

# Two categories of two questions, two turns: question means 9 8 | 4 5.
SCORES = [10, 8, 9, 7, 5, 3, 6, 4]
QUESTIONS = ["81", "81", "82", "82", "111", "111", "112", "112"]
TURNS = [1, 2] * 4
CATEGORIES = ["writing"] * 4 + ["math"] * 4


def test_scores_by_hand():
    found = mt_bench_score(SCORES, QUESTIONS, TURNS, CATEGORIES)
    assert found.overall.value == pytest.approx(6.5)
    assert found.overall.n == 4
    # Question means 9 8 4 5 around 6.5: squares 6.25 2.25 6.25 2.25.
    assert found.overall.standard_error == pytest.approx(math.sqrt(17 / 3 / 4))
    assert {turn: estimate.value for turn, estimate in found.by_turn.items()} == {1: 7.5, 2: 5.5}
    assert {name: estimate.value for name, estimate in found.by_category.items()} == {"writing": 8.5, "math": 4.5}
    # Within a category the means are 0.5 from its own: standard errors 0.5 and 0.5, averaged.
    assert found.same_categories.value == pytest.approx(6.5)
    assert found.same_categories.standard_error == pytest.approx(math.sqrt(0.25 + 0.25) / 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [-1, *SCORES[1:]]}, "1 of 8 scores are outside 1 to 10"),
        ({"scores": SCORES[:7]}, "8 questions, 8 turns and 8 categories for 7 scores"),
        ({"turns": [1, 1, *TURNS[2:]]}, "question 81, turn 1 is rated twice"),
        ({"scores": [math.nan] * 8}, "8 of 8 scores are not finite"),
        ({"questions": ["81"] * 8, "turns": [*range(8)]}, "all 8 values are of one unit"),
    ],
)
def test_what_is_no_score_says_so(change, message):
    columns = {"scores": SCORES, "questions": QUESTIONS, "turns": TURNS, "categories": CATEGORIES} | change
    with pytest.raises(DataError, match=message):
        mt_bench_score(**columns)
