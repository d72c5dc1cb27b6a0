"""The training loop of every verb, on Hugging Face's Trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, Self, TypedDict

import torch
from accelerate.utils import gather_object
from pydantic import Field, model_validator
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from consilience.config import Settings
from consilience.errors import BackendError, ConfigError
from consilience.run import write_json
from consilience.train.sharded import asked_for, finite_gradients, gathered, reduce_in_float32, refuse_unsharded

Batch = Mapping[str, Any]
# Sums, not means, over the batch's positions: "loss", and whatever else is worth a curve. The batch has "progress", the
# share of the optimizer steps that are done: an objective may change on the way.
Objective = Callable[[torch.nn.Module, Batch], dict[str, torch.Tensor]]

# Marks a checkpoint as completely written; holds the sums since the curve's last point, which Trainer does not save.
WHOLE = "whole.json"


class LoraSettings(Settings):
    """Low-rank adapters instead of full fine-tuning (arXiv 2106.09685); merged into the weights at the end."""

    rank: int = Field(16, ge=1)
    alpha: int = Field(32, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    modules: str | list[str] = "all-linear"


class TrainSettings(Settings):
    """How long and how fast a model is trained. The defaults are FuseChat's (arXiv 2408.07990)."""

    epochs: float = Field(3, gt=0)
    max_steps: int = Field(-1, ge=-1, description="stops earlier; -1: as many as the epochs hold")
    batch_size: int = Field(128, ge=1, description="conversations per optimizer step, over all processes")
    micro_batch_size: int = Field(4, ge=1, description="conversations per forward pass")
    learning_rate: float = Field(5e-6, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0)
    betas: tuple[float, float] = Field((0.9, 0.999), description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    padding_free: bool = Field(True, description="a batch in one row without padding, where the model's attention can")
    save_steps: int = Field(200, ge=1)
    log_steps: int = Field(10, ge=1)
    report_to: tuple[str, ...] = Field(
        (), description="tensorboard, wandb, mlflow, ...: what transformers can report to"
    )
    lora: LoraSettings | None = None

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ConfigError(
                f"train.batch_size is {self.batch_size}; expected a multiple of train.micro_batch_size, "
                f"which is {self.micro_batch_size}"
            )
        return self


class StepRecord(TypedDict):
    """One point of a training curve; losses are nats per position, mean over the steps since the last point."""

    step: int
    loss: float


def train(
    model: Any,
    examples: Dataset[Any],
    collate: Callable[[list[Any]], Batch],
    objective: Objective,
    settings: TrainSettings,
    folder: Path,
    *,
    seed: int,
    adapters: Path | None = None,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> tuple[Any, list[StepRecord]]:
    """`model` trained on `examples`, and its training curve; goes on from the last whole checkpoint in `folder`.

    A model that has adapters already learns on with them. `adapters` is where they are saved before they are merged.

    `collate` makes a batch with `shift_labels` (-100 where nothing is learnt): their number is what the objective's
    sums are divided by, over all micro-batches and devices of a step. `on_step` hears step, steps and loss.
    Of several processes the first one has the trained model, whole and on the CPU where FSDP or DeepSpeed spread it.
    Raises `BackendError` naming step and examples when the loss or its gradient is not finite, and when another
    process of the training has died.
    """
    if settings.lora:
        set_seed(_torch_seed(seed))  # adapters are drawn before Trainer seeds
        model = _with_adapters(model, settings.lora)
    checkpoints = folder / "checkpoints"
    trainer = _ObjectiveTrainer(
        model=model,
        args=_arguments(settings, checkpoints, seed, len(examples)),  # type: ignore[arg-type]
        train_dataset=examples,
        data_collator=collate,
        callbacks=[_Progress(on_step)],
    )
    if trainer.accelerator.num_processes != _processes():
        raise BackendError(
            f"{_processes()} processes were started, but training runs on {trainer.accelerator.num_processes} of them. "
            "On a CPU start them with torchrun, on GPUs with torchrun or accelerate launch."
        )
    refuse_unsharded(trainer)
    trainer.remove_callback(PrinterCallback)
    trainer.objective = objective
    with trainer.accelerator.main_process_first():
        checkpoint = _last_whole(checkpoints)
    if checkpoint and trainer.args.process_index == 0:
        since_last_point = json.loads((checkpoint / WHOLE).read_text())
        trainer.sums, trainer.positions = since_last_point["sums"], since_last_point["positions"]
    with _naming_a_dead_process(checkpoints):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trained = gathered(trainer)
    curve = [_record(entry) for entry in trainer.state.log_history if "loss" in entry]
    if trainer.is_deepspeed_enabled:  # else what the first process loads alone, later, would be spread as well
        unset_hf_deepspeed_config()
    if not trainer.args.should_save:
        return trained, curve
    if settings.lora and adapters:
        trained.save_pretrained(adapters)
    if settings.lora:  # in float32: a small update added to bfloat16 weights is often no update at all
        trained = trained.to("cpu").float().merge_and_unload()
    return trained.eval(), curve


@contextlib.contextmanager
def _naming_a_dead_process(checkpoints: Path) -> Iterator[None]:
    """One line in the place of what a collective operation says when one of its processes is gone."""
    try:
        yield
    except RuntimeError as error:  # gloo's; NCCL's is a DistBackendError, which is one, too
        gone = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL", "Gloo")
        if _processes() == 1 or not any(word in str(error) for word in gone):
            raise
        last = _newest(checkpoints)
        step = f"the checkpoint of step {last.name.rpartition('-')[2]}" if last else "the beginning of this training"
        raise BackendError(
            "another process of this training is gone; its own last line says why, if it had time to. All of them "
            f"stop. Give the same command again: it goes on from {step}."
        ) from error


def finish(folder: Path) -> None:
    """Removes the checkpoints of a training whose result is saved."""
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _arguments(settings: TrainSettings, checkpoints: Path, seed: int, examples: int) -> TrainingArguments:
    at_once = conversations_at_once(settings)
    missing = [name for name in settings.report_to if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"train.report_to: the package {missing[0]} is not installed. Install it, or leave it out.")
    steps = math.ceil(examples / settings.batch_size) * settings.epochs
    if settings.max_steps > 0:
        steps = min(steps, settings.max_steps)
    # transformers warns of the old name, and its older releases do not know the new one.
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    checkpointing: dict[str, Any] = {name: True} if settings.gradient_checkpointing else {}
    arguments = TrainingArguments(
        output_dir=str(checkpoints),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.micro_batch_size,
        gradient_accumulation_steps=settings.batch_size // at_once,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.schedule,
        warmup_steps=int(settings.warmup * steps),
        weight_decay=settings.weight_decay,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.dtype == "bfloat16",
        logging_steps=settings.log_steps,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        save_total_limit=2,
        seed=_torch_seed(seed),
        data_seed=_torch_seed(seed),
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        # accelerate looks for DeepSpeed, which runs on a CPU as well, only where it is not told of one.
        use_cpu=not torch.cuda.is_available() and not asked_for("DEEPSPEED"),
        ddp_backend=None if torch.cuda.is_available() or _processes() == 1 else "gloo",
        report_to=list(settings.report_to),
        disable_tqdm=True,
        **checkpointing,
    )
    # One process that sees several GPUs would be given a batch for each of them: it takes the first one.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _torch_seed(seed: int) -> int:
    """`seed` cut to what numpy's and torch's global generators take."""
    return seed % (1 << 31)


def conversations_at_once(settings: TrainSettings) -> int:
    """Conversations in one forward pass of all processes. Raises `ConfigError` when a step is not a multiple of it."""
    at_once = settings.micro_batch_size * _processes()
    if settings.batch_size % at_once:
        raise ConfigError(
            f"train.batch_size is {settings.batch_size}; expected a multiple of {at_once}, which is "
            f"train.micro_batch_size times {_processes()} processes. Set train.micro_batch_size to "
            f"{max(1, settings.batch_size // _processes())} or one of its divisors."
        )
    return at_once


def _processes() -> int:
    """How many processes train together, as `torchrun` or `accelerate launch` says."""
    return int(os.environ.get("WORLD_SIZE", "1"))


class _ObjectiveTrainer(Trainer):
    """Trainer whose loss is `objective`, divided by the number of positions of the whole optimizer step."""

    objective: Objective

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # `shift_labels` are counted over all micro-batches of a step
        self.add_callback(_FiniteGradients(self))
        self.sums: dict[str, float] = {}
        self.positions = 0.0
        self._step, self._names = -1, [""]  # the conversations of the optimizer step in the making

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        names = inputs.get("names", ["?"])
        if self._step != self.state.global_step:
            self._step, self._names = self.state.global_step, []
        self._names += names
        sums = self.objective(model, {**inputs, "progress": self.state.global_step / self.state.max_steps})
        loss = sums["loss"] / num_items_in_batch
        if not torch.isfinite(loss):
            self.refuse(f"the training loss is {loss.item()}", names)
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        self.positions += float((inputs["shift_labels"] != -100).sum())
        return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss

    def _prepare_input(self, data: Any) -> Any:
        """On the device, in its own type: DeepSpeed would have targets and their weights in bfloat16."""
        return data.to(self.args.device) if isinstance(data, torch.Tensor) else super()._prepare_input(data)

    def refuse(self, what: str, names: Sequence[str] = ()) -> NoReturn:
        """Stops the training at this step, on these or on all conversations of the step that this process had."""
        raise BackendError(
            f"{what} at step {self.state.global_step + 1}, on conversations {', '.join(names or self._names)}. "
            "A lower train.learning_rate, or train.dtype=float32, may help."
        )

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        if self.is_fsdp_enabled:
            reduce_in_float32(self.accelerator.state.fsdp_plugin)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What a checkpoint holds; of DeepSpeed's own, which holds the weights, there would be a second copy."""
        if not (_internal_call and self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            sums, positions = self._over_processes()
            logs |= {name: value / positions for name, value in sums.items() if positions}
            self.sums, self.positions = {}, 0.0
        super().log(logs, *args, **kwargs)

    def _over_processes(self) -> tuple[dict[str, float], float]:
        """The sums since the curve's last point, and the positions they are over, of all processes together."""
        sums: Counter[str] = Counter()
        positions = 0.0
        for part, count in gather_object([(self.sums, self.positions)]):
            sums.update(part)
            positions += count
        return dict(sums), positions

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except RuntimeError as error:
            # torch's writer does not say what the system said; in writing a file it is a full disk.
            if "inline_container" not in str(error) and "iostream error" not in str(error):
                raise
            raise BackendError(
                f"the disk is full: the checkpoint of step {self.state.global_step} cannot be written to "
                f"{self.args.output_dir}. Free some space, then give the same command again: it goes on from here."
            ) from error
        sums, positions = self._over_processes()  # waits for all: every process writes its own random state
        if self.args.should_save:
            checkpoint = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            write_json(checkpoint / WHOLE, {"sums": sums, "positions": positions})


class _FiniteGradients(TrainerCallback):
    """A gradient that is not finite spoils the weights, and the next step's examples would be blamed for it."""

    def __init__(self, trainer: _ObjectiveTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not finite_gradients(self.trainer):
            self.trainer.refuse("the gradient of the training loss is not finite")


class _Progress(TrainerCallback):
    def __init__(self, on_step: Callable[[int, int, float], None]) -> None:
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), math.nan)
        self.on_step(state.global_step, state.max_steps, loss)
        if state.global_step >= state.max_steps:
            control.should_save = False  # Trainer, resumed after its last step, takes one step more
            control.should_log = True  # a training shorter than log_steps has a curve of one point


def _last_whole(checkpoints: Path) -> Path | None:
    """The newest checkpoint; those that a killed run left half written are removed."""
    for checkpoint in checkpoints.glob("checkpoint-*"):
        if not (checkpoint / WHOLE).is_file():
            shutil.rmtree(checkpoint)
    return _newest(checkpoints)


def _newest(checkpoints: Path) -> Path | None:
    whole = [mark.parent for mark in checkpoints.glob(f"checkpoint-*/{WHOLE}")]
    return max(whole, key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]), default=None)


def _record(entry: Mapping[str, Any]) -> StepRecord:
    not_ours = ("step", "epoch", "grad_norm")  # what Trainer logs beside the objective's sums and the learning rate
    sums = {name: value for name, value in entry.items() if name not in not_ours}
    return {"step": entry["step"]} | sums  # type: ignore[return-value]


def _with_adapters(model: Any, settings: LoraSettings) -> Any:
    try:
        from peft import LoraConfig, PeftModel, get_peft_model
    except ImportError:
        raise BackendError("train.lora needs the package peft: pip install 'consilience[lora]'.") from None
    if isinstance(model, PeftModel):
        return model
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


def read_curve(folder: Path) -> list[StepRecord]:
    """The training curve that was saved beside a trained model."""
    return json.loads((folder / "curve.json").read_text())  # type: ignore[no-any-return]
