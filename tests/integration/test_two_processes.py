"""Two processes on a CPU (gloo) end with the weights of one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


@pytest.mark.slow
def test_two_processes_train_the_same_model(recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = recipe(train={"micro_batch_size": 2, "save_steps": 1}, data={"limit": 20}, held_out={"share": 0.2})
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for processes in (1, 2):
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m", "consilience.cli"]
        command = [sys.executable, *launch, "fuse", str(path), "--out", str(tmp_path / str(processes))]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / n / "model" / "model.safetensors") for n in ("1", "2"))
    for name, tensor in one.items():
        assert torch.allclose(two[name], tensor, atol=1e-6), name
    assert not list(tmp_path.rglob("*.partial"))
