"""What a server said: text, status, log-probabilities, in whichever of the usual shapes it came."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

NOT_ASKED = "not asked: "  # how the reason of an answer begins that was not even asked for


class Status(StrEnum):
    """How a request ended. Compare, never test for truth."""

    OK = "ok"
    TRUNCATED = "truncated"  # the reply reached max_tokens; its text is there
    REFUSED = "refused"  # by the server's filter, or by the model in the field made for it
    API_ERROR = "api_error"  # no answer; `reason` says why
    OVER_BUDGET = "over_budget"  # not asked: it might have cost more than is left


class Token(NamedTuple):
    """A token of a reply, and the likeliest tokens in its place, descending; log-probabilities in nats."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """How one request ended. `tokens` is None where the server gave no log-probabilities.

    `raw` is the choice as the server sent it. Token counts are of the call, which may have asked for several samples.
    """

    status: Status
    text: str = ""
    reason: str = ""
    tokens: tuple[Token, ...] | None = None
    model: str = ""  # the name that the server gives itself
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached: bool = False
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)


class Malformed(ValueError):
    """A body that is no answer in a shape known here."""


def read_choice(
    choice: Any, *, model: str = "", usage: Mapping[str, Any] | None = None, cached: bool = False
) -> Answer:
    """One element of `choices`, of chat/completions or of completions. Raises `Malformed`."""
    if not isinstance(choice, Mapping) or not isinstance(choice.get("message", choice), Mapping):
        raise Malformed("a choice is no object")
    message = choice.get("message")
    content = message.get("content") if isinstance(message, Mapping) else choice.get("text")
    if isinstance(content, Sequence) and not isinstance(content, str):  # parts, as some servers send
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    if content is not None and not isinstance(content, str):
        raise Malformed(f"a reply is {type(content).__name__}, not text")
    if message is None and content is None:
        raise Malformed("a choice has neither a message nor a text")
    refusal = message.get("refusal") if isinstance(message, Mapping) else None
    finish = choice.get("finish_reason")
    status, reason = Status.OK, ""
    if refusal or finish == "content_filter":
        status, reason = Status.REFUSED, str(refusal or "content_filter")
    elif finish == "length":
        status = Status.TRUNCATED
    usage = usage or {}
    return Answer(
        status=status,
        text=content or "",
        reason=reason,
        tokens=read_logprobs(choice.get("logprobs")),
        model=model,
        prompt_tokens=usage.get("prompt_tokens"),
        completion_tokens=usage.get("completion_tokens"),
        cached=cached,
        raw=choice,
    )


def read_logprobs(logprobs: Any) -> tuple[Token, ...] | None:
    """A choice's `logprobs`: the chat shape (`content`), or that of completions (`tokens`, `token_logprobs`).

    A first token that was echoed has no log-probability: NaN. Raises `Malformed`.
    """
    if not logprobs:
        return None
    try:
        if "content" in logprobs:
            if logprobs["content"] is None:
                return None
            return tuple(
                Token(
                    entry["token"],
                    float(entry["logprob"]),
                    tuple((top["token"], float(top["logprob"])) for top in entry.get("top_logprobs") or ()),
                )
                for entry in logprobs["content"]
            )
        tops = logprobs.get("top_logprobs") or [None] * len(logprobs["tokens"])
        return tuple(
            Token(
                text,
                float("nan") if logprob is None else float(logprob),
                tuple(sorted(((word, float(value)) for word, value in (top or {}).items()), key=lambda pair: -pair[1])),
            )
            for text, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"log-probabilities in an unknown shape ({type(error).__name__}: {error})") from None
