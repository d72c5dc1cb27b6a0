"""Adapters read and written; expected values from numpy's own SVD and by hand. With peft: tests/integration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from consilience.errors import BackendError, ConfigError
from consilience.merge.extract import Change, extract_lora, low_rank
from consilience.merge.inputs import Input, open_input
from consilience.merge.lora import PREFIX, with_adapter
from consilience.merge.plan import Part
from consilience.merge.recipe import ModelRef
from consilience.weights.headers import read_model

UP = "model.layers.0.mlp.up_proj"


def parts_of(folder: Path) -> dict[str, Part]:
    folder.mkdir(exist_ok=True)
    weights = {f"{UP}.weight": torch.zeros(6, 4), "model.norm.weight": torch.zeros(4)}
    save_file(weights, folder / "model.safetensors")
    return {name: Part(tensor) for name, tensor in read_model(folder).tensors.items()}


def adapter(folder: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 8} | settings))
    save_file({PREFIX + name: tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")
    return folder


def factors(rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"{UP}.lora_A.weight": torch.ones(rank, 4), f"{UP}.lora_B.weight": torch.ones(6, rank)}


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8 / 2**0.5),
        ({"alpha_pattern": {"up_proj": 1}}, 0.5),
        ({"alpha_pattern": {"proj": 1}}, 4.0),
    ],
)
def test_scales(tmp_path: Path, settings: Any, scale: float) -> None:
    """alpha / r; alpha / sqrt(r); an exception's alpha / r, where its key ends the module's name at a dot."""
    merged = with_adapter(parts_of(tmp_path / "model"), adapter(tmp_path / "lora", factors(), **settings))
    (low,) = merged[f"{UP}.weight"].adapters
    assert low.scale == pytest.approx(scale)
    assert (low.left.shape, low.right.shape) == ((6, 2), (2, 4))
    assert merged["model.norm.weight"].adapters == ()


def test_a_module_that_was_trained_whole(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "lora", factors() | {"model.norm.weight": torch.ones(4)})
    merged = with_adapter(parts_of(tmp_path / "model"), folder)
    assert merged["model.norm.weight"].tensor.file == folder / "adapter_model.safetensors"


@pytest.mark.parametrize(
    ("tensors", "settings", "says"),
    [
        (factors(), {"peft_type": "LOHA"}, "LOHA"),
        (factors(), {"use_dora": True}, "use_dora"),
        ({"x.lora_A.weight": torch.ones(2, 4), "x.lora_B.weight": torch.ones(6, 2)}, {}, r"changes x\.weight"),
        ({f"{UP}.lora_A.weight": torch.ones(2, 4)}, {}, "without"),
        (factors() | {f"{UP}.lora_A.weight": torch.ones(2, 5)}, {}, r"\[6, 4\]"),
        (factors() | {f"{UP}.lora_magnitude_vector": torch.ones(6)}, {}, "lora_magnitude_vector"),
    ],
)
def test_what_is_no_plain_lora_of_this_model(tmp_path: Path, tensors: Any, settings: Any, says: str) -> None:
    with pytest.raises(BackendError, match=says):
        with_adapter(parts_of(tmp_path / "model"), adapter(tmp_path / "lora", tensors, **settings))


# -- extraction --------------------------------------------------------------------------------------------------------


def change_of(folder: Path, matrix: np.ndarray) -> Change:
    for name, tensor in (("base", np.zeros_like(matrix)), ("tuned", matrix)):
        (folder / name).mkdir()
        save_file({"w": torch.from_numpy(tensor)}, folder / name / "model.safetensors")
    return Change(*(read_model(folder / name).tensors["w"] for name in ("base", "tuned")))


@pytest.mark.parametrize("shape", [(30, 20), (20, 30), (300, 200)])
def test_the_factors_are_those_of_the_best_approximation(tmp_path: Path, shape: tuple[int, int]) -> None:
    """The larger matrix's singular values fall off as 1/i, as those of fine-tunes do; there the passes come near."""
    rng = np.random.default_rng(0)
    left, _, right = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    values = 1 / np.arange(1, min(shape) + 1)
    matrix = ((left * values) @ right).astype(np.float32)
    rank = 5
    factor_left, factor_right, square, kept = low_rank(change_of(tmp_path, matrix), rank, seed=1)
    best = np.square(values[:rank]).sum()
    assert square == pytest.approx(np.square(values).sum(), rel=1e-5)
    assert kept == pytest.approx(best, rel=1e-3)
    assert np.square(matrix - factor_left @ factor_right).sum() == pytest.approx(square - best, rel=1e-2)


def test_a_rank_above_the_matrixs_own(tmp_path: Path) -> None:
    matrix = np.outer([1, 2, 3], [1.0, 0.5]).astype(np.float32)
    left, right, square, kept = low_rank(change_of(tmp_path, matrix), 8, seed=0)
    assert (left.shape, right.shape) == ((3, 8), (8, 2))
    np.testing.assert_allclose(left @ right, matrix, atol=1e-6)
    assert kept == pytest.approx(square)


def model(folder: Path, scale: float, **config: Any) -> Input:
    folder.mkdir()
    ramp = torch.arange(24.0).reshape(6, 4) % 7
    weights = {f"{UP}.weight": ramp * scale, f"{UP}.bias": torch.ones(6), "model.norm.weight": torch.ones(4) * scale}
    save_file(weights | {"model.conv.weight": torch.ones(2, 2, 2)}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    return open_input(ModelRef(str(folder)), label=folder.name)


def test_what_an_adapter_holds_and_what_it_leaves_out(tmp_path: Path) -> None:
    base, _ = model(tmp_path / "base", 1.0), model(tmp_path / "tuned", 2.0)
    found = extract_lora(base, tmp_path / "tuned", tmp_path / "lora", rank=4)
    assert found.kept_in_all == pytest.approx(1)
    assert found.whole == ("model.norm.weight",)  # the bias did not change
    assert found.left_out == ("model.conv.weight",)
    stored = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    product = stored[f"{PREFIX}{UP}.lora_B.weight"] @ stored[f"{PREFIX}{UP}.lora_A.weight"]
    torch.testing.assert_close(product, torch.arange(24.0).reshape(6, 4) % 7, rtol=0, atol=1e-5)
    with pytest.raises(ConfigError, match="already holds an adapter"):
        extract_lora(base, tmp_path / "tuned", tmp_path / "lora", rank=4)
    extract_lora(base, tmp_path / "tuned", tmp_path / "lora", rank=2, replace=True)
