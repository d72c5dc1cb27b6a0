"""Replies of a chat model in this process, in batches of like length, reproducible whatever the batches are.

Shapes: B replies written at once, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from consilience.chat import render_prompt
from consilience.errors import BackendError, DataError
from consilience.models.linear import lay_out
from consilience.models.load import ChatModel, context_of, read_config
from consilience.models.nucleus import keep_likeliest
from consilience.models.protocols import Model, Prompt, Reply, ReplyStatus, Sampling
from consilience.rng import seed_of

BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class LocalSampler:
    """A `Sampler` of a chat model of this machine, whichever engine runs it, under the model's own chat template."""

    chat_model: Model
    batch_size: int = BATCH_SIZE

    @property
    def name(self) -> str:
        return self.chat_model.name

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling, **how: Any) -> Iterator[Reply]:
        """Replies, in any order; a prompt that the chat template refuses has a status that says so.

        `how` is what the engine takes beside (vLLM: a JSON `schema` that replies have to fulfil).
        """
        asked: list[Prompt] = []
        ids_T_of: list[NDArray[np.int32]] = []
        for prompt in prompts:
            try:
                ids_T_of.append(render_prompt(self.chat_model.tokenizer, prompt.messages))
                asked.append(prompt)
            except DataError as error:
                for sample in range(sampling.samples):
                    yield Reply(prompt.id, sample, "", ReplyStatus.NOT_ASKED, 0, str(error))
        keys = [prompt.id for prompt in asked]
        replies: Any = self.chat_model.replies
        yield from replies(ids_T_of, sampling, keys=keys, batch_size=self.batch_size, **how)


def sample_greedily(
    chat_model: Model,
    prompts_T: Sequence[NDArray[np.int32]],
    *,
    max_new_tokens: int,
    batch_size: int = BATCH_SIZE,
) -> Iterator[tuple[int, str, bool]]:
    """`(index, reply, cut_off)` for every prompt; `cut_off` says that the reply had not ended where it was stopped."""
    greedy = Sampling(max_new_tokens=max_new_tokens)
    for reply in chat_model.replies(prompts_T, greedy, batch_size=batch_size):
        yield int(reply.id), reply.text, reply.status in (ReplyStatus.TRUNCATED, ReplyStatus.NO_ROOM)


@torch.inference_mode()
def sample_replies(
    chat_model: ChatModel,
    prompts_T: Sequence[NDArray[np.int32]],
    sampling: Sampling,
    *,
    keys: Sequence[str] | None = None,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Reply]:
    """`sampling.samples` replies to every prompt (ids with the generation prompt), short prompts first.

    `keys` are the prompts' ids, by default their places in the list. A reply is drawn with random numbers of its own,
    named by seed, key and sample: who else is in its batch changes it only by the rounding of the model's arithmetic.
    Replies end with the model's own end-of-text tokens or a text of `sampling.stop`; penalties that the model's
    generation configuration names are not applied; special tokens are not part of the text. Where the model's
    positions run out before `max_new_tokens`, the reply is truncated there.

    Raises `BackendError` where the model's logits are NaN.
    """
    lay_out(chat_model.model)
    keys = [str(index) for index in range(len(prompts_T))] if keys is None else keys
    order = sorted(range(len(prompts_T)), key=lambda i: (len(prompts_T[i]), i))

    def room(index: int) -> int:
        return _room(chat_model, prompts_T[index], sampling.max_new_tokens)

    # Replies in one batch have the same room: one that reached the model's last position could not go on with others.
    for new_tokens, alike in groupby(order, key=room):
        rows = [(index, sample) for index in alike for sample in range(sampling.samples)]
        if new_tokens == 0:
            yield from (Reply(keys[index], sample, "", ReplyStatus.NO_ROOM, 0) for index, sample in rows)
            continue
        for begin in range(0, len(rows), batch_size):
            batch = rows[begin : begin + batch_size]
            named = [(keys[index], sample) for index, sample in batch]
            limited = sampling.model_copy(update={"max_new_tokens": new_tokens})
            yield from _write(chat_model, [prompts_T[index] for index, _ in batch], named, limited)


