"""A batch in one row without padding costs what the padded one costs, in loss and gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from consilience.fuse import Batches, fusion_objective
from consilience.fuse.learn import Example
from consilience.fuse.teach import TOKENS
from consilience.models.packed import can_pack, packed_attention
from consilience.prefer.learn import without_dropout

LENGTHS = (40, 17, 23, 9)


def example(name: str, length: int, vocabulary: int, rng: np.random.Generator) -> Example:
    """Random ids of which three quarters are a reply, with five candidates a position and chunks of two."""
    position_N = np.arange(length // 4, length)
    count = len(position_N)
    return Example(
        name,
        rng.integers(0, vocabulary, length).astype(np.int32),
        position_N,
        ids_NJ=rng.permuted(np.tile(np.arange(vocabulary), (count, 1)), axis=1)[:, :5].astype(np.int32),
        probs_NJ=rng.dirichlet(np.ones(6), count)[:, :5].astype(np.float32),
        gold_weight_N=np.full(count, 0.5, dtype=np.float32),
        fusion_weight_N=np.full(count, 0.5, dtype=np.float32),
        teacher_N=np.ones(count, dtype=np.int8),
        space_N=np.full(count, TOKENS, dtype=np.int8),
        chunk_N=(np.arange(count) // 2).astype(np.int32),
        chunk_logprob_N=np.full(count, -2.0, dtype=np.float32),
    )


@pytest.mark.parametrize("name", ["pivot", "wren", "finch"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_without_padding_loss_and_gradient_are_the_same(world: Path, name: str, checkpointing: bool) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(world / name)
    assert can_pack(model.eval(), max(LENGTHS))
    without_dropout(model)
    if checkpointing:
        model.gradient_checkpointing_enable()
    rng = np.random.default_rng(0)
    examples = [example(str(i), length, model.config.vocab_size, rng) for i, length in enumerate(LENGTHS)]
    objective = fusion_objective("ce")
    found = []
    for packed in (False, True):
        batches = Batches(packed)
        model.zero_grad()
        with packed_attention(model.train(), packed):
            sums = objective(model, batches(examples))
            (sums["loss"] / sum(LENGTHS)).backward()
        assert (batches.tokens, batches.padded) == (sum(LENGTHS), len(LENGTHS) * max(LENGTHS))
        gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
        found.append(({key: value.item() / sum(LENGTHS) for key, value in sums.items()}, gradients))
    (padded, padded_gradients), (packed_sums, packed_gradients) = found
    assert packed_sums == pytest.approx(padded, abs=1e-5)
    torch.testing.assert_close(packed_gradients, padded_gradients, rtol=0, atol=1e-5)
