"""A user's own function as a judge."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from consilience.errors import ConfigError
from consilience.judge.judges import (
    Judge,
    OnProgress,
    Prefer,
    Prompt,
    References,
    Reply,
    Scores,
    dialogue,
    key_of,
    missing,
    no_progress,
    over_both_orders,
    prefer_by_scores,
    same_length,
    turned,
    without_asking,
)
from consilience.judge.readings import Reading, preference
from consilience.records import Judgment, VerdictState

Score = Callable[[Prompt, Reply], float | None]
Compare = Callable[[Prompt, Reply, Reply], float | None]


def judge_of_function(name: str, *, score: Score | None = None, compare: Compare | None = None) -> Judge:
    """A judge that rates by `score(prompt, reply)`, or prefers by `compare(prompt, first, second)` in both orders.

    `compare` gives how far the first is preferred, from 0 to 1. None or NaN is no verdict. A judge with a score only
    prefers the reply with the higher one.
    """
    scores = _scores(name, score) if score else None
    if compare:
        return Judge(name=name, scores=scores, prefer=_prefer(name, compare))
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


def _scores(name: str, score: Score) -> Scores:
    def scores(
        prompts: Sequence[Prompt],
        replies: Sequence[Reply | None],
        *,
        references: References | None = None,
        on_progress: OnProgress = no_progress,
    ) -> list[Judgment]:
        same_length(prompts, replies, references)
        judgments = []
        for prompt, reply in zip(prompts, replies):
            if reply is None:
                judgments.append(missing(name, prompt))
            else:
                said = score(prompt, reply)
                judgments.append(_judgment(name, _reading(said), said, dialogue(prompt, reply)))
            on_progress(len(judgments), len(prompts))
        return judgments

    return scores


def _prefer(name: str, compare: Compare) -> Prefer:
    def one_order(prompt: Prompt, first: Reply, second: Reply) -> Judgment:
        said = compare(prompt, first, second)
        reading = _reading(said)
        if reading.value is not None:
            inside = 0 <= reading.value <= 1
            reading = preference(reading.value) if inside else Reading(VerdictState.OUT_OF_RANGE, stated=reading.value)
        return _judgment(name, reading, said, dialogue(prompt, first), dialogue(prompt, second))

    def prefer(
        prompts: Sequence[Prompt],
        firsts: Sequence[Reply | None],
        seconds: Sequence[Reply | None],
        *,
        references: References | None = None,
        on_progress: OnProgress = no_progress,
    ) -> list[Judgment]:
        same_length(prompts, firsts, seconds, references)
        found = without_asking(name, prompts, firsts, seconds)
        for i, (prompt, first, second) in enumerate(zip(prompts, firsts, seconds)):
            if i not in found and first is not None and second is not None:
                shown_second = turned(one_order(prompt, second, first))
                found[i] = over_both_orders(one_order(prompt, first, second), shown_second)
            on_progress(i + 1, len(prompts))
        return [found[i] for i in range(len(prompts))]

    return prefer


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
