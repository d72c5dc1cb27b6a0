"""Language models as judges, behind a server or in this process: whoever answers `Request`s."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from consilience.judge.judges import (
    OnProgress,
    Prompt,
    References,
    Reply,
    dialogue,
    key_of,
    over_both_orders,
)
from consilience.judge.prompts import Dialogue, Template, pair_fields, single_fields, transcript
from consilience.judge.readings import Reading
from consilience.models.endpoint import Answer, Request, Status
from consilience.records import Judgment, VerdictState

Orders = Literal["both", "alpaca_eval", "as_given"]


class Answerer(Protocol):
    """Who is asked: `models.endpoint.Endpoint`, or `models.local.LocalAnswerer`."""

    @property
    def name(self) -> str: ...

    def ask(self, requests: Sequence[Request], *, on_progress: OnProgress = ...) -> list[Answer]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Style:
    """How a language model is asked, and how its answer is read.

    `template(turns, reference)` is the prompt for an item with so many turns, with a reference answer or without.
    A preference that `read` finds is for the reply that was shown first.
    """

    name: str
    template: Callable[[int, bool], Template]
    read: Callable[[Answer], Reading]
    max_tokens: int = 2048
    temperature: float = 0.0
    top_logprobs: int | None = None
    orders: Orders = "both"
    rule: Literal["mean", "conservative"] = "mean"
    repeat: int = 0  # a judge that is asked again gives another sample

    def named(self, answerer: Answerer) -> str:
        """The judge's name."""
        return f"{self.name} by {answerer.name}"

    def request(self, template: Template, fields: dict[str, str]) -> Request:
        """The filled prompt."""
        return Request(
            messages=template.fill(fields),
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_logprobs=self.top_logprobs,
            sample=self.repeat,
        )


def alpaca_eval_swaps(instruction: str) -> bool:
    """Whether AlpacaEval shows output_2 first: drawn by the instruction, so it is the same for every model."""
    drawn: bool = random.Random(f"is_switched_outputs{instruction}0").choices([False, True], k=1)[0]
    return drawn


def rate_replies(
    answerer: Answerer,
    style: Style,
    prompts: Sequence[Prompt],
    replies: Sequence[Reply],
    references: References,
    on_progress: OnProgress,
) -> list[Judgment]:
    """A rating of every reply."""
    asked: list[tuple[Template, Request]] = []
    for prompt, reply, reference in zip(prompts, replies, references):
        chat = dialogue(prompt, reply)
        template = style.template(_turns(chat), reference is not None)
        asked.append((template, style.request(template, single_fields(chat, reference))))
    answers = answerer.ask([request for _, request in asked], on_progress=on_progress)
    return [_judgment(answerer, style, *question, answer, swapped=False) for question, answer in zip(asked, answers)]


def compare_replies(
    answerer: Answerer,
    style: Style,
    prompts: Sequence[Prompt],
    firsts: Sequence[Reply],
    seconds: Sequence[Reply],
    references: References,
    on_progress: OnProgress,
) -> list[Judgment]:
    """A comparison of every pair, in the orders that the style asks for."""
    asked: list[tuple[int, bool, Template, Request]] = []
    for place, (prompt, first, second, reference) in enumerate(zip(prompts, firsts, seconds, references)):
        chats = dialogue(prompt, first), dialogue(prompt, second)
        template = style.template(_turns(chats[0]), reference is not None)
        for swapped in _orders(style.orders, chats[0]):
            fields = pair_fields(chats[swapped], chats[not swapped], reference)
            asked.append((place, swapped, template, style.request(template, fields)))
    answers = answerer.ask([request for *_, request in asked], on_progress=on_progress)
    found: dict[int, Judgment] = {}
    for (place, swapped, template, request), answer in zip(asked, answers):
        verdict = _judgment(answerer, style, template, request, answer, swapped=swapped)
        found[place] = over_both_orders(found[place], verdict, style.rule) if place in found else verdict
    return [found[place] for place in range(len(prompts))]


def _orders(orders: Orders, chat: Dialogue) -> Iterator[bool]:
    """For each time that a pair is shown, whether the second reply comes first."""
    if orders == "both":
        yield from (False, True)
    elif orders == "alpaca_eval":
        yield alpaca_eval_swaps(transcript(chat[:-1]))
    else:
        yield False


def _turns(chat: Dialogue) -> int:
    return sum(message.role == "user" for message in chat)


def _judgment(
    answerer: Answerer, style: Style, template: Template, request: Request, answer: Answer, *, swapped: bool
) -> Judgment:
    """What an answer says. A preference that it gives to the reply shown first is turned to the first reply."""
    reading, reason = style.read(answer), answer.reason
    if answer.status == Status.REFUSED:
        reading = Reading(VerdictState.REFUSED)
    elif answer.status == Status.API_ERROR:
        reading = Reading(VerdictState.API_ERROR)
    elif answer.status == Status.OVER_BUDGET:
        reading = Reading(VerdictState.OVER_BUDGET)
    elif reading.state == VerdictState.UNPARSED:
        reason = _why_unread(style, answer)
    value, judge = reading.value, style.named(answerer)
    return Judgment(
        key=key_of(judge, style.repeat, template.digest, request.messages),
        judge=judge,
        state=reading.state,
        value=1 - value if swapped and value is not None else value,
        swapped=swapped,
        stated=reading.stated,
        said=answer.text,
        reason=reason,
        prompt=template.digest,
    )


def _why_unread(style: Style, answer: Answer) -> str:
    if style.top_logprobs is not None and answer.tokens is None:
        return "the server gave no log-probabilities"
    if style.top_logprobs is not None:
        return "neither of the two letters is among the likeliest tokens"
    if answer.status == Status.TRUNCATED:
        return f"no verdict after {style.max_tokens} tokens"
    return "no verdict in the judge's answer" if answer.text.strip() else "the judge's answer is empty"
