"""The change of a model against its base as a LoRA adapter: the best approximation of a given rank, matrix by matrix.

A matrix is read by blocks of rows, a few times over, and never held as a whole (randomised subspace iteration, Halko,
Martinsson & Tropp, arXiv:0909.4061, algorithm 4.4). What has no rank, norms and biases, is stored as it is.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import BackendError, ConfigError
from consilience.merge.inputs import Input, as_json
from consilience.merge.lora import CONFIG, PREFIX, WEIGHTS
from consilience.weights.headers import StoredTensor, read_model

FLOATS: dict[str, np.dtype[Any]] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
BLOCK = 1 << 22  # numbers of a block of rows
OVERSAMPLING, PASSES = 16, 4
TRANSPOSED = ("gpt2", "gpt_bigcode", "imagegpt")  # model types whose linear layers store [in, out] (Conv1D)

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Extraction:
    """What an adapter holds of a change: `kept` is the share of the change's square, per matrix and in all."""

    rank: int
    kept: Mapping[str, float]
    kept_in_all: float
    whole: tuple[str, ...]
    left_out: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "rank": self.rank,
            "matrices": len(self.kept),
            "kept": self.kept_in_all,
            "kept_of": dict(self.kept),
            "whole": list(self.whole),
            "left_out": list(self.left_out),
        }


