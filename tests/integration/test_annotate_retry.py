"""What ended in a server's error is coded again, alone and on request; nothing of the server is left open."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from consilience.annotate.labels import put_in_place
from fake_endpoint import Json, Reply, choices, fake_server

ROWS = 40
Command = Callable[..., Any]


def make_project(folder: Path, url: str) -> Path:
    """Texts t0, t1, ...; gold are the first thirty."""
    folder.mkdir()
    with (folder / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "human"])
        writer.writerows((f"t{i}", f"text number {i}.", ("no", "yes")[i % 2] if i < 30 else "") for i in range(ROWS))
    endpoint = {"url": url, "model": "m", "retries": 0, "backoff_s": 0.01, "concurrency": 1}
    recipe = {
        "data": {"path": "texts.csv", "id": "id"},
        "models": {"served": {"endpoint": endpoint}},
        "strategies": {"zero_shot": {"answer": "free"}},
        "gold": {"column": "human"},
        "dev": {"items": 0},
        "batch_size": 8,
    }
    book = {"variable": "v", "question": "Is it so?", "labels": ["no", "yes"]}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / "codebook.yaml").write_text(yaml.safe_dump(book))
    return folder


def lines_of(project: Path) -> list[Json]:
    return [json.loads(line) for line in (project / "labels" / "served.zero_shot.jsonl").read_text().splitlines()]


def test_errors_alone_are_coded_again(tmp_path: Path, consilience: Command) -> None:
    broken = {f"text number {i}." for i in (3, 17, 18, 39)}

    def behave(body: Json, nth: int) -> Reply:
        text = body["messages"][-1]["content"]
        if any(part in text for part in broken):
            return Reply(b"{}", status=400)
        return Reply(choices("yes" if "1" in text else "no"))

    with fake_server(behave) as server:
        project = make_project(tmp_path / "p", server.url)
        assert consilience("annotate", "freeze", project).code == 0
        ran = consilience("annotate", "run", project)
        assert ran.code == 0, ran.err
        assert "4 codings ended in an error" in ran.out
        assert f"consilience annotate run {project} --retry" in ran.out
        before = lines_of(project)
        assert [row["id"] for row in before if row["status"] == "error"] == ["t3", "t17", "t18", "t39"]
        assert consilience("annotate", "estimate", project).code == 0
        with_errors = json.loads((project / "estimates.json").read_text())["counts"]

        broken -= {f"text number {i}." for i in (3, 18, 39)}
        asked = len(server.asked)
        again = consilience("annotate", "run", project, "--retry", "--json")
        assert again.code == 0, again.err
        after = lines_of(project)
        assert [row["id"] for row in after] == [row["id"] for row in before]
        assert [old for old in before if old["status"] == "ok"] == [
            new for new, old in zip(after, before) if old["status"] == "ok"
        ]
        assert [row["id"] for row in after if row["status"] == "error"] == ["t17"]
        assert len(server.asked) - asked == 4
        summary = again.json["configurations"]["served.zero_shot"]
        assert summary["statuses"] == {"ok": ROWS - 1, "error": 1}
        assert [round_["texts"] for round_ in summary["coded_again"]] == [4]
        with (project / "labelled.csv").open(newline="") as file:
            assert [row["model_v_status"] for row in csv.DictReader(file)].count("ok") == ROWS - 1
        estimated = consilience("annotate", "estimate", project, "--json")
        assert estimated.json["counts"] != with_errors  # estimates of other labels are not kept

        broken.clear()
        assert "ended in an error" not in consilience("annotate", "run", project, "--retry").out
        asked = len(server.asked)
        nothing = consilience("annotate", "run", project, "--retry")
        assert nothing.code == 0
        assert "there is nothing to code again" in nothing.out
        assert len(server.asked) == asked
        summary = consilience("annotate", "run", project, "--json").json["configurations"]["served.zero_shot"]
        assert [round_["texts"] for round_ in summary["coded_again"]] == [4, 1]
    assert not [*project.glob("*.alive")]
    assert {entry.suffix for entry in (project / "labels").iterdir()} == {".jsonl", ".json", ".lock"}


def test_a_first_run_with_retry_codes_nothing_twice(tmp_path: Path, consilience: Command) -> None:
    with fake_server(lambda body, nth: Reply(choices("no"))) as server:
        project = make_project(tmp_path / "p", server.url)
        assert consilience("annotate", "freeze", project).code == 0
        ran = consilience("annotate", "run", project, "--retry")
        assert "there is nothing to code again" in ran.out
        record = json.loads((project / "labels" / "served.zero_shot.json").read_text())
        assert record["coded_again"] == []


def test_a_server_that_goes_away_keeps_what_was_coded_again(tmp_path: Path, consilience: Command) -> None:
    state = {"broken": True, "gone": False}

    def behave(body: Json, nth: int) -> Reply:
        number = int(body["messages"][-1]["content"].partition("text number ")[2].partition(".")[0] or -1)
        if state["broken"] and number % 2:
            return Reply(b"{}", status=400)
        if state["gone"] and (number > 20 or number < 0):
            return Reply(b"{}", status=503)
        return Reply(choices("no"))

    with fake_server(behave) as server:
        project = make_project(tmp_path / "p", server.url)
        assert consilience("annotate", "freeze", project).code == 0
        assert consilience("annotate", "run", project).code == 0
        state.update(broken=False, gone=True)
        answer = consilience("annotate", "run", project, "--retry")
        assert answer.code == 2
        assert "does not answer" in answer.err
        assert [row["id"] for row in lines_of(project) if row["status"] == "error"] == [
            f"t{i}" for i in range(17, 40, 2)
        ]
        state.update(gone=False)
        assert consilience("annotate", "run", project, "--retry").code == 0
        assert {row["status"] for row in lines_of(project)} == {"ok"}


@pytest.mark.parametrize("stopped", ["before", "between", "after"])
def test_lines_take_their_places_wherever_that_was_stopped(stopped: str, tmp_path: Path) -> None:
    def lines(*rows: tuple[str, str]) -> str:
        return "".join(json.dumps({"id": id_, "status": status}) + "\n" for id_, status in rows)

    path, again = tmp_path / "a.jsonl", tmp_path / "a.again.jsonl"
    old = lines(("t0", "ok"), ("t1", "error"), ("t2", "error"), ("t3", "refused"), ("t4", "error"))
    new = lines(("t0", "ok"), ("t1", "ok"), ("t2", "error"), ("t3", "refused"), ("t4", "error"))
    path.write_text(old if stopped == "before" else new)
    if stopped != "after":  # between: the file was replaced, and what replaced it not removed
        again.write_text(lines(("t1", "ok"), ("t2", "error")) + '{"id": "t')
    assert put_in_place(path, again) == {"before": 2, "between": 0, "after": 0}[stopped]
    assert path.read_text() == new
    assert not again.exists()
