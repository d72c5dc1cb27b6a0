"""One trainer: an objective and a collator go in; accumulation, bf16, LoRA, checkpoints and resume come with it."""

from consilience.train.head import logprobs_through_head, loss_through_head
from consilience.train.trainer import (
    LoraSettings,
    Objective,
    StepRecord,
    TrainSettings,
    conversations_at_once,
    finish,
    read_curve,
    train,
)

__all__ = [
    "LoraSettings",
    "Objective",
    "StepRecord",
    "TrainSettings",
    "conversations_at_once",
    "finish",
    "logprobs_through_head",
    "loss_through_head",
    "read_curve",
    "train",
]
