"""The page on which people code the gold sample: a small server over `gold.sqlite`, blind to every model.

What it sends comes from the texts and the codings; the design's strata, which are a model's labels, are never read for
a coder. Every request of the page carries the token that stands behind the `#` of the page's address, which browsers
send to nobody; a request under a name that is not this machine's is refused, so that no other site can borrow the
browser to ask.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import stat
import threading
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import uvicorn
from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from consilience.annotate.codebook import JOINT, Codebook, Label, Level
from consilience.annotate.coding.labels import disagreements, gold_labels, write_gold
from consilience.annotate.coding.project import open_gold
from consilience.annotate.coding.store import ADJUDICATOR, CODED, GOLD_TABLE, Coding, GoldStore
from consilience.annotate.coding.values import LONGEST, checked
from consilience.errors import DataError
from consilience.serve.guard import SILENT, Guard
from consilience.serve.server import bind

PAGE = Path(__file__).parent / "coding_page"
FILES = ("index.html", "coding.css", "coding.js")
LETTERS = "abcdfghijklmopqrstvwyz"  # of labels beyond the ninth; e, n, u and x do something else
LARGEST_BODY = 1 << 20
TOKEN = "gold.token"  # in a project's folder
TOKEN_BYTES = 16
BEGINNING = 200  # characters of a text in a coder's list
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Name(_Body):
    name: str = Field(max_length=200)


class _Code(_Body):
    coder: str
    item: str
    role: Literal["coder", "adjudicator"] = "coder"
    status: Literal["open", "coded", "unclear"]
    value: Any = ""
    note: str = Field("", max_length=LONGEST)
    continues: int | None = None


class _Undo(_Body):
    coder: str
    role: Literal["coder", "adjudicator"] = "coder"


def coding_app(project: Path, codebook: Codebook, *, token: str, hosts: Collection[str] = ()) -> FastAPI:
    """The page and its API for the gold sample of `project`.

    `hosts` are names under which it may be asked, beside this machine's own and addresses in numbers. Every call of
    the API takes `token`. Raises `DataError` where no sample was drawn.
    """
    table_lock, table_is_old = threading.Lock(), threading.Event()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, telemetry=SILENT)
    # Each call opens the store for itself; were none open in between, SQLite would tidy up after every one of them.
    app.state.kept_open = open_gold(project, codebook)

    def store() -> GoldStore:
        return open_gold(project, codebook)

    def refresh_table() -> None:
        """One writing of the table serves all codings that came in while the one before it was under way."""
        table_is_old.set()
        with table_lock:
            if table_is_old.is_set():
                table_is_old.clear()
                with store() as gold:
                    write_gold(gold, codebook, project / GOLD_TABLE)

    def check_token(authorization: Annotated[str, Header()] = "") -> None:
        if not hmac.compare_digest(authorization.encode(), f"Bearer {token}".encode()):
            raise HTTPException(401, "this address lacks the token; open the one that consilience gold code printed.")

    known = [Depends(check_token)]

    @app.middleware("http")
    async def limit(request: Request, go_on: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > LARGEST_BODY or "transfer-encoding" in request.headers:
            answer: Response = JSONResponse({"error": f"expected a body of at most {LARGEST_BODY} bytes."}, 413)
        else:
            answer = await go_on(request)
        answer.headers.update(HEADERS)
        return answer

    @app.exception_handler(DataError)
    def refuse(request: Request, error: DataError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.exception_handler(HTTPException)
    def refuse_http(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    @app.exception_handler(RequestValidationError)
    def refuse_body(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        return JSONResponse({"error": faults}, 422)

    @app.get("/api/start", dependencies=known)
    def start() -> dict[str, Any]:
        with store() as gold:
            coders = [{"name": name, **_progress(gold, name)} for name in gold.coders()]
            waiting = disagreements(gold_labels(gold, codebook))
            return {
                "codebook": codebook_json(codebook),
                "coders": coders,
                "to_adjudicate": sum(not label.adjudicated for label in waiting),
                "adjudicated": sum(label.adjudicated for label in waiting),
            }

    @app.post("/api/coders", dependencies=known)
    def add_coder(body: _Name) -> dict[str, str]:
        with store() as gold:
            return {"name": gold.add_coder(body.name)}

    @app.get("/api/coded", dependencies=known)
    def coded(coder: str) -> dict[str, list[str]]:
        with store() as gold:
            return {"items": gold.coded_by(coder)}

    @app.get("/api/own", dependencies=known)
    def own(coder: str) -> dict[str, list[dict[str, Any]]]:
        with store() as gold:
            return {"items": [_briefly(gold, item, coder, codebook) for item in gold.coded_by(coder)]}

    @app.get("/api/next", dependencies=known)
    def next_text(coder: str, skipping: str = "[]") -> dict[str, Any]:
        with store() as gold:
            item = gold.next_for(coder, _items(skipping))
            return {"item": None, **_progress(gold, coder)} if item is None else _text(gold, item, coder, codebook)

    @app.get("/api/text", dependencies=known)
    def one_text(coder: str, item: str) -> dict[str, Any]:
        with store() as gold:
            return _text(gold, item, coder, codebook)

    @app.post("/api/code", dependencies=known)
    def code(body: _Code, later: BackgroundTasks) -> dict[str, Any]:
        with store() as gold:
            text, _ = gold.text_of(body.item)
            value = checked(body.value, codebook, text) if body.status == CODED else ""
            number = gold.code(
                body.item,
                body.coder,
                status=body.status,
                value=value,
                note=body.note,
                codebook=codebook.digest,
                role=body.role,
                continues=body.continues,
            )
            later.add_task(refresh_table)
            return {"id": number, **_progress(gold, body.coder)}

    @app.post("/api/undo", dependencies=known)
    def undo(body: _Undo, later: BackgroundTasks) -> dict[str, Any]:
        with store() as gold:
            item = gold.undo(body.coder, body.role)
            later.add_task(refresh_table)
            return {"item": item, **_progress(gold, body.coder)}

    @app.get("/api/adjudicate", dependencies=known)
    def adjudicate(coder: str) -> dict[str, Any]:
        with store() as gold:
            decided = gold.codings()
            return {
                "items": [
                    {
                        "item": label.text.item,
                        "text": label.text.text,
                        "codings": [_said(coding, codebook) for coding in label.by_coder.values()],
                        "decisions": [
                            _said(coding, codebook)
                            for coding in decided[label.text.item]
                            if coding.role == ADJUDICATOR and coding.coder != coder
                        ],
                        "coding": _own(gold.coding_of(label.text.item, coder, ADJUDICATOR), codebook),
                    }
                    for label in disagreements(gold_labels(gold, codebook))
                ]
            }

    @app.get("/")
    @app.get("/{name}")
    def page(name: str = "index.html") -> FileResponse:
        if name not in FILES:
            raise HTTPException(404, "there is nothing of this name.")
        return FileResponse(PAGE / name)

    app.add_middleware(Guard, refuse=_refuse_stranger, hosts=hosts)
    return app


class CodingPage(NamedTuple):
    """A page that is ready to be served: `server.run(sockets=[socket])`; its addresses, with the token."""

    server: uvicorn.Server
    socket: socket.socket
    urls: list[str]


def coding_page(project: Path, codebook: Codebook, *, host: str = "127.0.0.1", port: int = 0) -> CodingPage:
    """The coding page of `project`, bound to `host` and `port` (0: any that is free) but not served yet.

    The token is kept beside the store, which colleagues are given, in a file that its owner alone may read: a page left
    open goes on after the server was stopped. Raises `ConfigError` where the port is taken or the host is not this
    machine's.
    """
    with open_gold(project, codebook) as store:
        write_gold(store, codebook, project / GOLD_TABLE)
    token = kept_token(project / TOKEN)
    bound = bind(host, port)
    app = coding_app(project, codebook, token=token, hosts=(host,))
    config = uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    urls = [f"http://{name}:{bound.getsockname()[1]}/#{token}" for name in _names(host)]
    return CodingPage(uvicorn.Server(config), bound, urls)


def kept_token(path: Path) -> str:
    """The token in the file at `path`, which is made at need; nobody but its owner may read it.

    Where it is another user's, who has a page of their own, there is a token for this once.
    """
    fresh = secrets.token_urlsafe(TOKEN_BYTES)
    with suppress(FileNotFoundError):
        try:
            token = path.read_text(encoding="ascii", errors="replace").strip()
            path.chmod(stat.S_IRUSR | stat.S_IWUSR)
        except PermissionError:
            return fresh
        if len(token) == len(fresh):
            return token
        path.unlink()
    with open(path, "x", encoding="ascii", opener=_for_its_owner) as file:
        file.write(fresh + "\n")
    return fresh


def _for_its_owner(path: str, flags: int) -> int:
    return os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR)


def codebook_json(codebook: Codebook) -> dict[str, Any]:
    """The codebook as the page shows it, every label with the key that chooses it."""
    keys = _keys(codebook.labels)
    return {
        "variable": codebook.variable,
        "question": codebook.question,
        "level": str(codebook.level),
        "unit": codebook.unit,
        "unclear": codebook.unclear,
        "range": codebook.range,
        "labels": [
            {
                "name": label.name,
                "key": key,
                "code": label.code,
                "definition": label.definition,
                "examples": [example.model_dump() for example in label.examples],
                "counter_examples": [example.model_dump() for example in label.counter_examples],
            }
            for label, key in zip(codebook.labels, keys)
        ],
    }


def _keys(labels: Collection[Label]) -> list[str]:
    """One key per label: its code where all are single digits, else 1 to 9 and letters; "" when those are used up."""
    codes = [str(label.code) for label in labels]
    if all(len(code) == 1 and code.isdigit() for code in codes):
        return codes
    ordered = [*"123456789", *LETTERS]
    return [ordered[place] if place < len(ordered) else "" for place in range(len(labels))]


def _text(gold: GoldStore, item: str, coder: str, codebook: Codebook) -> dict[str, Any]:
    text, place = gold.text_of(item)
    own = _own(gold.coding_of(item, coder), codebook)
    return {"item": item, "place": place + 1, "text": text, "coding": own, **_progress(gold, coder)}


def _briefly(gold: GoldStore, item: str, coder: str, codebook: Codebook) -> dict[str, Any]:
    """A text of a coder's list: how it begins, and what they made of it."""
    text, place = gold.text_of(item)
    own = _own(gold.coding_of(item, coder), codebook)
    return {"item": item, "place": place + 1, "beginning": text[:BEGINNING], "coding": own}


