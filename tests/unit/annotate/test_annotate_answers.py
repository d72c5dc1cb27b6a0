"""From replies to labels: what models really write is read, what is no answer is named and not guessed."""

from __future__ import annotations

from typing import Any

import pytest

from consilience.annotate.answers import Status, read_answer
from consilience.annotate.codebook import Codebook
from consilience.config import parse


def book(**changes: Any) -> Codebook:
    given = {"variable": "v", "question": "?", "labels": ["positive", "negative", "left", "left-wing"]}
    return parse(given | changes, Codebook, where="")


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("positive", "positive"),
        (" Positive.\n", "positive"),
        ("**Negative**", "negative"),
        ("Category: Positive", "positive"),  # what the primer's own vignette shows of models
        ('"left-wing"', "left-wing"),
        ("left", "left"),
        ("It is warm, and so\nAnswer: negative", "negative"),
        ("Let me think.\n\n**Answer: left-wing**", "left-wing"),
        ("positive or negative", Status.OUT_OF_SET),
        ("not positive", Status.OUT_OF_SET),
        ("The text is positive", Status.OUT_OF_SET),
        ("positiv", Status.OUT_OF_SET),
        ("", Status.EMPTY),
        (" \n", Status.EMPTY),
        ("I'm sorry, but I can't help with that.", Status.REFUSED),
        ("As an AI, I have no feelings.", Status.REFUSED),
    ],
)
def test_one_label(reply: str, found: Any) -> None:
    assert read_answer(reply, book(), format="answer") == found


def test_letters_follow_the_order_that_was_shown() -> None:
    assert read_answer("B", book(), format="letter", order=(3, 0, 1, 2)) == "positive"
    assert read_answer("(b).", book(), format="letter", order=(3, 0, 1, 2)) == "positive"
    assert read_answer("E", book(), format="letter") is Status.OUT_OF_SET
    assert read_answer("A or B", book(), format="letter") is Status.OUT_OF_SET


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ('{"label": "negative"}', "negative"),
        ('```json\n{"label": "Negative"}\n```', "negative"),
        ('{"label": "unknown"}', Status.OUT_OF_SET),
        ('{"label": ["negative"]}', Status.OUT_OF_SET),
        ("negative", Status.OUT_OF_SET),
        ('{"label": "negative"', Status.OUT_OF_SET),
    ],
)
def test_json(reply: str, found: Any) -> None:
    assert read_answer(reply, book(), format="json") == found


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ("left | positive", "positive|left"),
        ("(none)", ""),
        ("None.", ""),
        ("left|right", Status.OUT_OF_SET),
        ("war and peace", Status.OUT_OF_SET),
    ],
)
def test_many_labels(reply: str, found: Any) -> None:
    assert read_answer(reply, book(level="multi-label"), format="answer") == found


@pytest.mark.parametrize(
    ("reply", "found"), [("7", "7"), ("7.50", "7.5"), ("11", Status.OUT_OF_SET), ("seven", Status.OUT_OF_SET)]
)
def test_a_number_within_its_range(reply: str, found: Any) -> None:
    assert read_answer(reply, book(level="interval", labels=[], range=[0, 10]), format="answer") == found


def test_spans_are_quoted_word_for_word() -> None:
    spans = book(level="span", labels=["claim"])
    text = "They say it works. It does not."
    reply = '[{"label": "claim", "quote": "it works"}]'
    assert read_answer(reply, spans, format="json", text=text) == '[[9, 17, "claim"]]'
    assert read_answer(reply.replace("works", "worked"), spans, format="json", text=text) is Status.OUT_OF_SET
    assert read_answer("[]", spans, format="json", text=text) == "[]"
