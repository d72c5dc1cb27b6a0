"""mergekit's YAML as it stands (the schema of mergekit-yaml 0.1.5) into a `Recipe`. No model is opened here.

Every key is read. One that is not supported is named and refused; so is one that mergekit would ignore silently,
unless ignoring it changes nothing, which becomes a note.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from consilience.config import Settings, parse
from consilience.errors import ConfigError, nearest, pick
from consilience.merge.ours import frozen
from consilience.merge.recipe import (
    BASE,
    UNION,
    Choice,
    ModelRef,
    Parameters,
    Recipe,
    Scalar,
    Setting,
    Slice,
    Source,
    TokenRow,
    Vocabulary,
    When,
    known_dtype,
)

REQUIRED = None  # has no default


@dataclass(frozen=True, slots=True)
class Taken:
    """The parameters of a method of mergekit 0.1.5 and their defaults: by model, and for all models."""

    by_model: Mapping[str, Scalar | None] = field(default_factory=dict)
    shared: Mapping[str, Scalar | None] = field(default_factory=dict)
    unused: tuple[str, ...] = ()  # taken by mergekit, without any effect on the result

    @property
    def all(self) -> dict[str, Scalar | None]:
        return {**self.by_model, **self.shared}


def _of_changes(*unused: str, normalize: bool, rescale: bool, **by_model: Scalar) -> Taken:
    """The family of task arithmetic: weighted sums of changes that were thinned out first."""
    return Taken(
        {"weight": REQUIRED, "density": 1.0, **by_model},
        {"int8_mask": False, "normalize": normalize, "rescale": rescale, "lambda": 1.0},
        ("int8_mask", *unused),
    )


METHODS = {
    "linear": Taken({"weight": REQUIRED}, {"normalize": True}),
    "slerp": Taken({}, {"t": REQUIRED}),
    "nuslerp": Taken({"weight": REQUIRED}, {"nuslerp_row_wise": False, "nuslerp_flatten": True}),
    "multislerp": Taken({"weight": REQUIRED}, {"normalize_weights": True, "eps": 1e-8}),
    "karcher": Taken({}, {"max_iter": 10, "tol": 1e-5}),
    "task_arithmetic": _of_changes("density", "rescale", normalize=False, rescale=False),
    "ties": _of_changes(normalize=True, rescale=False),
    "dare_linear": _of_changes(normalize=False, rescale=True),
    "dare_ties": _of_changes(normalize=False, rescale=True),
    "della": _of_changes(normalize=True, rescale=True, epsilon=0.15),
    "della_linear": _of_changes(normalize=False, rescale=True, epsilon=0.15),
    "breadcrumbs": _of_changes(normalize=False, rescale=False, gamma=0.01),
    "breadcrumbs_ties": _of_changes(normalize=False, rescale=False, gamma=0.01),
    "model_stock": Taken({}, {"filter_wise": False}),
    "sce": Taken({}, {"int8_mask": False, "select_topk": 1.0}, ("int8_mask",)),
    "arcee_fusion": Taken(),
    "nearswap": Taken({}, {"t": REQUIRED}),
    "ram": Taken({}, {"epsilon": 1e-5}),
    "ramplus_tl": Taken({}, {"r": 0.1, "alpha": 0.2, "epsilon": 1e-5}),
    "passthrough": Taken({"scale": 1.0}),
}
OURS = {  # mergekit's name of a parameter -> ours, where they differ
    "lambda": "scale",
    "select_topk": "density",
    "normalize_weights": "normalize",
    "nuslerp_flatten": "flatten",
}
KNOWN = tuple(dict.fromkeys(name for taken in METHODS.values() for name in taken.all))
WITHOUT_BASE = ("linear", "karcher", "passthrough")  # they read no base; a base_model among their models is one of them
PERHAPS_BASE = ("nuslerp", "multislerp")


class _Path(Settings):
    path: str
    revision: str | None = None


class _Reference(Settings):
    model: str | _Path
    lora: str | _Path | None = None
    override_architecture: str | None = None


class _Source(Settings):
    model: str | _Reference
    layer_range: tuple[int, int]
    parameters: dict[str, Any] | None = None


class _Model(Settings):
    model: str | _Reference
    parameters: dict[str, Any] | None = None


class _Slice(Settings):
    sources: list[_Source]
    base_model: str | _Reference | None = None
    residual_weight: Any = None
    parameters: dict[str, Any] | None = None


class _RowSource(Settings):
    kind: str
    model: str | _Reference | None = None
    token_id: int | None = None
    token: str | None = None


class _Row(Settings):
    source: str | _RowSource | _Reference | None = None
    force: bool = False


class _Tokenizer(Settings):
    source: str | _Reference = UNION
    tokens: dict[str, _Row] | None = None
    pad_to_multiple_of: int | None = None


class _File(Settings):
    models: list[_Model] | None = None
    slices: list[_Slice] | None = None
    modules: Any = None
    merge_method: str
    base_model: str | _Reference | None = None
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: str | _Reference | None = None
    tokenizer: _Tokenizer | None = None
    chat_template: str | None = None
    parameters: dict[str, Any] | None = None
    name: Any = None


def read_mergekit(tree: Mapping[str, Any], *, path: Path, source: str) -> Recipe:
    """The merge that mergekit's YAML `tree`, read from `path`, asks for. Raises `ConfigError` naming the key."""
    file = parse(tree, _File, where=str(path))
    try:
        return _Reader(file).recipe(path, source)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


