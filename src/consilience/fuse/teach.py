"""What a source teaches at the pivot's positions: its distributions in outcomes that both models know, and how likely
it finds whole stretches of text.

A way of teaching is a line in TEACHINGS. All of them give a `Lesson`; what the student's logits must be turned into to
be compared with its rows is said by `space_P`.

Shapes: P positions of the pivot in a shard, J candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consilience.align import VOCABULARY_MAPPINGS, Alignment, SparseRows, Vocabularies, project
from consilience.align.pieces import (
    BLANK,
    SharedPieces,
    TokenTexts,
    bare,
    inside_rows,
    merged_rows,
    shared_pieces,
    to_pieces,
)
from consilience.errors import pick
from consilience.fuse.represent import Shard

# What the ids of a row are: pivot tokens; pivot tokens after the chunk's earlier ones; shared pieces, of tokens as they
# stand or bare of a blank that only the pivot's, or only the source's, template puts before a reply.
TOKENS, MERGED, PIECES, PIECES_BARE_PIVOT, PIECES_BARE_SOURCE = range(5)
UNTAUGHT = np.float32(np.nan)


@dataclass(frozen=True, eq=False)
class Link:
    """What connects a source's vocabulary with the pivot's; computed when a way of teaching asks for it."""

    vocabularies: Vocabularies
    vocabulary: str  # of VOCABULARY_MAPPINGS

    @cached_property
    def mapping(self) -> Any:
        """Source tokens to pivot tokens, sparse [Vs, Vp]."""
        return pick(VOCABULARY_MAPPINGS, self.vocabulary, "vocabulary mapping")(self.vocabularies)

    @cached_property
    def pieces(self) -> dict[int, SharedPieces]:
        """The shared pieces, by the space that rows of pieces may be in."""
        return pieces_of(self.vocabularies)


def pieces_of(vocabularies: Vocabularies) -> dict[int, SharedPieces]:
    """The shared pieces of two vocabularies, by the space that rows of pieces may be in."""
    source, pivot, counts = vocabularies.source_bytes, vocabularies.pivot_bytes, vocabularies.counts
    return {
        PIECES: shared_pieces(source, pivot, counts),
        PIECES_BARE_PIVOT: shared_pieces(source, bare(pivot), counts),
        PIECES_BARE_SOURCE: shared_pieces(bare(source), pivot, counts),
    }


class Lesson(NamedTuple):
    """What one source can teach at every pivot position of a shard."""

    rows: SparseRows  # empty where it has none
    space_P: NDArray[np.int8]
    chunk_logprob_P: NDArray[np.float32]  # nats, of the whole chunk that a position lies in; NaN: not taught

    @property
    def has_rows_P(self) -> NDArray[np.bool_]:
        """Where the source has a distribution with any mass."""
        return np.asarray(self.rows.probs_NJ.sum(1) > 0)

    @property
    def taught_P(self) -> NDArray[np.bool_]:
        """Where the source teaches anything."""
        return self.has_rows_P | np.isfinite(self.chunk_logprob_P)

    def only_chunks(self, kept_P: NDArray[np.bool_]) -> Lesson:
        """Without what is said of whole chunks, their likelihoods and merged rows, at positions that are not kept."""
        rows_kept_P = kept_P | (self.space_P != MERGED)
        return Lesson(
            self.rows._replace(probs_NJ=np.where(rows_kept_P[:, None], self.rows.probs_NJ, 0)),
            self.space_P,
            np.where(kept_P, self.chunk_logprob_P, UNTAUGHT),
        )


Teaching = Callable[[Shard, Shard, Alignment, Link], Lesson]


def tokens(pivot: Shard, source: Shard, alignment: Alignment, link: Link) -> Lesson:
    """Its distribution where both begin at the same byte, in pivot tokens by the vocabulary mapping (FuseLLM)."""
    rows = _empty(pivot)
    _fill(rows, alignment.matched_P, _projected(source, alignment.source_P[alignment.matched_P], link.mapping, pivot))
    return _lesson(rows)


def pieces(pivot: Shard, source: Shard, alignment: Alignment, link: Link) -> Lesson:
    """Its distribution over shared pieces (`align.pieces`): where both begin, and inside its longer tokens.

    Both sides are read in the same outcomes, so a finer source loses nothing at the positions it shares, and a coarser
    one teaches also where the pivot goes on inside one of its tokens.
    """
    texts, blanks = link.vocabularies.source_bytes, _Blanks.of(pivot, source, link.vocabularies)
    partner_P, matched_P = alignment.source_P, alignment.matched_P
    # Where one side alone opens with a blank, that blank is its template's and no part of what is said.
    space_P = np.full(len(matched_P), PIECES, dtype=np.int8)
    space_P[matched_P & blanks.opens_P & ~blanks.opens_S[partner_P]] = PIECES_BARE_PIVOT
    space_P[matched_P & ~blanks.opens_P & blanks.opens_S[partner_P]] = PIECES_BARE_SOURCE
    rows = _empty(pivot)
    for space, shared in link.pieces.items():
        mine_P = matched_P & (space_P == space)
        to_piece = to_pieces(shared.of_source, len(shared.texts))
        _fill(rows, mine_P, _projected(source, partner_P[mine_P], to_piece, pivot))
    at, covering, said = _inside(pivot, source, alignment, texts, blanks.opens_S)
    goes_on = inside_rows(source.ids_NK[covering], source.logprobs_NK[covering], said, texts, link.pieces[PIECES].texts)
    _fill(rows, at, goes_on)
    return Lesson(rows, space_P, np.full(len(space_P), UNTAUGHT))


def chunks(pivot: Shard, source: Shard, alignment: Alignment, link: Link) -> Lesson:
    """How likely it finds each shortest stretch of text that both tokenize whole (ALM, arXiv 2503.20083)."""
    del link
    return _lesson(_empty(pivot), chunk_logprob_P=_chunk_logprobs(source, alignment))


def merged(pivot: Shard, source: Shard, alignment: Alignment, link: Link) -> Lesson:
    """Its distribution over the last token of a chunk, times the probability of the chunk's earlier tokens (TRL GOLD).

    The student's tokens of the chunk are multiplied up in the same way. Only tokens of equal text are taught.
    """
    sides = _Blanks.of(pivot, source, link.vocabularies)
    last_P, last_S = _last_of_chunk(alignment.chunk_P), _last_of_chunk(alignment.chunk_S)  # chunks in the same order
    said_P = _said_in_chunk(pivot, alignment.chunk_P, link.vocabularies.pivot_bytes)
    said_S = _said_in_chunk(source, alignment.chunk_S, link.vocabularies.source_bytes)
    first_P, first_S = first_of_chunk(alignment.chunk_P)[last_P], first_of_chunk(alignment.chunk_S)[last_S]
    lonely_P = sides.opens_P[first_P] & ~sides.opens_S[first_S]
    lonely_S = sides.opens_S[first_S] & ~sides.opens_P[first_P]
    rows = _empty(pivot)
    _fill(
        rows,
        last_P,
        merged_rows(
            source.ids_NK[last_S],
            source.logprobs_NK[last_S],
            _ahead_in_chunk(source, alignment.chunk_S)[last_S],
            [said_S[at] for at in last_S],
            [said_P[at] for at in last_P],
            lonely_S.astype(int) - lonely_P,
            link.vocabularies.source_bytes,
            link.vocabularies.pivot_bytes,
        ),
    )
    return _lesson(rows, space=MERGED)


def hybrid(pivot: Shard, source: Shard, alignment: Alignment, link: Link) -> Lesson:
    """`pieces`, and the likelihood of the whole chunk where it is not one token on both sides."""
    by_pieces = pieces(pivot, source, alignment, link)
    logprob_P = _chunk_logprobs(source, alignment)
    return by_pieces._replace(chunk_logprob_P=np.where(alignment.one_to_one_P, UNTAUGHT, logprob_P))


TEACHINGS: dict[str, Teaching] = {
    "tokens": tokens,
    "pieces": pieces,
    "chunks": chunks,
    "merged": merged,
    "hybrid": hybrid,
}


def _empty(pivot: Shard) -> SparseRows:
    shape = pivot.ids_NK.shape
    return SparseRows(np.zeros(shape, dtype=np.int32), np.zeros(shape, dtype=np.float32))


def _fill(rows: SparseRows, at: NDArray[Any], found: SparseRows) -> None:
    """Writes `found` into the rows `at`, as wide as they are: the least likely of more candidates become "other"."""
    width = min(rows.ids_NJ.shape[1], found.ids_NJ.shape[1])
    rows.ids_NJ[at, :width], rows.probs_NJ[at, :width] = found.ids_NJ[:, :width], found.probs_NJ[:, :width]


def _lesson(rows: SparseRows, space: int = TOKENS, chunk_logprob_P: NDArray[np.float32] | None = None) -> Lesson:
    positions = len(rows.ids_NJ)
    none = np.full(positions, UNTAUGHT)
    return Lesson(rows, np.full(positions, space, dtype=np.int8), none if chunk_logprob_P is None else chunk_logprob_P)


def _projected(source: Shard, at: NDArray[Any], mapping: Any, pivot: Shard) -> SparseRows:
    return project(source.ids_NK[at], source.logprobs_NK[at], mapping, keep=pivot.ids_NK.shape[1])


class _Blanks(NamedTuple):
    """Whether a position's token opens with a blank that is no part of the reply: the template's, before its text."""

    opens_P: NDArray[np.bool_]
    opens_S: NDArray[np.bool_]

    @classmethod
    def of(cls, pivot: Shard, source: Shard, vocabularies: Vocabularies) -> _Blanks:
        return cls(
            _opens_with_blank(pivot, vocabularies.pivot_bytes), _opens_with_blank(source, vocabularies.source_bytes)
        )


def _opens_with_blank(shard: Shard, token_texts: TokenTexts) -> NDArray[np.bool_]:
    opens = np.array([bool(text) and text.startswith(BLANK) for text in token_texts])  # type: ignore[union-attr]
    length = np.array([len(text or b"") for text in token_texts])
    return opens[shard.gold_ids_N] & (length[shard.gold_ids_N] == shard.end_N - shard.start_N + 1)


def _inside(
    pivot: Shard, source: Shard, alignment: Alignment, token_texts: TokenTexts, opens_S: NDArray[np.bool_]
) -> tuple[NDArray[np.intp], NDArray[np.intp], list[bytes]]:
    """Pivot positions that begin inside a source token, that token's position, and its bytes up to there."""
    real = np.flatnonzero(source.ends_N > source.starts_N)
    if not len(real):
        return real, real, []
    at = np.flatnonzero((alignment.chunk_P >= 0) & ~alignment.matched_P)
    covering = real[(np.searchsorted(source.starts_N[real], pivot.starts_N[at], side="right") - 1).clip(min=0)]
    length = np.array([len(text or b"") for text in token_texts])[source.gold_ids_N[covering]]
    begins_before = (source.starts_N[covering] < pivot.starts_N[at]) & (pivot.starts_N[at] < source.ends_N[covering])
    # A token of another length than its span was normalised: its bytes are not those of the text.
    spelt = length == (source.end_N - source.start_N + opens_S)[covering]
    kept = begins_before & spelt & (alignment.chunk_S[covering] == alignment.chunk_P[at])
    at, covering = at[kept], covering[kept]
    out = pivot.start_N[at] - source.start_N[covering] + opens_S[covering]
    texts = (token_texts[id_] or b"" for id_ in source.gold_ids_N[covering].tolist())
    return at, covering, [text[:end] for text, end in zip(texts, out.tolist(), strict=True)]


