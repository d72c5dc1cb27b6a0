"""`consilience fuse --debug` (every shipped recipe's path, on tiny models of its architectures) and `--dry-run`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consilience.config import load_recipe
from consilience.pipelines.places import Places
from consilience.pipelines.recipe import FuseRecipe
from consilience.pipelines.rehearsal import rehearsed

Recipe = Callable[..., Path]
Consilience = Callable[..., Any]

RECIPES = Path(__file__).parents[2] / "recipes"
KINDS = {
    "fusellm-7b": {"pivot": "llama", "openllama": "llama", "mpt": "mpt"},
    "fusechat-7b-v1": {"pivot": "mistral", "mixtral": "mixtral", "solar": "llama"},
    "fusechat-7b-v2": {
        **{"pivot": "mistral", "starling": "mistral", "solar": "llama", "internlm": "llama", "mixtral": "mixtral"},
        "qwen": "qwen2",
    },
    "fuse-one-gpu": {"pivot": "qwen3", "llama": "llama", "gemma": "gemma2"},
}


@pytest.mark.parametrize("name", KINDS)
def test_a_recipe_of_a_paper_is_rehearsed(name: str, consilience: Consilience, tmp_path: Path) -> None:
    path, run = RECIPES / f"{name}.yaml", tmp_path / "run"
    answer = consilience("fuse", path, "--out", run, "--debug", "--set", "threads=1", "--json")
    assert answer.code == 0, answer.err
    made = {model: json.loads((run / "tiny" / model / "config.json").read_text()) for model in KINDS[name]}
    assert {model: config["model_type"] for model, config in made.items()} == KINDS[name]
    results = json.loads((run / "results.json").read_text())
    assert {"pivot", "sft", results["result"]} <= {*results["models"]}
    assert "Rehearsal" in (run / "report.html").read_text()


def test_a_rehearsal_takes_the_models_own_tokenizers_and_the_first_chats(
    consilience: Consilience, recipe: Recipe, world: Path, tmp_path: Path
) -> None:
    path = recipe(train={"learning_rate": 0.5}, targets={"controls": []}, merges={"linear": {"method": "linear"}})
    answer = consilience("fuse", path, "--out", tmp_path / "run", "--debug", "--json")
    assert answer.code == 0, answer.err
    for model in ("pivot", "wren"):
        own, made = (folder / model / "tokenizer.json" for folder in (world, tmp_path / "run" / "tiny"))
        assert json.loads(own.read_text())["model"] == json.loads(made.read_text())["model"]
    assert (tmp_path / "run" / "tiny" / "chats.jsonl").read_text() == (world / "chats.jsonl").read_text()


def test_chats_without_groups_are_rehearsed_without(recipe: Recipe, world: Path, tmp_path: Path) -> None:
    """A group_key that is named and found nowhere is refused; one that nobody named must not be."""
    for given in ({}, {"group_key": "skill"}):
        made = load_recipe(recipe(data={"path": str(world / "chats.jsonl"), **given}), FuseRecipe)
        data = rehearsed(made, Places(tmp_path, tmp_path)).data
        assert dict.fromkeys(data.model_fields_set & {"group_key"}, data.group_key) == given


def test_a_dry_run_prints_every_stage_and_writes_nothing(
    consilience: Consilience, recipe: Recipe, tmp_path: Path
) -> None:
    path = recipe(targets={"controls": []}, merges={"linear": {"method": "linear"}})
    found = consilience("fuse", path, "--out", tmp_path / "run", "--dry-run", "--json").json
    assert [stage["name"] for stage in found["stages"]][:3] == ["represent/pivot", "represent/wren", "represent/finch"]
    table = consilience("fuse", path, "--out", tmp_path / "run", "--dry-run", "--tflops", 10).out
    assert "hours at 10 TFLOP/s" in table
    assert "18 texts to learn from and 6 held out (counted in" in table
    assert "(measured under the pivot's tokenizer)" in table
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": {"text_key": "text"}}, "go together"),
        ({"represent": {"template": "text"}}, "go together"),
        (
            {
                "data": {"text_key": "messages"},
                "represent": {"template": "text"},
                "targets": {"controls": ["seqkd"]},
            },
            "seqkd needs chats",
        ),
        ({"data": {"text_key": "body"}, "represent": {"template": "text"}}, "line 1: no text in the field 'body'"),
    ],
)
def test_plain_texts_are_for_base_models(
    changes: dict[str, Any], expected: str, consilience: Consilience, recipe: Recipe, tmp_path: Path
) -> None:
    answer = consilience("fuse", recipe(**changes), "--out", tmp_path / "run")
    assert answer.code == 2
    assert expected in answer.err
