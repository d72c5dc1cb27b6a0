"""The fusion losses: what a student's logits cost against a teacher's sparse distribution. Pure, per position.

Shapes: N positions, V vocabulary, J candidates of the teacher. Everything is in nats and in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SparseLoss = Callable[[Tensor, Tensor, Tensor], Tensor]

SMALLEST = 1e-30  # of a probability whose logarithm is taken
ROUNDING = 1e-6  # a rest of probability below what float32 sums resolve counts as none


def gold_nll(student_logits_NV: Tensor, gold_N: Tensor) -> Tensor:
    """Negative log-likelihood of the token that stands at each position, shape [N]."""
    return torch.nn.functional.cross_entropy(student_logits_NV.float(), gold_N, reduction="none")


def cross_entropy(student_logits_NV: Tensor, ids_NJ: Tensor, probs_NJ: Tensor) -> Tensor:
    """Cross-entropy of the student under the teacher, shape [N] (FuseLLM, arXiv 2401.10491, eq. 5, kept sparse).

    `probs_NJ` sum to at most one; what is missing is one further outcome, "any other token". Slots of probability
    zero are padding. The published code renormalises the kept candidates to one instead.
    """
    loss_N: Tensor = _SparseCrossEntropy.apply(  # type: ignore[no-untyped-call]
        student_logits_NV.float(), ids_NJ, probs_NJ
    )
    return loss_N


class _SparseCrossEntropy(torch.autograd.Function):
    """Its gradient in the logits is known: softmax - p on what was kept, softmax · (1 - rest / own rest) elsewhere.

    One [N, V] table is held for it, where automatic differentiation of the same formula holds five.
    """

    @staticmethod
    def forward(ctx, logits_NV, ids_NJ, probs_NJ):  # type: ignore[no-untyped-def]
        ids_NJ = torch.where(probs_NJ > 0, ids_NJ, ids_NJ[:, :1])  # padding must not take a token out of the rest
        norm_N = logits_NV.logsumexp(-1)
        kept_NJ = logits_NV.gather(-1, ids_NJ) - norm_N[:, None]
        softmax_NV = (logits_NV - norm_N[:, None]).exp_()
        own_NJ = softmax_NV.gather(-1, ids_NJ)
        own_rest_N = softmax_NV.scatter_(-1, ids_NJ, 0.0).sum(-1)  # summed, not 1 minus the others: it may be tiny
        rest_N = _rest(probs_NJ)
        # Where the teacher left nothing out the rest has no part, whatever the student thinks of it.
        log_rest_N = torch.where(rest_N > 0, own_rest_N.clamp_min(SMALLEST).log(), 0.0)
        if ctx.needs_input_grad[0]:
            share_N = torch.where(rest_N > 0, rest_N / own_rest_N.clamp_min(SMALLEST), 0.0)
            mass_N = probs_NJ.sum(-1) + rest_N  # a little off 1 where probabilities were rounded
            gradient_NV = softmax_NV.mul_((mass_N - share_N)[:, None])
            gradient_NV.scatter_(-1, ids_NJ, own_NJ * mass_N[:, None])
            ctx.save_for_backward(gradient_NV.scatter_add_(-1, ids_NJ, -probs_NJ))
        return -(probs_NJ * kept_NJ).sum(-1) - rest_N * log_rest_N

    @staticmethod
    def backward(ctx, grad_N):  # type: ignore[no-untyped-def]
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV * grad_N[:, None], None, None


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


def over_pieces(student_logits_NV: Tensor, piece_V: Tensor, pieces: int) -> Tensor:
    """The student's log-probabilities of the pieces that its next token begins with, shape [N, pieces + 1].

    `piece_V` is the piece of every token, below 0 where it has none: those tokens together are the last outcome.
    """
    probs_NV = student_logits_NV.float().softmax(-1)
    group_V = torch.where(piece_V < 0, pieces, piece_V)
    sums_NR = torch.zeros(len(probs_NV), pieces + 1, device=probs_NV.device).index_add(1, group_V, probs_NV)
    return sums_NR.clamp_min(SMALLEST).log()


def after(student_logits_NV: Tensor, ahead_N: Tensor) -> Tensor:
    """Log-probabilities of "what was said before, then this token", shape [N, V + 1].

    `ahead_N` is the student's log-probability (nats) of what was said before; the last outcome is "anything else".
    """
    logprobs_NV = student_logits_NV.float().log_softmax(-1) + ahead_N[:, None]
    otherwise_N = torch.log1p(-ahead_N.exp().clamp_max(1 - ROUNDING))
    return torch.cat([logprobs_NV, torch.where(ahead_N < 0, otherwise_N, -torch.inf)[:, None]], dim=1)


def chunk_loss(student_logprob_C: Tensor, teacher_logprob_C: Tensor, temperature: float = 1.0) -> Tensor:
    """How far two models are apart on the likelihood of a chunk of text, shape [C] (ALM, arXiv 2503.20083, eq. 4).

    The Kullback-Leibler divergence between two coins that fall on "this chunk" with p^(1/temperature), times the
    temperature, so that its gradient does not shrink as 1/temperature: zero where the models agree.
    """
    teacher_C, student_C = teacher_logprob_C.float() / temperature, student_logprob_C.float() / temperature
    teacher_not_C, student_not_C = (torch.log(-torch.expm1(x_C.clamp_max(-ROUNDING))) for x_C in (teacher_C, student_C))
    kl_C = teacher_C.exp() * (teacher_C - student_C) + teacher_not_C.exp() * (teacher_not_C - student_not_C)
    return temperature * kl_C
