"""The head in blocks against the plain dense computation of the same loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MixtralConfig,
    Qwen2Config,
    RecurrentGemmaConfig,
)

from consilience.errors import BackendError
from consilience.train import loss_through_head

SHAPE: dict[str, Any] = {
    "vocab_size": 37,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama, untied": LlamaConfig(**SHAPE, tie_word_embeddings=False),
    "qwen2, tied": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "gemma2, soft cap": Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0),
    "cohere, scaled": CohereConfig(**SHAPE, logit_scale=0.25),
    "granite, scaled": GraniteConfig(**SHAPE, logits_scaling=3.0),
    "falcon h1, scaled": FalconH1Config(
        **SHAPE, lm_head_multiplier=0.5, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8
    ),
    "recurrent gemma, soft cap": RecurrentGemmaConfig(**SHAPE, logits_soft_cap=2.0, head_dim=8),
    "mixtral": MixtralConfig(**SHAPE, num_local_experts=2),
    "gpt2": GPT2Config(
        vocab_size=37, n_embd=16, n_layer=1, n_head=2, n_positions=32, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0
    ),
}
IDS_BT = torch.arange(24).reshape(2, 12) % 37
MASK_BT = torch.ones_like(IDS_BT)
LEARNT_BT = torch.zeros_like(IDS_BT, dtype=torch.bool)
LEARNT_BT[0, 3:9] = LEARNT_BT[1, 5:] = True
GOLD_N = (IDS_BT[LEARNT_BT] * 7 + 3) % 37
INPUTS = {"input_ids": IDS_BT, "attention_mask": MASK_BT}


def sums_of(logits_MV: torch.Tensor, block: slice) -> dict[str, torch.Tensor]:
    """Cross-entropy with a weight per position, and a second sum without gradient."""
    nll_M = torch.nn.functional.cross_entropy(logits_MV.float(), GOLD_N[block], reduction="none")
    return {"loss": (nll_M * torch.arange(1, 14)[block]).sum(), "gold": nll_M.sum()}


def model_of(config: Any) -> Any:
    torch.manual_seed(3)
    return AutoModelForCausalLM.from_config(config).train()


def dense(model: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    sums = sums_of(model(**INPUTS, use_cache=False).logits[LEARNT_BT], slice(None))
    return sums, gradients(model, sums["loss"])


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    (3 * loss).backward()  # whatever it is multiplied by afterwards
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("positions", [1, 4, 100])
def test_value_and_gradient_are_those_of_all_logits_at_once(config: Any, positions: int) -> None:
    model = model_of(config)
    expected, expected_gradients = dense(model)
    found = loss_through_head(model, INPUTS, LEARNT_BT, sums_of, block_logits=positions * 37)
    assert {name: value.item() for name, value in found.items()} == pytest.approx(
        {name: value.item() for name, value in expected.items()}, rel=1e-5
    )
    found_gradients = gradients(model, found["loss"])
    assert found_gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(
            found_gradients[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_the_model_is_as_it_was_afterwards() -> None:
    model = model_of(CONFIGS["llama, untied"])
    before = model(**INPUTS).logits
    loss_through_head(model, INPUTS, LEARNT_BT, sums_of)
    assert "forward" not in vars(model.lm_head)
    assert torch.equal(model(**INPUTS).logits, before)


def test_a_head_with_adapters_learns_through_them() -> None:
    peft = pytest.importorskip("peft")
    lora = peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
    model = peft.get_peft_model(model_of(CONFIGS["llama, untied"]), lora)
    expected, expected_gradients = dense(model)
    found = loss_through_head(model, INPUTS, LEARNT_BT, sums_of, block_logits=3 * 37)
    assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
    found_gradients = gradients(model, found["loss"])
    assert any("lm_head" in name for name in found_gradients)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-4, atol=1e-5)


def test_a_frozen_head_keeps_no_gradient_and_passes_it_on() -> None:
    model = model_of(CONFIGS["llama, untied"])
    model.lm_head.weight.requires_grad_(False)
    _, expected = dense(model)
    found = gradients(model, loss_through_head(model, INPUTS, LEARNT_BT, sums_of, block_logits=4 * 37)["loss"])
    assert "lm_head.weight" not in found
    torch.testing.assert_close(found["model.norm.weight"], expected["model.norm.weight"], rtol=1e-4, atol=1e-5)


def test_without_gradients_only_the_value_is_taken() -> None:
    model = model_of(CONFIGS["qwen2, tied"])
    with torch.no_grad():
        found = loss_through_head(model, INPUTS, LEARNT_BT, sums_of, block_logits=4 * 37)
    assert not found["loss"].requires_grad
    assert found["loss"].item() == pytest.approx(dense(model)[0]["loss"].item(), rel=1e-5)


def test_blocks_begin_only_where_they_may() -> None:
    model, blocks = model_of(CONFIGS["qwen2, tied"]), []
    cuts = torch.tensor([True, False, True, True, False, False, False, False, False, True, True, False, False])

    def noted(logits_MV: torch.Tensor, block: slice) -> dict[str, torch.Tensor]:
        blocks.append((block.start, block.stop))
        return sums_of(logits_MV, block)

    loss_through_head(model, INPUTS, LEARNT_BT, noted, cuts=cuts, block_logits=2 * 37)
    assert blocks == [(0, 2), (2, 9), (9, 13)]


def test_bfloat16_autocast_computes_as_the_dense_forward_does() -> None:
    model = model_of(CONFIGS["llama, untied"])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, expected_gradients = dense(model)
        found = loss_through_head(model, INPUTS, LEARNT_BT, sums_of, block_logits=4 * 37)
        found_gradients = gradients(model, found["loss"])
    assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-3)
    torch.testing.assert_close(
        found_gradients["lm_head.weight"], expected_gradients["lm_head.weight"], rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize("config", ["llama, untied", "qwen2, tied"])
def test_a_batch_in_which_nothing_is_learnt_costs_nothing(config: str) -> None:
    model = model_of(CONFIGS[config])
    none_BT = torch.zeros_like(LEARNT_BT)
    found = loss_through_head(model, INPUTS, none_BT, lambda logits_MV, block: {"loss": logits_MV.sum()})
    assert found["loss"].item() == 0
    found_gradients = gradients(model, found["loss"])
    assert found_gradients.keys() == dict(model.named_parameters()).keys()
    assert not any(gradient.any() for gradient in found_gradients.values())


@pytest.mark.parametrize("config", ["llama, untied", "qwen2, tied"])
def test_data_parallelism_that_looks_for_unused_parameters_finds_the_head_used(config: str) -> None:
    model = model_of(CONFIGS[config])
    _, expected = dense(model)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:  # Trainer looks for them unless told otherwise
        parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
        found = gradients(model, loss_through_head(parallel, INPUTS, LEARNT_BT, sums_of, block_logits=4 * 37)["loss"])
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_model_that_does_something_else_to_its_logits_is_refused() -> None:
    model = model_of(CONFIGS["llama, untied"])
    model.config.logits_scaling = 3.0  # Llama does not divide by it
    with pytest.raises(BackendError, match="does something to its logits"):
        loss_through_head(model, INPUTS, LEARNT_BT, sums_of)


def test_a_model_that_does_not_use_its_head_is_refused() -> None:
    model = model_of(CONFIGS["llama, untied"])
    model.get_output_embeddings = lambda: torch.nn.Linear(16, 37)
    with pytest.raises(BackendError, match="does not use its output embeddings"):
        loss_through_head(model, INPUTS, LEARNT_BT, sums_of)
