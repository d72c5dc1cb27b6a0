"""Merge plans carried out on disk: where inputs come from, resuming, several at once, what is refused and recorded."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_allclose
from safetensors.numpy import load_file, save_file

from consilience.errors import BackendError, ConfigError
from consilience.merge import execute
from consilience.merge.methods import MERGES, check_parameters
from consilience.merge.plan import LowRank, MergePlan, Part, Rows, TensorPlan
from consilience.weights.headers import StoredModel, read_model
from consilience.weights.planned import PARTIAL, PlannedCheckpoint

SHAPES = {"embed": (300, 16), "layers.0.w": (16, 16), "layers.0.b": (16,), "layers.1.w": (16, 16), "layers.1.b": (16,)}


def save(folder: Path, tensors: Mapping[str, Any]) -> StoredModel:
    folder.mkdir(parents=True)
    save_file(dict(tensors), folder / "model.safetensors")
    return read_model(folder)


@pytest.fixture
def models(tmp_path: Path) -> list[StoredModel]:
    """A base and two fine-tunes, float32."""
    made = []
    base = {name: np.random.default_rng(0).normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    for k, name in enumerate(("base", "one", "two")):
        rng = np.random.default_rng(k)
        tuned = {key: value + k * rng.normal(size=value.shape).astype(np.float32) / 8 for key, value in base.items()}
        made.append(save(tmp_path / name, tuned))
    return made


def whole(model: StoredModel, name: str) -> Rows:
    tensor = model.tensors[name]
    return Rows(model.folder.name, tensor.shape, (Part(tensor),))


def planned(models: list[StoredModel], method: str, *, dtype: str = "F32", seed: int = 0, **given: Any) -> MergePlan:
    base, *tunes = models
    parameters = check_parameters(method, given, len(tunes))
    return MergePlan(
        tuple(
            TensorPlan(
                name,
                dtype,
                shape,
                method,
                parameters,
                tuple(whole(model, name) for model in tunes),
                None if MERGES[method].base == "none" else whole(base, name),
            )
            for name, shape in SHAPES.items()
        ),
        seed=seed,
    )


def one(plan_of: Rows, *others: Rows, method: str = "linear", dtype: str = "F32", **given: Any) -> MergePlan:
    inputs = (plan_of, *others)
    parameters = check_parameters(method, given, len(inputs))
    return MergePlan((TensorPlan("w", dtype, plan_of.shape, method, parameters, inputs),))


def bytes_of(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def test_shards_and_index_hold_what_one_file_holds(models: list[StoredModel], tmp_path: Path) -> None:
    plan = planned(models, "linear")
    execute([(plan, tmp_path / "whole")])
    execute([(MergePlan(plan.tensors, shard_bytes=2_000), tmp_path / "shards")])
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    files = sorted(tmp_path.glob("shards/*.safetensors"))
    assert [file.name for file in files] == [f"model-{k:05d}-of-00003.safetensors" for k in range(1, 4)]
    assert index["metadata"]["total_size"] == 4 * sum(int(np.prod(shape)) for shape in SHAPES.values())
    expected = load_file(tmp_path / "whole" / "model.safetensors")
    for file in files:
        for name, tensor in load_file(file).items():
            assert index["weight_map"][name] == file.name
            assert tensor.tobytes() == expected.pop(name).tobytes()
    assert not expected
    assert not (tmp_path / "shards" / PARTIAL).exists()


def test_rows_of_several_tensors(tmp_path: Path) -> None:
    # Row 0 is the first tensor's row 2, row 1 the mean of both first rows, row 2 the second's row 1, row 3 nobody's.
    first = np.arange(6, dtype=np.float32).reshape(3, 2)
    second = 10 + np.arange(4, dtype=np.float32).reshape(2, 2)
    one_model, other = save(tmp_path / "a", {"e": first}), save(tmp_path / "b", {"e": second})
    rows = Rows(
        "a+b",
        (4, 2),
        (
            Part(one_model.tensors["e"], np.array([2, 0, -1, -1])),
            Part(other.tensors["e"], np.array([-1, 0, 1, -1])),
        ),
    )
    execute([(one(rows), tmp_path / "out")])
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].tolist() == [[4, 5], [5, 6], [12, 13], [0, 0]]


@pytest.mark.parametrize("transposed", [False, True])
def test_a_low_rank_change_is_added(tmp_path: Path, transposed: bool) -> None:
    rng = np.random.default_rng(0)
    weight, left, right = (rng.normal(size=shape).astype(np.float32) for shape in ((50, 30), (50, 4), (4, 30)))
    stored = {
        "w": weight,
        "left": np.ascontiguousarray(left.T if transposed else left),
        "right": np.ascontiguousarray(right.T if transposed else right),
    }
    tensors = save(tmp_path / "model", stored).tensors
    adapter = LowRank(tensors["left"], tensors["right"], 0.5, transposed, transposed)
    execute([(one(Rows("lora", (50, 30), (Part(tensors["w"], None, (adapter,)),))), tmp_path / "out")])
    expected = weight + 0.5 * left.astype(np.float64) @ right
    assert_allclose(load_file(tmp_path / "out" / "model.safetensors")["w"], expected, rtol=1e-6, atol=1e-6)


def test_types_that_are_not_merged_are_copied(tmp_path: Path) -> None:
    counter = save(tmp_path / "model", {"n": np.arange(7)})
    execute([(one(whole(counter, "n"), method="passthrough", dtype="I64"), tmp_path / "out")])
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].tolist() == list(range(7))


@pytest.mark.parametrize("method", ["ties", "dare_ties"])
def test_a_stopped_merge_goes_on_with_the_same_bytes(
    models: list[StoredModel], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = MergePlan(planned(models, method).tensors, {"README.md": b"merged"}, shard_bytes=2_000)
    execute([(plan, tmp_path / "undisturbed")])
    finish = PlannedCheckpoint.finish
    seen: list[str] = []

    def stop(self: PlannedCheckpoint, name: str, record: Any) -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(name)
        finish(self, name, record)

    monkeypatch.setattr(PlannedCheckpoint, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        execute([(plan, tmp_path / "out")], threads=1)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == [PARTIAL]
    with (tmp_path / "out" / PARTIAL / "journal.jsonl").open("a") as journal:
        journal.write('{"tensor": "layers.1.')  # a line that a kill cut off

    again: list[str] = []
    monkeypatch.setattr(
        PlannedCheckpoint, "finish", lambda self, name, record: (again.append(name), finish(self, name, record))[1]
    )
    execute([(plan, tmp_path / "out")])
    assert len(again) == len(SHAPES) - 2
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "undisturbed")


@pytest.mark.parametrize("renamed", range(1, 6))
def test_a_merge_stopped_while_it_gives_names_goes_on(
    models: list[StoredModel], tmp_path: Path, renamed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = MergePlan(planned(models, "linear").tensors, {"README.md": b"merged"}, shard_bytes=2_000)
    execute([(plan, tmp_path / "undisturbed")])
    rename, calls = Path.rename, []

    def stop(self: Path, target: Path) -> Path:
        if self.parent.name == PARTIAL and target.parent.name == "out":
            calls.append(target)
            if len(calls) > renamed:
                raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises(KeyboardInterrupt):
        execute([(plan, tmp_path / "out")])
    monkeypatch.undo()
    execute([(plan, tmp_path / "out")])
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "undisturbed")


def test_what_is_finished_is_not_made_again(models: list[StoredModel], tmp_path: Path) -> None:
    plans = [(planned(models, method), tmp_path / method) for method in ("linear", "ties")]
    first = execute(plans[:1])
    before = bytes_of(tmp_path / "linear")
    (tmp_path / "linear" / PARTIAL).mkdir()  # a kill in the last moment
    manifests = execute(plans)
    assert bytes_of(tmp_path / "linear") == before
    assert not (tmp_path / "linear" / PARTIAL).exists()
    assert manifests[0] == json.loads(json.dumps(first[0]))
    assert manifests[1]["tensors"]["embed"]["method"] == "ties"


def test_a_shard_that_went_missing_is_made_again(
    models: list[StoredModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = MergePlan(planned(models, "linear").tensors, shard_bytes=2_000)
    execute([(plan, tmp_path / "undisturbed")])
    monkeypatch.setattr(PlannedCheckpoint, "publish", lambda self, files, documents: self.close())
    execute([(plan, tmp_path / "out")])
    monkeypatch.undo()
    (tmp_path / "out" / PARTIAL / "model-00002-of-00003.safetensors").unlink()
    execute([(plan, tmp_path / "out")])
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "undisturbed")


def test_what_another_plan_left_is_not_gone_on_with(
    models: list[StoredModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlannedCheckpoint, "publish", lambda self, files, documents: self.close())
    execute([(planned(models, "dare_linear", seed=1), tmp_path / "out")])
    monkeypatch.undo()
    execute([(planned(models, "dare_linear", seed=2), tmp_path / "out")])
    execute([(planned(models, "dare_linear", seed=2), tmp_path / "fresh")])
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "fresh")


def test_several_plans_in_one_pass_give_what_each_gives_alone(models: list[StoredModel], tmp_path: Path) -> None:
    plans = {
        "ties": planned(models, "ties"),
        "sparser": planned(models, "ties", density=0.1),
        "global": planned(models, "ties", scope="global"),
        "linear": planned(models, "linear", dtype="BF16"),
        "uneven": planned(models, "linear", dtype="F16", weight=(0.5, -1.5), normalize=False),
        "half": planned(models, "task_arithmetic", scale=0.5),
        "double": planned(models, "task_arithmetic", scale=2.0),
        "multislerp": planned(models, "multislerp"),
        "stock": planned(models, "model_stock"),
        "stock by row": planned(models, "model_stock", filter_wise=True),
        "varm": planned(models, "varm", granularity="layer"),
        "varm by matrix": planned(models, "varm"),
        "sce": planned(models, "sce"),
        "sce of many": planned(models, "sce", density=0.6),
        "dare": planned(models, "dare_ties", rescale="l1"),
        "dare again": planned(models, "dare_linear", rescale="l1"),
        "dare otherwise": planned(models, "dare_linear", rescale="l1", seed=7),
        "della": planned(models, "della", rescale="l1"),
        "della of few": planned(models, "della", rescale="l1", density=0.3),
    }
    for name, plan in plans.items():
        execute([(plan, tmp_path / "alone" / name)])
    execute([(plan, tmp_path / "together" / name) for name, plan in plans.items()], threads=2)
    assert bytes_of(tmp_path / "together") == bytes_of(tmp_path / "alone")


def arrays(model: StoredModel) -> dict[str, Any]:
    return {name: value.astype(np.float64) for name, value in load_file(model.folder / "model.safetensors").items()}


def test_global_ties_trims_all_tensors_together(models: list[StoredModel], tmp_path: Path) -> None:
    execute([(planned(models, "ties", scope="global", density=0.3), tmp_path / "out")])
    base, *tunes = map(arrays, models)
    deltas = [{name: tune[name] - base[name] for name in base} for tune in tunes]
    everything = [np.sort(np.abs(np.concatenate([delta[name].ravel() for name in SHAPES]))) for delta in deltas]
    least = [sizes[sizes.size - int(0.3 * sizes.size)] for sizes in everything]
    result = load_file(tmp_path / "out" / "model.safetensors")
    for name in SHAPES:
        trimmed = np.stack([delta[name] * (np.abs(delta[name]) >= size) for delta, size in zip(deltas, least)])
        sign = np.where(trimmed.sum(0) >= 0, 1, -1)
        agree = trimmed * sign > 0
        mean = (trimmed * agree).sum(0) / np.maximum(agree.sum(0), 1)
        assert_allclose(result[name], base[name] + mean, atol=1e-6)


@pytest.mark.parametrize("granularity", ["layer", "model"])
def test_varm_over_layers_and_the_whole_model(models: list[StoredModel], tmp_path: Path, granularity: str) -> None:
    (manifest,) = execute([(planned(models, "varm", granularity=granularity), tmp_path / "out")])
    base, *tunes = map(arrays, models)
    squares = {name: np.array([((tune[name] - base[name]) ** 2).sum() for tune in tunes]) for name in base}
    for name in SHAPES:
        unit = [
            other
            for other in SHAPES
            if granularity == "model" or other.split(".w")[0].split(".b")[0] == name.split(".w")[0].split(".b")[0]
        ]
        total = sum(squares[other] for other in unit)
        assert_allclose(manifest["tensors"][name]["shares"], total / total.sum())


def test_the_manifest_says_how_far_everything_moved(models: list[StoredModel], tmp_path: Path) -> None:
    (manifest,) = execute([(planned(models, "task_arithmetic", scale=0.5), tmp_path / "out")])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == json.loads(json.dumps(manifest))
    base, first, second = map(arrays, models)
    for name in SHAPES:
        said = manifest["tensors"][name]
        deltas = [(tune[name] - base[name]).ravel() for tune in (first, second)]
        merged = 0.5 * (deltas[0] + deltas[1])
        norms = [float(np.linalg.norm(delta)) for delta in (*deltas, merged)]
        assert_allclose([said["delta_norms"][key] for key in ("one", "two", "result")], norms, rtol=1e-5)
        cosine = deltas[0] @ deltas[1] / (norms[0] * norms[1])
        assert said["cosines"]["one two"] == pytest.approx(cosine, abs=1e-5)
        assert said["coefficients"] == [0.0, 0.5, 0.5]
    assert {Path(file).parent.name for file in manifest["inputs"]} == {"base", "one", "two"}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("method", sorted(MERGES.keys() - {"slerp", "nearswap", "passthrough", "arcee_fusion"}))
@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, method: str, number: float) -> None:
    sound = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    broken = {name: value.copy() for name, value in sound.items()}
    broken["layers.1.w"][3, 4] = number
    models = [save(tmp_path / name, tensors) for name, tensors in (("a", sound), ("b", sound), ("c", broken))]
    with pytest.raises(BackendError, match=r"tensor layers.1.w of c holds 1 numbers that are not finite"):
        execute([(planned(models, method), tmp_path / "out")])
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_disk_that_is_too_small(models: list[StoredModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 100, 100))
    with pytest.raises(BackendError, match=r"needs .* GB and the disk has 0.0 GB left"):
        execute([(planned(models, "linear"), tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_used(models: list[StoredModel], tmp_path: Path) -> None:
    plan = planned(models, "linear")
    with pytest.raises(ConfigError, match="also an input"):
        execute([(plan, models[1].folder)], replace=True)
    with pytest.raises(ConfigError, match="given for two results"):
        execute([(plan, tmp_path / "out"), (plan, tmp_path / "out")])
    execute([(plan, tmp_path / "out")])
    with pytest.raises(ConfigError, match="already holds a model"):
        execute([(planned(models, "ties"), tmp_path / "out")])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="already holds files"):
        execute([(plan, tmp_path / "notes")])


def test_an_earlier_models_shards_do_not_stay(models: list[StoredModel], tmp_path: Path) -> None:
    plan = planned(models, "linear")
    execute([(MergePlan(plan.tensors, shard_bytes=2_000), tmp_path / "out")])
    execute([(planned(models, "ties"), tmp_path / "out")], replace=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["manifest.json", "model.safetensors"]
