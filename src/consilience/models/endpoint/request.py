"""One question to a model: what is sent, and the hash that its answer is kept under."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from consilience.records import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Asks for one reply to `messages` (chat), or for one continuation of `prompt` (text as it stands, no template).

    A setting that is None is the server's own. `sample` tells several replies to the same question apart.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None  # log-probabilities of the reply's tokens, and of so many likeliest in each place
    extra: Mapping[str, Any] = field(default_factory=dict)  # further fields of the body, such as response_format
    sample: int = 0

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.prompt is not None):
            raise ValueError("a request has either messages or a prompt")

    @property
    def path(self) -> str:
        """Of the two endpoints the one that is meant, below the server's base."""
        return "/chat/completions" if self.messages else "/completions"

    def body(self, model: str, *, n: int = 1, max_tokens_field: str = "max_tokens") -> dict[str, Any]:
        """The JSON that is sent for the samples from `sample` to `sample + n - 1`.

        With a seed every call has its own, `seed + sample`: one seed for all would give the same reply n times.
        """
        chat = bool(self.messages)
        wanted = {
            "messages": [{"role": m.role, "content": m.content} for m in self.messages] if chat else None,
            "prompt": self.prompt,
            max_tokens_field: self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "stop": list(self.stop) or None,
            "seed": None if self.seed is None else self.seed + self.sample,
            "logprobs": (True if chat else self.top_logprobs) if self.top_logprobs is not None else None,
            "top_logprobs": self.top_logprobs if chat else None,
            "n": n if n > 1 else None,
        }
        return {"model": model} | {key: value for key, value in wanted.items() if value is not None} | dict(self.extra)

    def key(self, url: str, model: str) -> str:
        """The hash of everything that decides the answer: server, model, question, sampling settings, sample."""
        asked = {"url": url, "path": self.path, "body": replace(self, sample=0).body(model), "sample": self.sample}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def prompt_bytes(self) -> int:
        """Bytes of what is asked: no tokenizer in use makes more tokens of a text than it has bytes."""
        texts = [m.content for m in self.messages] if self.messages else [self.prompt or ""]
        return sum(len(text.encode(errors="surrogatepass")) for text in texts)


def samples(request: Request, n: int) -> list[Request]:
    """`request` for `n` replies; neighbours in a list of requests go to the server as one call where it can do so."""
    return [replace(request, sample=request.sample + i) for i in range(n)]
