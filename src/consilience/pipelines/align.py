"""The whole of `consilience align`: two tokenizers and chats in, an account of how well they meet out. No weights.

Shapes: P reply positions of the pivot, S of the source, N of either, over all conversations that both can read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.align import (
    VOCABULARY_MAPPINGS,
    Alignment,
    ChunkCount,
    TokenCount,
    align_spans,
    chunk_types,
    count_pairs,
    exact_matches,
    likeliest_partner,
    most_frequent,
    side_by_side,
    text_keys,
)
from consilience.chat import Rendered, render, token_bytes
from consilience.chat.template import template_of
from consilience.errors import BackendError, ConfigError, DataError, pick
from consilience.fuse.match import with_end
from consilience.models import load_tokenizer
from consilience.records import Conversation, read_conversations
from consilience.report import write_alignment_report
from consilience.stats import Estimate, ratio

OnProgress = Callable[[str, int, int], None]
Ints = NDArray[np.int64]

TEMPLATES = {
    "native": "each tokenizer reads its own chat template",
    "pivot": "the source reads the pivot's chat template",
}
FREQUENT = 50  # tokens listed on either side
EXAMPLES, EXAMPLE_TOKENS = 4, 60


@dataclass(frozen=True, kw_only=True, slots=True)
class AlignResult:
    """How well a source's tokens meet the pivot's over the replies of some chats."""

    pivot: str
    source: str
    chats: str
    template: str
    conversations: int  # read by both tokenizers
    set_aside: Mapping[str, int]  # the others, by reason
    pivot_positions: int
    source_positions: int
    matched: Estimate  # share of the pivot's positions
    one_to_one: Estimate  # share of the pivot's positions
    chunk_types: Mapping[str, ChunkCount]
    vocabulary: Mapping[str, int]  # the source's tokens that occur, by what the statistics mapping does with them
    right: Mapping[str, Estimate]  # by mapping: share of matched positions where it gives the very pivot token there;
    # "statistics_other_half" is counted on the other half of the prompts than the one it is judged on
    unmapped: Sequence[Mapping[str, Any]]  # source tokens without a mapping, by how often they occur
    unmatched: Sequence[Mapping[str, Any]]  # pivot tokens, by how often no source token begins where they do
    examples: Sequence[Sequence[tuple[Sequence[tuple[str, bool]], Sequence[tuple[str, bool]]]]]  # see _examples

    def to_json(self) -> dict[str, Any]:
        """The result for a file or a report; chunk types with their shares of the pivot's positions and bytes."""
        positions = sum(count.positions for count in self.chunk_types.values())
        size = sum(count.bytes for count in self.chunk_types.values())
        return {
            "pivot": self.pivot,
            "source": self.source,
            "chats": self.chats,
            "template": self.template,
            "conversations": self.conversations,
            "set_aside": dict(self.set_aside),
            "pivot_positions": self.pivot_positions,
            "source_positions": self.source_positions,
            "matched": self.matched.to_json(),
            "one_to_one": self.one_to_one.to_json(),
            "chunk_types": {
                name: count._asdict()
                | {"share_of_positions": count.positions / positions, "share_of_bytes": count.bytes / max(size, 1)}
                for name, count in self.chunk_types.items()
            },
            "vocabulary": dict(self.vocabulary),
            "right": {name: share.to_json() for name, share in self.right.items()},
            "unmapped": list(self.unmapped),
            "unmatched": list(self.unmatched),
        }


def align_report(
    pivot: str,
    source: str,
    chats: Path,
    *,
    limit: int | None = None,
    template: str = "native",
    html: Path | None = None,
    force: bool = False,
    on_progress: OnProgress = lambda what, done, total: None,
) -> AlignResult:
    """Aligns the replies of `chats` under two tokenizers (folders or hub names); `html` gets a page about it.

    `template` is one of TEMPLATES. An existing `html` is overwritten only with `force`. Raises `BackendError` for a
    tokenizer that cannot be loaded, `ConfigError` for one without a chat template, `DataError` when there is nothing
    to align or nothing matches.
    """
    pick(TEMPLATES, template, "template")
    if html is not None:
        _refuse_page(html, force)
    conversations = read_conversations(chats, limit=limit)
    ours, theirs = _tokenizer(pivot), _tokenizer(source)
    shared = _template_of(ours, pivot)
    if template == "native":
        _template_of(theirs, source)
    read, set_aside = _read_by_both(
        {"pivot": (ours, None), "source": (theirs, shared if template == "pivot" else None)},
        conversations,
        lambda done: on_progress("align", done, len(conversations)),
    )
    if not read:
        reason = next(iter(set_aside))
        raise DataError(f"none of the {len(conversations)} conversations can be read by both tokenizers; {reason}")
    kept = [conversations[index] for index in read]
    pivot_side = _Side.of([both[0] for both in read.values()], kept, ours)
    source_side = _Side.of([both[1] for both in read.values()], kept, theirs)
    alignment = align_spans(pivot_side.starts_N, pivot_side.ends_N, source_side.starts_N, source_side.ends_N)
    if not alignment.matched_P.any():
        raise DataError(
            f"nothing matched: none of the pivot's {len(pivot_side.ids_N)} reply positions begins where one of the "
            f"source's {len(source_side.ids_N)} does. Look at the replies in {chats}, or try --template pivot."
        )
    result = AlignResult(
        pivot=pivot,
        source=source,
        chats=str(chats),
        template=template,
        conversations=len(kept),
        set_aside=set_aside,
        pivot_positions=len(pivot_side.ids_N),
        source_positions=len(source_side.ids_N),
        chunk_types=chunk_types(alignment, pivot_side.starts_N, pivot_side.ends_N),
        **_measured(pivot_side, source_side, alignment, [chat.opening for chat in kept]),
        examples=_examples(pivot_side, source_side, alignment),
    )
    if html is not None:
        write_alignment_report(result.to_json() | {"examples": result.examples}, html)
    return result


