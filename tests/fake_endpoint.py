"""An OpenAI-compatible server on loopback that behaves as badly as a test asks it to."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

Json = dict[str, Any]


class Reply(NamedTuple):
    """What the server does with one request."""

    body: Json | bytes = b""
    status: int = 200
    headers: Mapping[str, str] = {}
    delay_s: float = 0.0
    trickle_s: float = 0.0  # between one byte of the body and the next
    cut_at: int | None = None  # the body is declared whole, and ends here
    reset: bool = False  # the connection is reset instead of an answer


class Asked(NamedTuple):
    """A request as it arrived."""

    at: float
    path: str
    body: Json
    headers: Mapping[str, str]


class FakeServer(NamedTuple):
    """`asked` grows as requests arrive."""

    url: str
    asked: list[Asked]

    @property
    def contents(self) -> list[str]:
        """The last message of every request."""
        return [asked.body["messages"][-1]["content"] for asked in self.asked]


def choices(*texts: str, finish: str = "stop", usage: Json | None = None, **more: Any) -> Json:
    """The body of an answer with these replies."""
    listed = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": finish} | more
        for i, text in enumerate(texts)
    ]
    usage = usage or {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": listed, "usage": usage}


def echo(body: Json, nth: int) -> Reply:
    """Replies with the last message, n times."""
    return Reply(choices(*[f"echo {body['messages'][-1]['content']}"] * body.get("n", 1)))


@contextmanager
def fake_server(behave: Callable[[Json, int], Reply] = echo) -> Iterator[FakeServer]:
    """A server that answers the `nth` request (from 0) of its life with `behave(body, nth)`."""
    asked: list[Asked] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            body = json.loads(content)
            with lock:
                asked.append(Asked(time.monotonic(), self.path, body, dict(self.headers)))
                nth = len(asked) - 1
            reply = behave(body, nth)
            time.sleep(reply.delay_s)
            if reply.reset:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                self.rfile.close()
                self.connection.close()
                return
            sent = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
            try:
                self.send_response(reply.status)
                for name, value in ({"Content-Type": "application/json"} | dict(reply.headers)).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                if reply.trickle_s:
                    for i in range(len(sent)):
                        self.wfile.write(sent[i : i + 1])
                        self.wfile.flush()
                        time.sleep(reply.trickle_s)
                else:
                    self.wfile.write(sent[: reply.cut_at])
                self.close_connection = reply.cut_at is not None
            except OSError:  # the client went away
                self.close_connection = True

        def finish(self) -> None:
            with suppress(OSError, ValueError):  # a connection that was reset
                super().finish()

        def log_message(self, *_: object) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Clients of these tests are killed, and connections reset: nothing to print. Other errors are."""
            if not isinstance(sys.exception(), OSError):
                super().handle_error(request, client_address)

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield FakeServer(f"http://127.0.0.1:{server.server_address[1]}/v1", asked)
    finally:
        server.shutdown()
        server.server_close()
