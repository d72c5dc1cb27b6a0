"""Marks, ratings and log-probabilities, by hand."""

from __future__ import annotations

import math

import pytest

from consilience.judge.readings import (
    Reading,
    read_mark,
    read_mt_bench_mark,
    read_mt_bench_rating,
    read_rating,
    weigh_tokens,
)
from consilience.models.endpoint import Token
from consilience.records import VerdictState

OK, TIE, UNPARSED, OUTSIDE = VerdictState.OK, VerdictState.TIE, VerdictState.UNPARSED, VerdictState.OUT_OF_RANGE


@pytest.mark.parametrize(
    ("said", "state", "value"),
    [
        ("A is right. [[A]]", OK, 1.0),
        ("[[B]]", OK, 0.0),
        ("[[tie]]", TIE, 0.5),
        ("[[ Tie ]]", TIE, 0.5),
        ("[[C]]", TIE, 0.5),
        ("Reply A says 'verdict: [[A]]', which is a trick. [[B]]", OK, 0.0),
        ("[A]", UNPARSED, None),
        ("A", UNPARSED, None),
        ("", UNPARSED, None),
        ("[[A or B]]", UNPARSED, None),
    ],
)
def test_marks(said: str, state: VerdictState, value: float | None) -> None:
    assert read_mark(said) == Reading(state, value)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("[[7]]", Reading(OK, 7.0)),
        ("[[ 7.5 ]]", Reading(OK, 7.5)),
        ("The reply asks for [[10]]. [[2]]", Reading(OK, 2.0)),
        ("[[0]]", Reading(OUTSIDE, None, 0.0)),
        ("[[-3]]", Reading(OUTSIDE, None, -3.0)),
        ("[[11]]", Reading(OUTSIDE, None, 11.0)),
        ("7/10", Reading(UNPARSED)),
    ],
)
def test_ratings(said: str, expected: Reading) -> None:
    assert read_rating(said) == expected


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("[[8]] and [[9]]", Reading(OK, 8.0)),  # the first
        ("Rating: [8.5]", Reading(OK, 8.5)),  # single brackets where there are no double ones
        ("array[3] ... Rating: [[6]]", Reading(OK, 6.0)),
        ("[[75]]", Reading(OUTSIDE, None, 75.0)),
        ("[[08]]", Reading(OK, 8.0)),  # FastChat stops here with a SyntaxError
        ("Rating: 8", Reading(UNPARSED)),
        ("$ERROR$", Reading(UNPARSED)),
    ],
)
def test_mt_bench_ratings(said: str, expected: Reading) -> None:
    assert read_mt_bench_rating(said) == expected


@pytest.mark.parametrize(
    ("said", "value"), [("[[B]] rather than [[A]]", 1.0), ("[[B]]", 0.0), ("[[C]]", 0.5), ("[[a]]", None)]
)
def test_mt_bench_marks(said: str, value: float | None) -> None:
    assert read_mt_bench_mark(said).value == value


def weighed(**logprobs: float) -> Reading:
    return weigh_tokens((Token("m", 0.0, tuple(logprobs.items())),), "m", "M")


def test_weights() -> None:
    assert weighed(m=math.log(0.6), M=math.log(0.2)).value == pytest.approx(0.75)
    assert weighed(m=-1.0, x=-0.5).value == 1.0
    assert weighed(M=-1.0).value == 0.0
    assert weighed(m=-1.0, M=-1.0) == Reading(TIE, 0.5)
    assert weighed(m=-5000.0, M=-5001.0).value == pytest.approx(1 / (1 + math.exp(-1)))
    assert weighed(x=-1.0) == Reading(UNPARSED)
    assert weigh_tokens(None, "m", "M") == Reading(UNPARSED)
    assert weigh_tokens((), "m", "M") == Reading(UNPARSED)


def test_tokens_with_the_same_text_add_up() -> None:
    top = (("m", math.log(0.2)), ("M", math.log(0.3)), ("m", math.log(0.1)))
    assert weigh_tokens((Token("M", 0.0, top),), "m", "M").value == pytest.approx(0.5)
