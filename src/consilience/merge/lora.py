"""LoRA adapters (peft folders) as parts of a model: the adapter's factors are added as a tensor's rows are read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from consilience.errors import BackendError
from consilience.merge.plan import LowRank, Part
from consilience.weights.headers import StoredTensor, read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FACTORS = (".lora_A.weight", ".lora_B.weight", ".lora_embedding_A", ".lora_embedding_B")


def holds_adapter(folder: Path) -> bool:
    """Whether `folder` is a peft folder."""
    return (folder / CONFIG).is_file()


def with_adapter(parts: Mapping[str, Part], folder: Path) -> dict[str, Part]:
    """A model's tensors with the LoRA adapter in `folder` merged in: W + scale * B A, and what it trained in full.

    scale is alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA (arXiv:2106.09685, 2312.03732). Raises
    `BackendError` when the adapter is of another kind, trains what the model has not, or has other shapes.
    """
    settings = _settings(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        raise BackendError(f"{folder} lacks {WEIGHTS}. Save the adapter as safetensors (peft's save_pretrained).")
    stored = {tensor.name: tensor for tensor in read_header(path)}
    merged = dict(parts)
    left_over = dict(stored)
    for name in stored:
        if not name.endswith((".lora_A.weight", ".lora_embedding_A")):
            continue
        kind = next(kind for kind in FACTORS if name.endswith(kind))
        module = name.removesuffix(kind).removeprefix(PREFIX)
        other = name.removesuffix(kind) + kind.replace("_A", "_B")
        if other not in stored:
            raise BackendError(f"{path} has {name} without {other}. Get the adapter's file again.")
        target = f"{module}.weight"
        if target not in parts:
            raise BackendError(f"adapter {folder} changes {target}, which its model does not have.")
        a, b = left_over.pop(name), left_over.pop(other)
        merged[target] = replace(
            merged[target], adapters=(*merged[target].adapters, _low_rank(a, b, module, kind, settings, parts[target]))
        )
    for name, tensor in left_over.items():
        target = name.removeprefix(PREFIX).replace(".base_layer.", ".")
        if target not in parts or "lora_" in name:
            raise BackendError(
                f"adapter {folder} holds {name}, which is not read here: LoRA factors and whole tensors of the model "
                "are. Merge it with peft's merge_and_unload() first."
            )
        merged[target] = Part(tensor)
    return merged


def _low_rank(
    a: StoredTensor, b: StoredTensor, module: str, kind: str, settings: Mapping[str, Any], part: Part
) -> LowRank:
    rank = a.shape[0]
    alpha = _of_module(settings.get("alpha_pattern") or {}, module, settings.get("lora_alpha", rank))
    scale = float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    # The stored weight is transposed against B A in embeddings (rows are tokens) and in GPT-2's Conv1D.
    if "embedding" in kind or settings.get("fan_in_fan_out"):
        low_rank = LowRank(a, b, scale, left_transposed=True, right_transposed=True)
        shape = (a.shape[1], b.shape[0])
    else:
        low_rank = LowRank(b, a, scale)
        shape = (b.shape[0], a.shape[1])
    if shape != part.tensor.shape or b.shape[1] != rank:
        raise BackendError(
            f"the adapter's factors of {module} are {list(b.shape)} and {list(a.shape)}, and its weight is "
            f"{list(part.tensor.shape)}. Give the adapter the model it was trained on."
        )
    return low_rank


def _of_module(pattern: Mapping[str, Any], module: str, default: Any) -> Any:
    """peft's pattern of exceptions: the first key that is the module's name or the end of it, as an expression."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _settings(folder: Path) -> Mapping[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise BackendError(f"{folder} is no adapter: it has no {CONFIG}. Give the folder that peft saved.")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackendError(f"{path} is not JSON ({error}). Get the adapter's files again.") from None
    kind = settings.get("peft_type")
    refused = [key for key in ("use_dora", "use_qalora", "megatron_config", "corda_config") if settings.get(key)]
    if kind != "LORA" or refused:
        what = refused[0] if kind == "LORA" else f"peft_type {kind}"
        raise BackendError(
            f"adapter {folder} has {what}, which is not a plain LoRA. Merge it with peft's merge_and_unload() first."
        )
    return dict(settings)
