"""What a model can be asked for, whoever runs it: this process (transformers) or a server. No torch.

A reply is known by its prompt's id and the number of the sample; its status says how it ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from consilience.config import Settings
from consilience.errors import ConfigError
from consilience.records import Message

if TYPE_CHECKING:
    from consilience.models.score import ReplyScores

Ids = NDArray[np.int32]  # the tokens of a text


class ReplyStatus(StrEnum):
    """How a reply ended. Compare, never test for truth."""

    OK = "ok"
    TRUNCATED = "truncated"  # it had not ended at max_new_tokens, or where the model's positions do
    EMPTY = "empty"  # it ended, and holds nothing but blanks
    NO_ROOM = "no room"  # the prompt alone fills the model's positions
    NOT_ASKED = "not asked"  # the model's chat template refuses the prompt
    REFUSED = "refused"  # the server's filter withheld it
    ERROR = "error"  # the server gave none
    OVER_BUDGET = "over budget"  # not asked: it might have cost more than is left
    MISSING = "missing"  # a file of finished replies has none


class Sampling(Settings):
    """How replies are drawn. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 leave out no token."""

    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    max_new_tokens: int = Field(512, ge=1)
    samples: int = Field(1, ge=1, description="replies to each prompt")
    stop: tuple[str, ...] = Field((), description="texts that end a reply and are not part of it")
    seed: int = 0

    @model_validator(mode="after")
    def _draws_what_it_says(self) -> Self:
        if self.temperature == 0 and self.samples > 1:
            raise ConfigError(f"{self.samples} samples at temperature 0 are the same reply. Give a temperature above 0")
        if "" in self.stop:
            raise ConfigError("stop holds an empty text, which ends every reply before it begins")
        return self


@dataclass(frozen=True, slots=True)
class Prompt:
    """A chat that ends where the model is to go on. `id` is unique among prompts, and names its random numbers."""

    id: str
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply to the prompt `id`; `tokens` are those the model wrote, the one that ends it left out.

    None where they are not known: a server may state none, or those of several samples together.
    """

    id: str
    sample: int
    text: str
    status: ReplyStatus
    tokens: int | None = None
    detail: str = ""  # why, in words, where there is no reply


class Sampler(Protocol):
    """Whoever answers chats. Every prompt gets `sampling.samples` replies, in any order, each with a status.

    The same prompts, settings and seed give the same replies from a model in this process; a server may not keep this.
    """

    @property
    def name(self) -> str: ...

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Reply]: ...


class Model(Protocol):
    """A chat model of this machine that is asked by tokens, whichever engine runs it (`models.engine.open_model`).

    `tokenizer` is transformers'; `vocabulary_size` the rows of the head.
    """

    @property
    def name(self) -> str: ...
    @property
    def tokenizer(self) -> Any: ...
    @property
    def vocabulary_size(self) -> int: ...

    def context(self, tokens: int) -> int:
        """`tokens`, or as many as a text to be scored may have where they are fewer."""

    def score(
        self,
        ids_T_of: Sequence[Ids],
        positions_N_of: Sequence[NDArray[np.intp]],
        *,
        top_k: int = 0,
        batch_tokens: int = 8192,
        names: Sequence[str] = (),
    ) -> Iterator[tuple[int, ReplyScores]]:
        """`models.score.score_replies`."""

    def replies(
        self,
        prompts_T: Sequence[Ids],
        sampling: Sampling,
        *,
        keys: Sequence[str] | None = None,
        batch_size: int = 64,
    ) -> Iterator[Reply]:
        """`models.sample.sample_replies`; vLLM takes a JSON `schema` beside."""

    def option_scorer(self) -> Callable[[Sequence[Ids], Sequence[Ids]], Any]:
        """`models.options.OptionScorer`: log-probabilities [N, K] of K set replies to N prompts."""