def _refuse_page(html: Path, force: bool) -> None:
    """Before the work rather than after it."""
    if html.is_dir() or (html.exists() and not force):
        way_out = "Give --html a file" if html.is_dir() else "Give --force to overwrite it"
        raise ConfigError(f"{html} exists. {way_out}, or another name.")
    folder = html.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(f"{html} cannot be written: {folder} is no folder that can be written to. Make it first.")


def _tokenizer(name: str) -> Any:
    """A hub name has one slash; anything else that is not there is a misspelt path, and no hub need be asked."""
    if not Path(name).is_dir() and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise BackendError(f"no folder {name!r}. Expected a folder with a tokenizer, or a hub name (owner/model).")
    return load_tokenizer(name)


def _template_of(tokenizer: Any, name: str) -> str:
    try:
        return template_of(tokenizer, None).jinja
    except ConfigError:
        raise ConfigError(
            f"the tokenizer {name!r} has no chat template. Put a chat_template.jinja into its folder; "
            "for a source, --template pivot lends it the pivot's."
        ) from None


Both = tuple[Rendered, Rendered]


def _read_by_both(
    readers: Mapping[str, tuple[Any, str | None]],
    conversations: Sequence[Conversation],
    on_chat: Callable[[int], None],
) -> tuple[dict[int, Both], dict[str, int]]:
    """The conversations that both tokenizers can read, by index; the others counted by reason."""
    read: dict[int, Both] = {}
    set_aside: Counter[str] = Counter()
    for index, chat in enumerate(conversations):
        on_chat(index)
        rendered = []
        for side, (tokenizer, jinja) in readers.items():
            try:
                rendered.append(render(tokenizer, chat.messages, chat_template=jinja))
            except DataError as error:
                set_aside[f"{side}: {error}"] += 1
                break
        else:
            read[index] = (rendered[0], rendered[1])
    on_chat(len(conversations))
    return read, dict(set_aside.most_common())


@dataclass(frozen=True, slots=True)
class _Side:
    """One tokenizer's reply tokens over all conversations, in reading order."""

    ids_N: Ints
    conversation_N: Ints
    starts_N: Ints  # text_keys
    ends_N: Ints
    closing_ids: NDArray[np.int32]  # of the tokens that end the replies
    token_bytes: Sequence[bytes | None]
    tokenizer: Any

    @classmethod
    def of(cls, rendered: Sequence[Rendered], chats: Sequence[Conversation], tokenizer: Any) -> _Side:
        parts = []
        for index, (one, chat) in enumerate(zip(rendered, chats, strict=True)):
            at = one.reply_positions
            reply, starts, ends = one.reply_T[at], one.reply_starts_T[at], one.reply_ends_T[at]
            closes = (starts >= one.reply_bytes_T(chat.replies)[at]) & (ends > starts)
            parts.append((one.ids_T[at], np.full(len(at), index), reply, starts, ends, closes))
        ids_N, conversation_N, reply_N, start_N, end_N, closes_N = map(np.concatenate, zip(*parts, strict=True))
        return cls(
            ids_N=ids_N.astype(np.int64),
            conversation_N=conversation_N,
            starts_N=text_keys(conversation_N, reply_N, start_N),
            ends_N=text_keys(conversation_N, reply_N, end_N),
            closing_ids=ids_N[closes_N],
            token_bytes=token_bytes(tokenizer),
            tokenizer=tokenizer,
        )

    def per_chat(self, chosen_N: NDArray[np.bool_], chats: int) -> NDArray[np.int64]:
        """How many of the chosen positions each conversation has."""
        return np.bincount(self.conversation_N[chosen_N], minlength=chats)

    def text(self, id_: int) -> str:
        """A token to be read: control tokens by name, bytes that are no text by themselves as \\xe4."""
        stands_for = self.token_bytes[id_]
        if stands_for is None:
            return str(self.tokenizer.convert_ids_to_tokens(id_))
        return stands_for.decode(errors="backslashreplace")

    def listed(self, tokens: Sequence[TokenCount]) -> list[dict[str, Any]]:
        return [{"token": self.text(token.id)} | token._asdict() for token in tokens]


