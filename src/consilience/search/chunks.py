"""Chunk-level beam search (Zhou et al., arXiv 2405.19262), many prompts at once, a chunk at a time.

    search = Search(large, guide)
    search.add(prompt, settings)       at any time between two chunks
    for update in search.advance():    one chunk for every prompt under way
        update.committed, update.result
    search.cancel(prompt.id)

Sample continuations of the hypotheses from the large model, score them by the small pair, keep the best: three lines of
`advance`. What a large model must offer is `Proposer`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from consilience.errors import BackendError, ConfigError, ConsilienceError, DataError
from consilience.search.guide import Guide
from consilience.search.sampling import Wanted
from consilience.search.selection import common_prefix, select, select_published
from consilience.search.settings import Hypothesis, Prompt, Reply, Result, SearchSettings, Update
from consilience.search.texts import UNFINISHED


class NoReply(BackendError):
    """The server of a large model gave no continuation; `status` is its answer's."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Unanswered(Exception):
    """No continuations for some of the prompts, by id. `advance` may be called again once they are cancelled."""

    def __init__(self, prompts: Mapping[str, NoReply]) -> None:
        super().__init__(", ".join(prompts))
        self.prompts = prompts


class Proposer(Protocol):
    """A large model as a search sees it: `sampling.LargeModel` here, or one behind an endpoint.

    `open` returns what the proposer needs to remember of a prompt, with `prompt_tokens`; `root` the empty reply;
    `extend` the sampled continuations of each `Wanted`, in the order of its parents, finished parents as they are.
    Hypotheses without `ids` are compared, committed and scored by their `text`. `extend` may raise `Unanswered`.
    """

    speaks: bool  # whether hypotheses shall have a text

    def open(self, prompt: Prompt, settings: SearchSettings) -> Any: ...
    def root(self, opened: Any) -> Hypothesis: ...
    def extend(self, wanted: Sequence[Wanted]) -> list[list[Hypothesis]]: ...
    def keep(self, opened: Any, hypotheses: Sequence[Hypothesis]) -> None: ...
    def close(self, opened: Any) -> None: ...
    def show(self, opened: Any, ids: Sequence[int]) -> str: ...


class Searches(Protocol):
    """Searches under way, each for its own prompt: `chunks.Search`, `beam.BeamSearch`, `aligntree.AlignTree`."""

    under_way: Any

    def add(self, prompt: Prompt, settings: SearchSettings) -> None: ...
    def advance(self) -> list[Update]: ...
    def cancel(self, id_: str) -> None: ...


@dataclass
class _ChunkSearch:
    """The search for one prompt."""

    prompt: Prompt
    settings: SearchSettings
    opened: Any
    guided: Any
    beams: list[Hypothesis]
    pool: list[Hypothesis] = field(default_factory=list)  # the finished ones that may still win, best first
    chunks: int = 0
    committed: str = ""


def refuse_doubled(under_way: Mapping[str, object], prompt: Prompt) -> None:
    """Raises `ConfigError` where another prompt of the same id is under way: its search would be lost."""
    if prompt.id in under_way:
        raise ConfigError(f"two prompts are called {prompt.id!r}. Give each its own id.")


def open_both(large: Proposer, guide: Guide | None, prompt: Prompt, settings: SearchSettings) -> tuple[Any, Any]:
    """The prompt before the large model and before the guide, None where there is none; both are open, or neither.

    A guide that reads the large model's ids limits the reply to the positions that it has itself.
    """
    opened = large.open(prompt, settings)
    if guide is None:
        return opened, None
    try:
        guided = guide.open(prompt)
    except ConsilienceError:
        large.close(opened)
        raise
    if guide.by_ids:
        opened.limit = min(opened.limit, guide.room(guided))
    return opened, guided


