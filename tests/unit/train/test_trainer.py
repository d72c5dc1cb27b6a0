"""The trainer against plain torch, and a stop in the middle against none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from consilience.chat import render
from consilience.errors import BackendError
from consilience.fuse import SupervisedExamples, collate, fusion_objective
from consilience.models import load_tokenizer
from consilience.records import read_conversations
from consilience.train import TrainSettings, train
from consilience.train.trainer import _arguments


@pytest.fixture
def examples(world: Path) -> SupervisedExamples:
    tokenizer = load_tokenizer(world / "pivot")
    chats = read_conversations(world / "chats.jsonl")[:8]
    return SupervisedExamples([chat.id for chat in chats], [render(tokenizer, chat.messages) for chat in chats])


def fit(world: Path, examples: Any, folder: Path, **settings: Any) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(world / "pivot").train()
    defaults: dict[str, Any] = {"batch_size": 4, "micro_batch_size": 4, "learning_rate": 0.01, "log_steps": 1}
    return train(
        model, examples, collate, fusion_objective("ce"), TrainSettings(**(defaults | settings)), folder, seed=0
    )


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_one_step_on_everything_is_adamws(world: Path, examples: SupervisedExamples, tmp_path: Path) -> None:
    trained, curve = fit(world, examples, tmp_path, batch_size=8, micro_batch_size=8, epochs=1, warmup=0)
    plain = AutoModelForCausalLM.from_pretrained(world / "pivot").train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    batch = collate([examples[i] for i in range(8)])
    logits = plain(**batch["inputs"]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["shift_labels"].flatten(), ignore_index=-100)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    optimizer.step()
    assert curve[0]["loss"] == pytest.approx(loss.item(), abs=1e-4)
    # AdamW's first step is the gradient's sign: of gradients near zero the order of sums decides the last bits.
    for name, tensor in weights(plain).items():
        assert torch.allclose(trained.state_dict()[name], tensor, atol=1e-4), name  # a hundredth of the step


def test_accumulated_micro_batches_weigh_every_position_the_same(
    world: Path, examples: SupervisedExamples, tmp_path: Path
) -> None:
    # The chats differ in length, so a mean of micro-batch means would differ from the mean over the batch.
    whole, _ = fit(world, examples, tmp_path / "a", max_steps=1)
    parts, _ = fit(world, examples, tmp_path / "b", max_steps=1, micro_batch_size=1)
    for name, tensor in weights(whole).items():
        assert torch.allclose(parts.state_dict()[name], tensor, atol=1e-4), name


def test_a_run_that_was_stopped_ends_bit_for_bit_where_a_quiet_one_ends(
    world: Path, examples: SupervisedExamples, tmp_path: Path
) -> None:
    quiet, quiet_curve = fit(world, examples, tmp_path / "quiet", max_steps=6, save_steps=2)

    class Stop(Exception):
        pass

    def stop(step: int, steps: int, loss: float) -> None:
        if step == 5:
            raise Stop

    model = AutoModelForCausalLM.from_pretrained(world / "pivot").train()
    settings = TrainSettings(
        batch_size=4, micro_batch_size=4, learning_rate=0.01, log_steps=1, max_steps=6, save_steps=2
    )
    objective = fusion_objective("ce")
    with pytest.raises(Stop):
        train(model, examples, collate, objective, settings, tmp_path / "cut", seed=0, on_step=stop)
    # What a kill in the middle of writing leaves: a newer checkpoint without its mark.
    (tmp_path / "cut" / "checkpoints" / "checkpoint-5").mkdir()
    resumed, curve = fit(world, examples, tmp_path / "cut", max_steps=6, save_steps=2)
    for name, tensor in weights(quiet).items():
        assert torch.equal(resumed.state_dict()[name], tensor), name
    assert [point["step"] for point in curve] == [point["step"] for point in quiet_curve]


def test_a_loss_that_is_not_finite_names_step_and_conversations(
    world: Path, examples: SupervisedExamples, tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match=r"step \d+, on conversations chat-") as stopped:
        fit(world, examples, tmp_path, learning_rate=1e30, warmup=0, max_grad_norm=1e30)
    assert "\n" not in str(stopped.value)


def test_lora_leaves_an_ordinary_model(world: Path, examples: SupervisedExamples, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    trained, _ = fit(world, examples, tmp_path, max_steps=2, lora={"rank": 2})
    plain = AutoModelForCausalLM.from_pretrained(world / "pivot")
    assert weights(trained).keys() == weights(plain).keys()
    changed = [name for name, tensor in weights(plain).items() if not torch.equal(trained.state_dict()[name], tensor)]
    assert changed
    for name in changed:
        delta = (trained.state_dict()[name] - plain.state_dict()[name]).numpy()
        assert np.linalg.matrix_rank(delta, tol=1e-5) <= 2, name


def test_adapters_are_drawn_from_the_seed(world: Path, examples: SupervisedExamples, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    torch.manual_seed(1)
    one, _ = fit(world, examples, tmp_path / "one", max_steps=2, lora={"rank": 2})
    torch.manual_seed(2)
    other, _ = fit(world, examples, tmp_path / "other", max_steps=2, lora={"rank": 2})
    assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in weights(one).items())


def test_one_process_that_sees_eight_gpus_keeps_its_batch_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer alone would make DataParallel of it, with a batch for every GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    arguments = _arguments(TrainSettings(batch_size=16, micro_batch_size=4), tmp_path, 0, 100)
    assert (arguments.n_gpu, arguments.train_batch_size * arguments.gradient_accumulation_steps) == (1, 16)
