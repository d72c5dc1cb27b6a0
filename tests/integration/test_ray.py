"""Ray Data shares work out to copies of a model in real processes of this machine (make test-ray)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from consilience.errors import ConfigError, DataError
from consilience.fuse import RepresentSettings, represent
from consilience.models import EngineSettings, open_model
from consilience.models.ray_data import RaySettings, shared_out
from consilience.records import read_conversations

pytestmark = pytest.mark.ray
TWO = RaySettings(workers=2, cpus=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One for all tests of this file: starting it takes longer than they do."""
    ray = pytest.importorskip("ray", reason="needs Ray: make test-ray")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    os.environ["PYTHONPATH"] = path  # its processes import what is pickled here by name
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


def _squares(begin: int) -> Callable[[int], tuple[int, int]]:
    return partial(_square, begin)


def _square(begin: int, number: int) -> tuple[int, int]:
    if number < 0:
        raise DataError(f"{number} is below 0.")
    return begin + number * number, os.getpid()


@pytest.mark.usefixtures("cluster")
def test_results_come_in_the_order_of_the_work() -> None:
    found = [*shared_out(range(40), partial(_squares, 7), TWO)]
    assert [number for number, _ in found] == [7 + i * i for i in range(40)]
    assert len({process for _, process in found}) == 2
    assert os.getpid() not in {process for _, process in found}
    assert [*shared_out([], partial(_squares, 7), TWO)] == []


@pytest.mark.usefixtures("cluster")
def test_what_a_user_can_mend_comes_back_as_it_is() -> None:
    with pytest.raises(DataError, match=r"^-3 is below 0.$"):
        [*shared_out([1, 2, -3], partial(_squares, 0), TWO)]
    with pytest.raises(ConfigError, match="2 workers with 1 GPUs each are more than there are"):
        [*shared_out([1], partial(_squares, 0), RaySettings(workers=2, gpus=1))]


@pytest.mark.usefixtures("cluster")
def test_shards_are_those_of_one_process(world: Path, tmp_path: Path) -> None:
    chats = read_conversations(world / "chats.jsonl")
    opener = partial(open_model, world / "wren", EngineSettings(), name="wren")
    contents = []
    for name, ray in (("alone", None), ("shared", TWO)):
        folder = tmp_path / name
        folder.mkdir()
        settings = RepresentSettings(top_k=5, shard_conversations=5, ray=ray)
        represent(opener, chats, settings, folder, model_hash="hash")
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]
    (tmp_path / "shared" / "manifest.json").unlink()  # killed when all shards were there
    represent(opener, chats, settings, tmp_path / "shared", model_hash="hash")
    assert {path.name: path.read_bytes() for path in (tmp_path / "shared").iterdir()} == contents[0]


def _project(folder: Path, world: Path, texts: int, **changes: Any) -> Path:
    folder.mkdir()
    rows = "".join(f"t{i},line {i} of the river,{'ab'[i % 2] if i < 20 else ''}\n" for i in range(texts))
    (folder / "texts.csv").write_text(f"key,text,human\n{rows}")
    book = {"variable": "kind", "question": "Which?", "labels": [{"name": n, "definition": n} for n in "ab"]}
    tree: dict[str, Any] = {
        "data": {"path": "texts.csv", "id": "key"},
        "models": {"small": {"path": str(world / "pivot")}},
        "strategies": {"zero_shot": {}},
        "gold": {"column": "human"},
        "dev": {"items": 6},
        "batch_size": 16,
    }
    (folder / "codebook.yaml").write_text(yaml.safe_dump(book))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(tree | changes))
    return folder


@pytest.mark.usefixtures("cluster")
def test_labels_are_those_of_one_process_and_a_frozen_recipe_may_be_shared_out(
    world: Path, tmp_path: Path, consilience: Callable[..., Any]
) -> None:
    project = _project(tmp_path / "p", world, 90)
    for words in (["dev"], ["freeze"], ["run"]):
        answer = consilience("annotate", words[0], project)
        assert answer.code == 0, answer.err
    labels = project / "labels" / "small.zero_shot.jsonl"
    alone = labels.read_bytes()
    labels.write_bytes(b"".join(alone.splitlines(keepends=True)[:20]))  # and goes on where one process stopped
    labels.with_suffix(".json").unlink()
    with (project / "recipe.yaml").open("a") as recipe:
        recipe.write("ray: {workers: 2}\n")
    answer = consilience("annotate", "run", project)
    assert answer.code == 0, answer.err
    assert labels.read_bytes() == alone


def test_a_killed_run_goes_on(world: Path, tmp_path: Path, consilience: Callable[..., Any]) -> None:
    pytest.importorskip("ray", reason="needs Ray: make test-ray")
    project = _project(tmp_path / "p", world, 4000, ray={"workers": 2})
    for words in (["dev"], ["freeze"]):
        assert consilience("annotate", words[0], project).code == 0
    command = [sys.executable, "-c", "from consilience.cli import main; main()", "annotate", "run", str(project)]
    labels = project / "labels" / "small.zero_shot.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (labels.is_file() and labels.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = labels.read_bytes().splitlines(keepends=True)
    assert 16 <= len(there) < 4000
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    whole = labels.read_bytes().splitlines(keepends=True)
    whole_of_before = [line for line in there if line.endswith(b"\n")]
    assert whole[: len(whole_of_before)] == whole_of_before
    assert [json.loads(line)["id"] for line in whole] == [f"t{i}" for i in range(4000)]
