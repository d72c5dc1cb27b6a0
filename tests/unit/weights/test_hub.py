"""Models by their hub names, against a hub of a few lines on this machine: what a user reads when it goes wrong."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from consilience.errors import BackendError
from consilience.weights.hub import fetch

COMMIT = "c" * 40
FILES = {"config.json": b'{"model_type": "wren"}', "model.safetensors": bytes(range(256)) * 64}


class Hub(ThreadingHTTPServer):
    """The four requests that fetching a model makes. `breaks` are files whose connection breaks in the middle."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.breaks: set[str] = set()
        self.refuses: tuple[int, dict[str, str]] | None = None  # status and headers of every answer
        self.sent: list[str] = []  # files that went out whole


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if self.server.refuses:
            status, headers = self.server.refuses
            self._answer(b"{}", status, headers)
        elif path.startswith("/api/models/owner/wren/revision/"):
            self._answer(json.dumps({"id": "owner/wren", "sha": COMMIT, "siblings": []}).encode())
        elif path == f"/api/models/owner/wren/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in FILES.items()
            ]
            self._answer(json.dumps(entries).encode())
        else:
            name = path.removeprefix(f"/owner/wren/resolve/{COMMIT}/")
            self._file(name, FILES[name])

    def _file(self, name: str, content: bytes) -> None:
        if self.command == "GET" and name in self.server.breaks:
            if "Range" not in self.headers:  # what goes on with the rest gets nothing at all
                self._head(200, {"Content-Length": str(len(content))})
                self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        etag = hashlib.sha1(content).hexdigest()
        self._answer(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT})
        if self.command == "GET":
            self.server.sent.append(name)

    def _answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._head(status, {"Content-Length": str(len(content))} | (headers or {}))
        if self.command == "GET":
            self.wfile.write(content)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The hub that names are asked of, with an empty cache; nobody waits between two tries."""
    server = Hub()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hasty = SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None})
    for module in ("file_download", "utils._http"):
        monkeypatch.setattr(f"huggingface_hub.{module}.time", hasty)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def refused() -> Callable[..., str]:
    """`refused(name, revision)` is the line that a user reads."""

    def run(name: str = "owner/wren", revision: str = "") -> str:
        with pytest.raises(BackendError) as error:
            fetch(name, ["*.json", "*.safetensors"], revision)
        line = str(error.value)
        assert "\n" not in line
        return line

    return run


def test_a_download_that_breaks_off_goes_on_with_the_same_command(hub: Hub, refused: Callable[..., str]) -> None:
    hub.breaks = {"model.safetensors"}
    line = refused()
    assert line.startswith("the download of model 'owner/wren' broke off (")
    assert line.endswith("). Give the same command again: files that arrived whole are kept.")
    assert hub.sent == ["config.json"]
    hub.breaks = set()
    folder = fetch("owner/wren", ["*.json", "*.safetensors"])
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert sorted(hub.sent) == sorted(FILES)  # each once
    assert [*folder.parents[1].rglob("*.incomplete")] == []


def test_a_model_in_the_cache_needs_no_hub(hub: Hub) -> None:
    folder = fetch("owner/wren", ["*.json", "*.safetensors"])
    hub.refuses = 503, {}
    assert fetch("owner/wren", ["*.json", "*.safetensors"]) == folder


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (503, {}, "it is not reached"),
        (401, {"X-Error-Code": "RepoNotFound"}, "it has no model of that name, or keeps it private. Give another name"),
        (403, {"X-Error-Code": "GatedRepo"}, "its owner wants its terms accepted first. Accept them on its page"),
        (404, {"X-Error-Code": "RevisionNotFound"}, "it has no revision 'v9' of that model"),
    ],
    ids=["down", "private", "gated", "revision"],
)
def test_a_hub_that_refuses(
    hub: Hub, refused: Callable[..., str], status: int, headers: dict[str, str], expected: str
) -> None:
    hub.refuses = status, headers
    line = refused(revision="v9")
    assert line.startswith("model 'owner/wren@v9' is no local folder and cannot be fetched from the hub: ")
    assert expected in line


def test_a_hub_that_is_not_there(hub: Hub, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = "http://127.0.0.1:9"  # the port of a service that discards what it is sent: nobody listens
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    line = refused()
    assert "it is not reached (" in line
    assert line.endswith("where there is a network: files that arrived whole are kept.")
    assert not hub.sent


def test_offline_with_a_part_of_a_model(hub: Hub, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    hub.breaks = {"model.safetensors"}
    refused()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    line = refused()
    assert "HF_HUB_OFFLINE is set, and the hub's cache on this machine does not hold all of it. Give a local" in line


def test_what_is_no_name(hub: Hub, refused: Callable[..., str]) -> None:
    assert "that is no name of a model. Give a local folder, or a hub name" in refused("owner/wren wren")
    assert not hub.sent
