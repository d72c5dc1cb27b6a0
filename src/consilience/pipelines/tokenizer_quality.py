"""How well one source's tokens meet the pivot's, over texts that both tokenizers have read.

Shapes: P positions of the pivot, S of the source, N of either, over all texts that both can read; V the source's
vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consilience.align import (
    SEQUENCE_ALIGNMENTS,
    VOCABULARY_MAPPINGS,
    Alignment,
    ChunkCount,
    TokenCount,
    Vocabularies,
    chunk_types,
    count_pairs,
    exact_matches,
    likeliest_partner,
    most_frequent,
    side_by_side,
)
from consilience.align.quality import chunk_type, likeliest_successors, right_positions, weight_of_pairs
from consilience.errors import DataError
from consilience.pipelines.readings import Model, Reading, Side, Texts
from consilience.stats import Estimate, ratio

OnProgress = Callable[[str, int, int], None]
Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]

SPANS = "spans"
FITTED = ("statistics", "spread", "fusechat2")  # the vocabulary mappings that look at counts
LONGEST_WARPED = 4_096  # tokens: a warping takes memory for every pair of them
TOP_K = 10  # bigram successors that stand in for a model's candidates
FREQUENT = 50  # tokens listed on either side
EXAMPLES, EXAMPLE_TOKENS = 4, 60


class SequenceQuality(NamedTuple):
    """What a sequence alignment does with the pivot's positions, as shares of them."""

    matched: Estimate
    right: Estimate  # with a source token that begins at the same byte
    wrong: Estimate  # with another one


class MappingQuality(NamedTuple):
    """What a vocabulary mapping does with a source's tokens."""

    mapped: Estimate  # share of their occurrences that have a pivot token
    right: Estimate  # share of matched positions where that is the very pivot token there; its weight, if of several
    mass: Estimate  # share of the stand-in's top-k probability that reaches the pivot's vocabulary


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceQuality:
    """How well one source's tokens meet the pivot's."""

    source: str
    texts: int  # read by both tokenizers
    set_aside: Mapping[str, int]  # the others, by reason
    pivot_positions: int
    source_positions: int
    matched: Estimate  # share of the pivot's positions
    one_to_one: Estimate  # share of the pivot's positions
    warped: int  # texts that the sequence alignments are compared on
    sequence: Mapping[str, SequenceQuality]
    not_warped: str | None  # why only spans are there
    too_long: int  # texts of more than LONGEST_WARPED tokens, which are not compared on
    chunk_types: Mapping[str, ChunkCount]
    top_k_mass: Estimate  # what the stand-in's top-k holds of all its probability
    vocabulary: Mapping[str, MappingQuality]
    other_half: Mapping[str, MappingQuality]  # of FITTED: counted on the other half of the units than judged on
    tokens: Mapping[str, int]  # the source's tokens that occur, by what `listed` does with them
    unmapped: Sequence[Mapping[str, Any]]  # source tokens without a mapping, by how often they occur
    unmatched: Sequence[Mapping[str, Any]]  # pivot tokens, by how often no source token begins where they do
    examples: Sequence[Sequence[Mapping[str, Any]]]  # see _examples

    @property
    def cut_alike(self) -> bool:
        """Whether both tokenizers cut all the texts into the same pieces."""
        return self.pivot_positions == self.source_positions and self.one_to_one.value == 1

    def to_json(self) -> dict[str, Any]:
        """The result for a file or a report; chunk types with their shares of the pivot's positions and bytes."""
        positions = sum(count.positions for count in self.chunk_types.values())
        size = sum(count.bytes for count in self.chunk_types.values())
        return {
            "source": self.source,
            "texts": self.texts,
            "set_aside": dict(self.set_aside),
            "pivot_positions": self.pivot_positions,
            "source_positions": self.source_positions,
            "cut_alike": self.cut_alike,
            "matched": self.matched.to_json(),
            "one_to_one": self.one_to_one.to_json(),
            "warped": self.warped,
            "sequence": {name: _estimates(found) for name, found in self.sequence.items()},
            "not_warped": self.not_warped,
            "too_long": self.too_long,
            "chunk_types": {
                name: count._asdict()
                | {"share_of_positions": count.positions / positions, "share_of_bytes": count.bytes / max(size, 1)}
                for name, count in self.chunk_types.items()
            },
            "top_k_mass": self.top_k_mass.to_json(),
            "vocabulary": {name: _estimates(found) for name, found in self.vocabulary.items()},
            "other_half": {name: _estimates(found) for name, found in self.other_half.items()},
            "tokens": dict(self.tokens),
            "unmapped": list(self.unmapped),
            "unmatched": list(self.unmatched),
        }


