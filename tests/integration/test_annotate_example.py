"""The page of annotate as a new user reads it: every command on the example project, its model trained for one step."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "annotate.md"


def test_the_commands_of_the_page_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, consilience: Callable[..., Any]
) -> None:
    from consilience.pipelines.tiny import annotation

    monkeypatch.setattr(annotation, "STEPS", 1)
    monkeypatch.setattr(annotation, "TRAINED_ON", 64)
    monkeypatch.setattr(annotation.make_annotation_example, "__kwdefaults__", {
        **(annotation.make_annotation_example.__kwdefaults__ or {}), "steps": 1,
    })  # fmt: skip
    monkeypatch.chdir(tmp_path)
    block = re.search(r"## In five minutes.*?```\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert block
    commands = [line.partition("#")[0].strip() for line in block[1].splitlines()]
    assert len(commands) == 6
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "consilience"
        answer = consilience(*words)
        assert answer.code == 0, f"{command}: {answer.err}"
    assert (tmp_path / "trial" / "report" / "report.html").is_file()
    assert consilience("annotate", "init", "trial", "--example").code == 2  # nothing is trained over it
