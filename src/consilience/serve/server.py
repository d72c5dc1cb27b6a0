"""A socket, uvicorn on it, and an orderly end."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import uvicorn

from consilience.errors import ConfigError
from consilience.serve.engine import Engine
from consilience.serve.guard import App

log = logging.getLogger(__name__)
KEEP_ALIVE_S = 65
CLOSING_S = 5  # for what is given up to be told so
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet: a port that is taken shows before a model is loaded.

    Raises `ConfigError`.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except socket.gaierror:
        raise ConfigError(
            f"no host is called {host!r}. Use 127.0.0.1, 0.0.0.0 or an address of this machine."
        ) from None
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        reason = (
            "is taken by another program; choose another with --port" if taken else f"cannot be used: {error.strerror}"
        )
        raise ConfigError(f"port {port} of {host} {reason}.") from None
    bound.set_inheritable(True)
    return bound


class Server(uvicorn.Server):
    """Uvicorn, except that a signal to stop is an ordinary end, and that the engine hears of it at once."""

    def __init__(self, app: App, engine: Engine, *, grace_s: float, access_log: bool, log_config: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                access_log=access_log,
                log_config=log_config,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_S,
                timeout_graceful_shutdown=round(grace_s) + CLOSING_S,
            )
        )
        self.engine, self.grace_s = engine, grace_s
        self.is_impatient = False  # whoever stops it has said so twice

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A first signal lets requests in progress finish within the grace time, a second one ends them with an error,
        a third one waits for nothing."""
        self.force_exit, self.is_impatient = self.is_impatient, self.should_exit
        self.engine.wind_up(0 if self.should_exit else self.grace_s)
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Says what is waited for, and does so."""
        in_progress = sum(self.engine.load)
        if in_progress and self.grace_s:
            requests = "1 request" if in_progress == 1 else f"{in_progress} requests"
            log.info("stopping: %s may finish within %g s; Ctrl-C once more ends them", requests, self.grace_s)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def run(server: Server, bound: socket.socket, *, on_ready: Callable[[], None] = lambda: None) -> None:
    """Serves until a signal or `server.should_exit`; requests in progress may finish within the grace time."""
    server.engine.start()
    try:
        bound.listen(2048)
        on_ready()
        server.run(sockets=[bound])
    finally:
        server.engine.stop(waits=not server.force_exit)
        bound.close()
