"""kill -9 during `consilience merge`, then the same command: byte for byte the folder of a merge left alone.

Also what a user does with the result: transformers loads it, and it answers.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

Consilience = Callable[..., Any]
MODELS = ("base", "a", "b")
ROWS, COLUMNS, LAYERS = 1024, 1024, 12  # about 0.2 s of work once the process is up: room for a kill in the middle
KILLS = 4
ATTEMPTS = 20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `a` and `b`, 25 MB each in two shards."""
    folder = tmp_path_factory.mktemp("models")
    random = torch.Generator().manual_seed(0)
    for model in MODELS:
        (folder / model).mkdir()
        weight_map = {}
        for shard, layers in enumerate((range(LAYERS // 2), range(LAYERS // 2, LAYERS)), start=1):
            file = f"model-0000{shard}-of-00002.safetensors"
            names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in layers]
            weights = {name: torch.randn(ROWS, COLUMNS, generator=random).bfloat16() for name in names}
            save_file(weights, folder / model / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / model / "model.safetensors.index.json").write_text(json.dumps(index))
        config = {"model_type": "llama", "num_hidden_layers": LAYERS, "tie_word_embeddings": True}
        (folder / model / "config.json").write_text(json.dumps(config))
    return folder


def recipe_of(models: Path, path: Path, method: str, **parameters: float) -> Path:
    tree: dict[str, Any] = {"merge_method": method, "base_model": str(models / "base"), "dtype": "bfloat16"}
    tree["models"] = [{"model": str(models / name), "parameters": {"weight": 0.5} | parameters} for name in "ab"]
    path.write_text(yaml.safe_dump(tree))
    return path


def start(words: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "consilience.cli", "merge", *words, "--threads", "1", "--shard-size", "8MB"]
    path = os.pathsep.join(sys.path)  # the child imports what this process imports
    environment = os.environ | {"PYTHONPATH": path}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)


def finish(words: list[str]) -> None:
    process = start(words)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def seconds_at_work(words: list[str], out: Path) -> float:
    """How long a merge into the new folder `out` takes from its first file on."""
    process = start(words)
    while process.poll() is None and not has_files(out):
        time.sleep(0.001)
    began = time.monotonic()
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said.decode()
    return time.monotonic() - began


def has_files(out: Path) -> bool:
    return out.is_dir() and any(file.is_file() for file in out.rglob("*"))


def killed_at_work(words: list[str], out: Path, delay: float) -> bool:
    """Kills the command `delay` seconds after `out` has a file. False when it had ended before."""
    process = start(words)
    while process.poll() is None and not has_files(out):
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    _, said = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), said.decode()
    return process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("method", "parameters"), [("ties", {"density": 0.4}), ("dare_linear", {"density": 0.6})])
def test_a_killed_merge_goes_on_to_the_same_bytes(
    models: Path, tmp_path: Path, method: str, parameters: dict[str, float]
) -> None:
    recipe, out = recipe_of(models, tmp_path / "recipe.yaml", method, **parameters), tmp_path / "out"
    assert_kills_do_not_matter([str(recipe), str(out)], out)


def test_every_merge_of_one_pass_goes_on(models: Path, tmp_path: Path) -> None:
    recipes = [str(recipe_of(models, tmp_path / f"{k}.yaml", "ties", density=k / 10)) for k in (2, 5, 8)]
    out = tmp_path / "out"
    assert_kills_do_not_matter(["--compare", *recipes, str(out)], out)


def assert_kills_do_not_matter(words: list[str], out: Path) -> None:
    """Kills at random moments, up to three in a row on the same folder; then the command is left alone."""
    finish(words)  # compiles, where that was not done before
    shutil.rmtree(out)
    took = seconds_at_work(words, out)
    undisturbed = contents(out)
    random = np.random.default_rng(0)
    kills = 0
    for _ in range(ATTEMPTS):
        shutil.rmtree(out)
        for _ in range(3):
            if not killed_at_work(words, out, took * random.uniform(0, 1)):
                break
            kills += 1
        finish(words)
        assert contents(out) == undisturbed
        if kills >= KILLS:
            return
    assert kills, "every merge ended before its kill: make the models larger"


