"""Fields that clients of vLLM's server send by default ask for nothing; with another value they are refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from consilience.serve.requests import ApiError, read_chat

# vLLM's own defaults (vllm/entrypoints/openai, ChatCompletionRequest), and a value that asks for something.
FIELDS: list[tuple[str, Any, Any]] = [
    ("use_beam_search", False, True),
    ("length_penalty", 1.0, 0.5),
    ("spaces_between_special_tokens", True, False),
    ("add_special_tokens", False, True),
    ("truncate_prompt_tokens", None, 5),
    ("prompt_logprobs", None, 1),
    ("bad_words", [], ["river"]),
    ("allowed_token_ids", None, [1]),
    ("structured_outputs", None, {"choice": ["a"]}),
    ("priority", 0, 1),
    ("stream_options", {"continuous_usage_stats": False}, {"continuous_usage_stats": True}),
]


def request(**changes: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "Hello"}], **changes}


@pytest.mark.parametrize(("name", "neutral", "asking"), FIELDS)
def test_a_default_of_vllm_is_accepted_and_a_wish_is_not(name: str, neutral: Any, asking: Any) -> None:
    read_chat(request(**{name: neutral}))
    with pytest.raises(ApiError) as refused:
        read_chat(request(**{name: asking}))
    assert refused.value.status == 400
    assert refused.value.body["error"]["param"].startswith(name)
