"""Labels of a former freeze never mix with those of the next, wherever putting them aside was stopped."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from consilience.annotate import run
from consilience.annotate.freeze import Frozen

FILES = ("a.json", "a.jsonl", "b.jsonl", "run.json", "z.json", "z.jsonl")


@pytest.mark.parametrize("moved", range(len(FILES)))
def test_stopped_after_any_file(moved: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "labels"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_text(json.dumps({"digest": "old", "rows": 1}))
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([self / name for name in FILES if (self / name).exists()]))
    move, done = shutil.move, 0

    def stopping(source: str, target: str) -> None:
        nonlocal done
        if done == moved:
            raise KeyboardInterrupt
        move(source, target)
        done += 1

    monkeypatch.setattr(shutil, "move", stopping)
    about, frozen = {"digest": "new", "rows": 1}, Frozen(("a",), {})
    with pytest.raises(KeyboardInterrupt):
        run._start_anew_if_refrozen(folder, about, frozen)
    monkeypatch.setattr(shutil, "move", move)
    run._start_anew_if_refrozen(folder, about, frozen)
    assert [name for name in FILES if (folder / name).exists()] == ["run.json"]
    assert json.loads((folder / "run.json").read_text()) == about
    assert all((tmp_path / "labels-old" / name).exists() for name in FILES)
