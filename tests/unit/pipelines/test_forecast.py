"""What a fusion will take: parameters as published, arithmetic by hand, disk as a real run leaves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consilience.errors import ConfigError, DataError
from consilience.pipelines.architectures import ARCHITECTURES, size_of
from consilience.pipelines.forecast import forecast_recipe
from consilience.pipelines.fuse import fuse_recipe

RECIPES = Path(__file__).parents[3] / "recipes"
Recipe = Callable[..., Path]

# Parameters as the models' cards and papers state them, in billions.
PUBLISHED = {
    "gemma-2-2b": 2.61,
    "internlm2-20b": 19.86,
    "llama-2-7b": 6.74,
    "llama-3-8b": 8.03,
    "llama-3.2-3b": 3.21,
    "mistral-7b": 7.24,
    "mixtral-8x7b": 46.70,
    "mpt-7b": 6.65,
    "qwen1.5-72b": 72.29,
    "qwen2.5-1.5b": 1.54,
    "qwen3-0.6b": 0.596,
    "qwen3-4b": 4.02,
    "solar-10.7b": 10.73,
}


def by_name(found: Any) -> dict[str, Any]:
    return {stage.name: stage for stage in found.stages}


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_parameters_are_the_published_ones(name: str) -> None:
    assert size_of(ARCHITECTURES[name]()).parameters / 1e9 == pytest.approx(PUBLISHED[name], abs=0.006)


def test_mixtral_uses_13_of_its_47_billion_parameters() -> None:
    # Mixtral of Experts (arXiv 2401.04088): 13B active parameters, its embedding of 0.13B among them.
    assert size_of(ARCHITECTURES["mixtral-8x7b"]()).active / 1e9 + 0.131 == pytest.approx(12.9, abs=0.05)


def test_fusechats_arithmetic_by_hand(tmp_path: Path) -> None:
    words = ["assumed.chats=1000", "held_out.share=0.5", "assumed.tokens=1000", "assumed.reply_tokens=400"]
    found = by_name(forecast_recipe(RECIPES / "fusechat-7b-v2.yaml", tmp_path, words))
    # A forward pass over 1,000 tokens of Mistral-7B: 2 · (7.2417e9 - 32,002 · 4,096) + 2 · 32 · 4,096 · 1,000 a token.
    forward = 1000 * (2 * (7_241_748_480 - 32_002 * 4096) + 2 * 32 * 4096 * 1000)
    assert found["represent/pivot"].flops == pytest.approx(500 * forward)
    assert found["evaluate/sce"].flops == pytest.approx(500 * forward)
    assert found["train/sft"].flops == pytest.approx(3 * 500 * 4 * forward)  # three epochs; four passes, recomputing
    assert found["represent/qwen"].disk_bytes == 500 * 400 * (29 + 60)
    assert found["train/sft"].disk_bytes == 4 * 7_241_748_480
    # Weights, gradients and two moments in float32 are sixteen bytes a parameter.
    assert found["train/sft"].memory_bytes / (16 * 7_241_748_480) == pytest.approx(1.03, abs=0.02)


def test_lora_trains_a_rank_of_every_linear_layer(tmp_path: Path) -> None:
    found = by_name(forecast_recipe(RECIPES / "fuse-one-gpu.yaml", tmp_path))
    # Qwen3-4B's linear layers: q 2560+4096, k and v 2560+1024, o 4096+2560, gate and up 2560+9728, down 9728+2560.
    ends = 36 * (6656 + 2 * 3584 + 6656 + 3 * 12288)
    adapters = 16 * ends
    assert adapters == pytest.approx(33.0e6, rel=0.01)  # as peft counts them
    beside = found["train/sft"].memory_bytes - 2 * 4_022_468_096 - 16 * adapters
    assert 0 < beside < 1.5e9  # activations under checkpointing, and the head's blocks
    assert found["train/sft"].memory_bytes < 24e9


def test_disk_is_what_a_run_leaves(recipe: Recipe, tmp_path: Path) -> None:
    path = recipe(targets={"controls": ["sft"]}, merges={"linear": {"method": "linear"}})
    found, run = by_name(forecast_recipe(path, tmp_path / "run")), tmp_path / "run"
    assert not run.exists()
    fuse_recipe(path, run)
    for stage in ("represent/pivot", "align/wren", "select/fused_wren", "train/sft", "merge/linear"):
        # Headers, manifests and tokenizers are a great part of files as small as these.
        left = (
            sum(len(file.read_bytes()) for file in (run / stage).glob("*-0*.safetensors"))
            or (run / stage / "model.safetensors").stat().st_size
        )
        assert left / found[stage].disk_bytes == pytest.approx(1.2, abs=0.3), stage


def test_a_model_that_is_not_here_needs_an_architecture(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="recipe does not say its architecture"):
        forecast_recipe(RECIPES / "fuse-one-gpu.yaml", tmp_path, ["pivot=some/model"])
    with pytest.raises(ConfigError, match="Did you mean 'qwen3-4b'"):
        forecast_recipe(RECIPES / "fuse-one-gpu.yaml", tmp_path, ["pivot=some", "assumed.architectures.some=qwen-3-4b"])


def test_chats_that_are_not_here_must_be_numbered(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be counted"):
        forecast_recipe(RECIPES / "fuse-one-gpu.yaml", tmp_path, ["assumed.chats=null"])