class _Reader:
    def __init__(self, file: _File) -> None:
        self.file = file
        self.taken = pick(METHODS, file.merge_method, "merge method of mergekit")
        self.notes: dict[str, None] = {}  # in order, each once

    def recipe(self, path: Path, source: str) -> Recipe:
        file = self.file
        if file.modules is not None:
            raise ConfigError(
                "key 'modules' is not supported: every tensor in the models' files is merged, whatever module it is "
                "in. Use 'models', and our own recipe's 'rules' where a module needs other parameters."
            )
        if file.name is not None:
            raise ConfigError("key 'name' is mergekit-multi's: give each merge a file and run them in order.")
        if (file.models is None) == (file.slices is None):
            raise ConfigError("expected exactly one of 'models' and 'slices'.")
        base = None if file.base_model is None else reference(file.base_model, "base_model")
        has_base = base is not None or (file.slices and all(slice_.base_model for slice_ in file.slices))
        if not has_base and file.merge_method not in (*WITHOUT_BASE, *PERHAPS_BASE):
            raise ConfigError(f"{file.merge_method} merges changes against a base. Give 'base_model'.")
        slices = self._whole_models(base) if file.slices is None else self._slices(file.slices)
        for place, slice_ in enumerate(slices):
            self._refuse_doubles(slice_, place)
        dtype = known_dtype(file.out_dtype) or known_dtype(file.dtype)
        return Recipe(
            method=file.merge_method,
            slices=slices,
            base=base,
            parameters=self._with_defaults(self._parameters(file.parameters, "parameters")),
            required=frozenset(name for name, default in self.taken.all.items() if default is REQUIRED),
            dtype=dtype,
            vocabulary=self._vocabulary(),
            chat_template=file.chat_template,
            notes=tuple(self.notes),
            is_mergekit=True,
            source=source,
            path=path,
        )

    def _note(self, line: str) -> None:
        self.notes[line] = None

    def _whole_models(self, base: ModelRef | None) -> tuple[Slice, ...]:
        given = self.file.models or []
        if not given:
            raise ConfigError("'models' is empty. List the models to merge.")
        sources = []
        for place, model in enumerate(given):
            ref, key = reference(model.model, f"models.{place}.model"), f"models.{place}.parameters"
            parameters = self._parameters(model.parameters, key, of_model=True)
            if ref == base and parameters and self.file.merge_method not in WITHOUT_BASE:
                self._note(f"{key}: {ref} is the base, and the base takes no parameters; mergekit ignores them too")
            sources.append(Source(ref, None, parameters))
        if base and self.file.merge_method in WITHOUT_BASE and base not in [source.model for source in sources]:
            raise ConfigError(
                f"{self.file.merge_method} takes no base: mergekit would silently merge base_model {base} as one more "
                "model. List it under 'models' if that is meant, or remove 'base_model'."
            )
        return (Slice(tuple(sources)),)

    def _slices(self, given: Sequence[_Slice]) -> tuple[Slice, ...]:
        if not given:
            raise ConfigError("'slices' is empty. List the layers of the result.")
        slices = []
        for place, slice_ in enumerate(given):
            key = f"slices.{place}"
            if slice_.residual_weight is not None:
                raise ConfigError(
                    f"{key}.residual_weight is not supported; mergekit reads it and does nothing with it."
                )
            sources = []
            for number, source in enumerate(slice_.sources):
                where = f"{key}.sources.{number}"
                first, end = source.layer_range
                if not 0 <= first < end:
                    raise ConfigError(f"{where}.layer_range is [{first}, {end}]; expected [first, one past the last].")
                sources.append(
                    Source(
                        reference(source.model, f"{where}.model"),
                        (first, end),
                        self._parameters(source.parameters, f"{where}.parameters", of_model=True),
                    )
                )
            if not sources:
                raise ConfigError(f"{key}.sources is empty. Give the slice a model with its layer_range.")
            lengths = {end - first for first, end in (source.layers or (0, 0) for source in sources)}
            if len(lengths) > 1:
                raise ConfigError(f"{key}: its sources have {sorted(lengths)} layers; expected as many in each.")
            base = None if slice_.base_model is None else reference(slice_.base_model, f"{key}.base_model")
            slices.append(Slice(tuple(sources), base, self._parameters(slice_.parameters, f"{key}.parameters")))
        return tuple(slices)

    def _refuse_doubles(self, slice_: Slice, place: int) -> None:
        models = [source.model for source in slice_.sources]
        for model in models:
            if models.count(model) > 1:
                where = f"slices.{place}" if slice_.sources[0].layers else "models"
                raise ConfigError(f"{where} lists {model} {models.count(model)} times; expected once.")

    def _parameters(self, given: Mapping[str, Any] | None, where: str, *, of_model: bool = False) -> Parameters:
        """The parameters of one scope, those without effect left out. Raises `ConfigError` naming an unknown one."""
        method, found = self.file.merge_method, {}
        for name, raw in (given or {}).items():
            if name not in KNOWN:
                takes = ", ".join(self.taken.all) or "no parameters"
                meant = nearest(name, self.taken.all) or nearest(name, KNOWN)
                raise ConfigError(f"unknown parameter {where}.{name}.{meant} {method} takes {takes}.")
            setting = read_setting(raw, f"{where}.{name}")
            if name == "int8_mask":
                continue  # it saves memory in mergekit and changes no result
            if name not in self.taken.all:
                takes = ", ".join(self.taken.all) or "no parameters"
                raise ConfigError(
                    f"{where}.{name}: {method} takes no {name!r} (mergekit ignores it). It takes {takes}."
                )
            if name in self.taken.unused:
                self._note(f"{where}.{name} has no effect: {method} makes no use of it; mergekit ignores it too")
                continue
            if of_model and name in self.taken.shared:
                raise ConfigError(
                    f"{where}.{name}: {method} takes one {name!r} for all models, and mergekit ignores it here. Move "
                    "it to the top-level 'parameters'."
                )
            if name == "nuslerp_row_wise":
                _refuse_other_axis(setting, f"{where}.{name}")
                continue
            found[OURS.get(name, name)] = _in_our_words(name, setting)
        return found

    def _with_defaults(self, said: Parameters) -> Parameters:
        """mergekit's defaults behind what the file says for all models; ours may be others."""
        found = dict(said)
        for name, default in self.taken.all.items():
            if default is not REQUIRED and name not in (*self.taken.unused, "nuslerp_row_wise"):
                ours = OURS.get(name, name)
                found[ours] = (*found.get(ours, ()), *_in_our_words(name, (Choice(default),)))
        return found | ({"variant": (Choice("mergekit"),)} if self.file.merge_method == "sce" else {})

    def _vocabulary(self) -> Vocabulary | None:
        source, tokenizer = self.file.tokenizer_source, self.file.tokenizer
        if source is not None and tokenizer is not None:
            raise ConfigError("expected one of 'tokenizer_source' and 'tokenizer', got both.")
        if tokenizer is None:
            return None if source is None else Vocabulary(_vocabulary_source(source, "tokenizer_source"))
        rows = {token: _row(row, f"tokenizer.tokens.{token}") for token, row in (tokenizer.tokens or {}).items()}
        if tokenizer.pad_to_multiple_of is not None and tokenizer.pad_to_multiple_of < 1:
            raise ConfigError(f"tokenizer.pad_to_multiple_of is {tokenizer.pad_to_multiple_of}; expected 1 or more.")
        return Vocabulary(_vocabulary_source(tokenizer.source, "tokenizer.source"), rows, tokenizer.pad_to_multiple_of)


