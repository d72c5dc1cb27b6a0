"""What a run will take, before anything is loaded: every stage's disk, memory and arithmetic; here, a fusion's.

Counts of parameters are exact (from the architectures); texts are counted where their file is here. Memory is of the
device that computes and leaves out what the libraries themselves take. A token's forward pass is 2 FLOPs per active
parameter and 2·layers·width per token of context; a training step is three forward passes, two where LoRA leaves the
weights as they are, and one more under gradient checkpointing. Activations are 34 bytes per token, layer and width in
16 bits (Korthikanti et al. 2022, arXiv 2205.05198, eq. 1, without the scores that fused attention does not keep).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from consilience.chat import render
from consilience.config import load_recipe
from consilience.errors import DataError
from consilience.models import load_tokenizer
from consilience.models.score import LOGITS_HELD
from consilience.pipelines.architectures import Size, architecture_of, size_of
from consilience.pipelines.chats import read_chats
from consilience.pipelines.places import Places
from consilience.pipelines.recipe import PIVOT, FuseRecipe
from consilience.pipelines.targets import Target, targets_of
from consilience.records import Conversation
from consilience.train import TrainSettings
from consilience.train.head import BLOCK_LOGITS
from consilience.weights import Checkpoint

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
POSITION = 29  # bytes of a stored position, beside six per candidate
TARGET, CANDIDATE = 26, 8  # of a position of a target, and of each of its candidates
ALIGNMENT = 12  # of a position of the pivot and its partner
UPDATED = 16  # of a trained parameter: itself, its gradient, and AdamW's two moments, in float32
KEPT_CHECKPOINTS = 2
SAMPLE = 64  # chats read to measure their length


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of the run: what stays on disk, the most it holds in memory, and its arithmetic."""

    name: str
    disk_bytes: int
    memory_bytes: int
    flops: float
    writing_steps: int = 0  # a token to each of a batch of replies, which reads all weights once


@dataclass(frozen=True, slots=True)
class Forecast:
    """All stages in order; `passing_bytes` is disk that is needed for a while, beside what stays."""

    stages: tuple[Stage, ...]
    passing_bytes: int
    assumptions: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Stages and totals."""
        return {
            "stages": [asdict(stage) for stage in self.stages],
            "disk_bytes": sum(stage.disk_bytes for stage in self.stages),
            "passing_bytes": self.passing_bytes,
            "memory_bytes": max(stage.memory_bytes for stage in self.stages),
            "flops": sum(stage.flops for stage in self.stages),
            "writing_steps": sum(stage.writing_steps for stage in self.stages),
            "assumptions": list(self.assumptions),
        }


@dataclass(frozen=True, slots=True)
class Texts:
    """How much there is to read: chats learnt from and held out, mean tokens of one, and of its replies."""

    learnt: int
    held_out: int
    tokens: float
    reply_tokens: float


def forecast_recipe(path: Path, out: Path, overrides: Sequence[str] = ()) -> Forecast:
    """What `fuse_recipe(path, out, overrides)` will take; nothing is written."""
    return forecast(load_recipe(path, FuseRecipe, overrides), Places(path.parent, out))


def forecast(recipe: FuseRecipe, places: Places) -> Forecast:
    """What the run of `recipe` will take. Raises `ConfigError` where neither a file nor the recipe says enough."""
    texts, said = _texts(recipe, places)
    return _Fusion(recipe, places, texts).forecast(said)


class _Fusion:
    def __init__(self, recipe: FuseRecipe, places: Places, texts: Texts) -> None:
        self.recipe, self.places, self.texts = recipe, places, texts
        models = {PIVOT: recipe.pivot, **recipe.sources}
        known = recipe.assumed.architectures
        self.sizes = {name: size_of(architecture_of(path, known, places)) for name, path in models.items()}

    @property
    def pivot(self) -> Size:
        return self.sizes[PIVOT]

    def forecast(self, said: tuple[str, ...]) -> Forecast:
        trained = [self._train(target) for target in targets_of(self.recipe)]
        stages = [
            *(self._represent(name, size) for name, size in self.sizes.items()),
            *(self._align(name) for name in self.recipe.sources),
            *(stage for pair in trained for stage in pair),
            *(Stage(f"merge/{name}", self._stored, 0, 0.0) for name in self.recipe.merges),
            *(self._evaluate(name) for name in [*self.sizes, *self.recipe.target_names, *self.recipe.merges]),
            Stage("model", self._stored, 0, 0.0),
        ]
        return Forecast(tuple(stages), checkpoint_bytes(self.pivot, self.recipe.train), said)

    @cached_property
    def _stored(self) -> int:
        return stored_bytes(self.pivot, self.places.file(self.recipe.pivot))

    @cached_property
    def _updated(self) -> int:
        return updated(self.pivot, self.recipe.train)

    @property
    def _positions(self) -> float:
        return self.texts.learnt * self.texts.reply_tokens

    def _represent(self, name: str, size: Size) -> Stage:
        settings = self.recipe.represent
        return Stage(
            f"represent/{name}",
            int(self._positions * (POSITION + 6 * settings.top_k)),
            BYTES[settings.dtype] * size.parameters + 4 * LOGITS_HELD,
            self.texts.learnt * self.texts.tokens * forward_flops(size, self.texts.tokens),
        )

    def _align(self, name: str) -> Stage:
        return Stage(f"align/{name}", int(self._positions * ALIGNMENT), 0, 0.0)

    def _train(self, target: Target) -> tuple[Stage, Stage]:
        settings, texts = self.recipe.train, self.texts
        read = texts.learnt * settings.epochs
        if settings.max_steps > 0:
            read = min(read, settings.max_steps * settings.batch_size)
        chosen = int(self._positions * (TARGET + CANDIDATE * self.recipe.represent.top_k)) if target.sources else 0
        flops = read * texts.tokens * passes_of(settings) * forward_flops(self.pivot, texts.tokens)
        memory = training_memory(self.pivot, settings, settings.micro_batch_size * self.recipe.represent.max_tokens)
        return (
            Stage(f"select/{target.name}", chosen, 0, 0.0),
            Stage(f"train/{target.name}", 4 * self.pivot.parameters, memory, flops),
        )

    def _evaluate(self, name: str) -> Stage:
        size, settings = self.sizes.get(name, self.pivot), self.recipe.evaluate
        return Stage(
            f"evaluate/{name}",
            0,
            BYTES[settings.dtype] * size.parameters + 4 * LOGITS_HELD,
            self.texts.held_out * self.texts.tokens * forward_flops(size, self.texts.tokens),
        )


def forward_flops(size: Size, tokens: float) -> float:
    """FLOPs of one token's forward pass, in a text of `tokens`."""
    return 2 * size.active + 2 * size.layers * size.width * tokens


