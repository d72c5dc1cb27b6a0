"""From a body in OpenAI's format to jobs in tokens, for one served model; what it cannot do is refused by name."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import numpy as np

from consilience.chat import render, render_prompt, token_bytes
from consilience.errors import ConfigError, DataError
from consilience.records import Message
from consilience.serve.generate import SEARCH_SETTINGS, Job
from consilience.serve.requests import (
    NOT_FOUND,
    ApiError,
    ChatRequest,
    CompletionRequest,
    messages_of,
    read_chat,
    read_completion,
    same,
    sampling_of,
)

Request = ChatRequest | CompletionRequest
# What a searched reply cannot be asked for, and the values that ask for nothing.
NOT_GUIDED: dict[str, tuple[Any, ...]] = {
    "continue_final_message": (False,),
    "frequency_penalty": (None, 0),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "logit_bias": (None, {}),
    "logprobs": (None, False),
    "min_p": (None, 0),
    "min_tokens": (0,),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "stop_token_ids": (None, []),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Reader:
    """A model that reads the prompts beside the one that is served: one of the guides."""

    name: str
    tokenizer: Any
    context: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """The model that is served, as clients see it, and the limits they are held to."""

    name: str
    tokenizer: Any
    context: int  # tokens of prompt and reply together
    vocabulary: int
    most_replies: int  # that are written side by side, a search's hypotheses among them
    replies_of: Callable[[Job], int] = lambda job: job.choices  # how many of them a job takes
    defaults: Mapping[str, float] = field(default_factory=dict)  # temperature, top_p, ... where a request has none
    guides: tuple[Reader, ...] = ()
    overrides: bool = False  # requests may choose the search's width, successors and chunk
    about: Mapping[str, Any] = field(default_factory=dict)  # shown at /v1/models
    body_bytes: int = 8 << 20
    body_timeout_s: float = 30.0
    created: int = field(default_factory=lambda: int(time.time()))


class Jobs:
    """Makes jobs of requests. One thread at a time: reading a prompt changes a tokenizer's settings for a moment."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.tokenizer = copy.deepcopy(served.tokenizer)  # the engine's thread decodes with the original
        self.guides = [(guide, copy.deepcopy(guide.tokenizer)) for guide in served.guides]
        self.bytes_of = token_bytes(served.tokenizer)

    def read(self, tree: Mapping[str, Any], *, chat: bool) -> tuple[Request, list[Job]]:
        """The request in a JSON object, and a job for each of its prompts. Raises `ApiError`."""
        request: Request = read_chat(tree) if chat else read_completion(tree)
        self.check_model(request.model)
        self._check_features(request)
        prompts = [self._chat(request)] if isinstance(request, ChatRequest) else self._texts(request)
        jobs = [self._job(request, ids, messages) for ids, messages in prompts]
        replies = sum(map(self.served.replies_of, jobs))
        if replies > self.served.most_replies:
            counted = "hypotheses at once (n times width times successors)" if self.served.guides else "replies at once"
            message = (
                f"{replies} {counted} are more than the {self.served.most_replies} of this server's --max-num-seqs."
            )
            widened = [name for name in ("width", "successors") if name in request.search.named]
            raise ApiError(400, message, param=widened[0] if widened else "n")
        return request, jobs

    def check_model(self, name: str) -> None:
        """Raises `ApiError` unless the served model is meant."""
        if name != self.served.name:
            message = f"The model {name[:200]!r} does not exist. This server has {self.served.name!r}."
            raise ApiError(404, message, type_=NOT_FOUND, param="model", code="model_not_found")

    def spell(self, token_id: int) -> bytes:
        """The bytes of a token; of a control token those of its name."""
        known = self.bytes_of[token_id] if token_id < len(self.bytes_of) else None
        if known is not None:
            return known
        return str(self.served.tokenizer.convert_ids_to_tokens(token_id) or "").encode()

    def _check_features(self, request: Request) -> None:
        if self.served.guides:
            for name in NOT_GUIDED.keys() & type(request).model_fields.keys():
                if not any(same(getattr(request, name), neutral) for neutral in NOT_GUIDED[name]):
                    message = f"{name!r} is not supported by a server with a guide: its replies are searched for."
                    raise ApiError(400, message, param=name, code="unsupported")
        if not self.served.overrides:
            for name in SEARCH_SETTINGS:
                if getattr(request, name) is not None:
                    message = f"{name!r} needs a server that was started with --guide and --method cbs."
                    raise ApiError(400, message, param=name, code="unsupported")
        self._check_ids(request.stop_token_ids or (), "stop_token_ids")
        self._check_ids([*map(int, request.logit_bias or ())], "logit_bias")

    def _check_ids(self, ids: Sequence[int], param: str) -> None:
        unknown = [id_ for id_ in ids if not 0 <= id_ < self.served.vocabulary]
        if unknown:
            message = f"token {unknown[0]} is not in the vocabulary of {self.served.vocabulary} tokens."
            raise ApiError(400, message, param=param)

    def _job(self, request: Request, ids: Sequence[int], messages: tuple[Message, ...]) -> Job:
        job = Job(
            id=uuid4().hex,
            prompt_ids=ids,
            messages=messages,
            choices=request.choices,
            goes_on=request.goes_on,
            sampling=sampling_of(request, self.served.defaults, prompt_tokens=len(ids), context=self.served.context),
            search=request.search,
        )
        for guide, tokenizer in self.guides:
            tokens = len(self._guide_ids(guide, tokenizer, messages, isinstance(request, ChatRequest)))
            if tokens >= guide.context:
                message = (
                    f"The guide {guide.name} has a context length of {guide.context} tokens; the prompt has {tokens}."
                )
                raise ApiError(400, message, param="messages", code="context_length_exceeded")
        return job

    def _guide_ids(self, guide: Reader, tokenizer: Any, messages: Sequence[Message], chat: bool) -> Sequence[int]:
        if not chat:
            ids: list[int] = tokenizer(messages[0].content, verbose=False)["input_ids"]
            return ids
        return self._rendered(tokenizer, f"guide {guide.name}", messages)

    def _rendered(self, tokenizer: Any, name: str, messages: Sequence[Message]) -> list[int]:
        try:
            ids: list[int] = render_prompt(tokenizer, messages).tolist()
        except ConfigError:
            message = f"the {name} has no chat template. Use /v1/completions."
            raise ApiError(400, message, param="messages", code="no_chat_template") from None
        except DataError as error:
            raise ApiError(400, str(error), param="messages") from None
        return ids

    def _chat(self, request: ChatRequest) -> tuple[Sequence[int], tuple[Message, ...]]:
        messages = tuple(messages_of(request))
        name = f"model {self.served.name!r}"
        if not request.goes_on or not messages[-1].content:
            return self._rendered(self.tokenizer, name, messages), messages
        self._rendered(self.tokenizer, name, messages[:-1])  # refuses what a template refuses
        try:
            rendered = render(self.tokenizer, messages)
        except DataError as error:
            raise ApiError(400, str(error), param="messages") from None
        last = rendered.reply_T == rendered.reply_T.max()
        inside = last & (rendered.reply_starts_T < len(messages[-1].content.encode()))
        return rendered.ids_T[: int(np.flatnonzero(inside)[-1]) + 1].tolist(), messages

    def _texts(self, request: CompletionRequest) -> list[tuple[Sequence[int], tuple[Message, ...]]]:
        found: list[tuple[Sequence[int], tuple[Message, ...]]] = []
        for prompt in request.prompts:
            ids: Sequence[int]
            messages: tuple[Message, ...] = ()
            if isinstance(prompt, str):
                ids = self.tokenizer(prompt, add_special_tokens=request.add_special_tokens, verbose=False)["input_ids"]
                messages = (Message("user", prompt),)
            else:
                if self.served.guides:
                    message = (
                        "a prompt of tokens is not supported by a server with a guide, which has tokens of its own."
                    )
                    raise ApiError(400, message, param="prompt", code="unsupported")
                self._check_ids(prompt, "prompt")
                ids = prompt
            if not ids:
                raise ApiError(400, "a prompt is empty: it has no tokens to go on with.", param="prompt")
            found.append((ids, messages))
        return found
