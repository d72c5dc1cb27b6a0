"""What a token of a vocabulary stands for: the bytes behind 'Ġthe', '▁the', '<0x0A>'."""

from __future__ import annotations

import re
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BLANK_MARK = "▁"
BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")


class Style(StrEnum):
    """How a vocabulary writes bytes as text."""

    BYTE_LEVEL = "byte-level"  # GPT-2's alphabet, one character per byte: 'Ġthe'
    SENTENCEPIECE = "sentencepiece"  # '▁' for a blank, '<0x0A>' for a byte without a piece of its own
    WORDPIECE = "wordpiece"  # '##ing' goes on with a word, anything else begins one
    TEXT = "text"  # as it stands


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's byte -> character table, inverted: printable Latin-1 stands for itself, the rest for U+0100 and up."""
    themselves = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in themselves]
    return {chr(byte): byte for byte in themselves} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


BYTE_OF = _byte_alphabet()


def style_of(tokenizer: PreTrainedTokenizerBase) -> Style:
    """The style of `tokenizer`'s vocabulary, from the parts its pipeline is made of."""
    if not tokenizer.is_fast:
        if hasattr(tokenizer, "byte_decoder"):
            return Style.BYTE_LEVEL
        return Style.SENTENCEPIECE if hasattr(tokenizer, "sp_model") else Style.TEXT
    backend = tokenizer.backend_tokenizer
    parts = (backend.decoder, backend.pre_tokenizer, backend.normalizer)
    states = "".join(part.__getstate__().decode() for part in parts if part is not None)
    if '"ByteLevel"' in states:
        return Style.BYTE_LEVEL
    if '"Metaspace"' in states or '"ByteFallback"' in states or BLANK_MARK in states:
        return Style.SENTENCEPIECE
    return Style.WORDPIECE if '"WordPiece"' in states else Style.TEXT


@lru_cache(maxsize=1 << 18)
def piece_bytes(piece: str | bytes, style: Style) -> bytes:
    """The bytes that `piece`, an entry of a vocabulary of `style`, stands for inside running text."""
    if isinstance(piece, bytes):  # tiktoken-like Python tokenizers
        return piece
    if style is Style.BYTE_LEVEL and BYTE_OF.keys() >= set(piece):
        return bytes(map(BYTE_OF.__getitem__, piece))
    if style is Style.SENTENCEPIECE:
        byte = BYTE_PIECE.fullmatch(piece)
        return bytes([int(byte[1], 16)]) if byte else piece.replace(BLANK_MARK, " ").encode()
    if style is Style.WORDPIECE:
        return piece[2:].encode() if piece.startswith("##") else b" " + piece.encode()
    return piece.encode()


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Text -> id of every control token: those with a role (eos, ...) and those added as special."""
    added = {token.content: id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = tokenizer.all_special_tokens
    return added | dict(zip(named, cast("list[int]", tokenizer.convert_tokens_to_ids(named))))


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> list[bytes | None]:
    """For every id, the bytes its token stands for inside running text; None for control tokens and unused ids.

    'Ġthe' and '▁the' are b' the', '<0x0A>' is b'\\n', a byte-level piece of half a character is that half. A WordPiece
    entry without '##' begins a word and counts the blank before it. The list reaches to the largest id in use, which
    is beyond `len(tokenizer)` where ids below it are unused.
    """
    style = style_of(tokenizer)
    vocabulary = tokenizer.get_vocab()
    size = max(len(tokenizer), max(vocabulary.values(), default=-1) + 1)
    stands_for: list[bytes | None] = [None] * size
    for piece, id in vocabulary.items():
        stands_for[id] = piece_bytes(piece, style)
    for id, token in tokenizer.added_tokens_decoder.items():
        stands_for[id] = token.content.encode()
    for id in special_tokens(tokenizer).values():
        stands_for[id] = None
    return stands_for
