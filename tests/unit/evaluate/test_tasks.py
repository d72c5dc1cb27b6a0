"""Match rules by hand, and the readers of questions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consilience.errors import DataError
from consilience.evaluate import MATCHES, Outcome, Question, TaskSettings, answer_questions, read_questions
from consilience.models import load_model
from consilience.records import Message

CASES = [
    ("exact", "Paris", "paris", Outcome.CORRECT),
    ("exact", "  Paris. ", "Paris", Outcome.CORRECT),
    ("exact", "Paris, France", "Paris", Outcome.WRONG),
    ("exact", "", "Paris", Outcome.WRONG),
    ("contains", "It is Paris, I think", "Paris", Outcome.CORRECT),
    ("contains", "Parisian", "Paris", Outcome.WRONG),
    ("contains", "the answer is C++", "C++", Outcome.CORRECT),
    ("last_number", "3 + 4 = 7", "7", Outcome.CORRECT),
    ("last_number", "so 1,234.50 in all", "1234.5", Outcome.CORRECT),
    ("last_number", "7, no: 8", "7", Outcome.WRONG),
    ("last_number", "-3", "-3", Outcome.CORRECT),
    ("last_number", "I do not know", "7", Outcome.UNREADABLE),
    ("gsm8k_strict", "so 3.\n#### 1,450", "#### 1450", Outcome.CORRECT),
    ("gsm8k_strict", "1450", "#### 1450", Outcome.UNREADABLE),
    ("gsm8k_strict", "#### 12", "because 9.\n#### 1,450", Outcome.WRONG),
    ("gsm8k_flexible", "He pays $1,450.", "9 and 3.\n#### 1450", Outcome.CORRECT),
    ("gsm8k_flexible", "1450 or 7", "#### 1450", Outcome.WRONG),
    ("gsm8k_flexible", "18.00", "#### 18", Outcome.WRONG),
    ("gsm8k_flexible", "none", "#### 18", Outcome.UNREADABLE),
]


@pytest.mark.parametrize(("rule", "reply", "answer", "outcome"), CASES)
def test_rules_by_hand(rule: str, reply: str, answer: str, outcome: Outcome) -> None:
    assert MATCHES[rule](reply, answer) == outcome


@pytest.mark.parametrize("rule", MATCHES)
def test_an_answer_matches_itself(rule: str) -> None:
    assert MATCHES[rule]("#### 42", "#### 42") == Outcome.CORRECT


def test_questions_come_as_messages_or_as_prompts(tmp_path: Path) -> None:
    rows = [
        {"prompt": "2+2?", "answer": 4},
        {"id": "x", "group": "sums", "messages": [{"role": "user", "content": "3+3?"}], "answer": "6"},
    ]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_questions(path)
    assert (first.id, first.messages[0].content, first.answer) == ("0", "2+2?", "4")
    assert (second.id, second.group, second.messages[0].content) == ("x", "sums", "3+3?")
    assert len(read_questions(path, limit=1)) == 1


def test_a_question_without_an_answer_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c"}\n')
    with pytest.raises(DataError, match="line 2"):
        read_questions(path)


def test_a_question_that_the_template_refuses_is_named_and_keeps_its_place(world: Path) -> None:
    chat_model = load_model(world / "wren")
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    chat_model.tokenizer.chat_template = strict + chat_model.tokenizer.chat_template
    turns = ((Message("user", "a"),), (Message("system", "b"), Message("user", "b")), (Message("user", "c"),))
    questions = [Question(str(i), "", messages, "x") for i, messages in enumerate(turns)]
    answers = answer_questions(chat_model, questions, TaskSettings(path="", max_new_tokens=2))
    assert [answer.id for answer in answers] == ["0", "1", "2"]
    assert [answer.outcome == Outcome.NOT_ASKED for answer in answers] == [False, True, False]
