"""A thousand malformed requests: none is answered by a bug of ours, and the server goes on."""

from __future__ import annotations

import contextlib
import json
import logging
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import Running, chat, post, serving

REQUESTS = 1000
PATHS = ("/v1/chat/completions", "/v1/completions")
FIELDS = (
    "model messages prompt max_tokens max_completion_tokens temperature top_p top_k min_p n seed stop stream "
    "stream_options logprobs top_logprobs tools response_format stop_token_ids min_tokens ignore_eos width chunk "
    "continue_final_message logit_bias presence_penalty repetition_penalty successors user metadata echo best_of"
).split()
ODD: tuple[Callable[[random.Random], Any], ...] = (
    lambda luck: None,
    lambda luck: luck.choice([True, False]),
    lambda luck: luck.choice([0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**40, 1e308, 5e-324, -0.0]),
    lambda luck: luck.choice(
        ["", " ", "\0", "\ud83d", "🧑‍🚀" * 5, "x" * 10_000, "<|im_end|>", "{{ 7 * 7 }}", "\n\r\u2028"]
    ),
    lambda luck: [value(luck) for _ in range(luck.randrange(4))],
    lambda luck: {key(luck): value(luck) for _ in range(luck.randrange(4))},
    lambda luck: [{"role": value(luck), "content": value(luck)} for _ in range(luck.randrange(1, 4))],
    lambda luck: [{"role": "user", "content": [{"type": "text", "text": value(luck)}]}],
    lambda luck: [luck.randrange(-5, 500) for _ in range(luck.randrange(6))],
    lambda luck: [[luck.randrange(-5, 500)] for _ in range(luck.randrange(3))],
    lambda luck: {"include_usage": value(luck)},
)


def value(luck: random.Random) -> Any:
    return luck.choice(ODD if luck.random() < 0.7 else ODD[:4])(luck)


def key(luck: random.Random) -> str:
    return luck.choice([*FIELDS, "", "role", "content", "x" * 300, "\ud800", "__class__", "type", "a.b[0]"])


def tree(luck: random.Random, path: str) -> dict[str, Any]:
    """A good request with some of its fields made odd, and some more."""
    good = chat() if "chat" in path else {"model": "tiny", "prompt": "The river", "max_tokens": 2}
    for _ in range(luck.randrange(1, 4)):
        good[key(luck)] = value(luck)
    if luck.random() < 0.2:
        good.pop(luck.choice([*good]))
    return good


def body(luck: random.Random, path: str) -> bytes:
    text = json.dumps(tree(luck, path)).encode()
    kind = luck.randrange(8)
    if kind == 0:
        return luck.randbytes(luck.randrange(400))
    if kind == 1:
        return text[: luck.randrange(len(text))]
    if kind == 2:
        place = luck.randrange(len(text))
        return text[:place] + luck.randbytes(luck.randrange(1, 4)) + text[place + 1 :]
    if kind == 3:
        depth = luck.choice([10, 1000, 100_000])
        return b'{"messages":' + luck.choice([b"[", b'{"a":']) * depth
    if kind == 4:
        return luck.choice(
            [b"null", b"7", b'"x"', b"[]", b"{}", b"NaN", b"-Infinity", b"1e999", b"9" * 6000, b"\xef\xbb\xbf{}"]
        )
    return text


def raw(luck: random.Random, path: str) -> bytes:
    """What is hardly HTTP, as bytes of a connection."""
    sent = body(luck, path)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n".encode()
    return luck.choice(
        (
            luck.randbytes(300),
            b"\r\n\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            head + b"Content-Length: -5\r\n\r\n" + sent,
            head + b"Content-Length: abc\r\n\r\n" + sent,
            head + b"Content-Length: 99999\r\n\r\n" + sent,  # it never comes
            head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + sent,
            head + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
            head + b"Content-Length: %d\r\n\r\n" % len(sent) + sent[: len(sent) // 2],
            head.replace(b"POST", luck.choice([b"PUT", b"BREW", b"post", b"OPTIONS"])) + b"\r\n",
            head.replace(b"Host: localhost\r\n", b"") + b"\r\n",
        )
    )


@pytest.fixture(scope="module", params=["plain", "guided"])
def server(request: pytest.FixtureRequest, world: Path) -> Iterator[Running]:
    guide = (str(world / "wren"), str(world / "wren")) if request.param == "guided" else None
    with serving(world / "finch", max_model_len=256, guide=guide, width=2, successors=2) as running:
        yield running


def test_a_thousand_malformed_requests(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    luck = random.Random(20261127)
    statuses: Counter[int] = Counter()
    caplog.set_level(logging.WARNING)
    with httpx.Client(base_url=server.url, timeout=30) as client:
        for number in range(REQUESTS * 4 // 5):
            path = luck.choice(PATHS)
            kind = (
                "application/json"
                if luck.random() < 0.95
                else luck.choice(["", "text/plain", "multipart/form-data; x"])
            )
            content = body(luck, path)
            answer = client.post(path, content=content, headers={"content-type": kind})
            statuses[answer.status_code] += 1
            assert answer.status_code < 500, (number, path, content, answer.text)
            if answer.status_code >= 400:
                error = answer.json()["error"]
                assert error.keys() == {"message", "type", "param", "code"}, (number, content)
                assert error["message"]
                assert len(answer.content) < 2000
    for number in range(REQUESTS // 5):
        statuses[_sent(server.url, raw(luck, luck.choice(PATHS)), number)] += 1
    assert statuses[400] > REQUESTS // 3
    assert statuses[200] > REQUESTS // 100  # some are odd, and still mean something
    assert server.load == (0, 0)
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    assert post(server.url, "chat/completions", chat()).status_code == 200


def _sent(url: str, content: bytes, number: int) -> int:
    """The status of what is answered to some bytes; 0 where the connection ends without an answer."""
    host, port = url.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=10) as line:
        with contextlib.suppress(OSError):  # the server may hang up before it has read everything
            line.sendall(content)
            line.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while more := line.recv(65536):
                answer += more
    status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0
    assert status < 500, (number, content, answer)
    return status
