"""What a recipe says of a server: where it is, which model, how fast, and what it may cost."""

from __future__ import annotations

import os
import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from consilience.config import DECIDES, Settings
from consilience.errors import ConfigError

LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Price(Settings):
    """What the server charges for a million tokens, in a currency of the reader's choice."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class Budget(Settings):
    """The most that may be spent: of all that was ever paid into the same cache, so that a resumed run keeps to it."""

    money: float | None = Field(None, gt=0)
    tokens: int | None = Field(None, gt=0)


class EndpointSettings(Settings):
    """An OpenAI-compatible server. `url` is the base that `/chat/completions` is put behind."""

    url: str
    model: str = Field(min_length=1)
    api_key_env: str | None = None  # the name of an environment variable; the key itself stands in no file
    concurrency: int = Field(8, ge=1, le=512)
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1)
    timeout_s: float = Field(300, gt=0)  # from sending a request to the last byte of its answer
    retries: int = Field(6, ge=0)
    backoff_s: float = Field(1, gt=0)  # before the first retry; doubled each time
    longest_wait_s: float = Field(120, gt=0)  # of one back-off, and of what a server may ask for by Retry-After
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # OpenAI's newer models: the latter
    price: Price | None = None
    budget: Budget | None = None

    @field_validator("url")
    @classmethod
    def _base(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("expected the base of an HTTP API, such as http://localhost:8000/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("holds a password or a query; put a key into an environment variable, see api_key_env")
        return url.rstrip("/").removesuffix("/chat/completions").removesuffix("/completions")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):  # perhaps the key itself: do not repeat it
            raise ValueError("expected the name of an environment variable, such as OPENAI_API_KEY, and not a key")
        return name

    @model_validator(mode="after")
    def _money_needs_a_price(self) -> EndpointSettings:
        if self.budget and self.budget.money is not None and self.price is None:
            raise ValueError("a budget of money needs `price: {input: ..., output: ...}` per million tokens")
        return self

    @model_serializer(mode="wrap")
    def _to_json(self, whole: SerializerFunctionWrapHandler, info: SerializationInfo) -> dict[str, Any]:
        """Of what decides the answers only who gives them: a run goes on with another budget, pace, patience or key."""
        return {"url": self.url, "model": self.model} if info.context == DECIDES else whole(self)

    @property
    def name(self) -> str:
        """The model and where it is."""
        return f"{self.model} at {self.url}"

    @property
    def hint(self) -> str:
        """What the URL may lack: most servers have OpenAI's paths under /v1."""
        has_version = re.search(r"/v\d", urlsplit(self.url).path)
        return "" if has_version else f". The base of most servers ends in /v1: try {self.url}/v1"

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine."""
        return urlsplit(self.url).hostname in LOOPBACK

    def api_key(self) -> str | None:
        """The key from the environment. Raises `ConfigError` naming the variable when it is not set."""
        if self.api_key_env is None:
            return None
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ConfigError(
                f"the environment variable {self.api_key_env} is not set. It is to hold the API key of {self.url}."
            )
        return key
