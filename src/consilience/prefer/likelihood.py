"""How likely whole replies are under a model: sums over their tokens, with a gradient where it is wanted.

Shapes: G prompts of a batch, R replies of the batch, N reply tokens of the batch, T tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consilience.chat import render
from consilience.errors import BackendError
from consilience.models.packed import can_pack, moved, pack, packed_attention, tree_of
from consilience.records import Message
from consilience.train import logprobs_through_head


@dataclass(frozen=True, slots=True)
class ReadReply:
    """A prompt and a reply as one model reads them: ids up to the token that ends the reply."""

    ids_T: NDArray[np.int32]
    first: int  # place of the reply's first token

    @property
    def tokens(self) -> int:
        """Tokens of the reply, the one that ends it among them."""
        return len(self.ids_T) - self.first


def read_reply(tokenizer: Any, prompt: Sequence[Message], reply: str, *, ended: bool = True) -> ReadReply:
    """`reply` to `prompt` under the tokenizer's chat template; without the tokens that end it unless it `ended`.

    Raises `DataError` where the template refuses them.
    """
    rendered = render(tokenizer, [*prompt, Message("assistant", reply)])
    number = sum(message.role == "assistant" for message in prompt)
    mine = rendered.reply_T == number
    if not ended:
        mine &= rendered.reply_starts_T < len(reply.encode())
    places = np.flatnonzero(mine)
    places = places[places > 0]
    first, end = (int(places[0]), int(places[-1]) + 1) if len(places) else (len(rendered.ids_T),) * 2
    return ReadReply(rendered.ids_T[:end], first)


def collate_replies(replies_of: Sequence[Sequence[ReadReply]], *, packed: bool) -> dict[str, Any]:
    """The replies to each of G prompts as one batch: packed without padding, each prompt once; or one padded row each.

    `inputs` go to the model; `place` and `token` say which hidden state predicts which token, shape [N]; `reply` whose
    token it is, and `tokens` how many each of the R replies has.
    """
    replies = [reply for of_prompt in replies_of for reply in of_prompt]
    texts = [reply.ids_T[:-1] for reply in replies]  # the last token predicts nothing
    if packed:
        # What the model reads before a reply's first token; the last such state predicts the first token of each.
        trees = [
            tree_of([reply.ids_T[:-1] for reply in of_prompt], min(reply.first for reply in of_prompt))
            for of_prompt in replies_of
        ]
        row = pack(trees)
        inputs, places_of = row.inputs, [places for of_tree in row.places_of for places in of_tree]
    else:
        width = max(map(len, texts))
        ids_RT = torch.zeros(len(texts), width, dtype=torch.long)
        mask_RT = torch.zeros_like(ids_RT)
        for r, ids in enumerate(texts):
            ids_RT[r, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
            mask_RT[r, : len(ids)] = 1
        inputs = {"input_ids": ids_RT, "attention_mask": mask_RT}
        places_of = [r * width + np.arange(len(ids)) for r, ids in enumerate(texts)]
    place_N = np.concatenate([places[reply.first - 1 :] for places, reply in zip(places_of, replies, strict=True)])
    token_N = np.concatenate([reply.ids_T[reply.first :] for reply in replies]).astype(np.int64)
    tokens_R = np.array([reply.tokens for reply in replies])
    return {
        "inputs": inputs,
        "place": torch.from_numpy(place_N),
        "token": torch.from_numpy(token_N),
        "reply": torch.from_numpy(np.repeat(np.arange(len(replies)), tokens_R)),
        "tokens": torch.from_numpy(tokens_R),
    }


def reply_logprobs(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """Log-probability (nats) of each reply of a batch of `collate_replies`, summed over its tokens, shape [R]."""
    logprob_N = logprobs_through_head(model, batch["inputs"], batch["place"], batch["token"])
    sums_R = torch.zeros(len(batch["tokens"]), dtype=torch.float32, device=logprob_N.device)
    return sums_R.index_add(0, batch["reply"].to(logprob_N.device), logprob_N)


@contextlib.contextmanager
def reading(model: Any, longest: int) -> Iterator[bool]:
    """Prepares `model` for texts of at most `longest` tokens; tells whether they can be packed."""
    packs = can_pack(model, longest)
    with packed_attention(model, packs):
        yield packs


@torch.no_grad()
def score_texts(
    model: Any,
    replies_of: Sequence[Sequence[ReadReply]],
    *,
    batch_tokens: int,
    bfloat16: bool = False,
    name: str = "the model",
) -> Iterator[tuple[int, list[float]]]:
    """`(index, sums)` of every prompt's replies, short ones first, in batches of about `batch_tokens` tokens.

    `bfloat16` computes as training under bfloat16 does. Raises `BackendError` where a sum is not finite.
    """
    sizes = [sum(len(reply.ids_T) for reply in of_prompt) for of_prompt in replies_of]
    longest = max((len(reply.ids_T) for of_prompt in replies_of for reply in of_prompt), default=0)
    device = next(model.parameters()).device
    with reading(model.eval(), longest) as packed, torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        for batch in _batches(sizes, batch_tokens):
            collated = collate_replies([replies_of[i] for i in batch], packed=packed)
            sums_R = reply_logprobs(model, moved(collated, device)).tolist()
            if not np.isfinite(sums_R).all():
                raise BackendError(
                    f"{name} gives a reply a log-probability of NaN or minus infinity. Its weights may be damaged, "
                    "or need another dtype (--set train.dtype=float32)."
                )
            begin = 0
            for i in batch:
                yield i, sums_R[begin : begin + len(replies_of[i])]
                begin += len(replies_of[i])


def _batches(sizes: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in order of size, in batches of at most `batch_tokens` (one index always); those of size 0 left out."""
    batch: list[int] = []
    held = 0
    for index in sorted((i for i in range(len(sizes)) if sizes[i]), key=lambda i: (sizes[i], i)):
        if batch and held + sizes[index] > batch_tokens:
            yield batch
            batch, held = [], 0
        batch.append(index)
        held += sizes[index]
    if batch:
        yield batch
