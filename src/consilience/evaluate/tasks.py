"""Tasks whose answers can be checked: questions in, greedy replies out, each with a named outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated

from pydantic import Field

from consilience.chat import render_prompt
from consilience.config import Settings, known
from consilience.errors import DataError, pick
from consilience.evaluate.rules import MATCHES, Outcome
from consilience.models import Model, sample_greedily
from consilience.records import Message, messages_of, read_rows


class TaskSettings(Settings):
    """A file of questions and the rule that checks the replies."""

    path: str
    match: Annotated[str, known(lambda: MATCHES, "match rule")] = "exact"
    max_new_tokens: int = Field(64, ge=1)
    limit: int | None = Field(None, ge=1)


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


def read_questions(path: Path, *, match: str = "exact", limit: int | None = None) -> list[Question]:
    """Questions of a JSONL, JSON or Parquet file: `messages` or `prompt`, and `answer`; `id` and `group` if there.

    Raises `DataError` naming file and line when a row cannot be read, or has an answer that `match` could not find.
    """
    rule = pick(MATCHES, match, "match rule")
    questions: dict[str, Question] = {}
    for where, row in islice(read_rows(path), limit):
        if not isinstance(row, Mapping) or row.get("answer") is None or not (row.get("messages") or row.get("prompt")):
            raise DataError(f"{where}: expected an object with 'answer' and 'messages' (or 'prompt').")
        asked = messages_of(row, where=where) if row.get("messages") else (Message("user", str(row["prompt"])),)
        answer = str(row["answer"])
        if not answer.strip() or rule(answer, answer) is not Outcome.CORRECT:
            raise DataError(f"{where}: {answer!r} is no answer that 'match: {match}' can find in a reply.")
        id_ = str(len(questions) if row.get("id") is None else row["id"])
        if id_ in questions:
            raise DataError(f"{where}: a second question has the id {id_!r}; expected every id once.")
        questions[id_] = Question(id_, str(row.get("group") or ""), asked, answer)
    if not questions:
        raise DataError(f"{path} holds no questions. Expected one JSON object with 'messages' and 'answer' per line.")
    return [*questions.values()]


def answer_questions(
    chat_model: Model,
    questions: Sequence[Question],
    settings: TaskSettings,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """The model's greedy reply to every question, in order, checked by the task's rule."""
    rule = pick(MATCHES, settings.match, "match rule")
    prompts, asked = [], []
    answers: dict[int, Answer] = {}
    for index, question in enumerate(questions):
        try:
            prompts.append(render_prompt(chat_model.tokenizer, question.messages))
            asked.append(index)
        except DataError:
            answers[index] = Answer(question.id, question.group, "", question.answer, Outcome.NOT_ASKED)
    on_progress(len(answers), len(questions))
    replies = sample_greedily(chat_model, prompts, max_new_tokens=settings.max_new_tokens)
    for place, reply, cut_off in replies:
        index = asked[place]
        question = questions[index]
        outcome = rule(reply, question.answer)
        if cut_off and outcome is not Outcome.CORRECT:
            outcome = Outcome.CUT_OFF
        answers[index] = Answer(question.id, question.group, reply, question.answer, outcome)
        on_progress(len(answers), len(questions))
    return [answers[index] for index in range(len(questions))]