def _refuse_other_axis(setting: Setting, where: str) -> None:
    values = [
        value for choice in setting for value in (choice.value if isinstance(choice.value, tuple) else (choice.value,))
    ]
    if any(values):
        raise ConfigError(f"{where} is not supported: with nuslerp_flatten: false, the rows of the matrix are turned.")


def _in_our_words(name: str, setting: Setting) -> Setting:
    """`rescale` is a switch in mergekit and means that the L1 norm is kept; the other values mean the same here."""
    if name != "rescale":
        return setting
    words = {True: "l1", False: "none"}
    return tuple(
        replace(choice, value=tuple(words[bool(part)] for part in choice.value))
        if isinstance(choice.value, tuple)
        else replace(choice, value=words[bool(choice.value)])
        for choice in setting
    )


def reference(given: str | _Reference, where: str) -> ModelRef:
    """A model of mergekit: `path[@revision][+lora[@revision]]`, or the same as a mapping."""
    if isinstance(given, str):
        whole, *adapters = given.split("+")
        if len(adapters) > 1:
            raise ConfigError(f"{where}: {given!r} has more than one '+'; expected MODEL or MODEL+ADAPTER.")
        return ModelRef(*_at(whole, where), *(_at(adapters[0], where) if adapters else ()))
    if given.override_architecture is not None:
        raise ConfigError(f"{where}.override_architecture is not supported: tensors are merged by name.")
    return ModelRef(*_place(given.model, where), *_place(given.lora, where))


