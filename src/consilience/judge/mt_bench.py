"""MT-Bench: its questions, its reference answers, the temperatures that replies are drawn at, and what is judged.

80 questions of two turns in eight categories (Zheng et al. 2023, arXiv 2306.05685; FastChat's `llm_judge`). Each turn
is judged by itself: the first alone, the second with the whole conversation before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from consilience.errors import DataError
from consilience.records import Message, read_rows

# Of sampling a reply, by category; 0 is greedy.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
}
OTHER_TEMPERATURE = 0.7
MAX_NEW_TOKENS = 1024
WITH_REFERENCE = ("math", "reasoning", "coding")

# GPT-4's reference answers of 2023 that are wrong (FastChat, pull request 3158): questions, and `_digest` of the turns.
WRONG = {
    "104": "59ecf5b076de08f1",
    "105": "3b93a782710fd341",
    "109": "2967116c34f2a019",
    "111": "d4e82dabf93d7c42",
    "113": "de0579713c8eb68d",
    "114": "c6fc24d1277becae",
    "120": "d8bbec83a1bfbc1d",
    "122": "a1e0a19b34d89a06",
    "124": "80a5eb1f2f4f3014",
    "125": "9eed5fe4a5013c0b",
    "126": "d6102487d93c88e0",
    "128": "fdc0eda878b902d3",
    "130": "adb91d70708d80bf",
}


@dataclass(frozen=True, slots=True)
class Question:
    """A question of two turns."""

    id: str
    category: str
    turns: tuple[str, ...]

    @property
    def temperature(self) -> float:
        """At which a model's replies are drawn."""
        return TEMPERATURES.get(self.category, OTHER_TEMPERATURE)


class Item(NamedTuple):
    """A turn to be judged, as `Judge.scores` and `Judge.prefer` take it."""

    question: Question
    turn: int
    prompt: tuple[Message, ...]
    reply: tuple[Message, ...] | None
    reference: tuple[str, ...] | None


def read_questions(path: Path) -> list[Question]:
    """FastChat's `question.jsonl`, or a file like it. Raises `DataError` with file and line."""
    questions = []
    for where, row in read_rows(path):
        try:
            questions.append(Question(str(row["question_id"]), str(row["category"]), tuple(map(str, row["turns"]))))
        except (KeyError, TypeError) as error:
            raise DataError(f"{where}: expected 'question_id', 'category' and 'turns' ({error}).") from None
    return questions


def read_answers(path: Path) -> dict[str, tuple[str, ...]]:
    """Both turns' replies by question id: FastChat's model answers and reference answers; the first choice counts."""
    answers = {}
    for where, row in read_rows(path):
        try:
            answers[str(row["question_id"])] = tuple(map(str, row["choices"][0]["turns"]))
        except (KeyError, TypeError, IndexError) as error:
            raise DataError(f"{where}: expected 'question_id' and 'choices' with 'turns' ({error}).") from None
    return answers


def wrong_references(references: Mapping[str, Sequence[str]]) -> list[str]:
    """The questions whose reference is one that is known to be wrong; a report has to say so."""
    return sorted(id_ for id_, turns in references.items() if WRONG.get(id_) == _digest(turns))


def items(
    questions: Sequence[Question],
    replies: Mapping[str, Sequence[str | None]],
    references: Mapping[str, Sequence[str]],
) -> list[Item]:
    """Every turn of every question, with its reference answers where its category is judged with them.

    `replies` are a model's, by question id; one that is None, or not there, is missing, and so are the turns after it.
    Raises `DataError` where a reference that is needed is not there.
    """
    found = []
    for question in questions:
        reference: Sequence[str] | None = None
        if question.category in WITH_REFERENCE:
            reference = references.get(question.id)
            if reference is None or len(reference) < len(question.turns):
                raise DataError(f"question {question.id} is judged with a reference, and there is none.")
        given = [*replies.get(question.id, ()), *[None] * len(question.turns)]
        chat: tuple[Message, ...] = ()
        for turn, asked in enumerate(question.turns, start=1):
            chat += (Message("user", asked),)
            reply = given[turn - 1]
            so_far = None if reply is None or None in given[:turn] else (*chat[1:], Message("assistant", reply))
            found.append(
                Item(question, turn, chat[:1], so_far, tuple(reference[:turn]) if reference is not None else None)
            )
            chat += (Message("assistant", reply or ""),)
    return found


def _digest(turns: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(turns)).encode()).hexdigest()[:16]
