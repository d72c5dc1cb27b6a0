"""The HTTP server: OpenAI's paths over an `Engine`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from consilience import __version__
from consilience.serve.engine import SHUTTING_DOWN, Engine, QueueFull, Stopping
from consilience.serve.generate import Failure, Job, Piece
from consilience.serve.guard import SILENT, App, Guard, Receive, Scope, Send
from consilience.serve.jobs import Jobs, Served
from consilience.serve.metrics import Metrics
from consilience.serve.replies import Answer, event, written
from consilience.serve.requests import INVALID, NOT_FOUND, TOO_MANY, ApiError, read_json

RETRY_AFTER_S = 2
NOBODY_THERE = 499  # the client has gone; the status is for the log
DONE = b"data: [DONE]\n\n"
FAILURES: dict[Failure, tuple[int, str | None]] = {
    Failure.REFUSED: (400, None),
    Failure.TIMEOUT: (504, "timeout"),
    Failure.STOPPING: (503, "stopping"),
    Failure.BROKEN: (500, None),
}
OPEN_PATHS = ("/health", "/ping", "/version", "/metrics")
WRONG_PATH = {404: (NOT_FOUND, "unknown_url"), 405: (INVALID, "method_not_supported")}


def make_app(
    served: Served,
    engine: Engine,
    metrics: Metrics,
    *,
    key: str = "",
    hosts: Sequence[str] = (),
    origins: Sequence[str] = (),
) -> App:
    """The application: /v1/chat/completions, /v1/completions, /v1/models, /health, /ping, /version, /metrics."""
    # FastAPI's pages load scripts from elsewhere.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, telemetry=SILENT)
    jobs = Jobs(served)
    desk = _Desk(served, engine, jobs)

    @app.get("/health")
    @app.get("/ping")
    @app.post("/ping")
    async def health() -> Response:
        return Response(status_code=503 if engine.stopping or not engine.thread.is_alive() else 200)

    @app.get("/version")
    async def version() -> Response:
        return _json({"version": __version__})

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(*engine.load), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [_card(served)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        jobs.check_model(name)
        return _json(_card(served))

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        return await desk.answer(request, chat=True)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Any:
        return await desk.answer(request, chat=False)

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        metrics.refused()
        headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
        return _json(error.body, error.status, headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=NOBODY_THERE)

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def no_such_path(request: Request, error: HTTPException) -> Response:
        words = "no such path" if error.status_code == 404 else f"{request.method} is not allowed here"
        message = f"{words}: {request.url.path[:200]}"
        metrics.refused()
        type_, code = WRONG_PATH[error.status_code]
        body = ApiError(error.status_code, message, type_=type_, code=code).body
        return _json(body, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def our_bug(request: Request, error: Exception) -> Response:
        return _json(ApiError(500, "the server failed; its log says why.", type_="server_error").body, 500)

    def refuse(status: int, message: str, code: str) -> App:
        metrics.refused()
        headers = {"www-authenticate": "Bearer"} if status == 401 else {}
        return _json(ApiError(status, message, code=code).body, status, headers)

    return Guard(app, refuse=refuse, hosts=hosts, origins=origins, key=key, open_paths=OPEN_PATHS)


class _Desk:
    """Takes requests in, and answers them from the pieces that the engine delivers."""

    def __init__(self, served: Served, engine: Engine, jobs: Jobs) -> None:
        self.served, self.engine, self.jobs = served, engine, jobs
        self.reader = ThreadPoolExecutor(1, "tokenizer")

    async def answer(self, http: Request, *, chat: bool) -> Any:
        kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, f"the content type is {kind[:80]!r}; expected 'application/json'.")
        tree = read_json(await self._body(http))
        loop = asyncio.get_running_loop()
        request, jobs = await loop.run_in_executor(self.reader, partial(self.jobs.read, tree, chat=chat))
        answer = Answer(self.served.name, chat, self.jobs.spell, prompt_tokens=sum(len(job.prompt_ids) for job in jobs))
        pieces = _Pieces(self.engine, jobs)
        pieces.submit()
        if request.stream:
            return _Stream(pieces, answer, counts_usage=request.counts_usage)
        return await self._whole(http, pieces, answer)

    async def _body(self, http: Request) -> bytes:
        most = self.served.body_bytes
        body = bytearray()
        try:
            async with asyncio.timeout(self.served.body_timeout_s):
                async for part in http.stream():
                    body += part
                    if len(body) > most:
                        raise ApiError(413, f"the body is larger than {most} bytes.", code="body_too_large")
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self.served.body_timeout_s:g} s.") from None
        return bytes(body)

    async def _whole(self, http: Request, pieces: _Pieces, answer: Answer) -> Response:
        """Waits for all pieces or for the client to go away, whichever comes first."""
        gathering = asyncio.ensure_future(_gather(pieces))
        leaving = asyncio.ensure_future(_until_gone(http.receive))
        try:
            await asyncio.wait((gathering, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not gathering.done():
                return Response(status_code=NOBODY_THERE)
            return _json(answer.whole(pieces.choices, gathering.result()))
        finally:
            gathering.cancel()
            leaving.cancel()
            pieces.close()


class _Pieces:
    """The pieces of a request's jobs as they come, with the index of the choice they belong to."""

    def __init__(self, engine: Engine, jobs: Sequence[Job]) -> None:
        self.engine, self.jobs = engine, jobs
        self.choices = sum(job.choices for job in jobs)
        self.queue: asyncio.Queue[Piece] = asyncio.Queue()
        self.open = self.choices
        starts = accumulate((job.choices for job in jobs), initial=0)
        self.first_index = {job.id: start for job, start in zip(jobs, starts)}

    def submit(self) -> None:
        """Raises `ApiError` where the server takes on nothing more."""
        loop = asyncio.get_running_loop()

        def deliver(piece: Piece) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped, nobody listens
                loop.call_soon_threadsafe(self.queue.put_nowait, piece)

        try:
            for job in self.jobs:
                self.engine.submit(job, deliver)
        except QueueFull:
            self.close()
            message = "too many requests are waiting already; try again later."
            raise ApiError(429, message, type_=TOO_MANY, code="queue_full", retry_after_s=RETRY_AFTER_S) from None
        except Stopping:
            self.close()
            raise ApiError(
                503, SHUTTING_DOWN, type_="server_error", code="stopping", retry_after_s=RETRY_AFTER_S
            ) from None

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece]]:
        """Raises `ApiError` when a job is given up."""
        while self.open:
            piece = await self.queue.get()
            if piece.error:
                status, code = FAILURES[piece.failure]
                type_ = "server_error" if status >= 500 else INVALID
                raise ApiError(status, piece.error, type_=type_, code=code)
            self.open -= piece.finish is not None
            yield self.first_index[piece.job] + piece.choice, piece

    def close(self) -> None:
        """Calls off what is not finished."""
        if self.open:
            for job in self.jobs:
                self.engine.call_off(job.id)


