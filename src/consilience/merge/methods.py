"""Merging methods: pure functions of one tensor of the base and the same tensor of each model.

Every method computes in float32 and returns float32; its inputs are left as they are. A delta is a model minus the
base. Each docstring says where a published code departs from its paper.

Deltas are made a chunk at a time, so memory is a few float32 copies of the tensor however many models there are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from consilience.errors import ConfigError, pick

Merge = Callable[..., Tensor]  # (base, models, *, the method's own parameters) -> merged


def linear(base: Tensor, models: Sequence[Tensor], *, weights: Sequence[float] | None = None) -> Tensor:
    """Weighted mean of the models (model soups, arXiv:2203.05482): sum_k w_k theta_k / sum_k w_k.

    `weights` default to equal ones; they must not sum to 0. The base cancels out: it is taken off first and added last
    only because the small differences lose less to rounding (with bfloat16 models, 0.7 % of the results otherwise).
    """
    shares = _weights(weights, len(models))
    total = sum(shares)
    if total == 0:
        raise ConfigError(f"linear divides by the sum of its weights, and {list(shares)} sum to 0. Change a weight.")
    return _merged(base, models, lambda deltas: _weighted_sum(deltas, [share / total for share in shares]))


def task_arithmetic(
    base: Tensor, models: Sequence[Tensor], *, weights: Sequence[float] | None = None, scale: float = 1.0
) -> Tensor:
    """Adds the weighted deltas to the base (arXiv:2212.04089): theta_0 + scale * sum_k w_k delta_k.

    `weights` default to 1 each and are not normalised; a negative one takes a model's change away. The paper tunes
    `scale` on held-out data, near 0.3 to 0.4 for eight models.
    """
    shares = _weights(weights, len(models))
    return _merged(base, models, lambda deltas: scale * _weighted_sum(deltas, shares))


def ties(
    base: Tensor,
    models: Sequence[Tensor],
    *,
    density: float = 0.2,
    weights: Sequence[float] | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Trims each delta, elects a sign per entry, averages the deltas that have it (arXiv:2306.01708, algorithm 1).

    Trim: the int(density * n) largest entries of each delta are kept, at least one; what ties with the smallest kept
    is kept too, so no entry is preferred for its place. The paper trims over all tensors together, this and mergekit
    within each tensor. Elect: the sign of sum_k w_k delta_k, + where that is 0. Merge: the mean, weighted by w_k, of
    the nonzero deltas of that sign, times `scale`. `weights` (the paper has none) default to equal ones.
    """
    shares = _weights(weights, len(models))
    if min(shares) < 0 or sum(shares) == 0:
        raise ConfigError(f"ties averages with its weights, got {list(shares)}; expected none below 0, not all 0.")
    fraction = _fraction(density)
    masks = None
    if fraction < 1:
        count = max(1, int(fraction * base.numel()))
        masks = [_largest(_by_entry(base, [model], lambda deltas: deltas[0].abs()), count) for model in models]

    def elected_mean(trimmed: Sequence[Tensor]) -> Tensor:
        return scale * _mean_of_agreeing(trimmed, shares, vote=_weighted_sum(trimmed, shares))

    return _merged(base, models, elected_mean, masks)


def varm(base: Tensor, models: Sequence[Tensor]) -> Tensor:
    """Weights each model by how much it changed this matrix (VaRM, FuseChat 1.0, arXiv:2402.16107).

    W_j = mean(delta_j^2) / sum_j mean(delta_j^2) and theta = sum_j W_j theta_j, with deltas against the pivot; equal
    weights where no model changed anything. The paper's formula, not FuseAI's script, which averages plainly.
    """
    shares = _shares_of_change(base, models)  # they sum to 1, so the base may be taken off first and added last
    return _merged(base, models, lambda deltas: _weighted_sum(deltas, shares))


def sce(base: Tensor, models: Sequence[Tensor], *, density: float = 0.1, variant: str = "fusechat") -> Tensor:
    """Select, Calculate, Erase (FuseChat, arXiv:2408.07990), then the weighted mean of what is left.

    Select: the int(density * nonzero) entries whose deltas vary most between the models (population variance; what
    ties with the last is selected too); all entries at density 1. Calculate: eta_k = mean(delta_k^2) over the
    selected entries / the sum of these over k; equal where all are 0. Erase: per entry, only deltas with the sign of
    sum_k delta_k (+ where that is 0) stay. Merge: theta_0 + sum_k eta_k delta_k / sum_k eta_k over what stayed.

    `variant` says what the selection enters: "fusechat", as in FuseAI's code, only eta, so that every entry is
    merged; "mergekit", as in the paper's order of steps, the deltas themselves, so that the rest keeps the base's
    value. They agree at density 1. mergekit's own code also takes equal weights when the summed mean squares are below
    1e-6, the usual case for small learning rates; that is not done here.
    """
    selection_enters_deltas = pick({"fusechat": False, "mergekit": True}, variant, "variant of sce")
    fraction = _fraction(density)
    masks = None
    if fraction < 1:
        spread = _by_entry(base, models, _spread)
        selected = _largest(spread, int(fraction * int(spread.count_nonzero())))
        masks = [selected] * len(models)
    shares = _shares_of_change(base, models, masks)

    def weighted_mean(deltas: Sequence[Tensor]) -> Tensor:
        return _mean_of_agreeing(deltas, shares, vote=_weighted_sum(deltas, [1.0] * len(deltas)))

    return _merged(base, models, weighted_mean, masks if selection_enters_deltas else None)


