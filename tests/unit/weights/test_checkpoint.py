"""Checkpoints against transformers and safetensors: they must read what we write, and we what they write."""

from __future__ import annotations

import json
import resource
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from consilience.errors import BackendError
from consilience.weights import Checkpoint, checkpoint, copy_companions, holds_checkpoint, write_checkpoint


def tiny_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "gpt2":  # its embeddings are tied
        return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    sizes: dict[str, Any] = {"vocab_size": 96, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))


def logits_of(model: PreTrainedModel) -> Tensor:
    model.train(False)
    with torch.no_grad():
        logits: Tensor = model(torch.arange(12).unsqueeze(0)).logits
    return logits


def all_tensors(source: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    return ((name, source.tensor(name)) for name in source.names)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("shard_bytes", [5_000_000_000, 4_000])
def test_a_rewritten_model_gives_the_same_logits(tmp_path: Path, kind: str, shard_bytes: int) -> None:
    model = tiny_model(kind)
    model.save_pretrained(tmp_path / "saved")
    source = Checkpoint(tmp_path / "saved")
    write_checkpoint(tmp_path / "rewritten", all_tensors(source), shard_bytes=shard_bytes)
    copy_companions(tmp_path / "saved", tmp_path / "rewritten")

    loading: Any = AutoModelForCausalLM.from_pretrained
    loaded, info = loading(tmp_path / "rewritten", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits_of(loaded), logits_of(model))


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    assert "lm_head.weight" not in Checkpoint(tmp_path).names


def test_shards_written_by_transformers_are_read(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    source = Checkpoint(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    expected = model.state_dict()
    assert sorted(source.names) == sorted(expected)
    for name, tensor in expected.items():
        assert source.shapes[name] == tuple(tensor.shape)
        assert source.dtypes[name] == tensor.dtype
        assert torch.equal(source.tensor(name), tensor)


dtypes = st.sampled_from(sorted(checkpoint.DTYPES.values(), key=str))
shapes = st.lists(st.integers(0, 5), max_size=3)


@settings(deadline=None, max_examples=60)
@given(specs=st.lists(st.tuples(dtypes, shapes), min_size=1, max_size=6), shard_bytes=st.integers(1, 400))
def test_the_safetensors_library_reads_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, specs: list[tuple[torch.dtype, list[int]]], shard_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("written")
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"layer.{i}.weight": (torch.randn(shape, generator=generator) * 3).to(dtype)
        for i, (dtype, shape) in enumerate(specs)
    }
    write_checkpoint(folder, tensors.items(), shard_bytes=shard_bytes)

    files = sorted(folder.glob("*.safetensors"))
    found = {name: (file.name, tensor) for file in files for name, tensor in load_file(file).items()}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        ours = found[name][1]
        assert ours.dtype == tensor.dtype
        assert ours.shape == tensor.shape
        assert torch.equal(ours.float(), tensor.float())
    for file in files:
        sizes = [tensor.nbytes for shard, tensor in found.values() if shard == file.name]
        assert sizes
        assert sum(sizes) <= shard_bytes or sum(size > 0 for size in sizes) == 1
    if len(files) > 1:
        index = json.loads((folder / "model.safetensors.index.json").read_text())
        assert index["weight_map"] == {name: shard for name, (shard, _) in found.items()}
        assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
        assert [file.name for file in files] == [
            f"model-{k:05d}-of-{len(files):05d}.safetensors" for k in range(1, len(files) + 1)
        ]
    else:
        assert files == [folder / "model.safetensors"]
    assert not list(folder.glob("*.partial"))


def test_strided_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    write_checkpoint(tmp_path, [("transposed", matrix.T), ("column", matrix[:, 1])])
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["transposed"], matrix.T)
    assert torch.equal(found["column"], torch.tensor([1.0, 5.0, 9.0]))


def test_written_tensors_are_let_go(tmp_path: Path) -> None:
    written: list[weakref.ref[Tensor]] = []

    def stream() -> Iterator[tuple[str, Tensor]]:
        for i in range(5):
            assert sum(earlier() is not None for earlier in written) <= 1
            tensor = torch.full((10,), float(i))
            written.append(weakref.ref(tensor))
            yield f"t{i}", tensor
            del tensor

    write_checkpoint(tmp_path, stream())
    assert len(written) == 5


def test_a_full_header_begins_another_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint._Shard, "HEADER_BYTES", 4096)
    tensors = {f"block.{i}.weight": torch.tensor([float(i)]) for i in range(100)}
    write_checkpoint(tmp_path, tensors.items())
    source = Checkpoint(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert {name: float(source.tensor(name)) for name in source.names} == {f"block.{i}.weight": i for i in range(100)}


def test_earlier_weights_are_replaced_whole(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, [(f"old{i}", torch.zeros(4)) for i in range(3)], shard_bytes=16)
    (tmp_path / "model-00009.safetensors.partial").write_bytes(b"left by a kill")
    write_checkpoint(tmp_path, [("new", torch.ones(4))])
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    write_checkpoint(tmp_path, [(f"newer{i}", torch.zeros(4)) for i in range(2)], shard_bytes=16)
    assert sorted(Checkpoint(tmp_path).names) == ["newer0", "newer1"]


def test_a_stream_that_breaks_off_changes_nothing(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, [("kept", torch.ones(4))])

    def stream() -> Iterator[tuple[str, Tensor]]:
        yield "first", torch.zeros(4)
        raise BackendError("the second tensor is not to be had")

    with pytest.raises(BackendError, match="second tensor"):
        write_checkpoint(tmp_path, stream(), shard_bytes=8)
    assert [file.name for file in tmp_path.iterdir()] == ["model.safetensors"]
    assert Checkpoint(tmp_path).names == ["kept"]


def test_a_disk_that_takes_no_more_is_named(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(BackendError, match="cannot be written"):
            write_checkpoint(tmp_path / "out", [("large", torch.zeros(1_000_000))])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not holds_checkpoint(tmp_path / "out")


def test_a_tensor_written_twice_is_our_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="twice"):
        write_checkpoint(tmp_path, [("t", torch.zeros(1)), ("t", torch.ones(1))])


def sharded(folder: Path) -> Path:
    write_checkpoint(folder, [("a", torch.zeros(4)), ("b", torch.zeros(4))], shard_bytes=16)
    return folder


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no model folder"):
        Checkpoint(tmp_path / "nowhere")


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="holds no weights"):
        Checkpoint(tmp_path)