class _Stream(Response):
    """Server-sent events. The work stops when the client goes away."""

    media_type = "text/event-stream"

    def __init__(self, pieces: _Pieces, answer: Answer, *, counts_usage: bool) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.pieces, self.answer, self.counts_usage = pieces, answer, counts_usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writing = asyncio.ensure_future(self._write(send))
        leaving = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait((writing, leaving), return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            writing.cancel()
            leaving.cancel()
            self.pieces.close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async for part in self._events():
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _events(self) -> AsyncIterator[bytes]:
        usage = {"usage": None} if self.counts_usage else {}
        for opening in self.answer.opening(self.pieces.choices):
            yield event(opening | usage)
        try:
            async for index, piece in self.pieces:
                chunk = self.answer.chunk(index, piece)
                if piece.text or piece.finish or piece.logprobs:
                    yield event(chunk | usage)
        except ApiError as error:  # the status has been sent: OpenAI's clients raise for an error in an event
            yield event(error.body)
            return
        if self.counts_usage:
            yield event(self.answer.last())
        yield DONE


async def _gather(pieces: _Pieces) -> list[tuple[int, Piece]]:
    return [indexed async for indexed in pieces]


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _card(served: Served) -> dict[str, Any]:
    card = {"id": served.name, "object": "model", "created": served.created, "owned_by": "consilience"}
    return card | {"max_model_len": served.context} | dict(served.about)


def _json(tree: dict[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(written(tree), status, dict(headers or {}), "application/json")
