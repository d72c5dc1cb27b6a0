"""A model in this process that answers like a server: the same requests, the same answers, the same cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from consilience.chat import render_prompt
from consilience.errors import BackendError, ConfigError, DataError
from consilience.models.endpoint import Answer, Request, Status
from consilience.models.endpoint.answer import read_choice
from consilience.models.endpoint.cache import Amount, AnswerCache, Begin
from consilience.models.load import ChatModel, context_of
from consilience.models.protocols import Reply, ReplyStatus, Sampling
from consilience.models.sample import sample_replies
from consilience.models.score import logits_at

BATCH_TOKENS = 8192
NO_ANSWER = (ReplyStatus.NOT_ASKED, ReplyStatus.NO_ROOM, ReplyStatus.ERROR)


class LocalAnswerer:
    """Asks `chat_model`. Log-probabilities are there for answers of one token: all that a weighing judge needs.

    `digest` stands for the model's files: answers in `cache` are kept under it. Raises `ConfigError` at a request that
    asks for more than a model in this process gives.
    """

    def __init__(self, chat_model: ChatModel, *, digest: str = "", cache: Path | None = None) -> None:
        self._model, self._source = chat_model, f"local:{digest or chat_model.name}"
        self._cache = AnswerCache(cache)

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model.name

    def close(self) -> None:
        """Lets go of the cache."""
        self._cache.close()

    def ask(
        self, requests: Sequence[Request], *, on_progress: Callable[[int, int], None] = lambda done, total: None
    ) -> list[Answer]:
        """The answers, in the order of the requests."""
        keys = [request.key(self._source, self.name) for request in requests]
        answers = self._cache.get(keys)
        wanted = {key: request for key, request in zip(keys, requests) if key not in answers}
        prompts: dict[str, NDArray[np.int32]] = {}
        for key, request in wanted.items():
            _refuse_what_is_not_there(request)
            try:
                prompts[key] = render_prompt(self._model.tokenizer, request.messages)
            except DataError as error:
                answers[key] = Answer(status=Status.API_ERROR, reason=str(error))
        done = len(keys) - len(prompts)
        on_progress(done, len(keys))
        for key, choice in self._choices(wanted, prompts):
            if isinstance(choice, Answer):
                answers[key] = choice
            else:
                answers[key] = read_choice(choice, model=self.name)
                self._keep(key, choice)
            done += 1
            on_progress(done, len(keys))
        return [answers[key] for key in keys]

    def _choices(self, wanted: Mapping[str, Request], prompts: Mapping[str, NDArray[np.int32]]) -> Any:
        """`(key, choice)` for every prompt: first those of one token, then the longer ones, by their settings."""
        weighed = [key for key in prompts if wanted[key].top_logprobs is not None]
        yield from self._one_token(weighed, wanted, prompts)
        groups: dict[Sampling, list[str]] = {}
        for key in prompts.keys() - set(weighed):
            groups.setdefault(_sampling(wanted[key]), []).append(key)
        for sampling, keys in groups.items():
            keys = sorted(keys)
            for reply in sample_replies(self._model, [prompts[key] for key in keys], sampling, keys=keys):
                yield reply.id, _choice(reply)

    @torch.inference_mode()
    def _one_token(
        self, keys: Sequence[str], wanted: Mapping[str, Request], prompts: Mapping[str, NDArray[np.int32]]
    ) -> Any:
        """The likeliest tokens behind every prompt, in batches of prompts of the same length: nothing is padded."""
        for length in sorted({len(prompts[key]) for key in keys}):
            alike = [key for key in keys if len(prompts[key]) == length]
            if context_of(self._model.model, length) < length:
                reason = f"the prompt has {length} tokens, more than the model's positions"
                yield from ((key, Answer(status=Status.API_ERROR, reason=reason)) for key in alike)
                continue
            rows = max(1, BATCH_TOKENS // length)
            for begin in range(0, len(alike), rows):
                batch = alike[begin : begin + rows]
                ids_BT = torch.from_numpy(np.stack([prompts[key] for key in batch]).astype(np.int64))
                logits_BV = logits_at(self._model.model, ids_BT, torch.ones_like(ids_BT), np.array([length - 1]))[:, 0]
                logprobs_BV = logits_BV.float().log_softmax(-1)
                if torch.isnan(logprobs_BV).any():
                    raise BackendError(
                        f"model {self.name} gives NaN. Its weights may be damaged, or need another dtype."
                    )
                for key, logprobs_V in zip(batch, logprobs_BV):
                    yield key, self._weighed(logprobs_V, wanted[key])

    def _weighed(self, logprobs_V: torch.Tensor, request: Request) -> dict[str, Any]:
        """A choice in OpenAI's shape. The token is the likeliest one: at a judge's temperature nothing is drawn."""
        top = logprobs_V.topk(min(max(1, request.top_logprobs or 0), len(logprobs_V)))
        texts = [self._model.tokenizer.decode([id_]) for id_ in top.indices.tolist()]
        listed = [{"token": text, "logprob": value} for text, value in zip(texts, top.values.tolist())]
        return {
            "message": {"role": "assistant", "content": texts[0]},
            "finish_reason": "length",
            "logprobs": {"content": [listed[0] | {"top_logprobs": listed}]},
        }

    def _keep(self, key: str, choice: Mapping[str, Any]) -> None:
        call = self._cache.begin([key], Amount(0, 0, 0.0), None)
        if not isinstance(call, Begin):  # another process may have been faster
            self._cache.finish(call, {key: choice}, model=self.name, cost=Amount(0, 0, 0.0), stated=False)


def _refuse_what_is_not_there(request: Request) -> None:
    if request.prompt is not None or request.max_tokens is None or request.extra:
        raise ConfigError("a model in this process answers messages, up to max_tokens, and takes no further fields.")
    if request.top_logprobs is not None and request.max_tokens > 1:
        raise ConfigError("a model in this process gives log-probabilities of answers of one token only.")


def _sampling(request: Request) -> Sampling:
    return Sampling(
        temperature=request.temperature or 0.0,
        top_p=1.0 if request.top_p is None else request.top_p,
        max_new_tokens=request.max_tokens or 1,
        stop=request.stop,
        seed=(request.seed or 0) + request.sample,
    )


def _choice(reply: Reply) -> Answer | dict[str, Any]:
    if reply.status in NO_ANSWER:
        return Answer(status=Status.API_ERROR, reason=f"{reply.status} {reply.detail}".strip())
    finish = "length" if reply.status == ReplyStatus.TRUNCATED else "stop"
    return {"message": {"role": "assistant", "content": reply.text}, "finish_reason": finish}