def passes_of(settings: TrainSettings) -> int:
    """Forward passes that a training step's arithmetic is as much as."""
    return (2 if settings.lora else 3) + settings.gradient_checkpointing


def updated(size: Size, settings: TrainSettings) -> int:
    """Parameters that training changes."""
    return size.parameters if settings.lora is None else settings.lora.rank * size.linear_ends


def training_memory(size: Size, settings: TrainSettings, tokens: int) -> int:
    """Bytes, where `tokens` are read at once."""
    frozen = 0 if settings.lora is None else BYTES[settings.dtype] * size.parameters
    row = tokens * size.width * BYTES[settings.dtype]
    kept = row * size.layers + 17 * row if settings.gradient_checkpointing else 17 * row * size.layers
    return frozen + UPDATED * updated(size, settings) + kept + 3 * 4 * BLOCK_LOGITS["cuda"]


def checkpoint_bytes(size: Size, settings: TrainSettings) -> int:
    """Bytes of the checkpoints that a training keeps until it ends."""
    return KEPT_CHECKPOINTS * 3 * 4 * updated(size, settings)


def stored_bytes(size: Size, folder: Path) -> int:
    """Bytes of a model in its own types; in bfloat16 where it is not here to ask."""
    if not folder.is_dir():
        return BYTES["bfloat16"] * size.parameters
    model = Checkpoint(folder)
    return sum(dtype.itemsize * math.prod(model.shapes[name]) for name, dtype in model.dtypes.items())


def _texts(recipe: FuseRecipe, places: Places) -> tuple[Texts, tuple[str, ...]]:
    """How much there is to read, measured where the files are here; and in sentences what it rests on."""
    assumed = recipe.assumed
    here = places.file(recipe.data.path).exists()
    if here:
        learnt, held_out = read_chats(recipe, places)
        counts, whence = (len(learnt), len(held_out)), f"counted in {recipe.data.path}"
        measured = _measured(recipe, places, learnt)
    else:
        if assumed.chats is None:
            raise DataError(
                f"{recipe.data.path!r} is not here, so its chats cannot be counted. Give data.path a file or "
                "folder, or say how many there are: --set assumed.chats=10000."
            )
        share = recipe.held_out.share or 0.0
        counts, measured = (round(assumed.chats * (1 - share)), round(assumed.chats * share)), None
        whence = "assumed.chats of the recipe"
    tokens, replies = measured or (float(assumed.tokens), float(assumed.reply_tokens))
    tokens, replies = (min(one, float(recipe.represent.max_tokens)) for one in (tokens, replies))
    length = "measured under the pivot's tokenizer" if measured else "assumed by the recipe"
    said = (
        f"{counts[0]} texts to learn from and {counts[1]} held out ({whence})",
        f"{tokens:.0f} tokens a text, {replies:.0f} of them in replies ({length}), for every model alike",
        "the answers to questions that can be checked, and replies sampled for seqkd, are not counted",
    )
    return Texts(*counts, tokens, replies), said


def _measured(recipe: FuseRecipe, places: Places, chats: Sequence[Conversation]) -> tuple[float, float] | None:
    """Mean tokens of the first chats and of their replies, where the pivot's tokenizer is here to count them."""
    folder = places.file(recipe.pivot)
    if not folder.is_dir() or recipe.data.text_key:
        return None
    tokenizer, longest = load_tokenizer(folder), recipe.represent.max_tokens
    read = [render(tokenizer, chat.messages, max_tokens=longest) for chat in chats[:SAMPLE]]
    return (
        sum(len(one.ids_T) for one in read) / len(read),
        sum(len(one.reply_positions) for one in read) / len(read),
    )
