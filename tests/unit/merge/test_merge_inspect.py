"""Norms and cosines of groups from those of tensors, by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consilience.errors import ConfigError
from consilience.merge.inspect import read_manifest, table, travelled


def entry(shape: list[int], norms: dict[str, float], **cosines: float) -> dict[str, Any]:
    named = {key.replace("_", " "): value for key, value in cosines.items()}
    return {"shape": shape, "delta_norms": norms, "cosines": named}


# In tensor p: a = (3, 0), b = (0, 4), result = (3, 4). In q: a = (0, 5), b = 0, result = (5, 0).
MANIFEST = {
    "tensors": {
        "model.layers.0.mlp.p": entry([2], {"a": 3, "b": 4, "result": 5}, a_b=0.0, a_result=0.6, b_result=0.8),
        "model.layers.1.mlp.q": entry([2], {"a": 5, "b": 0, "result": 5}, a_b=0.0, a_result=0.0, b_result=0.0),
        "copied": {"shape": [1]},
    }
}


def test_groups_by_hand() -> None:
    found = travelled(MANIFEST)
    assert found["models"] == ["a", "b", "result"]
    everything = found["groups"]["all"]
    assert (everything["tensors"], everything["entries"]) == (2, 4)
    assert everything["norms"] == pytest.approx({"a": 34**0.5, "b": 4, "result": 50**0.5})
    assert everything["rms"]["b"] == pytest.approx(2)
    # a . result = 9 + 0, b . result = 16
    assert everything["cosine"] == pytest.approx({"a": 9 / (34 * 50) ** 0.5, "b": 16 / (4 * 50**0.5)})
    assert found["groups"]["layer 1 mlp"]["cosine"] == {"a": 0.0, "b": None}
    assert found["cosines"][0][0] == pytest.approx(1)


def test_the_table_shows_every_group() -> None:
    shown = table(travelled(MANIFEST))
    assert all(group in shown for group in ("layer 0 mlp (1 tensors)", "layer 1 mlp (1 tensors)", "all (2 tensors)"))


def test_without_a_base_there_is_nothing_to_inspect() -> None:
    assert "no base" in table(travelled({"tensors": {"x": {"shape": [1]}}}))


def test_a_folder_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match="not the manifest"):
        read_manifest(tmp_path)