def _own(coding: Coding | None, codebook: Codebook) -> dict[str, Any] | None:
    if coding is None:
        return None
    return {"status": coding.status, "value": _value(coding, codebook), "note": coding.note}


def _said(coding: Coding, codebook: Codebook) -> dict[str, Any]:
    return {
        "coder": coding.coder,
        "status": coding.status,
        "value": _value(coding, codebook),
        "note": coding.note,
    }


def _value(coding: Coding, codebook: Codebook) -> Any:
    """A coding's value as the page handles it: a list for several labels or spans, else text."""
    if coding.status != CODED:
        return None
    if codebook.level is Level.MULTI_LABEL:
        return coding.value.split(JOINT) if coding.value else []
    return json.loads(coding.value) if codebook.level is Level.SPAN else coding.value


def _progress(gold: GoldStore, coder: str) -> dict[str, int]:
    progress = gold.progress(coder)
    return {"done": progress.done, "left": progress.left}


def _refuse_stranger(status: int, message: str, code: str) -> JSONResponse:
    return JSONResponse({"error": "the coding page answers under its own address only."}, status)


def _items(text: str) -> list[str]:
    try:
        items = json.loads(text)
    except json.JSONDecodeError:
        items = None
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise DataError("expected a JSON list of texts' identifiers.")
    return items


def _names(host: str) -> list[str]:
    """The names under which people reach the page: for the local network, this machine's address in it."""
    if host not in ("0.0.0.0", "::"):
        return [f"[{host}]" if ":" in host else host]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: asks which of our addresses would be used
            return ["127.0.0.1", probe.getsockname()[0]]
        except OSError:
            return ["127.0.0.1"]
