"""A model as a coder: texts in, annotations out, each with a label or a named reason why there is none.

Shapes: N texts, K labels, R orders of the labels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consilience.annotate.answers import Status, read_answer
from consilience.annotate.codebook import JOINT, Codebook, Level
from consilience.annotate.corrections import Affine
from consilience.annotate.engines import Engine, Failures, Messages
from consilience.annotate.examples import Choose, Embed, chooser_of
from consilience.annotate.injection import flags_of
from consilience.annotate.recipe import StrategySettings, refuse_unreadable
from consilience.annotate.strategies import NONE, STRATEGIES, Ask, Asked, Shot, Wording, answer_of
from consilience.errors import DataError
from consilience.models import Prompt, Reply, ReplyStatus, Sampling
from consilience.records import Message

Floats = NDArray[np.float64]
MOST_KEPT = 26  # answers whose probabilities are kept with every text
OF_REPLIES = {
    ReplyStatus.EMPTY: Status.EMPTY,
    ReplyStatus.NO_ROOM: Status.TRUNCATED,
    ReplyStatus.NOT_ASKED: Status.ERROR,
    ReplyStatus.REFUSED: Status.REFUSED,
    ReplyStatus.ERROR: Status.ERROR,
    ReplyStatus.OVER_BUDGET: Status.ERROR,
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


class Scored(NamedTuple):
    """Log-probabilities in nats [N, K]; by place, why a text has none; what the model said before, text by text."""

    scores_NK: Floats
    failures: Failures
    raw: list[tuple[str, ...]]


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
    embed: Embed | None = None

    def code(self, ids: Sequence[str], texts: Sequence[str]) -> list[Annotation]:
        """The texts' annotations, in order. A blank text is not asked about."""
        asked = [i for i, text in enumerate(texts) if text.strip()]
        answer = self._by_scores if self.reads_probabilities else self._by_replies
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

    @property
    def reads_probabilities(self) -> bool:
        """Whether every answer's probability is read: exactly what constrained decoding would draw from.

        A server that does not tell them constrains the decoding itself, and so does vLLM where several samples are to
        be drawn. Raises `ConfigError` where neither can be had.
        """
        tells, constrains = self.engine.scores, self.engine.constrains
        refuse_unreadable(self.strategy, tells_probabilities=tells, constrains=constrains)
        answer, drawn = self.strategy.answer, constrains and self.strategy.samples > 1
        return answer in ("labels", "letters") or (answer == "constrained" and tells and not drawn)

    @property
    def values(self) -> tuple[str, ...]:
        """The answers that there are to choose from."""
        return self.codebook.names or self.codebook.numbers

    def asks(self, texts: Sequence[str], *, order: tuple[int, ...] = (), format: str | None = None) -> list[Ask]:
        """What the strategy is given for each text."""
        own = "letter" if self.strategy.answer == "letters" else self.strategy.format
        if self.strategy.answer == "constrained" and not self.reads_probabilities:
            own = "json"  # what decoding is constrained to
        return [
            Ask(
                codebook=self.codebook,
                text=text,
                wording=self.wording,
                format=format or own,
                order=order,
                shots=shots,
                persona=self.strategy.persona,
            )
            for text, shots in zip(texts, self._shots(texts), strict=True)
        ]

    def scores(self, texts: Sequence[str], ids: Sequence[str] = ()) -> Scored:
        """Log-probabilities of the answers before correction.

        Over several orders of the labels it is the probabilities that are averaged: their sum stays the mass.
        """
        scores_RNK = []
        failures: Failures = {}
        raw: list[tuple[str, ...]] = [() for _ in texts]
        for number, order in enumerate(self.orders()):
            asks = self.asks(texts, order=order)
            prompts, reasoning = self._prompts(asks, [f"{id_}/{number}" for id_ in ids or map(str, range(len(texts)))])
            scores_NK, failed = self.engine.score(prompts, [answer_of(asks[0], name) for name in self.values])
            scores_RNK.append(scores_NK)
            failures |= failed
            raw = [(*before, *new) for before, new in zip(raw, reasoning)]
        stacked_RNK = np.array(scores_RNK)
        top_NK = stacked_RNK.max(0)
        return Scored(top_NK + np.log(np.exp(stacked_RNK - top_NK).mean(0)), failures, raw)

    def orders(self) -> list[tuple[int, ...]]:
        """The orders in which the labels are shown: rotations of the codebook's, so that places are taken in turn."""
        count = len(self.codebook.labels)
        turns = [round(r * count / self.strategy.orders) for r in range(self.strategy.orders)]
        return [tuple((place + turn) % count for place in range(count)) for turn in dict.fromkeys(turns)] or [()]

    @cached_property
    def _shots(self) -> Choose:
        return chooser_of(self.strategy.choose, self.pool, self.strategy.shots, self.seed, self.embed)

    def _by_scores(self, ids: Sequence[str], texts: Sequence[str]) -> list[Annotation]:
        if self.codebook.level is Level.MULTI_LABEL:
            return self._by_yes_and_no(ids, texts)
        scores_NK, failures, raw = self.scores(texts, ids)
        names = self.values
        annotations = []
        for place, (id_, scores_K, said) in enumerate(zip(ids, scores_NK, raw)):
            if place in failures:
                status, why = failures[place]
                annotations.append(Annotation(id_, status, raw=said, detail=why))
                continue
            corrected_K = self.correction(scores_K[None])[0] if self.correction else scores_K
            p_K = _softmax(corrected_K)
            if not np.isfinite(p_K).all():
                raise DataError(f"text {id_}: the labels' corrected scores are no numbers. Run annotate dev again.")
            few = len(names) <= MOST_KEPT
            annotations.append(
                Annotation(
                    id=id_,
                    status=Status.OK,
                    label=names[int(p_K.argmax())],
                    probabilities=dict(zip(names, p_K.tolist())) if few else None,
                    logprobs=dict(zip(names, scores_K.tolist())) if few else None,
                    mass=float(np.exp(scores_K).sum()),
                    raw=said,
                )
            )
        return annotations

    def _by_yes_and_no(self, ids: Sequence[str], texts: Sequence[str]) -> list[Annotation]:
        """Multi-label: a question of yes or no about every label; `probabilities` are those of yes."""
        names = self.codebook.names
        scores_KN2 = []
        failures: Failures = {}
        raw: list[tuple[str, ...]] = [() for _ in texts]
        for name in names:
            asks = self.asks(texts, format=f"label:{name}")
            prompts, reasoning = self._prompts(asks, [f"{id_}/{name}" for id_ in ids])
            scores_N2, failed = self.engine.score(prompts, ("yes", "no"))
            scores_KN2.append(scores_N2)
            failures |= failed
            raw = [(*before, *new) for before, new in zip(raw, reasoning)]
        annotations = []
        for place, (id_, scores_K2, said) in enumerate(zip(ids, np.array(scores_KN2).swapaxes(0, 1), raw)):
            if place in failures:
                status, why = failures[place]
                annotations.append(Annotation(id_, status, raw=said, detail=why))
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
        """Every sample is a draw of its own, with a reasoning of its own where the strategy reasons first."""
        draws = self.strategy.samples
        asks = self.asks(texts)
        reasons = bool(STRATEGIES[self.strategy.kind](asks[0]).then)
        whole = draws if reasons else 1  # draws of reasoning and answer; else those of a prompt are asked for at once
        keys = [id_ if whole == 1 else f"{id_}/{draw}" for id_ in ids for draw in range(whole)]
        prompts, reasoning = self._prompts([ask for ask in asks for _ in range(whole)], keys)
        sampling = Sampling(
            temperature=self.strategy.temperature,
            samples=draws // whole,
            max_new_tokens=self.strategy.max_new_tokens,
            seed=self.seed,
        )
        schema = self._schema() if self.strategy.answer == "constrained" else None
        replies = self._replies(prompts, keys, sampling, schema)
        annotations = []
        for place, (id_, ask) in enumerate(zip(ids, asks)):
            own = range(place * whole, (place + 1) * whole)
            said = tuple(words for i in own for words in reasoning[i])
            annotations.append(self._voted(id_, ask, [reply for i in own for reply in replies[keys[i]]], said))
        return annotations

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

    def _schema(self) -> dict[str, Any]:
        """The JSON schema of an answer, for servers that constrain decoding to one."""
        book = self.codebook
        if book.level is Level.MULTI_LABEL:
            of: dict[str, Any] = {"labels": {"type": "array", "items": {"enum": [*book.names]}}}
        elif book.level is Level.INTERVAL:
            of = {"number": {"enum": [int(number) for number in book.numbers]}}
        else:
            of = {"label": {"enum": [*book.names]}}
        return {"type": "object", "properties": of, "required": [*of], "additionalProperties": False}

    def _replies(
        self,
        prompts: Sequence[Messages],
        keys: Sequence[str],
        sampling: Sampling,
        schema: Mapping[str, Any] | None = None,
    ) -> dict[str, list[Reply]]:
        """The replies to every prompt by its key, sample by sample."""
        found: dict[str, list[Reply]] = {key: [] for key in keys}
        for reply in self.engine.sample([Prompt(key, prompt) for key, prompt in zip(keys, prompts)], sampling, schema):
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


@dataclass(frozen=True)
class GivenLabels:
    """Stands in for a coder where the labels are in a column of the data already: what it is given is the label."""

    codebook: Codebook

    def code(self, ids: Sequence[str], labels: Sequence[str]) -> list[Annotation]:
        """The labels as the codebook writes them; one that it does not have is out of set, a blank one empty."""
        return [self._one(id_, label) for id_, label in zip(ids, labels, strict=True)]

    def _one(self, id_: str, label: str) -> Annotation:
        if not label.strip():
            return Annotation(id_, Status.EMPTY, detail="no label is given")
        try:
            return Annotation(id_, Status.OK, label=self.codebook.canonical("" if label.strip() == NONE else label))
        except DataError:
            return Annotation(id_, Status.OUT_OF_SET, raw=(label,))


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


def _softmax(scores_K: Floats) -> Floats:
    raised_K = np.exp(scores_K - scores_K.max())
    found: Floats = raised_K / raised_K.sum()
    return found


def _rounded(number: float) -> float:
    """Seven digits: float32 has no more."""
    return float(f"{number:.7g}") if math.isfinite(number) else number
