"""The chats of a recipe: read from a file, a folder or a data set, and split into those to learn from and held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from consilience.errors import DataError
from consilience.pipelines.data import rows_of
from consilience.pipelines.places import Places
from consilience.pipelines.recipe import DataSettings, FuseRecipe, HeldOutSettings
from consilience.records import Conversation, Message, conversations_of
from consilience.rng import stream


def read_chats(recipe: FuseRecipe, places: Places) -> tuple[list[Conversation], list[Conversation]]:
    """Training and held-out chats; a share is held out by prompt, so that no prompt is on both sides."""
    data, held_out = recipe.data, recipe.held_out
    chats = _read(data, places)
    if held_out.path:
        return chats, _read(held_out, places)
    assert held_out.share is not None
    prompts = sorted({chat.opening for chat in chats})
    count = max(1, round(held_out.share * len(prompts)))
    drawn = set(stream(recipe.seed, "held out").choice(len(prompts), count, replace=False).tolist())
    kept_back = {prompt for index, prompt in enumerate(prompts) if index in drawn}
    train_chats = [chat for chat in chats if chat.opening not in kept_back]
    if not train_chats:
        raise DataError(f"{data.path}: all {len(chats)} chats are held out; lower held_out.share.")
    return train_chats, [chat for chat in chats if chat.opening in kept_back][: held_out.limit]


def _read(settings: DataSettings | HeldOutSettings, places: Places) -> list[Conversation]:
    rows, name = rows_of(settings, places), str(settings.path)
    if isinstance(settings, DataSettings) and settings.text_key:
        return [_text(row, settings, where, index) for index, (where, row) in enumerate(rows)]
    return _checked(conversations_of(rows, name, group_key=settings.group_key), name, settings)


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
