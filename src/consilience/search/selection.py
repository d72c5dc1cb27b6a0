"""What a search decides by: pure functions of scores, texts and numbers between 0 and 1.

Shapes: M hypotheses to choose from, N distributions, J tokens kept of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from consilience.models.nucleus import Kept

T = TypeVar("T")


def select(scores_M: Sequence[float], texts_M: Sequence[Hashable], width: int) -> list[int]:
    """Indices of the `width` best hypotheses, best first, equal texts once; of equal scores the earlier one."""
    order = np.argsort(-np.asarray(scores_M, dtype=np.float64), kind="stable")
    chosen: list[int] = []
    seen: set[Hashable] = set()
    for index in order.tolist():
        if len(chosen) == width:
            break
        if texts_M[index] not in seen:
            seen.add(texts_M[index])
            chosen.append(index)
    return chosen


def select_published(scores_M: Sequence[float], width: int) -> list[int]:
    """The published choice: `torch.topk` of float32 scores, copies and all."""
    scores = torch.tensor(scores_M, dtype=torch.float32)
    found: list[int] = torch.topk(scores, min(width, len(scores_M)), sorted=True).indices.tolist()
    return found


def common_prefix(sequences: Sequence[Sequence[T]]) -> int:
    """Length of the longest common prefix of all `sequences`; 0 of none."""
    if not sequences:
        return 0
    shortest = min(map(len, sequences))
    for place in range(shortest):
        if any(sequence[place] != sequences[0][place] for sequence in sequences):
            return place
    return shortest


def draw(kept: Kept, rows: Sequence[int], uniforms: NDArray[np.float64]) -> tuple[list[int], list[float]]:
    """A token for each of `rows` of `kept` and its probability, by inverting the distribution at a number of [0, 1).

    The numbers come from outside, so that a prompt's draws do not depend on what else is in the batch.
    """
    probs = kept.probs_NJ[list(rows)].double()
    at = torch.searchsorted(probs.cumsum(-1), torch.from_numpy(uniforms).to(probs)[:, None], right=True)
    last = (probs > 0).sum(-1, keepdim=True) - 1  # the sum may be a rounding error below 1
    at = torch.minimum(at, last)
    drawn = torch.cat([kept.ids_NJ[list(rows)].gather(-1, at), probs.gather(-1, at)], -1).tolist()
    return [int(token) for token, _ in drawn], [prob for _, prob in drawn]


def entropy(kept: Kept) -> Tensor:
    """Of each distribution, in bits, shape [N]."""
    probs_NJ = kept.probs_NJ.double()
    return -torch.special.xlogy(probs_NJ, probs_NJ).sum(-1) / np.log(2)


def promise(
    values_M: Sequence[float],
    priors_M: Sequence[float],
    visits_M: Sequence[int],
    *,
    parent_visits: int,
    entropy: float,
    c: float,
    w: float,
) -> NDArray[np.float64]:
    """W2S-AlignTree's entropy-aware PUCT of M siblings (arXiv 2511.11518), shape [M].

    value + c · prior · √(visits of the parent) / (1 + visits) · (1 + w · entropy of the parent's next token, in bits)
    """
    priors, visits = np.asarray(priors_M, dtype=np.float64), np.asarray(visits_M, dtype=np.float64)
    return np.asarray(values_M) + c * priors * np.sqrt(parent_visits) / (1 + visits) * (1 + w * entropy)
