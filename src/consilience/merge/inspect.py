"""How far each input of a merge, and the merge itself, moved from the base: norms and cosines by group of layers.

Read from the manifest beside the merge: inner products of changes add up over tensors, so that no weights are read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import ConfigError
from consilience.merge.layers import place_of, stack_sizes

MANIFEST = "manifest.json"
MERGE = "merge"
GROUPS = 4  # of layers, about as many in each
KINDS = (("norm", "norms"), ("attn", "attention"), ("attention", "attention"), ("mlp", "mlp"), ("expert", "mlp"))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the merge in `folder`."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no merge: it has no {MANIFEST}. Give the folder that a merge was written to."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "tensors": dict(found["tensors"])}
    except (ValueError, KeyError, TypeError):
        raise ConfigError(f"{path} is not the manifest of a merge. Make the merge again.") from None


def travelled(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Per group of tensors: the norm of every model's change and of the merge's, and the cosines among them.

    `groups[name]` has `tensors`, `base_norm`, `norms` and `relative` by model (`relative` is the norm over the base's),
    and `cosine` by model: with the merge's change. `cosines` are those between the models over all tensors. An empty
    mapping where the merge had no base to be measured against.
    """
    measured = {name: entry for name, entry in manifest["tensors"].items() if entry.get("gram")}
    if not measured:
        return {"models": [], "groups": {}, "cosines": []}
    models = max((list(entry["models"]) for entry in measured.values()), key=len)
    sizes = stack_sizes(measured)
    groups: dict[str, list[str]] = {}
    for name, entry in measured.items():
        if list(entry["models"]) == models:
            groups.setdefault(_group(name, sizes), []).append(name)
    every = [name for names in groups.values() for name in names]
    shown = {group: _summed(measured, names, models) for group, names in [*groups.items(), ("all", every)]}
    return {"models": [*models, MERGE], "groups": shown, "cosines": _cosines(_gram(measured, every)).tolist()}


def table(found: Mapping[str, Any]) -> str:
    """`travelled` as plain text."""
    if not found["groups"]:
        return "nothing to inspect: the merge has no base to be measured against"
    models = found["models"]
    head = ["moved from the base, relative", *models, *(f"cos({model}, merge)" for model in models[:-1])]
    rows = [head]
    for group, entry in found["groups"].items():
        moved = [f"{entry['relative'][model]:.2e}" for model in models]
        cosines = [_shown(entry["cosine"][model]) for model in models[:-1]]
        rows.append([f"{group} ({entry['tensors']})", *moved, *cosines])
    pairs = [["cosine of changes, all tensors", *models]]
    for model, row in zip(models, found["cosines"]):
        pairs.append([model, *map(_shown, row)])
    return f"{_columns(rows)}\n\n{_columns(pairs)}"


def _summed(measured: Mapping[str, Any], names: Sequence[str], models: Sequence[str]) -> dict[str, Any]:
    gram = _gram(measured, names)
    labels = [*models, MERGE]
    base = math.sqrt(sum(float(measured[name].get("base_square", 0.0)) for name in names))
    norms = {label: math.sqrt(max(0.0, gram[i, i])) for i, label in enumerate(labels)}
    cosines = _cosines(gram)
    return {
        "tensors": len(names),
        "base_norm": base,
        "norms": norms,
        "relative": {label: norm / base if base else norm for label, norm in norms.items()},
        "cosine": {
            label: cosines[i, -1] if cosines[i, -1] == cosines[i, -1] else None for i, label in enumerate(models)
        },
    }


def _gram(measured: Mapping[str, Any], names: Sequence[str]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.sum([measured[name]["gram"] for name in names], axis=0, dtype=np.float64)
    return total


def _cosines(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN beside a change that is zero."""
    norms = np.sqrt(np.maximum(np.diag(gram), 0))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines: NDArray[np.float64] = np.where(np.outer(norms, norms) > 0, gram / np.outer(norms, norms), np.nan)
    return cosines


def _group(name: str, sizes: Mapping[str, int]) -> str:
    """`layers 0-6 attention`, or the tensor's own last words outside the layers."""
    place = place_of(name)
    if place is None:
        return "embeddings" if "embed" in name or "wte" in name else "head" if "head" in name else "outside the layers"
    layers = sizes[place.stack]
    step = math.ceil(layers / GROUPS)
    first = place.layer // step * step
    kind = next((kind for part, kind in KINDS if part in place.rest.lower()), "other")
    return f"layers {first}-{min(first + step, layers) - 1} {kind}"


def _shown(cosine: float | None) -> str:
    return "" if cosine is None or cosine != cosine else f"{cosine:.3f}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
