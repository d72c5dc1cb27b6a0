"""Vocabulary mapping and distributions as FuseLLM and FuseChat published them, oddities included.

Here for comparison, equal to the published code (see `warping`) to the last bit. `vocabulary` and `project` do better:
these rules put a source's unknown tokens on `<unk>`, drop the mass of collisions, scale logits instead of
probabilities, prefer rare pairings to frequent ones, and (FuseLLM, FuseChat 1.0) teach the pivot to repeat a token
where they find no partner.

Shapes: P positions of the pivot, S of the source, K candidates kept by the source, Vs and Vp vocabulary sizes,
C candidates of all rows together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consilience.align.counting import count_pairs
from consilience.align.warping import Marks, Tokens, Warping, edit_distances, strip, tenth_if_inside

Ints = NDArray[np.integer[Any]]

BYTE_LEVEL_MARK = "Ġ"

# What a pivot position learns from: source positions and the factors of their logits; None: one token of its own text.
Choice = Mapping[int, float] | None


class PublishedRows(NamedTuple):
    """Mapped logits, a ragged array of P rows in the order in which the candidates were met."""

    offsets: NDArray[np.int64]
    logits_C: NDArray[np.float64]
    ids_C: NDArray[np.int32]


# ---- which source position ----


def fusellm_choices(
    pivot_tokens: Tokens,
    source_tokens: Tokens,
    warping: Warping,
    marks: Marks,
    nearest: Mapping[str, str] | None = None,
) -> list[Choice]:
    """FuseLLM on raw tokens: one source token of the same spelling ("hard", EM).

    With `nearest` (source token in the pivot's marks -> pivot token) one whose nearest token it is will do, too
    ("soft", MinED).
    """
    marked = marks.as_pivot(source_tokens)

    def choose(position: int, token: str, partners: list[int]) -> Choice:
        if len(partners) > 1:
            return None
        partner = marked[partners[0]]
        # Byte-level tokenizers write no blank before the first word of a text, sentencepiece does.
        unmarked = token.startswith(marks.pivot) and not partner.startswith(marks.pivot)
        if position == 0 and marks.source == BYTE_LEVEL_MARK and unmarked:
            partner = marks.pivot + partner
        alike = token == partner or (nearest is not None and nearest.get(partner) == token)
        return {partners[0]: 1.0} if alike else None

    return [choose(i, token, row) for i, (token, row) in enumerate(zip(pivot_tokens, warping.rows(), strict=True))]


def fusechat1_choices(
    pivot_tokens: Tokens,
    source_tokens: Tokens,
    warping: Warping,
    marks: Marks,
    count: Callable[[int, int], float] | None = None,
) -> list[Choice]:
    """FuseChat 1.0 on raw tokens: one source token that the pivot's is a part of ("nomatrix").

    With `count` (how often the tokens at a pivot and a source position were paired in the corpus) a pivot token with
    several partners takes the equal one, else the first that it is a part of, else all those that spell it together,
    their logits scaled by the softmax of the counts ("ms").
    """
    marked = marks.as_pivot(source_tokens)

    def choose(position: int, token: str, partners: list[int]) -> Choice:
        if len(partners) == 1:
            return {partners[0]: 1.0} if token in marked[partners[0]] else None
        if count is None:
            return None
        if token != marks.pivot:
            around = [j for j in partners if token in marked[j]]
            equal = [j for j in around if token == marked[j]]
            if around:
                return {(equal or around)[0]: 1.0}
        pieces = _spelling(token, [marked[j] for j in partners])
        if not pieces:
            return None
        counts = np.array([count(position, partners[piece]) for piece in pieces])
        exps = np.exp(counts - np.max(counts))
        return dict(zip([partners[piece] for piece in pieces], (exps / np.sum(exps)).tolist(), strict=True))

    return [choose(i, token, row) for i, (token, row) in enumerate(zip(pivot_tokens, warping.rows(), strict=True))]


def fusechat2_choices(
    pivot_tokens: Tokens, source_tokens: Tokens, warping: Warping, marks: Marks, *, hard: bool = False
) -> list[Choice]:
    """FuseChat on decoded tokens: the first source token of which one is the other's ending ("ms").

    Its further steps for several partners cannot be reached: texts that spell a token together end as it does.
    `hard`: a single source token of the same spelling, nothing else.
    """
    marked, bare = marks.as_pivot(source_tokens), strip(source_tokens, marks.source)

    def choose(token: str, partners: list[int]) -> Choice:
        if len(partners) == 1:
            partner = marked[partners[0]]
            alike = token == partner if hard else _one_ends_the_other(token, partner)
            return {partners[0]: 1.0} if alike else None
        if hard:
            return None
        token = token.replace(marks.pivot, "")
        return next(({j: 1.0} for j in partners if _one_ends_the_other(token, bare[j])), None)

    return [choose(token, row) for token, row in zip(pivot_tokens, warping.rows(), strict=True)]


def _one_ends_the_other(a: str, b: str) -> bool:
    return a.endswith(b) or b.endswith(a)


def _spelling(token: str, texts: Sequence[str]) -> list[int]:
    """Which of `texts`, taken greedily from the left, spell `token`; none where they do not."""
    used = []
    for index, text in enumerate(texts):
        if token.startswith(text):
            used.append(index)
            token = token[len(text) :]
    return [] if token else used


# ---- which pivot token ----


def same_spelling(source_vocabulary: Tokens, pivot_vocabulary: Tokens, marks: Marks) -> NDArray[np.int32]:
    """The pivot token written like each source token, shape [Vs]; -1 where there is none."""
    pivot_id = {token: id_ for id_, token in enumerate(pivot_vocabulary)}
    return np.array([pivot_id.get(token, -1) for token in marks.as_pivot(source_vocabulary)], dtype=np.int32)


def nearest_spelling(source_vocabulary: Tokens, pivot_vocabulary: Tokens, marks: Marks) -> NDArray[np.int32]:
    """MinED: the pivot token at the least edit distance from each source token, the lowest id among equals, [Vs].

    However far that is: every source token gets a pivot token. Pivot tokens are tried in rings of growing difference
    in length, until that difference alone exceeds the distance found.
    """
    nearest = same_spelling(source_vocabulary, pivot_vocabulary, marks)
    marked = marks.as_pivot(source_vocabulary)
    open_by_length = _by_length([(id_, marked[id_]) for id_ in np.flatnonzero(nearest < 0).tolist()])
    pivots_by_length = _by_length(list(enumerate(pivot_vocabulary)))
    for length, sources in open_by_length.items():
        for start in range(0, len(sources), 256):  # a table of 256 x 32,000 distances takes 16 MB
            chunk = sources[start : start + 256]
            nearest[chunk] = _nearest([marked[id_] for id_ in chunk], length, pivots_by_length, pivot_vocabulary)
    return nearest


def _by_length(tokens: Sequence[tuple[int, str]]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = {}
    for id_, token in tokens:
        groups.setdefault(len(token), []).append(id_)
    return groups


def _nearest(
    sources: list[str], length: int, pivots_by_length: Mapping[int, list[int]], pivot_vocabulary: Tokens
) -> NDArray[np.int64]:
    """The nearest pivot token of each of `sources`, all of one length."""
    # Distance and id in one number: the least of it is the nearest token, and among equals the one with the lowest id.
    size = len(pivot_vocabulary)
    best = np.full(len(sources), np.iinfo(np.int64).max)
    for difference in range(max(length, *pivots_by_length) + 1):
        still = np.flatnonzero(best // size >= difference)
        ring = [id_ for other in {length - difference, length + difference} for id_ in pivots_by_length.get(other, ())]
        if len(still) and ring:
            distances = edit_distances([sources[i] for i in still], [pivot_vocabulary[id_] for id_ in ring])
            found = distances.astype(np.int64) * size + np.array(ring)
            best[still] = np.minimum(best[still], found.min(axis=1))
    return best % size


def count_warped(pivot_ids_P: Ints, source_ids_S: Ints, warping: Warping, shape: tuple[int, int]) -> Any:
    """How often source token s was warped onto pivot token p, a sparse [Vs, Vp] matrix; once per pivot position."""
    position = np.repeat(np.arange(len(pivot_ids_P)), np.diff(warping.offsets))
    pairs = np.unique(np.stack([position, source_ids_S[warping.source_V]]), axis=1)
    return count_pairs(pairs[1], pivot_ids_P[pairs[0]], shape)


def sigmoid_weighted(
    counts: Any,
    source_vocabulary: Tokens,
    pivot_vocabulary: Tokens,
    marks: Marks,
    *,
    unseen: int,
    forced: Mapping[int, int],
    marks_if_nothing_else: bool = True,
) -> NDArray[np.int32]:
    """FuseChat's "mapping statistics": the pivot token p of least distance(s, p) * sigmoid(counts[s, p]), shape [Vs].

    A token inside the other is at a tenth of the distance; the lowest id among equals. Source tokens that were never
    counted go to `unseen` (the published code: `<unk>`), those of `forced` (bos, eos) where it says.
    `marks_if_nothing_else`: a token of marks only is compared with its marks; FuseChat 1.0 did not do this.
    """
    chosen = np.full(len(source_vocabulary), unseen, dtype=np.int32)
    marked, bare = marks.as_pivot(source_vocabulary), strip(source_vocabulary, marks.source)
    bare_pivot = strip(pivot_vocabulary, marks.pivot)
    rows = counts.tocsr(copy=True)
    rows.sort_indices()
    for source_id in np.flatnonzero(np.diff(rows.indptr)):
        seen = slice(rows.indptr[source_id], rows.indptr[source_id + 1])
        pivot_ids = rows.indices[seen]
        source, pivots = bare[source_id], [bare_pivot[id_] for id_ in pivot_ids]
        distances = _distances(source, pivots)
        if marks_if_nothing_else:
            whole = _distances(marked[source_id], [pivot_vocabulary[id_] for id_ in pivot_ids])
            distances = np.where([not source or not pivot for pivot in pivots], whole, distances)
        weights = 1.0 / (1 + np.exp(-rows.data[seen].astype(np.float64)))
        chosen[source_id] = pivot_ids[np.argmin(distances * weights)]
    for source_id, pivot_id in forced.items():
        chosen[source_id] = pivot_id
    return chosen


def _distances(source: str, pivots: list[str]) -> NDArray[np.float64]:
    distances_AB = edit_distances([source], pivots).astype(np.float64)
    return tenth_if_inside(distances_AB, [source], pivots).ravel()


# ---- the distributions ----


def map_rows(
    choices: Sequence[Choice],
    own_ids_P: Ints,
    ids_SK: Ints,
    logits_SK: NDArray[np.floating[Any]],
    pivot_ids_Vs: Ints,
) -> PublishedRows:
    """The source's top-k logits in pivot ids, row by row; a row without a choice is one hot (logit 1) on `own_ids_P`.

    `own_ids_P` is the token *at* a position for FuseLLM and FuseChat 1.0, the *next* one for FuseChat. `pivot_ids_Vs`
    maps the source's tokens, -1 drops one. Of candidates that meet in a token the largest logit stays; source rows
    descend, as top-k gives them.
    """
    ids: list[int] = []
    logits: list[float] = []
    offsets = [0]
    for own_id, choice in zip(own_ids_P.tolist(), choices, strict=True):
        row: dict[int, float] = {own_id: 1.0} if choice is None else {}
        for position, factor in (choice or {}).items():
            for id_, logit in zip(pivot_ids_Vs[ids_SK[position]].tolist(), logits_SK[position].tolist(), strict=True):
                if id_ >= 0:
                    row[id_] = max(row.get(id_, -np.inf), logit * factor)
        ids += row
        logits += row.values()
        offsets.append(len(ids))
    return PublishedRows(np.array(offsets), np.array(logits, dtype=np.float64), np.array(ids, dtype=np.int32))
