"""Text -> token ids, each with the bytes of the text it covers."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from consilience.chat.pieces import BLANK_MARK, Style, piece_bytes, special_tokens, style_of
from consilience.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Int32s = NDArray[np.int32]
Span = tuple[int, int]
BLANKS = re.compile(rb"\s*")


class Encoded(NamedTuple):
    """T tokens and their byte spans, which partition the text: each token starts where the one before it ends."""

    ids_T: Int32s
    starts_T: Int32s
    ends_T: Int32s


@dataclass(slots=True)
class _Tokens:
    ids: list[int]
    pieces: list[str]
    offsets: list[Span] | None  # bytes; None from a tokenizer that gives none

    def part(self, first: int, last: int) -> _Tokens:
        return _Tokens(self.ids[first:last], self.pieces[first:last], self.offsets and self.offsets[first:last])


class Reader:
    """A tokenizer and what it takes to place its tokens in a text."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.style = style_of(tokenizer)
        self.added = set(tokenizer.get_added_vocab())
        self.special = special_tokens(tokenizer)
        self.control_ids = set(self.special.values()) - {tokenizer.unk_token_id}

    def encode(self, text: str, as_text: Sequence[Span] = ()) -> Encoded:
        """`text` as ids without added BOS or EOS, and the byte span of every token.

        A part of the text that no token covers goes to the token after it (a trimmed blank) or before it (an accent
        that a normalizer drew into its letter). A token that covers nothing has start == end: a dummy prefix, and all
        but the first of those that a normalizer made of the same characters. Control tokens inside one of the byte
        spans `as_text` are spelt out in ordinary tokens. Raises `DataError` when a tokenizer without offsets cannot be
        followed through the text.
        """
        tokens = self._tokens(text)
        ends = self._ends(text, tokens)
        if as_text:
            tokens = self._spell_out(text, tokens, ends, as_text)
            ends = self._ends(text, tokens)
        ends_T = np.array(ends, np.int32)
        starts_T = np.concatenate([np.zeros(min(1, len(ends)), np.int32), ends_T[:-1]])
        return Encoded(np.array(tokens.ids, np.int32), starts_T, ends_T)

    def _stands_for(self, piece: str) -> bytes:
        return piece.encode() if piece in self.added else piece_bytes(piece, self.style)

    def _tokens(self, text: str, *, split_special: bool = False) -> _Tokens:
        options: dict[str, Any] = {"split_special_tokens": True} if split_special else {}
        if not self.tokenizer.is_fast:
            # tokenize() shows an unknown token as it stands in the text; its id would only say <unk>.
            pieces = list(self.tokenizer.tokenize(text, **options))
            return _Tokens(cast("list[int]", self.tokenizer.convert_tokens_to_ids(pieces)), pieces, None)
        backend = self.tokenizer.backend_tokenizer
        before = backend.encode_special_tokens
        try:
            encoding = self.tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, verbose=False, **options
            )
        finally:
            backend.encode_special_tokens = before
        offsets: list[Span] = encoding["offset_mapping"]
        if not text.isascii():
            byte_at = _byte_positions(text)
            offsets = [(byte_at[start], byte_at[end]) for start, end in offsets]
        return _Tokens(encoding["input_ids"], encoding.tokens(), offsets)

    def _ends(self, text: str, tokens: _Tokens) -> list[int]:
        """Where each token ends, in bytes of `text`."""
        content = text.encode()
        if tokens.offsets is None:
            return self._walk(content, tokens)
        pieces = [self._stands_for(piece) for piece in tokens.pieces]
        if b"".join(pieces) == content:  # says more than offsets do, where they repeat or trim
            return list(accumulate(map(len, pieces)))
        ends: list[int] = []
        for group in _overlapping(tokens.offsets):
            first, last = tokens.offsets[group.start][0], max(tokens.offsets[t][1] for t in group)
            if ends and content[ends[-1] : first].strip():
                # An accent that a normalizer drew into the character before it, or dropped.
                moved = bisect_left(ends, ends[-1])
                ends[moved:] = [first] * (len(ends) - moved)
            written, lengths = b"".join(pieces[group.start : group.stop]), [len(pieces[t]) for t in group]
            if written == content[ends[-1] if ends else 0 : last]:
                first = last - len(written)  # offsets leave out the blanks in front that a token has
            elif len(written) == last - first + 1 and self._begins_with_mark(tokens.pieces[group.start]):
                written, lengths[0] = written[1:], lengths[0] - 1  # the dummy prefix shares the first one's offsets
            if len(group) > 1 and written != content[first:last]:
                # A normalizer rewrote the characters ('ﬁ' as 'f', 'i'): no byte is where the second token begins.
                ends += [last] * len(group)
                continue
            for t, covered in zip(group, accumulate(lengths)):
                ends.append(max(ends[-1] if ends else 0, min(first + covered, tokens.offsets[t][1])))
            ends[-1] = max(ends[-1], last)
        if ends:
            ends[-1] = len(content)
        return ends

    def _walk(self, content: bytes, tokens: _Tokens) -> list[int]:
        """Follows the token strings through `content`: the only way without offsets."""
        ends: list[int] = []
        position = 0
        for id, piece in zip(tokens.ids, tokens.pieces):
            after_blanks = BLANKS.match(content, position).end()  # type: ignore[union-attr]  # matches everywhere
            found = (
                end
                for start in (position, after_blanks)  # some tokenizers drop blanks
                for end in self._readings(content, start, id, piece)
            )
            end = next(found, None)
            if end is None:
                raise self._lost(content, position, f"token {len(ends)}, {piece!r},")
            ends.append(end)
            position = end
        if content[position:].strip():
            raise self._lost(content, position, "end")
        return [*ends[:-1], len(content)] if ends else []

    def _lost(self, content: bytes, position: int, expected: str) -> DataError:
        rest = content[position : position + 20]
        return DataError(
            f"tokenizer {self.tokenizer.name_or_path!r} gives no offsets, and its {expected} is not what the text "
            f"goes on with at byte {position}: {rest!r}. Use its fast version."
        )

    def _readings(self, content: bytes, start: int, id: int, piece: str) -> Iterator[int]:
        """Where the token ends, for each way to read it that `content` goes on with at `start`."""
        if self._begins_with_mark(piece):
            for marked in (piece, piece[1:]):  # without its first mark where that is a dummy prefix
                match = _blanks_or_marks(marked).match(content, start)
                if match:
                    yield match.end()
        for reading in (self._stands_for(piece), str(self.tokenizer.decode([id])).encode()):
            if reading and content.startswith(reading, start):
                yield start + len(reading)

    def _begins_with_mark(self, piece: str) -> bool:
        return self.style is Style.SENTENCEPIECE and piece.startswith(BLANK_MARK)

    def _spell_out(self, text: str, tokens: _Tokens, ends: list[int], as_text: Sequence[Span]) -> _Tokens:
        """`tokens` with the control tokens inside a span of `as_text` read as text, together with what is around them.

        Only stretches between two control tokens that are kept, and with one that is not, are read anew.
        """
        content = text.encode()
        text_of = {id: special.encode() for special, id in self.special.items()}
        spelt = _Tokens([], [], None if tokens.offsets is None else [])
        first, start, spoofed = 0, 0, False
        for t, id in enumerate([*tokens.ids, None]):
            if id is not None:
                # Where the text is another one, the token is not written there: <unk> for a character without a piece.
                written = content.rfind(text_of[id], ends[t - 1] if t else 0, ends[t]) if id in text_of else -1
                if written < 0:
                    continue
                if any(begin <= written and written + len(text_of[id]) <= end for begin, end in as_text):
                    spoofed = True
                    continue
            if spoofed:
                end = len(content) if id is None else tokens.offsets[t][0] if tokens.offsets else written
                _append(spelt, self._plain(content[start:end].decode(), like=tokens.ids[first]), shift=start)
                first = t
            _append(spelt, tokens.part(first, t + 1), shift=0)
            first, start, spoofed = t + 1, ends[t] if id is not None else len(content), False
        return spelt

    def _plain(self, text: str, like: int | None = None) -> _Tokens:
        """`text` without control tokens; with a dummy prefix only if that makes it begin with the token `like`."""
        tokens = self._tokens(text, split_special=True)
        if tokens.ids[:1] != [like]:
            # A line feed in front takes the dummy prefix, and is taken off again.
            lead, led = self._tokens("\n", split_special=True), self._tokens("\n" + text, split_special=True)
            n = len(lead.ids)
            if led.ids[:n] == lead.ids:
                tokens = led.part(n, len(led.ids))
                if tokens.offsets:
                    tokens.offsets = [(max(0, start - 1), max(0, end - 1)) for start, end in tokens.offsets]
        for special, id in self.special.items():
            cut = text.find(special) + 1
            if id in self.control_ids and id in tokens.ids and 0 < cut < len(text):  # it is a plain piece, too
                tokens = self._plain(text[:cut], like)
                _append(tokens, self._plain(text[cut:]), shift=len(text[:cut].encode()))
        return tokens


