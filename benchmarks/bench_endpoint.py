"""CPU seconds of asking a server a thousand times: our client, with and without a file of answers, and OpenAI's own.

python benchmarks/bench_endpoint.py [--requests 1000] [--json]: the server is a process of its own and is not counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from consilience.models.endpoint import Endpoint, EndpointSettings, Request
from consilience.records import Message

CONCURRENCY = 8
TOP = [{"token": token, "bytes": [77], "logprob": -0.5 - i} for i, token in enumerate("mMABC")]
BODY = json.dumps(
    {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": "length",
                "message": {"role": "assistant", "content": "m"},
                "logprobs": {"content": [TOP[0] | {"top_logprobs": TOP}]},
            }
        ],
        "usage": {"prompt_tokens": 900, "completion_tokens": 1, "total_tokens": 901},
    }
).encode()


class Handler(BaseHTTPRequestHandler):
    """Says the same to everyone."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}\r\n\r\n"
        self.wfile.write(head.encode() + BODY)

    def log_message(self, *_: object) -> None: ...


def serve(port: Any) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    port.send(server.server_address[1])
    server.serve_forever()


def prompts(count: int) -> list[str]:
    """3,600 characters each, as a judge's prompt with two replies."""
    return [f"{i} " + "which of these is better? " * 138 for i in range(count)]


def ours(url: str, texts: list[str], cache: Path | None) -> None:
    requests = [Request(messages=(Message("user", text),), max_tokens=1, top_logprobs=5) for text in texts]
    with Endpoint(EndpointSettings(url=url, model="m", concurrency=CONCURRENCY), cache=cache) as endpoint:
        answers = endpoint.ask(requests)
    assert all(answer.tokens for answer in answers)


def openai_s(url: str, texts: list[str]) -> None:
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="none")

    def ask(text: str) -> Any:
        messages: Any = [{"role": "user", "content": text}]
        return client.chat.completions.create(
            model="m", messages=messages, max_tokens=1, logprobs=True, top_logprobs=5
        ).choices[0]

    with ThreadPoolExecutor(CONCURRENCY) as pool:
        assert all(choice.logprobs for choice in pool.map(ask, texts))


def cpu_seconds(run: Callable[[], None]) -> float:
    begun = time.process_time()
    run()
    return time.process_time() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    ours_end, theirs_end = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs_end,), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{ours_end.recv()}/v1"
    texts = prompts(asked.requests)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answers.sqlite"
        ways: dict[str, Callable[[], None]] = {
            "openai": lambda: openai_s(url, texts),
            "ours, in memory": lambda: ours(url, texts, None),
            "ours, kept in a file": lambda: ours(url, texts, file),
            "ours, all there already": lambda: ours(url, texts, file),
        }
        openai_s(url, texts[:20])  # imports
        ours(url, texts[:20], None)
        found = {name: cpu_seconds(run) * 1000 / asked.requests for name, run in ways.items()}
    server.terminate()
    for name, seconds in found.items():
        print(f"{name:26s} {seconds:6.2f} CPU s per 1,000 requests   {seconds / found['openai']:5.2f} of openai's")
    if asked.json:
        print(json.dumps({"cpu_s_per_1000": found, "vs_openai": found["ours, kept in a file"] / found["openai"]}))


if __name__ == "__main__":
    sys.exit(main())
