"""Our own recipe of a merge: YAML into a `Recipe`. Every key is checked; an unknown one names the nearest."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from consilience.config import Settings, parse
from consilience.errors import ConfigError, nearest
from consilience.merge.recipe import (
    BASE,
    UNION,
    Choice,
    ModelRef,
    Parameters,
    Recipe,
    Rule,
    Scalar,
    Slice,
    Source,
    TokenRow,
    Vocabulary,
    When,
    known_dtype,
)

Value = Scalar | list[Scalar]  # a list is a gradient over the layers
Given = Value | dict[str, Value]  # one value for all models, or one by model


class ModelSettings(Settings):
    """A model that needs more than its folder."""

    model: str
    revision: str = ""
    adapter: str = Field("", description="a peft folder: LoRA, merged into the model as it is read")
    adapter_revision: str = ""
    parameters: dict[str, Value] = {}

    def ref(self) -> ModelRef:
        return ModelRef(self.model, self.revision, self.adapter, self.adapter_revision)


class RuleSettings(Settings):
    """Some tensors, by name or by layer, and what is different for them."""

    tensors: str = Field("", description="regular expression, searched in the tensor's name")
    layers: tuple[int, int] | None = Field(None, description="first layer of the result and one past the last")
    parameters: dict[str, Given] = {}
    method: str = ""
    copy_from: str = Field("", alias="copy", description="the model whose tensor is taken as it is")

    @field_validator("tensors")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{pattern!r} is not a regular expression ({error})") from None
        return pattern

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if not self.tensors and not self.layers:
            raise ConfigError("a rule needs 'tensors' (a regular expression) or 'layers'")
        if bool(self.copy_from) == bool(self.parameters or self.method):
            raise ConfigError("a rule has 'parameters', a 'method', or both; or a model to 'copy'")
        return self

    @property
    def when(self) -> When:
        return When(pattern=self.tensors, layers=self.layers)


class SliceSettings(Settings):
    """Consecutive layers of the result."""

    layers: dict[str, tuple[int, int]] = Field(description="model -> its first layer and one past its last")
    parameters: dict[str, Value] = {}


class TokenSettings(Settings):
    """Where the embedding of one token comes from."""

    model: str | None = None
    token: str | None = None
    token_id: int | None = None
    zero: bool = False
    force: bool = Field(False, description="also for models that have the token")

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if self.zero == (self.model is not None):
            raise ConfigError("a token's row comes from a 'model', or is 'zero: true'")
        if (self.token is not None) + (self.token_id is not None) + self.zero > 1:
            raise ConfigError("give one of 'token', 'token_id' and 'zero'")
        return self


class TokenizerSettings(Settings):
    """Whose vocabulary the result has: `union`, `base` or a model's."""

    source: str
    tokens: dict[str, TokenSettings] = {}
    pad_to_multiple_of: int | None = Field(None, ge=1)


class RecipeSettings(Settings):
    """The whole file."""

    method: str
    base: str | ModelSettings | None = None
    models: dict[str, str | ModelSettings] = Field(min_length=1)
    slices: list[SliceSettings] | None = Field(None, min_length=1)
    parameters: dict[str, Given] = {}
    rules: list[RuleSettings] = []
    dtype: str | None = None
    tokenizer: str | TokenizerSettings | None = None
    chat_template: str | None = None
    donor: str | None = Field(None, description="whose configuration, tokenizer and chat template the result has")
    seed: int = 0

    @field_validator("dtype")
    @classmethod
    def _is_a_dtype(cls, name: str | None) -> str | None:
        return known_dtype(name)


def read_ours(tree: Mapping[str, Any], *, path: Path, source: str) -> Recipe:
    """The recipe in `tree`, the YAML at `path`. Raises `ConfigError` naming the key."""
    settings = parse(tree, RecipeSettings, where=str(path))
    try:
        return _Reader(settings).recipe(path, source)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