class Search:
    """Searches under way, each for its own prompt and under its own settings."""

    def __init__(self, large: Proposer, guide: Guide | None = None) -> None:
        self.large, self.guide = large, guide
        self.under_way: dict[str, _ChunkSearch] = {}
        large.speaks = guide is not None and not guide.by_ids

    def add(self, prompt: Prompt, settings: SearchSettings) -> None:
        """Reads the prompt. Raises `DataError` when it does not fit a model or its template, `ConfigError` for
        settings that need a guide where there is none."""
        if self.guide is None and settings.width * settings.successors > 1:
            raise ConfigError("a search among several hypotheses needs a guide. Give one, or width 1 and successors 1.")
        refuse_doubled(self.under_way, prompt)
        opened, guided = open_both(self.large, self.guide, prompt, settings)
        self.under_way[prompt.id] = _ChunkSearch(prompt, settings, opened, guided, [self.large.root(opened)])

    def cancel(self, id_: str) -> None:
        """Forgets a prompt; nothing happens when it is not under way."""
        one = self.under_way.pop(id_, None)
        if one is not None:
            self.large.close(one.opened)
            if self.guide:
                self.guide.close(one.guided)

    def advance(self) -> list[Update]:
        """One chunk for every prompt under way: what is settled then, and the results of those that are over.

        Raises `Unanswered` where the large model is a server's; then nothing has changed.
        """
        searches = list(self.under_way.values())
        candidates = self.large.extend([Wanted(one.opened, _rows(one), one.settings.chunk) for one in searches])
        if self.guide:
            self.guide.score([(one.guided, found) for one, found in zip(searches, candidates)])
        return [self._select(one, found) for one, found in zip(searches, candidates)]

    def _select(self, one: _ChunkSearch, candidates: Sequence[Hypothesis]) -> Update:
        one.chunks += 1
        width = one.settings.width
        if one.settings.mode == "published":
            one.beams = [candidates[m] for m in select_published([each.score for each in candidates], width)]
            one.pool = [beam for beam in one.beams if beam.finish]
            over = len(one.pool) == len(one.beams)
        else:
            pool = [*one.pool, *candidates]
            chosen = select([each.score for each in pool], [_identity(each) for each in pool], width)
            one.beams = [pool[m] for m in chosen if pool[m].finish is None]
            finished = [each for each in pool if each.finish]
            best = select([each.score for each in finished], [_identity(each) for each in finished], width)
            one.pool = [finished[m] for m in best]
            over = not one.beams
        one.committed = max(one.committed, self._agreed(one), key=len)
        if not over:
            self.large.keep(one.opened, one.beams)
            if self.guide:
                self.guide.keep(one.guided, one.beams)
            return Update(one.prompt.id, one.committed)
        self.cancel(one.prompt.id)
        return result_of(
            one.prompt,
            one.settings,
            one.opened,
            self.large,
            one.pool,
            chunks=one.chunks,
            guided=self.guide is not None,
        )

    def _agreed(self, one: _ChunkSearch) -> str:
        """What every hypothesis that may still win begins with: those that go on, and the best of the finished."""
        open_ = [*one.beams, *one.pool[:1]]
        if all(each.ids for each in open_):
            text = self.large.show(one.opened, open_[0].ids[: common_prefix([each.ids for each in open_])])
        else:
            text = open_[0].text[: common_prefix([each.text for each in open_])]
        return _without_half_stop(text.rstrip(UNFINISHED), one.settings.stop)


def result_of(
    prompt: Prompt,
    settings: SearchSettings,
    opened: Any,
    large: Proposer,
    best: Sequence[Hypothesis],
    *,
    chunks: int,
    guided: bool,
) -> Update:
    """The last update of a search that found the finished hypotheses `best`, the best first."""
    replies = []
    for each in best:
        assert each.finish is not None
        replies.append(
            Reply(
                text=_before_stop(large.show(opened, each.ids) if each.ids else each.text, settings.stop),
                finish=each.finish,
                score=each.score if guided else None,
                tokens=len(each.ids) or each.tokens,
                ids=each.ids,
            )
        )
    result = Result(prompt.id, tuple(replies), chunks, opened.prompt_tokens, replies[0].tokens)
    return Update(prompt.id, replies[0].text, result)


def search(
    searches: Searches, prompts: Iterable[Prompt], settings: SearchSettings, *, batch: int = 8
) -> Iterator[Result | tuple[Prompt, DataError | NoReply]]:
    """The results as they are ready, at most `batch` prompts under way; or a prompt and why there is none."""
    waiting = iter(prompts)
    more = True
    while more or searches.under_way:
        while more and len(searches.under_way) < batch:
            prompt = next(waiting, None)
            if prompt is None:
                more = False
                break
            try:
                searches.add(prompt, settings)
            except (DataError, NoReply) as error:
                yield prompt, error
        if searches.under_way:
            try:
                updates = searches.advance()
            except Unanswered as unanswered:
                lost = [(searches.under_way[id_].prompt, why) for id_, why in unanswered.prompts.items()]
                for prompt, _ in lost:
                    searches.cancel(prompt.id)
                yield from lost
                continue
            yield from (update.result for update in updates if update.result)


def _rows(one: _ChunkSearch) -> list[Hypothesis]:
    """The parents of the next continuations: K of every beam; of the bare prompt, W·K."""
    settings = one.settings
    if one.chunks == 0:
        return one.beams * (settings.width * settings.successors)
    if settings.mode == "published":  # the published order, which the draws follow; finished ones are copied too
        return one.beams * settings.successors
    return [beam for beam in one.beams for _ in range(settings.successors)]


def _identity(hypothesis: Hypothesis) -> tuple[object, ...]:
    return hypothesis.ids or hypothesis.text, hypothesis.end, hypothesis.finish is None


def _before_stop(text: str, stop: Sequence[str]) -> str:
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]


def _without_half_stop(text: str, stop: Sequence[str]) -> str:
    """`text` up to the first stop text, and without an end that one may begin with."""
    text = _before_stop(text, stop)
    held = max((n for each in stop for n in range(1, len(each)) if text.endswith(each[:n])), default=0)
    return text[: len(text) - held]
