"""The questions of a task: rows of a user's file, worded as one prompt each.

The names that the field's data sets give to a question are known (FIELDS); a template words anything else.
"""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from consilience.config import Settings
from consilience.errors import ConfigError, DataError, nearest
from consilience.models import Sampling
from consilience.records import Message, messages_of, read_rows

FIELDS = ("prompt", "question", "instruction", "problem")
ID_FIELDS = ("id", "key", "question_id")
GROUP_FIELDS = ("group", "category", "dataset", "subject")


class QuestionSettings(Settings):
    """What all tasks have in common: where the questions are, and how they are put to a model."""

    kind: str
    path: str
    prompt: str | None = Field(None, description="a template: {field} is that field of the row, {{ and }} are braces")
    system: str | None = Field(None, description="what the system's turn says")
    id_key: str | None = Field(None, description="the field that names an item; default: id, key or question_id")
    group_key: str | None = Field(None, description="the field that names its category")
    cluster: str | None = Field(None, description="the field by which items are not independent of one another")
    limit: int | None = Field(None, ge=1)
    sampling: Sampling = Sampling()

    @property
    def needs_chat(self) -> bool:
        """Whether a model is asked through its chat template."""
        return True

    @field_validator("prompt")
    @classmethod
    def _has_whole_fields(cls, prompt: str | None) -> str | None:
        if prompt is not None:
            fields_of(prompt)
        return prompt


@dataclass(frozen=True, slots=True)
class Item:
    """One question: what is asked, what it belongs to, and the row it came from."""

    id: str
    group: str
    cluster: str
    messages: tuple[Message, ...]
    row: Mapping[str, Any]
    where: str


def read_items(path: Path, settings: QuestionSettings) -> list[Item]:
    """The items of a JSONL, JSON or Parquet file.

    Raises `DataError` naming file and line at a row without a question, and at an id that is there twice; `ConfigError`
    at a field of the template that the rows have not.
    """
    items: dict[str, Item] = {}
    for where, row in islice(read_rows(path), settings.limit):
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: got {type(row).__name__}, expected an object with a question.")
        item = _item(settings, row, where, len(items))
        if item.id in items:
            raise DataError(f"{where}: a second question has the id {item.id!r}; expected every id once.")
        items[item.id] = item
    if not items:
        raise DataError(f"{path} holds no questions. Expected one JSON object per line.")
    return [*items.values()]


def _item(settings: QuestionSettings, row: Mapping[str, Any], where: str, number: int) -> Item:
    id_ = _first(row, (settings.id_key,) if settings.id_key else ID_FIELDS)
    if settings.id_key and id_ is None:
        raise DataError(f"{where}: no field {settings.id_key!r} to name the item by; there are {', '.join(row)}.")
    group = _first(row, (settings.group_key,) if settings.group_key else GROUP_FIELDS)
    if settings.cluster and row.get(settings.cluster) is None:
        raise DataError(f"{where}: no field {settings.cluster!r} to cluster by; there are {', '.join(row)}.")
    system = (Message("system", settings.system),) if settings.system else ()
    if settings.prompt is None and row.get("messages"):
        asked = messages_of(row, where=where)
    else:
        asked = (Message("user", _worded(settings.prompt, row, where)),)
    return Item(
        id=str(number if id_ is None else id_),
        group="" if group is None else str(group),
        cluster="" if settings.cluster is None else str(row[settings.cluster]),
        messages=(*system, *asked),
        row=row,
        where=where,
    )


def _worded(template: str | None, row: Mapping[str, Any], where: str) -> str:
    if template is not None:
        return fill(template, row)
    found = _first(row, FIELDS)
    if found is None:
        raise DataError(
            f"{where}: no question; expected one of messages, {', '.join(FIELDS)}; there are {', '.join(row)}. "
            "Word it with `prompt:`, a template of the row's fields."
        )
    return str(found)


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def fields_of(template: str) -> list[str]:
    """The fields that `{...}` of a template name. Raises `ConfigError` at a brace without its other half."""
    try:
        parts = [*string.Formatter().parse(template)]
    except ValueError as error:
        raise ConfigError(
            f"the template {template[:60]!r} has a brace without its other half ({error}); write {{{{ or }}}} for one"
        ) from None
    names = [name for _, name, _, _ in parts if name is not None]
    for name in names:
        if not name.isidentifier():
            raise ConfigError(f"the template {template[:60]!r} has {{{name}}}; expected the name of a field")
    return names


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """The template with every `{field}` replaced; what the fields hold is never read as a template.

    Raises `ConfigError` at a field that is not there.
    """
    written = []
    for text, name, _, _ in string.Formatter().parse(template):
        written.append(text)
        if name is not None:
            if name not in fields:
                raise ConfigError(
                    f"the template has {{{name}}}, which the rows have not.{nearest(name, fields)} "
                    f"There are: {', '.join(map(str, fields))}."
                )
            written.append(str(fields[name]))
    return "".join(written)