def source_quality(
    name: str,
    path: str,
    ours: Model,
    theirs: Model,
    texts: Texts,
    *,
    listed: str,
    warped: int,
    on_progress: OnProgress,
) -> SourceQuality:
    """One source beside the pivot, over the texts that both can read.

    Unmapped tokens are listed under the mapping `listed`; the published warpings run on at most so many texts. Raises
    `DataError` where no text can be read by both, or nothing matches.
    """
    both, set_aside = _read_by_both(ours, theirs)
    if not both:
        raise DataError(
            f"source {name}: none of the {len(texts.items)} {texts.kind} can be read by both tokenizers; "
            f"{next(iter(set_aside))}"
        )
    pivot, source = Side.of(ours, both), Side.of(theirs, both)
    units = [texts.units[index] for index in both]
    alignment = SEQUENCE_ALIGNMENTS[SPANS](pivot.tokens, source.tokens)
    if not alignment.matched_P.any():
        raise DataError(
            f"source {name}: nothing matched: none of the pivot's {len(pivot.ids_N)} positions begins where one of the "
            f"source's {len(source.ids_N)} does. Look at {texts.name}; for chats, try --template pivot."
        )
    everywhere_P = np.ones(len(pivot.ids_N))

    def share(chosen_P: NDArray[Any]) -> Estimate:
        return _ratio(pivot, chosen_P, everywhere_P, units, texts.unit_kind)

    with_tokens = np.unique(pivot.text_N)
    longest = np.maximum(*(np.bincount(side.text_N, minlength=len(both)) for side in (pivot, source)))
    short = with_tokens[longest[with_tokens] <= LONGEST_WARPED]
    not_warped = next((model.spelling for model in (ours, theirs) if isinstance(model.spelling, str)), None)
    if not warped:
        not_warped = "left out (--warped 0)"
    elif not_warped is None and not len(short):
        not_warped = f"every text is longer than {LONGEST_WARPED} tokens, too long for them"
    compared = _evenly(short, warped) if not_warped is None else with_tokens
    return SourceQuality(
        source=path,
        texts=len(both),
        set_aside=set_aside,
        pivot_positions=len(pivot.ids_N),
        source_positions=len(source.ids_N),
        matched=share(alignment.matched_P),
        one_to_one=share(alignment.one_to_one_P),
        warped=len(compared),
        sequence=_sequences(
            [SPANS] if not_warped is not None else [*SEQUENCE_ALIGNMENTS],
            pivot.only(compared),
            source.only(compared),
            units,
            texts.unit_kind,
            lambda done, of: on_progress(f"warp {Path(name).name}", done, of),
        ),
        not_warped=not_warped,
        too_long=len(with_tokens) - len(short) if not_warped is None else 0,
        chunk_types=chunk_types(alignment, pivot.tokens.starts_N, pivot.tokens.ends_N),
        **_vocabularies(
            pivot,
            source,
            alignment,
            units,
            texts.unit_kind,
            listed,
            lambda done, of: on_progress(f"map {Path(name).name}", done, of),
        ),
        unmatched=_listed(pivot, most_frequent(pivot.ids_N, ~alignment.matched_P, FREQUENT)),
        examples=[_example(pivot, source, alignment, int(text)) for text in _evenly(with_tokens, EXAMPLES)],
    )


def _estimates(found: SequenceQuality | MappingQuality) -> dict[str, Any]:
    return {name: estimate.to_json() for name, estimate in found._asdict().items()}


def _read_by_both(ours: Model, theirs: Model) -> tuple[list[int], dict[str, int]]:
    """The texts that both models can read, by index; the others counted by reason."""
    both: list[int] = []
    set_aside: Counter[str] = Counter()
    for index, (mine, yours) in enumerate(zip(ours.readings, theirs.readings, strict=True)):
        if isinstance(mine, Reading) and isinstance(yours, Reading):
            both.append(index)
        else:
            set_aside[f"pivot: {mine}" if isinstance(mine, str) else f"source: {yours}"] += 1
    return both, dict(set_aside.most_common())


