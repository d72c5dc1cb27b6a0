"""The fusion losses: what a student's logits cost against a teacher's sparse distribution. Pure, per position.

Shapes: N positions, V vocabulary, J candidates of the teacher. Everything is in nats and in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SparseLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

ROUNDING = 1e-6  # a rest of probability below what float32 sums resolve counts as none


def gold_nll(student_logits_NV: Tensor, gold_N: Tensor) -> Tensor:
    """Negative log-likelihood of the token that stands at each position, shape [N]."""
    return torch.nn.functional.cross_entropy(student_logits_NV.float(), gold_N, reduction="none")


def cross_entropy(student_logits_NV: Tensor, ids_NJ: Tensor, probs_NJ: Tensor) -> Tensor:
    """Cross-entropy of the student under the teacher, shape [N] (FuseLLM, arXiv 2401.10491, eq. 5, kept sparse).

    `probs_NJ` sum to at most one; what is missing is one further outcome, "any other token". Slots of probability
    zero are padding. The published code renormalises the kept candidates to one instead.
    """
    ids_NJ = torch.where(probs_NJ > 0, ids_NJ, ids_NJ[:, :1])  # padding must not take a token out of the rest
    logits_NV = student_logits_NV.float()
    norm_N = logits_NV.logsumexp(-1)
    kept_NJ = logits_NV.gather(-1, ids_NJ) - norm_N[:, None]
    rest_N = _rest(probs_NJ)
    others_NV = logits_NV.scatter(-1, ids_NJ, -torch.inf)
    # Where the teacher left nothing out the rest has no part, whatever the student thinks of it.
    student_rest_N = torch.where(rest_N > 0, others_NV.logsumexp(-1) - norm_N, 0.0)
    return -(probs_NJ * kept_NJ).sum(-1) - rest_N * student_rest_N


def forward_kl(student_logits_NV: Tensor, ids_NJ: Tensor, probs_NJ: Tensor) -> Tensor:
    """KL(teacher || student) over the kept candidates and "any other token", shape [N].

    Differs from `cross_entropy` by the teacher's entropy: the same gradient, and zero where the two agree.
    """
    entropy_N = -torch.xlogy(probs_NJ, probs_NJ).sum(-1) - torch.xlogy(_rest(probs_NJ), _rest(probs_NJ))
    return cross_entropy(student_logits_NV, ids_NJ, probs_NJ) - entropy_N


def _rest(probs_NJ: Tensor) -> Tensor:
    rest_N = 1 - probs_NJ.sum(-1)
    return torch.where(rest_N > ROUNDING, rest_N, 0.0)


LOSSES: dict[str, SparseLoss] = {"ce": cross_entropy, "kl": forward_kl}
