"""A user's own function as a judge."""

from __future__ import annotations

import importlib.util
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from consilience.errors import ConfigError, DataError
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
    no_progress,
    over_both_orders,
    prefer_by_scores,
    prefer_of,
    scores_of,
    turned,
)
from consilience.judge.readings import Reading, preference
from consilience.records import Judgment, VerdictState, printable

Score = Callable[
    ..., float | None
]  # of prompt and reply; of a third parameter, the row of the data, where there is one
CompareTwo = Callable[[Prompt, Reply, Reply], float | None]


def judge_of_function(name: str, *, score: Score | None = None, compare: CompareTwo | None = None) -> Judge:
    """A judge that rates by `score(prompt, reply)`, or prefers by `compare(prompt, first, second)` in both orders.

    `compare` gives how far the first is preferred, from 0 to 1. None, NaN or infinity is no verdict; the judge raises
    `DataError` at what is no number, and where the function stops with an error. A judge with a score only prefers the
    reply with the higher one.
    """
    if score and _needs_row(score):
        raise ConfigError(
            f"{name} takes a row of the data, which only `consilience prefer` has. "
            "Give it two parameters, prompt and reply."
        )
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
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code, at our edge
        raise ConfigError(f"{file} cannot be loaded: {_at(error)}.") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{file} has no function {name!r}.")
    return function  # type: ignore[no-any-return]


def rate_by_function(
    name: str,
    score: Score,
    prompts: Sequence[Prompt],
    replies: Sequence[Reply],
    rows: Sequence[Mapping[str, Any]] = (),
    on_progress: OnProgress = no_progress,
) -> list[Judgment]:
    """What `score` gives every reply; where there are rows, one with a third parameter is shown the prompt's."""
    shown = [(row,) for row in rows] if rows and len(_parameters(score)) > 2 else [()] * len(prompts)
    judgments: list[Judgment] = []
    for prompt, reply, row in zip(prompts, replies, shown, strict=True):
        said = _said(name, score, prompt, reply, *row)
        judgments.append(_judgment(name, _reading(name, said, prompt), said, dialogue(prompt, reply)))
        on_progress(len(judgments), len(prompts))
    return judgments


def _parameters(score: Score) -> list[inspect.Parameter]:
    return [*inspect.signature(score).parameters.values()]


def _needs_row(score: Score) -> bool:
    return sum(parameter.default is parameter.empty for parameter in _parameters(score)) > 2


def _rate(name: str, score: Score) -> Rate:
    def rate(
        prompts: Sequence[Prompt], replies: Sequence[Reply], references: References, on_progress: OnProgress
    ) -> list[Judgment]:
        return rate_by_function(name, score, prompts, replies, on_progress=on_progress)

    return rate


def _compare(name: str, compare: CompareTwo) -> Compare:
    def one_order(prompt: Prompt, first: Reply, second: Reply) -> Judgment:
        said = _said(name, compare, prompt, first, second)
        reading = _reading(name, said, prompt)
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


def _said(name: str, function: Callable[..., Any], prompt: Prompt, *replies: Any) -> Any:
    """What the function says. Raises `DataError` where it stops with an error of its own."""
    try:
        return function(prompt, *replies)
    except Exception as error:  # the user's own code, at our edge
        raise DataError(
            f"the function {name} stopped at a reply to {_shown(prompt)}: {_at(error)}. Let it give None where it has "
            "no verdict."
        ) from None


def _at(error: Exception) -> str:
    """An error of the user's code, and where it was raised."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} (line {error.lineno})"
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {printable(str(error))} ({Path(frame.filename).name}, line {frame.lineno})"


def _shown(prompt: Prompt) -> str:
    asked = prompt if isinstance(prompt, str) else prompt[-1].content
    return repr(printable(asked[:40]))


def _reading(name: str, said: object, prompt: Prompt) -> Reading:
    if said is None:
        return Reading(VerdictState.UNPARSED)
    if not isinstance(said, Real):  # numpy's numbers are
        raise DataError(
            f"the function {name} gives {str(said)[:40]!r} ({type(said).__name__}) for a reply to "
            f"{_shown(prompt)}; expected a number, or None for no verdict."
        )
    return Reading(VerdictState.OK, float(said)) if math.isfinite(said) else Reading(VerdictState.UNPARSED)


def _judgment(name: str, reading: Reading, said: object, *asked: Any) -> Judgment:
    reason = f"the function gave {said}" if reading.value is None else ""
    return Judgment(
        key=key_of(name, asked),
        judge=name,
        state=reading.state,
        value=reading.value,
        stated=reading.stated,
        reason=reason,
    )
