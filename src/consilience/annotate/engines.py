"""Who answers: a model in this process, or one on a server. Two verbs: score options, and reply (a `Sampler`'s).

Nothing is asked of the network but the endpoint that a recipe names. What runs a model here is imported when one is
opened: freezing and estimating need none, and would wait for torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from consilience.annotate.answers import Status
from consilience.annotate.recipe import ModelSettings
from consilience.annotate.strategies import Asked, without_system
from consilience.chat import render_prompt
from consilience.errors import BackendError, DataError
from consilience.models import Prompt, Reply, ReplyStatus, Sampling, open_model
from consilience.models.endpoint import Answer, Endpoint, Request
from consilience.models.endpoint import Status as Ended
from consilience.models.endpoint.client import ENDED
from consilience.models.endpoint.gone import refuse_gone_server, unanswered
from consilience.models.engine import VLLM
from consilience.models.protocols import Ids
from consilience.records import Message
from consilience.run import fingerprint

if TYPE_CHECKING:
    from consilience.models import LocalSampler

Messages = tuple[Message, ...]
Failures = dict[int, tuple[Status, str]]  # by place: why there are no scores
TOP = 20  # likeliest tokens that a server tells, OpenAI's most
FEW = 5  # texts; when fewer all end in errors, it may be the texts that the server cannot take


class Engine(Protocol):
    """One model, ready. `about` is what a manifest says of it; `scores` whether it tells every label's probability,
    `constrains` whether its replies can be held to a JSON schema."""

    about: dict[str, Any]
    scores: bool
    constrains: bool

    def fit(self, asked: Asked) -> Asked:
        """What is asked, in roles that the model's chat template knows."""

    def score(self, prompts: Sequence[Messages], options: Sequence[str]) -> tuple[NDArray[np.float64], Failures]:
        """Log-probabilities in nats of every option as the whole reply, [N, K]; NaN where there are none, and why."""

    def sample(
        self, prompts: Sequence[Prompt], sampling: Sampling, schema: Mapping[str, Any] | None = None
    ) -> Iterator[Reply]:
        """Replies, in any order, each with a status; with a JSON schema, if the engine can, only such as fulfil it."""

    def close(self) -> None:
        """Lets go of the model, or of the server and its cache."""


@dataclass
class LocalEngine:
    """A model of this machine, which transformers or vLLM runs."""

    about: dict[str, Any]
    sampler: LocalSampler
    scorer: Callable[[Sequence[Ids], Sequence[Ids]], NDArray[np.float64]]
    knows_system: bool
    scores: bool = True
    constrains: bool = False
    options: dict[tuple[str, ...], tuple[list[Ids], int]] = field(default_factory=dict)

    def fit(self, asked: Asked) -> Asked:
        return asked if self.knows_system else without_system(asked)

    def score(self, prompts: Sequence[Messages], options: Sequence[str]) -> tuple[NDArray[np.float64], Failures]:
        from consilience.models.options import option_ids

        tokenizer = self.sampler.chat_model.tokenizer
        if tuple(options) not in self.options:
            self.options[tuple(options)] = option_ids(tokenizer, prompts[0], options)
        option_ids_K, dropped = self.options[tuple(options)]
        ids = [render_prompt(tokenizer, messages) for messages in prompts]
        scores_NK = self.scorer([each[: len(each) - dropped] for each in ids], option_ids_K)
        without = np.flatnonzero(np.isnan(scores_NK).any(1)).tolist()
        return scores_NK, dict.fromkeys(without, (Status.TRUNCATED, "the text leaves no room in the model's context"))

    def sample(
        self, prompts: Sequence[Prompt], sampling: Sampling, schema: Mapping[str, Any] | None = None
    ) -> Iterator[Reply]:
        how = {"schema": schema} if schema is not None and self.constrains else {}
        return self.sampler.sample(prompts, sampling, **how)

    def close(self) -> None:
        """The model goes when nobody holds it any more."""


