"""Token after token -> text that is final: no half characters, nothing of a text that stops the reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

REPLACEMENT = "�"  # what decoders write for bytes that are no character, or not yet one
HALF_CHARACTER = 3  # bytes of a character that its last byte is missing from, each of which may be a REPLACEMENT
LONGEST_WINDOW = 32  # tokens without a whole character among them are not waited for any longer


class TextStream:
    """Decodes a reply as its tokens come. What it has given out is never taken back.

    Only the last few tokens are decoded again at each token. The tokens before them stay in front as context, because
    decoders drop the blank of a text's first token. `context` are the last tokens of a prompt whose text the reply
    goes on with; without it the reply is a text of its own, as in a chat.
    """

    def __init__(self, tokenizer: Any, context: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        self.context = [*context]
        self.window = [*context]  # context, and the tokens whose text is not all given out
        self.sent = len(self._decode(self.window))  # characters of the window's text that have been given out

    def push(self, ids: Sequence[int]) -> str:
        """The text that has become final with the tokens `ids`."""
        self.window.extend(ids)
        text = self._decode(self.window)
        final = text.rstrip(REPLACEMENT)
        if len(final) < len(text):  # all but the last of these are bytes that will never be a character
            final = text[: max(len(final), len(text) - HALF_CHARACTER)]
        if len(text) > len(final) and len(self.window) - len(self.context) < LONGEST_WINDOW:
            new, self.sent = final[self.sent :], max(self.sent, len(final))
            return new
        new, fresh = text[self.sent :], self.window[len(self.context) :]
        if self._decode(fresh):  # control tokens alone are no context
            self.context = fresh
        self.window = [*self.context]
        self.sent = len(self._decode(self.window))
        return new

    def finish(self) -> str:
        """What was held back: at the end of a reply half a character is all that there will be."""
        text = self._decode(self.window)
        new, self.sent = text[self.sent :], len(text)
        return new

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


class Stops:
    """Cuts a text at that of the texts `stops` which is complete first, however its pieces fall."""

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        self.stops = stops
        self.keep = keep  # the text that stops is part of what is given out
        self.held = ""  # the beginning of a stop, perhaps
        self.found = False

    def push(self, piece: str) -> str:
        """What of `piece`, and of what was held back, is part of the text for certain; nothing after a stop."""
        if self.found:
            return ""
        text = self.held + piece
        spans = [(place + len(stop), place) for stop in self.stops if (place := text.find(stop)) >= 0]
        if spans:
            end, begin = min(spans)
            self.found, self.held = True, ""
            return text[: end if self.keep else begin]
        longest = max(map(len, self.stops), default=1) - 1
        begin = next(
            (
                place
                for place in range(max(0, len(text) - longest), len(text))
                if any(stop.startswith(text[place:]) for stop in self.stops)
            ),
            len(text),
        )
        self.held = text[begin:]
        return text[:begin]

    def finish(self) -> str:
        """What was held back, where no stop came of it."""
        rest, self.held = self.held, ""
        return rest
