"""Which tokens may be drawn: the likeliest ones, for samplers that invert probabilities and for those that add noise.

Shapes: N distributions, V vocabulary, J tokens kept of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Kept(NamedTuple):
    """The tokens that may be drawn, likeliest first, and their probabilities, which sum to 1."""

    ids_NJ: Tensor
    probs_NJ: Tensor


def keep_likely(logits_NV: Tensor, *, temperature: float, top_k: int, top_p: float) -> Kept:
    """Temperature, then the `top_k` likeliest tokens (0: all), then the fewest of these that hold `top_p`.

    The order and the meaning are transformers' (the nucleus: Holtzman et al. 2020, arXiv:1904.09751); of tokens with
    equal logits at the k-th place one is kept. A temperature of 0 keeps the likeliest token alone.
    """
    if temperature == 0:
        top = logits_NV.argmax(-1, keepdim=True)
        return Kept(top, torch.ones_like(top, dtype=torch.float32))
    kept = logits_NV.shape[-1] if top_k == 0 else min(top_k, logits_NV.shape[-1])
    logits_NJ, ids_NJ = logits_NV.topk(kept, dim=-1)
    probs_NJ = (logits_NJ.float() / temperature).softmax(-1)
    if top_p < 1:
        before = probs_NJ.cumsum(-1) - probs_NJ
        probs_NJ = probs_NJ.masked_fill(before >= top_p, 0)  # the first one always stays
        probs_NJ = probs_NJ / probs_NJ.sum(-1, keepdim=True)
    return Kept(ids_NJ, probs_NJ)


def keep_likeliest(logits_NV: Tensor, *, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """`logits_NV` with -inf for all tokens that `keep_likely` does not keep."""
    if not 0 < top_k < logits_NV.shape[-1] and top_p == 1:
        return logits_NV
    kept = keep_likely(logits_NV, temperature=1.0, top_k=top_k, top_p=top_p)
    logits_NJ = logits_NV.gather(-1, kept.ids_NJ).masked_fill(kept.probs_NJ == 0, -torch.inf)
    return torch.full_like(logits_NV, -torch.inf).scatter(-1, kept.ids_NJ, logits_NJ)
