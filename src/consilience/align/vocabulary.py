"""Vocabulary mapping: which pivot token a source token stands for.

A mapping is a sparse matrix [source vocabulary, pivot vocabulary] whose rows sum to one, or to nothing where a source
token has no counterpart: its probability is then kept as "other". Vs is the source's vocabulary size, Vp the pivot's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from consilience.align.pieces import END, id_of_text, longest_piece
from consilience.align.published import nearest_spelling, sigmoid_weighted
from consilience.align.warping import Marks

MATCH_COUNTS = 1.5  # observations
LEAST_SHARE, MOST_PARTNERS = 0.01, 32
NO_PARTNER = -1
BLANKS = Marks(" ", " ")  # in bytes a blank is a blank


@dataclass(frozen=True, slots=True, eq=False)
class Vocabularies:
    """All that a mapping may know of a source's and a pivot's tokens."""

    counts: Any  # sparse [Vs, Vp]: how often two tokens began at the same byte
    matches: Any  # sparse [Vs, Vp]: one where two tokens stand for the same bytes, see `exact_matches`
    source_bytes: Sequence[bytes | None]  # what each stands for; None: a control token or unused row; or END
    pivot_bytes: Sequence[bytes | None]


VocabularyMapping = Callable[[Vocabularies], Any]


def exact_matches(source_bytes: Sequence[bytes | None], pivot_bytes: Sequence[bytes | None]) -> Any:
    """One where two tokens stand for the same bytes, a sparse [Vs, Vp] matrix; `None` (a control token) has no match.

    Where several pivot tokens have the same bytes, it is the one of `id_of_text`.
    """
    pivot_id = id_of_text(pivot_bytes)
    pairs = [(id_, pivot_id[token]) for id_, token in enumerate(source_bytes) if token in pivot_id]
    rows, columns = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    shape = (len(source_bytes), len(pivot_bytes))
    return sparse.coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()


def exact(vocabularies: Vocabularies) -> Any:
    """Only tokens of the same bytes (`matches`): the control that uses no statistics."""
    return vocabularies.matches.astype(np.float32)


def statistics(vocabularies: Vocabularies) -> Any:
    """Each source token goes to the pivot token that most often begins where it begins (FuseChat, arXiv 2408.07990).

    The published rule multiplies an edit distance by a sigmoid of the count and so prefers *rare* pairings; here the
    count itself decides. A match of bytes counts as one and a half observations: it decides where nothing was seen
    and outweighs a single one. Among equals the lowest pivot id is taken.
    """
    scores = _observed(vocabularies)
    first = _by_falling_weight(scores)[scores.indptr[:-1][np.diff(scores.indptr) > 0]]
    return _one_partner(np.flatnonzero(np.diff(scores.indptr)), scores.indices[first], scores.shape)


def spread(vocabularies: Vocabularies) -> Any:
    """Each source token is spread over the pivot tokens that begin where it begins, by how often each of them does.

    The general form of a projection: any number of pivot tokens per source token, with weights. The weights are what
    `statistics` takes the largest of, as shares of their row: conditional frequencies, in which a match of bytes counts
    as one and a half observations. Pivot tokens with less than LEAST_SHARE of a row, or behind its MOST_PARTNERS
    likeliest, are dropped and the others take up their weight, so that the matrix stays sparse.

    X-Token (arXiv 2605.21699) projects by a sparse matrix, too, but begins it from rules on the tokens' strings: it
    needs no texts and covers tokens that no text has, where this one counts what texts do. PTA-LLM (arXiv 2509.17276)
    finds soft weights anew at every position, by optimal transport between the two models' candidates; these here are
    the same wherever a token stands, and so cannot tell contexts apart.
    """
    scores = _observed(vocabularies)
    row_of = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))
    order = _by_falling_weight(scores)
    shares = scores.data[order] / np.asarray(scores.sum(1))[row_of]  # the order leaves every row where it is
    rank = np.arange(len(order)) - scores.indptr[row_of]
    kept = (rank == 0) | ((shares >= LEAST_SHARE) & (rank < MOST_PARTNERS))
    rows, columns, shares = row_of[kept], scores.indices[order][kept], shares[kept]
    shares /= np.bincount(rows, shares, scores.shape[0])[rows]
    return sparse.coo_array((shares.astype(np.float32), (rows, columns)), shape=scores.shape).tocsr()


def first_piece(vocabularies: Vocabularies) -> Any:
    """Each source token goes to the longest pivot token that its bytes begin with.

    The pivot token that says as much of the source's as one token can. It needs no texts, and a source token whose
    first byte no pivot token has goes nowhere.
    """
    id_of = id_of_text([text if _has_spelling(text) else None for text in vocabularies.pivot_bytes])
    pieces = [longest_piece(text or b"", id_of) for text in vocabularies.source_bytes]
    return _with_matches(vocabularies, np.array(pieces, dtype=np.int64))


def edit_distance(vocabularies: Vocabularies) -> Any:
    """MinED (FuseLLM, arXiv 2401.10491): the pivot token of the same bytes, else the one of the nearest spelling.

    Least edit distance, the first in the vocabulary among equals, however far that is: every source token with a text
    has a partner. A spelling is a token's characters with blanks as blanks, whatever a vocabulary writes for one. Bytes
    that are part of no whole character count as one character each, and equal those of the same value only.
    """
    return _with_matches(vocabularies, _among_spelled(vocabularies, _nearest))


def fusechat2(vocabularies: Vocabularies) -> Any:
    """FuseChat's own rule: the same bytes, else the least edit distance times sigmoid(count) among what was counted.

    That product prefers the *rarer* of two equally distant tokens (see `published.sigmoid_weighted`, which is equal to
    the published code). A source token that was never counted has no partner here; the published code puts it on
    `<unk>`, which then is taught. Spelled as in `edit_distance`, where theirs compares the vocabularies' own strings:
    the same for ASCII text, another distance where one of them writes bytes ('<0x0A>', 'Ċ') for the other's character.
    """
    return _with_matches(vocabularies, _among_spelled(vocabularies, _sigmoid_weighted))


VOCABULARY_MAPPINGS: dict[str, VocabularyMapping] = {
    "exact": exact,
    "statistics": statistics,
    "spread": spread,
    "first_piece": first_piece,
    "edit_distance": edit_distance,
    "fusechat2": fusechat2,
}


# ---- by what was counted ----


def _observed(vocabularies: Vocabularies) -> Any:
    """Observations of every pair, a match among them, as sparse rows with ascending columns."""
    scores = (vocabularies.counts + MATCH_COUNTS * vocabularies.matches).tocsr()
    scores.eliminate_zeros()
    scores.sort_indices()
    return scores


def _by_falling_weight(rows: Any) -> NDArray[np.int64]:
    """The entries of sparse rows, each row's heaviest first and among equals the lowest column."""
    row_of = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    order: NDArray[np.int64] = np.lexsort((rows.indices, -rows.data, row_of))
    return order


