"""A judge is two functions: `scores` rates replies, `prefer` compares them. Either may be missing."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from consilience.errors import ConfigError, DataError
from consilience.judge.prompts import Dialogue
from consilience.models.endpoint.gone import Unanswered, refuse_gone_server
from consilience.records import Judgment, Message, VerdictState

Prompt = str | Sequence[Message]  # what comes before the reply; a text is one turn of the user
Reply = str | Sequence[Message]  # messages where the replies differ in more than the last turn
References = Sequence[Sequence[str] | None]  # correct answers to the user's turns, where a judge is shown them
OnProgress = Callable[[int, int], None]
# What `scores_of` and `prefer_of` make a judge of: references are as many as the prompts.
Rate = Callable[[Sequence[Prompt], Sequence[Reply], References, OnProgress], list[Judgment]]
Compare = Callable[[Sequence[Prompt], Sequence[Reply], Sequence[Reply], References, OnProgress], list[Judgment]]
SEEN = (VerdictState.OK, VerdictState.TIE)
IDENTICAL = "the replies are identical"


def no_progress(done: int, total: int) -> None: ...


class Scores(Protocol):
    """Rates `replies[i]` to `prompts[i]`: one judgment each, in order. A reply that is None is missing."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        replies: Sequence[Reply | None],
        *,
        references: References | None = None,
        on_progress: OnProgress = no_progress,
    ) -> list[Judgment]: ...


class Prefer(Protocol):
    """Compares `firsts[i]` with `seconds[i]`: one judgment each, in order; its value is 1 where the first is better."""

    def __call__(
        self,
        prompts: Sequence[Prompt],
        firsts: Sequence[Reply | None],
        seconds: Sequence[Reply | None],
        *,
        references: References | None = None,
        on_progress: OnProgress = no_progress,
    ) -> list[Judgment]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """Who scores or prefers."""

    name: str
    scores: Scores | None = None
    prefer: Prefer | None = None

    def rates(self) -> Scores:
        """`scores`. Raises `ConfigError` where this judge only compares."""
        if self.scores is None:
            raise ConfigError(f"the judge {self.name} compares replies and does not rate them. Take another judge.")
        return self.scores

    def compares(self) -> Prefer:
        """`prefer`. Raises `ConfigError` where this judge only rates."""
        if self.prefer is None:
            raise ConfigError(f"the judge {self.name} rates replies and does not compare them. Take another judge.")
        return self.prefer


def dialogue(prompt: Prompt, reply: Reply) -> Dialogue:
    """The whole chat, which ends with the reply."""
    before = (Message("user", prompt),) if isinstance(prompt, str) else tuple(prompt)
    after = (Message("assistant", reply),) if isinstance(reply, str) else tuple(reply)
    if not before or not after or after[-1].role != "assistant":
        raise DataError("a judge needs a prompt, and a reply that ends with the assistant's turn.")
    return before + after


def key_of(*parts: Any) -> str:
    """A hash of everything that decides a judgment."""
    return hashlib.sha256(json.dumps(parts, default=_plain).encode()).hexdigest()[:32]


def _plain(value: Any) -> Any:
    return [value.role, value.content] if isinstance(value, Message) else list(value)


def _same_length(*columns: Sequence[Any] | None) -> None:
    lengths = {len(column) for column in columns if column is not None}
    if len(lengths) > 1:
        raise DataError(f"prompts and replies must be as many as one another; got {sorted(lengths)}.")


def _missing(judge: str, *asked: Any) -> Judgment:
    return Judgment(key=key_of(judge, asked), judge=judge, state=VerdictState.MISSING, reason="there is no reply")


def _identical(judge: str, *asked: Any) -> Judgment:
    return Judgment(key=key_of(judge, asked), judge=judge, state=VerdictState.TIE, value=0.5, reason=IDENTICAL)


def refuse_when_gone(judgments: Sequence[Judgment]) -> None:
    """Raises `BackendError` where the judge's server is gone, or its budget spent: what would be made of the rest alone
    is not what was asked for. A few requests that failed are no such case: their judgments have a state.

    What was answered is in the cache, so that nothing is paid twice when the same command goes on.
    """
    asked = [one for one in judgments if one.state != VerdictState.MISSING and one.reason != IDENTICAL]
    if asked:
        refuse_gone_server(f"the judge {asked[0].judge}", [_unanswered(one) for one in asked])


def _unanswered(judgment: Judgment) -> Unanswered | None:
    if judgment.state not in (VerdictState.API_ERROR, VerdictState.OVER_BUDGET):
        return None
    return Unanswered(judgment.reason, judgment.state == VerdictState.OVER_BUDGET)


