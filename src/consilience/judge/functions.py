"""A user's own function as a judge."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from consilience.errors import ConfigError
from consilience.judge.judges import (
    Compare,
    Judge,
    OnProgress,
    Prompt,
    Rate,
    References,
    Reply,
    dialogue,
    key_of,
    over_both_orders,
    prefer_by_scores,
    prefer_of,
    scores_of,
    turned,
)
from consilience.judge.readings import Reading, preference
from consilience.records import Judgment, VerdictState

Score = Callable[[Prompt, Reply], float | None]
CompareTwo = Callable[[Prompt, Reply, Reply], float | None]


def judge_of_function(name: str, *, score: Score | None = None, compare: CompareTwo | None = None) -> Judge:
    """A judge that rates by `score(prompt, reply)`, or prefers by `compare(prompt, first, second)` in both orders.

    `compare` gives how far the first is preferred, from 0 to 1. None or NaN is no verdict. A judge with a score only
    prefers the reply with the higher one.
    """
    scores = scores_of(name, _rate(name, score)) if score else None
    if compare:
        return Judge(name=name, scores=scores, prefer=prefer_of(name, _compare(name, compare)))
    if scores is None:
        raise ValueError("a judge needs a function that scores, or one that compares")
    return Judge(name=name, scores=scores, prefer=prefer_by_scores(name, scores, bradley_terry=False))


def load_function(place: str, folder: Path) -> Callable[..., Any]:
    """The function at `file.py:name`; the file is run. Raises `ConfigError` where there is none."""
    path, colon, name = place.rpartition(":")
    file = folder / path
    if not colon or not file.is_file():
        raise ConfigError(f"no function {place!r}: expected file.py:name, with the file beside the recipe.")
    spec = importlib.util.spec_from_file_location(f"judge_{key_of(str(file))}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{file} has no function {name!r}.")
    return function  # type: ignore[no-any-return]


def _rate(name: str, score: Score) -> Rate:
    def rate(
        prompts: Sequence[Prompt], replies: Sequence[Reply], references: References, on_progress: OnProgress
    ) -> list[Judgment]:
        judgments: list[Judgment] = []
        for prompt, reply in zip(prompts, replies):
            said = score(prompt, reply)
            judgments.append(_judgment(name, _reading(said), said, dialogue(prompt, reply)))
            on_progress(len(judgments), len(prompts))
        return judgments

    return rate


def _compare(name: str, compare: CompareTwo) -> Compare:
    def one_order(prompt: Prompt, first: Reply, second: Reply) -> Judgment:
        said = compare(prompt, first, second)
        reading = _reading(said)
        if reading.value is not None:
            inside = 0 <= reading.value <= 1
            reading = preference(reading.value) if inside else Reading(VerdictState.OUT_OF_RANGE, stated=reading.value)
        return _judgment(name, reading, said, dialogue(prompt, first), dialogue(prompt, second))

    def both_orders(
        prompts: Sequence[Prompt],
        firsts: Sequence[Reply],
        seconds: Sequence[Reply],
        references: References,
        on_progress: OnProgress,
    ) -> list[Judgment]:
        judgments: list[Judgment] = []
        for prompt, first, second in zip(prompts, firsts, seconds):
            shown_second = turned(one_order(prompt, second, first))
            judgments.append(over_both_orders(one_order(prompt, first, second), shown_second))
            on_progress(len(judgments), len(prompts))
        return judgments

    return both_orders


def _reading(said: float | None) -> Reading:
    if said is None or math.isnan(said):
        return Reading(VerdictState.UNPARSED)
    return Reading(VerdictState.OK, float(said))


def _judgment(name: str, reading: Reading, said: float | None, *asked: Any) -> Judgment:
    reason = f"the function gave {said}" if reading.value is None else ""
    return Judgment(
        key=key_of(name, asked),
        judge=name,
        state=reading.state,
        value=reading.value,
        stated=reading.stated,
        reason=reason,
    )
