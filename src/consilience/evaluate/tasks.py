"""Tasks whose answers can be checked: questions in, greedy replies out, each with a named outcome."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import Field, field_validator

from consilience.chat import render_prompt
from consilience.config import Settings
from consilience.errors import DataError, pick
from consilience.models import ChatModel, sample_greedily
from consilience.records import Message, read_rows


class Outcome(StrEnum):
    """What became of one question. Compare, never test for truth."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNREADABLE = "unreadable"  # no answer of the expected kind in the reply
    CUT_OFF = "cut off"  # the reply did not end within max_new_tokens, and what there is is not correct


Matching = Callable[[str, str], Outcome]


class TaskSettings(Settings):
    """A file of questions and the rule that checks the replies."""

    path: str
    match: str = "exact"
    max_new_tokens: int = Field(64, ge=1)
    limit: int | None = Field(None, ge=1)

    @field_validator("match")
    @classmethod
    def _known(cls, name: str) -> str:
        pick(MATCHES, name, "match rule")
        return name


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked (a chat that ends with the user's turn) and the answer that is right."""

    id: str
    group: str
    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's reply to a question, and its outcome."""

    id: str
    group: str
    reply: str
    answer: str
    outcome: Outcome


def read_questions(path: Path, *, limit: int | None = None) -> list[Question]:
    """Questions of a JSONL, JSON or Parquet file: `messages` or `prompt`, and `answer`; `id` and `group` if there."""
    questions: list[Question] = []
    for where, row in read_rows(path):
        if limit is not None and len(questions) == limit:
            break
        if not isinstance(row, Mapping) or "answer" not in row or not ("messages" in row or "prompt" in row):
            raise DataError(f"{where}: expected an object with 'answer' and 'messages' (or 'prompt').")
        turns = row.get("messages") or [{"role": "user", "content": str(row["prompt"])}]
        messages = tuple(Message(str(turn["role"]), str(turn["content"])) for turn in turns)
        identity, group = str(row.get("id", len(questions))), str(row.get("group") or "")
        questions.append(Question(identity, group, messages, str(row["answer"])))
    if not questions:
        raise DataError(f"{path} holds no questions. Expected one JSON object with 'messages' and 'answer' per line.")
    return questions


def exact(reply: str, answer: str) -> Outcome:
    """The reply is the answer, but for blanks at its ends, capitals and a final full stop."""
    return Outcome.CORRECT if _plain(reply) == _plain(answer) else Outcome.WRONG


def contains(reply: str, answer: str) -> Outcome:
    """The answer stands in the reply as whole words."""
    found = re.search(rf"(?<!\w){re.escape(_plain(answer))}(?!\w)", _plain(reply))
    return Outcome.CORRECT if found else Outcome.WRONG


def last_number(reply: str, answer: str) -> Outcome:
    """The last number of the reply equals the answer (as GSM8K is scored); thousands commas are dropped."""
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", reply)
    if not numbers:
        return Outcome.UNREADABLE
    right = float(numbers[-1].replace(",", "")) == float(answer.replace(",", ""))
    return Outcome.CORRECT if right else Outcome.WRONG


def _plain(text: str) -> str:
    return " ".join(text.split()).removesuffix(".").lower()


MATCHES: dict[str, Matching] = {"exact": exact, "contains": contains, "last_number": last_number}


def answer_questions(
    chat_model: ChatModel,
    questions: Sequence[Question],
    settings: TaskSettings,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """The model's greedy reply to every question, in order, checked by the task's rule."""
    rule = pick(MATCHES, settings.match, "match rule")
    prompts = [render_prompt(chat_model.tokenizer, question.messages) for question in questions]
    answers: dict[int, Answer] = {}
    replies = sample_greedily(chat_model, prompts, max_new_tokens=settings.max_new_tokens)
    for index, reply, cut_off in replies:
        question = questions[index]
        outcome = rule(reply, question.answer)
        if cut_off and outcome is not Outcome.CORRECT:
            outcome = Outcome.CUT_OFF
        answers[index] = Answer(question.id, question.group, reply, question.answer, outcome)
        on_progress(len(answers), len(questions))
    return [answers[index] for index in range(len(questions))]