@lru_cache(maxsize=1 << 16)
def _blanks_or_marks(piece: str) -> re.Pattern[bytes]:
    """Sentencepiece writes a blank and the mark itself alike."""
    parts = (re.escape(part.encode()) for part in piece.split(BLANK_MARK))
    return re.compile(f"(?: |{BLANK_MARK})".encode().join(parts))


def _append(tokens: _Tokens, more: _Tokens, *, shift: int) -> None:
    tokens.ids += more.ids
    tokens.pieces += more.pieces
    if tokens.offsets is not None and more.offsets is not None:
        tokens.offsets += [(start + shift, end + shift) for start, end in more.offsets]


def _byte_positions(text: str) -> list[int]:
    """The byte position of every character of `text`, and of its end."""
    code_points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    lengths = 1 + (code_points > 0x7F) + (code_points > 0x7FF).astype(int) + (code_points > 0xFFFF)
    return [0, *np.cumsum(lengths).tolist()]


def _overlapping(offsets: list[Span]) -> Iterator[range]:
    """Runs of tokens that cover parts of the same characters; a token of its own is a run of one."""
    first, reach = 0, 0
    for t, (start, end) in enumerate(offsets):
        if t > first and start >= reach:
            yield range(first, t)
            first = t
        reach = end if t == first else max(reach, end)
    if offsets:
        yield range(first, len(offsets))
