"""What decides a search, and what goes in and comes out."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from consilience.config import Settings
from consilience.errors import ConfigError
from consilience.records import Message
from consilience.search.shape import CHUNK, SUCCESSORS, WIDTH

ENDLESS = 1 << 62  # a chunk that ends with the reply


class SearchSettings(Settings):
    """Chunk-level beam search (arXiv 2405.19262): `width` W, `successors` K, `chunk` L.

    The other methods are its corners: W=K=1 is plain sampling, W=1 with chunk=None is best-of-K, W=1 with a chunk is
    chunk-wise best-of-K.
    """

    width: int = Field(WIDTH, ge=1, description="W: hypotheses kept")
    successors: int = Field(SUCCESSORS, ge=1, description="K: continuations sampled of each")
    chunk: int | None = Field(
        CHUNK, ge=1, description="L: tokens of the large model to a continuation; None: the whole reply"
    )
    max_new_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.7, ge=0, description="of the large model; 0 takes the likeliest token")
    top_k: int = Field(50, ge=0, description="0: all")
    top_p: float = Field(1.0, gt=0, le=1)
    stop: tuple[str, ...] = ()
    mode: Literal["default", "published"] = "default"
    beta: float = Field(1.0, ge=0, description="weight of the pair's logits in emulated fine-tuning")
    guide_temperature: float = Field(1.0, gt=0, description="of the pair's probabilities")
    iterations: int = Field(64, ge=1, description="of aligntree: expansions of the search tree")
    exploration: float = Field(1.5, ge=0, description="c of aligntree's PUCT")
    entropy_weight: float = Field(0.2, ge=0, description="w of aligntree's PUCT")
    length_penalty: float = Field(1.0, description="of beam: log-probability over tokens to this power")
    per_token: bool = Field(False, description="score per token of the guide in place of the sum")

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        if any(not text for text in self.stop):
            raise ConfigError("stop: an empty text ends every reply. Leave it out.")
        if self.mode == "published" and (self.stop or self.per_token or self.guide_temperature != 1):
            raise ConfigError("mode published has no stop, per_token or guide_temperature. Use mode default for these.")
        if self.mode == "published" and self.temperature == 0:
            raise ConfigError("mode published divides by the temperature, which is 0. Give a small one.")
        return self


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a reply is searched for. Its draws follow from `seed` and `stream`, whatever else is in the batch."""

    id: str
    messages: tuple[Message, ...]
    seed: int = 0
    stream: str | None = None  # the name of its draws; None: the id


class Finish(StrEnum):
    """How a hypothesis ended."""

    STOP = "stop"  # the model's end of text, or a stop text
    LENGTH = "length"


@dataclass(slots=True, eq=False)
class Hypothesis:
    """A reply, or its beginning."""

    ids: tuple[int, ...]  # the large model's tokens without the end of text; empty where only text is known
    text: str  # what the guide reads; half a character at its end is held back
    finish: Finish | None = None
    end: int | None = None  # the end-of-text token that was sampled
    tokens: int | None = 0  # of the large model, where there are no `ids`; None: the server states no usage
    logprob: float = 0.0  # in the distributions it was drawn from, in nats
    entropy: float = 0.0  # of the distribution that its newest chunk's first token was drawn from, in bits
    place: Any = None  # where the sampling model goes on
    score: float = 0.0  # the guide's, in nats
    mark: Any = None  # how far the guide has read, and where it goes on


@dataclass(frozen=True, slots=True)
class Update:
    """What one step of a search has settled for a prompt."""

    id: str
    committed: str  # the reply so far on which all that may still win agree; it only grows
    result: Result | None = None  # when the search is over


@dataclass(frozen=True, slots=True)
class Result:
    """The outcome for one prompt. `replies` are the best first; one unless more were asked for."""

    id: str
    replies: tuple[Reply, ...]
    chunks: int
    prompt_tokens: int | None  # None: the server of the large model states no usage
    completion_tokens: int | None  # of the best reply


@dataclass(frozen=True, slots=True)
class Reply:
    text: str
    finish: Finish
    score: float | None  # the guide's log π_tuned − log π_untuned, in nats; None without a guide
    tokens: int | None  # None: not stated
    ids: tuple[int, ...] = field(default=(), repr=False)