def _measured(pivot: _Side, source: _Side, alignment: Alignment, openings: Sequence[str]) -> dict[str, Any]:
    """The shares, with one prompt as the unit, and what became of the source's vocabulary."""
    chats = len(openings)

    def share(chosen_P: NDArray[np.bool_], of_P: NDArray[np.bool_]) -> Estimate:
        parts, wholes = pivot.per_chat(chosen_P, chats), pivot.per_chat(of_P, chats)
        return ratio(parts, wholes, openings, unit_kind="prompts")

    matched_P = alignment.matched_P
    everywhere_P = np.ones_like(matched_P)
    shape = (len(source.token_bytes), len(pivot.token_bytes))
    partner_ids_P = np.where(matched_P, source.ids_N[alignment.source_P], -1)
    matches = exact_matches(
        with_end(source.token_bytes, source.closing_ids, shape[0]),
        with_end(pivot.token_bytes, pivot.closing_ids, shape[1]),
    )

    def partners(mapping: str, counted_P: NDArray[np.bool_]) -> Ints:
        counts = count_pairs(partner_ids_P[counted_P], pivot.ids_N[counted_P], shape)
        return likeliest_partner(VOCABULARY_MAPPINGS[mapping](counts, matches))

    def is_right(partner: Ints) -> NDArray[np.bool_]:
        return matched_P & (partner[partner_ids_P] == pivot.ids_N)

    partner_of = {name: partners(name, matched_P) for name in VOCABULARY_MAPPINGS}
    right_P = {name: is_right(partner) for name, partner in partner_of.items()}
    number_of = {opening: number for number, opening in enumerate(dict.fromkeys(openings))}
    half_P = np.array([number_of[opening] % 2 == 0 for opening in openings])[pivot.conversation_N]
    one, other = (is_right(partners("statistics", matched_P & half)) for half in (~half_P, half_P))
    right_P["statistics_other_half"] = np.where(half_P, one, other)
    occurring = np.unique(source.ids_N)
    exact, chosen = partner_of["exact"][occurring], partner_of["statistics"][occurring]
    same = (chosen >= 0) & (chosen == exact)
    unmapped_S = partner_of["statistics"][source.ids_N] < 0
    return {
        "matched": share(matched_P, everywhere_P),
        "one_to_one": share(alignment.one_to_one_P, everywhere_P),
        "vocabulary": {
            "exact": int(same.sum()),
            "statistics": int(((chosen >= 0) & ~same).sum()),
            "unmapped": int((chosen < 0).sum()),
        },
        "right": {name: share(chosen_P, matched_P) for name, chosen_P in right_P.items()},
        "unmapped": source.listed(most_frequent(source.ids_N, unmapped_S, FREQUENT)),
        "unmatched": pivot.listed(most_frequent(pivot.ids_N, ~matched_P, FREQUENT)),
    }


Box = tuple[str, bool]  # a token's text, and whether a token of the other side begins at the same byte


def _examples(pivot: _Side, source: _Side, alignment: Alignment) -> list[list[tuple[list[Box], list[Box]]]]:
    """The beginnings of the first conversations' replies, chunk by chunk: the pivot's tokens and the source's."""
    partnered_S = np.zeros(len(source.ids_N), dtype=bool)
    partnered_S[alignment.source_P[alignment.matched_P]] = True
    examples = []
    for conversation in np.unique(pivot.conversation_N)[:EXAMPLES]:
        of_pivot = np.flatnonzero(pivot.conversation_N == conversation)[:EXAMPLE_TOKENS]
        last = pivot.ends_N[of_pivot[-1]]
        of_source = np.flatnonzero((source.conversation_N == conversation) & (source.ends_N <= last))
        part = Alignment(alignment.source_P[of_pivot], alignment.chunk_P[of_pivot], alignment.chunk_S[of_source])
        examples.append(
            [
                (
                    [(pivot.text(int(pivot.ids_N[at])), bool(alignment.matched_P[at])) for at in of_pivot[ours]],
                    [(source.text(int(source.ids_N[at])), bool(partnered_S[at])) for at in of_source[theirs]],
                )
                for ours, theirs in side_by_side(part, pivot.starts_N[of_pivot], source.starts_N[of_source])
            ]
        )
    return examples
