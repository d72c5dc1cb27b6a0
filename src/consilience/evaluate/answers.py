"""What a model replied to the prompts of a task, and everything that made the reply.

{"task", "item", "turn", "sample", "model", "prompt": [{"role", "content"}], "reply", "status", "tokens", "detail",
 "sampling"}                                                             one line of a file of records
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from consilience.errors import DataError
from consilience.models import Prompt, Reply, ReplyStatus, Sampler, Sampling
from consilience.models.replies import OnProgress, sample_to_disk
from consilience.records import Message, messages_of, read_rows


@dataclass(frozen=True, slots=True)
class Asked:
    """One prompt of a task: a turn of an item. `sample` is the number of the first reply to it."""

    item: str
    messages: tuple[Message, ...]
    sampling: Sampling
    turn: int = 1
    sample: int = 0

    def prompt(self, task: str) -> Prompt:
        """The prompt under an id that names its random numbers: no two of a run are called alike."""
        parts = [task, self.item, *([f"turn {self.turn}", str(self.sample)] if self.turn > 1 else [])]
        return Prompt("/".join(parts), self.messages)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A reply and everything that made it."""

    task: str
    item: str
    turn: int
    sample: int
    model: str
    messages: tuple[Message, ...]
    reply: str
    status: ReplyStatus
    tokens: int | None  # None: not stated
    detail: str
    sampling: str  # a hash of the settings it was drawn with

    def to_json(self) -> dict[str, Any]:
        """One line of a file of records."""
        prompt = [{"role": message.role, "content": message.content} for message in self.messages]
        names = ("task", "item", "turn", "sample", "model")
        how = {"reply": self.reply, "status": self.status.value, "tokens": self.tokens, "detail": self.detail}
        return {name: getattr(self, name) for name in names} | {"prompt": prompt} | how | {"sampling": self.sampling}


def read_records(path: Path) -> list[Record]:
    """The records of a file."""
    return [_record(row) for _, row in read_rows(path)]


def _record(row: Mapping[str, Any]) -> Record:
    plain = {key: value for key, value in row.items() if key != "prompt"}
    messages = tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"])
    return Record(**{**plain, "messages": messages, "status": ReplyStatus(row["status"])})