def _place(given: str | _Path | None, where: str) -> tuple[str, str]:
    if given is None:
        return "", ""
    return _at(given, where) if isinstance(given, str) else (given.path, given.revision or "")


def _at(given: str, where: str) -> tuple[str, str]:
    path, *revisions = given.split("@")
    if len(revisions) > 1 or not path:
        raise ConfigError(f"{where}: {given!r} is not a model; expected PATH or PATH@REVISION.")
    return path, revisions[0] if revisions else ""


def _vocabulary_source(given: str | _Reference, where: str) -> str | ModelRef:
    return given if given in (UNION, BASE) and isinstance(given, str) else reference(given, where)


def _row(row: _Row, where: str) -> TokenRow:
    source = row.source
    if source is None:
        raise ConfigError(f"{where}.source is missing: a model, or {{kind: zero}}, or {{kind: model_token, ...}}.")
    if isinstance(source, str | _Reference):
        return TokenRow(reference(source, f"{where}.source"), force=row.force)
    if source.kind == "zero":
        return TokenRow(None, force=row.force)
    if source.kind != "model_token":
        raise ConfigError(f"{where}.source.kind is {source.kind!r}; expected 'zero' or 'model_token'.")
    if source.model is None or (source.token is None) == (source.token_id is None):
        raise ConfigError(f"{where}.source: a model_token has a 'model' and one of 'token' and 'token_id'.")
    return TokenRow(reference(source.model, f"{where}.source.model"), source.token, source.token_id, row.force)


def read_setting(raw: Any, where: str) -> Setting:
    """A parameter: a scalar, a gradient (list of scalars), or a list of `{filter: part of a name, value: ...}`."""
    if isinstance(raw, Mapping):
        return (_conditional(raw, where),)
    if isinstance(raw, list) and any(isinstance(part, Mapping) for part in raw):
        if not all(isinstance(part, Mapping) for part in raw):
            raise ConfigError(f"{where} mixes values and filters; expected a list of one kind.")
        return tuple(_conditional(part, f"{where}.{place}") for place, part in enumerate(raw))
    return (Choice(_value(raw, where)),)


def _conditional(raw: Mapping[str, Any], where: str) -> Choice:
    for key in raw:
        if key not in ("filter", "value"):
            raise ConfigError(
                f"unknown key {where}.{key}.{nearest(str(key), ('filter', 'value'))} Expected filter, value."
            )
    if "value" not in raw:
        raise ConfigError(f"{where}.value is missing.")
    part = raw.get("filter")
    if part is not None and not isinstance(part, str):
        raise ConfigError(f"{where}.filter is {part!r}; expected a part of a tensor's name, or '*'.")
    return Choice(_value(raw["value"], f"{where}.value"), When(contains="" if part in (None, "*") else str(part)))


def _value(raw: Any, where: str) -> Scalar | tuple[Scalar, ...]:
    if isinstance(raw, list):
        return frozen([_scalar(part, where) for part in raw], where)
    return _scalar(raw, where)


def _scalar(raw: Any, where: str) -> Scalar:
    if isinstance(raw, bool | int | float):
        return raw
    if isinstance(raw, str):
        try:
            return float(raw)  # YAML reads 1e-3, without a dot, as text
        except ValueError:
            pass
    raise ConfigError(f"{where} is {raw!r}; expected a number, true or false, a list of them, or filters.")
