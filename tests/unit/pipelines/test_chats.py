"""Where a recipe's chats and models come from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consilience.config import load_recipe
from consilience.errors import DataError
from consilience.pipelines.chats import read_chats
from consilience.pipelines.data import fingerprints, rows_of
from consilience.pipelines.places import Places
from consilience.pipelines.recipe import DataSettings, FuseRecipe


def test_a_group_key_that_no_chat_has_is_refused(recipe: Callable[..., Path], world: Path) -> None:
    path = recipe(data={"path": str(world / "chats.jsonl"), "group_key": "gruop"})
    with pytest.raises(DataError, match="'gruop'"):
        read_chats(load_recipe(path, FuseRecipe), Places(path.parent, path.parent))


def test_a_data_set_has_another_fingerprint_when_its_rows_change(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    rows: list[dict[str, Any]] = [*map(json.loads, (world / "chats.jsonl").read_text().splitlines())]
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.Dataset.from_list(rows))
    places = Places(world, world)
    data = {"data": DataSettings(path="birds/chats")}
    before = fingerprints(data, {}, places)
    assert fingerprints(data, {}, places) == before
    rows[3]["messages"][-1]["content"] += "!"
    assert fingerprints(data, {}, places) != before
    assert next(rows_of(data["data"], places))[0] == "birds/chats[train], row 0"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Skywork/Skywork-Reward-Preference-80K-v0.2", True),
        ("Magpie-Align/Magpie-Llama-3.1-Pro-DPO-100K", True),
        ("imdb", True),
        ("owner/pairs.jsonl", False),
        ("pairs.parquet", False),
        ("one/two/three", False),
    ],
)
def test_a_data_sets_name_may_end_in_a_version(tmp_path: Path, name: str, expected: bool) -> None:
    assert Places(tmp_path, tmp_path).is_data_set(name) is expected


def test_a_folder_that_looks_like_a_hub_name_is_none(tmp_path: Path) -> None:
    (tmp_path / "models" / "pivot").mkdir(parents=True)
    places = Places(tmp_path, tmp_path / "run")
    assert [places.is_on_hub(name) for name in ("models/pivot", "models/other", "tiny:pivot")] == [False, True, False]
