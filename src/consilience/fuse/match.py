"""Match a source's representation to the pivot's: sequence alignment, vocabulary mapping, and how good both are.

Shapes: P positions of the pivot in a shard, S of the source.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file, save_file
from scipy import sparse

from consilience.align import VOCABULARY_MAPPINGS, Alignment, align_spans, count_pairs, exact_matches
from consilience.config import Settings, known
from consilience.errors import DataError, pick
from consilience.fuse.represent import Representation, Shard
from consilience.run import write_json

EXAMPLES, EXAMPLE_TOKENS = 3, 24
END = b"\xff<end of reply>"  # no text: stands for the token that closes a reply, whatever a model calls it


class AlignSettings(Settings):
    """How a source's positions and tokens are matched with the pivot's."""

    sequence: Literal["spans"] = "spans"
    vocabulary: Annotated[str, known(lambda: VOCABULARY_MAPPINGS, "vocabulary mapping")] = Field(
        "statistics", description=f"one of {', '.join(VOCABULARY_MAPPINGS)}"
    )
    min_matched: float = Field(0.2, ge=0, le=1, description="least share of pivot positions that must match")


class Match:
    """A finished `align` folder of one source."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.quality: dict[str, Any] = json.loads((folder / "quality.json").read_text())

    def alignment(self, index: int) -> Alignment:
        """The sequence alignment of shard number `index`."""
        return Alignment(**load_file(self.folder / f"alignment-{index:05d}.safetensors"))

    def vocabulary(self, name: str) -> Any:
        """The vocabulary mapping called `name`, a sparse [source vocabulary, pivot vocabulary] matrix."""
        method = pick(VOCABULARY_MAPPINGS, name, "vocabulary mapping")
        return method(sparse.load_npz(self.folder / "counts.npz"), sparse.load_npz(self.folder / "matches.npz"))


def match(
    pivot: Representation,
    source: Representation,
    pivot_bytes: Sequence[bytes | None],
    source_bytes: Sequence[bytes | None],
    settings: AlignSettings,
    folder: Path,
) -> Match:
    """Aligns `source` to `pivot` shard by shard, counts which tokens begin together, and writes both to `folder`.

    `pivot_bytes` and `source_bytes` give the text of every token (None: a control token). Raises `DataError` when
    none of the pivot's positions finds a partner, or less than `settings.min_matched` of them do.
    """
    shape = (source.vocabulary_size, pivot.vocabulary_size)
    counts = sparse.csr_array(shape, dtype=np.int64)
    ends: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    tally = _Tally(pivot.manifest["conversations"])
    for index, (pivot_shard, source_shard) in enumerate(zip(pivot, source, strict=True)):
        alignment = align_spans(pivot_shard.starts_N, pivot_shard.ends_N, source_shard.starts_N, source_shard.ends_N)
        at = alignment.matched_P
        partners = alignment.source_P[at]
        counts = counts + count_pairs(source_shard.gold_ids_N[partners], pivot_shard.gold_ids_N[at], shape)
        ends.append((_closing_ids(source_shard), _closing_ids(pivot_shard)))
        tally.add(pivot_shard, source_shard, alignment, pivot_bytes, source_bytes)
        save_file(alignment._asdict(), folder / f"alignment-{index:05d}.safetensors")
    source_end, pivot_end = (np.concatenate(ids) for ids in zip(*ends, strict=True))
    matches = exact_matches(with_end(source_bytes, source_end, shape[0]), with_end(pivot_bytes, pivot_end, shape[1]))
    sparse.save_npz(folder / "counts.npz", counts)
    sparse.save_npz(folder / "matches.npz", matches)
    write_json(folder / "quality.json", tally.summary())
    tally.refuse_below(settings.min_matched, source.manifest["model"])
    return Match(folder)


def _closing_ids(shard: Shard) -> NDArray[np.int32]:
    """The ids that close the replies of a shard; of several closing tokens only the first says that the text ends."""
    return shard.gold_ids_N[shard.closing_N & (shard.end_N > shard.start_N)]


def with_end(token_bytes: Sequence[bytes | None], end_ids: NDArray[np.int32], size: int) -> list[bytes | None]:
    """`token_bytes` over the whole head (padded rows have no text), with END for the token that closes replies."""
    table: list[bytes | None] = [*token_bytes[:size], *[None] * (size - len(token_bytes))]
    if len(end_ids):
        table[int(np.bincount(end_ids).argmax())] = END
    return table


class _Tally:
    """How much of the pivot's text a source covers, conversation by conversation, with a few lines to look at."""

    def __init__(self, conversations: int) -> None:
        self.positions = np.zeros(conversations, dtype=np.int64)
        self.matched = np.zeros(conversations, dtype=np.int64)
        self.one_to_one = 0
        self.examples: list[dict[str, Any]] = []

    def add(
        self,
        pivot: Shard,
        source: Shard,
        alignment: Alignment,
        pivot_bytes: Sequence[bytes | None],
        source_bytes: Sequence[bytes | None],
    ) -> None:
        size = len(self.positions)
        self.positions += np.bincount(pivot.conversation_N, minlength=size)
        self.matched += np.bincount(pivot.conversation_N[alignment.matched_P], minlength=size)
        self.one_to_one += int(alignment.one_to_one_P.sum())
        partnered_S = np.zeros(len(source.gold_ids_N), dtype=bool)
        partnered_S[alignment.source_P[alignment.matched_P]] = True
        for conversation in np.unique(pivot.conversation_N)[: EXAMPLES - len(self.examples)]:
            of_pivot = np.flatnonzero(pivot.conversation_N == conversation)[:EXAMPLE_TOKENS]
            last = pivot.ends_N[of_pivot[-1]]
            of_source = np.flatnonzero((source.conversation_N == conversation) & (source.ends_N <= last))
            self.examples.append(
                {
                    "pivot": _tokens(pivot, of_pivot, alignment.matched_P, pivot_bytes),
                    "source": _tokens(source, of_source, partnered_S, source_bytes),
                }
            )

    def summary(self) -> dict[str, Any]:
        return {
            "positions": self.positions.tolist(),
            "matched": self.matched.tolist(),
            "one_to_one": self.one_to_one,
            "examples": self.examples,
        }

    def refuse_below(self, least: float, source: str) -> None:
        total = int(self.positions.sum())
        share = int(self.matched.sum()) / max(total, 1)
        if not self.matched.any() or share < least:
            raise DataError(
                f"source {source}: only {share:.1%} of the pivot's {total} reply positions begin where one of its own "
                f"tokens begins; align.min_matched asks for {least:.1%}. Its chat template may rewrite the replies: "
                "try represent.template=pivot, or leave this source out."
            )


def _tokens(
    shard: Shard, at: NDArray[np.intp], partnered: NDArray[np.bool_], token_bytes: Sequence[bytes | None]
) -> list[tuple[str, bool]]:
    texts = [token_bytes[id_] if id_ < len(token_bytes) else None for id_ in shard.gold_ids_N[at]]
    return [
        ("‹end›" if text is None else text.decode(errors="replace"), bool(matched))
        for text, matched in zip(texts, partnered[at], strict=True)
    ]
