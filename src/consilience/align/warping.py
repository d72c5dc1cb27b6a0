"""Sequence alignment as FuseLLM and FuseChat published it: dynamic time warping over the tokens' spelling.

Here for comparison: every alignment and its cost are equal to the published code's to the last bit (fanqiwan/FuseAI:
FuseLLM; FuseChat 1.0 at 562c7b0; FuseChat of August 2024 at 7d9a307). `align_spans` needs no estimate.

Shapes: P positions of the pivot, S of the source, A and B distinct tokens of source and pivot, V cells of a path.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from consilience.errors import DataError

Tokens = Sequence[str]
Floats = NDArray[np.float64]


class Marks(NamedTuple):
    """The character that a tokenizer writes for the blank before a word: '▁' sentencepiece, 'Ġ' byte-level."""

    pivot: str = "▁"
    source: str = "Ġ"

    def as_pivot(self, source_tokens: Tokens) -> list[str]:
        """The source's tokens as the pivot would write their marks."""
        return [token.replace(self.source, self.pivot) for token in source_tokens]


class Warping(NamedTuple):
    """Which source positions each pivot position is warped onto, at least one; a ragged array of P rows."""

    offsets: NDArray[np.int64]  # row p is source_V[offsets[p] : offsets[p + 1]]
    source_V: NDArray[np.int32]  # ascending within a row
    cost: float

    def rows(self) -> list[list[int]]:
        """The source positions of every pivot position."""
        return [row.tolist() for row in np.split(self.source_V, self.offsets[1:-1])]


WarpingMethod = Callable[[Tokens, Tokens, Marks], Warping]


def fusellm(pivot_tokens: Tokens, source_tokens: Tokens, marks: Marks) -> Warping:
    """FuseLLM (arXiv 2401.10491) on raw tokens: a cell costs the edit distance without marks; diagonal, up, left."""
    return _warp(pivot_tokens, source_tokens, marks, _without_marks, left_before_up=False)


def fusechat1(pivot_tokens: Tokens, source_tokens: Tokens, marks: Marks) -> Warping:
    """FuseChat 1.0 on raw tokens: as FuseLLM, but a token inside the other costs a tenth."""
    return _warp(pivot_tokens, source_tokens, marks, _tenth_if_inside, left_before_up=False)


def fusechat2(pivot_tokens: Tokens, source_tokens: Tokens, marks: Marks) -> Warping:
    """FuseChat (arXiv 2408.07990) on decoded tokens: edit distance, marks kept if a token is nothing else; diagonal,
    left, up."""
    return _warp(pivot_tokens, source_tokens, marks, _marks_if_nothing_else, left_before_up=True)


WARPINGS: dict[str, WarpingMethod] = {
    "fusellm": fusellm,
    "fusechat1": fusechat1,
    "fusechat2": fusechat2,
}


def edit_distances(source_tokens: Tokens, pivot_tokens: Tokens) -> NDArray[np.uint16]:
    """Levenshtein distance in code points of every pair, shape [A, B]; tokens shorter than 65,536 characters."""
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cdist

    distances: NDArray[np.uint16] = cdist(source_tokens, pivot_tokens, scorer=Levenshtein.distance, dtype=np.uint16)
    return distances


def tenth_if_inside(distances_AB: Floats, source_tokens: Tokens, pivot_tokens: Tokens) -> Floats:
    """A tenth of the distance where one of the two tokens is a part of the other; "" is a part of every token."""
    source_lengths = np.array([len(token) for token in source_tokens])
    pivot_lengths = np.array([len(token) for token in pivot_tokens])
    # A part of a token is as far from it as their lengths: few pairs are left to be compared.
    possible = np.argwhere(distances_AB == np.abs(source_lengths[:, None] - pivot_lengths[None, :]))
    inside = [pair for pair in possible.tolist() if _inside(source_tokens[pair[0]], pivot_tokens[pair[1]])]
    factors = np.ones_like(distances_AB)
    if inside:
        factors[tuple(np.array(inside).T)] = 0.1
    return distances_AB * factors


def _inside(a: str, b: str) -> bool:
    return a in b or b in a


def _warp(
    pivot_tokens: Tokens,
    source_tokens: Tokens,
    marks: Marks,
    costs: Callable[[Tokens, Tokens, Marks], Floats],
    *,
    left_before_up: bool,
) -> Warping:
    from consilience.align.kernels import warp

    if not len(pivot_tokens) or not len(source_tokens):
        raise DataError(
            f"cannot warp {len(source_tokens)} source tokens onto {len(pivot_tokens)} pivot tokens; "
            "leave out texts without tokens."
        )
    pivots, pivot_P = _distinct(pivot_tokens)
    sources, source_S = _distinct(source_tokens)
    source_V, pivot_V, cost = warp(costs(sources, pivots, marks), source_S, pivot_P, left_before_up)
    offsets = np.searchsorted(pivot_V, np.arange(len(pivot_tokens) + 1))
    return Warping(offsets.astype(np.int64), source_V, float(cost))


def _distinct(tokens: Tokens) -> tuple[list[str], NDArray[np.int64]]:
    """The distinct tokens, and which of them stands at each position: a text repeats its tokens, costs do not."""
    number: dict[str, int] = {}
    at = [number.setdefault(token, len(number)) for token in tokens]
    return list(number), np.array(at, dtype=np.int64)


def _without_marks(sources: Tokens, pivots: Tokens, marks: Marks) -> Floats:
    return edit_distances(strip(sources, marks.source), strip(pivots, marks.pivot)).astype(np.float64)


def _tenth_if_inside(sources: Tokens, pivots: Tokens, marks: Marks) -> Floats:
    bare_sources, bare_pivots = strip(sources, marks.source), strip(pivots, marks.pivot)
    return tenth_if_inside(edit_distances(bare_sources, bare_pivots).astype(np.float64), bare_sources, bare_pivots)


def _marks_if_nothing_else(sources: Tokens, pivots: Tokens, marks: Marks) -> Floats:
    costs_AB = _without_marks(sources, pivots, marks)
    blank_A = np.array([not token for token in strip(sources, marks.source)])
    blank_B = np.array([not token for token in strip(pivots, marks.pivot)])
    marked = marks.as_pivot(sources)
    costs_AB[blank_A] = edit_distances([marked[a] for a in np.flatnonzero(blank_A)], pivots)
    costs_AB[:, blank_B] = edit_distances(marked, [pivots[b] for b in np.flatnonzero(blank_B)])
    return costs_AB


def strip(tokens: Tokens, mark: str) -> list[str]:
    """The tokens without their marks."""
    return [token.replace(mark, "") for token in tokens]
