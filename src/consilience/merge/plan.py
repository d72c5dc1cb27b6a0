"""What a merge is, resolved down to every tensor: the data between a recipe and its execution.

A plan says where each input's numbers lie on disk; nothing here reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.weights.headers import StoredTensor


@dataclass(frozen=True, slots=True)
class LowRank:
    """`scale * left @ right`, added to a matrix: a LoRA adapter's B and A. A factor may be stored transposed."""

    left: StoredTensor
    right: StoredTensor
    scale: float
    left_transposed: bool = False
    right_transposed: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A stored tensor, with adapters added, and which of its rows goes where.

    `rows[i]` is the stored row that becomes row i, -1 where this part has none; None: the rows as they are.
    """

    tensor: StoredTensor
    rows: NDArray[np.int64] | None = None
    adapters: tuple[LowRank, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """One input of a tensor's merge. Row i is the mean over the parts that have it, zeros where none has.

    One part with `rows=None` is the plain case: a tensor as it is stored. `model` is the input's name in the recipe,
    for messages and the manifest.
    """

    model: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]

    @property
    def plain(self) -> StoredTensor | None:
        """The stored tensor that this is, entry by entry; None where rows move or something is added."""
        part = self.parts[0]
        if len(self.parts) == 1 and part.rows is None and not part.adapters:
            return part.tensor
        return None


@dataclass(frozen=True, slots=True, eq=False)
class TensorPlan:
    """One tensor of the result. `parameters` has all of the method's, per-model ones as tuples in the models' order.

    A tensor that is only in some inputs and is to be copied has method "passthrough" and one model.
    """

    name: str
    dtype: str  # of the result, a key of weights.headers.ITEM_BYTES
    shape: tuple[int, ...]
    method: str
    parameters: Mapping[str, Any]
    models: tuple[Rows, ...]
    base: Rows | None = None


@dataclass(frozen=True, slots=True, eq=False)
class MergePlan:
    """A checkpoint to be made: its tensors in their order, the files beside the weights, and what to record.

    `files` maps the name of a file beside the weights (config.json, tokenizer.json, README.md) to the file that it is
    a copy of, or to its content. `recipe` goes into the manifest as it is.
    """

    tensors: tuple[TensorPlan, ...]
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    shard_bytes: int = 5_000_000_000
