"""Shapes in which servers answer, read by hand-made examples of each."""

from __future__ import annotations

import math
from typing import Any

import pytest

from consilience.models.endpoint.answer import Malformed, Status, Token, read_choice, read_logprobs

CHAT = {"index": 0, "message": {"role": "assistant", "content": "m"}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    ("choice", "status", "text"),
    [
        (CHAT, Status.OK, "m"),
        (CHAT | {"finish_reason": "length"}, Status.TRUNCATED, "m"),
        (CHAT | {"finish_reason": "content_filter"}, Status.REFUSED, "m"),
        (CHAT | {"message": {"content": None, "refusal": "I will not."}}, Status.REFUSED, ""),
        (CHAT | {"message": {"content": None}}, Status.OK, ""),
        (CHAT | {"message": {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}}, "ok", "ab"),
        ({"index": 0, "text": " four", "finish_reason": "length"}, Status.TRUNCATED, " four"),
    ],
)
def test_text_and_status(choice: dict[str, Any], status: Status, text: str) -> None:
    answer = read_choice(choice, model="m", usage={"prompt_tokens": 3, "completion_tokens": 1})
    assert (answer.status, answer.text, answer.prompt_tokens, answer.completion_tokens) == (status, text, 3, 1)
    assert answer.raw == choice


@pytest.mark.parametrize("choice", [None, "m", {}, {"message": "m"}, {"message": {"content": 4}}, {"text": {}}])
def test_what_is_no_answer_is_said_to_be_none(choice: Any) -> None:
    with pytest.raises(Malformed):
        read_choice(choice)


def test_log_probabilities_of_chat() -> None:
    top = [{"token": "M", "bytes": [77], "logprob": -0.1}, {"token": "m", "bytes": [109], "logprob": -2.4}]
    logprobs = {"content": [{"token": "M", "bytes": [77], "logprob": -0.1, "top_logprobs": top}], "refusal": None}
    assert read_logprobs(logprobs) == (Token("M", -0.1, (("M", -0.1), ("m", -2.4))),)


def test_log_probabilities_of_completions() -> None:
    logprobs = {
        "tokens": ["The", " cat"],
        "token_logprobs": [None, -0.5],
        "top_logprobs": [None, {" dog": -1.5, " cat": -0.5}],
        "text_offset": [0, 3],
    }
    echoed, cat = read_logprobs(logprobs) or ()
    assert echoed.text == "The"
    assert math.isnan(echoed.logprob)
    assert cat == Token(" cat", -0.5, ((" cat", -0.5), (" dog", -1.5)))


@pytest.mark.parametrize("nothing", [None, {}, {"content": None}])
def test_no_log_probabilities(nothing: Any) -> None:
    assert read_logprobs(nothing) is None


@pytest.mark.parametrize(
    "other", [{"content": [{"token": "a"}]}, {"tokens": ["a"], "token_logprobs": []}, {"logits": []}, [1]]
)
def test_log_probabilities_in_an_unknown_shape(other: Any) -> None:
    with pytest.raises(Malformed):
        read_logprobs(other)
