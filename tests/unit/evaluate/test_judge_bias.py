"""What a judge's verdicts owe to order and length, by hand."""

from __future__ import annotations

import pytest

from consilience.evaluate.judge_bias import bias_of
from consilience.evaluate.judged import Judged
from consilience.records import Judgment, VerdictState


def judged(item: int, value: float | None, *, swapped: bool = False, characters: int = 5, orders=()) -> Judged:
    state = VerdictState.OK if value is not None else VerdictState.UNPARSED
    judgment = Judgment(key="k", judge="j", state=state, value=value, swapped=swapped, orders=orders)
    return Judged(f"q{item}", 1, 0, "m", judgment, characters, 5)


def both(item: int, shown_first: float, shown_second: float, characters: int = 5) -> Judged:
    first, second = judged(item, shown_first, swapped=True).judgment, judged(item, shown_second).judgment
    return judged(item, (shown_first + shown_second) / 2, characters=characters, orders=(first, second))


def of_pairs(found: list[Judged]) -> dict:
    return bias_of(found, pairs=True, unit_kind="questions", level=0.95)


def test_a_judge_that_sees_every_pair_in_one_order() -> None:
    wins = [(1, True), (1, True), (0, True), (0, False), (0, False), (1, False)]
    bias = of_pairs([judged(i, float(win), swapped=first) for i, (win, first) in enumerate(wins)] + [judged(9, None)])
    assert bias["judged"] == 6
    assert bias["order"]["value"] == pytest.approx(100 * (2 / 3 - 1 / 3))
    # Welch: two independent samples of three, each of variance 1/3.
    assert bias["order"]["standard_error"] == pytest.approx(100 * (2 * (1 / 3) / 3) ** 0.5)
    assert (bias["consistent"], bias["to_first"]) == (None, None)


def test_a_judge_that_sees_both_orders() -> None:
    bias = of_pairs([both(0, 1, 1), both(1, 0, 0), both(2, 1, 0), both(3, 1, 0), both(4, 0, 1), both(5, 0.5, 0.5)])
    assert bias["order"]["value"] == pytest.approx(100 * (3.5 - 2.5) / 6)
    assert bias["consistent"]["value"] == pytest.approx(50)
    assert bias["to_first"]["value"] == pytest.approx(200 / 3)
    assert bias["decided_by_order"] == 3


def test_length_of_pairs_is_against_the_baseline_and_of_ratings_against_the_median() -> None:
    found = [judged(i, value, characters=n) for i, (value, n) in enumerate([(1, 9), (1, 8), (0, 7), (0, 5), (1, 4)])]
    assert of_pairs(found)["longer"]["value"] == pytest.approx(100 * (2 / 3 - 1 / 2))
    rated = bias_of(found, pairs=False, unit_kind="questions", level=0.95)
    assert rated["longer"]["value"] == pytest.approx(1 - 1 / 3)  # the median is 7: two longer, three others
    assert rated["order"] is None


def test_what_cannot_be_estimated_is_left_out() -> None:
    assert of_pairs([judged(0, 1.0, characters=9), judged(1, 0.0)])["longer"] is None
    assert of_pairs([])["order"] is None
    same = of_pairs([judged(i, 1.0, characters=9) for i in range(2)] + [judged(i, 0.0) for i in range(2, 4)])
    assert (same["longer"]["value"], same["longer"]["low"]) == (100, None)  # no spread, no interval
