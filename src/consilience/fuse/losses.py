"""The fusion losses: what a student's logits cost against a teacher's sparse distribution. Pure, per position.

Losses are small formulas on a few log-probabilities per position (`Outcomes`); `outcomes` is the one place that reads
all logits, and the one gradient over a whole vocabulary.

Shapes: N positions, V vocabulary, J candidates of the teacher, G groups of tokens. Everything is in nats and float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST = 1e-30  # of a probability whose logarithm is taken
ROUNDING = 1e-6  # a rest of probability below what float32 sums resolve counts as none


class Outcomes(NamedTuple):
    """The student's log-probabilities of what a loss asks for at each position."""

    gold_N: Tensor  # of the token that stands there
    kept_NJ: Tensor  # of the teacher's candidates
    rest_N: Tensor  # of any other outcome, all together


Loss = Callable[[Outcomes, Tensor], Tensor]


def outcomes(
    logits_NV: Tensor, gold_N: Tensor, ids_NJ: Tensor, probs_NJ: Tensor, group_V: Tensor | None = None, groups: int = 0
) -> Outcomes:
    """What the student thinks of the gold tokens, of the candidates `ids_NJ`, and of everything else.

    Candidates are tokens; with `group_V`, the group that each token belongs to (below 0: to none), they are groups out
    of `groups`, as likely as their tokens together. Slots where the teacher's `probs_NJ` are zero are padding.
    """
    ids_NJ = torch.where(probs_NJ > 0, ids_NJ, ids_NJ[:, :1])  # padding must not take an outcome out of the rest
    if group_V is not None:
        group_V = torch.where(group_V < 0, groups, group_V)
    return Outcomes(*_Outcomes.apply(logits_NV, gold_N, ids_NJ, group_V, groups + 1))  # type: ignore[no-untyped-call]


class _Outcomes(torch.autograd.Function):
    """One softmax [N, V] is computed, and turned in place into the gradient when the losses have theirs.

    With c the gradient in an outcome's log-probability, that in the logit of token v is c[gold = v] + softmax_v ·
    (c_o / p_o - sum of all c), where o is the outcome that v belongs to.
    """

    @staticmethod
    def forward(ctx, logits_NV, gold_N, ids_NJ, group_V, groups):  # type: ignore[no-untyped-def]
        exact = logits_NV.dtype if logits_NV.dtype == torch.float64 else torch.float32
        logprobs_NV = logits_NV.log_softmax(-1, dtype=exact)
        gold_logprob_N = logprobs_NV.gather(-1, gold_N[:, None])[:, 0]
        if group_V is None:
            kept_NJ = logprobs_NV.gather(-1, ids_NJ)
            softmax_NV = probs_NG = logprobs_NV.exp_()
        else:
            softmax_NV = logprobs_NV.exp_()
            probs_NG = softmax_NV.new_zeros(len(softmax_NV), groups)
            probs_NG.scatter_add_(1, group_V.expand(len(softmax_NV), -1), softmax_NV)
            kept_NJ = probs_NG.gather(-1, ids_NJ).clamp_min(SMALLEST).log()
        own_NJ = probs_NG.gather(-1, ids_NJ)
        # Summed, not one minus the others: it may be tiny.
        asked = ids_NJ.shape[1] > 0
        rest_N = probs_NG.scatter_(-1, ids_NJ, 0.0).sum(-1) if asked else torch.ones_like(gold_logprob_N)
        ctx.save_for_backward(gold_N, ids_NJ, own_NJ, rest_N, group_V)
        ctx.softmax_NV, ctx.groups, ctx.dtype = softmax_NV, groups, logits_NV.dtype
        return gold_logprob_N, kept_NJ, rest_N.clamp_min(SMALLEST).log()

    @staticmethod
    def backward(ctx, by_gold_N, by_kept_NJ, by_rest_N):  # type: ignore[no-untyped-def]
        gold_N, ids_NJ, own_NJ, rest_N, group_V = ctx.saved_tensors
        gradient_NV, ctx.softmax_NV = ctx.softmax_NV, None  # it is written over
        all_N = by_gold_N + by_kept_NJ.sum(-1) + by_rest_N
        elsewhere_N = torch.where(rest_N > SMALLEST, by_rest_N / rest_N, 0.0) - all_N
        if group_V is None:
            gradient_NV.mul_(elsewhere_N[:, None])
            gradient_NV.scatter_(-1, ids_NJ, -own_NJ * all_N[:, None]).scatter_add_(-1, ids_NJ, by_kept_NJ)
        else:
            factor_NG = (
                elsewhere_N[:, None].repeat(1, ctx.groups).scatter_(-1, ids_NJ, -all_N[:, None].expand_as(own_NJ))
            )
            share_NJ = torch.where(own_NJ > SMALLEST, by_kept_NJ / own_NJ, 0.0)
            factor_NG.scatter_add_(-1, ids_NJ, share_NJ)
            gradient_NV.mul_(factor_NG.gather(-1, group_V.expand_as(gradient_NV)))
        gradient_NV.scatter_add_(-1, gold_N[:, None], by_gold_N[:, None])
        return gradient_NV.to(ctx.dtype), None, None, None, None


