"""Merging checkpoints on disk, tensor by tensor: one tensor of every model is in memory at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import model_validator
from torch import Tensor

from consilience.config import Settings
from consilience.errors import BackendError, ConfigError, pick
from consilience.merge.methods import MERGES, Merge
from consilience.weights import Checkpoint, copy_companions, holds_checkpoint, write_checkpoint

MERGEABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class MergeSettings(Settings):
    """A method of MERGES and its parameters; a parameter left out has the method's own default.

    `weights` go with the models in their order. A parameter that the method does not take is a `ConfigError`.
    """

    method: str
    weights: tuple[float, ...] | None = None
    density: float | None = None
    scale: float | None = None
    variant: str | None = None

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        taken = inspect.signature(pick(MERGES, self.method, "merge method")).parameters
        takes = [name for name, parameter in taken.items() if parameter.kind is parameter.KEYWORD_ONLY]
        for name in self.parameters:
            if name not in takes:
                there_are = f"takes {', '.join(takes)}" if takes else "takes no parameters"
                raise ConfigError(f"merge method {self.method!r} takes no {name!r}: it {there_are}.")
        self.merge_of(len(self.weights) if self.weights else 1)
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's parameters that were given."""
        return self.model_dump(exclude={"method"}, exclude_none=True)

    def merge_of(self, models: int) -> Merge:
        """The method for that many models, parameters filled in. Raises `ConfigError` when they cannot be used.

        The method itself is the judge of that: it is asked to merge one zero per model.
        """
        merge = partial(MERGES[self.method], **self.parameters)
        merge(torch.zeros(1), [torch.zeros(1)] * models)
        return merge


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
        raise ConfigError(f"{out} already holds a model. Give --out another folder.")
    merge = settings.merge_of(len(models))
    pivot, tunes = Checkpoint(base), [Checkpoint(folder) for folder in models]
    for tune in tunes:
        _refuse_mismatch(pivot, tune)

    def merged() -> Iterator[tuple[str, Tensor]]:
        for done, name in enumerate(pivot.names, start=1):
            yield name, _merge_tensor(name, pivot, tunes, merge)
            on_tensor(done, len(pivot.names))

    # The weights come last: a folder that holds a checkpoint holds all of it.
    copy_companions(base, out)
    write_checkpoint(out, merged())


def _refuse_mismatch(base: Checkpoint, model: Checkpoint) -> None:
    for name in sorted(base.shapes.keys() | model.shapes.keys()):
        in_base, in_model = base.shapes.get(name), model.shapes.get(name)
        if in_base is None or in_model is None:
            has, lacks = (model, base) if in_base is None else (base, model)
            raise BackendError(
                f"tensor {name} has shape {list(has.shapes[name])} in {has.folder} and is missing in {lacks.folder}. "
                "Merge models of one architecture, with the same tied embeddings."
            )
        if in_base != in_model:
            raise BackendError(
                f"tensor {name} has shape {list(in_base)} in {base.folder} and {list(in_model)} in {model.folder}. "
                "Merge models of one architecture and vocabulary size."
            )


def _merge_tensor(name: str, base: Checkpoint, models: Sequence[Checkpoint], merge: Merge) -> Tensor:
    """The merged tensor, in the base's dtype: rounded once, from float32."""
    dtypes = {checkpoint.dtypes[name] for checkpoint in (base, *models)}
    base_tensor, tensors = base.tensor(name), [model.tensor(name) for model in models]
    for checkpoint, tensor in zip((base, *models), (base_tensor, *tensors)):
        _refuse_not_finite(tensor, f"tensor {name} of {checkpoint.folder}", "Leave that model out, or mend it.")
    if len(dtypes) == 1 and all(torch.equal(base_tensor, tensor) for tensor in tensors):
        return base_tensor
    if not dtypes <= set(MERGEABLE):
        stored = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise BackendError(
            f"tensor {name} is stored as {stored} and differs between {base.folder} and the models; only float "
            "weights are merged. Save a quantised model in bfloat16 first."
        )
    rounded = merge(base_tensor, tensors).to(base_tensor.dtype)
    _refuse_not_finite(rounded, f"merged tensor {name}, as {rounded.dtype},", "Change the method's parameters.")
    return rounded


def _refuse_not_finite(tensor: Tensor, what: str, next_step: str) -> None:
    if tensor.dtype not in MERGEABLE or tensor.numel() == 0:
        return
    if not all(extreme.isfinite() for extreme in tensor.aminmax()):  # a NaN is both the smallest and the largest
        count = int((~tensor.isfinite()).sum())
        raise BackendError(f"{what} holds {count} numbers that are not finite (NaN or infinity). {next_step}")
