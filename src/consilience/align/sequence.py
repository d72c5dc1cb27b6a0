"""Sequence alignment under one signature: which source position stands beside which pivot position.

A position is the prediction of one token. The published alignments pair the tokens *at* two positions and let what one
model says after its token speak for what the other says after its own: in our positions, the two next ones.

Shapes: N tokens of either side, P positions of the pivot, S of the source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consilience.align.published import Choice, fusechat1_choices, fusechat2_choices, fusellm_choices
from consilience.align.spans import BYTES_BITS, Alignment, align_spans
from consilience.align.warping import WARPINGS, Marks, Tokens, Warping
from consilience.errors import DataError

Ints = NDArray[np.integer[Any]]
Rule = Callable[[Tokens, Tokens, Warping, Marks], list[Choice]]


class Spelling(NamedTuple):
    """How a vocabulary writes its tokens, by id: what the published alignments compare."""

    raw: Sequence[str]  # as in the vocabulary: 'Ġthe', '▁the', '<0x0A>'
    decoded: Sequence[str]  # each token decoded alone
    mark: str  # what stands for the blank before a word


@dataclass(frozen=True, slots=True, eq=False)
class TokenText:
    """One model's tokens over replies, in reading order; `align_spans` needs no ids and no spelling."""

    starts_N: Ints  # text_keys
    ends_N: Ints
    ids_N: Ints | None = None
    spelling: Spelling | None = None


SequenceAlignment = Callable[[TokenText, TokenText], Alignment]


def spans(pivot: TokenText, source: TokenText) -> Alignment:
    """Positions whose tokens begin at the same byte: exact and linear, see `align_spans`."""
    return align_spans(pivot.starts_N, pivot.ends_N, source.starts_N, source.ends_N)


def fusellm(pivot: TokenText, source: TokenText) -> Alignment:
    """FuseLLM's warping and its rule for exact matches: one partner of the same spelling ("hard", EM)."""
    return _published("fusellm", fusellm_choices, pivot, source)


def fusechat1(pivot: TokenText, source: TokenText) -> Alignment:
    """FuseChat 1.0's warping and its rule without a matrix: one partner that the token is a part of ("nomatrix").

    Its rule with counts ("ms") mixes several source positions, see `published.fusechat1_choices`.
    """
    return _published("fusechat1", fusechat1_choices, pivot, source)


def fusechat2(pivot: TokenText, source: TokenText) -> Alignment:
    """FuseChat's warping of decoded tokens and its rule: the first partner of which one is the other's ending."""
    return _published("fusechat2", fusechat2_choices, pivot, source)


SEQUENCE_ALIGNMENTS: dict[str, SequenceAlignment] = {
    "spans": spans,
    "fusellm": fusellm,
    "fusechat1": fusechat1,
    "fusechat2": fusechat2,
}


def _published(name: str, rule: Rule, pivot: TokenText, source: TokenText) -> Alignment:
    """A warping reply by reply, without padding; the chunks are those of the spans.

    The first positions of a reply stand beside one another: what comes before a reply is not the replies' to warp. A
    position is left alone where the rule gives the token before it no partner, or the last one of the source's reply.
    """
    marks, pivot_tokens, source_tokens = _spelled(name, pivot, source)
    source_P = np.full(len(pivot.starts_N), -1, dtype=np.int32)
    for of_pivot, of_source in _shared_replies(pivot.starts_N, source.starts_N):
        ours, theirs = pivot_tokens[of_pivot], source_tokens[of_source]
        choices = rule(ours, theirs, WARPINGS[name](ours, theirs, marks), marks)
        source_P[of_pivot.start] = of_source.start
        for position, choice in enumerate(choices[:-1], start=of_pivot.start + 1):
            partner = of_source.start + next(iter(choice)) + 1 if choice else of_source.stop
            if partner < of_source.stop:
                source_P[position] = partner
    by_spans = spans(pivot, source)
    return Alignment(source_P, by_spans.chunk_P, by_spans.chunk_S)


def _spelled(name: str, pivot: TokenText, source: TokenText) -> tuple[Marks, list[str], list[str]]:
    """The marks and every token of both sides as `name` reads them."""
    sides: list[list[str]] = []
    for side in (pivot, source):
        if side.spelling is None or side.ids_N is None:
            raise DataError(
                f"the sequence alignment {name} compares the tokens' spelling, and there is none. "
                "Give ids and spelling of both sides, or take spans."
            )
        written = side.spelling.decoded if name == "fusechat2" else side.spelling.raw
        sides.append([written[id_] for id_ in side.ids_N.tolist()])
    assert pivot.spelling is not None
    assert source.spelling is not None
    return Marks(pivot.spelling.mark, source.spelling.mark), sides[0], sides[1]


def _shared_replies(pivot_starts_P: Ints, source_starts_S: Ints) -> Iterator[tuple[slice, slice]]:
    """Where each reply that both sides have lies in either of them."""
    pivot_reply, source_reply = pivot_starts_P >> BYTES_BITS, source_starts_S >> BYTES_BITS
    replies = np.intersect1d(pivot_reply, source_reply)
    edges = [np.searchsorted(side, replies, edge) for side in (pivot_reply, source_reply) for edge in ("left", "right")]
    for pivot_start, pivot_stop, source_start, source_stop in zip(*(edge.tolist() for edge in edges), strict=True):
        yield slice(pivot_start, pivot_stop), slice(source_start, source_stop)
