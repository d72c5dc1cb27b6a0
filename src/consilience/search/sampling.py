"""The frozen large model: K continuations of at most L tokens of every hypothesis, any number of prompts at once.

Hypotheses are nodes of one token tree per prompt: the prompt is read once, a survivor's last token once for all of its
successors, and successors that begin alike are read once for as long as they do.

Shapes: N nodes, V vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from consilience.errors import ConfigError, DataError
from consilience.models import context_of
from consilience.models.nucleus import keep_likely
from consilience.models.sample import end_ids
from consilience.rng import stream
from consilience.search.forward import TreeModel
from consilience.search.selection import draw, entropy
from consilience.search.settings import Finish, Hypothesis, Prompt, SearchSettings
from consilience.search.texts import NOTHING, Said, Speaker, completes_stop, prompt_ids, same_vocabulary, shown
from consilience.search.tree import Node, Tree


@dataclass
class Opened:
    """One prompt before the large model (or before each of several, whose logits are summed)."""

    prompt: Prompt
    settings: SearchSettings
    trees: list[Tree]
    after_prompt_V: Tensor  # logits
    speaker: Speaker
    prompt_tokens: int
    limit: int  # tokens of the reply
    rng: np.random.Generator = field(init=False)
    published_rng: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = stream(self.prompt.seed, "search", self.prompt.stream or self.prompt.id)
        self.published_rng = torch.Generator().manual_seed(self.prompt.seed)


@dataclass
class Wanted:
    """Continuations to be sampled: one of every parent, which may come several times, of at most `tokens` tokens."""

    opened: Opened
    parents: Sequence[Hypothesis]
    tokens: int | None = None  # None: to the end


class Place(NamedTuple):
    """Where a hypothesis goes on."""

    nodes: tuple[Node, ...]  # one in each tree
    said: Said = NOTHING  # how much of its ids is in its text


@dataclass
class _Row:
    """A hypothesis in the making."""

    parent: Hypothesis
    nodes: tuple[Node, ...]  # one in each tree
    ids: list[int]
    left: int  # tokens still to be drawn
    logprob: float  # of what was drawn, in the distributions it was drawn from, in nats
    entropy: float = 0.0  # of the distribution that the first of these tokens was drawn from, in bits
    finish: Finish | None = None
    end: int | None = None


class Drawn(NamedTuple):
    """What was drawn for a row, and from what."""

    token: int
    prob: float
    entropy: float


class LargeModel:
    """A chat model that continues hypotheses; its logits, or a weighted sum of several models' logits."""

    def __init__(
        self, model: TreeModel, *, raw: bool = False, added: Sequence[tuple[TreeModel, float]] = (), speaks: bool = True
    ) -> None:
        """`added` models with their weights must have the same tokens: emulated fine-tuning adds +β and −β.

        Without `speaks` hypotheses have no text, which a guide of the same tokens does not need.
        """
        self.models = [model, *(other for other, _ in added)]
        self.weights = [1.0, *(weight for _, weight in added)]
        self.raw, self.speaks = raw, speaks
        self.tokenizer = model.chat_model.tokenizer
        for other, _ in added:
            if not same_vocabulary(self.tokenizer, other.chat_model.tokenizer):
                raise ConfigError(
                    f"{model.chat_model.name} and {other.chat_model.name} have different tokenizers, so their logits "
                    "cannot be added. Use chunk-level beam search, which meets the guide in text."
                )
        self.vocabulary = min(each.chat_model.vocabulary_size for each in self.models)
        self.ends = set(end_ids(model.chat_model))

    def open(self, prompt: Prompt, settings: SearchSettings) -> Opened:
        """Reads the prompt. Raises `DataError` when it leaves no room, or when the chat template refuses it."""
        read = []
        limit = settings.max_new_tokens
        for model in self.models:
            ids = prompt_ids(model.chat_model.tokenizer, prompt.messages, raw=self.raw)
            room = context_of(model.model) - len(ids)
            if room < 1:
                raise DataError(
                    f"prompt {prompt.id!r} has {len(ids)} tokens, but {model.chat_model.name} reads "
                    f"{len(ids) + room}. Shorten the prompt, or take a model with a longer context."
                )
            limit = min(limit, room)
            read.append(ids)
        planted = [model.plant(ids) for model, ids in zip(self.models, read)]
        return Opened(
            prompt=prompt,
            settings=settings,
            trees=[tree for tree, _ in planted],
            after_prompt_V=self._sum([logits_V[None] for _, logits_V in planted])[0],
            speaker=Speaker(self.tokenizer, read[0]),
            prompt_tokens=len(read[0]),
            limit=limit,
        )

    def root(self, opened: Opened) -> Hypothesis:
        """The empty reply."""
        return Hypothesis(ids=(), text="", place=Place(tuple(tree.tip for tree in opened.trees)))

    def extend(self, wanted: Sequence[Wanted]) -> list[list[Hypothesis]]:
        """The continuations, in the order of the parents. A parent that is finished comes back as it is."""
        rows_of = [[self._row(want, parent) for parent in want.parents] for want in wanted]
        under_way = [(want.opened, rows) for want, rows in zip(wanted, rows_of)]
        while under_way := [(opened, rows) for opened, rows in under_way if any(row.left for row in rows)]:
            logits_NV, at = self.logits(
                [(opened, [row.nodes for row in rows if row.left]) for opened, rows in under_way]
            )
            for opened, rows, drawn in self._draw(under_way, logits_NV, at):
                for row, each in zip(rows, drawn):
                    if row.left:
                        self._take(opened, row, each)
        return [[self._hypothesis(want.opened, row) for row in rows] for want, rows in zip(wanted, rows_of)]

    def _row(self, want: Wanted, parent: Hypothesis) -> _Row:
        left = want.opened.limit - len(parent.ids) if want.tokens is None else want.tokens
        return _Row(parent, parent.place.nodes, list(parent.ids), 0 if parent.finish else left, parent.logprob)

    def logits(self, wanted: Sequence[tuple[Opened, Sequence[tuple[Node, ...]]]]) -> tuple[Tensor, dict[Node, int]]:
        """The logits [N, V] after hypotheses, each given as its nodes, once for those that agree; and by a hypothesis's
        first node which of the N are its own."""
        first: list[Opened] = []  # prompts whose rows are still empty: what follows them is known
        asked: list[tuple[Opened, list[tuple[Node, ...]]]] = []
        for opened, several in wanted:
            distinct = list(dict.fromkeys(several))
            if distinct[0][0] is opened.trees[0].tip:
                first.append(opened)
            else:
                asked.append((opened, distinct))
        at: dict[Node, int] = {}
        for nodes in (nodes for _, distinct in asked for nodes in distinct):
            at[nodes[0]] = len(at)
        for opened in first:
            at[opened.trees[0].tip] = len(at)
        parts = [opened.after_prompt_V[None] for opened in first]
        if asked:
            read = [
                model.forward(
                    [(opened.trees[which], [nodes[which] for nodes in distinct]) for opened, distinct in asked]
                )
                for which, model in enumerate(self.models)
            ]
            parts = [self._sum(read), *parts]
        return torch.cat(parts) if len(parts) > 1 else parts[0], at

    def _sum(self, logits_of: Sequence[Tensor]) -> Tensor:
        if len(logits_of) == 1:
            return logits_of[0]
        return torch.stack(
            [weight * logits_NV[:, : self.vocabulary] for weight, logits_NV in zip(self.weights, logits_of)]
        ).sum(0)

    def _draw(
        self, under_way: Sequence[tuple[Opened, Sequence[_Row]]], logits_NV: Tensor, at: dict[Node, int]
    ) -> Iterator[tuple[Opened, Sequence[_Row], Sequence[Drawn]]]:
        """A token for every row of every prompt; those of rows that have ended mean nothing.

        A prompt's luck is its own, whatever else is in the batch, and each row has its part of it, ended or not.
        """
        alike: dict[tuple[float, int, float], list[tuple[Opened, Sequence[_Row]]]] = {}
        for opened, rows in under_way:
            settings = opened.settings
            if settings.mode == "published":
                yield opened, rows, _published_draw(opened, logits_NV, [at.get(row.nodes[0], 0) for row in rows])
            else:
                alike.setdefault((settings.temperature, settings.top_k, settings.top_p), []).append((opened, rows))
        for (temperature, top_k, top_p), several in alike.items():
            kept = keep_likely(logits_NV, temperature=temperature, top_k=top_k, top_p=top_p)
            self.models[0].refuse_nan(kept.probs_NJ)
            uniforms = np.concatenate([opened.rng.random(len(rows)) for opened, rows in several])
            which = [at.get(row.nodes[0], 0) for _, rows in several for row in rows]
            spread = entropy(kept).tolist()
            drawn = map(Drawn, *draw(kept, which, uniforms), (spread[n] for n in which))
            for opened, rows in several:
                yield opened, rows, list(islice(drawn, len(rows)))

    def _take(self, opened: Opened, row: _Row, drawn: Drawn) -> None:
        token = drawn.token
        row.logprob += math.log(max(drawn.prob, sys.float_info.min))
        if len(row.ids) == len(row.parent.ids):
            row.entropy = drawn.entropy
        if token in self.ends:
            row.finish, row.end, row.left = Finish.STOP, token, 0
            return
        row.ids.append(token)
        row.nodes = tuple(tree.after(node, token)[0] for tree, node in zip(opened.trees, row.nodes))
        row.left -= 1
        if self.has_stopped(opened, row.ids):
            row.finish, row.left = Finish.STOP, 0
        elif len(row.ids) == opened.limit:
            row.finish, row.left = Finish.LENGTH, 0

    def has_stopped(self, opened: Opened, ids: Sequence[int]) -> bool:
        """Whether the newest of `ids` completed a stop text."""
        return completes_stop(partial(self.show, opened), opened.settings.stop, ids)

    def _hypothesis(self, opened: Opened, row: _Row) -> Hypothesis:
        parent = row.parent
        if parent.finish:
            return parent
        text, said = "", NOTHING
        if opened.settings.mode == "published":
            text = self.show(opened, row.ids)
        elif self.speaks:
            text, said = opened.speaker.go_on(parent.text, parent.place.said, row.ids)
        return Hypothesis(
            ids=tuple(row.ids),
            text=text,
            finish=row.finish,
            end=row.end,
            logprob=row.logprob,
            entropy=row.entropy,
            place=Place(row.nodes, said),
            mark=parent.mark,
        )

    def keep(self, opened: Opened, hypotheses: Sequence[Hypothesis]) -> None:
        """Forgets what no unfinished one of `hypotheses` goes on from."""
        live = [hypothesis.place.nodes for hypothesis in hypotheses if hypothesis.finish is None]
        for which, tree in enumerate(opened.trees):
            tree.keep(nodes[which] for nodes in live)

    def close(self, opened: Opened) -> None:
        for model, tree in zip(self.models, opened.trees):
            model.fell(tree)

    def show(self, opened: Opened, ids: Sequence[int]) -> str:
        """A reply as its reader sees it; one that goes on with plain text keeps the blank it may begin with."""
        if self.raw and opened.settings.mode != "published":
            return opened.speaker.show(ids)
        return shown(self.tokenizer, ids)


def _published_draw(opened: Opened, logits_NV: Tensor, at: Sequence[int]) -> list[Drawn]:
    """`torch.multinomial` over all rows at once, as the published code draws after `torch.manual_seed(seed)`."""
    settings = opened.settings
    logits_NV = TemperatureLogitsWarper(settings.temperature)(None, logits_NV)  # as published, over the vocabulary
    if settings.top_k:
        logits_NV = TopKLogitsWarper(settings.top_k)(None, logits_NV)
    if settings.top_p < 1:
        logits_NV = TopPLogitsWarper(settings.top_p)(None, logits_NV)
    probs = logits_NV.softmax(-1)[list(at)].cpu()
    tokens = torch.multinomial(probs, 1, generator=opened.published_rng)
    spread = -torch.special.xlogy(probs, probs).sum(-1) / math.log(2)
    return [
        Drawn(*each) for each in zip(tokens[:, 0].tolist(), probs.gather(-1, tokens)[:, 0].tolist(), spread.tolist())
    ]