@dataclass(frozen=True, slots=True)
class Change:
    """`tuned - base` of one tensor, read by blocks of rows."""

    base: StoredTensor
    tuned: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.base.shape

    def blocks(self) -> Iterator[tuple[slice, F32]]:
        """Rows and their change in float32."""
        base, tuned = _numbers(self.base), _numbers(self.tuned)
        width = max(1, self.base.size // max(1, self.shape[0]))
        step = max(1, BLOCK // width)
        for start in range(0, self.shape[0], step):
            rows = slice(start, start + step)
            yield rows, _floats(tuned[rows], self.tuned.dtype) - _floats(base[rows], self.base.dtype)


def extract_lora(
    base: Input,
    tuned: Path,
    out: Path,
    *,
    rank: int,
    replace: bool = False,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> Extraction:
    """Writes the change from `base` to the model in the folder `tuned` as a peft adapter of `rank` into `out`.

    Matrices become LoRA factors (alpha = rank, so that the scale is 1), changed norms and biases are stored whole. A
    tensor that is neither, or that the two do not share in one shape, is left out and named.
    Raises `ConfigError` when `out` holds an adapter (unless `replace`), `BackendError` when the models share nothing.
    """
    if (out / CONFIG).exists() and not replace:
        raise ConfigError(f"{out} already holds an adapter. Give another folder.")
    if base.adapter is not None:
        raise ConfigError(f"the base {base.label} has an adapter of its own. Merge it into a base first.")
    after = read_model(tuned).tensors
    before = {name: part.tensor for name, part in base.parts.items()}
    transposed = base.config.get("model_type") in TRANSPOSED
    factors: dict[str, F32] = {}
    kept: dict[str, float] = {}
    squares, kept_squares = 0.0, 0.0
    left_out, modules, vectors = [], [], []
    for done, (name, old) in enumerate(before.items(), start=1):
        new = after.get(name)
        module, _, kind = name.rpartition(".")
        if new is None or new.shape != old.shape or {old.dtype, new.dtype} - {*FLOATS, "BF16"}:
            left_out.append(name)
        elif len(old.shape) == 2 and kind == "weight":
            left, right, square, kept_square = low_rank(Change(old, new), rank, seed=zlib.crc32(name.encode()))
            is_embedding = "embed" in module or "wte" in module or "wpe" in module
            factors |= _named(module, left, right, transposed=transposed, is_embedding=is_embedding)
            modules.append(module)
            kept[name] = kept_square / square if square else 1.0
            squares, kept_squares = squares + square, kept_squares + kept_square
        elif len(old.shape) == 1:
            vectors.append(Change(old, new))
        else:
            left_out.append(name)
        on_tensor(done, len(before))
    if not kept:
        raise BackendError(f"{tuned} shares no matrix with {base.label}. Give the base it was made from.")
    whole, saved, has_biases = _whole(vectors, modules, factors)
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.folder),
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "target_modules": sorted({module.rpartition(".")[2] for module in modules}),
        "modules_to_save": saved or None,
        "bias": "lora_only" if has_biases else "none",
        "fan_in_fan_out": transposed,
        "rank_pattern": {}, "alpha_pattern": {},
        "inference_mode": True,
    }  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    _write(out / WEIGHTS, factors)
    (out / CONFIG).write_bytes(as_json(settings))
    in_all = kept_squares / squares if squares else 1.0
    return Extraction(rank, kept, in_all, tuple(whole), tuple(left_out))


def _whole(
    vectors: Sequence[Change], modules: Sequence[str], factors: dict[str, F32]
) -> tuple[list[str], list[str], bool]:
    """Adds norms and biases to `factors`: names, kinds of modules stored whole, and whether biases are among them.

    peft stores a kind of module in all layers or in none, so one changed norm brings all of its kind along.
    """
    biases = [change for change in vectors if change.base.name.rpartition(".")[0] in modules]
    others = [change for change in vectors if change not in biases]
    has_biases = any(block.any() for change in biases for _, block in change.blocks())
    saved = {_module_kind(change) for change in others if any(block.any() for _, block in change.blocks())}
    stored = [(change, True) for change in biases if has_biases]
    stored += [(change, False) for change in others if _module_kind(change) in saved]
    for change, is_bias in stored:
        module, _, kind = change.base.name.rpartition(".")
        name = f"{PREFIX}{module}.base_layer.{kind}" if is_bias else f"{PREFIX}{module}.{kind}"
        factors[name] = _floats(_numbers(change.tuned)[:], change.tuned.dtype)
    return [change.base.name for change, _ in stored], sorted(saved), has_biases


def _module_kind(change: Change) -> str:
    return change.base.name.rpartition(".")[0].rpartition(".")[2]


def low_rank(change: Change, rank: int, *, seed: int) -> tuple[F32, F32, float, float]:
    """Factors [rows, rank] and [rank, columns] of the change, its square, and the square of their product.

    Exact where `rank + OVERSAMPLING` reaches the shorter side; else within a few per cent of the best, by PASSES passes
    of subspace iteration. Factors beyond the matrix's own rank are zero.
    """
    rows, columns = change.shape
    width = min(rank + OVERSAMPLING, rows, columns)
    basis = np.random.default_rng(seed).standard_normal((columns, width)).astype(np.float32)
    image = _times(change, basis)
    for _ in range(PASSES if width < min(rows, columns) else 1):
        image = _times(change, _orthonormal(_transposed_times(change, _orthonormal(image))))
    span = _orthonormal(image)
    projected = _transposed_times(change, span).T.astype(np.float64)
    left, values, right = np.linalg.svd(projected, full_matrices=False)
    values = values[:rank]
    roots = np.sqrt(values)
    factor_left = np.zeros((rows, rank), np.float32)
    factor_right = np.zeros((rank, columns), np.float32)
    factor_left[:, : len(values)] = (span @ left[:, : len(values)]) * roots
    factor_right[: len(values)] = roots[:, None] * right[: len(values)]
    square = sum(float(np.square(block, dtype=np.float64).sum()) for _, block in change.blocks())
    return factor_left, factor_right, square, min(square, float(np.square(values).sum()))


def _times(change: Change, right: F32) -> F32:
    product = np.empty((change.shape[0], right.shape[1]), np.float32)
    for rows, block in change.blocks():
        product[rows] = block @ right
    return product


def _transposed_times(change: Change, left: F32) -> F32:
    product = np.zeros((change.shape[1], left.shape[1]), np.float32)
    for rows, block in change.blocks():
        product += block.T @ left[rows]
    return product


def _orthonormal(columns: F32) -> F32:
    found: F32 = np.linalg.qr(columns.astype(np.float64))[0].astype(np.float32)
    return found


def _named(module: str, left: F32, right: F32, *, transposed: bool, is_embedding: bool) -> dict[str, F32]:
    """peft's names of a module's factors: the change is B A, its transpose for embeddings and Conv1D."""
    if is_embedding:
        return {f"{PREFIX}{module}.lora_embedding_A": left.T, f"{PREFIX}{module}.lora_embedding_B": right.T}
    if transposed and not module.endswith("lm_head"):
        left, right = right.T, left.T
    return {f"{PREFIX}{module}.lora_A.weight": right, f"{PREFIX}{module}.lora_B.weight": left}


def _numbers(tensor: StoredTensor) -> NDArray[Any]:
    dtype = FLOATS.get(tensor.dtype, np.dtype("<u2"))
    return np.memmap(tensor.file, dtype, "r", tensor.offset, tensor.shape)


def _floats(numbers: NDArray[Any], dtype: str) -> F32:
    if dtype != "BF16":
        return numbers.astype(np.float32)
    return (numbers.astype(np.uint32) << 16).view(np.float32)


def _write(path: Path, tensors: Mapping[str, F32]) -> None:
    """A safetensors file of float32 tensors, whole or not at all."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for tensor in tensors.values():
                file.write(np.ascontiguousarray(tensor).data)
        partial.replace(path)
    except OSError as error:
        raise BackendError(f"{path} cannot be written ({error.strerror}). Free some space.") from None
