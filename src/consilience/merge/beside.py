"""The files beside a merge's weights: configuration, tokenizer, chat template, all from one donor that is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from consilience.errors import BackendError
from consilience.merge.inputs import LAYER_KEYS, Input, as_json, read_json
from consilience.merge.recipe import ModelRef, Recipe, Slice, Source
from consilience.merge.templates import chat_template_of
from consilience.merge.tokenizer import Vocabularies
from consilience.weights.companions import COMPANIONS


def files_beside(
    recipe: Recipe,
    inputs: Mapping[ModelRef, Input],
    donor: ModelRef,
    vocabularies: Vocabularies | None,
    rows: int | None,
    unties: bool,
    note: Callable[[str], None],
) -> dict[str, Path | bytes]:
    """Name -> the file it is a copy of, or its content: what the donor has, changed where the result is different.

    `rows` are those of the result's embedding matrix, `unties` says that its head is one of its own.
    """
    given = inputs[donor]
    files: dict[str, Path | bytes] = {
        (name := str(found.relative_to(given.folder))): given.file(name)
        for pattern in COMPANIONS
        for found in sorted(given.folder.glob(pattern))
    }
    config = _config(recipe, inputs, donor, unties)
    generation = dict(read_json(given.file("generation_config.json")))
    language = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    for block in (config, language):
        if rows is not None and "vocab_size" in block:
            block["vocab_size"] = rows
    if vocabularies:
        files |= vocabularies.files
        for block in _blocks(config):
            block.update(vocabularies.remapped(block))
        remapped = vocabularies.remapped(generation)
        if remapped != generation:
            files["generation_config.json"] = as_json(remapped)
    files["config.json"] = as_json(config)
    return chat_template_of(recipe, inputs, donor, files, note)


def _config(recipe: Recipe, inputs: Mapping[ModelRef, Input], donor: ModelRef, unties: bool) -> dict[str, Any]:
    """The donor's configuration, with the result's dtype, layers and head."""
    config: dict[str, Any] = json.loads(json.dumps(inputs[donor].config))
    text = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    if recipe.dtype:
        key = "dtype" if "dtype" in config else "torch_dtype"
        config[key] = recipe.dtype
        for block in _blocks(config):
            block.update({key: recipe.dtype for key in ("dtype", "torch_dtype") if key in block})
    if unties:
        config["tie_word_embeddings"] = False
        if "tie_word_embeddings" in text:
            text["tie_word_embeddings"] = False
    if recipe.is_stacked:
        _restack(text, recipe, inputs, donor)
    return config


def _blocks(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The configuration and those of the models inside it (`text_config`, `vision_config`)."""
    return [config, *(block for block in config.values() if isinstance(block, dict) and "model_type" in block)]


def _restack(text: dict[str, Any], recipe: Recipe, inputs: Mapping[ModelRef, Input], donor: ModelRef) -> None:
    """The number of layers, and every list with an entry per layer, for the layers of the result."""
    key = next((key for key in LAYER_KEYS if key in text), None)
    if key is None:
        raise BackendError(f"{inputs[donor].label}: config.json does not say how many layers it has.")
    layers = int(text[key])
    origins = [
        (source.model, at)
        for source in (_leading_source(recipe, slice_) for slice_ in recipe.slices)
        for at in range(*(source.layers or (0, 0)))
    ]
    for name, value in list(text.items()):
        if isinstance(value, list) and len(value) == layers and name != "architectures":
            text[name] = [_of_layer(inputs[ref], name, at) for ref, at in origins]
    text[key] = len(origins)


def _leading_source(recipe: Recipe, slice_: Slice) -> Source:
    base = slice_.base or recipe.base
    return next((source for source in slice_.sources if source.model == base), slice_.sources[0])


def _of_layer(given: Input, name: str, at: int) -> Any:
    values = given.text_config.get(name)
    if not isinstance(values, list) or at >= len(values):
        raise BackendError(f"{given.label}: config.json has no {name} for layer {at}, which the donor's has.")
    return values[at]
