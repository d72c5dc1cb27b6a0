"""A conversation as one model reads it: ids, which of them are the replies, and which bytes of a reply each one is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from consilience.chat.encode import Encoded, Int32s, Reader
from consilience.chat.template import Place, Template, template_of
from consilience.errors import DataError
from consilience.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # JSON can hold one, UTF-8 cannot


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as one model reads it. T tokens.

    A reply's tokens are all that the model itself must write: those of the content; blanks that the template puts
    between the generation prompt and the content, which cover none of its bytes; and those of the control token that
    closes it, which counts as one byte more: with a content of n bytes the first closing token is [n, n + 1), later
    ones are [n + 1, n + 1].
    """

    text: str  # what the chat template produced
    ids_T: Int32s  # what apply_chat_template gives, except that control tokens written in a content are spelt out
    starts_T: Int32s  # byte spans in text.encode(); they partition it; start == end where a token covers nothing
    ends_T: Int32s
    reply_T: NDArray[np.int16]  # which reply (0 is the first assistant turn) a token belongs to, else -1
    reply_starts_T: Int32s  # byte spans in that reply's content; 0 outside replies
    reply_ends_T: Int32s
    truncated: bool

    @property
    def reply_positions(self) -> NDArray[np.intp]:
        """Places of the replies' tokens; the very first token of a text has no prediction and is left out."""
        positions = np.flatnonzero(self.reply_T >= 0)
        return positions[positions > 0]

    def reply_bytes_T(self, replies: Sequence[str]) -> NDArray[np.int64]:
        """The bytes of the reply that each token belongs to, shape [T]; of any reply where it belongs to none.

        A reply's token that begins there or later closes the reply and has no text.
        """
        return np.array([len(reply.encode()) for reply in replies], dtype=np.int64)[self.reply_T]


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    chat_template: str | None = None,
    max_tokens: int | None = None,
) -> Rendered:
    """`messages` through the tokenizer's chat template, or through `chat_template` (Jinja) instead.

    A token that covers bytes of a reply and of its surroundings belongs to the reply; its span there is clipped.
    `max_tokens` cuts the tail. Raises `ConfigError` without a chat template, `DataError` when the template refuses
    the conversation or rewrites a reply, so that its tokens cannot be found.
    """
    template = template_of(tokenizer, chat_template)
    replies = [i for i, message in enumerate(messages) if message.role == "assistant"]
    reader = Reader(tokenizer)
    text, encoded, places = _read(template, reader, messages, replies, generation_prompt=False)
    reply_T = np.full(len(encoded.ids_T), -1, np.int16)
    reply_starts_T, reply_ends_T = np.zeros((2, len(encoded.ids_T)), np.int32)
    limits = [place.start for place in places[1:]] + [len(text)]
    for place, limit in zip(places, limits):
        if place.message in replies:
            stop = _closed_at(text, place.end, limit, tuple(reader.special))
            opened = template.prompt_end(messages, text, place.message)
            if opened is None or text[opened : place.start].strip():  # a header the template gives no prompt for
                opened = place.start
            mine, starts, ends = _reply_spans(text, encoded, place, opened, stop, messages[place.message].content)
            free = reply_T[mine] < 0  # a token that covers two replies is the first one's
            mine = mine[free]
            reply_T[mine] = replies.index(place.message)
            reply_starts_T[mine], reply_ends_T[mine] = starts[free], ends[free]
    cut = slice(max_tokens)
    return Rendered(
        text=text,
        ids_T=encoded.ids_T[cut],
        starts_T=encoded.starts_T[cut],
        ends_T=encoded.ends_T[cut],
        reply_T=reply_T[cut],
        reply_starts_T=reply_starts_T[cut],
        reply_ends_T=reply_ends_T[cut],
        truncated=len(encoded.ids_T[cut]) < len(encoded.ids_T),
    )


def render_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, chat_template: str | None = None
) -> Int32s:
    """The ids that a model is given to sample the next reply: `messages` and the generation prompt."""
    template = template_of(tokenizer, chat_template)
    _, encoded, _ = _read(template, Reader(tokenizer), messages, [], generation_prompt=True)
    return encoded.ids_T


def _read(
    template: Template, reader: Reader, messages: Sequence[Message], replies: Sequence[int], *, generation_prompt: bool
) -> tuple[str, Encoded, list[Place]]:
    """Text, tokens, and where the contents lie of `replies` and of all messages with a control token's text."""
    if not messages:
        raise DataError("a conversation has no messages. Give at least one.")
    for i, message in enumerate(messages):
        if HALF_CHARACTER.search(message.content):
            raise DataError(f"message {i} ({message.role}) holds half a surrogate pair. Remove it: it is no character.")
    text = template.text(messages, generation_prompt=generation_prompt)
    special = _any_of(tuple(reader.special))
    spoofed = [i for i, message in enumerate(messages) if special.search(message.content)]
    marked = sorted({*replies, *spoofed})
    places = template.places(messages, text, marked, generation_prompt=generation_prompt) if marked else []
    as_text = [_bytes_before(text, place.start, place.end) for place in places if place.message in spoofed]
    return text, reader.encode(text, as_text), places


def _reply_spans(
    text: str, encoded: Encoded, place: Place, opened: int, stop: int, content: str
) -> tuple[NDArray[np.int64], Int32s, Int32s]:
    """Which tokens lie in text[opened:stop], and their spans in bytes of `content`.

    `opened` is where the generation prompt ends, at or before the content; `stop` is past the closing.
    """
    begin, end = _bytes_before(text, place.start, place.end)
    open_byte = begin - len(text[opened : place.start].encode())
    stop_byte = end + len(text[place.end : stop].encode())
    covers = (encoded.ends_T > open_byte) | ((encoded.starts_T == encoded.ends_T) & (encoded.starts_T == open_byte))
    mine = np.flatnonzero(covers & (encoded.starts_T < stop_byte)) if stop_byte > open_byte else np.zeros(0, np.int64)
    skipped, n = len(content[: place.skipped].encode()), len(content.encode())
    starts, ends = encoded.starts_T[mine], encoded.ends_T[mine]
    reply_starts = skipped + np.clip(starts, begin, end) - begin
    reply_ends = skipped + np.clip(ends, begin, end) - begin
    closing = np.flatnonzero(ends > end) if stop_byte > end else np.zeros(0, np.int64)
    if len(closing):
        first = closing[0]
        reply_ends[first:] = n + 1
        reply_starts[first + 1 :] = n + 1
        if starts[first] >= end:
            reply_starts[first] = n
    return mine, reply_starts, reply_ends


@lru_cache(maxsize=64)
def _any_of(specials: tuple[str, ...]) -> re.Pattern[str]:
    longest_first = sorted(filter(None, specials), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")  # (?!) matches nothing


@lru_cache(maxsize=64)
def _closing(specials: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile(rf"\s*(?:{_any_of(specials).pattern})")


def _closed_at(text: str, end: int, limit: int, specials: tuple[str, ...]) -> int:
    """Where the control token ends that closes a content ending at `end`; `end` itself when none follows it."""
    closing = _closing(specials).match(text, end, limit)
    return closing.end() if closing else end


def _bytes_before(text: str, start: int, end: int) -> tuple[int, int]:
    """Character positions `start` <= `end` as byte positions."""
    first = len(text[:start].encode())
    return first, first + len(text[start:end].encode())
