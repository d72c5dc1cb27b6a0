"""PyTorch's `.bin` files without PyTorch: a restricted reading of the pickle says where each tensor's bytes lie.

A `.bin` is a zip archive of one pickle and of every storage's bytes, not compressed. The pickle is read by an
unpickler that knows four names and calls nothing else, so that no code of the file is run; still, such files are only
read where the caller asked for it.
"""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consilience.errors import BackendError
from consilience.weights.headers import StoredModel, StoredTensor

SINGLE, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
DTYPES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def read_pickled(folder: Path) -> StoredModel:
    """The tensors of a folder of pickled weights. Raises `BackendError` naming the file that is not read."""
    if (folder / SINGLE).is_file():
        shards = [SINGLE]
    elif (folder / INDEX).is_file():
        shards = sorted(set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    else:
        raise BackendError(f"{folder} holds no weights: expected {SINGLE}, or {INDEX} with its shards.")
    tensors: dict[str, StoredTensor] = {}
    for shard in shards:
        if not (folder / shard).is_file():
            raise BackendError(f"{folder} lacks its shard {shard}. Get the model's files again.")
        tensors |= _read_shard(folder / shard)
    return StoredModel(folder, tensors)


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor as the pickle describes it: numbers of a storage."""

    storage: tuple[str, str]  # dtype, the storage's name in the archive
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _read_shard(path: Path) -> dict[str, StoredTensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            root = pickled.removesuffix("data.pkl")
            if root + "byteorder" in archive.namelist() and archive.read(root + "byteorder") != b"little":
                raise BackendError(f"{path} was written big endian, which is not read. Save it as safetensors.")
            views = _Unpickler(io.BytesIO(archive.read(pickled))).load()
            entries = {info.filename: info for info in archive.infolist()}
    except (zipfile.BadZipFile, StopIteration, pickle.UnpicklingError, EOFError, struct.error) as error:
        raise BackendError(
            f"{path} is not read as PyTorch weights ({error or 'no data.pkl in it'}). transformers' "
            "from_pretrained(OLD).save_pretrained(NEW) writes safetensors."
        ) from None
    if not isinstance(views, dict) or not all(isinstance(view, _View) for view in views.values()):
        raise BackendError(f"{path} is not a mapping of names to tensors. Save the model as safetensors.")
    return {str(name): _stored(path, str(name), view, entries, root) for name, view in views.items()}


def _stored(path: Path, name: str, view: _View, entries: dict[str, zipfile.ZipInfo], root: str) -> StoredTensor:
    dtype, storage = view.storage
    row_major: list[int] = []
    step = 1
    for side in reversed(view.shape):
        row_major.insert(0, step)
        step *= side
    info = entries.get(f"{root}data/{storage}")
    if info is None or info.compress_type != zipfile.ZIP_STORED:
        raise BackendError(f"{path}: the numbers of {name} are missing or compressed. Save the model as safetensors.")
    if tuple(row_major) != view.strides and step > 1:
        raise BackendError(f"{path}: {name} is not stored row by row. Save the model as safetensors.")
    with path.open("rb") as file:  # the local header's extra field is padding, and longer than the directory says
        file.seek(info.header_offset)
        name_length, extra_length = struct.unpack("<26xHH", file.read(30))
    offset = info.header_offset + 30 + name_length + extra_length + view.start * SIZES[dtype]
    if view.start * SIZES[dtype] + step * SIZES[dtype] > info.file_size:
        raise BackendError(f"{path}: {name} is longer than its storage. Get the file again.")
    return StoredTensor(name, dtype, view.shape, path, offset)


class _Unpickler(pickle.Unpickler):
    """Knows ordered mappings, tensors, parameters and storages; any other name is refused."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): _view,
            ("torch._utils", "_rebuild_parameter"): lambda view, requires_grad, hooks: view,
        }
        if (module, name) in known:
            return known[module, name]
        if module in ("torch", "torch.storage") and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which weights do not need")

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        kind, dtype, name = pid[:3]
        if kind != "storage" or dtype not in SIZES:
            raise pickle.UnpicklingError("it refers to something that is no storage")
        return dtype, str(name)


def _view(storage: tuple[str, str], start: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> _View:
    return _View(storage, int(start), tuple(shape), tuple(strides))
