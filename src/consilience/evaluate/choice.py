"""Multiple choice by likelihood: the choice that a model would most likely continue the question with.

Two readings of "most likely", as in lm-evaluation-harness: by the log-likelihood of a choice's tokens (`acc`), and by
that over the bytes of its text (`acc_norm`), which does not favour short choices.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from consilience.errors import DataError
from consilience.evaluate.answers import OnProgress
from consilience.evaluate.logs import Metric, Score, Status
from consilience.evaluate.questions import Item, QuestionSettings, read_items
from consilience.records import Message

if TYPE_CHECKING:
    from consilience.models import Model

SHARE = Metric((0, 1))


class ChoiceSettings(QuestionSettings):
    """Questions with choices, one of them right. `{choices}` in the prompt's template is one lettered line each."""

    kind: Literal["choice"] = "choice"
    choices: str | tuple[str, ...] = "choices"  # the field with the list of choices, or the same ones for all rows
    answer: str = "answer"  # the field with the right one: its place from 0, its letter, or its text
    continue_with: Literal["text", "letter"] = "text"
    chat: bool = True  # as the reply of a chat; else prompt, delimiter and choice are one plain text
    delimiter: str = " "
    batch_tokens: int = 8192

    @property
    def needs_chat(self) -> bool:
        """Plain text needs no template, so a base model may be asked."""
        return self.chat


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """What a model gives the choices of an item: nats, and the bytes of each text; none where it was not asked."""

    item: str
    model: str
    nats: tuple[float, ...]
    bytes: tuple[int, ...]
    status: str  # "scored", "too long" for the model's positions, or why the template refuses it


@dataclass(frozen=True, slots=True)
class ChoiceTask:
    """Items, their choices and the place of the right one."""

    name: str
    settings: ChoiceSettings
    items: Sequence[Item]
    choices: Mapping[str, tuple[str, ...]]
    right: Mapping[str, int]
    metrics: Mapping[str, Metric]
    item_kind: str = "questions"

    def likelihoods(
        self, chat_model: Model, *, on_progress: OnProgress = lambda done, total: None
    ) -> list[Likelihoods]:
        """One per item, in order."""
        of_text: dict[tuple[str, int], tuple[NDArray[np.int32], NDArray[np.intp]]] = {}  # by item and choice
        unread: dict[str, str] = {}
        for item in self.items:
            try:
                read = [self._read(chat_model, item, choice) for choice in self.choices[item.id]]
            except DataError as error:
                unread[item.id] = str(error)
                continue
            longest = max(len(ids) for ids, _ in read)
            if chat_model.context(longest) < longest:
                unread[item.id] = "too long"
                continue
            of_text |= {(item.id, place): one for place, one in enumerate(read)}
        keys = [*of_text]
        nats: dict[tuple[str, int], float] = {}
        scored = chat_model.score(
            [ids for ids, _ in of_text.values()],
            [positions for _, positions in of_text.values()],
            batch_tokens=self.settings.batch_tokens,
            names=[item for item, _ in keys],
        )
        for done, (index, found) in enumerate(scored, start=1):
            nats[keys[index]] = float(found.gold_logprobs_N.sum(dtype=np.float64))
            on_progress(done, len(keys))
        return [
            Likelihoods(item.id, chat_model.name, (), (), unread[item.id])
            if item.id in unread
            else Likelihoods(
                item.id,
                chat_model.name,
                tuple(nats[item.id, place] for place in range(len(self.choices[item.id]))),
                tuple(len(choice.encode()) for choice in self.choices[item.id]),
                "scored",
            )
            for item in self.items
        ]

    def _read(self, chat_model: Model, item: Item, choice: str) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
        """Ids of question and choice, and the places of the choice's tokens."""
        from consilience.chat import render
        from consilience.chat.encode import Reader

        if self.settings.chat:
            read = render(chat_model.tokenizer, (*item.messages, Message("assistant", choice)))
            inside = read.reply_starts_T < len(choice.encode())  # what closes the reply says nothing of the choice
            positions = read.reply_positions
            return read.ids_T, positions[(inside & (read.reply_T == read.reply_T.max()))[positions]]
        question = "\n".join(message.content for message in item.messages)
        encoded = Reader(chat_model.tokenizer).encode(question + self.settings.delimiter + choice)
        positions = np.flatnonzero(encoded.ends_T > len(question.encode()))
        return encoded.ids_T, positions[positions > 0]

    def scores(self, found: Sequence[Likelihoods]) -> Iterator[Score]:
        """Whether the likeliest choice is the right one; of equally likely ones the first counts, as in numpy."""
        items = {item.id: item for item in self.items}
        for one in found:
            item = items[one.item]
            for metric in self.metrics:
                value, status = 0.0, Status.CUT_OFF if one.status == "too long" else Status.NOT_ASKED
                if one.nats:
                    over = one.bytes if metric == "acc_norm" else [1] * len(one.nats)
                    best = int(np.argmax(np.array(one.nats) / np.array(over)))
                    value, status = float(best == self.right[one.item]), Status.SCORED
                yield Score(one.model, metric, one.item, value, status, cluster=item.cluster, category=item.group)


def write_likelihoods(path: Path, found: Sequence[Likelihoods]) -> None:
    """One JSON line per item."""
    path.write_text("".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in found), encoding="utf-8")


def read_likelihoods(path: Path) -> list[Likelihoods]:
    """What `write_likelihoods` wrote."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return [Likelihoods(**{**row, "nats": tuple(row["nats"]), "bytes": tuple(row["bytes"])}) for row in rows]


def choice_task(name: str, settings: ChoiceSettings, file: Callable[[str], Path]) -> ChoiceTask:
    """The task called `name`. Raises `DataError` at a row without two choices, or without a right one among them."""
    lettered = settings.model_copy(
        update={"prompt": settings.prompt and settings.prompt.replace("{choices}", LETTERED)}
    )
    items, choices, right = [], {}, {}
    for item in read_items(file(settings.path), lettered):
        texts = item.row.get(settings.choices) if isinstance(settings.choices, str) else settings.choices
        if not isinstance(texts, Sequence) or isinstance(texts, str) or not 2 <= len(texts) <= 26:
            raise DataError(f"{item.where}: {settings.choices!r} is no list of 2 to 26 choices.")
        texts = [str(text) for text in texts]
        right[item.id] = _place(item.row.get(settings.answer), texts, item.where)
        lines = "\n".join(f"{letter}. {text}" for letter, text in zip(string.ascii_uppercase, texts))
        asked = tuple(replace(turn, content=turn.content.replace(LETTERED, lines)) for turn in item.messages)
        items.append(replace(item, messages=asked))
        written = string.ascii_uppercase[: len(texts)] if settings.continue_with == "letter" else texts
        choices[item.id] = tuple(written)
    metrics = ("acc",) if settings.continue_with == "letter" else ("acc", "acc_norm")
    return ChoiceTask(name, settings, items, choices, right, dict.fromkeys(metrics, SHARE))


LETTERED = "\ue000choices\ue000"  # stands where the lettered lines go: no field of a row may be read as a template


def _place(answer: Any, texts: Sequence[str], where: str) -> int:
    """The place of the right choice."""
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        return answer
    said = str(answer).strip()
    if said in texts:
        return texts.index(said)
    if len(said) == 1 and said.upper() in string.ascii_uppercase[: len(texts)]:
        return string.ascii_uppercase.index(said.upper())
    if said.isdigit() and int(said) < len(texts):
        return int(said)
    raise DataError(f"{where}: the answer {said[:40]!r} is none of the choices {', '.join(map(repr, texts))[:200]}.")
