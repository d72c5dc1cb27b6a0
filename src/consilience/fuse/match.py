"""Match a source's representation to the pivot's: sequence alignment, vocabulary mapping, and how good both are.

Shapes: P positions of the pivot in a shard, S of the source.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from safetensors.numpy import load_file, save_file
from scipy import sparse

from consilience.align import (
    END,
    SEQUENCE_ALIGNMENTS,
    VOCABULARY_MAPPINGS,
    Alignment,
    PairCounter,
    Spelling,
    TokenText,
    Vocabularies,
    exact_matches,
)
from consilience.chat.pieces import BLANK_MARK, Style, style_of
from consilience.config import Settings, known
from consilience.errors import ConfigError, DataError, pick
from consilience.fuse.represent import Representation, Shard
from consilience.fuse.teach import Link
from consilience.run import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

EXAMPLES, EXAMPLE_TOKENS = 3, 24
THREADS = 4  # at most: each has a shard of either model in memory


class AlignSettings(Settings):
    """How a source's positions and tokens are matched with the pivot's."""

    sequence: Annotated[str, known(lambda: SEQUENCE_ALIGNMENTS, "sequence alignment")] = Field(
        "spans", description=f"one of {', '.join(SEQUENCE_ALIGNMENTS)}"
    )
    vocabulary: Annotated[str, known(lambda: VOCABULARY_MAPPINGS, "vocabulary mapping")] = Field(
        "statistics", description=f"one of {', '.join(VOCABULARY_MAPPINGS)}"
    )
    min_matched: float = Field(0.2, ge=0, le=1, description="least share of pivot positions that must match")


class Match:
    """A finished `align` folder of one source."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.quality: dict[str, Any] = json.loads((folder / "quality.json").read_text())
        self._links: dict[str, Link] = {}

    def alignment(self, index: int) -> Alignment:
        """The sequence alignment of shard number `index`."""
        return Alignment(**load_file(self.folder / f"alignment-{index:05d}.safetensors"))

    def vocabulary(self, name: str) -> Any:
        """The vocabulary mapping called `name`, a sparse [source vocabulary, pivot vocabulary] matrix."""
        return self.link(name).mapping

    def link(self, vocabulary: str) -> Link:
        """What connects the two vocabularies, by the mapping of that name; made once, for every target."""
        if vocabulary not in self._links:
            self._links[vocabulary] = Link(self.vocabularies, vocabulary)
        return self._links[vocabulary]

    @cached_property
    def vocabularies(self) -> Vocabularies:
        """What is known of the tokens of source and pivot, END for the token that closes a reply."""
        texts = load_file(self.folder / "tokens.safetensors")
        return Vocabularies(
            counts=sparse.load_npz(self.folder / "counts.npz"),
            matches=sparse.load_npz(self.folder / "matches.npz"),
            source_bytes=_unpacked(texts, "source"),
            pivot_bytes=_unpacked(texts, "pivot"),
        )


def match(
    pivot: Representation,
    source: Representation,
    pivot_bytes: Sequence[bytes | None],
    source_bytes: Sequence[bytes | None],
    settings: AlignSettings,
    folder: Path,
    *,
    spellings: tuple[Spelling, Spelling] | None = None,
) -> Match:
    """Aligns `source` to `pivot` shard by shard, counts which tokens begin together, and writes both to `folder`.

    `pivot_bytes` and `source_bytes` give the text of every token (None: a control token), `spellings` how pivot and
    source write it, which only the published sequence alignments ask for. Raises `DataError` when none of the pivot's
    positions finds a partner, or less than `settings.min_matched` of them do.
    """
    align = pick(SEQUENCE_ALIGNMENTS, settings.sequence, "sequence alignment")
    pivot_spelling, source_spelling = spellings or (None, None)
    shape = (source.vocabulary_size, pivot.vocabulary_size)
    counter = PairCounter(shape)

    def match_shard(index: int) -> _MatchedShard:
        ours, theirs = pivot.shard(index), source.shard(index)
        alignment = align(
            TokenText(ours.starts_N, ours.ends_N, ours.gold_ids_N, pivot_spelling),
            TokenText(theirs.starts_N, theirs.ends_N, theirs.gold_ids_N, source_spelling),
        )
        at = alignment.matched_P
        counter.add(theirs.gold_ids_N[alignment.source_P[at]], ours.gold_ids_N[at])
        save_file(alignment._asdict(), folder / f"alignment-{index:05d}.safetensors")
        return _MatchedShard.of(ours, theirs, alignment, pivot_bytes, source_bytes)

    with ThreadPoolExecutor(min(THREADS, os.cpu_count() or 1)) as pool:
        shards = [*pool.map(match_shard, range(max(pivot.shards, source.shards)))]
    source_end, pivot_end = (np.concatenate(ids) for ids in zip(*(shard.closing_ids for shard in shards), strict=True))
    source_texts, pivot_texts = with_end(source_bytes, source_end, shape[0]), with_end(pivot_bytes, pivot_end, shape[1])
    sparse.save_npz(folder / "counts.npz", counter.total())
    sparse.save_npz(folder / "matches.npz", exact_matches(source_texts, pivot_texts))
    save_file(_packed("source", source_texts) | _packed("pivot", pivot_texts), folder / "tokens.safetensors")
    quality = _quality(shards, pivot.manifest["conversations"])
    write_json(folder / "quality.json", quality)
    _refuse_below(settings.min_matched, quality, source.manifest["model"])
    return Match(folder)