class _Reader:
    """Names of models turned into references, parameters into choices."""

    def __init__(self, settings: RecipeSettings) -> None:
        self.settings = settings
        self.refs = {
            name: given.ref() if isinstance(given, ModelSettings) else ModelRef(given)
            for name, given in settings.models.items()
        }
        self.base = self._base()
        self.said = self._said()

    def recipe(self, path: Path, source: str) -> Recipe:
        settings = self.settings
        names = {ref: name for name, ref in self.refs.items()}
        if self.base is not None:
            names.setdefault(self.base, BASE)
        return Recipe(
            method=settings.method,
            slices=self._slices(),
            base=self.base,
            parameters=self._parameters(None),
            rules=tuple(
                Rule(rule.when, rule.method, self._named(rule.copy_from, "rules.copy") if rule.copy_from else None)
                for rule in settings.rules
                if rule.method or rule.copy_from
            ),
            dtype=settings.dtype,
            vocabulary=self._vocabulary(),
            chat_template=self.refs.get(settings.chat_template or "") or settings.chat_template,
            donor=self._named(settings.donor, "donor") if settings.donor else None,
            seed=settings.seed,
            names=names,
            source=source,
            path=path,
        )

    def _base(self) -> ModelRef | None:
        given = self.settings.base
        if isinstance(given, ModelSettings):
            return given.ref()
        return None if given is None else self.refs.get(given, ModelRef(given))

    def _said(self) -> dict[str, list[tuple[When, Given]]]:
        """What is said of every parameter, the word that counts first: rules, then models, then the whole recipe."""
        said: dict[str, list[tuple[When, Given]]] = {}
        models = [
            (name, given.parameters) for name, given in self.settings.models.items() if isinstance(given, ModelSettings)
        ]
        blocks: list[tuple[When, Mapping[str, Given]]] = [(rule.when, rule.parameters) for rule in self.settings.rules]
        blocks += [(When(), {key: {name: value} for key, value in given.items()}) for name, given in models]
        blocks += [(When(), self.settings.parameters)]
        for when, parameters in blocks:
            for key, given in parameters.items():
                said.setdefault(key, []).append((when, given))
                if isinstance(given, dict):
                    for name in given:
                        self._named(name, f"parameters.{key}")
        return said

    def _parameters(self, model: str | None) -> Parameters:
        """Those of one model, where anything is said of it alone; or (None) those of all."""
        found = {}
        for key, said in self.said.items():
            if model is not None and not any(isinstance(given, dict) and model in given for _, given in said):
                continue
            choices = []
            for when, given in said:
                value = given.get(model or "") if isinstance(given, dict) else given
                if value is not None:
                    choices.append(Choice(frozen(value, key), when))
            if choices:
                found[key] = tuple(choices)
        return found

    def _slices(self) -> tuple[Slice, ...]:
        if self.settings.slices is None:
            merged = [name for name, ref in self.refs.items() if ref != self.base] or list(self.refs)
            return (Slice(tuple(Source(self.refs[name], None, self._parameters(name)) for name in merged)),)
        return tuple(
            Slice(
                tuple(
                    Source(self._named(name, "slices.layers"), layers, self._parameters(name))
                    for name, layers in slice_.layers.items()
                ),
                None,
                {key: (Choice(frozen(value, key)),) for key, value in slice_.parameters.items()},
            )
            for slice_ in self.settings.slices
        )

    def _vocabulary(self) -> Vocabulary | None:
        given = self.settings.tokenizer
        if given is None:
            return None
        if isinstance(given, str):
            given = TokenizerSettings(source=given)
        rows = {
            token: TokenRow(
                self._named(row.model, f"tokenizer.tokens.{token}") if row.model else None,
                row.token,
                row.token_id,
                row.force,
            )
            for token, row in given.tokens.items()
        }
        source = given.source if given.source in (UNION, BASE) else self._named(given.source, "tokenizer.source")
        return Vocabulary(source, rows, given.pad_to_multiple_of)

    def _named(self, name: str, key: str) -> ModelRef:
        there_are = self.refs | ({BASE: self.base} if self.base is not None and BASE not in self.refs else {})
        if name not in there_are:
            raise ConfigError(
                f"{key}: no model is called {name!r}.{nearest(name, there_are)} There are: {', '.join(there_are)}."
            )
        return there_are[name]


def frozen(value: Scalar | Sequence[Scalar], key: str) -> Scalar | tuple[Scalar, ...]:
    """A gradient as a tuple; a `ConfigError` when it has no points."""
    if isinstance(value, str | bool | int | float):
        return value
    points: Iterable[Scalar] = tuple(value)
    if not points:
        raise ConfigError(f"{key}: a gradient needs at least one value, got an empty list")
    return tuple(points)
