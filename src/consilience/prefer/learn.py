"""Learn from pairs: the examples, the batches and the objective of one round.

Shapes: B pairs, R replies of the batch (the third one of a pair only where it is neither chosen nor rejected).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from consilience.prefer.likelihood import ReadReply, collate_replies, reply_logprobs
from consilience.prefer.losses import WITH_THIRD, LossSettings, PairLogprobs, margin, pair_loss
from consilience.train import Objective

NO_THIRD = -1


@dataclass(frozen=True, slots=True)
class PairExample:
    """The replies of a pair as the policy reads them: chosen, rejected, and the third where it is another one.

    `third` is the third reply's place among `replies`, NO_THIRD where there is none. `ref_logprobs` has what the
    reference thinks of them, in nats; zeros where the loss asks no reference.
    """

    name: str
    replies: tuple[ReadReply, ...]
    ref_logprobs: tuple[float, ...]
    third: int = NO_THIRD

    @property
    def longest(self) -> int:
        return max(len(reply.ids_T) for reply in self.replies)


class PairExamples(Dataset[PairExample]):
    """The pairs of a round."""

    def __init__(self, examples: Sequence[PairExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: int) -> PairExample:
        return self.examples[item]


def collate_pairs(*, packed: bool) -> Callable[[Sequence[PairExample]], dict[str, Any]]:
    """The collator; a batch's loss is divided by its number of pairs."""

    def collate(examples: Sequence[PairExample]) -> dict[str, Any]:
        first, begins = 0, []
        for example in examples:
            begins.append(first)
            first += len(example.replies)
        third_B = [
            NO_THIRD if example.third == NO_THIRD else begin + example.third
            for begin, example in zip(begins, examples, strict=True)
        ]
        one_a_pair = torch.zeros(len(examples), dtype=torch.long)  # what the trainer counts
        return collate_replies([example.replies for example in examples], packed=packed) | {
            "ref": torch.tensor([value for example in examples for value in example.ref_logprobs]),
            "chosen": torch.tensor(begins),
            "third": torch.tensor(third_B),
            "names": [example.name for example in examples],
            "shift_labels": one_a_pair,
            "labels": one_a_pair,
        }

    return collate


def pair_objective(settings: LossSettings) -> Objective:
    """The summed loss of a batch's pairs, and what is worth a curve: margins, accuracies, log-probabilities (nats)."""

    def objective(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        pairs = pairs_of(reply_logprobs(model, batch), batch)
        margin_B = margin(pairs, settings.beta).detach()
        now = settings.at(batch.get("progress", 1.0))
        sums = {
            "loss": pair_loss(pairs, now).sum(),
            "margin": margin_B.sum(),
            "accuracy": (margin_B > 0).float().sum(),
            "chosen_logprob": pairs.chosen_B.detach().sum(),
            "rejected_logprob": pairs.rejected_B.detach().sum(),
            "ref_chosen_logprob": pairs.ref_chosen_B.sum(),
            "ref_rejected_logprob": pairs.ref_rejected_B.sum(),
        }
        if settings.name in WITH_THIRD:
            sums["alpha"] = torch.full_like(margin_B, now.alpha).sum()
        return sums

    return objective


def pairs_of(logprob_R: Tensor, batch: Mapping[str, Any]) -> PairLogprobs:
    """The replies' log-probabilities pair by pair; a third reply that is the chosen or the rejected one is that one.

    So the third reply's gradient is added to that reply's own, and it costs a pass of its own only where it is neither.
    """
    device = logprob_R.device
    ref_R, tokens_R = batch["ref"].to(device), batch["tokens"].to(device)
    chosen_B, third_B = batch["chosen"].to(device), batch["third"].to(device)
    there_B = third_B != NO_THIRD

    def of_pairs(value_R: Tensor, *, absent: float) -> tuple[Tensor, Tensor, Tensor]:
        third = torch.where(there_B, value_R[third_B.clamp_min(0)], absent)
        return value_R[chosen_B], value_R[chosen_B + 1], third

    return PairLogprobs(*of_pairs(logprob_R, absent=0.0), *of_pairs(ref_R, absent=0.0), *of_pairs(tokens_R, absent=1))


def without_dropout(model: nn.Module) -> None:
    """Turns dropout off for good: the policy of step 0 must be the reference, which was measured without."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