def spelling_of(tokenizer: PreTrainedTokenizerBase, size: int) -> Spelling:
    """How `tokenizer` writes the tokens of a vocabulary of `size`, for the published sequence alignments.

    Raises `ConfigError` for a vocabulary without a mark for the blank before a word: they cannot read it.
    """
    style = style_of(tokenizer)
    if style is Style.WORDPIECE:
        raise ConfigError(
            f"tokenizer {tokenizer.name_or_path!r} marks what goes on with a word (##), not the blank before one, and "
            "the published sequence alignments cannot read that. Take align.sequence=spans."
        )
    mark = {Style.BYTE_LEVEL: "Ġ", Style.SENTENCEPIECE: BLANK_MARK, Style.TEXT: " "}[style]
    ids = range(min(size, len(tokenizer)))
    padding = [""] * (size - len(ids))  # rows of the head that no token has
    raw = [token or "" for token in tokenizer.convert_ids_to_tokens([*ids])]
    return Spelling([*raw, *padding], [*(str(tokenizer.decode([id_])) for id_ in ids), *padding], mark)


def _closing_ids(shard: Shard) -> NDArray[np.int32]:
    """The ids that close the replies of a shard; of several closing tokens only the first says that the text ends."""
    return shard.gold_ids_N[shard.closing_N & (shard.end_N > shard.start_N)]


def with_end(token_bytes: Sequence[bytes | None], end_ids: NDArray[np.int32], size: int) -> list[bytes | None]:
    """`token_bytes` over the whole head (padded rows have no text), with END for the token that closes replies."""
    table: list[bytes | None] = [*token_bytes[:size], *[None] * (size - len(token_bytes))]
    if len(end_ids):
        table[int(np.bincount(end_ids).argmax())] = END
    return table


def _packed(side: str, texts: Sequence[bytes | None]) -> dict[str, NDArray[Any]]:
    """The texts of a vocabulary end to end, where each one ends, and which tokens have one at all."""
    return {
        f"{side}_text": np.frombuffer(b"".join(text or b"" for text in texts), dtype=np.uint8),
        f"{side}_ends": np.cumsum([len(text or b"") for text in texts], dtype=np.int32),
        f"{side}_is_text": np.array([text is not None for text in texts], dtype=bool),
    }


def _unpacked(packed: Mapping[str, NDArray[Any]], side: str) -> list[bytes | None]:
    text, ends = packed[f"{side}_text"].tobytes(), packed[f"{side}_ends"].tolist()
    spans = zip([0, *ends[:-1]], ends, packed[f"{side}_is_text"].tolist(), strict=True)
    return [text[start:end] if is_text else None for start, end, is_text in spans]


class _MatchedShard(NamedTuple):
    """How much of the pivot's text in one shard a source covers, with a few lines to look at. C conversations."""

    conversation_C: NDArray[np.int32]  # those that the shard has positions of
    positions_C: NDArray[np.int64]
    matched_C: NDArray[np.int64]
    one_to_one: int
    closing_ids: tuple[NDArray[np.int32], NDArray[np.int32]]  # source's and pivot's, one per reply
    examples: list[dict[str, Any]]

    @classmethod
    def of(
        cls,
        pivot: Shard,
        source: Shard,
        alignment: Alignment,
        pivot_bytes: Sequence[bytes | None],
        source_bytes: Sequence[bytes | None],
    ) -> _MatchedShard:
        conversation_C, number_P = np.unique(pivot.conversation_N, return_inverse=True)
        size, matched_P = len(conversation_C), alignment.matched_P
        partnered_S = np.zeros(len(source.gold_ids_N), dtype=bool)
        partnered_S[alignment.source_P[matched_P]] = True
        examples = []
        for conversation in conversation_C[:EXAMPLES]:
            of_pivot = np.flatnonzero(pivot.conversation_N == conversation)[:EXAMPLE_TOKENS]
            last = pivot.ends_N[of_pivot[-1]]
            of_source = np.flatnonzero((source.conversation_N == conversation) & (source.ends_N <= last))
            examples.append(
                {
                    "pivot": _tokens(pivot, of_pivot, matched_P, pivot_bytes),
                    "source": _tokens(source, of_source, partnered_S, source_bytes),
                }
            )
        return cls(
            conversation_C,
            np.bincount(number_P, minlength=size),
            np.bincount(number_P[matched_P], minlength=size),
            int(alignment.one_to_one_P.sum()),
            (_closing_ids(source), _closing_ids(pivot)),
            examples,
        )


def _quality(shards: Sequence[_MatchedShard], conversations: int) -> dict[str, Any]:
    """What `quality.json` holds: positions and matched ones by conversation, and the first examples."""
    positions, matched = np.zeros((2, conversations), dtype=np.int64)
    for shard in shards:
        positions[shard.conversation_C] += shard.positions_C
        matched[shard.conversation_C] += shard.matched_C
    return {
        "positions": positions.tolist(),
        "matched": matched.tolist(),
        "one_to_one": sum(shard.one_to_one for shard in shards),
        "examples": [example for shard in shards for example in shard.examples][:EXAMPLES],
    }


def _refuse_below(least: float, quality: Mapping[str, Any], source: str) -> None:
    total, matched = sum(quality["positions"]), sum(quality["matched"])
    share = matched / max(total, 1)
    if not matched or share < least:
        raise DataError(
            f"source {source}: only {share:.1%} of the pivot's {total} reply positions stand beside one of its "
            f"own; align.min_matched asks for {least:.1%}. Its chat template may rewrite the replies: "
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