def _chunk_logprobs(source: Shard, alignment: Alignment) -> NDArray[np.float32]:
    """The source's log-probability of every pivot position's chunk, nats; NaN outside of chunks."""
    inside_S, inside_P = alignment.chunk_S >= 0, alignment.chunk_P >= 0
    if not inside_P.any():
        return np.full(len(inside_P), UNTAUGHT)
    by_chunk = np.bincount(alignment.chunk_S[inside_S], source.gold_logprobs_N[inside_S].astype(np.float64))
    return np.where(inside_P, by_chunk[alignment.chunk_P], UNTAUGHT).astype(np.float32)


def first_of_chunk(chunk_N: NDArray[np.int32]) -> NDArray[np.intp]:
    """For every position, the position at which its chunk begins (tokens without bytes may stand between)."""
    first = np.full(chunk_N.max(initial=-1) + 2, len(chunk_N))
    np.minimum.at(first, chunk_N, np.arange(len(chunk_N)))
    return np.asarray(first[chunk_N])


def _last_of_chunk(chunk_N: NDArray[np.int32]) -> NDArray[np.intp]:
    """The last position of every chunk, chunk by chunk."""
    inside = np.flatnonzero(chunk_N >= 0)
    ends = np.append(chunk_N[inside][1:] != chunk_N[inside][:-1], True) if len(inside) else np.zeros(0, dtype=bool)
    return np.asarray(inside[ends])


def _ahead_in_chunk(shard: Shard, chunk_N: NDArray[np.int32]) -> NDArray[np.float64]:
    """Log-probability (nats) of the tokens of its chunk that stand before each position."""
    nats = np.where(chunk_N >= 0, shard.gold_logprobs_N.astype(np.float64), 0)
    before = np.append(0, np.cumsum(nats))[:-1]
    return np.asarray(before - before[first_of_chunk(chunk_N)])


def _said_in_chunk(shard: Shard, chunk_N: NDArray[np.int32], token_texts: TokenTexts) -> list[bytes]:
    """The text of the tokens of its chunk that stand before each position."""
    said = [b""] * len(chunk_N)
    text, chunk = b"", -1
    for n, (number, id_) in enumerate(zip(chunk_N.tolist(), shard.gold_ids_N.tolist(), strict=True)):
        if number < 0:
            continue
        if number != chunk:
            text, chunk = b"", number
        said[n] = text
        text += token_texts[id_] or b""
    return said
