"""PyTorch's own files, read without it: torch.save is the outside expectation."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from consilience.errors import BackendError
from consilience.weights.pickled import read_pickled


def bytes_of(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def test_every_tensor_lies_where_it_is_said_to(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    weights = OrderedDict(
        whole=whole,
        view=whole[1:],
        bf16=torch.randn(5).bfloat16(),
        parameter=torch.nn.Parameter(torch.ones(2, 2)),
        number=torch.tensor(3),
        half=torch.ones(3).half(),
        empty=torch.zeros(0, 4),
    )
    torch.save(weights, tmp_path / "pytorch_model.bin")
    found = read_pickled(tmp_path).tensors
    assert list(found) == list(weights)
    for name, tensor in weights.items():
        with found[name].file.open("rb") as file:
            file.seek(found[name].offset)
            assert file.read(found[name].nbytes) == bytes_of(tensor)
        assert found[name].shape == tuple(tensor.shape)


def test_shards(tmp_path: Path) -> None:
    for shard, name in (("one.bin", "a"), ("two.bin", "b")):
        torch.save({name: torch.ones(2)}, tmp_path / shard)
    index = {"weight_map": {"a": "one.bin", "b": "two.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert read_pickled(tmp_path).tensors.keys() == {"a", "b"}
    (tmp_path / "two.bin").unlink()
    with pytest.raises(BackendError, match=r"two\.bin"):
        read_pickled(tmp_path)


class Command:
    """What a hostile file holds: loading it the ordinary way runs the command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Command(tmp_path / "made")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(BackendError, match=r"mkdir, which weights do not need"):
        read_pickled(tmp_path)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("weights", [{"t": torch.ones(3, 4).t()}, [torch.ones(2)], {"a": 3}])
def test_what_is_not_plain_weights(tmp_path: Path, weights: Any) -> None:
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(BackendError, match=r"pytorch_model\.bin"):
        read_pickled(tmp_path)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"no archive")
    with pytest.raises(BackendError, match=r"pytorch_model\.bin is not read"):
        read_pickled(tmp_path)
