"""`consilience search` on a file of prompts: replies, resume, refusals. Large model and guide have other tokenizers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def pair(world: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`TUNED:UNTUNED`: wren, and wren with other weights."""
    from safetensors.torch import load_file, save_file

    tuned = tmp_path_factory.mktemp("pair") / "tuned"
    shutil.copytree(world / "wren", tuned)
    weights = load_file(tuned / "model.safetensors")
    save_file({name: weight * 1.1 for name, weight in weights.items()}, tuned / "model.safetensors", {"format": "pt"})
    return f"{tuned}:{world / 'wren'}"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows: list[dict[str, Any]] = [
        {"prompt": "Tell me of the river."},
        {"id": "b", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Stars?"}]},
        {"id": "c", "messages": [{"role": "user", "content": "Maps?"}, {"role": "assistant", "content": "Old ones."}]},
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def command(
    world: Path, pair: str, prompts: Path, tmp_path: Path, consilience: Callable[..., Any]
) -> Callable[..., Any]:
    """`command(**changes)` runs the search; an option of None is left out, `raw=""` is a flag."""

    def run(**changes: Any) -> Any:
        options = {
            "model": world / "pivot",
            "guide": pair,
            "prompts": prompts,
            "out": tmp_path / "replies.jsonl",
            "width": 2,
            "successors": 2,
            "chunk": 3,
            "max-new-tokens": 12,
        } | {key.replace("_", "-"): value for key, value in changes.items()}
        words = [[f"--{key}", *([value] if value != "" else [])] for key, value in options.items() if value is not None]
        return consilience("search", *(word for several in words for word in several))

    return run


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_prompt_gets_a_line(command: Callable[..., Any], tmp_path: Path) -> None:
    answer = command(json="")
    assert answer.code == 0, answer.err
    assert answer.json["prompts"] == answer.json["searched"] == 3
    rows = rows_of(tmp_path / "replies.jsonl")
    assert [row["id"] for row in rows] == ["0", "b", "c"]
    for row in rows:
        assert row["status"] in ("stop", "length")
        assert row["messages"][-1]["role"] == "assistant"
        assert isinstance(row["score"], float)
        assert row["tokens"] <= 12
    assert [turn["content"] for turn in rows[2]["messages"][:-1]] == ["Maps?"]


def test_a_search_that_was_cut_off_goes_on_to_the_same_replies(command: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "replies.jsonl"
    command()
    whole = out.read_text()
    lines = whole.splitlines(keepends=True)
    out.write_text(lines[1] + lines[0][:40])  # what a killed search may leave: some in any order, one half
    answer = command(json="")
    assert answer.json["searched"] == 2
    assert out.read_text() == whole
    assert command(json="").json["searched"] == 0


def test_other_settings_are_refused_and_nothing_is_overwritten(command: Callable[..., Any], tmp_path: Path) -> None:
    command()
    before = (tmp_path / "replies.jsonl").read_bytes()
    answer = command(chunk=4)
    assert answer.code == 2
    assert "chunk was 3, now 4" in answer.err
    assert (tmp_path / "replies.jsonl").read_bytes() == before


def test_a_line_that_no_search_wrote_is_refused(command: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "replies.jsonl"
    assert command().code == 0
    changed = out.read_text() + "{broken\n"
    out.write_text(changed)
    answer = command()
    assert answer.code == 2
    assert "holds a line that no search wrote: '{broken\\n'. Give another --out." in answer.err
    assert out.read_text() == changed


@pytest.mark.parametrize("method", ["best-of-n", "sample"])
def test_other_methods(command: Callable[..., Any], method: str) -> None:
    answer = command(method=method, json="")
    assert answer.code == 0, answer.err
    assert sum(answer.json["status"].values()) == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"width": 0}, "width"),
        ({"successors": 0}, "successors"),
        ({"chunk": -1}, "chunk"),
        ({"guide": None}, "--guide TUNED:UNTUNED"),
        ({"guide": "one"}, "expected TUNED:UNTUNED"),
        ({"method": "cbx"}, "Did you mean 'cbs'?"),
        ({"mode": "publisht"}, "mode"),
        ({"prompts": "nowhere.jsonl"}, "no file nowhere.jsonl"),
        ({"model": "nowhere"}, "nowhere"),
        ({"method": "eft"}, "different tokenizers"),
    ],
)
def test_bad_input_is_one_line(command: Callable[..., Any], changes: dict[str, Any], says: str) -> None:
    answer = command(**changes)
    assert answer.code == 2
    assert answer.err.strip().count("\n") == 0
    assert says in answer.err