def test_a_missing_shard(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BackendError, match=r"lacks its shard model-00002-of-00002\.safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("size", [0, 5, 100, 262_152])
def test_a_truncated_shard(tmp_path: Path, size: int) -> None:
    write_checkpoint(tmp_path, [("a", torch.zeros(400))])
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(size)
    with pytest.raises(BackendError, match="not readable as safetensors"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_an_index_that_cannot_be_read(tmp_path: Path, index: str) -> None:
    (sharded(tmp_path) / "model.safetensors.index.json").write_text(index)
    with pytest.raises(BackendError, match="has no 'weight_map'"):
        Checkpoint(tmp_path)


def test_an_index_that_names_what_is_not_there(tmp_path: Path) -> None:
    path = sharded(tmp_path) / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["c"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(BackendError, match=r"says that c is in model-00001-of-00002\.safetensors"):
        Checkpoint(tmp_path)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BackendError, match=r"pickled weights .*save_pretrained"):
        Checkpoint(tmp_path)


def test_an_adapter_is_not_a_model(tmp_path: Path) -> None:
    save_file({"lora_A": torch.zeros(1)}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(BackendError, match="merge_and_unload"):
        Checkpoint(tmp_path)


def test_a_dtype_that_is_not_read_is_named(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    with pytest.raises(BackendError, match="a is stored as C64"):
        Checkpoint(tmp_path)


def test_an_unknown_tensor(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no tensor z"):
        Checkpoint(sharded(tmp_path)).tensor("z")
