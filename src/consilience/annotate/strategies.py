"""Prompting strategies: codebook and text -> what a model is asked, as messages. A table of functions of one signature.

The layouts are those of Weber and Reichardt's primer (arXiv:2401.00284; the message lists as its first author's
package documents them). All words stand in `Wording`, which a recipe may change. The codebook comes first and the
text last, so that the prompts of all texts begin alike and a model reads that part once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pydantic import field_validator

from consilience.annotate.codebook import JOINT, Codebook, Level
from consilience.config import Settings
from consilience.errors import ConfigError
from consilience.records import Message

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NONE = "(none)"  # a multi-label text to which no label applies


class Wording(Settings):
    """The words around codebook and text. Names in braces are filled in; what a text itself holds never is."""

    system: str = "You code texts for a study in the social sciences.\n\n{codebook}"
    persona: str = "You are {persona}."
    codebook: str = "{question}\n\n{definitions}\n\n{unclear}"
    unclear: str = "Where it is unclear: {rule}"
    text: str = '{Unit}:\n"""\n{text}\n"""\n\n{ask}'
    label: str = "Answer with one label and nothing else: {labels}."
    letter: str = "Answer with the letter of one label and nothing else: {letters}."
    json_label: str = 'Answer with JSON and nothing else: {"label": "..."}, with one of: {labels}.'
    multi_label: str = "Answer with every label that applies, joined by |, and nothing else, or with (none): {labels}."
    json_multi_label: str = (
        'Answer with JSON and nothing else: {"labels": [...]}, a list of those that apply: {labels}.'
    )
    one_of_many: str = 'Does the label "{label}" apply? Answer with yes or no and nothing else.'
    interval: str = "Answer with one number from {low} to {high} and nothing else."
    json_interval: str = 'Answer with JSON and nothing else: {"number": ...}, from {low} to {high}.'
    span: str = (
        'Answer with JSON and nothing else: a list of {"label": "...", "quote": "..."}, one for every passage, quoted '
        "word for word, or [] where there is none. Labels: {labels}."
    )
    free_text: str = "Answer in one sentence."
    reason: str = "Which labels could apply to this {unit}, and why? Reason in at most three sentences."
    steps: str = "Reason step by step first. Then, on the last line, write Answer: and your answer. {ask}"

    @field_validator("*")
    @classmethod
    def _known_fields(cls, words: str) -> str:
        unknown = set(FIELD.findall(words)) - FIELDS
        if unknown:
            there_are = ", ".join(sorted(FIELDS))
            raise ConfigError(f"wording has {{{min(unknown)}}}, which nothing fills in. There are: {there_are}.")
        return words

    @field_validator("text")
    @classmethod
    def _shows_the_text(cls, words: str) -> str:
        if "{text}" not in words:
            raise ConfigError("wording.text lacks {text}: the model would not see what it codes.")
        return words


FIELD = re.compile(r"\{([A-Za-z_]+)\}")
FIELDS = {
    "codebook", "persona", "question", "definitions", "unclear", "rule", "unit", "Unit", "text", "ask", "labels",
    "letters", "label", "low", "high",
}  # fmt: skip


def fill(words: str, **values: str) -> str:
    """`words` with its names in braces replaced, in one pass: braces within a value stay as they are."""
    return FIELD.sub(lambda found: values.get(found[1], found[0]), words)


class Shot(NamedTuple):
    """A text with the label that it is shown with."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class Ask:
    """Everything a strategy needs for one text. `order` is that in which the labels are shown."""

    codebook: Codebook
    text: str
    wording: Wording
    format: str = "answer"  # answer, letter, json; or `label:NAME`, a yes-or-no question about one of many labels
    order: tuple[int, ...] = ()
    shots: tuple[Shot, ...] = ()
    persona: str = ""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is asked. With `then`, its first reply is reasoning, and `then` is what it is asked next."""

    messages: tuple[Message, ...]
    then: str = ""


def zero_shot(ask: Ask) -> Asked:
    """The codebook, the text, the question."""
    return Asked((_system(ask), Message("user", _text(ask, ask.text, question_of(ask)))))


def few_shot(ask: Ask) -> Asked:
    """The codebook, then texts with their labels as turns of a chat, then the text (one-shot is one of them)."""
    system, last = zero_shot(ask).messages
    turns = [
        turn
        for shot in ask.shots
        for turn in (
            Message("user", _text(ask, shot.text, question_of(ask))),
            Message("assistant", answer_of(ask, shot.label)),
        )
    ]
    return Asked((system, *turns, last))


def persona(ask: Ask) -> Asked:
    """Zero-shot (or few-shot, where shots are given) to a model that is told who it is."""
    if not ask.persona:
        raise ConfigError("a persona strategy needs persona: such as 'an experienced coder of party manifestos'.")
    asked = few_shot(ask)
    system = asked.messages[0]
    told = f"{fill(ask.wording.persona, persona=ask.persona)} {system.content}"
    return Asked((Message("system", told), *asked.messages[1:]))


def chain_of_thought(ask: Ask) -> Asked:
    """Two calls: which labels could apply, and why; then, with that reasoning before it, the question."""
    system = few_shot(ask).messages[:-1]
    reason = fill(ask.wording.reason, unit=ask.codebook.unit)
    return Asked((*system, Message("user", _text(ask, ask.text, reason))), then=question_of(ask))


def step_by_step(ask: Ask) -> Asked:
    """Chain of thought in one call: reasoning, and the answer on the last line, behind `Answer:`."""
    asked = few_shot(ask)
    steps = fill(ask.wording.steps, ask=question_of(ask))
    return Asked((*asked.messages[:-1], Message("user", _text(ask, ask.text, steps))))


STRATEGIES: dict[str, Callable[[Ask], Asked]] = {
    "zero_shot": zero_shot,
    "one_shot": few_shot,
    "few_shot": few_shot,
    "persona": persona,
    "chain_of_thought": chain_of_thought,
    "step_by_step": step_by_step,
    "self_consistency": step_by_step,
}
# What a strategy is made of when a recipe gives nothing but its name.
DEFAULTS: dict[str, dict[str, object]] = {
    "one_shot": {"shots": 1},
    "few_shot": {"shots": 4},
    "step_by_step": {"answer": "free", "max_new_tokens": 256},
    "self_consistency": {"answer": "free", "max_new_tokens": 256, "samples": 5, "temperature": 0.7},
}
IN_ONE_REPLY = ("step_by_step", "self_consistency")  # the answer stands at the end of a reasoning reply


def question_of(ask: Ask) -> str:
    """What the model is to answer with: a label, a letter, JSON, a number, quotes, a sentence."""
    book, wording = ask.codebook, ask.wording
    low, high = book.range or (0.0, 0.0)
    values = {
        "labels": ", ".join(f'"{name}"' if " " in name else name for name in _shown(ask)),
        "letters": ", ".join(LETTERS[: len(book.labels)]),
        "low": f"{low:g}",
        "high": f"{high:g}",
    }
    if ask.format.startswith("label:"):
        return fill(wording.one_of_many, label=ask.format.removeprefix("label:"))
    json = ask.format == "json"
    of_level = {
        Level.MULTI_LABEL: wording.json_multi_label if json else wording.multi_label,
        Level.INTERVAL: wording.json_interval if json else wording.interval,
        Level.SPAN: wording.span,
        Level.FREE_TEXT: wording.free_text,
    }
    one_label = {"letter": wording.letter, "json": wording.json_label}.get(ask.format, wording.label)
    return fill(of_level.get(book.level, one_label), **values)


def answer_of(ask: Ask, label: str) -> str:
    """`label` as the model is to write it."""
    if ask.format.startswith("label:"):
        return "yes" if ask.format.removeprefix("label:") in label.split(JOINT) else "no"
    if ask.format == "letter":
        return LETTERS[_order(ask).index(ask.codebook.names.index(label))]
    if ask.format == "json":
        return _as_json(ask.codebook.level, label)
    return label or NONE


def _as_json(level: Level, label: str) -> str:
    if level is Level.MULTI_LABEL:
        return json.dumps({"labels": [part for part in label.split(JOINT) if part]}, ensure_ascii=False)
    if level is Level.INTERVAL:
        return f'{{"number": {label}}}'
    return json.dumps({"label": label}, ensure_ascii=False)


def _system(ask: Ask) -> Message:
    book, wording = ask.codebook, ask.wording
    marks = LETTERS[: len(book.labels)] if ask.format == "letter" else None
    told = fill(
        wording.codebook,
        question=book.question,
        definitions=book.definitions(_order(ask), marks),
        unclear=fill(wording.unclear, rule=book.unclear) if book.unclear else "",
        unit=book.unit,
    )
    return Message("system", fill(wording.system, codebook=told.strip(), unit=book.unit).strip())


def _text(ask: Ask, text: str, question: str) -> str:
    unit = ask.codebook.unit
    return fill(ask.wording.text, text=text, ask=question, unit=unit, Unit=unit[:1].upper() + unit[1:])


def _order(ask: Ask) -> Sequence[int]:
    return ask.order or range(len(ask.codebook.labels))


def _shown(ask: Ask) -> list[str]:
    return [ask.codebook.names[place] for place in _order(ask)]


def without_system(asked: Asked) -> Asked:
    """For chat templates that know no system role: what it says opens the first turn of the user."""
    system, first, *rest = asked.messages
    return replace(asked, messages=(Message("user", f"{system.content}\n\n{first.content}"), *rest))
