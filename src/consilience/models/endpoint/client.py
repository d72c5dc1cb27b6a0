"""A client of any OpenAI-compatible server. Every request ends in an answer or in a named status; see `Endpoint`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from consilience.errors import ConfigError
from consilience.models.endpoint.answer import NOT_ASKED, Answer, Status
from consilience.models.endpoint.cache import Amount, AnswerCache, Begin, Spent
from consilience.models.endpoint.crew import Crew
from consilience.models.endpoint.pace import Pace, Stopped, backoff_s, spread
from consilience.models.endpoint.request import Request, samples
from consilience.models.endpoint.server import Failed, Said, Server
from consilience.models.endpoint.settings import EndpointSettings
from consilience.models.protocols import Prompt, Reply, ReplyStatus, Sampling
from consilience.rng import seed_of

TEMPLATE_TOKENS = 64  # what a chat template may put around a message, generously
HELD_S = 0.05  # between two looks at a request that another thread or process is asking
LARGEST_N = 64
LONG = 40  # characters: two samples of so long a reply are hardly ever the same by chance
IN_A_ROW = 5  # requests that ran out of retries, one after the other: the server is taken to be gone

ENDED = {
    Status.OK: ReplyStatus.OK,
    Status.TRUNCATED: ReplyStatus.TRUNCATED,
    Status.REFUSED: ReplyStatus.REFUSED,
    Status.API_ERROR: ReplyStatus.ERROR,
    Status.OVER_BUDGET: ReplyStatus.OVER_BUDGET,
}

Batch = list[tuple[int, Request]]  # requests that differ by their sample only, with their places among all


class Endpoint:
    """A model behind a server; also a `models.Sampler`. May be asked by several threads; to be closed (use `with`).

    Answers are kept in `cache` (a file; in memory without one) as soon as they arrive, and are never asked for again.
    `on_note` is told once about each thing that the server does otherwise than asked.
    Raises `ConfigError` when the API key is missing. The key is sent to `settings.url` and is written nowhere.
    """

    def __init__(
        self,
        settings: EndpointSettings,
        *,
        cache: Path | None = None,
        jitter: Callable[[str, int], float] = spread,
        on_note: Callable[[str], None] = lambda note: None,
    ) -> None:
        self.settings = settings
        self._server = Server(settings)
        self._cache = AnswerCache(cache)
        self._pace = Pace(settings.requests_per_minute, settings.tokens_per_minute)
        self._jitter, self._on_note = jitter, on_note
        self._notes = dict.fromkeys(self._cache.notes(settings.name))
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._closed = ""  # why no request can succeed any more
        self._failed_in_a_row = 0
        self._kept = 0  # calls that were answered
        self._ignores_n = self._told_unreachable = False

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes connections and cache."""
        self._server.close()
        self._cache.close()

    @property
    def spent(self) -> Spent:
        """What was paid, over all runs with this cache."""
        return self._cache.spent

    @property
    def notes(self) -> list[str]:
        """What the server does otherwise than asked, for the report; earlier runs with the same cache included."""
        return list(self._notes)

    @property
    def gone(self) -> str:
        """Why the last asking gave up: what the server no longer answers. Empty where it did not."""
        return self._closed

    def ask(
        self, requests: Sequence[Request], *, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Answer]:
        """The answers, in the order of the requests."""
        answers: dict[int, Answer] = {}
        for place, answer in self.each(requests):
            answers[place] = answer
            on_progress(len(answers), len(requests))
        return [answers[place] for place in range(len(requests))]

    @property
    def name(self) -> str:
        """The model and where it is."""
        return self.settings.name

    def sample(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, extra: Mapping[str, Any] | None = None
    ) -> Iterator[Reply]:
        """`sampling.samples` replies to every prompt, as they arrive: see `models.Sampler`.

        A prompt's seed depends on `sampling.seed` and its id; whether a server keeps to it is the server's affair.
        `extra` are further fields of every request, such as `response_format`.
        """
        asked = [(prompt.id, request) for prompt in prompts for request in _requests(prompt, sampling, extra or {})]
        for place, answer in self.each(request for _, request in asked):
            id_, request = asked[place]
            # A server counts the tokens of a call, not those of each sample.
            tokens = answer.completion_tokens if sampling.samples == 1 else None
            yield Reply(id_, request.sample, answer.text, _ended(answer), tokens, answer.reason)

    def each(self, requests: Iterable[Request]) -> Iterator[tuple[int, Answer]]:
        """`(place, answer)` of every request as it arrives; requests are drawn from the iterable as they are needed.

        Neighbours that differ by their sample only go out as one call. When the caller stops early, or Ctrl-C is
        pressed, nothing new is begun, and the answers that are under way are waited for and kept.
        """
        stop = threading.Event()
        self._closed, self._failed_in_a_row = "", 0

        def answer(batch: Batch) -> list[Answer]:
            return self._answer([request for _, request in batch], stop)

        crew = Crew(answer, self.settings.concurrency)
        try:
            for batch in _batches(requests):
                crew.give(batch)
                if crew.waiting >= 2 * self.settings.concurrency:
                    yield from _arrived(crew)
            while crew.waiting:
                yield from _arrived(crew)
        finally:
            stop.set()
            if crew.waiting:
                self._on_note("waiting for the answers that are under way, and paid for")
            crew.end()

    def _answer(self, batch: Sequence[Request], stop: threading.Event) -> list[Answer]:
        """The answers to a batch, from the cache or in as many calls as it takes."""
        keys = [request.key(self.settings.url, self.settings.model) for request in batch]
        answers = self._cache.get(keys)
        alone = False
        while missing := [place for place, key in enumerate(keys) if key not in answers]:
            asked = missing[:1] if alone or self._ignores_n else missing
            found = self._call(batch[asked[0]], [keys[place] for place in asked], stop)
            if alone and Status.API_ERROR not in (answer.status for answer in found.values()):
                self._ask_one_by_one("refuses")
            alone = alone or not found
            answers |= found
        texts = {answers[key].text for key in keys}
        if len(keys) > 1 and len(texts) == 1 and len(texts.pop()) >= LONG and batch[0].temperature != 0:
            self.note("the samples of a reply were all the same: perhaps the server does not sample")
        return [answers[key] for key in keys]

    def _call(self, request: Request, keys: Sequence[str], stop: threading.Event) -> dict[str, Answer]:
        """Answers to samples of `request`, the first of which is its own; to none if the server refuses several."""
        most = self._most(request, len(keys))
        about = most.completion_tokens + request.prompt_bytes() // 4  # for the rate, which is no promise
        failed, kept_before = Failed(""), self._kept
        for attempt in range(self.settings.retries + 1):
            if self._closed:
                return _all(keys, Status.API_ERROR, f"{NOT_ASKED}{self._closed}")
            self._pace.wait(about, stop)
            while (call := self._cache.begin(keys, most, self.settings.budget)) is Begin.HELD:
                if stop.wait(HELD_S):
                    raise Stopped
            if call is Begin.ANSWERED:
                return self._cache.get(keys)
            if call is Begin.OVER_BUDGET:
                return _all(keys, Status.OVER_BUDGET, f"{NOT_ASKED}it might exceed the budget; so far {self.spent}")
            assert isinstance(call, int)
            try:
                said = self._server.ask(request, len(keys))
            except Failed as caught:
                failed = caught
                self._cache.fail(call, charged=failed.charged)
            except BaseException:
                self._cache.fail(call, charged=True)
                raise
            else:
                return self._keep(call, request, keys, most, said)
            if not failed.again:
                break
            if attempt < self.settings.retries:
                self._tell_unreachable(failed)
                if stop.wait(self._wait_s(keys[0], attempt, failed)):
                    raise Stopped
        if len(keys) > 1 and not failed.again and not failed.for_all and not failed.refused:
            return {}
        self._count_failure(failed, alone=self._kept == kept_before)
        return _all(keys, Status.REFUSED if failed.refused else Status.API_ERROR, failed.reason)

    def _most(self, request: Request, n: int) -> Amount:
        """The most that `n` replies can cost; a text has no more tokens than bytes."""
        if self.settings.budget and request.max_tokens is None:
            raise ConfigError("a budget needs max_tokens: without it a reply may cost any amount.")
        prompt = request.prompt_bytes() + TEMPLATE_TOKENS * (1 + len(request.messages))
        completion = n * (request.max_tokens or 0)
        return Amount(prompt, completion, self._money(prompt, completion))

    def _money(self, prompt_tokens: int, completion_tokens: int) -> float:
        price = self.settings.price
        return (price.input * prompt_tokens + price.output * completion_tokens) / 1e6 if price else 0.0

    def _wait_s(self, key: str, attempt: int, failed: Failed) -> float:
        """Seconds before the next attempt. What the server asks for (Retry-After) holds for all requests."""
        if failed.wait_s is not None:
            self._pace.hold(failed.wait_s)
        jitter = self._jitter(key, attempt)
        return backoff_s(attempt, first=self.settings.backoff_s, longest=self.settings.longest_wait_s, jitter=jitter)

    def _tell_unreachable(self, failed: Failed) -> None:
        """Says once that nobody listens there (yet): whoever has mistaken the port need not wait to hear of it."""
        if not failed.unreachable:
            return
        with self._lock:
            told, self._told_unreachable = self._told_unreachable, True
        if not told:
            first, longest = self.settings.backoff_s, self.settings.longest_wait_s
            retries = range(self.settings.retries)
            waits = [backoff_s(attempt, first=first, longest=longest, jitter=1) for attempt in retries]
            self._on_note(f"{failed.reason}; trying again for {sum(waits):.0f} s at most")

    def _keep(self, call: int, request: Request, keys: Sequence[str], most: Amount, said: Said) -> dict[str, Answer]:
        """The answers of a call, on the disk before they are returned."""
        prompt, completion = said.answers[0].prompt_tokens, said.answers[0].completion_tokens
        cost = most
        if prompt is None or completion is None:
            self.note("the server states no usage: calls are counted at the most that they can have cost")
        else:
            cost = Amount(prompt, completion, self._money(prompt, completion))
        choices = {key: answer.raw for key, answer in zip(keys, said.answers)}
        self._cache.finish(call, choices, model=said.model, cost=cost, stated=cost is not most)
        self._failed_in_a_row = 0
        self._kept += 1
        if len(said.answers) < len(keys):
            self._ask_one_by_one("ignores")
        if request.top_logprobs is not None and said.answers[0].tokens is None:
            self.note("the server gives no log-probabilities, although they were asked for")
        if said.model and said.model != self.settings.model:
            self.note(f"the server calls the model that answered {said.model}; asked for was {self.settings.model}")
        return dict(zip(keys, said.answers))

    def _ask_one_by_one(self, what: str) -> None:
        if not self._ignores_n:
            self._ignores_n = True
            self.note(f"the server {what} n: it is asked once for each sample")

    def _count_failure(self, failed: Failed, *, alone: bool) -> None:
        """Takes the server to be gone after enough of them; `alone` where it answered nobody else meanwhile."""
        with self._lock:
            self._failed_in_a_row += failed.again
            if failed.for_all or (failed.unreachable and alone):
                self._closed = failed.reason
            elif self._failed_in_a_row >= IN_A_ROW:
                self._closed = f"{IN_A_ROW} requests in a row got no answer, the last one because of: {failed.reason}"

    def note(self, note: str) -> None:
        """Keeps what the server does otherwise than asked, and tells it once."""
        note = self._server.clean(note)
        with self._lock:
            new = note not in self._told
            self._told.add(note)
            self._notes[note] = None
        if new:
            self._cache.note(self.name, note)
            self._on_note(note)