def ask(
    sampler: Sampler,
    model: str,
    task: str,
    asked: Sequence[Asked],
    folder: Path,
    *,
    on_progress: OnProgress = lambda done, total: None,
) -> list[Record]:
    """Every reply to every prompt, on disk in `folder` as they come: see `models.sample_to_disk`.

    Prompts with the same settings go together; settings in the order in which they first appear. Raises `DataError`
    where finished answers are to none of the prompts.
    """
    if isinstance(sampler, FinishedAnswers):
        sampler.refuse_others([one.prompt(task) for one in asked])
    alike: dict[Sampling, list[Asked]] = {}
    for one in asked:
        alike.setdefault(one.sampling, []).append(one)
    total = sum(one.sampling.samples for one in asked)
    records: list[Record] = []
    for sampling, same in alike.items():
        name, before = hash_of(sampling), len(records)
        replies = sample_to_disk(
            sampler,
            [one.prompt(task) for one in same],
            sampling,
            folder / name,
            on_progress=partial(_count, on_progress, before, total),
        )
        for place, reply in enumerate(replies):
            records.append(_record_of(model, task, same[place // sampling.samples], reply, name))
    return records


def _count(on_progress: OnProgress, before: int, total: int, done: int, _: int) -> None:
    on_progress(before + done, total)


def _record_of(model: str, task: str, asked: Asked, reply: Reply, sampling: str) -> Record:
    return Record(
        task=task,
        item=asked.item,
        turn=asked.turn,
        sample=asked.sample + reply.sample,
        model=model,
        messages=asked.messages,
        reply=reply.text,
        status=reply.status,
        tokens=reply.tokens,
        detail=reply.detail,
        sampling=sampling,
    )


def hash_of(sampling: Sampling) -> str:
    """A short name of the settings that replies were drawn with."""
    text = json.dumps(sampling.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


REPLY_FIELDS = ("reply", "output", "response", "answer", "completion")


class _Finished(NamedTuple):
    """A reply in a file, and what the file says of how it ended."""

    text: str
    status: str = ""
    detail: str = ""

    @property
    def how_it_ended(self) -> ReplyStatus:
        """Its status, where it has one of ours: a cut-off or failed reply must not pass for a finished or empty one."""
        if self.status in {*ReplyStatus}:
            return ReplyStatus(self.status)
        return ReplyStatus.OK if self.text.strip() else ReplyStatus.EMPTY


def _turns_of(prompt: Sequence[Any]) -> tuple[Message, ...]:
    """The turns of a chat; none where they are not texts alone."""
    try:
        return messages_of({"messages": prompt}, where="")
    except DataError:
        return ()


def _number(row: Mapping[str, Any], key: str, where: str, least: int) -> int:
    value = row.get(key)
    if value is None:
        return least
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise DataError(f"{where}: {key!r} is {value!r}; expected a whole number from {least}.")
    return value


class FinishedAnswers:
    """A `Sampler` whose replies are in a file: our records, FastChat's model answers, alpaca_eval's outputs, or rows
    with `id` or `prompt` and one of REPLY_FIELDS.

    A reply is found by the item's id, else by the prompt's turns, else by the text of its last turn; what the file has
    no reply to is missing. Raises `DataError` at a row that holds no reply.
    """

    def __init__(self, name: str, path: Path, task: str) -> None:
        self.name, self.path = name, path
        self._by_id: dict[str, dict[int, _Finished]] = defaultdict(dict)
        self._by_text: dict[str, dict[int, _Finished]] = defaultdict(dict)
        self._by_turns: dict[tuple[Message, ...], dict[int, _Finished]] = defaultdict(dict)
        for where, row in read_rows(path):
            if not isinstance(row, Mapping):
                raise DataError(f"{where}: got {type(row).__name__}, expected an object with a reply.")
            if row.get("task") in (None, task):
                self._keep(where, row, task)
        if not (self._by_id or self._by_turns or self._by_text):
            raise DataError(f"{path} holds no replies to the task {task!r}.")

    def _keep(self, where: str, row: Mapping[str, Any], task: str) -> None:
        if isinstance(row.get("choices"), Sequence) and "question_id" in row:  # FastChat
            for sample, choice in enumerate(row["choices"]):
                turns = choice.get("turns") if isinstance(choice, Mapping) else None
                if not isinstance(turns, list) or not all(isinstance(text, str) for text in turns):
                    raise DataError(f"{where}: choice {sample} has no 'turns', a list of texts, as FastChat's have.")
                for turn, text in enumerate(turns, start=1):
                    asked = Asked(str(row["question_id"]), (), Sampling(), turn, sample if turn > 1 else 0)
                    self._by_id[asked.prompt(task).id][sample if turn == 1 else 0] = _Finished(text)
            return
        text = next((row[key] for key in REPLY_FIELDS if isinstance(row.get(key), str)), None)
        if text is None:
            raise DataError(f"{where}: no reply; expected one of {', '.join(REPLY_FIELDS)} among {sorted(row)}.")
        finished = _Finished(text, str(row.get("status") or ""), str(row.get("detail") or ""))
        sample, turn = _number(row, "sample", where, 0), _number(row, "turn", where, 1)
        id_ = next((row[key] for key in ("item", "id", "key", "question_id") if row.get(key) is not None), None)
        if id_ is not None:
            asked = Asked(str(id_), (), Sampling(), turn, sample if turn > 1 else 0)
            self._by_id[asked.prompt(task).id][sample if turn == 1 else 0] = finished
        said = row.get("prompt", row.get("instruction"))
        if isinstance(said, Sequence) and not isinstance(said, str) and said:
            turns = _turns_of(said)
            self._by_turns[turns][sample] = finished
            # "And then?" may end any chat.
            said = turns[-1].content if turns and all(turn.role != "assistant" for turn in turns) else None
        if isinstance(said, str):
            self._by_text[said][sample] = finished

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Reply]:
        """The replies in the file; what it has none of is missing."""
        for prompt in prompts:
            texts = self._replies_to(prompt)
            for sample in range(sampling.samples):
                there = texts.get(sample)
                if there is None:
                    yield Reply(prompt.id, sample, "", ReplyStatus.MISSING, detail=f"not in {self.path.name}")
                else:
                    yield Reply(prompt.id, sample, there.text, there.how_it_ended, detail=there.detail)

    def refuse_others(self, prompts: Sequence[Prompt]) -> None:
        """Raises `DataError` where the file has a reply to none of `prompts`: it is another task's.

        Of all prompts that are asked: `sample` is given them in parts, and a file may well leave out a part.
        """
        if prompts and not any(map(self._replies_to, prompts)):
            known = [*self._by_id, *self._by_text][:3]
            raise DataError(
                f"{self.path} has no reply to any of {len(prompts)} prompts such as {prompts[0].id!r}; it has "
                f"{', '.join(repr(name[:60]) for name in known)}. Match them by id, or by the text of the prompt."
            )

    def _replies_to(self, prompt: Prompt) -> Mapping[int, _Finished]:
        """By sample."""
        found = self._by_id.get(prompt.id) or self._by_turns.get(prompt.messages)
        return found or self._by_text.get(prompt.messages[-1].content) or {}
