"""Who may talk to a server: the decision table of hosts, origins and keys, without a server."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from consilience.serve.guard import App, Guard, is_loopback


def status_of(headers: dict[str, str], *, path: str = "/v1/models", method: str = "GET", **settings: Any) -> int:
    """The status that a request is answered with; 200 where it reaches the application."""
    sent: list[dict[str, Any]] = []

    def answering(status: int) -> App:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": status, "headers": []})

        return app

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> None: ...

    guard = Guard(answering(200), refuse=lambda status, message, code: answering(status), **settings)
    scope = {
        "type": "http", "method": method, "path": path,
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in headers.items()],
    }  # fmt: skip
    asyncio.run(guard(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("host", "settings", "status"),
    [
        ("localhost:8000", {}, 200),
        ("LOCALHOST", {}, 200),
        ("127.0.0.1", {}, 200),
        ("192.168.1.7:8000", {}, 200),  # an address cannot be pointed elsewhere
        ("[::1]:8000", {}, 200),
        (socket.gethostname(), {}, 200),
        ("evil.example", {}, 403),
        ("127.0.0.1.evil.example", {}, 403),
        ("localhost.evil.example:8000", {}, 403),
        ("", {}, 403),
        ("[::1].evil.example", {}, 403),
        ("models.lan", {"hosts": ["models.lan"]}, 200),
        ("anything", {"hosts": ["*"]}, 200),
        ("anything", {"key": "k"}, 401),  # with a key the name is no matter, the key is
    ],
)
def test_hosts(host: str, settings: dict[str, Any], status: int) -> None:
    assert status_of({"host": host}, **settings) == status


@pytest.mark.parametrize(
    ("origin", "settings", "status"),
    [
        ("http://localhost:8000", {}, 200),  # its own pages
        ("http://localhost:3000", {}, 403),
        ("https://evil.example", {}, 403),
        ("null", {}, 403),  # a page in a sandbox, or a file
        ("", {}, 403),
        ("https://app.example", {"origins": ["https://app.example/"]}, 200),
        ("http://app.example", {"origins": ["https://app.example"]}, 403),
        ("https://any.example", {"origins": ["*"]}, 200),
    ],
)
def test_origins(origin: str, settings: dict[str, Any], status: int) -> None:
    assert status_of({"host": "localhost:8000", "origin": origin}, **settings) == status


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("Bearer secret", 200),
        ("bearer secret ", 200),
        ("Bearer secret2", 401),
        ("Bearer ", 401),
        ("Basic secret", 401),
        ("secret", 401),
        ("Bearer s\xe9cret", 401),
    ],
)
def test_keys(given: str, status: int) -> None:
    assert status_of({"host": "x", "authorization": given}, key="secret") == status
    assert status_of({"host": "x"}, key="secret") == 401
    assert status_of({"host": "x"}, key="secret", path="/health", open_paths=["/health"]) == 200


def test_a_browser_s_question_needs_no_key_but_a_known_page() -> None:
    asks = {"host": "localhost", "access-control-request-method": "POST"}
    settings: dict[str, Any] = {"key": "secret", "origins": ["https://app.example"], "method": "OPTIONS"}
    assert status_of(asks | {"origin": "https://app.example"}, **settings) == 204
    assert status_of(asks | {"origin": "https://evil.example"}, **settings) == 403


def test_loopback() -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [False] * 4
