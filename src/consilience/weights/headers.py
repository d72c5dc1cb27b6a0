"""Safetensors headers, read with numpy alone: where every tensor of a model folder lies.

[8 bytes: length of the header][header: JSON, name -> dtype, shape, offsets][the tensors' bytes, one after another]
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from consilience.errors import BackendError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Bytes of one number, by the format's names (github.com/huggingface/safetensors, "Format").
ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor's bytes lie: `nbytes` from `offset` of `file`, row after row, little endian."""

    name: str
    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class StoredModel:
    """A folder's tensors by name, in the order of the files."""

    folder: Path
    tensors: Mapping[str, StoredTensor]

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The shards, in the order of their names."""
        return tuple(sorted({tensor.file for tensor in self.tensors.values()}))


def read_model(folder: Path) -> StoredModel:
    """The tensors of a local Hugging Face folder: one `model.safetensors`, or shards with an index.

    Raises `BackendError` naming the file when the folder or a shard is missing, cut off or not sound, when the index
    and the shards disagree, or when the weights are pickled.
    """
    index = index_of(folder)
    tensors: dict[str, StoredTensor] = {}
    for shard in sorted(set(index.values())) if index else [SINGLE]:
        if not (folder / shard).is_file():
            raise BackendError(f"{folder} lacks its shard {shard}. Get the model's files again.")
        for tensor in read_header(folder / shard):
            # Where a tensor is in two shards, the index says whose copy counts.
            if not index or index.get(tensor.name, shard) == shard:
                tensors[tensor.name] = tensor
    for name, shard in index.items():
        if name not in tensors:
            raise BackendError(
                f"{folder / INDEX} says that {name} is in {shard}, but it is not. Get the model's files again."
            )
    return StoredModel(folder, tensors)


def holds_checkpoint(folder: Path) -> bool:
    """Whether `folder` has finished weights in safetensors."""
    return (folder / SINGLE).is_file() or (folder / INDEX).is_file()


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of one safetensors file, in the order of their bytes.

    Raises `BackendError` when the file is cut off, has bytes to spare, or tensors that overlap or do not fit their
    shape.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise _unsound(path, "its header does not fit the file")
        try:
            header = json.loads(file.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            tensors = [
                (
                    StoredTensor(
                        name,
                        str(entry["dtype"]),
                        tuple(int(side) for side in entry["shape"]),
                        path,
                        8 + length + int(entry["data_offsets"][0]),
                    ),
                    8 + length + int(entry["data_offsets"][1]),
                )
                for name, entry in entries.items()
            ]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise _unsound(path, "its header is not readable") from None
    end = 8 + length
    for tensor, stop in sorted(tensors, key=lambda pair: (pair[0].offset, pair[1])):
        if tensor.dtype not in ITEM_BYTES:
            raise BackendError(
                f"{path}: {tensor.name} is stored as {tensor.dtype}, which is not read here. "
                "Save the model in float32, float16 or bfloat16."
            )
        if min(tensor.shape, default=0) < 0 or stop - tensor.offset != tensor.nbytes or tensor.offset != end:
            raise _unsound(path, f"the bytes of {tensor.name} are not where its shape says")
        end = stop
    if end != size:
        raise _unsound(path, f"it has {size:,} bytes and its header describes {end:,}")
    return sorted((tensor for tensor, _ in tensors), key=lambda tensor: tensor.offset)


def _unsound(path: Path, why: str) -> BackendError:
    return BackendError(f"{path} is not readable as safetensors: {why}. It may be cut off: get the file again.")


def index_of(folder: Path) -> dict[str, str]:
    """Tensor name -> shard file name; empty when all is in one `model.safetensors`, which transformers reads first."""
    if not folder.is_dir():
        raise BackendError(
            f"no model folder {folder}. Models are read from disk: give the path of a Hugging Face folder, "
            "or fetch one with 'hf download NAME --local-dir FOLDER'."
        )
    if (folder / SINGLE).is_file():
        return {}
    if not (folder / INDEX).is_file():
        raise BackendError(_why_unreadable(folder))
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError):
        weight_map = None
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise BackendError(f"{folder / INDEX} has no 'weight_map' of tensors to shards. Get the model's files again.")
    for shard in set(weight_map.values()):
        if shard != Path(str(shard)).name:
            raise BackendError(
                f"{folder / INDEX} names the shard {shard!r}, which is not a file of that folder. "
                "Get the model's files again."
            )
    return {str(name): str(shard) for name, shard in weight_map.items()}


def _why_unreadable(folder: Path) -> str:
    if (folder / "adapter_model.safetensors").is_file():
        return (
            f"{folder} holds a LoRA adapter, not a model. Merge it into its base first: "
            "peft's AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(...)."
        )
    if any(folder.glob("*.bin")):
        return (
            f"{folder} holds pickled weights (.bin), which can run code and are not read. Convert them: transformers' "
            "AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW) writes safetensors."
        )
    return f"{folder} holds no weights: expected {SINGLE}, or {INDEX} with its shards."
