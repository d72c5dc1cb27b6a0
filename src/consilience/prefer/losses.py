"""Preference losses: log-probabilities of whole replies in, one loss per pair out. Pure.

Shapes: B pairs. Log-probabilities are in nats and sums over a reply's tokens (the one that ends it among them), unless
`per_token` says that they are divided by the number of tokens first. Notation of the formulas: m = beta * (log pi(w) -
log ref(w) - log pi(l) + log ref(l)), with w the chosen and l the rejected reply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from consilience.config import Settings, known


class PairLogprobs(NamedTuple):
    """What policy and reference think of the replies of B pairs.

    `third` is the reply beside the pair that SELM, XPO and VPO are optimistic about, and WRPO's source reply; it may
    be the chosen or the rejected one. `ref_third` changes no gradient but WRPO's: it only keeps the value at ln 2.
    """

    chosen_B: Tensor
    rejected_B: Tensor
    third_B: Tensor
    ref_chosen_B: Tensor
    ref_rejected_B: Tensor
    ref_third_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    third_tokens_B: Tensor

    def per_token(self) -> PairLogprobs:
        """The same with means over tokens in the place of sums."""
        tokens = (self.chosen_tokens_B, self.rejected_tokens_B, self.third_tokens_B)
        means = [sum_B / count_B for sum_B, count_B in zip(self[:6], (*tokens, *tokens), strict=True)]
        return PairLogprobs(*means, *(torch.ones_like(count_B) for count_B in tokens))


class LossSettings(Settings):
    """Which loss, and its numbers. Those that a loss does not name in its docstring do not enter it."""

    name: Annotated[str, known(lambda: LOSSES, "preference loss")] = "dpo"
    beta: float = Field(0.1, gt=0, description="how near the reference: the scale of the implicit reward")
    alpha: float = Field(0.0, ge=0, description="weight of the third reply's term")
    alpha_ramp: float | None = Field(
        None, ge=0, le=1, description="share of a round's steps in which alpha grows from 0; default: wrpo 1, others 0"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="how often a preference is taken to be wrong")
    per_token: bool = Field(False, description="mean log-probabilities over a reply's tokens in the place of sums")
    times_beta: bool = Field(True, description="selm: alpha * beta as in its code and eq. 4.2; false: Algorithm 1")
    pessimistic: bool = Field(False, description="vpo: the sign for offline data")
    gamma: float = Field(1.0, ge=0, description="simpo: the margin aimed for")

    def at(self, progress: float) -> LossSettings:
        """The settings when the share `progress` of the round's steps is done."""
        ramp = self.alpha_ramp if self.alpha_ramp is not None else float(self.name == "wrpo")
        if progress >= ramp:
            return self
        return self.model_copy(update={"alpha": self.alpha * progress / ramp})


PreferenceLoss = Callable[[PairLogprobs, LossSettings], Tensor]


def pair_loss(pairs: PairLogprobs, settings: LossSettings) -> Tensor:
    """The loss of `settings.name` for every pair, shape [B]."""
    return LOSSES[settings.name](pairs.per_token() if settings.per_token else pairs, settings)


def margin(pairs: PairLogprobs, beta: float) -> Tensor:
    """The difference of the implicit rewards, m, shape [B]."""
    chosen_B, rejected_B = pairs.chosen_B - pairs.rejected_B, pairs.ref_chosen_B - pairs.ref_rejected_B
    return beta * (chosen_B - rejected_B)


def dpo(pairs: PairLogprobs, settings: LossSettings) -> Tensor:
    """-(1 - e) log sigmoid(m) - e log sigmoid(-m), with e = `label_smoothing` (DPO, arXiv 2305.18290, eq. 7; cDPO)."""
    m_B, e = margin(pairs, settings.beta), settings.label_smoothing
    return -(1 - e) * logsigmoid(m_B) - e * logsigmoid(-m_B)


def ipo(pairs: PairLogprobs, settings: LossSettings) -> Tensor:
    """(m / beta - 1 / (2 beta))^2 (IPO, arXiv 2310.12036, eq. 17); TRL's is this one with `per_token`."""
    return (margin(pairs, 1.0) - 1 / (2 * settings.beta)) ** 2