MERGES: dict[str, Merge] = {
    "linear": linear,
    "sce": sce,
    "task_arithmetic": task_arithmetic,
    "ties": ties,
    "varm": varm,
}


def _weights(weights: Sequence[float] | None, models: int) -> Sequence[float]:
    if weights is None:
        return [1.0] * models
    if len(weights) != models:
        raise ConfigError(f"got {len(weights)} weights for {models} models; expected one per model, in their order.")
    if not all(map(math.isfinite, weights)):
        raise ConfigError(f"weights are {list(weights)}; expected finite numbers.")
    return weights


def _fraction(density: float) -> float:
    if not 0 < density <= 1:
        raise ConfigError(f"density is {density}; expected a fraction above 0 and up to 1 (0.2 keeps a fifth).")
    return density


CHUNK = 1 << 18  # entries: a chunk of every model fits in the processor's cache

Masks = Sequence[Tensor] | None  # per model, where its delta counts; None: everywhere
OfDeltas = Callable[[Sequence[Tensor]], Tensor]  # a chunk of every delta -> one number per entry


def _split(tensor: Tensor) -> Sequence[Tensor]:
    chunks: Sequence[Tensor] = torch.split(tensor.reshape(-1), CHUNK)
    return chunks


def _chunks(base: Tensor, models: Sequence[Tensor], masks: Masks = None) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """A chunk of the base and of every model's delta, flat and in float32; a delta is 0 where its mask is False."""
    flat = [_split(tensor) for tensor in (base, *models, *(masks or ()))]
    for base_chunk, *others in zip(*flat):
        start = base_chunk.float()
        deltas = [model.float() - start for model in others[: len(models)]]
        for delta, mask in zip(deltas, others[len(models) :]):
            delta.mul_(mask)
        yield start, deltas


def _by_entry(base: Tensor, models: Sequence[Tensor], number: OfDeltas) -> Tensor:
    """`number` of the deltas at every entry."""
    result = torch.empty(base.shape, dtype=torch.float32, device=base.device)
    for part, (_, deltas) in zip(_split(result), _chunks(base, models)):
        part.copy_(number(deltas))
    return result


def _merged(base: Tensor, models: Sequence[Tensor], change: OfDeltas, masks: Masks = None) -> Tensor:
    """The base plus `change` of the deltas at every entry."""
    result = torch.empty(base.shape, dtype=torch.float32, device=base.device)
    for part, (start, deltas) in zip(_split(result), _chunks(base, models, masks)):
        torch.add(start, change(deltas), out=part)
    return result


def _shares_of_change(base: Tensor, models: Sequence[Tensor], masks: Masks = None) -> list[float]:
    """Each model's part of the summed squares of all deltas. Squared in float64: a change of 1e-25 is a change."""
    squares = [0.0] * len(models)
    for _, deltas in _chunks(base, models, masks):
        for k, delta in enumerate(deltas):
            squares[k] += float(torch.linalg.vector_norm(delta, dtype=torch.float64)) ** 2
    total = sum(squares)
    return [square / total for square in squares] if total > 0 else [1 / len(models)] * len(models)


def _largest(scores: Tensor, count: int) -> Tensor:
    """Where `scores` are among the `count` largest, ties with the smallest of these included; nowhere for 0."""
    if count == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    # numpy's partition takes half the time of torch's kthvalue and a third of the memory
    place = scores.numel() - count
    return scores >= float(np.partition(scores.reshape(-1).numpy(force=True), place)[place])


def _spread(deltas: Sequence[Tensor]) -> Tensor:
    """Per entry, the squared differences of all pairs of K deltas: K^2 times their population variance.

    No rounded mean enters: it is 0 exactly where all agree, and equal spreads stay equal in any order of the models.
    """
    total = torch.zeros_like(deltas[0])
    for one, other in itertools.combinations(deltas, 2):
        total.add_((one - other).square_())
    return total


def _weighted_sum(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(deltas[0])
    for delta, weight in zip(deltas, weights):
        total.add_(delta, alpha=weight)
    return total


def _mean_of_agreeing(deltas: Sequence[Tensor], weights: Sequence[float], *, vote: Tensor) -> Tensor:
    """Per entry, the weighted mean of the deltas with the sign of `vote` (0 counts as +); 0 where there is none."""
    sign = torch.where(vote >= 0, 1.0, -1.0)
    total, weight_sum = torch.zeros_like(vote), torch.zeros_like(vote)
    for delta, weight in zip(deltas, weights):
        agrees = delta * sign > 0
        total.add_(delta * agrees, alpha=weight)
        weight_sum.add_(agrees, alpha=weight)
    return total.div_(weight_sum.masked_fill_(weight_sum == 0, 1))
