"""What a user asks a merge to do, before any model was opened: a recipe of ours, or mergekit's YAML as it stands.

`ours.py` and `mergekit.py` make it of YAML. `resolve.py` reads it together with the models' headers and makes the
engine's plan of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from consilience.errors import ConfigError, nearest

Scalar = float | int | bool | str
UNION, BASE, AUTO = "union", "base", "auto"
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as a recipe names it: a folder or hub name, perhaps at a revision, perhaps with a LoRA adapter on it."""

    path: str
    revision: str = ""
    adapter: str = ""
    adapter_revision: str = ""

    def __str__(self) -> str:
        whole = f"{self.path}@{self.revision}" if self.revision else self.path
        adapter = f"{self.adapter}@{self.adapter_revision}" if self.adapter_revision else self.adapter
        return f"{whole}+{adapter}" if adapter else whole


@dataclass(frozen=True, slots=True)
class When:
    """Which tensors a choice is for; what is left empty holds of every tensor.

    `layers` is the first and one past the last layer of the result; a tensor outside the layers is in no range.
    """

    contains: str = ""
    pattern: str = ""
    layers: tuple[int, int] | None = None

    def holds(self, name: str, layer: int | None) -> bool:
        if self.layers and (layer is None or not self.layers[0] <= layer < self.layers[1]):
            return False
        return self.contains in name and (not self.pattern or re.search(self.pattern, name) is not None)


@dataclass(frozen=True, slots=True)
class Choice:
    """A parameter's value for some tensors: a scalar, or a gradient from the first layer to the last."""

    value: Scalar | tuple[Scalar, ...]
    when: When = When()

    def at(self, depth: float) -> Scalar:
        """The value at `depth`, 0 in the first layer and 1 in the last.

        Numbers are interpolated between the gradient's points, which lie at equal distances; of other values the one
        at or before `depth` is taken.
        """
        if not isinstance(self.value, tuple):
            return self.value
        place = depth * (len(self.value) - 1)
        below = int(place)
        start, end = self.value[below], self.value[min(below + 1, len(self.value) - 1)]
        if isinstance(start, bool | str) or isinstance(end, bool | str):
            return start
        share = place - below
        return (1 - share) * start + share * end


Setting = tuple[Choice, ...]  # the first that holds decides
Parameters = Mapping[str, Setting]


def look_up(scopes: Iterable[Parameters], parameter: str, name: str, layer: int | None, depth: float) -> Scalar | None:
    """The value of `parameter` for the tensor `name`: the first scope that has one decides. None where none has."""
    for scope in scopes:
        for choice in scope.get(parameter, ()):
            if choice.when.holds(name, layer):
                return choice.at(depth)
    return None


@dataclass(frozen=True, slots=True)
class Source:
    """A model's part in a slice: all its layers (`layers` is None), or those from the first to before the second."""

    model: ModelRef
    layers: tuple[int, int] | None = None
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Slice:
    """Consecutive layers of the result, merged from as many layers of each source."""

    sources: tuple[Source, ...]
    base: ModelRef | None = None
    parameters: Parameters = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rule:
    """Tensors that are merged by another method, or taken from one model as they are."""

    when: When
    method: str = ""
    copy: ModelRef | None = None


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Where the embedding of a token comes from; a zero row when `model` is None.

    `token` or `token_id` name another token of that model. `force` replaces the rows of models that have the token.
    """

    model: ModelRef | None
    token: str | None = None
    token_id: int | None = None
    force: bool = False


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Whose tokens the result has: the union of all, the base's, or those of one model."""

    source: str | ModelRef
    rows: Mapping[str, TokenRow] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One merge. `names` are what a report calls the models; `source` is the YAML as it was read."""

    method: str
    slices: tuple[Slice, ...]
    base: ModelRef | None = None
    parameters: Parameters = field(default_factory=dict)
    required: frozenset[str] = frozenset()  # parameters without a default that the recipe has to say
    rules: tuple[Rule, ...] = ()
    dtype: str | None = None
    vocabulary: Vocabulary | None = None
    chat_template: str | ModelRef | None = None
    donor: ModelRef | None = None
    seed: int = 0
    names: Mapping[ModelRef, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_mergekit: bool = False
    source: str = ""
    path: Path = Path()

    @property
    def models(self) -> tuple[ModelRef, ...]:
        """Every model named anywhere, the base first, then in the recipe's order."""
        named = [self.base, *(slice_.base for slice_ in self.slices)]
        named += [source.model for slice_ in self.slices for source in slice_.sources]
        named += [self.donor, *(rule.copy for rule in self.rules)]
        if isinstance(self.chat_template, ModelRef):
            named.append(self.chat_template)
        if self.vocabulary:
            named.append(self.vocabulary.source if isinstance(self.vocabulary.source, ModelRef) else None)
            named += [row.model for row in self.vocabulary.rows.values()]
        return tuple(dict.fromkeys(model for model in named if model is not None))

    @property
    def is_stacked(self) -> bool:
        """Whether the result's layers are put together from ranges of the sources' layers."""
        return any(source.layers for slice_ in self.slices for source in slice_.sources)


def known_dtype(name: str | None) -> str | None:
    """A dtype's name without mergekit's `torch.`; a `ConfigError` when it is none that weights are written in."""
    if name is None:
        return None
    plain = name.removeprefix("torch.")
    if plain not in DTYPES:
        raise ConfigError(f"dtype {name!r} is none of {', '.join(DTYPES)}.{nearest(plain, DTYPES)}")
    return plain