def notes_kept(cache: Path, settings: EndpointSettings) -> list[str]:
    """What the server was seen to do otherwise than asked while the answers in the file `cache` were asked for."""
    if not cache.is_file():
        return []
    with closing(AnswerCache(cache)) as kept:
        return kept.notes(settings.name)


def _requests(prompt: Prompt, sampling: Sampling, extra: Mapping[str, Any]) -> list[Request]:
    greedy = sampling.temperature == 0
    of_sampling = {} if greedy or not sampling.top_k else {"top_k": sampling.top_k}  # not OpenAI's, but most others'
    first = Request(
        messages=prompt.messages,
        max_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
        top_p=None if greedy or sampling.top_p == 1 else sampling.top_p,
        stop=sampling.stop,
        seed=None if greedy else seed_of(sampling.seed, prompt.id) % 2**30,  # servers hold 32 bits, or 31
        extra={**of_sampling, **extra},
    )
    return samples(first, sampling.samples)


def _ended(answer: Answer) -> ReplyStatus:
    if answer.status == Status.OK and not answer.text.strip():
        return ReplyStatus.EMPTY
    return ENDED[answer.status]


def _batches(requests: Iterable[Request]) -> Iterator[Batch]:
    """Neighbours that ask for successive samples of the same reply."""
    batch: Batch = []
    for place, request in enumerate(requests):
        if batch and (request != replace(batch[-1][1], sample=batch[-1][1].sample + 1) or len(batch) == LARGEST_N):
            yield batch
            batch = []
        batch.append((place, request))
    if batch:
        yield batch


def _arrived(crew: Crew[Batch, list[Answer]]) -> Iterator[tuple[int, Answer]]:
    """The answers of the next call that is done."""
    batch, answers = crew.take()
    yield from zip((place for place, _ in batch), answers)


def _all(keys: Sequence[str], status: Status, reason: str) -> dict[str, Answer]:
    return {key: Answer(status=status, reason=reason) for key in keys}
