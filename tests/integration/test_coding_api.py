"""The coding page's server: blind, only with the token, only under its own name, and strict about what it is sent."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from gold_project import design_words, make_project, plan_words

from consilience.annotate.codebook import read_codebook
from consilience.serve.coding import codebook_json, coding_app, coding_page, kept_token

TOKEN = "the-token"


@pytest.fixture
def project(consilience: Callable[..., Any], tmp_path: Path) -> Path:
    project = make_project(tmp_path / "project")
    assert consilience(*plan_words(project, "--n", 12, "--double", 1)).code == 0
    return project


@pytest.fixture
def client(project: Path) -> Iterator[TestClient]:
    app = coding_app(project, read_codebook(project / "codebook.yaml"), token=TOKEN)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        client.headers["authorization"] = f"Bearer {TOKEN}"
        yield client


def add(client: TestClient, *names: str) -> None:
    for name in names:
        assert client.post("/api/coders", json={"name": name}).json() == {"name": name}


def code(client: TestClient, coder: str, item: str, value: Any, **more: Any) -> Any:
    return client.post("/api/code", json={"coder": coder, "item": item, "status": "coded", "value": value} | more)


def test_nothing_of_the_design_is_ever_sent(client: TestClient, project: Path) -> None:
    add(client, "anna", "ben")
    answers = [client.get("/").text, client.get("/coding.js").text, client.get("/api/start").text]
    for coder, value in (("anna", "glad"), ("ben", "sad")):
        for _ in range(12):
            answers.append(client.get("/api/next", params={"coder": coder}).text)
            item = json.loads(answers[-1])["item"]
            answers.append(code(client, coder, item, value).text)
            answers.append(client.get("/api/text", params={"coder": coder, "item": item}).text)
            if coder == "ben":
                assert "glad" not in answers[-1]  # nor what another coder said
        answers.append(client.get("/api/coded", params={"coder": coder}).text)
        answers.append(client.get("/api/own", params={"coder": coder}).text)
        assert {one["coding"]["value"] for one in json.loads(answers[-1])["items"]} == {value}
    answers.append(client.get("/api/adjudicate", params={"coder": "anna"}).text)
    answers.append(client.post("/api/undo", json={"coder": "anna"}).text)
    assert len(json.loads(answers[-2])["items"]) == 12
    secrets = design_words(project)
    assert {"QUELLE", "ZUNFT"} < secrets
    for answer in answers:
        assert not [word for word in secrets if word in answer]
        assert not {"stratum", "probability", "cluster", "part"} & set(_keys(answer))


def _keys(text: str) -> Iterator[str]:
    try:
        tree = json.loads(text)
    except json.JSONDecodeError:
        return
    branches = [tree]
    while branches:
        branch = branches.pop()
        if isinstance(branch, dict):
            yield from branch
            branches += branch.values()
        elif isinstance(branch, list):
            branches += branch


def test_texts_and_codebook_come_as_they_are(client: TestClient) -> None:
    add(client, "anna")
    texts = [client.get("/api/next", params={"coder": "anna", "skipping": json.dumps([f"n{i}" for i in range(40)])})]
    book = client.get("/api/start").json()["codebook"]
    assert [label["key"] for label in book["labels"]] == ["1", "2"]
    assert book["labels"][0]["counter_examples"][0] == {
        "text": "A comedy is on.",
        "why": "<b>a topic</b>",
        "label": "sad",
    }
    assert texts[0].json()["text"].startswith("Note ")


def test_adjudication_shows_who_said_what_once_both_are_done(client: TestClient, project: Path) -> None:
    add(client, "anna", "ben", "carla")
    item = client.get("/api/next", params={"coder": "anna"}).json()["item"]
    code(client, "anna", item, "glad", note="sunny")
    assert client.get("/api/adjudicate", params={"coder": "carla"}).json()["items"] == []
    code(client, "ben", item, "sad")
    (case,) = client.get("/api/adjudicate", params={"coder": "carla"}).json()["items"]
    assert case["codings"] == [
        {"coder": "anna", "status": "coded", "value": "glad", "note": "sunny"},
        {"coder": "ben", "status": "coded", "value": "sad", "note": ""},
    ]
    assert code(client, "carla", item, "sad", role="adjudicator").status_code == 200
    (line,) = [line for line in (project / "gold.csv").read_text().splitlines() if line.startswith(f"{item},")]
    assert line.endswith(",sad,coded,glad,sad,")
    assert client.get("/api/start").json()["adjudicated"] == 1


@pytest.mark.parametrize(
    "path", ["/api/start", "/api/next?coder=anna", "/api/adjudicate?coder=anna", "/api/coded?coder=anna"]
)
@pytest.mark.parametrize("header", ["", "Bearer", "Bearer wrong", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer täken"])
def test_without_the_token_nothing_is_said(client: TestClient, path: str, header: str) -> None:
    answer = client.get(path, headers={"authorization": header.encode()})
    assert answer.status_code == 401
    assert "token" in answer.json()["error"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8642"])
def test_under_another_name_nothing_is_said(client: TestClient, host: str) -> None:
    for path in ("/", "/coding.js", "/api/start"):
        assert client.get(path, headers={"host": host}).status_code == 403


def test_pages_of_other_sites_are_refused(client: TestClient) -> None:
    assert client.get("/api/start", headers={"origin": "https://evil.example"}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1:9", "localhost:9", "[::1]:9", "192.168.1.20:8642"])
def test_own_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


def test_the_page_may_load_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"
    for path in ("/", "/coding.js", "/coding.css"):
        assert "://" not in client.get(path).text.replace("http://www.w3.org", "")
    for path in ("/..%2fcoding.py", "/coding.py", "/docs", "/openapi.json", "/api/none"):
        assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"value": "gald"}, 400, "Did you mean 'glad'?"),
        ({"value": ["glad"]}, 400, "expected a label"),
        ({"item": "n99"}, 400, "is not in the gold sample"),
        ({"coder": "bob"}, 400, "no coder is called 'bob'"),
        ({"status": "done"}, 422, "status"),
        ({"colour": "red"}, 422, "colour"),
        ({"note": "x" * 20_001}, 422, "note"),
        ({"continues": "one"}, 422, "continues"),
    ],
)
def test_codings_that_cannot_be(
    client: TestClient, project: Path, body: dict[str, Any], status: int, said: str
) -> None:
    add(client, "anna")
    item = client.get("/api/next", params={"coder": "anna"}).json()["item"]
    answer = client.post("/api/code", json={"coder": "anna", "item": item, "status": "coded", "value": "glad"} | body)
    assert answer.status_code == status
    assert said in answer.json()["error"]
    assert client.get("/api/coded", params={"coder": "anna"}).json() == {"items": []}


def test_bodies_that_are_none(client: TestClient) -> None:
    assert client.post("/api/code", content=b"\xff\xfe{").status_code == 422
    assert client.post("/api/code", content=b"[" * 100).status_code == 422
    assert client.post("/api/code", content=b"x" * ((1 << 20) + 1)).status_code == 413
    assert client.get("/api/next", params={"coder": "anna", "skipping": "{"}).status_code == 400
    assert client.post("/api/coders", json={"name": "\x1b[31m"}).status_code == 400


def test_more_labels_than_digits_have_letters_for_keys(tmp_path: Path) -> None:
    (tmp_path / "codebook.yaml").write_text(f"variable: v\nquestion: q\nlabels: {[f'label {i}' for i in range(33)]}\n")
    labels = codebook_json(read_codebook(tmp_path / "codebook.yaml"))["labels"]
    keys = [label["key"] for label in labels]
    assert keys[:11] == [*"123456789ab"]
    assert not set("enux") & set(keys)
    assert keys[-2:] == ["", ""]


def test_the_token_is_not_in_what_colleagues_are_given(project: Path) -> None:
    """Beside the store, for its owner's eyes; the same at the next start, and another where the file was spoilt."""
    first = coding_page(project, read_codebook(project / "codebook.yaml"))
    first.socket.close()
    (url,) = first.urls
    token = url.partition("#")[2]
    kept = project / "gold.token"
    assert kept.read_text().strip() == token
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    for shared in project.glob("gold.*"):
        assert shared == kept or token.encode() not in shared.read_bytes()
    kept.chmod(0o644)
    assert kept_token(kept) == token
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    kept.write_text("short")
    assert len(kept_token(kept)) == len(token)
    assert kept_token(kept) != token
