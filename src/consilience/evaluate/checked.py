"""Tasks whose replies a rule checks: GSM8K, exact match, IFEval's constraints, a function of the user's own."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from consilience.errors import ConfigError, DataError, pick
from consilience.evaluate.answers import Asked, Record
from consilience.evaluate.ifeval import IFEVAL_METRICS, Checkers
from consilience.evaluate.logs import Metric, Score, Status
from consilience.evaluate.questions import Item, QuestionSettings, read_items
from consilience.evaluate.rules import MATCHES, Outcome
from consilience.models import ReplyStatus

SHARE = Metric((0, 1))
ANSWER_FIELDS = ("answer", "target", "solution")
WORTH = {
    Outcome.CORRECT: (1.0, Status.SCORED),
    Outcome.WRONG: (0.0, Status.SCORED),
    Outcome.UNREADABLE: (0.0, Status.UNREADABLE),
    Outcome.CUT_OFF: (0.0, Status.CUT_OFF),
    Outcome.NOT_ASKED: (0.0, Status.NOT_ASKED),
    Outcome.REFUSED: (0.0, Status.REFUSED),
    Outcome.ERROR: (math.nan, Status.ERROR),
}
# Why there is no reply that could be checked. A truncated one may hold the answer all the same.
WITHOUT_REPLY = {
    ReplyStatus.NO_ROOM: (0.0, Status.CUT_OFF),
    ReplyStatus.NOT_ASKED: (0.0, Status.NOT_ASKED),
    ReplyStatus.REFUSED: (0.0, Status.REFUSED),
    ReplyStatus.ERROR: (math.nan, Status.ERROR),
    ReplyStatus.OVER_BUDGET: (math.nan, Status.OVER_BUDGET),
    ReplyStatus.MISSING: (math.nan, Status.MISSING),
}


def _listed(match: Any) -> Any:
    return (match,) if isinstance(match, str) else match


class CheckedSettings(QuestionSettings):
    """Questions with an answer, and one or more rules that find it in a reply: each gives a metric."""

    kind: Literal["checked"] = "checked"
    match: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ("exact",)
    answer: str | None = Field(None, description="the field with the right answer; default: answer, target or solution")
    function: str | None = Field(None, description="FILE.py:NAME, called with reply and row, in place of a rule")

    @field_validator("match")
    @classmethod
    def _known(cls, match: tuple[str, ...]) -> tuple[str, ...]:
        for name in match:
            pick(MATCHES, name, "match rule")
        if not match:
            raise ConfigError("match names no rule")
        return match


class IfevalSettings(QuestionSettings):
    """IFEval (arXiv:2311.07911): rows with `prompt`, `instruction_id_list` and `kwargs`."""

    kind: Literal["ifeval"] = "ifeval"


@dataclass(frozen=True, slots=True)
class CheckedTask:
    """`check(item, reply)` gives every metric's `(value, status, weight)` for one reply."""

    name: str
    settings: QuestionSettings
    items: Sequence[Item]
    metrics: Mapping[str, Metric]
    check: Callable[[Item, str], Mapping[str, tuple[float, Status, float]]]
    item_kind: str = "questions"

    def asked(self, turn: int, before: Sequence[Record]) -> list[Asked]:
        """Every item, in its only turn."""
        if turn > 1:
            return []
        return [Asked(item.id, item.messages, self.settings.sampling) for item in self.items]

    def scores(self, records: Sequence[Record]) -> Iterator[Score]:
        """Every metric of every reply."""
        items = {item.id: item for item in self.items}
        for record in records:
            item = items[record.item]
            without = WITHOUT_REPLY.get(record.status)
            found = {} if without else self.check(item, record.reply)
            for metric in self.metrics:
                value, status, weight = (*without, 1.0) if without else found[metric]
                if record.status == ReplyStatus.TRUNCATED and value == 0:
                    status = Status.CUT_OFF
                yield Score(
                    model=record.model,
                    metric=metric,
                    item=record.item,
                    value=value,
                    status=status,
                    sample=str(record.sample),
                    cluster=item.cluster,
                    category=item.group,
                    weight=weight,
                )


