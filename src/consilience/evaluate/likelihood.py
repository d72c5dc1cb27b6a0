"""Held-out likelihood: how well a model predicts replies it has not seen, in a unit that tokenizers do not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from consilience.chat import render
from consilience.errors import DataError
from consilience.models import Model
from consilience.records import Conversation


@dataclass(frozen=True, slots=True)
class ReplyLikelihood:
    """Negative log-likelihood of a conversation's replies: nats in all, over so many bytes of their text.

    `status` is "scored", "truncated" (longer than the limit: not scored) or why the model could not read it.
    The token that ends a reply is left out: it is no text, and some templates have none.
    """

    id: str
    group: str
    opening: str  # the independent unit: chats that begin with the same prompt are not independent of one another
    nats: float
    bytes: int
    tokens: int
    status: str


def held_out_likelihood(
    chat_model: Model,
    conversations: Sequence[Conversation],
    *,
    max_tokens: int,
    batch_tokens: int = 8192,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[ReplyLikelihood]:
    """One record per conversation, in order, under the model's own chat template."""
    records: list[ReplyLikelihood | None] = []
    on_progress(0, len(conversations))
    ids, positions, texts = [], [], []
    longest = chat_model.context(max_tokens)
    for chat in conversations:
        try:
            one = render(chat_model.tokenizer, chat.messages, max_tokens=longest)
        except DataError as error:
            records.append(_not_scored(chat, str(error)))
            continue
        if one.truncated:
            records.append(_not_scored(chat, "truncated"))
            continue
        reply_bytes_T = one.reply_bytes_T(chat.replies)
        at = one.reply_positions
        at = at[(one.reply_starts_T < reply_bytes_T)[at]]
        if not len(at):
            records.append(_not_scored(chat, "empty reply"))
            continue
        ids.append(one.ids_T)
        positions.append(at)
        # A last token may reach into what closes the reply, which counts as one byte more.
        covered = np.minimum(one.reply_ends_T, reply_bytes_T) - one.reply_starts_T
        texts.append((len(records), chat, int(covered[at].sum())))
        records.append(None)
    names = [chat.id for _, chat, _ in texts]
    scored = chat_model.score(ids, positions, batch_tokens=batch_tokens, names=names)
    for done, (index, scores) in enumerate(scored, start=1):
        place, chat, size = texts[index]
        nats = -float(scores.gold_logprobs_N.sum(dtype=np.float64))
        records[place] = ReplyLikelihood(chat.id, chat.group, chat.opening, nats, size, len(positions[index]), "scored")
        on_progress(done, len(ids))
    return [record for record in records if record is not None]


def _not_scored(chat: Conversation, status: str) -> ReplyLikelihood:
    return ReplyLikelihood(chat.id, chat.group, chat.opening, 0.0, 0, 0, status)
