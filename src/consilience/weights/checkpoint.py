"""Hugging Face checkpoints as safetensors: `Checkpoint` reads one tensor at a time, `write_checkpoint` streams."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from consilience.errors import BackendError
from consilience.run import write_json
from consilience.weights.headers import INDEX, SINGLE, index_of

# The format's names (github.com/huggingface/safetensors, "Format").
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Checkpoint:
    """The weights of a local Hugging Face folder: names, shapes and dtypes from the headers, tensors when asked for.

    The names are those that `AutoModelForCausalLM.from_pretrained` finds: a tied `lm_head.weight` is not among them.
    Raises `BackendError` when the folder or a shard is missing or unreadable, or when the weights are pickled.
    """

    names: list[str]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names, self.shapes, self.dtypes = [], {}, {}
        self._shard_of: dict[str, Any] = {}  # handles of safe_open, whose methods have no types
        index = index_of(folder)
        for shard_name in sorted(set(index.values())) if index else [SINGLE]:
            shard = _open(folder / shard_name)
            for name in shard.keys():  # noqa: SIM118  a safe_open handle is not a mapping
                if index and index.get(name, shard_name) != shard_name:
                    continue  # the index says that another shard's copy counts
                header = shard.get_slice(name)
                dtype = header.get_dtype()
                if dtype not in DTYPES:
                    raise BackendError(
                        f"{folder / shard_name}: {name} is stored as {dtype}, which is not read here. "
                        "Save the model in float32, float16 or bfloat16."
                    )
                self.names.append(name)
                self.shapes[name] = tuple(header.get_shape())
                self.dtypes[name] = DTYPES[dtype]
                self._shard_of[name] = shard
        for name, shard_name in index.items():
            if name not in self._shard_of:
                raise BackendError(
                    f"{folder / INDEX} says that {name} is in {shard_name}, but it is not. Get the model's files again."
                )

    def tensor(self, name: str) -> Tensor:
        """The tensor called `name`, on the CPU. It may be a view of the mapped file: leave its values as they are."""
        if name not in self._shard_of:
            raise BackendError(f"{self.folder} has no tensor {name}.")
        tensor: Tensor = self._shard_of[name].get_tensor(name)
        return tensor


def _open(path: Path) -> Any:
    if not path.is_file():
        raise BackendError(f"{path.parent} lacks its shard {path.name}. Get the model's files again.")
    try:
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise BackendError(f"{path} is not readable as safetensors ({error}). Get the file again.") from None


def write_checkpoint(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, shard_bytes: int = 5_000_000_000) -> None:
    """Writes named tensors as they come, one at a time, into `folder`: `model.safetensors`, or shards with an index.

    A shard holds at most `shard_bytes` of tensors, or one larger tensor. Nothing has its final name before everything
    is on disk; then earlier weights in `folder` are replaced. When `tensors` raises, `folder` is as it was.
    Raises `BackendError` when the disk does not take the bytes.
    """
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left_by_a_kill in folder.glob("model-*.safetensors.partial"):
            left_by_a_kill.unlink()
        shards = [_Shard(folder / "model-00001.safetensors.partial")]
    try:
        for name, tensor in tensors:
            if any(name in shard.entries for shard in shards):
                raise ValueError(f"tensor {name} was written twice")
            with _writing(folder):
                if not shards[-1].has_room(tensor, shard_bytes):
                    shards[-1].finish()
                    shards.append(_Shard(folder / f"model-{len(shards) + 1:05d}.safetensors.partial"))
                shards[-1].add(name, tensor)
        with _writing(folder):
            shards[-1].finish()
            _name(shards, folder)
    finally:
        for shard in shards:
            shard.file.close()
            shard.path.unlink(missing_ok=True)  # there is none left where all went well


def _name(shards: list[_Shard], folder: Path) -> None:
    """Replaces earlier weights by the finished shards; the index comes last, so half a model is never found."""
    for earlier in (folder / SINGLE, folder / INDEX, *folder.glob("model-*-of-*.safetensors")):
        earlier.unlink(missing_ok=True)
    if len(shards) == 1:
        shards[0].path.rename(folder / SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        shard_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        shard.path.rename(folder / shard_name)
        weight_map |= dict.fromkeys(shard.entries, shard_name)
    total_size = sum(shard.bytes for shard in shards)
    write_json(folder / INDEX, {"metadata": {"total_size": total_size}, "weight_map": weight_map})


class _Shard:
    """A safetensors file in the making.

    The header names every tensor and comes first, so room is left for it: the format allows spaces at its end.
    """

    HEADER_BYTES = 1 << 18  # about 2,000 tensors; a model with more gets a further shard
    ENTRY_BYTES = 1 << 10  # no less than one tensor takes in the header

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("wb")
        self.file.seek(8 + self.HEADER_BYTES)
        self.entries: dict[str, str] = {}
        self.bytes = 0
        self._header_bytes = self.ENTRY_BYTES

    def has_room(self, tensor: Tensor, shard_bytes: int) -> bool:
        fits = self.bytes + tensor.nbytes <= shard_bytes and self._header_bytes + self.ENTRY_BYTES <= self.HEADER_BYTES
        return fits or not self.entries

    def add(self, name: str, tensor: Tensor) -> None:
        entry = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self.bytes, self.bytes + tensor.nbytes],
        }
        self.entries[name] = f"{json.dumps(name)}: {json.dumps(entry)}"
        self._header_bytes += len(self.entries[name]) + 2
        self.file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self.bytes += tensor.nbytes

    def finish(self) -> None:
        header = "{" + ", ".join(['"__metadata__": {"format": "pt"}', *self.entries.values()]) + "}"
        self.file.seek(0)
        self.file.write(struct.pack("<Q", self.HEADER_BYTES))
        self.file.write(header.encode().ljust(self.HEADER_BYTES))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BackendError(
            f"{folder} cannot be written ({error.strerror or error}). Free some space or give another folder."
        ) from None