def checked_task(name: str, settings: CheckedSettings, file: Callable[[str], Path]) -> CheckedTask:
    """The task called `name`; `file` finds the files that the settings name.

    Raises `DataError` at an answer that its own rule does not find, `ConfigError` at a function that is not there.
    """
    items = read_items(file(settings.path), settings)
    if settings.function is not None:
        function = _function(settings.function, file)
        return CheckedTask(name, settings, items, {settings.function.rpartition(":")[2]: SHARE}, _by_function(function))
    rules = {rule: MATCHES[rule] for rule in settings.match}
    answers = {item.id: _answer(item, settings) for item in items}
    for item in items:
        answer = answers[item.id]
        for rule, matches in rules.items():
            # The right answer behind GSM8K's mark, or alone: some files have only the number.
            if Outcome.CORRECT not in (matches(answer, answer), matches(f"#### {answer}", answer)):
                raise DataError(f"{item.where}: {answer[-80:]!r} is no answer that {rule!r} can find in a reply.")

    def check(item: Item, reply: str) -> Mapping[str, tuple[float, Status, float]]:
        return {rule: (*WORTH[matches(reply, answers[item.id])], 1.0) for rule, matches in rules.items()}

    return CheckedTask(name, settings, items, dict.fromkeys(rules, SHARE), check)


def ifeval_task(name: str, settings: IfevalSettings, file: Callable[[str], Path]) -> CheckedTask:
    """IFEval's four metrics: shares of prompts, and of instructions within a prompt, strict and loose."""
    items = read_items(file(settings.path), settings)
    checkers = Checkers()
    for item in items:
        checkers.refuse_unknown(item.row, item.where)

    def check(item: Item, reply: str) -> Mapping[str, tuple[float, Status, float]]:
        return {
            metric: (value, Status.SCORED, weight)
            for metric, (value, weight) in checkers.metrics(item.row, reply).items()
        }

    return CheckedTask(name, settings, items, dict.fromkeys(IFEVAL_METRICS, SHARE), check, item_kind="prompts")


def _answer(item: Item, settings: CheckedSettings) -> str:
    names = (settings.answer,) if settings.answer else ANSWER_FIELDS
    found = next((item.row[name] for name in names if item.row.get(name) is not None), None)
    if found is None or not str(found).strip():
        raise DataError(f"{item.where}: no {' or '.join(names)}; there are {', '.join(item.row)}.")
    return str(found)


Function = Callable[[str, Mapping[str, Any]], Any]


def _function(named: str, file: Callable[[str], Path]) -> Function:
    """The function NAME of the user's FILE.py."""
    path_text, _, name = named.rpartition(":")
    path = file(path_text)
    if not path_text.endswith(".py") or not path.is_file():
        raise ConfigError(f"function {named!r}: expected FILE.py:NAME, and the file beside the recipe.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code, at our edge
        raise ConfigError(f"{path} cannot be run ({type(error).__name__}: {error}).") from None
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"{path} has no function {name!r}.")
    return found  # type: ignore[no-any-return]


def _by_function(function: Function) -> Callable[[Item, str], Mapping[str, tuple[float, Status, float]]]:
    name = function.__name__

    def check(item: Item, reply: str) -> Mapping[str, tuple[float, Status, float]]:
        try:
            found = function(reply, item.row)
        except Exception as error:  # the user's own code, at our edge
            raise DataError(f"{name} stopped at item {item.id!r} ({type(error).__name__}: {error}).") from None
        if found is None:
            return {name: (0.0, Status.UNREADABLE, 1.0)}
        if not isinstance(found, bool | int | float) or not 0 <= found <= 1:
            raise DataError(
                f"{name} gives {found!r} at item {item.id!r}; expected True, False, a number from 0 to 1, or None for "
                "a reply without a readable answer."
            )
        return {name: (float(found), Status.SCORED, 1.0)}

    return check
