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
EVERYTHING = "all"
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
    """Per group of tensors, how far every model and the result are from the base, and in which direction.

    `groups[name]` has `tensors`, `entries`, and by model `norms` of the changes, `rms` (the same per entry) and
    `cosine` with the result's change (None beside a change that is zero). `cosines` are those between all of `models`
    over all tensors. All empty where the merge had no base to be measured against.
    """
    measured = {name: entry for name, entry in manifest["tensors"].items() if entry.get("delta_norms")}
    if not measured:
        return {"models": [], "groups": {}, "cosines": []}
    models: list[str] = max((list(entry["delta_norms"]) for entry in measured.values()), key=len)
    sizes = stack_sizes(measured)
    groups: dict[str, list[str]] = {}
    for name, entry in measured.items():
        if list(entry["delta_norms"]) == models:  # a rule may merge other models into some tensors
            groups.setdefault(_group(name, sizes), []).append(name)
    every = [name for names in groups.values() for name in names]
    shown = {group: _summed(measured, names, models) for group, names in [*groups.items(), (EVERYTHING, every)]}
    cosines = _cosines(_products(measured, every, models))
    return {"models": models, "groups": shown, "cosines": [[_number(cosine) for cosine in row] for row in cosines]}


def table(found: Mapping[str, Any]) -> str:
    """`travelled` as plain text."""
    if not found["groups"]:
        return "nothing to inspect: the merge has no base to be measured against"
    models = found["models"]
    short = dict(zip(models, _short(models)))
    rows = [["rms change from the base", *short.values()]]
    angles = [["cosine with the result's change", *(short[model] for model in models[:-1])]]
    for group, entry in found["groups"].items():
        label = f"{group} ({entry['tensors']} tensors)"
        rows.append([label, *(f"{entry['rms'][model]:.3g}" for model in models)])
        angles.append([label, *(_shown(entry["cosine"][model]) for model in models[:-1])])
    pairs = [["cosine between changes, all tensors", *short.values()]]
    pairs += [[short[model], *map(_shown, row)] for model, row in zip(models, found["cosines"])]
    return "\n\n".join(map(_columns, (rows, angles, pairs)))


def _summed(measured: Mapping[str, Any], names: Sequence[str], models: Sequence[str]) -> dict[str, Any]:
    products = _products(measured, names, models)
    entries = sum(math.prod(measured[name]["shape"]) for name in names)
    norms = {model: math.sqrt(max(0.0, products[i, i])) for i, model in enumerate(models)}
    cosines = _cosines(products)
    return {
        "tensors": len(names),
        "entries": entries,
        "norms": norms,
        "rms": {model: norm / math.sqrt(max(1, entries)) for model, norm in norms.items()},
        "cosine": {model: _number(cosines[i, -1]) for i, model in enumerate(models[:-1])},
    }


def _products(measured: Mapping[str, Any], names: Sequence[str], models: Sequence[str]) -> NDArray[np.float64]:
    """Inner products of the changes, summed over tensors; the manifest has them as norms and cosines."""
    total = np.zeros((len(models), len(models)))
    for name in names:
        norms, cosines = measured[name]["delta_norms"], measured[name]["cosines"]
        for i, one in enumerate(models):
            total[i, i] += norms[one] ** 2
            for j, other in enumerate(models[:i]):
                total[i, j] += (cosines.get(f"{other} {one}") or 0.0) * norms[one] * norms[other]
                total[j, i] = total[i, j]
    return total


def _cosines(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN beside a change that is zero."""
    norms = np.sqrt(np.diag(products))
    lengths = np.outer(norms, norms)
    return np.divide(products, lengths, out=np.full_like(products, np.nan), where=lengths > 0)


def _number(cosine: float) -> float | None:
    return None if math.isnan(cosine) else float(cosine)


def _short(models: Sequence[str]) -> list[str]:
    """The last parts of paths, where they are different."""
    ends = [model.rstrip("/").rpartition("/")[2] for model in models]
    return ends if len(set(ends)) == len(ends) else list(models)


def _group(name: str, sizes: Mapping[str, int]) -> str:
    """`layers 0-6 attention`, or the tensor's own last words outside the layers."""
    place = place_of(name)
    if place is None:
        return "embeddings" if "embed" in name or "wte" in name else "head" if "head" in name else "outside the layers"
    layers = sizes[place.stack]
    step = math.ceil(layers / GROUPS)
    first = place.layer // step * step
    kind = next((kind for part, kind in KINDS if part in place.rest.lower()), "other")
    last = min(first + step, layers) - 1
    return f"layer {first} {kind}" if first == last else f"layers {first}-{last} {kind}"


def _shown(cosine: float | None) -> str:
    return "" if cosine is None else f"{cosine:.3f}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
