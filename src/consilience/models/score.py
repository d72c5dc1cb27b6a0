"""Teacher-forced scores: what a model thought, at every token of a reply, before it saw that token.

Shapes: N scored positions of one sequence, K likeliest tokens kept, B sequences in a batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from consilience.errors import BackendError
from consilience.models.load import ChatModel

BLOCK = 1 << 21  # logits: 8 MiB in float32
STRETCH = 128  # tokens
LOGITS_HELD = 1 << 27  # half a gigabyte in float32: 885 positions of a vocabulary of 151,646


@dataclass(frozen=True, slots=True)
class ReplyScores:
    """Log-probabilities in nats, of the full softmax in float32."""

    gold_logprobs_N: NDArray[np.float32]  # of the token that stands at the position
    ids_NK: NDArray[np.int32]  # the likeliest tokens, descending
    logprobs_NK: NDArray[np.float32]


def score_replies(
    chat_model: ChatModel,
    ids_T_of: Sequence[NDArray[np.int32]],
    positions_N_of: Sequence[NDArray[np.intp]],
    *,
    top_k: int = 0,
    batch_tokens: int = 8192,
    names: Sequence[str] = (),
) -> Iterator[tuple[int, ReplyScores]]:
    """`(index, scores)` of every sequence, at the tokens whose places are given (all >= 1), shortest sequences first.

    Batches hold sequences of like length, at most `batch_tokens` tokens with padding, fewer under a large vocabulary.
    `names` label the sequences in the error that is raised (`BackendError`) when a model answers with NaN, or rules
    out or lacks one of the tokens.
    """
    refuse_foreign_tokens(chat_model.name, chat_model.vocabulary_size, ids_T_of, names)
    batch_tokens = min(batch_tokens, max(1, LOGITS_HELD // chat_model.vocabulary_size))
    for batch in _batches([len(ids) for ids in ids_T_of], batch_tokens):
        scored = _score_batch(chat_model, [ids_T_of[i] for i in batch], [positions_N_of[i] for i in batch], top_k)
        for index, scores in zip(batch, scored, strict=True):
            refuse_no_number(chat_model.name, scores, names[index] if names else str(index))
            yield index, scores


def refuse_foreign_tokens(
    model: str, vocabulary_size: int, ids_T_of: Sequence[NDArray[np.int32]], names: Sequence[str]
) -> None:
    """Raises `BackendError` where a text holds a token that the model has no row for."""
    for index, ids in enumerate(ids_T_of):
        if ids.max(initial=0) >= vocabulary_size:
            label = names[index] if names else str(index)
            raise BackendError(
                f"model {model} has {vocabulary_size} tokens, but its tokenizer writes token {ids.max()} in "
                f"conversation {label!r}. They do not belong together: get the model's files again."
            )


def refuse_no_number(model: str, scores: ReplyScores, label: str) -> None:
    """Raises `BackendError` where a model gives NaN, or rules out what stands there."""
    if not np.isfinite(scores.gold_logprobs_N).all():
        what = "NaN" if np.isnan(scores.gold_logprobs_N).any() else "a probability of zero"
        raise BackendError(
            f"model {model} gives {what} on conversation {label!r}. "
            "Its weights may be damaged, or need another dtype (--set represent.dtype=float32)."
        )


def _batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in order of length, cut so that the padded batch holds at most `batch_tokens` tokens (but one always)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.inference_mode()
def _score_batch(
    chat_model: ChatModel,
    ids_T_of: Sequence[NDArray[np.int32]],
    positions_N_of: Sequence[NDArray[np.intp]],
    top_k: int,
) -> list[ReplyScores]:
    lengths = [len(ids) for ids in ids_T_of]
    input_ids_BT = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    mask_BT = torch.zeros_like(input_ids_BT)
    for row, ids in enumerate(ids_T_of):
        input_ids_BT[row, : len(ids)] = torch.from_numpy(ids.astype(np.int64))
        mask_BT[row, : len(ids)] = 1
    kept = np.unique(np.concatenate([np.asarray(positions, dtype=np.int64) - 1 for positions in positions_N_of]))
    if not len(kept):
        nothing = torch.zeros(0, chat_model.vocabulary_size), torch.zeros(0, dtype=torch.long)
        return [_scores_of(*nothing, ids[:0], top_k) for ids in ids_T_of]
    logits_BNV = logits_at(chat_model.model, input_ids_BT, mask_BT, kept)
    results = []
    for row, (ids, positions) in enumerate(zip(ids_T_of, positions_N_of, strict=True)):
        columns = torch.from_numpy(np.searchsorted(kept, np.asarray(positions, dtype=np.int64) - 1))
        results.append(_scores_of(logits_BNV[row], columns, ids[positions], top_k))
    return results


def logits_at(model: Any, input_ids_BT: torch.Tensor, mask_BT: torch.Tensor, columns: NDArray[np.int64]) -> Any:
    """The model's logits at the given columns, [B, len(columns), V]; the others are not computed where it can do so."""
    device = next(model.parameters()).device
    keep = torch.from_numpy(columns).to(device)
    inputs = {"input_ids": input_ids_BT.to(device), "attention_mask": mask_BT.to(device), "use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        return model(**inputs, logits_to_keep=keep).logits
    return model(**inputs).logits[:, keep]


def _scores_of(logits_NV: torch.Tensor, columns_M: torch.Tensor, gold_M: NDArray[np.int32], top_k: int) -> ReplyScores:
    """What is stored of the rows `columns_M`, a few at a time, so that a processor reads them from memory once."""
    rows = max(1, BLOCK // logits_NV.shape[1]) if logits_NV.device.type == "cpu" else max(1, len(columns_M))
    all_gold = torch.from_numpy(gold_M.astype(np.int64)).to(logits_NV.device)
    parts = []
    for columns, gold in zip(columns_M.split(rows), all_gold.split(rows), strict=True):
        block = _rows(logits_NV, columns)
        logits, ids = _likeliest(block, top_k)
        norm = _log_sum_exp(block.float(), logits[:, :1].float())
        parts.append(((block.gather(-1, gold[:, None]).float() - norm)[:, 0], ids, logits.float() - norm))
    gold_logprobs, ids, logprobs = (torch.cat(part).cpu() for part in zip(*parts, strict=True))
    return ReplyScores(gold_logprobs.numpy(), ids.to(torch.int32).numpy(), logprobs.numpy())


def _rows(logits_NV: torch.Tensor, columns_M: torch.Tensor) -> torch.Tensor:
    """The rows `columns_M`, which ascend; not copied where they follow one another, as those of a reply do."""
    if not len(columns_M):
        return logits_NV[:0]
    first, end = int(columns_M[0]), int(columns_M[-1]) + 1
    return logits_NV[first:end] if end - first == len(columns_M) else logits_NV[columns_M.to(logits_NV.device)]


def _log_sum_exp(logits_MV: torch.Tensor, largest_M1: torch.Tensor) -> torch.Tensor:
    """`logsumexp(-1, keepdim=True)`, which need not look for the largest logit where that is known."""
    if not largest_M1.shape[1]:
        return logits_MV.logsumexp(-1, keepdim=True)
    return (logits_MV - largest_M1).exp_().sum(-1, keepdim=True).log_() + largest_M1


def _likeliest(logits_MV: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top_k` largest logits of each row, descending, and their ids: `topk` in a third of its time.

    The k stretches of STRETCH tokens with the largest maxima hold the k largest logits.
    """
    rows, vocabulary = logits_MV.shape
    whole = vocabulary - vocabulary % STRETCH
    if top_k * STRETCH >= whole or not top_k:
        found = logits_MV.topk(top_k, dim=-1)
        return found.values, found.indices
    stretches = logits_MV[:, :whole].unflatten(1, (-1, STRETCH))
    best_MK1 = stretches.amax(-1).topk(top_k, dim=-1).indices[..., None]
    offsets = torch.arange(STRETCH, device=logits_MV.device)
    beyond = torch.arange(whole, vocabulary, device=logits_MV.device).expand(rows, -1)
    ids = torch.cat([(best_MK1 * STRETCH + offsets).flatten(1), beyond], dim=1)
    found = logits_MV.gather(1, ids).topk(top_k, dim=-1)
    return found.values, ids.gather(1, found.indices)
