"""Replies of a chat model to prompts, decoded greedily, in batches of like length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from consilience.models.load import ChatModel, context_of


@torch.inference_mode()
def sample_greedily(
    chat_model: ChatModel,
    prompts_T: Sequence[NDArray[np.int32]],
    *,
    max_new_tokens: int,
    batch_size: int = 64,
) -> Iterator[tuple[int, str, bool]]:
    """`(index, reply, cut_off)` for every prompt; `cut_off` says that the reply had not ended at `max_new_tokens`.

    Greedy decoding with the model's own end-of-text tokens, without the penalties that its generation configuration
    may name; special tokens are not part of the reply's text. Where the model's positions run out earlier, so do the
    replies of that batch; a prompt that leaves no room has an empty reply that is cut off.
    """
    tokenizer = chat_model.tokenizer
    ends = end_ids(chat_model)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (ends[0] if ends else 0)
    order = sorted(range(len(prompts_T)), key=lambda i: (len(prompts_T[i]), i))
    while order and not _room(chat_model, prompts_T[order[-1]], max_new_tokens):
        yield order.pop(), "", True
    device = next(chat_model.model.parameters()).device
    for begin in range(0, len(order), batch_size):
        batch = order[begin : begin + batch_size]
        width = max(len(prompts_T[i]) for i in batch)
        input_ids_BT = torch.full((len(batch), width), pad, dtype=torch.long)
        mask_BT = torch.zeros_like(input_ids_BT)
        for row, index in enumerate(batch):  # padded on the left, so that every reply begins in the same column
            length = len(prompts_T[index])
            input_ids_BT[row, width - length :] = torch.from_numpy(prompts_T[index].astype(np.int64))
            mask_BT[row, width - length :] = 1
        output_BT = chat_model.model.generate(
            input_ids=input_ids_BT.to(device),
            attention_mask=mask_BT.to(device),
            max_new_tokens=_room(chat_model, prompts_T[batch[-1]], max_new_tokens),
            do_sample=False,
            num_beams=1,
            temperature=None,
            top_p=None,
            top_k=None,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            pad_token_id=pad,
            eos_token_id=ends or None,
        )
        for index, reply in zip(batch, output_BT[:, width:].tolist(), strict=True):
            stops = [place for place, id_ in enumerate(reply) if id_ in ends]
            kept = reply[: stops[0]] if stops else reply
            yield index, tokenizer.decode(kept, skip_special_tokens=True), not stops


def _room(chat_model: ChatModel, prompt_T: NDArray[np.int32], max_new_tokens: int) -> int:
    """How many of `max_new_tokens` the model has positions for behind the prompt."""
    return max(0, context_of(chat_model.model, len(prompt_T) + max_new_tokens) - len(prompt_T))


def end_ids(chat_model: ChatModel) -> list[int]:
    """The ids that end a reply: the generation configuration's, and the tokenizer's end-of-text token."""
    configured: Any = chat_model.model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({id_ for id_ in [*ids, chat_model.tokenizer.eos_token_id] if id_ is not None})
