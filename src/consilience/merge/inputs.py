"""The models of a recipe, found and opened: headers, configuration and adapters. Their numbers are not read yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from consilience.errors import BackendError, nearest
from consilience.merge.lora import with_adapter
from consilience.merge.plan import Part
from consilience.merge.recipe import ModelRef, Recipe
from consilience.weights.headers import read_model
from consilience.weights.hub import fetch

FETCHED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
EMBEDDINGS = tuple(f"{name}.weight" for name in ("embed_tokens", "wte", "embed_in", "word_embeddings", "shared"))
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


@dataclass(frozen=True)
class Input:
    """An opened model. `parts` are its tensors, by name, in the order of its files, adapters merged in."""

    label: str
    folder: Path
    parts: Mapping[str, Part]
    config: Mapping[str, Any]
    adapter: Path | None = None

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The language model's block of the configuration: `text_config` where a model has several."""
        block = self.config.get("text_config")
        return block if isinstance(block, Mapping) else self.config

    @property
    def is_tied(self) -> bool:
        """Whether the configuration says that the head is the embedding matrix."""
        said = self.config.get("tie_word_embeddings", self.text_config.get("tie_word_embeddings"))
        return bool(said)

    @property
    def head(self) -> str | None:
        """The name of the head's matrix, where the files hold one."""
        return next((name for name in self.parts if name.endswith(("lm_head.weight", "embed_out.weight"))), None)

    @property
    def layers(self) -> int | None:
        """How many layers the configuration says the language model has."""
        return next((int(self.text_config[key]) for key in LAYER_KEYS if key in self.text_config), None)

    @property
    def vocabulary_rows(self) -> int | None:
        """Rows of the embedding matrix; an adapter that brings one of its own may have more than the configuration."""
        if self.embeddings is not None:
            return self.parts[self.embeddings].tensor.shape[0]
        rows = self.text_config.get("vocab_size", self.config.get("vocab_size"))
        return None if rows is None else int(rows)

    @cached_property
    def embeddings(self) -> str | None:
        """The name of the embedding matrix of the tokens; None where no name or several are like one."""
        names = [name for name in self.parts if name.endswith(EMBEDDINGS)]
        return names[0] if len(names) == 1 else None

    @cached_property
    def tokenizer_config(self) -> Mapping[str, Any]:
        """tokenizer_config.json of the adapter where it brings one, else of the model; empty where there is none."""
        return read_json(self.file("tokenizer_config.json"))

    def file(self, name: str) -> Path:
        """A file beside the weights. An adapter's own tokenizer goes before its model's."""
        if self.adapter is not None and name.startswith(("token", "chat_template", "special_tokens", "added_tokens")):
            return self.adapter / name if (self.adapter / name).is_file() else self.folder / name
        return self.folder / name


def open_inputs(
    recipe: Recipe, *, allow_pickle: bool = False, trust_remote_code: bool = False
) -> dict[ModelRef, Input]:
    """Every model that the recipe names, opened. Raises `BackendError` or `ConfigError` naming the model."""
    return {
        ref: open_input(
            ref,
            label=recipe.names.get(ref, str(ref)),
            beside=recipe.path.parent,
            allow_pickle=allow_pickle,
            trust_remote_code=trust_remote_code,
        )
        for ref in recipe.models
    }


def open_input(
    ref: ModelRef, *, label: str, beside: Path = Path(), allow_pickle: bool = False, trust_remote_code: bool = False
) -> Input:
    """A model opened: its headers, its configuration, its adapter."""
    extra = ["*.bin"] * allow_pickle + ["*.py"] * trust_remote_code
    folder = locate(ref.path, ref.revision, beside, extra=extra)
    config = read_json(folder / "config.json")
    if not config:
        raise BackendError(f"{folder} has no config.json. Give the path of a Hugging Face model folder.")
    if not trust_remote_code:
        _refuse_remote_code(folder, config)
    if _is_pickled(folder):
        if not allow_pickle:
            raise BackendError(
                f"{folder} holds pickled weights (.bin), which can hold code. --allow-pickle reads them, and runs none "
                "of it; or save the model as safetensors."
            )
        from consilience.weights.pickled import read_pickled

        stored = read_pickled(folder)
    else:
        stored = read_model(folder)
    parts = {name: Part(tensor) for name, tensor in stored.tensors.items()}
    if not ref.adapter:
        return Input(label, folder, parts, config)
    adapter = locate(ref.adapter, ref.adapter_revision, beside)
    return Input(label, folder, with_adapter(parts, adapter), config, adapter)


def locate(path: str, revision: str, beside: Path, *, extra: Sequence[str] = ()) -> Path:
    """The local folder of a model: as named, beside the recipe, or fetched from the hub (or found in its cache).

    Files that match FETCHED are fetched, and those that match `extra`.
    """
    whole = f"{path}@{revision}" if revision else path
    for folder in (Path(whole), beside / whole):
        if folder.exists():
            return folder
    first = Path(path).parts[0] if "/" in path else ""
    is_path = path.startswith((".", "/", "~")) or any((place / first).is_dir() for place in (beside, Path()) if first)
    if path.count("/") != 1 or is_path:
        around = next((place for place in (Path(path).parent, beside / Path(path).parent) if place.is_dir()), None)
        there_are = [entry.name for entry in around.iterdir() if entry.is_dir()] if around else []
        raise BackendError(
            f"no model folder {whole!r}.{nearest(Path(path).name, there_are)} Give a folder or a hub name."
        )
    return fetch(path, [*FETCHED, *extra], revision)


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object, empty where there is no such file. Raises `BackendError` when it is not readable."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BackendError(f"{path} is not JSON ({error}). Get the model's files again.") from None
    if not isinstance(found, dict):
        raise BackendError(f"{path} is not a JSON object. Get the model's files again.")
    return found


def as_json(value: Mapping[str, Any]) -> bytes:
    """A JSON file's content."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _is_pickled(folder: Path) -> bool:
    return not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin"))


def _refuse_remote_code(folder: Path, config: Mapping[str, Any]) -> None:
    """A model that transformers has no class for can only be loaded by running code that comes with it."""
    if "auto_map" not in config:
        return
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if config.get("model_type") not in CONFIG_MAPPING_NAMES:
        raise BackendError(
            f"{folder} needs remote code: its config.json names classes of its own (auto_map), and transformers has "
            f"none for {config.get('model_type')!r}. A merge runs none of it, but whoever loads the result must; "
            "--trust-remote-code copies it along."
        )
