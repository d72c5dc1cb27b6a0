"""Shared pieces: the outcomes in which two models with different tokenizers can be compared without loss of meaning.

A shared piece is a text that is one token in both vocabularies. Every token of either side begins with exactly one
longest shared piece, so both next-token distributions become distributions over the same pieces: a finer source's
"vel" stands beside the pivot's "velkak", "velkith" and "vel" taken together. A map from source tokens to pivot tokens
cannot say that, because a finer source never names the pivot's longer token.

Shapes: Vs and Vp vocabulary sizes, R shared pieces, N positions, K candidates of the source.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from consilience.align.project import SparseRows

TokenTexts = Sequence[bytes | None]

END = b"\xff<end of reply>"  # no text: stands for the token that closes a reply, whatever a model calls it
NO_PIECE = -1
BLANK = b" "
LEAST_KNOWN = 0.5  # of what a source thinks inside one of its tokens, the share that its kept candidates must explain


class SharedPieces(NamedTuple):
    """The pieces of two vocabularies, and with which of them each token begins."""

    texts: list[bytes]  # R
    of_source: NDArray[np.int32]  # [Vs], NO_PIECE where a token begins with none, or has no text
    of_pivot: NDArray[np.int32]  # [Vp]


def shared_pieces(source_texts: TokenTexts, pivot_texts: TokenTexts, counts: Any = None) -> SharedPieces:
    """The pieces of two vocabularies, given the text of every token (None: a control token).

    A token begins with the longest piece that its text begins with. But a tokenizer need not cut there: it may write
    " conferences" as " con" and "ferences" although it knows " conference". So where `counts` (how often tokens began
    at the same byte, sparse [Vs, Vp]) show with which token of the other side a longer token begins, that one's piece
    is taken.
    """
    shared = {*source_texts} & {*pivot_texts}
    texts = sorted(text for text in shared if text)
    number = {text: index for index, text in enumerate(texts)}

    def begins(text: bytes | None) -> int:
        # END is no text: where only one side has it, it must not begin with that side's other bytes.
        return number.get(END, NO_PIECE) if text == END else longest_piece(text or b"", number)

    longest_S, longest_P = (np.array([begins(text) for text in side]) for side in (source_texts, pivot_texts))
    of_source, of_pivot = longest_S.astype(np.int32), longest_P.astype(np.int32)
    if counts is not None:
        met = counts.tocoo()
        rarest_first = np.lexsort((-met.col, -met.row, met.data))  # the last assignment stays; among equals the lowest
        for s, p in zip(met.row[rarest_first].tolist(), met.col[rarest_first].tolist(), strict=True):
            here, there = source_texts[s], pivot_texts[p]
            if here and there and here.startswith(there):
                of_source[s] = longest_P[p]
            if here and there and there.startswith(here):
                of_pivot[p] = longest_S[s]
    return SharedPieces(texts, of_source, of_pivot)


def bare(texts: TokenTexts) -> list[bytes | None]:
    """Tokens without the blank that opens them.

    Where one model's template puts a blank before a reply, and the other's does not, the same first word is " Yes" here
    and "Yes" there; the side with the blank is then read bare.
    """
    return [text and text.removeprefix(BLANK) for text in texts]


def to_pieces(piece_of_token: NDArray[np.int32], pieces: int) -> Any:
    """Tokens to the pieces they begin with, a sparse [V, R] matrix for `align.project`."""
    has = np.flatnonzero(piece_of_token != NO_PIECE)
    ones = np.ones(len(has), dtype=np.float32)
    return sparse.coo_array((ones, (has, piece_of_token[has])), shape=(len(piece_of_token), pieces)).tocsr()


def id_of_text(texts: TokenTexts) -> dict[bytes, int]:
    """The token that stands for each text of a vocabulary.

    Of several the one with the highest id: sentencepiece vocabularies begin with their 256 bytes, and text is written
    with '0', which comes later, not with '<0x30>'.
    """
    return {text: id_ for id_, text in enumerate(texts) if text}


def longest_piece(text: bytes, number: Mapping[bytes, int]) -> int:
    """The number of the longest piece that `text` begins with; NO_PIECE where there is none."""
    return next((number[text[:end]] for end in range(len(text), 0, -1) if text[:end] in number), NO_PIECE)


def inside_rows(
    ids_NK: NDArray[Any],
    logprobs_NK: NDArray[Any],
    said_N: Sequence[bytes],
    source_texts: TokenTexts,
    pieces: Sequence[bytes],
) -> SparseRows:
    """What a source says next *inside* one of its tokens, of which the bytes `said_N` are out; ids are pieces.

    A coarser source names "velkak" where the pivot has written "vel" and must go on. By the chain rule the candidates
    that begin with the bytes already said, and go on, give the distribution of the next piece. What the source may mean
    besides is counted as "any other piece": the candidates that end there or before, and what it did not keep. A row is
    empty where its candidates explain less than LEAST_KNOWN.
    """
    number = {text: index for index, text in enumerate(pieces)}

    @functools.cache  # a corpus repeats its words
    def next_piece(said: bytes, id_: int) -> int | None:
        """NO_PIECE where the token ends too early to tell, None where it says something else."""
        text = source_texts[id_] or b""
        if not (text.startswith(said) or said.startswith(text)):
            return None
        return longest_piece(text[len(said) :], number)

    rows = _no_rows(ids_NK)
    probs_NK = np.exp(logprobs_NK.astype(np.float64))
    for n, (said, ids, probs) in enumerate(zip(said_N, ids_NK.tolist(), probs_NK.tolist(), strict=True)):
        mass = {NO_PIECE: max(0.0, 1.0 - sum(probs))}
        for id_, prob in zip(ids, probs, strict=True):
            piece = next_piece(said, id_)
            if piece is not None:
                mass[piece] = mass.get(piece, 0.0) + prob
        total = sum(mass.values())
        unknown = mass.pop(NO_PIECE)
        if mass and total - unknown >= LEAST_KNOWN * total:
            _write_row(rows, n, {piece: prob / total for piece, prob in mass.items()})
    return rows


def merged_rows(
    ids_NK: NDArray[Any],
    logprobs_NK: NDArray[Any],
    ahead_N: NDArray[Any],
    source_said_N: Sequence[bytes],
    pivot_said_N: Sequence[bytes],
    blank_N: NDArray[Any],
    source_texts: TokenTexts,
    pivot_texts: TokenTexts,
) -> SparseRows:
    """A source's distribution over the last token of a chunk, merged with what it said before by the chain rule.

    `ahead_N` is the log-probability (nats) of the source's earlier tokens of the chunk, whose text is `source_said_N`;
    a candidate stands for the pivot token that, after `pivot_said_N`, makes the same text, and for "any other" where
    there is none. `blank_N` is 1 where a template's blank opens the chunk on the source's side only, -1 where on the
    pivot's only. Rows sum to at most exp(ahead). TRL's GOLD trainer does the same on dense logits.
    """
    pivot_id = id_of_text(pivot_texts)

    @functools.cache
    def partner(source_said: bytes, pivot_said: bytes, blank: int, id_: int) -> int | None:
        text = source_said + (source_texts[id_] or b"")
        if blank:
            text = BLANK + text if blank < 0 else text.removeprefix(BLANK)
        return pivot_id.get(text[len(pivot_said) :]) if text.startswith(pivot_said) else None

    rows = _no_rows(ids_NK)
    probs_NK = np.exp(logprobs_NK.astype(np.float64) + ahead_N[:, None])
    places = zip(source_said_N, pivot_said_N, blank_N.tolist(), strict=True)
    for n, (place, ids, probs) in enumerate(zip(places, ids_NK.tolist(), probs_NK.tolist(), strict=True)):
        found: dict[int, float] = {}
        for id_, prob in zip(ids, probs, strict=True):
            token = partner(*place, id_)
            if token is not None:
                found[token] = found.get(token, 0.0) + prob
        _write_row(rows, n, found)
    return rows


def _no_rows(ids_NK: NDArray[Any]) -> SparseRows:
    return SparseRows(np.zeros(ids_NK.shape, dtype=np.int32), np.zeros(ids_NK.shape, dtype=np.float32))


def _write_row(rows: SparseRows, n: int, prob_of: Mapping[int, float]) -> None:
    """Row n: the likeliest first, and of equal ones the lowest id, as in `project`."""
    likeliest = sorted(prob_of.items(), key=lambda item: (-item[1], item[0]))
    rows.ids_NJ[n, : len(likeliest)] = [id_ for id_, _ in likeliest]
    rows.probs_NJ[n, : len(likeliest)] = [prob for _, prob in likeliest]
