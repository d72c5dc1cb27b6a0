"""One HTTP request to a server: what it says, or why there is no answer."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import httpx

from consilience.models.endpoint.answer import Answer, Malformed, read_choice
from consilience.models.endpoint.pace import retry_after_s
from consilience.models.endpoint.request import Request
from consilience.models.endpoint.settings import EndpointSettings
from consilience.records import printable

LONGEST_BODY = 1 << 26
LONGEST_REASON = 500
CONNECT_S = 10.0
TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
SECRET = 12  # characters: a shorter key is the "EMPTY" or "ollama" of a local server, and a word of its replies
HIDDEN = "[API key]"
JSON = {"Content-Type": "application/json"}


@dataclass(eq=False)
class Failed(Exception):
    """One attempt that brought no answer."""

    reason: str
    again: bool = False  # worth another attempt
    for_all: bool = False  # no other request can succeed either
    charged: bool = False  # the server may have written (and charged for) an answer that did not arrive
    refused: bool = False
    unreachable: bool = False  # nobody listens there
    wait_s: float | None = None


class Said(NamedTuple):
    """A body with status 200, read."""

    model: str
    answers: list[Answer]


class Server:
    """The connections to a server, and the key that it is asked with.

    Raises `ConfigError` when the key is missing. The key goes to `settings.url`, and is taken out of what comes back.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings, self._key = settings, settings.api_key()
        self._http = httpx.Client(
            base_url=settings.url,
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(settings.timeout_s, connect=min(CONNECT_S, settings.timeout_s)),
            limits=httpx.Limits(max_connections=settings.concurrency),
            follow_redirects=False,  # a redirect would carry prompts to a server that nobody named
            trust_env=not settings.is_loopback,  # the user's own proxy and certificates
        )

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def ask(self, request: Request, n: int) -> Said:
        """One HTTP request, from sending to the last byte. Raises `Failed`."""
        body = request.body(self.settings.model, n=n, max_tokens_field=self.settings.max_tokens_field)
        content, received = json.dumps(body).encode(), bytearray()
        until = time.monotonic() + self.settings.timeout_s
        try:
            with self._http.stream("POST", request.path, content=content, headers=JSON) as response:
                for chunk in response.iter_bytes():
                    received += chunk
                    if time.monotonic() > until:  # a server that sends a byte now and then never times out by itself
                        raise Failed(f"no whole answer within {self.settings.timeout_s:g} s", again=True, charged=True)
                    if len(received) > LONGEST_BODY:
                        raise Failed(f"the answer is longer than {LONGEST_BODY >> 20} MiB", charged=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            reason = f"{self.settings.url} cannot be reached ({error})"
            raise Failed(self.clean(reason), again=True, unreachable=True) from None
        except httpx.TimeoutException:
            raise Failed(f"no answer within {self.settings.timeout_s:g} s", again=True, charged=True) from None
        except httpx.HTTPError as error:
            reason = f"the connection broke ({type(error).__name__}: {error})"
            raise Failed(self.clean(reason), again=True, charged=True) from None
        text = bytes(received).decode(errors="replace")
        if self._key and len(self._key) >= SECRET:
            text = text.replace(self._key, HIDDEN)
        if response.status_code != 200:
            raise self._refusal(response, text)
        if text.lstrip().startswith("<"):
            raise Failed(f"the answer is a web page, and no JSON{self.settings.hint}", for_all=True)
        return _read_body(text)

    def _refusal(self, response: httpx.Response, text: str) -> Failed:
        """What a status other than 200 means."""
        code = response.status_code
        message, kind = _error_in(text)
        reason = self.clean(f"HTTP {code}: {message}")
        if response.is_redirect:
            return Failed(f"HTTP {code}: the server sends elsewhere. Give the URL itself.", for_all=True)
        if "content_filter" in kind:
            return Failed(reason, refused=True)
        if code in (404, 405):
            reason += f" (model {self.settings.model!r} at {self.settings.url}){self.settings.hint}"
        if code in (401, 402, 403, 404, 405) or "insufficient_quota" in kind:
            return Failed(reason, for_all=True)
        wait_s = retry_after_s(response.headers, time.time())
        if wait_s is not None and wait_s > self.settings.longest_wait_s:
            return Failed(f"{reason}; the server asks to wait for {wait_s:.0f} s", for_all=True)
        return Failed(reason, again=code in TRY_AGAIN, wait_s=wait_s)

    def clean(self, text: str) -> str:
        """One line that can be shown anywhere, without the key."""
        return printable(" ".join((text.replace(self._key, HIDDEN) if self._key else text).split()))


def _read_body(text: str) -> Said:
    """A body with status 200. Raises `Failed`: what was cut off or has another shape was charged all the same."""
    try:
        body = json.loads(text)
    except json.JSONDecodeError as error:
        raise Failed(f"the answer is not JSON, or was cut off ({error.msg})", again=True, charged=True) from None
    if not isinstance(body, Mapping):
        raise Failed("the answer is JSON, but no object", again=True, charged=True)
    if body.get("error") and not body.get("choices"):  # some gateways send errors with status 200
        raise Failed(printable(f"an error with status 200: {_error_in(text)[0]}"), again=True)
    choices, usage, model = body.get("choices"), body.get("usage"), str(body.get("model") or "")
    if not isinstance(choices, list) or not choices:
        raise Failed("the answer has no choices", again=True, charged=True)
    try:
        usage = usage if isinstance(usage, Mapping) else None
        return Said(model, [read_choice(choice, model=model, usage=usage) for choice in choices])
    except Malformed as error:
        raise Failed(f"the answer has an unknown shape: {error}", again=True, charged=True) from None


def _error_in(text: str) -> tuple[str, str]:
    """Message and kind of an error, in OpenAI's shape or FastAPI's; else the beginning of the body."""
    try:
        body = json.loads(text)
    except json.JSONDecodeError:
        body = {}
    error = (body.get("error") or body.get("detail") or body) if isinstance(body, Mapping) else body
    if isinstance(error, Mapping):
        kind = f"{error.get('code')} {error.get('type')}"
        return str(error.get("message") or text)[:LONGEST_REASON], kind
    return str(error or text)[:LONGEST_REASON], ""
