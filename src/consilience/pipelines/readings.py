"""Texts to align on, and how each tokenizer reads them: replies in a chat template, or plain text without one.

Shapes: N tokens of one text, or of all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consilience.align import END, Spelling, TokenText, text_keys
from consilience.chat import render, token_bytes
from consilience.chat.encode import Reader
from consilience.errors import ConfigError, DataError
from consilience.fuse.match import spelling_of, with_end
from consilience.records import Conversation

Ints = NDArray[np.int64]

NO_TOKEN = -1  # before the first token of a plain text
BLANK_LINES = r"\n(?:[^\S\n]*\n)+"
PARAGRAPH = re.compile(rf".+?(?:{BLANK_LINES}|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Texts:
    """What two tokenizers are compared on. Texts with the same label in `units` are one independent unit."""

    name: str
    items: Sequence[Conversation | str]
    kind: str  # conversations, paragraphs or lines
    units: Sequence[str]
    unit_kind: str


def chat_texts(name: str, chats: Sequence[Conversation]) -> Texts:
    """Chats, of which the replies count; chats with the same prompt are one unit."""
    return Texts(name, chats, "conversations", [chat.opening for chat in chats], "prompts")


def plain_texts(paths: Sequence[Path], limit: int | None = None) -> Texts:
    """The paragraphs of plain text files, each with the blank lines after it; the lines, where no line is blank.

    Raises `DataError` for a file that is not there, not UTF-8, or holds nothing but blanks.
    """
    files = [_text_of(path) for path in paths]
    has_blank_lines = any(re.search(BLANK_LINES, text.strip()) for text in files)
    items = [
        text
        for file in files
        for text in (PARAGRAPH.findall(file) if has_blank_lines else file.splitlines(keepends=True))
    ][:limit]
    kind = "paragraphs" if has_blank_lines else "lines"
    return Texts(", ".join(map(str, paths)), items, kind, [text.strip() for text in items], f"distinct {kind}")


def _text_of(path: Path) -> str:
    if not path.is_file():
        found = f"{path} is a folder" if path.is_dir() else f"no file {path}"
        raise DataError(f"{found}. Give --text a plain text file.")
    try:
        text = path.read_text(encoding="utf-8-sig")  # with or without the mark that Windows programs put in front
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Expected plain text; save it as UTF-8, "
            "for example with iconv -f WINDOWS-1252 -t UTF-8."
        ) from None
    if not text.strip():
        raise DataError(f"{path} holds no text. Expected paragraphs of plain text.")
    return re.sub(r"\A\s*\n", "", text)


class Reading(NamedTuple):
    """The tokens of one text that count, in reading order."""

    ids_N: NDArray[np.int32]
    previous_N: NDArray[np.int32]  # the token before each, NO_TOKEN where there is none
    reply_N: NDArray[np.int16]  # which reply of a conversation
    starts_N: NDArray[np.int32]  # byte span in the reply or text
    ends_N: NDArray[np.int32]
    closes_N: NDArray[np.bool_]  # ends the reply and has no text


@dataclass(frozen=True, slots=True)
class Model:
    """A model of which only the tokenizer is there, and how it reads every text; a reason where it cannot."""

    tokenizer: Any
    token_bytes: Sequence[bytes | None]
    spelling: Spelling | str  # or why there is none
    readings: Sequence[Reading | str]


def read_texts(
    tokenizer: Any, texts: Texts, chat_template: str | None, on_text: Callable[[int], None], *, spelled: bool
) -> Model:
    """`texts` under a tokenizer, which reads chats in `chat_template` or in its own; `spelled` for the warpings."""
    reader = Reader(tokenizer)
    readings: list[Reading | str] = []
    for done, item in enumerate(texts.items):
        on_text(done)
        try:
            readings.append(
                _read_text(reader, item) if isinstance(item, str) else _read_chat(tokenizer, item, chat_template)
            )
        except DataError as error:
            readings.append(str(error))
    on_text(len(texts.items))
    stands_for = token_bytes(tokenizer)
    return Model(tokenizer, stands_for, _spelling(tokenizer, len(stands_for)) if spelled else "", readings)


def _read_chat(tokenizer: Any, chat: Conversation, chat_template: str | None) -> Reading:
    one = render(tokenizer, chat.messages, chat_template=chat_template)
    at = one.reply_positions
    starts, ends = one.reply_starts_T[at], one.reply_ends_T[at]
    closes = (starts >= one.reply_bytes_T(chat.replies)[at]) & (ends > starts)
    return Reading(one.ids_T[at], one.ids_T[at - 1], one.reply_T[at], starts, ends, closes)


def _read_text(reader: Reader, text: str) -> Reading:
    """Control tokens that are written in a text are read as text."""
    ids, starts, ends = reader.encode(text, [(0, len(text.encode()))])
    before = np.concatenate([np.full(min(1, len(ids)), NO_TOKEN, dtype=np.int32), ids[:-1]])
    return Reading(ids, before, np.zeros(len(ids), dtype=np.int16), starts, ends, np.zeros(len(ids), dtype=bool))


def _spelling(tokenizer: Any, size: int) -> Spelling | str:
    try:
        return spelling_of(tokenizer, size)
    except ConfigError as error:
        return str(error)


@dataclass(frozen=True, slots=True)
class Side:
    """One model's tokens over all texts that are aligned, in reading order."""

    ids_N: Ints
    previous_N: Ints
    text_N: Ints  # which text, counted over those that are aligned
    tokens: TokenText
    texts: Sequence[bytes | None]  # what every token stands for; END for the one that closes replies
    tokenizer: Any

    @classmethod
    def of(cls, model: Model, chosen: Sequence[int]) -> Side:
        """The readings of the `chosen` texts, all of which the model can read."""
        readings = [reading for reading in (model.readings[index] for index in chosen) if isinstance(reading, Reading)]
        assert len(readings) == len(chosen)
        text_N = np.repeat(np.arange(len(readings)), [len(reading.ids_N) for reading in readings])
        ids, previous, reply, starts, ends, closes = map(np.concatenate, zip(*readings, strict=True))
        return cls(
            ids_N=ids.astype(np.int64),
            previous_N=previous.astype(np.int64),
            text_N=text_N,
            tokens=TokenText(
                text_keys(text_N, reply, starts),
                text_keys(text_N, reply, ends),
                ids.astype(np.int64),
                model.spelling if isinstance(model.spelling, Spelling) else None,
            ),
            texts=with_end(model.token_bytes, ids[closes], len(model.token_bytes)),
            tokenizer=model.tokenizer,
        )

    def only(self, texts: NDArray[np.int64]) -> Side:
        """The tokens of some of the texts, which keep their numbers."""
        at = np.flatnonzero(np.isin(self.text_N, texts))
        spans = TokenText(self.tokens.starts_N[at], self.tokens.ends_N[at], self.ids_N[at], self.tokens.spelling)
        return replace(self, ids_N=self.ids_N[at], previous_N=self.previous_N[at], text_N=self.text_N[at], tokens=spans)

    def per_text(self, weights_N: NDArray[Any], texts: int) -> NDArray[np.float64]:
        """The sum of `weights_N` over the tokens of each text."""
        return np.bincount(self.text_N, weights_N, texts).astype(np.float64)

    def shown(self, id_: int) -> str:
        """A token to be read: control tokens by name, bytes that are no text by themselves as \\xe4."""
        piece = self.tokenizer.convert_ids_to_tokens(id_)
        stands_for = self.texts[id_]
        if stands_for is None or stands_for == END:
            return str(piece)
        return stands_for.decode(errors="backslashreplace")
