"""What FSDP2 and ZeRO-3 spread over the processes: gradients looked at where they lie, weights made whole again."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from consilience.errors import BackendError

ON = ("1", "true", "yes", "on")


def asked_for(name: str) -> bool:
    """Whether `accelerate launch` was told to use `name`: FSDP or DEEPSPEED."""
    return os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() in ON


def refuse_unsharded(trainer: Any) -> None:
    """Raises `BackendError` where FSDP was asked for and accelerate left it out, as it does without a GPU."""
    if asked_for("FSDP") and not trainer.is_fsdp_enabled:
        raise BackendError(
            "FSDP was asked for, but accelerate shards on GPUs only, and there is none here. Start the processes with "
            "torchrun instead, each with the whole model, or on a machine with GPUs."
        )


def reduce_in_float32(plugin: Any) -> None:
    """Lets FSDP2 compute in bfloat16 and add the gradients of the processes in float32, as one process does."""
    policy = plugin.mixed_precision_policy
    if plugin.fsdp_version == 2 and policy is not None:
        plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32)


def finite_gradients(trainer: Any) -> bool:
    """Whether the whole gradient of a step is finite; the same answer in every process.

    DeepSpeed keeps the gradients to itself, and has taken its step when it tells their norm.
    """
    if trainer.is_deepspeed_enabled:
        norm = trainer.deepspeed.get_global_grad_norm()
        return norm is None or bool(torch.isfinite(torch.as_tensor(norm)))
    mine = all(
        bool(torch.isfinite(_here(parameter.grad)).all())
        for parameter in trainer.model.parameters()
        if parameter.grad is not None
    )
    if not trainer.is_fsdp_enabled:
        return mine  # reduced over the processes: the same in all of them
    spoiled = torch.tensor(float(not mine), device=trainer.args.device)
    return not trainer.accelerator.reduce(spoiled, "sum").item()


def gathered(trainer: Any) -> Any:
    """The trained model with whole parameters on the CPU, in float32 what was trained; of use in the first process.

    Every process must call it: each gives its part.
    """
    model = trainer.model
    if trainer.is_deepspeed_enabled:
        whole = _whole_of_zero()
    elif trainer.is_fsdp_enabled:
        whole = _whole_of_fsdp
    else:
        return model
    leads = trainer.args.process_index == 0
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # by identity: tied parameters stay tied
    for module in model.modules():
        if isinstance(module, FSDPModule):  # fully_shard put itself before the module's own class
            module.__class__ = type(module).__bases__[1]
        for name, parameter in [*module._parameters.items()]:
            if parameter is None:
                continue
            if id(parameter) not in made:
                tensor = whole(parameter)
                kept = tensor.to("cpu", copy=True) if leads else torch.empty_like(tensor, device="meta")
                made[id(parameter)] = parameter, nn.Parameter(kept, requires_grad=parameter.requires_grad)
            module._parameters[name] = made[id(parameter)][1]
    if leads:
        for buffered in model.modules():
            for name, buffer in buffered._buffers.items():
                buffered._buffers[name] = None if buffer is None else buffer.to("cpu")
    return model


def _here(gradient: Tensor) -> Tensor:
    """The part of a gradient that this process holds."""
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient


def _whole_of_fsdp(parameter: Tensor) -> Tensor:
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()


def _whole_of_zero() -> Callable[[Tensor], Tensor]:
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    def whole(parameter: Tensor) -> Tensor:
        if parameter.requires_grad:  # the float32 that the optimizer keeps, not the bfloat16 that is computed with
            trained: Tensor | None = safe_get_full_fp32_param(parameter)
            if trained is not None:
                return trained.detach()
        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    return whole
