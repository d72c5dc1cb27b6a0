"""Recipe files: YAML into typed settings; an unknown key names the nearest one; `--set key=value` on top."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, ValidationError

from consilience.errors import ConfigError, nearest, pick

DECIDES = "decides"  # the context of a dump that leaves out what does not decide the outcome


class Settings(BaseModel):
    """Base of every block of a recipe: frozen, and a key that is not a field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def decides(self, *, exclude: set[str] | None = None) -> dict[str, Any]:
        """What decides the outcome, as JSON: what must agree before a run is resumed.

        `exclude` names what this block itself has besides, such as a title; of a server's pace, price and key the
        endpoint's block looks after itself.
        """
        return self.model_dump(mode="json", exclude=exclude, context=DECIDES)


S = TypeVar("S", bound=Settings)


def known(table: Callable[[], Mapping[str, object]], kind: str) -> AfterValidator:
    """For `Annotated[str, known(...)]`: a setting that names an entry of `table`, or is None where it may be left out.

    The table is asked for when a recipe is read, so it may be defined below the settings.
    """

    def check(name: str | None) -> str | None:
        if name is not None:
            pick(table(), name, kind)
        return name

    return AfterValidator(check)


def filled(**defaults: Any) -> BeforeValidator:
    """For `Annotated[Sampling, filled(temperature=1.0)]`: what a recipe that gives some keys of a block leaves out.

    Without it `sample: {max_new_tokens: 256}` would mean the block's own defaults, not those of the setting.
    """
    return BeforeValidator(lambda given: {**defaults, **given} if isinstance(given, Mapping) else given)


def load_recipe(path: Path, kind: type[S], overrides: Sequence[str] = ()) -> S:
    """The recipe at `path` as a `kind`, with `overrides` (`"train.epochs=2"`) applied to the YAML first."""
    return parse(load_tree(path, overrides), kind, where=str(path))


def load_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in the YAML file at `path`, with `overrides` applied; for a recipe that may be of several kinds."""
    if not path.is_file():
        raise ConfigError(f"no recipe {path}. Give the path of a YAML file; ready ones are in recipes/.")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _RecipeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{line}: not YAML ({getattr(error, 'problem', None) or error}).") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}).") from None
    if not isinstance(tree, Mapping):
        raise ConfigError(f"{path} is {'empty' if tree is None else 'not a mapping'}; expected keys such as 'pivot:'.")
    return override(dict(tree), overrides)


class _RecipeLoader(yaml.SafeLoader):
    """YAML in which a doubled key is an error; PyYAML takes the last one, and a source would vanish silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(problem=f"{key.value!r} twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def override(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """`tree` with every `a.b=value` set; values are read as YAML, missing mappings are made."""
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"--set {text!r}: expected key=value, for example --set train.epochs=2.")
        *parents, last = path.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        try:
            node[last] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"--set {text!r}: {value!r} is not a YAML value.") from None
    return tree


def parse(tree: Mapping[str, Any], kind: type[S], *, where: str) -> S:
    """`tree` as a `kind`. Raises `ConfigError` with every fault on one line, the nearest key where one is unknown."""
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_fault(kind, dict(fault)) for fault in error.errors())) from None
    except ConfigError as error:  # raised by a validator of our own
        raise ConfigError(f"{where}: {error}") from None


def _fault(kind: type[BaseModel], fault: dict[str, Any]) -> str:
    path = _without_union_labels(kind, fault["loc"])
    dotted = ".".join(map(str, path))
    if fault["type"] == "extra_forbidden":
        there_are = _fields_at(kind, path[:-1])
        return f"unknown key {dotted!r}.{nearest(str(path[-1]), there_are)} There are: {', '.join(there_are)}."
    if fault["type"] == "missing":
        return f"key {dotted!r} is missing."
    cause = fault.get("ctx", {}).get("error")
    message = str(cause) if isinstance(cause, Exception) else fault["msg"]
    got = "" if isinstance(cause, Exception) else f", got {fault['input']!r}"
    return f"{dotted}: {message}{got}." if dotted else f"{message.rstrip('.')}."


def _fields_at(kind: Any, path: Sequence[Any]) -> list[str]:
    """The field names of the settings that `path` leads to, through optional fields, mappings and lists."""
    for part in path:
        kind = _type_at(kind, part)
    model = _model_in(kind)
    return list(model.model_fields) if model else []


def _without_union_labels(kind: Any, loc: Sequence[Any]) -> list[Any]:
    """Where a fault lies: pydantic puts the name of a union's arm, `str` or `LoraSettings`, behind the field's name.

    Of arms that a key of theirs tells apart (`kind: choice`) it puts that key's value.
    """
    path = []
    for part in loc:
        arms = [arm for arm in _arms(kind) if arm is not type(None)]
        if len(arms) > 1:
            kind = next((arm for arm in arms if part in _labels(arm)), None)
        else:
            path.append(part)
            kind = _type_at(kind, part)
    return path


def _type_at(kind: Any, part: Any) -> Any:
    """The type of a field of settings, or of the values of a mapping or list."""
    model = _model_in(kind)
    if model:
        return model.model_fields[part].annotation if part in model.model_fields else None
    types = [type_ for arm in _arms(kind) for type_ in get_args(arm) if type_ is not Ellipsis]
    return types[-1] if types else None


def _model_in(kind: Any) -> type[BaseModel] | None:
    return next((arm for arm in _arms(kind) if isinstance(arm, type) and issubclass(arm, BaseModel)), None)


def _labels(arm: Any) -> list[str]:
    """What pydantic may call an arm of a union: its class, or the values of its literal fields."""
    fields = arm.model_fields.values() if isinstance(arm, type) and issubclass(arm, BaseModel) else ()
    literals = [field.annotation for field in fields if get_origin(field.annotation) is Literal]
    return [getattr(arm, "__name__", ""), *(str(value) for literal in literals for value in get_args(literal))]


def _arms(kind: Any) -> tuple[Any, ...]:
    """The arms of a union; any other type is its own only arm."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`: what a changed setting is named by."""
    if isinstance(tree, Mapping) and tree:
        return {key: value for name in tree for key, value in flatten(tree[name], f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): tree}