def turned(judgment: Judgment) -> Judgment:
    """A judgment of (second, first) as one of (first, second)."""
    value = None if judgment.value is None else 1 - judgment.value
    return replace(judgment, value=value, swapped=True)


def over_both_orders(
    shown_first: Judgment, shown_second: Judgment, rule: Literal["mean", "conservative"] = "mean"
) -> Judgment:
    """One verdict from both orders. Their mean; or by the conservative rule of MT-Bench, under which anything but
    twice the same winner is a tie. Without a verdict in one order there is none: the state is that order's.
    """
    orders = (shown_first, shown_second)
    unseen = next((one for one in orders if one.state not in SEEN), None)
    key = key_of([one.key for one in orders], rule)
    both = replace(shown_first, key=key, orders=orders, swapped=False, said="", stated=None, reason="", value=None)
    if unseen is not None:
        return replace(both, state=unseen.state, reason=unseen.reason)
    assert shown_first.value is not None
    assert shown_second.value is not None
    value = (shown_first.value + shown_second.value) / 2
    if rule == "conservative" and not (both.consistent and value != 0.5):
        value = 0.5
    return replace(both, state=VerdictState.TIE if value == 0.5 else VerdictState.OK, value=value)


def scores_of(judge: str, rate: Rate) -> Scores:
    """The `Scores` of a judge that rates the replies that are there."""

    def scores(
        prompts: Sequence[Prompt],
        replies: Sequence[Reply | None],
        *,
        references: References | None = None,
        on_progress: OnProgress = no_progress,
    ) -> list[Judgment]:
        _same_length(prompts, replies, references)
        found = {i: _missing(judge, prompts[i]) for i, reply in enumerate(replies) if reply is None}
        there = [i for i in range(len(prompts)) if i not in found]
        given = [reply for reply in replies if reply is not None]
        shown = [references[i] if references else None for i in there]
        found |= zip(there, rate([prompts[i] for i in there], given, shown, on_progress))
        return [found[i] for i in range(len(prompts))]

    return scores


def prefer_of(judge: str, compare: Compare) -> Prefer:
    """The `Prefer` of a judge that compares replies that are there and differ.

    Two that are the same are a tie that nobody is asked about, AlpacaEval's 1.5.
    """

    def prefer(
        prompts: Sequence[Prompt],
        firsts: Sequence[Reply | None],
        seconds: Sequence[Reply | None],
        *,
        references: References | None = None,
        on_progress: OnProgress = no_progress,
    ) -> list[Judgment]:
        _same_length(prompts, firsts, seconds, references)
        found: dict[int, Judgment] = {}
        asked: dict[int, tuple[Prompt, Reply, Reply]] = {}
        for i, (prompt, first, second) in enumerate(zip(prompts, firsts, seconds)):
            if first is None or second is None:
                found[i] = _missing(judge, prompt, first, second)
            elif dialogue(prompt, first) == dialogue(prompt, second):
                found[i] = _identical(judge, prompt, first)
            else:
                asked[i] = prompt, first, second
        columns = [[row[column] for row in asked.values()] for column in range(3)]
        shown = [references[i] if references else None for i in asked]
        found |= zip(asked, compare(columns[0], columns[1], columns[2], shown, on_progress))
        return [found[i] for i in range(len(prompts))]

    return prefer


def prefer_by_scores(judge: str, scores: Scores, *, bradley_terry: bool) -> Prefer:
    """Compares by scores. Those of a reward model are Bradley-Terry's: the preference is a probability,
    sigmoid(first - second). Of ratings the higher one is better, and equal ones are a tie.
    """

    def compare(
        prompts: Sequence[Prompt],
        firsts: Sequence[Reply],
        seconds: Sequence[Reply],
        references: References,
        on_progress: OnProgress,
    ) -> list[Judgment]:
        twice = [*references, *references]
        rated = scores([*prompts, *prompts], [*firsts, *seconds], references=twice, on_progress=on_progress)
        pairs = zip(rated[: len(prompts)], rated[len(prompts) :])
        return [_by_scores(judge, first, second, bradley_terry) for first, second in pairs]

    return prefer_of(judge, compare)


def _by_scores(name: str, first: Judgment, second: Judgment, bradley_terry: bool) -> Judgment:
    key = key_of(name, "by scores", first.key, second.key)
    unseen = next((one for one in (first, second) if one.state not in SEEN), None)
    if unseen is not None:
        return replace(unseen, key=key)
    assert first.value is not None
    assert second.value is not None
    difference = first.value - second.value
    value = sigmoid(difference) if bradley_terry else 0.5 + 0.5 * ((difference > 0) - (difference < 0))
    state = VerdictState.TIE if value == 0.5 else VerdictState.OK
    return Judgment(key=key, judge=name, state=state, value=value, prompt=first.prompt)


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), where exp cannot overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