def after(student: Outcomes, ahead_N: Tensor) -> Outcomes:
    """`student`'s candidates as "what was said before, then this token"; the rest is anything else.

    `ahead_N` is the student's log-probability (nats) of what was said before.
    """
    otherwise_N = torch.log1p(-ahead_N.exp().clamp_max(1 - ROUNDING))
    otherwise_N = torch.where(ahead_N < 0, otherwise_N, -torch.inf)
    return student._replace(
        kept_NJ=student.kept_NJ + ahead_N[:, None], rest_N=torch.logaddexp(student.rest_N + ahead_N, otherwise_N)
    )


def cross_entropy(student: Outcomes, probs_NJ: Tensor) -> Tensor:
    """Cross-entropy of the student under the teacher, shape [N] (FuseLLM, arXiv 2401.10491, eq. 5, kept sparse).

    `probs_NJ` sum to at most one; what is missing is one further outcome, "any other token". The published code
    renormalises the kept candidates to one instead.
    """
    rest_N = _rest(probs_NJ)
    # Where the teacher left nothing out the rest has no part, whatever the student thinks of it.
    return -(probs_NJ * student.kept_NJ).sum(-1) - torch.where(rest_N > 0, rest_N * student.rest_N, 0.0)


def forward_kl(student: Outcomes, probs_NJ: Tensor) -> Tensor:
    """KL(teacher || student) over the kept candidates and "any other token", shape [N].

    Differs from `cross_entropy` by the teacher's entropy: the same gradient, and zero where the two agree.
    """
    entropy_N = -torch.xlogy(probs_NJ, probs_NJ).sum(-1) - torch.xlogy(_rest(probs_NJ), _rest(probs_NJ))
    return cross_entropy(student, probs_NJ) - entropy_N


def _rest(probs_NJ: Tensor) -> Tensor:
    rest_N = 1 - probs_NJ.sum(-1)
    return torch.where(rest_N > ROUNDING, rest_N, 0.0)


LOSSES: dict[str, Loss] = {"ce": cross_entropy, "kl": forward_kl}


def chunk_loss(student_logprob_C: Tensor, teacher_logprob_C: Tensor, temperature: float = 1.0) -> Tensor:
    """How far two models are apart on the likelihood of a chunk of text, shape [C] (ALM, arXiv 2503.20083, eq. 4).

    The Kullback-Leibler divergence between two coins that fall on "this chunk" with p^(1/temperature), times the
    temperature, so that its gradient does not shrink as 1/temperature: zero where the models agree.
    """
    teacher_C, student_C = teacher_logprob_C.float() / temperature, student_logprob_C.float() / temperature
    teacher_not_C, student_not_C = (torch.log(-torch.expm1(x_C.clamp_max(-ROUNDING))) for x_C in (teacher_C, student_C))
    kl_C = teacher_C.exp() * (teacher_C - student_C) + teacher_not_C.exp() * (teacher_not_C - student_not_C)
    return temperature * kl_C
