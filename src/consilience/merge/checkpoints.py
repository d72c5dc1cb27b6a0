"""Fine-tunes of one base, merged with one method for all tensors: what a fusion needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from pydantic import model_validator

from consilience.config import Settings
from consilience.errors import BackendError, ConfigError
from consilience.merge.execute import execute
from consilience.merge.methods import MERGES, check_parameters
from consilience.merge.plan import MergePlan, Part, Rows, TensorPlan
from consilience.weights import copy_companions, holds_checkpoint
from consilience.weights.headers import StoredModel, StoredTensor, read_model
from consilience.weights.mapped import MappedFiles

MERGED_DTYPES = ("F64", "F32", "F16", "BF16")
COMPARED_BYTES = 1 << 22


class MergeSettings(Settings):
    """A method of MERGES that needs no more than these parameters; one left out has the method's own default.

    `weights` go with the models in their order. A parameter that the method does not take is a `ConfigError`.
    """

    method: str
    weights: tuple[float, ...] | None = None
    density: float | None = None
    scale: float | None = None
    variant: str | None = None

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        self.parameters_for(len(self.weights) if self.weights else 2)
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's parameters that were given."""
        return self.model_dump(exclude={"method"}, exclude_none=True)

    def parameters_for(self, models: int) -> dict[str, Any]:
        """All of the method's parameters for that many models. Raises `ConfigError` when they cannot be used."""
        given = self.parameters
        if "weights" in given:
            given["weight"] = given.pop("weights")
        return check_parameters(self.method, given, models)


def merge_checkpoints(
    base: Path,
    models: Sequence[Path],
    out: Path,
    settings: MergeSettings,
    *,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
    replace: bool = False,
) -> None:
    """Merges the `models`, fine-tunes of `base`, into a checkpoint at `out` with the base's names, shapes and dtypes.

    Configuration, tokenizer and chat template are the base's. A tensor that is the same in every model and the base is
    copied bit for bit. `on_tensor(done, total)` is called after each tensor.

    Raises `ConfigError` when `out` already holds a model (unless `replace`) or is one of the inputs, and
    `BackendError` naming the tensor when it is missing in a model, has another shape, is not made of floating-point
    numbers and differs, or holds a number that is not finite. Settings, names and shapes are checked before any file
    is written.
    """
    if not models:
        raise ConfigError("no models to merge. Give one or more fine-tunes of the base.")
    if any(out.resolve() == folder.resolve() for folder in (base, *models)):
        raise ConfigError(f"{out} is also an input of the merge. Give --out another folder.")
    if holds_checkpoint(out) and not replace:
        raise ConfigError(f"{out} already holds a model. Give another folder.")
    parameters = settings.parameters_for(len(models))
    pivot, tunes = read_model(base), [read_model(folder) for folder in models]
    for tune in tunes:
        _refuse_mismatch(pivot, tune)
    tensors = tuple(_planned(name, pivot, tunes, settings.method, parameters) for name in pivot.tensors)
    execute([(MergePlan(tensors), out)], on_tensor=on_tensor, replace=True)
    copy_companions(base, out)


def _refuse_mismatch(base: StoredModel, model: StoredModel) -> None:
    for name in sorted(base.tensors.keys() | model.tensors.keys()):
        in_base, in_model = base.tensors.get(name), model.tensors.get(name)
        if in_base is None or in_model is None:
            has, lacks = (model, base) if in_base is None else (base, model)
            raise BackendError(
                f"tensor {name} has shape {list(has.tensors[name].shape)} in {has.folder} and is missing in "
                f"{lacks.folder}. Merge models of one architecture, with the same tied embeddings."
            )
        if in_base.shape != in_model.shape:
            raise BackendError(
                f"tensor {name} has shape {list(in_base.shape)} in {base.folder} and {list(in_model.shape)} in "
                f"{model.folder}. Merge models of one architecture and vocabulary size."
            )


def _planned(
    name: str, base: StoredModel, models: Sequence[StoredModel], method: str, parameters: dict[str, Any]
) -> TensorPlan:
    stored = [model.tensors[name] for model in (base, *models)]
    first = stored[0]
    if not {tensor.dtype for tensor in stored} <= {*MERGED_DTYPES}:
        if not _are_same(stored):
            kinds = ", ".join(sorted({tensor.dtype for tensor in stored}))
            raise BackendError(
                f"tensor {name} is stored as {kinds} and differs between {base.folder} and the models; only float "
                "weights are merged. Save a quantised model in bfloat16 first."
            )
        return TensorPlan(name, first.dtype, first.shape, "passthrough", {"scale": 1.0}, (_rows(base, name),))
    return TensorPlan(
        name,
        first.dtype,
        first.shape,
        method,
        parameters,
        tuple(_rows(model, name) for model in models),
        None if MERGES[method].base == "none" else _rows(base, name),
    )


def _rows(model: StoredModel, name: str) -> Rows:
    tensor = model.tensors[name]
    return Rows(str(model.folder), tensor.shape, (Part(tensor),))


def _are_same(stored: Sequence[StoredTensor]) -> bool:
    files = MappedFiles()
    first, *others = [files.bytes_of(one.file)[one.offset : one.offset + one.nbytes] for one in stored]
    return all(
        other.nbytes == first.nbytes
        and all(
            np.array_equal(first[start : start + COMPARED_BYTES], other[start : start + COMPARED_BYTES])
            for start in range(0, first.nbytes, COMPARED_BYTES)
        )
        for other in others
    )
