"""A model as a coder: texts in, annotations out, each with a label or a named reason why there is none.

Shapes: N texts, K labels, R orders of the labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.annotate.answers import Status, read_answer
from consilience.annotate.codebook import JOINT, Codebook, Level
from consilience.annotate.corrections import Affine
from consilience.annotate.engines import Engine, Messages
from consilience.annotate.examples import chooser_of
from consilience.annotate.injection import flags_of
from consilience.annotate.recipe import StrategySettings
from consilience.annotate.strategies import STRATEGIES, Ask, Asked, Shot, Wording, answer_of
from consilience.models import Prompt, Reply, ReplyStatus, Sampling
from consilience.records import Message

Floats = NDArray[np.float64]
OF_REPLIES = {
    ReplyStatus.EMPTY: Status.EMPTY,
    ReplyStatus.NO_ROOM: Status.TRUNCATED,
    ReplyStatus.NOT_ASKED: Status.ERROR,
    ReplyStatus.REFUSED: Status.REFUSED,
    ReplyStatus.ERROR: Status.ERROR,
}


@dataclass(frozen=True, slots=True)
class Annotation:
    """One text coded. Only `ok` has a label.

    `probabilities` are over the labels, after correction; `logprobs` the scores in nats before it; `mass` how much of
    the model's probability was on the labels at all. `raw` are the model's replies as they came, reasoning included.
    """

    id: str
    status: Status
    label: str | None = None
    probabilities: Mapping[str, float] | None = None
    logprobs: Mapping[str, float] | None = None
    mass: float | None = None
    raw: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        """For a line of a file; what is not there is left out."""
        row: dict[str, Any] = {"id": self.id, "label": self.label, "status": str(self.status)}
        if self.probabilities is not None:
            row["p"] = {name: _rounded(p) for name, p in self.probabilities.items()}
        if self.logprobs is not None:
            row["logprobs"] = {name: _rounded(score) for name, score in self.logprobs.items()}
            row["mass"] = _rounded(self.mass or 0.0)
        row |= {"raw": [*self.raw]} if self.raw else {}
        row |= {"flags": [*self.flags]} if self.flags else {}
        return row | ({"detail": self.detail} if self.detail else {})


@dataclass(frozen=True)
class Coder:
    """One configuration, ready to code: an engine with a strategy, under a codebook."""

    engine: Engine
    codebook: Codebook
    strategy: StrategySettings
    wording: Wording = field(default_factory=Wording)
    pool: tuple[Shot, ...] = ()
    correction: Affine | None = None
    seed: int = 0

    def code(self, ids: Sequence[str], texts: Sequence[str]) -> list[Annotation]:
        """The texts' annotations, in order. A blank text is not asked about."""
        asked = [i for i, text in enumerate(texts) if text.strip()]
        answer = self._by_scores if self.strategy.answer in ("labels", "letters") else self._by_replies
        found: dict[int, Annotation] = {}
        if asked:
            annotations = answer([ids[i] for i in asked], [texts[i] for i in asked])
            found = dict(zip(asked, annotations, strict=True))
        return [
            replace(found[i], flags=tuple(flags_of(text, self.codebook)))
            if i in found
            else Annotation(ids[i], Status.EMPTY, detail="the text is blank")
            for i, text in enumerate(texts)
        ]

    def ask(self, text: str, *, order: tuple[int, ...] = (), format: str | None = None) -> Ask:
        """What the strategy is given for one text."""
        own = "letter" if self.strategy.answer == "letters" else self.strategy.format
        return Ask(
            codebook=self.codebook,
            text=text,
            wording=self.wording,
            format=format or own,
            order=order,
            shots=self._shots(text),
            persona=self.strategy.persona,
        )

    def scores(self, texts: Sequence[str], ids: Sequence[str] = ()) -> tuple[Floats, list[tuple[str, ...]]]:
        """Log-probabilities of the labels before correction, [N, K], and the reasoning that came before them.

        Over several orders of the labels it is the probabilities that are averaged: their sum stays the mass.
        """
        orders = self.orders()
        scores_RNK = []
        raw: list[tuple[str, ...]] = [() for _ in texts]
        for number, order in enumerate(orders):
            asks = [self.ask(text, order=order) for text in texts]
            prompts, reasoning = self._prompts(asks, [f"{id_}/{number}" for id_ in ids or map(str, range(len(texts)))])
            options = [answer_of(asks[0], name) for name in self.codebook.names]
            scores_RNK.append(self.engine.score(prompts, options))
            raw = [(*before, *new) for before, new in zip(raw, reasoning)]
        stacked_RNK = np.array(scores_RNK)
        top_NK = stacked_RNK.max(0)
        return top_NK + np.log(np.exp(stacked_RNK - top_NK).mean(0)), raw

    def orders(self) -> list[tuple[int, ...]]:
        """The orders in which the labels are shown: rotations of the codebook's, so that places are taken in turn."""
        count = len(self.codebook.labels)
        turns = [round(r * count / self.strategy.orders) for r in range(self.strategy.orders)]
        return [tuple((place + turn) % count for place in range(count)) for turn in dict.fromkeys(turns)] or [()]

    @cached_property
    def _shots(self) -> Callable[[str], tuple[Shot, ...]]:
        return chooser_of(self.strategy.choose, self.pool, self.strategy.shots, self.seed)

    def _by_scores(self, ids: Sequence[str], texts: Sequence[str]) -> list[Annotation]:
        if self.codebook.level is Level.MULTI_LABEL:
            return self._by_yes_and_no(ids, texts)
        scores_NK, raw = self.scores(texts, ids)
        names = self.codebook.names
        annotations = []
        for id_, scores_K, said in zip(ids, scores_NK, raw):
            if not np.isfinite(scores_K).all():
                annotations.append(_no_room(id_, said))
                continue
            corrected_K = self.correction(scores_K[None])[0] if self.correction else scores_K
            p_K = _softmax(corrected_K)
            annotations.append(
                Annotation(
                    id=id_,
                    status=Status.OK,
                    label=names[int(p_K.argmax())],
                    probabilities=dict(zip(names, p_K.tolist())),
                    logprobs=dict(zip(names, scores_K.tolist())),
                    mass=float(np.exp(scores_K).sum()),
                    raw=said,
                )
            )
        return annotations

    def _by_yes_and_no(self, ids: Sequence[str], texts: Sequence[str]) -> list[Annotation]:
        """Multi-label: a question of yes or no about every label; `probabilities` are those of yes."""
        names = self.codebook.names
        scores_KN2 = []
        raw: list[tuple[str, ...]] = [() for _ in texts]
        for name in names:
            asks = [self.ask(text, format=f"label:{name}") for text in texts]
            prompts, reasoning = self._prompts(asks, [f"{id_}/{name}" for id_ in ids])
            scores_KN2.append(self.engine.score(prompts, ("yes", "no")))
            raw = [(*before, *new) for before, new in zip(raw, reasoning)]
        annotations = []
        for id_, scores_K2, said in zip(ids, np.array(scores_KN2).swapaxes(0, 1), raw):
            if not np.isfinite(scores_K2).all():
                annotations.append(_no_room(id_, said))
                continue
            yes_K = np.exp(scores_K2[:, 0]) / np.exp(scores_K2).sum(1)
            annotations.append(
                Annotation(
                    id=id_,
                    status=Status.OK,
                    label=JOINT.join(name for name, yes in zip(names, yes_K) if yes > 0.5),
                    probabilities=dict(zip(names, yes_K.tolist())),
                    logprobs=dict(zip(names, scores_K2[:, 0].tolist())),
                    mass=float(np.exp(scores_K2).sum(1).min()),
                    raw=said,
                )
            )
        return annotations

    def _by_replies(self, ids: Sequence[str], texts: Sequence[str]) -> list[Annotation]:
        asks = [self.ask(text) for text in texts]
        prompts, reasoning = self._prompts(asks, ids)
        sampling = Sampling(
            temperature=self.strategy.temperature,
            samples=self.strategy.samples,
            max_new_tokens=self.strategy.max_new_tokens,
            seed=self.seed,
        )
        replies = self._replies(prompts, ids, sampling)
        return [self._voted(id_, ask, replies[id_], said) for id_, ask, said in zip(ids, asks, reasoning, strict=True)]

    def _prompts(self, asks: Sequence[Ask], keys: Sequence[str]) -> tuple[list[Messages], list[tuple[str, ...]]]:
        """The chats that end where the answer is to stand; where a strategy reasons first, it does so now."""
        made = STRATEGIES[self.strategy.kind]
        asked = [self.engine.fit(made(ask)) for ask in asks]
        if not asked[0].then:
            return [each.messages for each in asked], [() for _ in asked]
        sampling = Sampling(
            temperature=self.strategy.temperature, max_new_tokens=self.strategy.reason_tokens, seed=self.seed
        )
        replies = self._replies([each.messages for each in asked], [f"{key}/reason" for key in keys], sampling)
        texts = [replies[f"{key}/reason"][0].text for key in keys]
        return [_continued(each, text) for each, text in zip(asked, texts)], [(text,) for text in texts]

    def _replies(self, prompts: Sequence[Messages], keys: Sequence[str], sampling: Sampling) -> dict[str, list[Reply]]:
        """The replies to every prompt by its key, sample by sample."""
        found: dict[str, list[Reply]] = {key: [] for key in keys}
        for reply in self.engine.sample([Prompt(key, prompt) for key, prompt in zip(keys, prompts)], sampling):
            found[reply.id].append(reply)
        return {key: sorted(replies, key=lambda reply: reply.sample) for key, replies in found.items()}

    def _voted(self, id_: str, ask: Ask, replies: Sequence[Reply], reasoning: tuple[str, ...]) -> Annotation:
        """The label that most samples give; of equally many, the one given first. No label: the first's reason."""
        raw = (*reasoning, *(reply.text for reply in replies))
        answers = [self._read(reply, ask) for reply in replies]
        votes = Counter(answer for answer in answers if not isinstance(answer, Status))
        if not votes:
            (status,) = answers[:1]
            return Annotation(id_, status, raw=raw, detail=replies[0].detail)
        label, _ = votes.most_common(1)[0]
        shares = {name: count / len(replies) for name, count in votes.items()} if len(replies) > 1 else None
        return Annotation(id_, Status.OK, label=label, probabilities=shares, raw=raw)

    def _read(self, reply: Reply, ask: Ask) -> Any:
        if reply.status in OF_REPLIES:
            return OF_REPLIES[reply.status]
        found = read_answer(reply.text, self.codebook, format=ask.format, order=ask.order, text=ask.text)
        if isinstance(found, Status) and reply.status is ReplyStatus.TRUNCATED:
            return Status.TRUNCATED
        return found


def in_batches(rows: Iterator[tuple[str, str]], size: int) -> Iterator[tuple[list[str], list[str]]]:
    """Ids and texts, `size` at a time."""
    ids: list[str] = []
    texts: list[str] = []
    for id_, text in rows:
        ids.append(id_)
        texts.append(text)
        if len(ids) == size:
            yield ids, texts
            ids, texts = [], []
    if ids:
        yield ids, texts


def _continued(asked: Asked, reasoning: str) -> Messages:
    """The chat after the model has reasoned; a blank reasoning still takes a turn, for templates want one."""
    said = reasoning.strip() or "(no reasoning)"
    return (*asked.messages, Message("assistant", said), Message("user", asked.then))


def _no_room(id_: str, said: tuple[str, ...]) -> Annotation:
    return Annotation(id_, Status.TRUNCATED, raw=said, detail="the text leaves no room in the model's context")


def _softmax(scores_K: Floats) -> Floats:
    raised_K = np.exp(scores_K - scores_K.max())
    found: Floats = raised_K / raised_K.sum()
    return found


def _rounded(number: float) -> float:
    """Seven digits: float32 has no more."""
    return float(f"{number:.7g}") if math.isfinite(number) else number
