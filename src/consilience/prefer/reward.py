"""A reward that is a user's own Python function, known to the last digit: for ground truth and for simulations."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from consilience.config import Settings
from consilience.errors import ConfigError, DataError, nearest
from consilience.prefer.data import Preference
from consilience.rng import stream

# A score for every reply to every prompt; None where it was not judged.
Scorer = Callable[[Sequence[Preference], Sequence[Sequence[str]]], list[list[float | None]]]


class JudgeSettings(Settings):
    """Who says which reply is better."""

    function: str = Field(description="FILE.py:NAME, a function (messages, reply, row) -> number, higher is better")
    bradley_terry: float | None = Field(
        None, gt=0, description="verdicts drawn with odds exp(this * difference in reward), as of a noisy annotator"
    )


def load_function(spec: str, path_of: Callable[[str], Path]) -> Scorer:
    """The function `FILE.py:NAME`, its file found by `path_of`. Raises `ConfigError` where there is none."""
    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py"):
        raise ConfigError(f"judge.function is {spec!r}; expected FILE.py:NAME, such as reward.py:score.")
    path = path_of(file)
    if not path.is_file():
        raise ConfigError(f"judge.function: no file {path}. Paths in a recipe are relative to the recipe.")
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"judge.function: {file} has no function {name!r}.{nearest(name, vars(module))}")

    def score_one(preference: Preference, replies: Sequence[str]) -> list[float | None]:
        messages = [{"role": turn.role, "content": turn.content} for turn in preference.prompt]
        return [_number(function(messages, reply, preference.row), spec, preference, reply) for reply in replies]

    return lambda prompts, replies_of: [score_one(*of_prompt) for of_prompt in zip(prompts, replies_of, strict=True)]


def _number(value: Any, spec: str, preference: Preference, reply: str) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(
            f"judge.function {spec} gives {value!r} for the reply {reply[:60]!r} to prompt {preference.id!r}; "
            "expected a finite number. Mend the function, then give the same command again."
        )
    return float(value)


def noisy(scores: Sequence[float | None], scale: float, *, seed: int, names: Sequence[str]) -> list[float | None]:
    """Scores whose order follows Bradley and Terry: P(i over j) = sigmoid(scale * (score_i - score_j)).

    Each is given Gumbel noise of its own, named by `seed` and its name: the same reply to the same prompt in two arms
    meets the same annotator.
    """
    return [
        None if score is None else scale * score + float(stream(seed, "annotator", name).gumbel())
        for score, name in zip(scores, names, strict=True)
    ]


def refuse_constant(scores: Sequence[float | None], where: str) -> None:
    """Raises `DataError` when a round's replies are all scored alike: nothing can be learnt from that."""
    judged = {score for score in scores if score is not None}
    if len(judged) == 1 and len(scores) > 2:
        raise DataError(
            f"{where}: the judge gives {next(iter(judged)):g} to all {len(scores)} replies, so none is better. "
            "Look at the judge, and at the replies in the run folder."
        )
    if not judged:
        raise DataError(f"{where}: the judge gives no score to any of {len(scores)} replies. Look at the judge.")
