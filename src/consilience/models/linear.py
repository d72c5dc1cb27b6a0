"""Matrix products of a few rows on a CPU in half the time: oneDNN, over weights laid out for it once.

torch multiplies float32 by a general routine that arranges the weights anew at every call, which for the 4 to 64 rows
of sampling and searching is half the work. Laid out ahead, the weights are held a second time.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

FEWEST = 4  # rows; below, torch's own product of a matrix and a vector is as quick
SMALLEST = 1 << 18  # weights; calling oneDNN costs 20 microseconds more, which smaller ones do not save
ROOM = 0.5  # of the free memory at most is taken


def lay_out(model: nn.Module) -> None:
    """Lays the weights of each large float32 linear layer of `model` on the CPU out for oneDNN, if there is room.

    Only what is read without gradients goes through them, and only for as long as the weights stay what they were.
    """
    linear: list[Any] = [module for module in model.modules() if _can(module)]
    needed = sum(module.weight.nbytes for module in linear)
    if needed <= ROOM * _free_memory():
        for module in linear:
            object.__setattr__(module, "forward", _LaidOut(module))


class _LaidOut:
    """The forward pass of one linear layer."""

    def __init__(self, module: Any) -> None:
        self.module, self.own, self.version = module, module.forward, module.weight._version
        self.weight, self.place = module.weight, module.weight.data_ptr()
        rows = self.weight.detach().t().contiguous() if isinstance(module, Conv1D) else self.weight.detach()
        self.outputs = len(rows)
        self.arranged = torch.ops.mkldnn._reorder_linear_weight(rows)

    def __call__(self, x: Tensor) -> Tensor:
        module = self.module
        weight = module.weight
        same = weight is self.weight and weight._version == self.version and weight.data_ptr() == self.place
        few = x.numel() < FEWEST * x.shape[-1]
        if not same or few or torch.is_grad_enabled() or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            found: Tensor = self.own(x)
            return found
        flat = x.reshape(-1, x.shape[-1])
        product: Tensor = torch.ops.mkldnn._linear_pointwise(flat, self.arranged, module.bias, "none", [], "")
        return product.view(*x.shape[:-1], self.outputs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copied layer is as it was before: its weights are other ones."""
        copy = memo.get(id(self.module))
        return self.own if copy is None else type(copy).forward.__get__(copy)


def _can(module: Any) -> bool:
    """A plain linear layer that holds its own weights here, and that nobody has wrapped."""
    return (
        type(module) in (nn.Linear, Conv1D)
        and "forward" not in vars(module)
        and module.weight.device.type == "cpu"
        and module.weight.dtype == torch.float32
        and module.weight.numel() >= SMALLEST
        and type(module.weight) is nn.Parameter
        and not module.weight.is_inference()  # these tell nobody that they were changed
        and torch.backends.mkldnn.is_available()
    )


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