def test_a_pair_of_two_tokenizers_is_refused(command: Callable[..., Any], world: Path) -> None:
    answer = command(guide=f"{world / 'wren'}:{world / 'finch'}")
    assert answer.code == 2
    assert "different tokenizers" in answer.err


def test_a_model_without_a_chat_template_is_refused_unless_prompts_are_raw(
    command: Callable[..., Any], world: Path, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(world / "pivot", plain)
    (plain / "chat_template.jinja").unlink()
    answer = command(model=plain)
    assert answer.code == 2
    assert "no chat template" in answer.err
    assert "--raw" in answer.err
    assert command(model=plain, raw="", out=tmp_path / "raw.jsonl").code == 0


def test_a_prompt_that_does_not_fit_is_a_status(command: Callable[..., Any], prompts: Path, tmp_path: Path) -> None:
    prompts.write_text(json.dumps({"prompt": "river " * 3000}) + "\n" + json.dumps({"prompt": "Stars?"}) + "\n")
    answer = command(json="")
    assert answer.json["status"]["refused"] == 1
    rows = rows_of(tmp_path / "replies.jsonl")
    assert "Shorten the prompt" in rows[0]["why"]
    assert answer.json["why"] == {"refused": rows[0]["why"]}
    assert rows[1]["status"] in ("stop", "length")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mode": "publish"}, "'default' or 'published', got 'publish'"),
        ({"mode": "published", "method": "aligntree"}, "--mode published is of cbs and best-of-n, not of aligntree"),
        ({"guide": None}, "sample and beam need none"),
        ({"concurrency": 3}, "--concurrency is for a model behind --endpoint. Give its URL."),
        ({"tokenizer": "t", "price": "1:2"}, "--tokenizer and --price are for a model behind --endpoint"),
        ({"dry_run": ""}, "--dry-run is for a model behind --endpoint"),
        ({"engine_option": "max_model_len=5"}, "engine_options are vLLM's"),
    ],
)
def test_the_way_out_is_said(command: Callable[..., Any], changes: dict[str, Any], says: str) -> None:
    answer = command(**changes)
    assert answer.code == 2
    assert says in answer.err


def test_options_that_a_recipe_does_not_heed_are_refused(consilience: Callable[..., Any], tmp_path: Path) -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "tiny-search.yaml"
    answer = consilience("search", recipe, "--out", tmp_path / "run", "--width", 2, "--max-new-tokens", 5)
    assert answer.code == 2
    assert "Leave out --width, --max-new-tokens, or use --set" in answer.err
    assert not (tmp_path / "run").exists()


def test_a_search_without_any_reply_fails(command: Callable[..., Any], prompts: Path, tmp_path: Path) -> None:
    prompts.write_text(json.dumps({"prompt": "river " * 3000}) + "\n")
    answer = command(json="")
    assert answer.code == 2
    assert "no prompt has a reply (1 in all). The first: prompt '0' has" in answer.err
    assert answer.json["status"] == {"refused": 1}
    assert answer.json["gave_up"] in answer.err
    assert [row["status"] for row in rows_of(tmp_path / "replies.jsonl")] == ["refused"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"question": "?", "id": 3}\n', "line 1: neither 'prompt' nor 'messages', but question, id."),
        (b"{}\n", "line 1: neither 'prompt' nor 'messages', but nothing."),
        (b'{"prompt": 3}\n', "line 1: 'prompt' is int, expected text."),
        (b"\x80\x81\xff" * 9, "prompts.jsonl: not readable as UTF-8 text"),
        (b"", "holds no prompts"),
    ],
    ids=["other keys", "no keys", "a number", "binary", "empty"],
)
def test_a_file_of_other_things(
    command: Callable[..., Any], prompts: Path, tmp_path: Path, content: bytes, says: str
) -> None:
    prompts.write_bytes(content)
    answer = command()
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert says in answer.err
    assert not (tmp_path / "replies.jsonl").exists()
