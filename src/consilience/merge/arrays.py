"""A merge of arrays in memory, with the same code that merges checkpoints on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import ConfigError
from consilience.merge.blocks import BUFFERS, CODES, Job, Workers, address_of, keys_of
from consilience.merge.compute import on_cpu
from consilience.merge.drive import Engine, merge
from consilience.merge.methods import MERGES, Facts, check_parameters

STORED_AS = {"float64": "F64", "float32": "F32", "float16": "F16", "uint16": "BF16"}


def merge_arrays(
    method: str,
    base: NDArray[Any] | None,
    models: Sequence[NDArray[Any]],
    *,
    seed: int = 0,
    name: str = "",
    threads: int = 1,
    engine: Engine | None = None,
    **parameters: Any,
) -> NDArray[Any]:
    """One tensor of `models` merged by a method of MERGES; float64, float32, float16, or bfloat16 as uint16 bits.

    The result has the type of the base, or of the first model. `seed` and `name` are what random methods draw with.
    `engine` goes over the numbers, if not the cpu. The inputs are left as they are. Raises `ConfigError` for
    parameters, a base or shapes that cannot be used.
    """
    checked = check_parameters(method, parameters, len(models))
    if base is None and MERGES[method].base == "required":
        raise ConfigError(f"{method} needs a base.")
    if MERGES[method].base == "none":
        base = None
    arrays = [*([] if base is None else [base]), *models]
    if len({array.shape for array in arrays}) > 1:
        raise ConfigError(f"the inputs have shapes {[array.shape for array in arrays]}; expected one shape.")
    dtype = STORED_AS[arrays[0].dtype.name]
    merged = np.zeros(arrays[0].size, BUFFERS[dtype])

    def write(start: int, block: NDArray[Any]) -> None:
        merged[start : start + len(block)] = block

    shape = arrays[0].shape
    job = Job(
        Facts(merged.size, shape[-1] if shape else 1, len(models), base is not None),
        [ArrayOperand(array, STORED_AS[array.dtype.name]) for array in arrays],
        keys_of(seed, name, len(models)),
        dtype,
        write,
        statistics=False,
    )
    workers = Workers(threads)
    try:
        merge([MERGES[method].steps(job.facts, checked)], [job], engine or on_cpu(workers))
    finally:
        workers.close()
    return merged.reshape(shape)


class ArrayOperand:
    """An array in memory, of a type in BUFFERS; bfloat16 as its bits in uint16."""

    def __init__(self, array: NDArray[Any], dtype: str) -> None:
        self.array = np.ascontiguousarray(array).reshape(-1)
        self.code = CODES[dtype]

    def part(self, start: int, stop: int) -> tuple[int, int, Any]:
        return address_of(self.array) + start * self.array.itemsize, self.code, self.array
