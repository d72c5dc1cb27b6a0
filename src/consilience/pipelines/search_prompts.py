"""The prompts of a file, each to be answered by a search."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from consilience.errors import DataError
from consilience.records import Message, messages_of, read_rows
from consilience.search import Prompt


def read_prompts(path: Path, *, seed: int, limit: int | None = None, numbered: bool = False) -> list[Prompt]:
    """The prompts of a JSONL, JSON or Parquet file: `prompt` text or `messages`, of which a last reply is left out.

    `numbered` ones have `seed` plus their place in the file: the published draws follow from the seed alone.
    """
    prompts: dict[str, Prompt] = {}
    for index, (where, row) in enumerate(read_rows(path)):
        if limit is not None and index >= limit:
            break
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: got {type(row).__name__}, expected an object with 'prompt' or 'messages'.")
        id_ = str(index if row.get("id") is None else row["id"])
        if id_ in prompts:
            raise DataError(f"{where}: a second prompt with the id {id_!r}. Give each its own.")
        prompts[id_] = Prompt(id_, _messages(row, where), seed + index * numbered)
    if not prompts:
        raise DataError(f"{path} holds no prompts. Expected one JSON object with 'prompt' or 'messages' per line.")
    return list(prompts.values())


def _messages(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    text = row.get("prompt")
    if isinstance(text, str):
        return (Message("user", text),)
    if text is not None:
        raise DataError(f"{where}: 'prompt' is {type(text).__name__}, expected text.")
    if row.get("messages") is None and row.get("conversations") is None:
        raise DataError(f"{where}: neither 'prompt' nor 'messages', but {', '.join(map(str, row)) or 'nothing'}.")
    messages = messages_of(row, where=where)
    if messages and messages[-1].role == "assistant":
        messages = messages[:-1]
    if not messages:
        raise DataError(f"{where}: nothing comes before the reply that is to be searched for.")
    return messages
