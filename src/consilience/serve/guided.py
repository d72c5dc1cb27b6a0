"""Replies that are searched for: a frozen model, guided by a small pair. Text is sent once it can no longer change."""

from __future__ import annotations

from dataclasses import dataclass, replace

from consilience.errors import pick
from consilience.rng import seed_of
from consilience.search import METHODS, Models, Prompt, Searches, SearchSettings, Update
from consilience.serve.generate import Job, Piece


@dataclass(slots=True)
class _ReplySearched:
    """One reply that is searched for."""

    job: str
    choice: int
    sent: int = 0  # characters


class GuidedSearch:
    """A `Generator`: a step is one chunk of every reply. `settings` hold where a request does not say otherwise."""

    def __init__(self, models: Models, settings: SearchSettings, *, method: str, max_replies: int) -> None:
        """Raises `ConfigError` where the models do not go together."""
        make = pick(METHODS, method, "search method")
        self.method, self.max_replies = method, max_replies
        # Texts to go on with are read without a chat template, which a search decides for all of its prompts.
        self.chats, self.settings = make(models, settings)
        self.texts, _ = make(replace(models, raw=True), settings)
        self.under_way: dict[str, _ReplySearched] = {}
        self.hypotheses: dict[str, int] = {}  # of each job

    def replies_of(self, job: Job) -> int:
        """Hypotheses that a job has at once at most: W·K for each of its replies."""
        settings = self._settings(job)
        return job.choices * settings.width * settings.successors

    def fits(self, job: Job) -> bool:
        return sum(self.hypotheses.values()) + self.replies_of(job) <= self.max_replies

    def add(self, job: Job) -> None:
        settings = self._settings(job)
        self.hypotheses[job.id] = self.replies_of(job)
        try:
            for choice in range(job.choices):
                id_ = f"{job.id}/{choice}"
                seed = seed_of(job.sampling.seed, "serve", str(choice))
                self._search_of(job).add(Prompt(id_, job.messages, seed, stream="serve"), settings)
                self.under_way[id_] = _ReplySearched(job.id, choice)
        except Exception:
            self.drop(job.id)
            raise

    def drop(self, job_id: str) -> None:
        for id_ in [id_ for id_, one in self.under_way.items() if one.job == job_id]:
            del self.under_way[id_]
            self.chats.cancel(id_)
            self.texts.cancel(id_)
        self.hypotheses.pop(job_id, None)

    def clear(self) -> None:
        for job_id in [*self.hypotheses]:
            self.drop(job_id)

    def step(self) -> list[Piece]:
        updates = [update for search in (self.chats, self.texts) if search.under_way for update in search.advance()]
        return [piece for update in updates if (piece := self._piece(update))]

    def _piece(self, update: Update) -> Piece | None:
        one = self.under_way[update.id]
        text = update.committed[one.sent :]
        one.sent = len(update.committed)
        if update.result is None:
            return Piece(one.job, one.choice, text) if text else None
        del self.under_way[update.id]
        if not any(other.job == one.job for other in self.under_way.values()):
            del self.hypotheses[one.job]
        best = update.result.replies[0]
        return Piece(one.job, one.choice, text, tokens=len(best.ids), finish=str(best.finish))

    def _search_of(self, job: Job) -> Searches:
        return self.texts if job.goes_on else self.chats

    def _settings(self, job: Job) -> SearchSettings:
        """The server's, and what the request says, which was checked when it came."""
        own = job.sampling
        asked = {
            "max_new_tokens": own.max_tokens,
            "temperature": own.temperature,
            "top_p": own.top_p,
            "top_k": own.top_k,
            "stop": own.stop,
        }
        return self.settings.model_copy(update=asked | job.search.named)