@dataclass
class EndpointEngine:
    """A model behind a server. It tells the probabilities of option letters, not of whole labels."""

    about: dict[str, Any]
    endpoint: Endpoint
    scores: bool = False
    constrains: bool = True

    def fit(self, asked: Asked) -> Asked:
        return asked

    def score(self, prompts: Sequence[Messages], options: Sequence[str]) -> tuple[NDArray[np.float64], Failures]:
        """From the likeliest first tokens that the server tells; an option that is not among them has the least."""
        requests = [Request(messages=messages, max_tokens=1, temperature=0.0, top_logprobs=TOP) for messages in prompts]
        scores_NK = np.full((len(prompts), len(options)), np.nan)
        failures: Failures = {}
        answers = self._asked(requests)
        if answers and all(answer.status in (Ended.OK, Ended.TRUNCATED) and not answer.tokens for answer in answers):
            raise BackendError(
                f"{self.endpoint.name} gives no log-probabilities, which answer: letters reads. Take answer: "
                "constrained or free."
            )
        for place, answer in enumerate(answers):
            tokens = answer.tokens or ()
            if answer.status not in (Ended.OK, Ended.TRUNCATED) or not tokens:
                reason = answer.reason or "the server gives no log-probabilities"
                refused = answer.status is Ended.REFUSED
                failures[place] = (Status.REFUSED if refused else Status.ERROR, reason)
                continue
            told: dict[str, float] = {}
            for text, logprob in tokens[0].top or ((tokens[0].text, tokens[0].logprob),):
                told[text.strip()] = float(np.logaddexp(told.get(text.strip(), -np.inf), logprob))
            if not set(told) & set(options):
                failures[place] = (Status.OUT_OF_SET, f"none of the {len(told)} likeliest tokens is an option")
                continue
            least = min(told.values())
            scores_NK[place] = [told.get(option, least) for option in options]
        return scores_NK, failures

    def sample(
        self, prompts: Sequence[Prompt], sampling: Sampling, schema: Mapping[str, Any] | None = None
    ) -> Iterator[Reply]:
        extra = {}
        if schema is not None:
            form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}
            extra = {"response_format": form}
        replies = list(self.endpoint.sample(prompts, sampling, extra=extra))
        if schema is not None and replies and all("response_format" in reply.detail for reply in replies):
            raise BackendError(
                f"{self.endpoint.name} does not constrain replies ({replies[0].detail.strip(' .')}). Take answer: "
                "free or letters."
            )
        self._refuse_when_gone([(reply.status, reply.detail) for reply in replies], len(prompts))
        yield from replies

    def close(self) -> None:
        self.endpoint.close()

    def _asked(self, requests: Sequence[Request]) -> list[Answer]:
        answers = self.endpoint.ask(requests)
        self._refuse_when_gone([(ENDED[answer.status], answer.reason) for answer in answers], len(requests))
        return answers

    def _refuse_when_gone(self, ended: Sequence[tuple[ReplyStatus, str]], texts: int) -> None:
        """A server that is gone, or a budget that is spent, ends the run: its texts are not asked, and no errors.

        The batch in flight is not written, so the same command goes on with it. Where all of a few texts ended in
        errors, a word of our own tells whether it is the texts or the server.
        """
        requests = [unanswered(status, why) for status, why in ended]
        refuse_gone_server(self.endpoint.name, requests, is_gone=lambda: texts >= FEW or not self._answers())

    def _answers(self) -> bool:
        """Whether the server answers at all, asked anew: the cache would only tell what it once said."""
        with Endpoint(self.endpoint.settings) as endpoint:
            (answer,) = endpoint.ask([Request(messages=(Message("user", "Say ok."),), max_tokens=1, temperature=0.0)])
        return ENDED[answer.status] not in (ReplyStatus.ERROR, ReplyStatus.OVER_BUDGET)


def load_engine(name: str, settings: ModelSettings, folder: Path, batch_size: int) -> Engine:
    """The engine of a recipe's model; paths are relative to `folder`. Raises `BackendError` where it cannot be had."""
    if settings.endpoint is not None:
        endpoint = settings.endpoint
        served = {"engine": f"OpenAI-compatible server at {endpoint.url}", "model": endpoint.model}
        return EndpointEngine(served, Endpoint(endpoint, cache=folder / f"answers-{name}.sqlite"))
    from consilience.models import LocalSampler

    path = local_folder(name, settings.path or "", folder)
    tokenizer = _tokenizer(settings, path, folder)
    how = {"name": name, "dtype": settings.dtype, "code": settings.trust_remote_code, "tokenizer": tokenizer}
    chat_model = open_model(path, settings, **how)
    knows_system = _knows_system(tokenizer)
    return LocalEngine(
        _about(settings, path, tokenizer),
        LocalSampler(chat_model, batch_size),
        chat_model.option_scorer(),
        knows_system,
        constrains=settings.engine == VLLM,
    )


def about_local(name: str, settings: ModelSettings, folder: Path) -> dict[str, Any]:
    """What a manifest says of a model of this machine, without loading its weights."""
    path = local_folder(name, settings.path or "", folder)
    return _about(settings, path, _tokenizer(settings, path, folder))


def _about(settings: ModelSettings, path: Path, tokenizer: Any) -> dict[str, Any]:
    from consilience.models.load import architecture

    template = str(tokenizer.chat_template or "")
    return {
        "engine": f"{settings.engine}, in this process",
        "path": settings.path,
        "fingerprint": fingerprint(path),
        "architecture": architecture(path, code=settings.trust_remote_code),
        "dtype": settings.dtype,
        "chat_template": hashlib.sha256(template.encode()).hexdigest()[:16],
    }


def _tokenizer(settings: ModelSettings, path: Path, folder: Path) -> Any:
    """The model's tokenizer, under the chat template that the recipe gives it."""
    from consilience.models import load_tokenizer

    tokenizer = load_tokenizer(path, code=settings.trust_remote_code)
    if settings.chat_template:
        tokenizer.chat_template = (folder / settings.chat_template).read_text(encoding="utf-8")
    return tokenizer


def local_folder(name: str, path: str, folder: Path) -> Path:
    """Where a recipe's model is: beside the recipe. Raises `BackendError` where there is none: nothing is fetched."""
    found = folder / Path(path).expanduser()
    if not found.is_dir():
        raise BackendError(
            f"model {name}: no folder {path}, relative to {folder.resolve()}. Annotation fetches nothing: download the "
            f"model first (hf download {path} --local-dir ...)."
        )
    return found


def fingerprints(settings: ModelSettings, name: str, folder: Path) -> str:
    """What must not change between `freeze` and `run`: of a folder its contents, of an endpoint its name.

    Labels in a column are part of the data, whose own fingerprint the run keeps.
    """
    if settings.column is not None:
        return f"column {settings.column}"
    if settings.endpoint is not None:
        return f"{settings.endpoint.model} at {settings.endpoint.url}"
    return fingerprint(local_folder(name, settings.path or "", folder))


def _knows_system(tokenizer: Any) -> bool:
    try:
        rendered = render_prompt(tokenizer, (Message("system", "Qz7zQ"), Message("user", "x")))
    except DataError:
        return False
    return "Qz7zQ" in "".join(tokenizer.decode(rendered))  # some templates drop what the system says without a word
