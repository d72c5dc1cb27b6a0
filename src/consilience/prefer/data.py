"""Preference data: prompts, and where there are some, a chosen and a rejected reply to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from consilience.errors import DataError
from consilience.records import Message, messages_of, read_rows
from consilience.rng import stream

REPLIES = ("chosen", "rejected")


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt of one or more turns, and its offline pair of replies if it has one. `row` is its line in the file."""

    id: str
    prompt: tuple[Message, ...]
    chosen: str | None = None
    rejected: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict, compare=False)


def read_preferences(path: Path | str, *, pairs: bool, limit: int | None = None) -> list[Preference]:
    """The prompts of a JSONL, JSON or Parquet file, each with its offline pair where the file has them.

    A prompt is a text, a list of turns, or the turns that `chosen` and `rejected` share (UltraFeedback, TRL); or
    `messages` without pair, whose last assistant turn is left out. With `pairs` every row must have both replies.
    Raises `DataError` naming file and line when a field is missing or is not what was expected.
    """
    path = Path(path)
    found = [
        _preference_of(row, where=where, index=index, pairs=pairs)
        for index, (where, row) in enumerate(islice(read_rows(path), limit))
    ]
    if not found:
        raise DataError(f"{path} holds no prompts. Expected one JSON object with prompt, chosen and rejected per line.")
    seen: set[str] = set()
    for preference in found:
        if preference.id in seen:
            raise DataError(f"{path}: two prompts have the id {preference.id!r}; expected every id once.")
        seen.add(preference.id)
    return found


def slices(preferences: Sequence[Preference], rounds: int, per_round: int | None, seed: int) -> list[list[Preference]]:
    """The prompts of every round, without replacement, contiguous in the file and shuffled inside a slice.

    By default as many as there are, in equal parts (SELM's code). Raises `DataError` when there are too few.
    """
    size = per_round or len(preferences) // rounds
    if size < 1 or size * rounds > len(preferences):
        raise DataError(
            f"{rounds} rounds of {size or 'at least 1'} prompts need {rounds * max(size, 1)}, and the data has "
            f"{len(preferences)}. Lower rounds or prompts_per_round, or give more data."
        )
    parts = [preferences[t * size : (t + 1) * size] for t in range(rounds)]
    return [
        [part[i] for i in stream(seed, "slice", str(number)).permutation(size)]
        for number, part in enumerate(parts, start=1)
    ]


def _preference_of(row: Any, *, where: str, index: int, pairs: bool) -> Preference:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: got {type(row).__name__}, expected an object with prompt, chosen and rejected.")
    missing = [name for name in REPLIES if row.get(name) is None]
    if missing and (pairs or len(missing) == 1):
        raise DataError(f"{where}: no {' and no '.join(missing)}; its keys are {', '.join(sorted(map(str, row)))}.")
    turns_of = {name: _turns(row[name], where, name) for name in REPLIES if name not in missing}
    prompt = _prompt_of(row, turns_of, where)
    replies = {name: _reply(turns, prompt, where, name) for name, turns in turns_of.items()}
    if not prompt or prompt[-1].role == "assistant":
        raise DataError(f"{where}: the prompt {'has no turns' if not prompt else 'ends with the assistant'}.")
    id_ = row.get("id", row.get("prompt_id"))
    return Preference(str(index if id_ is None else id_), prompt, row=row, **replies)


def _turns(value: Any, where: str, name: str) -> tuple[Message, ...]:
    """A reply given as text, or as turns."""
    if isinstance(value, str):
        return (Message("assistant", value),)
    turns = messages_of({"messages": value}, where=f"{where}, {name}")
    if not turns or turns[-1].role != "assistant":
        raise DataError(f"{where}: {name} does not end with an assistant turn.")
    return turns


def _prompt_of(row: Mapping[str, Any], turns_of: Mapping[str, Sequence[Message]], where: str) -> tuple[Message, ...]:
    shared = next((tuple(turns[:-1]) for turns in turns_of.values() if len(turns) > 1), None)
    if shared is not None:
        return shared
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        return (Message("user", prompt),)
    if prompt is not None:
        return messages_of({"messages": prompt}, where=f"{where}, prompt")
    if row.get("messages") is None and row.get("conversations") is None:
        raise DataError(f"{where}: no prompt; its keys are {', '.join(sorted(map(str, row)))}.")
    turns = messages_of(row, where=where)
    return turns[:-1] if turns and turns[-1].role == "assistant" else turns


def _reply(turns: Sequence[Message], prompt: Sequence[Message], where: str, name: str) -> str:
    if len(turns) > 1 and tuple(turns[:-1]) != tuple(prompt):
        raise DataError(f"{where}: chosen and rejected answer different prompts.")
    return turns[-1].content