def _evenly(texts: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """`count` of the texts, evenly spaced: files are often in an order that means something."""
    return texts[np.linspace(0, len(texts) - 1, min(count, len(texts))).round().astype(np.int64)]


def _ratio(side: Side, parts_N: NDArray[Any], wholes_N: NDArray[Any], units: Sequence[str], unit_kind: str) -> Estimate:
    """The sum of the parts over the sum of the wholes, with the texts of one unit as one."""
    return _share(side.per_text(parts_N, len(units)), side.per_text(wholes_N, len(units)), units, unit_kind)


def _share(parts: Floats, wholes: Floats, units: Sequence[str], unit_kind: str) -> Estimate:
    """A ratio of sums that is a share, so its interval is, too."""
    found = ratio(parts, wholes, units, unit_kind=unit_kind)
    if math.isnan(found.low):
        return found
    within = max(0.0, found.low), min(1.0, found.high)
    return replace(found, interval=within, method=f"{found.method}, within 0 and 1")


def _sequences(
    methods: Sequence[str],
    pivot: Side,
    source: Side,
    units: Sequence[str],
    unit_kind: str,
    on_method: Callable[[int, int], None],
) -> dict[str, SequenceQuality]:
    """Every sequence alignment on the same texts."""
    chosen = np.unique(pivot.text_N)
    kept_units = [units[text] for text in chosen]
    everywhere_P = np.ones(len(pivot.ids_N))

    def share(chosen_P: Bools) -> Estimate:
        parts, wholes = (pivot.per_text(weights, len(units))[chosen] for weights in (chosen_P, everywhere_P))
        return _share(parts, wholes, kept_units, unit_kind)

    found = {}
    for done, name in enumerate(methods):
        on_method(done, len(methods))
        alignment = SEQUENCE_ALIGNMENTS[name](pivot.tokens, source.tokens)
        right_P = right_positions(alignment, pivot.tokens, source.tokens)
        found[name] = SequenceQuality(share(alignment.matched_P), share(right_P), share(alignment.matched_P & ~right_P))
    on_method(len(methods), len(methods))
    return found


class _Judged(NamedTuple):
    """A vocabulary mapping at every position."""

    mapped_S: Bools
    right_P: Floats  # the weight that it gives to the pivot token there
    mass_P: Floats


def _vocabularies(
    pivot: Side,
    source: Side,
    alignment: Alignment,
    units: Sequence[str],
    unit_kind: str,
    listed: str,
    on_mapping: Callable[[int, int], None],
) -> dict[str, Any]:
    """Every vocabulary mapping, and what becomes of the source's tokens under the one that is `listed`."""
    matched_P, source_P = alignment.matched_P, alignment.source_P
    shape = (len(source.texts), len(pivot.texts))
    partner_ids_P = np.where(matched_P, source.ids_N[source_P], -1)
    occurs_V = np.bincount(source.ids_N, minlength=shape[0]) > 0  # the others' partners are never asked for
    source_bytes = [text if occurs else None for text, occurs in zip(source.texts, occurs_V.tolist(), strict=True)]
    matches = exact_matches(source_bytes, pivot.texts)
    successors, row_S = likeliest_successors(source.previous_N, source.ids_N, shape[0], TOP_K)
    held_P = np.where(matched_P, np.asarray(successors.sum(1)).ravel()[row_S][source_P], 0.0)

    def known(counted_P: Bools) -> Vocabularies:
        counts = count_pairs(partner_ids_P[counted_P], pivot.ids_N[counted_P], shape)
        return Vocabularies(counts, matches, source_bytes, pivot.texts)

    def judged(mapping: Any) -> _Judged:
        mapped_V = likeliest_partner(mapping) >= 0  # rows of a mapping sum to one or to nothing
        right_P, mass_P = np.zeros((2, len(pivot.ids_N)))
        right_P[matched_P] = weight_of_pairs(mapping, partner_ids_P[matched_P], pivot.ids_N[matched_P])
        mass_P[matched_P] = (successors @ mapped_V.astype(np.float64))[row_S][source_P[matched_P]]
        return _Judged(mapped_V[source.ids_N], right_P, mass_P)

    def quality(found: _Judged) -> MappingQuality:
        return MappingQuality(
            mapped=_ratio(source, found.mapped_S, np.ones(len(source.ids_N)), units, unit_kind),
            right=_ratio(pivot, found.right_P, matched_P, units, unit_kind),
            mass=_ratio(pivot, found.mass_P, held_P, units, unit_kind),
        )

    all_of_them = known(matched_P)
    number_of = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    half = np.array([number_of[unit] % 2 == 0 for unit in units])
    half_P, half_S = half[pivot.text_N], half[source.text_N]
    halves = known(matched_P & ~half_P), known(matched_P & half_P)
    vocabulary, other_half, partner_V = {}, {}, np.zeros(0, dtype=np.int64)
    for done, (name, method) in enumerate(VOCABULARY_MAPPINGS.items()):
        on_mapping(done, len(VOCABULARY_MAPPINGS))
        mapping = method(all_of_them)
        vocabulary[name] = quality(judged(mapping))
        if name == listed:
            partner_V = likeliest_partner(mapping)
        if name in FITTED:
            one, other = (judged(method(part)) for part in halves)
            other_half[name] = quality(
                _Judged(
                    np.where(half_S, one.mapped_S, other.mapped_S),
                    np.where(half_P, one.right_P, other.right_P),
                    np.where(half_P, one.mass_P, other.mass_P),
                )
            )
    on_mapping(len(VOCABULARY_MAPPINGS), len(VOCABULARY_MAPPINGS))
    same_V = likeliest_partner(matches) == partner_V
    mapped_V = partner_V >= 0
    return {
        "top_k_mass": _ratio(pivot, held_P, matched_P, units, unit_kind),
        "vocabulary": vocabulary,
        "other_half": other_half,
        "tokens": {
            "same_bytes": int((occurs_V & mapped_V & same_V).sum()),
            "other_bytes": int((occurs_V & mapped_V & ~same_V).sum()),
            "unmapped": int((occurs_V & ~mapped_V).sum()),
        },
        "unmapped": _listed(source, most_frequent(source.ids_N, ~mapped_V[source.ids_N], FREQUENT)),
    }


def _listed(side: Side, tokens: Sequence[TokenCount]) -> list[dict[str, Any]]:
    return [{"token": side.shown(token.id)} | token._asdict() for token in tokens]


def _example(pivot: Side, source: Side, alignment: Alignment, text: int) -> list[dict[str, Any]]:
    """The beginning of a text, chunk by chunk: its type, and the tokens of both sides.

    A token is its text and whether a token of the other side begins at the same byte.
    """
    partnered_S = np.zeros(len(source.ids_N), dtype=bool)
    partnered_S[alignment.source_P[alignment.matched_P]] = True
    of_pivot = np.flatnonzero(pivot.text_N == text)
    shown = of_pivot[:EXAMPLE_TOKENS]
    cut = alignment.chunk_P[of_pivot[len(shown) : len(shown) + 1]]  # a chunk that goes on is left out
    whole = shown[~np.isin(alignment.chunk_P[shown], cut[cut >= 0])]
    of_pivot = whole if len(whole) else shown
    last = pivot.tokens.ends_N[of_pivot[-1:]].max(initial=-1)
    of_source = np.flatnonzero((source.text_N == text) & (source.tokens.ends_N <= last))
    part = Alignment(alignment.source_P[of_pivot], alignment.chunk_P[of_pivot], alignment.chunk_S[of_source])
    return [
        {
            "type": chunk_type(int((part.chunk_P[ours] >= 0).sum()), int((part.chunk_S[theirs] >= 0).sum())),
            "pivot": [(pivot.shown(int(pivot.ids_N[at])), bool(alignment.matched_P[at])) for at in of_pivot[ours]],
            "source": [(source.shown(int(source.ids_N[at])), bool(partnered_S[at])) for at in of_source[theirs]],
        }
        for ours, theirs in side_by_side(part, pivot.tokens.starts_N[of_pivot], source.tokens.starts_N[of_source])
    ]
