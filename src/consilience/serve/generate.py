"""What the server asks of whoever writes replies, and what it gets back: plain sampling and guided search alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from consilience.records import Message

SEARCH_SETTINGS = ("width", "successors", "chunk")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the tokens of one reply are drawn, and what ends it. `top_k` 0, `top_p` 1 and `min_p` 0 leave nothing out."""

    max_tokens: int
    temperature: float = 1.0  # 0: the likeliest token
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0  # of the likeliest token's probability
    seed: int
    stop: tuple[str, ...] = ()
    keep_stop: bool = False  # the text that stops is part of the reply
    stop_ids: frozenset[int] = frozenset()
    min_tokens: int = 0
    ignore_end: bool = False
    presence_penalty: float = 0.0  # taken off the logits of tokens that the reply has already
    frequency_penalty: float = 0.0  # the same for every time that it has them
    repetition_penalty: float = 1.0  # divides positive and multiplies negative logits of tokens of prompt and reply
    logit_bias: tuple[tuple[int, float], ...] = ()  # added to the logits of tokens
    logprobs: int | None = None  # so many of the likeliest tokens beside each token's own; None: none at all


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchChoice:
    """What one request asks of the search; None is the server's own setting."""

    width: int | None = None
    successors: int | None = None
    chunk: int | None = None

    @property
    def named(self) -> dict[str, int]:
        """The settings that are not the server's own."""
        return {name: value for name in SEARCH_SETTINGS if (value := getattr(self, name)) is not None}


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One prompt and the replies that are wanted to it."""

    id: str
    prompt_ids: Sequence[int]
    messages: tuple[
        Message, ...
    ] = ()  # what the ids were made of: a chat, or one text; of ids that were given, nothing
    choices: int = 1
    goes_on: bool = False  # the reply goes on with the prompt's text; otherwise it is a text of its own
    sampling: Sampling
    search: SearchChoice = field(default_factory=SearchChoice)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural logarithms of probabilities under the whole softmax at temperature 1."""

    token_id: int
    logprob: float
    likeliest: tuple[tuple[int, float], ...]


class Failure(StrEnum):
    """Why a job is given up. Compare, never test for truth."""

    REFUSED = "refused"  # the prompt is at fault
    TIMEOUT = "timeout"
    STOPPING = "stopping"  # the server is
    BROKEN = "failed"  # the model or the server is


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more of a reply. `finish` is None while it goes on, then "stop" or "length"; an `error` ends the job."""

    job: str
    choice: int
    text: str
    tokens: int = 0  # that were written since the last piece, the end-of-text token included
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: str | None = None
    error: str = ""
    failure: Failure = Failure.BROKEN  # what kind of error, where there is one


class Generator(Protocol):
    """Writes several replies side by side, a step at a time. One thread calls it."""

    def fits(self, job: Job) -> bool:
        """Whether the job can be taken on now; a job that never can is the caller's mistake."""
        ...

    def add(self, job: Job) -> None:
        """Raises a `ConsilienceError` for a prompt that cannot be read; the job is none of its business then."""
        ...

    def drop(self, job_id: str) -> None:
        """Stops work on a job; nothing is heard of it again. Unknown jobs are none of its business."""
        ...

    def step(self) -> Sequence[Piece]:
        """Does the next bit of work for the jobs it has, and says what has come of it."""
        ...

    def clear(self) -> None:
        """Forgets all jobs, after a step that failed."""
        ...