# ---- by spelling ----


def _with_matches(vocabularies: Vocabularies, partners: NDArray[np.int64]) -> Any:
    """The mapping to `partners` [Vs], NO_PARTNER where there is none; but a token of the same bytes goes first.

    END and what has no text are spelled like nothing: they have a partner by `matches`, or none.
    """
    matched = vocabularies.matches.tocoo()
    chosen = partners.copy()
    chosen[[not _has_spelling(text) for text in vocabularies.source_bytes]] = NO_PARTNER
    chosen[matched.row] = matched.col
    rows = np.flatnonzero(chosen != NO_PARTNER)
    return _one_partner(rows, chosen[rows], vocabularies.matches.shape)


def _one_partner(rows: NDArray[np.int64], columns: NDArray[np.int64], shape: tuple[int, int]) -> Any:
    return sparse.coo_array((np.ones(len(rows), dtype=np.float32), (rows, columns)), shape=shape).tocsr()


def _has_spelling(text: bytes | None) -> bool:
    return bool(text) and text != END


def _among_spelled(
    vocabularies: Vocabularies, choose: Callable[[Any, list[str], list[str]], NDArray[np.int32]]
) -> NDArray[np.int64]:
    """What `choose(counts, source, pivot)` finds among the spelled tokens that have no match, in ids of all, [Vs]."""
    matched = np.diff(vocabularies.matches.tocsr().indptr) > 0
    source = np.flatnonzero([_has_spelling(text) for text in vocabularies.source_bytes] & ~matched)
    pivot = np.flatnonzero([_has_spelling(text) for text in vocabularies.pivot_bytes])
    partners = np.full(len(matched), NO_PARTNER)
    if len(source) and len(pivot):
        found = choose(
            vocabularies.counts.tocsr()[source][:, pivot],
            [_spelling(vocabularies.source_bytes[id_]) for id_ in source],
            [_spelling(vocabularies.pivot_bytes[id_]) for id_ in pivot],
        )
        partners[source] = np.where(found == NO_PARTNER, NO_PARTNER, pivot[found])
    return partners


def _spelling(text: bytes | None) -> str:
    return (text or b"").decode(errors="surrogateescape")


def _nearest(counts: Any, source: list[str], pivot: list[str]) -> NDArray[np.int32]:
    del counts
    last = {spelling: number for number, spelling in enumerate(pivot)}  # of equal ones the highest id: `id_of_text`
    ids = np.array(sorted(last.values()), dtype=np.int32)
    found: NDArray[np.int32] = ids[nearest_spelling(source, [pivot[id_] for id_ in ids], BLANKS)]
    return found


def _sigmoid_weighted(counts: Any, source: list[str], pivot: list[str]) -> NDArray[np.int32]:
    return sigmoid_weighted(counts, source, pivot, BLANKS, unseen=NO_PARTNER, forced={})
