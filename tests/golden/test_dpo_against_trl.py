"""The same batch, the same model and reference: our losses on our log-probabilities against TRL's DPOTrainer."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from consilience.models import load_model
from consilience.prefer.likelihood import ReadReply, collate_replies, reading, reply_logprobs
from consilience.prefer.losses import LossSettings, PairLogprobs, pair_loss

LOSSES = {  # TRL's name, our settings
    "sigmoid": LossSettings(name="dpo", beta=0.3),
    "hinge": LossSettings(name="hinge", beta=0.3),
    "ipo": LossSettings(name="ipo", beta=0.3, per_token=True),
}


@pytest.fixture(scope="module")
def trainer(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    pivot = load_model(world / "pivot")
    torch.manual_seed(3)
    reference = copy.deepcopy(pivot.model)
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    texts = [
        ("Tell me", " a lamp stands", " seven"),
        ("Old maps", " show", " islands that no sailor"),
        ("x", " y", " z"),
    ]
    rows = [dict(zip(("prompt", "chosen", "rejected"), text)) for text in texts]
    return DPOTrainer(
        model=pivot.model.train(),
        ref_model=reference,
        args=DPOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")),
            beta=0.3,
            bf16=False,
            use_cpu=True,
            report_to=[],
            per_device_train_batch_size=3,
            gradient_checkpointing=False,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=pivot.tokenizer,
    )


def read(batch: Any) -> list[list[ReadReply]]:
    """TRL's batch (chosen rows, then rejected rows) as ours."""
    replies = []
    for ids, mask, reply in zip(batch["input_ids"], batch["attention_mask"], batch["completion_mask"]):
        replies.append(ReadReply(ids[mask.bool()].numpy().astype(np.int32), int(reply.nonzero()[0, 0])))
    half = len(replies) // 2
    return [[replies[i], replies[half + i]] for i in range(half)]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_loss_and_gradient_are_trls(trainer: Any, name: str) -> None:
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.loss_types = [name]
    model = trainer.model
    model.zero_grad()
    theirs = trainer.compute_loss(model, batch)
    theirs.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()

    replies_of = read(batch)
    tokens = torch.tensor([[reply.tokens for reply in pair] for pair in replies_of])

    def sums(of_model: Any) -> torch.Tensor:
        return reply_logprobs(of_model, collate_replies(replies_of, packed=True)).unflatten(0, (-1, 2))

    with reading(model, 64), reading(trainer.ref_model, 64), torch.no_grad():
        ref = sums(trainer.ref_model)
    with reading(model, 64):
        pi = sums(model)
        zeros = torch.zeros(len(pi))
        pairs = PairLogprobs(
            pi[:, 0], pi[:, 1], zeros, ref[:, 0], ref[:, 1], zeros, tokens[:, 0], tokens[:, 1], torch.ones(len(pi))
        )
        ours = pair_loss(pairs, LOSSES[name]).mean()
        ours.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.lm_head.weight.grad, gradient, rtol=1e-4, atol=1e-6)
