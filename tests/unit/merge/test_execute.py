"""Merging on disk: what is refused before and while merging, and what the result is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from consilience.config import parse
from consilience.errors import BackendError, ConfigError
from consilience.merge import MergeSettings, merge_checkpoints

LINEAR = MergeSettings(method="linear")


def save(folder: Path, **tensors: Tensor) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file(tensors, folder / "model.safetensors")
    return folder


def merged(tmp_path: Path, base: dict[str, Any], *models: dict[str, Any], how: MergeSettings = LINEAR) -> Any:
    folders = [save(tmp_path / f"model{k}", **tensors) for k, tensors in enumerate(models)]
    merge_checkpoints(save(tmp_path / "base", **base), folders, tmp_path / "out", how)
    return load_file(tmp_path / "out" / "model.safetensors")


def test_a_merged_model_loads_in_transformers(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    for seed, name in enumerate(("base", "one", "two")):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(tmp_path / name, max_shard_size="4KB")
    (tmp_path / "base" / "chat_template.jinja").write_text("{{ messages }}")
    seen: list[tuple[int, int]] = []
    merge_checkpoints(
        tmp_path / "base",
        [tmp_path / "one", tmp_path / "two"],
        tmp_path / "out",
        MergeSettings(method="linear", weights=(1, 3)),
        on_tensor=lambda done, total: seen.append((done, total)),
    )
    one, two, out = (LlamaForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("one", "two", "out"))
    for name, tensor in out.items():
        torch.testing.assert_close(tensor.double(), (one[name].double() + 3 * two[name].double()) / 4)
    assert seen == [(done, 12) for done in range(1, 13)]  # 9 tensors of the layer, embeddings, last norm, head
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "{{ messages }}"


def test_every_tensor_has_the_dtype_of_the_base(tmp_path: Path) -> None:
    base = {"a": torch.zeros(2, dtype=torch.bfloat16), "b": torch.zeros(2), "c": torch.zeros(2, dtype=torch.float16)}
    model = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.float64), "c": torch.ones(2, dtype=torch.bfloat16)}
    out = merged(tmp_path, base, model)
    assert {name: tensor.dtype for name, tensor in out.items()} == {
        "a": torch.bfloat16,
        "b": torch.float32,
        "c": torch.float16,
    }
    assert all(torch.equal(tensor.float(), torch.ones(2)) for tensor in out.values())


def test_what_is_the_same_everywhere_is_copied(tmp_path: Path) -> None:
    same = {"ids": torch.arange(5), "flags": torch.tensor([True, False]), "w": torch.tensor([0.1, -0.0])}
    out = merged(tmp_path, same, same, same, same)
    assert all(out[name].numpy().tobytes() == tensor.numpy().tobytes() for name, tensor in same.items())


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int64, "I64"), (torch.uint8, "U8"), (torch.float8_e4m3fn, "F8_E4M3")]
)
def test_what_is_not_plain_floats_and_differs_is_refused(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    with pytest.raises(BackendError, match=f"tensor q is stored as {name} and differs"):
        merged(tmp_path, {"q": torch.zeros(2).to(dtype)}, {"q": torch.ones(2).to(dtype)})


def test_a_tensor_that_a_model_lacks(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"tensor head has shape \[3, 2\] in .*base and is missing in .*model0"):
        merged(tmp_path, {"w": torch.zeros(2), "head": torch.zeros(3, 2)}, {"w": torch.zeros(2)})
    assert not (tmp_path / "out").exists()


def test_a_tensor_that_the_base_lacks_is_not_dropped(tmp_path: Path) -> None:
    both = {"w": torch.zeros(2)}
    with pytest.raises(BackendError, match=r"tensor head has shape \[3, 2\] in .*model1 and is missing in .*base"):
        merged(tmp_path, both, both, both | {"head": torch.zeros(3, 2)})


def test_a_tensor_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"tensor w has shape \[8, 2\] in .*base and \[9, 2\] in .*model0"):
        merged(tmp_path, {"w": torch.zeros(8, 2)}, {"w": torch.zeros(9, 2)})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named(tmp_path: Path, number: float) -> None:
    sound, broken = {"w": torch.zeros(3)}, {"w": torch.tensor([0, number, number])}
    with pytest.raises(BackendError, match=r"tensor w of .*model1 holds 2 numbers that are not finite"):
        merged(tmp_path, sound, sound, broken)
    assert not list((tmp_path / "out").glob("*safetensors*"))


def test_a_result_too_large_for_the_base_is_named(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"merged tensor w, as F16, holds numbers that are not finite"):
        merged(tmp_path, {"w": torch.zeros(2, dtype=torch.float16)}, {"w": torch.tensor([1e6, 1.0])})


def test_a_model_is_not_overwritten(tmp_path: Path) -> None:
    base, tune, other = (
        save(tmp_path / name, w=torch.full((2,), float(n))) for n, name in enumerate(("base", "tune", "other"))
    )
    for out in (tune, tmp_path / "other" / ".." / "base"):
        with pytest.raises(ConfigError, match="also an input"):
            merge_checkpoints(base, [tune], out, LINEAR, replace=True)
    with pytest.raises(ConfigError, match="already holds a model"):
        merge_checkpoints(base, [tune], other, LINEAR)
    assert load_file(other / "model.safetensors")["w"].tolist() == [2, 2]
    merge_checkpoints(base, [tune], other, LINEAR, replace=True)
    assert load_file(other / "model.safetensors")["w"].tolist() == [1, 1]


def test_nothing_to_merge(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no models to merge"):
        merge_checkpoints(tmp_path, [], tmp_path / "out", LINEAR)


def test_weights_are_counted_before_a_file_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 values of weight for 1 models"):
        merge_checkpoints(
            tmp_path / "no", [tmp_path / "nor"], tmp_path / "out", MergeSettings(method="ties", weights=(1, 2, 3))
        )


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"method": "tise"}, "no merge method is called 'tise'. Did you mean 'ties'"),
        ({"method": "linear", "density": 0.5}, "linear takes no 'density'. It takes weight, normalize"),
        ({"method": "varm", "weights": [1, 2]}, "varm takes no 'weight'"),
        ({"method": "sce", "density": 50}, "density is 50; expected a number above 0 and up to 1"),
        ({"method": "linear", "weights": [1, -1]}, "sum to 0"),
        ({"density": 0.3}, "key 'method' is missing"),
        ({"method": "sce", "densty": 0.5}, "unknown key 'densty'. Did you mean 'density'"),
    ],
)
def test_settings_that_cannot_be_used(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(tree, MergeSettings, where="recipe")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_left_out_are_the_methods_own() -> None:
    assert MergeSettings(method="linear").parameters_for(2) == {"weight": (1.0, 1.0), "normalize": True}
    assert MergeSettings(method="sce", density=0.3, variant="mergekit").parameters_for(3) == {
        "density": 0.3,
        "variant": "mergekit",
    }
