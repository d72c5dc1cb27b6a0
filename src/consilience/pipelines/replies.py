"""Implicit fusion: sources teach by replies of their own that a judge rated, not by their distributions.

After FuseChat-3.0 (arXiv 2503.04222): several replies of every source to every prompt, the best one of all is learnt by
fine-tuning; the best and the worst one of the same source are a pair for `consilience prefer`, WRPO (arXiv 2412.03187)
among its losses.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consilience.judge import Judge, refuse_when_gone
from consilience.models import Reply, ReplyStatus
from consilience.records import (
    Conversation,
    Judgment,
    Message,
    judgment_of,
    read_rows,
    row_of,
    row_of_judgment,
    write_jsonl,
)

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Rated:
    """A source's reply, and what the judge says of it; None where it was not shown to the judge."""

    source: str
    reply: Reply
    judgment: Judgment | None

    @property
    def rating(self) -> float | None:
        """On the judge's scale; None where there is none."""
        return self.judgment.value if self.judgment else None


def rate_source(
    judge: Judge, chats: Sequence[Conversation], replies: Sequence[Reply], path: Path, on_progress: OnProgress
) -> None:
    """A judgment for every reply that ended by itself, in order, at `path`. Raises what `refuse_when_gone` raises."""
    prompts = {chat.id: chat.prompt for chat in chats}
    shown = [reply for reply in replies if reply.status == ReplyStatus.OK]
    judgments = judge.rates()(
        [prompts[reply.id] for reply in shown], [reply.text for reply in shown], on_progress=on_progress
    )
    refuse_when_gone(judgments)
    write_jsonl(path, map(row_of_judgment, judgments))


def read_rated(source: str, replies: Sequence[Reply], path: Path) -> list[Rated]:
    """Every reply of a source with its judgment."""
    judgments = iter([judgment_of(row, where=where) for where, row in read_rows(path)])
    return [Rated(source, reply, next(judgments) if reply.status == ReplyStatus.OK else None) for reply in replies]


@dataclass(frozen=True, slots=True)
class Chosen:
    """What is learnt: the chats, the last reply of each the best-rated one; pairs; and where gold stayed, and why."""

    chats: Sequence[Conversation]
    pairs: Sequence[Mapping[str, Any]]
    teachers: Mapping[str, int]  # how many chats each source teaches
    kept_gold: Mapping[str, int]


def choose(
    chats: Sequence[Conversation], rated: Iterable[Rated], can_read: Callable[[Sequence[Message]], bool]
) -> Chosen:
    """The best-rated reply of all sources to every prompt; of equal ratings the first source's, the first sample's.

    Where no reply has a rating that the pivot can read (`can_read`, of a whole chat) the gold one stays, and is counted
    by what became of the replies; if the pivot cannot read that one either, the chat is left out and counted. The pair
    of a prompt is the best and the worst reply of the source that has the best one, where their ratings differ.
    """
    by_chat: dict[str, list[Rated]] = {chat.id: [] for chat in chats}
    for one in rated:
        by_chat[one.reply.id].append(one)
    learnt, pairs = [], []
    teachers: Counter[str] = Counter()
    kept_gold: Counter[str] = Counter()
    for chat in chats:
        usable = [one for one in by_chat[chat.id] if one.rating is not None and can_read(_answered(chat, one))]
        if not usable:
            became = "replies " + ", ".join(sorted({_became(one) for one in by_chat[chat.id]}))
            if can_read(chat.messages):
                learnt.append(chat)
                kept_gold[became] += 1
            else:
                kept_gold[f"{became}; gold not readable by the pivot and left out"] += 1
            continue
        best = max(usable, key=_rating)
        teachers[best.source] += 1
        learnt.append(replace(chat, messages=_answered(chat, best)))
        worst = min((one for one in usable if one.source == best.source), key=_rating)
        if _rating(worst) < _rating(best):
            pairs.append(_pair(chat, best, worst))
    return Chosen(learnt, pairs, teachers, kept_gold)


def write_chosen(chosen: Chosen, folder: Path) -> None:
    """`chats.jsonl` to be learnt, and `pairs.jsonl` for `consilience prefer`."""
    write_jsonl(folder / "chats.jsonl", (row_of(replace(chat, extra={})) for chat in chosen.chats))
    write_jsonl(folder / "pairs.jsonl", chosen.pairs)


def _answered(chat: Conversation, one: Rated) -> tuple[Message, ...]:
    return (*chat.prompt, Message("assistant", one.reply.text.strip()))


def _rating(one: Rated) -> float:
    assert one.rating is not None
    return one.rating


def _became(one: Rated) -> str:
    """In a word, why a reply cannot be learnt."""
    if one.judgment is None:
        return str(one.reply.status)
    return "not readable by the pivot" if one.rating is not None else str(one.judgment.state)


def _pair(chat: Conversation, best: Rated, worst: Rated) -> dict[str, Any]:
    return {
        "id": chat.id,
        "prompt": [{"role": message.role, "content": message.content} for message in chat.prompt],
        "chosen": best.reply.text.strip(),
        "rejected": worst.reply.text.strip(),
        "source": best.source,
        "ratings": [best.rating, worst.rating],
    }
