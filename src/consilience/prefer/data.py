"""Preference data: prompts, and where there are some, a chosen and a rejected reply to each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consilience.errors import DataError
from consilience.records import Message, messages_of, read_rows
from consilience.rng import stream

REPLIES = ("chosen", "rejected")
EXPECTED = "one object per row with prompt, chosen and rejected"
# Anthropic's hh-rlhf: a whole dialogue in one text, "\n\nHuman: ...\n\nAssistant: ...".
SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, slots=True)
class Preference:
    """A prompt of one or more turns, and its offline pair of replies if it has one. `row` is its line in the file."""

    id: str
    prompt: tuple[Message, ...]
    chosen: str | None = None
    rejected: str | None = None
    row: Mapping[str, Any] = field(default_factory=dict, compare=False)


def read_preferences(path: Path | str, *, pairs: bool) -> list[Preference]:
    """The preferences of a file or folder: see `records.read_rows` and `preferences_of`."""
    return preferences_of(read_rows(Path(path)), str(path), pairs=pairs)


def preferences_of(rows: Iterable[tuple[str, Any]], name: str, *, pairs: bool) -> list[Preference]:
    """The prompts of the data called `name`, each with its offline pair where the rows have them.

    A prompt is a text, a list of turns, the turns that `chosen` and `rejected` share (UltraFeedback, TRL), or the
    dialogue that both begin with (hh-rlhf); or `messages` without a pair, whose last assistant turn is left out. With
    `pairs` every row must have both replies. `id` names a row. `prompt_id` names a prompt, which several rows may have.
    Raises `DataError` naming file and line when a field is missing or is not what was expected.
    """
    found: list[Preference] = []
    places: dict[str, str] = {}
    for index, (where, row) in enumerate(rows):
        preference = _preference_of(row, where=where, id_=_id_of(row, index, places), pairs=pairs)
        if preference.id in places:
            raise DataError(
                f"{where}: the id {preference.id!r} is that of {places[preference.id]}, too; expected every id once."
            )
        places[preference.id] = where
        found.append(preference)
    if not found:
        raise DataError(f"{name} holds no prompts. Expected {EXPECTED}.")
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


def _id_of(row: Any, index: int, places: Mapping[str, str]) -> str:
    if not isinstance(row, Mapping):
        return str(index)
    if row.get("id") is not None or row.get("prompt_id") is None:
        return str(index if row.get("id") is None else row["id"])
    prompt = str(row["prompt_id"])
    return f"{prompt}, row {index}" if prompt in places else prompt


def _preference_of(row: Any, *, where: str, id_: str, pairs: bool) -> Preference:
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: got {type(row).__name__}, expected an object with prompt, chosen and rejected.")
    missing = [name for name in REPLIES if row.get(name) is None]
    if missing and (pairs or len(missing) == 1):
        alone = "; for prompts alone, offline_pair: false" if len(missing) == 2 else ""
        raise DataError(
            f"{where}: no {' and no '.join(missing)}; its keys are {_keys(row)}. Expected {EXPECTED}{alone}."
        )
    turns_of = {name: _turns(row, name, where) for name in REPLIES if name not in missing}
    prompt = _prompt_of(row, turns_of, where)
    replies = {name: _reply(turns, prompt, where, name) for name, turns in turns_of.items()}
    if not prompt or prompt[-1].role == "assistant":
        raise DataError(
            f"{where}: the prompt {'has no turns' if not prompt else 'ends with the assistant'}; expected it to end "
            "where the assistant is to reply."
        )
    return Preference(id_, prompt, row=row, **replies)


def _turns(row: Mapping[str, Any], name: str, where: str) -> tuple[Message, ...]:
    """A reply given as text, as a turn, or as the turns of the whole chat; a dialogue in one text as its turns."""
    value = row[name]
    if isinstance(value, str):
        dialogue = "prompt" not in row and _dialogue(value)
        return dialogue or (Message("assistant", value),)
    turns = _chat(value, name, where)
    if not turns or turns[-1].role != "assistant":
        ends = f"ends with a {turns[-1].role} turn" if turns else "has no turns"
        raise DataError(f"{where}: {name} {ends}; expected it to end with an assistant turn.")
    return turns


def _chat(value: Any, name: str, where: str) -> tuple[Message, ...]:
    value = [value] if isinstance(value, Mapping) else value
    if not isinstance(value, Sequence):
        raise DataError(f"{where}: {name} is {value!r}; expected a text or a list of turns.")
    return messages_of({"messages": value}, where=f"{where}, {name}")


def _dialogue(text: str) -> tuple[Message, ...]:
    """The turns of a text that begins `Human:`, as hh-rlhf's do and a reply does not; none of another text."""
    _, *parts = SPEAKER.split(text)
    if len(parts) < 4 or parts[0] != "Human" or parts[-2] != "Assistant" or not text.lstrip().startswith("Human:"):
        return ()
    return tuple(Message(SPEAKERS[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def _prompt_of(row: Mapping[str, Any], turns_of: Mapping[str, Sequence[Message]], where: str) -> tuple[Message, ...]:
    shared = next((tuple(turns[:-1]) for turns in turns_of.values() if len(turns) > 1), None)
    if shared is not None:
        return shared
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        turns = _dialogue(prompt)
        return turns[:-1] if turns and not turns[-1].content else (Message("user", prompt),)
    if prompt is not None:
        return _chat(prompt, "prompt", where)
    if row.get("messages") is None and row.get("conversations") is None:
        raise DataError(
            f"{where}: no prompt; its keys are {_keys(row)}. Expected prompt (a text or turns), messages, or "
            "chosen and rejected with the prompt in them."
        )
    turns = messages_of(row, where=where)
    return turns[:-1] if turns and turns[-1].role == "assistant" else turns


def _reply(turns: Sequence[Message], prompt: Sequence[Message], where: str, name: str) -> str:
    if len(turns) > 1 and tuple(turns[:-1]) != tuple(prompt):
        raise DataError(f"{where}: chosen and rejected answer different prompts; expected the same turns before both.")
    return turns[-1].content


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(sorted(map(str, row)))
