"""Who answers: a model in this process, or one on a server. Two verbs: score options, and reply (a `Sampler`'s).

Nothing is asked of the network but the endpoint that a recipe names.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from consilience.annotate.recipe import ModelSettings
from consilience.annotate.strategies import Asked, without_system
from consilience.chat import render_prompt
from consilience.errors import BackendError, DataError
from consilience.models import LocalSampler, Prompt, Reply, Sampling, load_model
from consilience.models.options import Ids, OptionScorer, option_ids
from consilience.records import Message
from consilience.run import fingerprint

Messages = tuple[Message, ...]


class Engine(Protocol):
    """One model, ready. `about` is what a manifest says of it."""

    about: dict[str, Any]

    def fit(self, asked: Asked) -> Asked:
        """What is asked, in roles that the model's chat template knows."""

    def score(self, prompts: Sequence[Messages], options: Sequence[str]) -> NDArray[np.float64]:
        """Log-probabilities in nats of every option as the whole reply, [N, K]; NaN where the context is too short."""

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Reply]:
        """Replies, in any order, each with a status."""


@dataclass
class LocalEngine:
    """A model in this process (transformers)."""

    about: dict[str, Any]
    sampler: LocalSampler
    scorer: OptionScorer
    knows_system: bool
    options: dict[tuple[str, ...], tuple[list[Ids], int]] = field(default_factory=dict)

    def fit(self, asked: Asked) -> Asked:
        return asked if self.knows_system else without_system(asked)

    def score(self, prompts: Sequence[Messages], options: Sequence[str]) -> NDArray[np.float64]:
        tokenizer = self.sampler.chat_model.tokenizer
        if tuple(options) not in self.options:
            self.options[tuple(options)] = option_ids(tokenizer, prompts[0], options)
        option_ids_K, dropped = self.options[tuple(options)]
        ids = [render_prompt(tokenizer, messages) for messages in prompts]
        return self.scorer([each[: len(each) - dropped] for each in ids], option_ids_K)

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Reply]:
        return self.sampler.sample(prompts, sampling)


def load_engine(name: str, settings: ModelSettings, folder: Path, batch_size: int) -> Engine:
    """The engine of a recipe's model; paths are relative to `folder`. Raises `BackendError` where it cannot be had."""
    if settings.path is None:
        raise BackendError(f"model {name}: endpoints are not supported yet; give a local path.")
    path = local_folder(name, settings.path, folder)
    chat_model = load_model(path, name=name, dtype=settings.dtype, code=settings.trust_remote_code)
    if settings.chat_template:
        chat_model.tokenizer.chat_template = (folder / settings.chat_template).read_text(encoding="utf-8")
    template = str(chat_model.tokenizer.chat_template or "")
    about = {
        "engine": "transformers, in this process",
        "path": settings.path,
        "fingerprint": fingerprint(path),
        "architecture": type(chat_model.model).__name__,
        "dtype": settings.dtype,
        "chat_template": hashlib.sha256(template.encode()).hexdigest()[:16],
    }
    knows_system = _knows_system(chat_model.tokenizer)
    return LocalEngine(about, LocalSampler(chat_model, batch_size), OptionScorer(chat_model), knows_system)


def local_folder(name: str, path: str, folder: Path) -> Path:
    """Where a recipe's model is: beside the recipe. Raises `BackendError` where there is none: nothing is fetched."""
    found = folder / Path(path).expanduser()
    if not found.is_dir():
        raise BackendError(
            f"model {name}: no folder {path}, relative to {folder.resolve()}. Annotation fetches nothing: download the "
            f"model first (hf download {path} --local-dir ...)."
        )
    return found


def fingerprints(settings: ModelSettings, name: str, folder: Path) -> str:
    """What must not change between `freeze` and `run`: of a folder its contents, of an endpoint its name."""
    if settings.path is None:
        return f"{settings.endpoint} {settings.model}"
    return fingerprint(local_folder(name, settings.path, folder))


def _knows_system(tokenizer: Any) -> bool:
    try:
        rendered = render_prompt(tokenizer, (Message("system", "Qz7zQ"), Message("user", "x")))
    except DataError:
        return False
    return "Qz7zQ" in "".join(tokenizer.decode(rendered))  # some templates drop what the system says without a word