def hinge(pairs: PairLogprobs, settings: LossSettings) -> Tensor:
    """max(0, 1 - m) (SLiC, arXiv 2305.10425, with the reference of RSO, arXiv 2309.06657)."""
    return relu(1 - margin(pairs, settings.beta))


def selm(pairs: PairLogprobs, settings: LossSettings) -> Tensor:
    """DPO + alpha beta (log pi(y) - log ref(y)), y the policy's own reply (SELM, arXiv 2405.19332, as its code has it).

    Minimised: it lowers the likelihood of what the last policy said, whichever rank that had. `times_beta: false` is
    the coefficient alpha of the printed Algorithm 1.
    """
    weight = settings.alpha * (settings.beta if settings.times_beta else 1.0)
    return dpo(pairs, settings) + weight * _log_ratio(pairs)


def xpo(pairs: PairLogprobs, settings: LossSettings) -> Tensor:
    """DPO + alpha (log pi(y) - log ref(y)), y from the first policy (XPO, arXiv 2405.21046, Algorithm 1).

    The paper leaves out log ref(y), which changes no gradient.
    """
    return dpo(pairs, settings) + settings.alpha * _log_ratio(pairs)


def vpo(pairs: PairLogprobs, settings: LossSettings) -> Tensor:
    """DPO + alpha beta (log pi(y) - log ref(y)), y from a fixed policy (VPO, arXiv 2405.19320); minus where offline."""
    weight = settings.alpha * settings.beta * (-1 if settings.pessimistic else 1)
    return dpo(pairs, settings) + weight * _log_ratio(pairs)


def simpo(pairs: PairLogprobs, settings: LossSettings) -> Tensor:
    """-log sigmoid(beta (mean log pi(w) - mean log pi(l)) - gamma), without reference (SimPO, arXiv 2405.14734)."""
    mean = pairs.per_token()
    return -logsigmoid(settings.beta * (mean.chosen_B - mean.rejected_B) - settings.gamma)


def orpo(pairs: PairLogprobs, settings: LossSettings) -> Tensor:
    """-mean log pi(w) - beta log sigmoid(log odds(w) - log odds(l)), without reference (ORPO, arXiv 2403.07691).

    The odds are those of the geometric mean probability of a token; `beta` is the paper's lambda.
    """
    mean = pairs.per_token()
    log_odds_B = (mean.chosen_B - mean.rejected_B) - (_log_not(mean.chosen_B) - _log_not(mean.rejected_B))
    return -mean.chosen_B - settings.beta * logsigmoid(log_odds_B)


def wrpo(pairs: PairLogprobs, settings: LossSettings) -> Tensor:
    """-log sigmoid(alpha r(s) + (1 - alpha) r(w) - r(l)), r = beta log(pi / ref) (WRPO, arXiv 2412.03187).

    s is a source model's reply (`third`), w and l the policy's own best and worst. Alpha grows from 0 over the whole
    training, as in the released code (`alpha_ramp`), which takes alpha 0.1 and beta 0.01.
    """
    toward_B = settings.alpha * settings.beta * (_log_ratio(pairs) - (pairs.chosen_B - pairs.ref_chosen_B))
    return -logsigmoid(margin(pairs, settings.beta) + toward_B)


def _log_ratio(pairs: PairLogprobs) -> Tensor:
    return pairs.third_B - pairs.ref_third_B


def _log_not(logprob_B: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, finite at 0."""
    return torch.log(-torch.expm1(logprob_B.clamp_max(-1e-6)))


LOSSES: dict[str, PreferenceLoss] = {
    "dpo": dpo,
    "ipo": ipo,
    "hinge": hinge,
    "selm": selm,
    "xpo": xpo,
    "vpo": vpo,
    "simpo": simpo,
    "orpo": orpo,
    "wrpo": wrpo,
}
WITHOUT_REFERENCE = frozenset({"simpo", "orpo"})
WITH_THIRD = frozenset({"selm", "xpo", "vpo", "wrpo"})  # where alpha is not 0