def test_the_same_command_leaves_a_finished_merge_alone(models: Path, tmp_path: Path) -> None:
    """A kill may come when all has its name; of several merges the others are still to be made."""
    recipes = [str(recipe_of(models, tmp_path / f"{k}.yaml", "ties", density=k / 10)) for k in (2, 8)]
    out = tmp_path / "out"
    words = ["--compare", *recipes, str(out)]
    finish(words)
    undisturbed = contents(out)
    written = {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")}
    finish(words)
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*.safetensors")} == written
    shutil.rmtree(out / "8")
    finish(words)
    assert contents(out) == undisturbed


def test_a_shard_that_went_missing_is_made_again(models: Path, tmp_path: Path) -> None:
    recipe, out = recipe_of(models, tmp_path / "recipe.yaml", "ties", density=0.4), tmp_path / "out"
    took = seconds_at_work([str(recipe), str(out)], out)
    undisturbed = contents(out)
    shutil.rmtree(out)
    if not killed_at_work([str(recipe), str(out)], out, 0.5 * took):
        pytest.skip("the merge ended before its kill")
    for shard in list(out.rglob("*.safetensors"))[:1]:
        shard.unlink()
    finish([str(recipe), str(out)])
    assert contents(out) == undisturbed


def test_a_finished_shard_that_went_missing_is_made_again(models: Path, tmp_path: Path) -> None:
    recipe, out = recipe_of(models, tmp_path / "recipe.yaml", "task_arithmetic"), tmp_path / "out"
    finish([str(recipe), str(out)])
    undisturbed = contents(out)
    next(out.glob("model-*.safetensors")).unlink()
    finish([str(recipe), str(out)])
    assert contents(out) == undisturbed


def test_what_a_killed_merge_left_is_not_mixed_with_another(models: Path, tmp_path: Path) -> None:
    recipe = recipe_of(models, tmp_path / "recipe.yaml", "ties", density=0.4)
    out = tmp_path / "out"
    process = start([str(recipe), str(out)])
    while process.poll() is None and not any(out.rglob("*.safetensors*")):
        time.sleep(0.001)
    process.kill()
    process.communicate()
    if process.returncode == 0:
        pytest.skip("the merge ended before its kill")
    other = recipe_of(models, tmp_path / "other.yaml", "ties", density=0.9)
    finish([str(other), str(out), "--force"])  # nothing of the first merge may be in the second
    finish([str(other), str(tmp_path / "alone")])
    ours, alone = contents(out), contents(tmp_path / "alone")
    weights = [name for name in alone if name.endswith(".safetensors")]
    assert weights == [name for name in alone if name in ours and name.endswith(".safetensors")]
    assert all(ours[name] == alone[name] for name in weights)
    assert sorted(ours) == sorted(alone)


def test_a_merge_loads_in_transformers_and_answers(consilience: Consilience, world: Path, tmp_path: Path) -> None:
    """A Llama with a tied head, a tokenizer and a chat template, as the half-billion models have them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    random = torch.Generator().manual_seed(0)
    for name in "ab":
        shutil.copytree(world / "pivot", tmp_path / name)
        weights = load_file(tmp_path / name / "model.safetensors")
        moved = {key: tensor + 0.01 * torch.randn(tensor.shape, generator=random) for key, tensor in weights.items()}
        save_file(moved, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    tree: dict[str, Any] = {"merge_method": "ties", "base_model": str(world / "pivot"), "dtype": "bfloat16"}
    tree["models"] = [{"model": str(tmp_path / name), "parameters": {"weight": 1, "density": 0.5}} for name in "ab"]
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    recipe.write_text(yaml.safe_dump(tree))
    answer = consilience("merge", recipe, out, "--shard-size", "5KB", "--json")
    assert answer.code == 0, answer.err
    assert len(list(out.glob("*.safetensors"))) > 1

    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(out)
    chat = [{"role": "user", "content": "Tell me a line."}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    reply = model.generate(**ids, max_new_tokens=5, do_sample=False)
    assert reply.shape[1] > ids["input_ids"].shape[1]