def _write(
    chat_model: ChatModel,
    prompts_T: Sequence[NDArray[np.int32]],
    named: Sequence[tuple[str, int]],
    sampling: Sampling,
) -> Iterator[Reply]:
    """One batch of replies."""
    tokenizer = chat_model.tokenizer
    ends = end_ids(chat_model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    device = next(chat_model.model.parameters()).device
    width = max(map(len, prompts_T))
    input_ids_BT = torch.full((len(prompts_T), width), pad, dtype=torch.long)
    mask_BT = torch.zeros_like(input_ids_BT)
    for row, prompt_T in enumerate(prompts_T):  # padded on the left, so that every reply begins in the same column
        input_ids_BT[row, width - len(prompt_T) :] = torch.from_numpy(prompt_T.astype(np.int64))
        mask_BT[row, width - len(prompt_T) :] = 1
    output_BT = chat_model.model.generate(
        input_ids=input_ids_BT.to(device),
        attention_mask=mask_BT.to(device),
        max_new_tokens=sampling.max_new_tokens,
        logits_processor=LogitsProcessorList([_Draw(chat_model.name, named, sampling, device)]),
        do_sample=False,  # the draw is in the logits
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        pad_token_id=pad,
        eos_token_id=ends or None,
        **({"stop_strings": [*sampling.stop], "tokenizer": tokenizer} if sampling.stop else {}),
    )
    for (key, sample), written in zip(named, output_BT[:, width:].tolist(), strict=True):
        yield read_reply(tokenizer, key, sample, written, ends=ends, stop=sampling.stop, pad=pad)


def read_reply(
    tokenizer: Any,
    key: str,
    sample: int,
    written: Sequence[int],
    *,
    ends: Sequence[int],
    stop: Sequence[str] = (),
    pad: int | None = None,
) -> Reply:
    """The reply that tokens are: up to the first of `ends` or a text of `stop`, and truncated without either.

    `pad` is what a row that a stop text ended is filled up with.
    """
    ended = next((place for place, id_ in enumerate(written) if id_ in ends), None)
    kept = [*written[:ended]]
    text = tokenizer.decode(kept, skip_special_tokens=True)
    stops = [place for each in stop if (place := text.find(each)) >= 0]
    if stops:
        text = text[: min(stops)]
        while kept and kept[-1] == pad:
            kept.pop()
    status = ReplyStatus.OK if stops or ended is not None else ReplyStatus.TRUNCATED
    if status == ReplyStatus.OK and not text.strip():
        status = ReplyStatus.EMPTY
    return Reply(key, sample, text, status, tokens=len(kept))


class _Draw(LogitsProcessor):
    """Turns the likeliest token into a drawn one: logits plus Gumbel noise, whose maximum has the softmax's chances.

    Noise per token, rather than one uniform number against the summed chances, keeps a reply the same under the
    rounding that other batches bring: it changes where the two best tokens are within rounding of one another.
    """

    def __init__(self, model: str, named: Sequence[tuple[str, int]], sampling: Sampling, device: torch.device) -> None:
        self.model, self.named, self.sampling = model, named, sampling
        self.generators = [
            torch.Generator(device).manual_seed(seed_of(sampling.seed, "sample", key, str(sample)))
            for key, sample in named
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores_BV = scores.float()
        broken = torch.isnan(scores_BV).any(-1)
        if broken.any():
            key = self.named[int(broken.nonzero()[0, 0])][0]
            raise BackendError(
                f"model {self.model} gives NaN after the prompt {key!r}. "
                "Its weights may be damaged, or need another dtype (float32)."
            )
        if self.sampling.temperature == 0:
            return scores_BV
        kept_BV = keep_likeliest(
            scores_BV / self.sampling.temperature, top_k=self.sampling.top_k, top_p=self.sampling.top_p
        )
        exponential_BV = torch.stack(
            [torch.empty_like(row_V).exponential_(generator=own) for row_V, own in zip(kept_BV, self.generators)]
        )
        return kept_BV - exponential_BV.clamp_min(torch.finfo(torch.float32).tiny).log()


def _room(chat_model: ChatModel, prompt_T: NDArray[np.int32], max_new_tokens: int) -> int:
    """How many of `max_new_tokens` the model has positions for behind the prompt."""
    return max(0, context_of(chat_model.model, len(prompt_T) + max_new_tokens) - len(prompt_T))


def end_ids(chat_model: ChatModel) -> list[int]:
    """The ids that end a reply: the generation configuration's, and the tokenizer's end-of-text token."""
    return _end_ids(chat_model.model.generation_config, chat_model.tokenizer)


def configured_ends(path: str | Path, tokenizer: Any, *, code: bool = False) -> list[int]:
    """The same ids, read from the model's folder without its weights."""
    try:
        config = GenerationConfig.from_pretrained(path)
    except OSError:  # as transformers does where there is no such file
        config = GenerationConfig.from_model_config(read_config(path, code=code))
    return _end_ids(config, tokenizer)


def _end_ids(config: Any, tokenizer: Any) -> list[int]:
    configured = config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({id_ for id_ in [*ids, tokenizer.eos_token_id] if id_ is not None})
