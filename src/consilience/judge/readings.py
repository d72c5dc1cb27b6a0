"""What a judge's answer says: marks, ratings and log-probabilities read as verdicts. Pure functions.

A preference is how far the reply that was shown first is preferred: 1, 0, 0.5 for a tie, or a probability.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from consilience.models.endpoint import Token
from consilience.records import VerdictState

MARKS = {"a": 1.0, "b": 0.0, "tie": 0.5, "c": 0.5}
MT_BENCH_SCALE = (1.0, 10.0)


class Reading(NamedTuple):
    """A verdict read from an answer; `stated` is a rating outside the scale."""

    state: VerdictState
    value: float | None = None
    stated: float | None = None


UNPARSED = Reading(VerdictState.UNPARSED)


def preference(value: float) -> Reading:
    """A preference for the reply shown first; exactly one half is a tie."""
    return Reading(VerdictState.TIE if value == 0.5 else VerdictState.OK, value)


def rating(value: float, scale: tuple[float, float]) -> Reading:
    """A rating, if it is on the scale."""
    low, high = scale
    return Reading(VerdictState.OK, value) if low <= value <= high else Reading(VerdictState.OUT_OF_RANGE, None, value)


def read_mark(said: str) -> Reading:
    """The last `[[A]]`, `[[B]]` or `[[tie]]`: a judge that quotes a reply may quote a mark that is none of its own."""
    marks = re.findall(r"\[\[\s*(A|B|C|tie)\s*\]\]", said, re.IGNORECASE)
    return preference(MARKS[marks[-1].lower()]) if marks else UNPARSED


def read_rating(said: str, scale: tuple[float, float] = MT_BENCH_SCALE) -> Reading:
    """The last `[[number]]`."""
    found = re.findall(r"\[\[\s*(-?\d+(?:\.\d+)?)\s*\]\]", said)
    return rating(float(found[-1]), scale) if found else UNPARSED


def read_mt_bench_mark(said: str) -> Reading:
    """As FastChat: `[[A]]` if it occurs anywhere, else `[[B]]`, else `[[C]]`."""
    return next((preference(MARKS[mark.lower()]) for mark in "ABC" if f"[[{mark}]]" in said), UNPARSED)


def read_mt_bench_rating(said: str) -> Reading:
    """As FastChat: the first `[[number]]`, or without one the first `[number]`; unlike FastChat not outside 1 to 10."""
    found = re.search(r"\[\[(\d+\.?\d*)\]\]", said) or re.search(r"\[(\d+\.?\d*)\]", said)
    return rating(float(found[1]), MT_BENCH_SCALE) if found else UNPARSED


def weigh_tokens(tokens: Sequence[Token] | None, first: str, second: str) -> Reading:
    """P(first) / (P(first) + P(second)) among the likeliest tokens in the first place of an answer, as AlpacaEval.

    A token that is not among them has probability 0; where neither is, nothing can be read. Different tokens of a
    vocabulary with the same text add up.
    """
    top = tokens[0].top if tokens else ()
    logprobs = {name: [logprob for text, logprob in top if text == name] for name in (first, second)}
    if not any(logprobs.values()):
        return UNPARSED
    # Against the likelier of the two, so that neither underflows.
    most = max(map(max, filter(None, logprobs.values())))
    first_weight, second_weight = (sum(math.exp(value - most) for value in logprobs[name]) for name in (first, second))
    return preference(first_weight / (first_weight + second_weight))
