"""The chats of a recipe: read from a file or a data set, and split into those to learn from and those held out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from consilience.errors import ConfigError, DataError
from consilience.pipelines.places import Places
from consilience.pipelines.recipe import DataSettings, FuseRecipe, HeldOutSettings
from consilience.records import Conversation, Message, conversation_of, read_conversations, read_rows, row_of
from consilience.rng import stream
from consilience.weights.hub import broken_connections


def read_chats(recipe: FuseRecipe, places: Places) -> tuple[list[Conversation], list[Conversation]]:
    """Training and held-out chats; a share is held out by prompt, so that no prompt is on both sides."""
    data, held_out = recipe.data, recipe.held_out
    chats = _from_data_set(data) if places.is_data_set(data.path) else _from_file(data.path, data, places)
    if held_out.path:
        return chats, _from_file(held_out.path, held_out, places)
    assert held_out.share is not None
    prompts = sorted({chat.opening for chat in chats})
    count = max(1, round(held_out.share * len(prompts)))
    drawn = set(stream(recipe.seed, "held out").choice(len(prompts), count, replace=False).tolist())
    kept_back = {prompt for index, prompt in enumerate(prompts) if index in drawn}
    train_chats = [chat for chat in chats if chat.opening not in kept_back]
    if not train_chats:
        raise DataError(f"{data.path}: all {len(chats)} chats are held out; lower held_out.share.")
    return train_chats, [chat for chat in chats if chat.opening in kept_back][: held_out.limit]


def fingerprint_of_data_set(data: DataSettings) -> str:
    """A hash of the chats of a `datasets` data set: its name stays the same when its rows change."""
    return fingerprint_of_chats(_from_data_set(data))


def fingerprint_of_chats(chats: Sequence[Conversation]) -> str:
    """A hash of chats in their order."""
    digest = hashlib.sha256()
    for chat in chats:
        digest.update(json.dumps(row_of(chat), default=str).encode())
    return digest.hexdigest()[:16]


def _from_file(name: str, settings: DataSettings | HeldOutSettings, places: Places) -> list[Conversation]:
    if isinstance(settings, DataSettings) and settings.text_key:
        rows = islice(read_rows(places.file(name)), settings.limit)
        return [_text(row, settings, where, index) for index, (where, row) in enumerate(rows)]
    chats = read_conversations(places.file(name), group_key=settings.group_key, limit=settings.limit)
    return _checked(chats, name, settings)


def _from_data_set(data: DataSettings) -> list[Conversation]:
    """Chats of a `datasets` data set from the hub or its cache."""
    try:
        import datasets
    except ImportError:
        raise ConfigError(
            f"data.path {data.path!r} is no file; for a data set of the hub: pip install 'consilience[hub]'."
        ) from None
    try:
        rows = datasets.load_dataset(
            data.path, split=data.split if data.limit is None else f"{data.split}[:{data.limit}]"
        )
    except (datasets.exceptions.DatasetNotFoundError, ValueError, *broken_connections()) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(
            f"data.path {data.path!r} is no file, and no data set can be loaded by that name: {reason}"
        ) from None
    chats = []
    for number, row in enumerate(rows):
        where = f"{data.path}[{data.split}], row {number}"
        if data.text_key:
            chats.append(_text(row, data, where, number))
        else:
            chats.append(conversation_of(row, where=where, index=number, group_key=data.group_key))
    return _checked(chats, data.path, data)


def _text(row: Any, data: DataSettings, where: str, index: int) -> Conversation:
    """A plain text as one reply without a prompt."""
    text = row.get(data.text_key) if isinstance(row, Mapping) else None
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: no text in the field {data.text_key!r} (data.text_key).")
    return Conversation(str(index), (Message("assistant", text),), str(row.get(data.group_key, "")))


def _checked(chats: list[Conversation], where: str, settings: DataSettings | HeldOutSettings) -> list[Conversation]:
    """`chats`, unless two have one id or the recipe names a field for their group that none of them has."""
    _refuse_doubles(chats, where)
    if "group_key" in settings.model_fields_set and not any(chat.group for chat in chats):
        raise DataError(f"{where}: no conversation has anything in the field {settings.group_key!r} (group_key).")
    return chats


def _refuse_doubles(chats: Sequence[Conversation], where: str) -> None:
    seen: set[str] = set()
    for chat in chats:
        if chat.id in seen:
            raise DataError(f"{where}: two conversations have the id {chat.id!r}; expected every id once.")
        seen.add(chat.id)
