"""Two processes on a CPU (gloo) end with the weights of one, whole or spread over them; and stop together."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

RECIPES = Path(__file__).parents[2] / "recipes"
FSDP2, ZERO3 = (str(RECIPES / "accelerate" / f"{name}.yaml") for name in ("fsdp2", "zero3"))
NO_DEEPSPEED = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="deepspeed is not installed")
SPREAD = [pytest.param(FSDP2, id="fsdp2"), pytest.param(ZERO3, id="zero3", marks=NO_DEEPSPEED)]
TRAIN = {"batch_size": 4, "micro_batch_size": 1, "learning_rate": 0.01, "log_steps": 1, "save_steps": 2, "max_steps": 4}
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node"]


def run(processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    command = [*LAUNCH, str(processes), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT)


def training(world: Path, out: Path, processes: int, **settings: Any) -> subprocess.CompletedProcess[str]:
    out.mkdir(exist_ok=True)
    script = Path(__file__).with_name("training_process.py")
    return run(processes, script, world, out, json.dumps({"train": TRAIN} | settings))


def trained(world: Path, out: Path, processes: int, **settings: Any) -> dict[str, torch.Tensor]:
    done = training(world, out, processes, **settings)
    assert done.returncode == 0, done.stderr[-3000:]
    return load_file(out / "model" / "model.safetensors")


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        # A hundredth of a step of AdamW, whose first ones are a gradient's sign: near zero, rounding decides it.
        assert torch.allclose(found[name], tensor, atol=1e-4), name


@pytest.fixture(scope="module")
def alone(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process leaves that trains `model` alone."""
    out = tmp_path_factory.mktemp("alone")
    trained(world, out, 1)
    return out


def curve(out: Path) -> list[float]:
    return [point["loss"] for point in json.loads((out / "curve.json").read_text())]


def test_two_processes_train_the_same_model(recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe(train={"micro_batch_size": 2, "save_steps": 1}, data={"limit": 20}, held_out={"share": 0.2})
    for processes in (1, 2):
        done = run(processes, "-m", "consilience.cli", "fuse", path, "--out", tmp_path / str(processes))
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("1", "2"))
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, atol=1e-6), name
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("config", SPREAD)
def test_a_model_spread_over_two_processes_is_the_same(world: Path, alone: Path, tmp_path: Path, config: str) -> None:
    found = trained(world, tmp_path, 2, config=config)
    assert curve(tmp_path) == pytest.approx(curve(alone), abs=1e-5)
    assert_close(found, load_file(alone / "model" / "model.safetensors"))


@pytest.mark.parametrize("config", SPREAD)
@pytest.mark.parametrize(
    "train",
    [{}, {"lora": {"rank": 2}}, {"gradient_checkpointing": True, "padding_free": False}],
    ids=["untied head", "adapters", "checkpointing"],
)
def test_other_trainings_spread_over_two_processes_are_the_same(
    world: Path, tmp_path: Path, config: str, train: dict[str, Any]
) -> None:
    settings = {"train": TRAIN | {"max_steps": 2} | train, "untied": not train}
    expected = trained(world, tmp_path / "one", 1, **settings)
    assert_close(trained(world, tmp_path / "two", 2, config=config, **settings), expected)


@pytest.mark.parametrize("config", [pytest.param(None, id="whole"), *SPREAD])
def test_when_one_process_dies_all_stop_and_the_same_command_goes_on(
    world: Path, alone: Path, tmp_path: Path, config: str | None
) -> None:
    settings = {"config": config} if config else {}
    stopped = training(world, tmp_path, 2, dies_at=6, **settings)  # two forward passes a step and process: in step 3
    assert stopped.returncode != 0
    assert "another process of this training is gone" in stopped.stderr or "Signal 9" in stopped.stderr
    assert "goes on from the checkpoint of step 2" in stopped.stderr or "Signal 9" in stopped.stderr
    resumed = trained(world, tmp_path, 2, **settings)
    assert_close(resumed, load_file(alone / "model" / "model.safetensors"))


@pytest.mark.parametrize("config", [pytest.param(None, id="whole"), *SPREAD])
def test_a_loss_that_is_not_finite_in_one_process_stops_all(world: Path, tmp_path: Path, config: str | None) -> None:
    stopped = training(world, tmp_path, 2, spoils_at=6, **({"config": config} if config else {}))
    assert stopped.returncode != 0
    assert "consilience: the training loss is nan at step 3, on conversations chat-" in stopped.stderr
    assert [path.name for path in (tmp_path / "train" / "checkpoints").iterdir()] == ["checkpoint-2"]


def test_fsdp_asked_for_without_a_gpu_is_refused(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENVIRONMENT, "ACCELERATE_USE_FSDP", "true")
    stopped = training(world, tmp_path, 2)
    assert "consilience: FSDP was asked for, but accelerate shards on GPUs only" in stopped.stderr


def test_preferences_are_learnt_by_two_processes(tmp_path: Path) -> None:
    """Every arm of the tiny recipe, for a round."""
    small = ["seeds=[1]", "rounds=1", "train.micro_batch_size=8"]
    for processes in (1, 2):
        words = ["-m", "consilience.cli", "prefer", RECIPES / "tiny-selm.yaml", "--out", tmp_path / str(processes)]
        done = run(processes, *words, *(word for setting in small for word in ("--set", setting)))
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("1", "2"))
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, atol=1e-4), name
