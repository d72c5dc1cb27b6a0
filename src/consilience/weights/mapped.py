"""Stored tensors as mapped memory: nothing is copied, and what is in the system's cache is not read again."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import BackendError
from consilience.weights.headers import StoredTensor

# How numpy holds each of the format's types; the 8-bit floats and bfloat16 as plain bits.
NUMPY_DTYPES: dict[str, str] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E5M2": "u1",
    "I64": "<i8",
    "I32": "<i4",
    "I16": "<i2",
    "I8": "i1",
    "U64": "<u8",
    "U32": "<u4",
    "U16": "<u2",
    "U8": "u1",
    "BOOL": "u1",
}


class MappedFiles:
    """Files opened once, for reading their tensors. Close it, or leave its `with`, when no array is in use any more."""

    def __init__(self) -> None:
        self._maps: dict[Path, NDArray[np.uint8]] = {}

    def bytes_of(self, file: Path) -> NDArray[np.uint8]:
        """All of the file. Raises `BackendError` when it cannot be opened."""
        if file not in self._maps:
            try:
                with file.open("rb") as opened:
                    mapped = mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)
            except (OSError, ValueError) as error:
                raise BackendError(f"{file} cannot be read ({error}). Get the model's files again.") from None
            self._maps[file] = np.frombuffer(mapped, np.uint8)
        return self._maps[file]

    def array(self, tensor: StoredTensor) -> NDArray[Any]:
        """The tensor in its shape, as NUMPY_DTYPES say. A view of the file: leave it as it is."""
        raw = self.bytes_of(tensor.file)[tensor.offset : tensor.offset + tensor.nbytes]
        return raw.view(NUMPY_DTYPES[tensor.dtype]).reshape(tensor.shape)

    def will_need(self, tensor: StoredTensor) -> None:
        """Asks the system to read the tensor ahead. It may do nothing."""
        with tensor.file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), tensor.offset, tensor.nbytes, os.POSIX_FADV_WILLNEED)


def as_float32(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Numbers stored as `dtype`, a float type of the format, in float32."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array.astype(np.float32)
