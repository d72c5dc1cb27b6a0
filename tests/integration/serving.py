"""A server of a tiny model on a free port of loopback: in a thread of this process, or the real command."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from consilience.serve.app import make_app
from consilience.serve.server import Server, bind, run
from consilience.serve.start import Ready, ServeSettings, prepare

NAME = "tiny"


@dataclass
class Running:
    url: str  # of the server; OpenAI's paths are under /v1
    ready: Ready

    @property
    def load(self) -> tuple[int, int]:
        return self.ready.engine.load


@contextlib.contextmanager
def serving(
    model: Path, *, guard: dict[str, Any] | None = None, served: Any = None, **settings: Any
) -> Iterator[Running]:
    """`served` may change what clients see of the model before the server starts."""
    ready = prepare(ServeSettings(model=str(model), served_model_name=NAME, **settings))
    app = make_app(served(ready.served) if served else ready.served, ready.engine, ready.metrics, **(guard or {}))
    bound = bind("127.0.0.1", 0)
    server = Server(app, ready.engine, grace_s=1, access_log=False, log_config=None)
    up = threading.Event()
    thread = threading.Thread(target=run, args=(server, bound), kwargs={"on_ready": up.set})
    thread.start()
    try:
        assert up.wait(10)
        yield Running(f"http://127.0.0.1:{bound.getsockname()[1]}", ready)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@contextlib.contextmanager
def command(*words: object, env: dict[str, str] | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`consilience serve ... --port 0` in a process of its own, and its address; killed at the end if it still runs."""
    line = [sys.executable, "-m", "consilience.cli", "serve", *map(str, words), "--port", "0"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        assert process.stdout
        shown = []
        while not (shown and shown[-1].startswith(("listens", "{"))):
            shown.append(process.stdout.readline())
            assert shown[-1], (process.stderr and process.stderr.read(), shown)
        url = json.loads(shown[-1])["url"] if shown[-1].startswith("{") else shown[-1].split()[1]
        yield process, url.removesuffix("/v1")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


def until(happens: Any, seconds: float = 10.0) -> None:
    """Waits until `happens()`; fails when it does not."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def chat(**changes: Any) -> dict[str, Any]:
    """A request that a server of a tiny model answers quickly."""
    return {"model": NAME, "messages": [{"role": "user", "content": "Tell me line 1"}], "max_tokens": 8, **changes}


def post(url: str, path: str, body: Any, **options: Any) -> httpx.Response:
    return httpx.post(f"{url}/v1/{path}", json=body, timeout=30, **options)
