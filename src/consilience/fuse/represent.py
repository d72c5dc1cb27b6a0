"""Represent: what a model thinks at every position of every reply, stored sparsely, shard by shard.

A shard holds the conversations [first, first + shard_conversations) of the data set, so that the same shard of two
models speaks of the same texts, and every later stage works on one shard at a time. A candidate takes six bytes: its
id (int32) and its log-probability (float16, of the full softmax: what the k candidates leave out is known). Rounding
to float16 moves a log-probability x by at most |x| / 2048: 0.005 nats at a probability of e^-10.

Shapes: N positions of a shard, K candidates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from consilience.align import text_keys
from consilience.chat import Rendered, render
from consilience.errors import ConfigError, DataError
from consilience.models import EngineSettings, Model
from consilience.models.engine import refuse_placement
from consilience.models.ray_data import RaySettings, shared_out
from consilience.records import Conversation
from consilience.run import write_json

OnProgress = Callable[[int, int], None]
TRUNCATED = "truncated"


class RepresentSettings(EngineSettings):
    """How distributions are collected."""

    top_k: int = Field(10, ge=1, description="candidates kept per position")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    template: Literal["native", "pivot", "text"] = Field(
        "native", description="whose chat template the sources read; text: none, for base models on plain texts"
    )
    max_tokens: int = Field(2048, ge=2)
    batch_tokens: int = Field(8192, ge=1)
    spread: bool = Field(False, description="a model's layers over all GPUs, the CPU and the disk, as they fit")
    bits: Literal[4, 8] | None = Field(None, description="quantise the models that are read, by bitsandbytes (a GPU)")
    shard_conversations: int = Field(512, ge=1)
    ray: RaySettings | None = Field(None, description="copies of the model, by Ray Data, on one machine or many")

    @model_validator(mode="after")
    def _is_placed_by_its_engine(self) -> Self:
        refuse_placement(self, {"spread": self.spread, "bits": self.bits})
        return self


@dataclass(frozen=True, slots=True)
class Shard:
    """A model's distributions over the replies of consecutive conversations, in reading order."""

    conversation_N: NDArray[np.int32]  # index in the data set
    reply_N: NDArray[np.int32]  # which assistant turn
    position_N: NDArray[np.int32]  # place of the token in the rendered conversation
    start_N: NDArray[np.int32]  # byte span of the token in the reply
    end_N: NDArray[np.int32]
    closing_N: NDArray[np.bool_]  # the token ends the reply and has no text
    gold_ids_N: NDArray[np.int32]
    gold_logprobs_N: NDArray[np.float32]  # nats
    ids_NK: NDArray[np.int32]
    logprobs_NK: NDArray[np.float16]  # nats

    @property
    def starts_N(self) -> NDArray[np.int64]:
        """Where the tokens begin, as corpus-wide `text_keys`."""
        return text_keys(self.conversation_N, self.reply_N, self.start_N)

    @property
    def ends_N(self) -> NDArray[np.int64]:
        """Where the tokens end, as corpus-wide `text_keys`."""
        return text_keys(self.conversation_N, self.reply_N, self.end_N)


class Representation:
    """A finished `represent` folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
        self._intact: set[int] = set()

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self.manifest["shards"])

    @property
    def set_aside(self) -> Mapping[str, str]:
        """Conversations that the model could not read whole, by id, each with the reason."""
        aside: Mapping[str, str] = self.manifest["set_aside"]
        return aside

    @property
    def vocabulary_size(self) -> int:
        """Rows of the model's head."""
        return int(self.manifest["vocabulary_size"])

    @property
    def max_tokens(self) -> int:
        """Where longer conversations were cut: the limit asked for, or the model's context."""
        return int(self.manifest["max_tokens"])

    def shard(self, index: int) -> Shard:
        """Shard number `index`. Raises `DataError` when it is not what was stored."""
        path = self.folder / _shard_name(index)
        digest = self.manifest.get("digests", {}).get(path.name)  # older runs have none
        if digest and index not in self._intact:
            if _digest(path) != digest:
                raise DataError(
                    f"{path} is damaged: it is not what was stored. Remove {self.folder}, then give the same command "
                    "again: that folder alone is made anew."
                )
            self._intact.add(index)
        return Shard(**load_file(path))

    def __iter__(self) -> Iterator[Shard]:
        return (self.shard(index) for index in range(self.shards))


def represent(
    open_model: Callable[[], Model],
    conversations: Sequence[Conversation],
    settings: RepresentSettings,
    folder: Path,
    *,
    model_hash: str,
    chat_template: str | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> Representation:
    """The representations of `conversations` under a model, in `folder`; shards that are there are kept.

    `open_model` opens it here, or is pickled and opens the copies of `settings.ray`. `chat_template` takes the place of
    the model's own; `model_hash`, of weights and tokenizer, goes into the manifest.
    Raises `ConfigError` when k exceeds the vocabulary and `DataError` when no conversation can be read.
    """
    chunks = _chunks(conversations, settings)
    missing = [chunk for chunk in chunks if not (folder / _shard_name(chunk.number)).is_file()]
    make = partial(_reader, open_model, settings, chat_template)
    if settings.ray is None:
        reader = make()
        about = reader.about
        _write_shards(map(reader, missing), missing, folder, len(conversations), on_progress)
    else:
        missing = missing or chunks[-1:]  # only a copy can say what its model is
        copies = shared_out(missing, make, settings.ray)
        about = _write_shards(copies, missing, folder, len(conversations), on_progress)
    return _finished(about, conversations, settings, folder, model_hash)


class Chunk(NamedTuple):
    """The conversations of one shard."""

    number: int
    first: int
    conversations: Sequence[Conversation]


class About(NamedTuple):
    """What a manifest says of the model."""

    name: str
    vocabulary_size: int
    max_tokens: int


class Made(NamedTuple):
    """A shard, which conversations could not be read whole, and by which model."""

    shard: Shard
    set_aside: dict[str, str]
    about: About


@dataclass(frozen=True)
class Reader:
    """A model that makes shards of chunks."""

    chat_model: Model
    settings: RepresentSettings
    chat_template: str | None
    about: About

    def __call__(self, chunk: Chunk) -> Made:
        rendered, aside = _render_all(self.chat_model, chunk.conversations, self.settings, self.chat_template)
        shard = _score_shard(self.chat_model, chunk.conversations, rendered, chunk.first, self.settings)
        return Made(shard, aside, self.about)


def _reader(open_model: Callable[[], Model], settings: RepresentSettings, chat_template: str | None) -> Reader:
    """Opens the model. Raises `ConfigError` when k exceeds its vocabulary."""
    model = open_model()
    refuse_top_k(settings, model.name, model.vocabulary_size)
    about = About(model.name, model.vocabulary_size, model.context(settings.max_tokens))
    return Reader(model, settings, chat_template, about)


def _chunks(conversations: Sequence[Conversation], settings: RepresentSettings) -> list[Chunk]:
    step = settings.shard_conversations
    firsts = range(0, len(conversations), step)
    return [Chunk(number, first, conversations[first : first + step]) for number, first in enumerate(firsts)]


def _write_shards(
    made: Iterable[Made], chunks: Sequence[Chunk], folder: Path, total: int, on_progress: OnProgress
) -> About:
    """Every shard as it comes, whole or not at all; and what made the last one."""
    done = total - sum(len(chunk.conversations) for chunk in chunks)
    on_progress(done, total)
    about = About("", 0, 0)
    for chunk, one in zip(chunks, made, strict=True):
        about = one.about
        path = folder / _shard_name(chunk.number)
        partial_file = path.with_suffix(".partial")
        arrays = {field.name: getattr(one.shard, field.name) for field in fields(one.shard)}
        save_file(arrays, partial_file, metadata={"set_aside": json.dumps(one.set_aside)})
        partial_file.rename(path)
        done += len(chunk.conversations)
        on_progress(done, total)
    return about


def _finished(
    about: About, conversations: Sequence[Conversation], settings: RepresentSettings, folder: Path, model_hash: str
) -> Representation:
    """Writes the manifest over all shards. Raises `DataError` when no conversation could be read."""
    set_aside: dict[str, str] = {}
    shards = [_shard_name(chunk.number) for chunk in _chunks(conversations, settings)]
    for name in shards:
        with safe_open(folder / name, "np") as stored:
            set_aside |= json.loads(stored.metadata()["set_aside"])
    unread = [reason for reason in set_aside.values() if reason != TRUNCATED]
    if len(unread) == len(conversations):
        raise DataError(f"model {about.name} can read none of the conversations; the first one: {unread[0]}")
    write_json(
        folder / "manifest.json",
        {
            "model": about.name,
            "model_hash": model_hash,
            "vocabulary_size": about.vocabulary_size,
            "template": settings.template,
            "top_k": settings.top_k,
            "max_tokens": about.max_tokens,
            "dtype": settings.dtype,
            "conversations": len(conversations),
            "shards": shards,
            "digests": {name: _digest(folder / name) for name in shards},
            "set_aside": set_aside,
        },
    )
    return Representation(folder)


def refuse_top_k(settings: RepresentSettings, name: str, vocabulary_size: int) -> None:
    """Raises `ConfigError` when a vocabulary has less tokens than are to be kept."""
    if settings.top_k > vocabulary_size:
        raise ConfigError(
            f"represent.top_k is {settings.top_k}, but model {name} has a vocabulary of {vocabulary_size} tokens. "
            "Give a smaller represent.top_k."
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:32]


def _shard_name(index: int) -> str:
    return f"shard-{index:05d}.safetensors"


def _render_all(
    chat_model: Model, chunk: Sequence[Conversation], settings: RepresentSettings, chat_template: str | None
) -> tuple[list[Rendered | None], dict[str, str]]:
    """Every conversation as the model reads it, None where it cannot; and why not, by conversation id."""
    rendered: list[Rendered | None] = []
    aside = {}
    longest = chat_model.context(settings.max_tokens)
    for chat in chunk:
        try:
            one = render(chat_model.tokenizer, chat.messages, chat_template=chat_template, max_tokens=longest)
        except DataError as error:
            rendered.append(None)
            aside[chat.id] = str(error)
            continue
        rendered.append(one)
        if one.truncated:
            aside[chat.id] = TRUNCATED
    return rendered, aside


def _score_shard(
    chat_model: Model,
    chunk: Sequence[Conversation],
    rendered: Sequence[Rendered | None],
    first: int,
    settings: RepresentSettings,
) -> Shard:
    read = [(index, one) for index, one in enumerate(rendered) if one is not None and len(one.reply_positions)]
    scored = dict(
        chat_model.score(
            [one.ids_T for _, one in read],
            [one.reply_positions for _, one in read],
            top_k=settings.top_k,
            batch_tokens=settings.batch_tokens,
            names=[chunk[index].id for index, _ in read],
        )
    )
    parts: list[tuple[Any, ...]] = []
    for order, (index, one) in enumerate(read):
        at = one.reply_positions
        scores = scored[order]
        parts.append(
            (
                np.full(len(at), first + index, dtype=np.int32),
                one.reply_T[at].astype(np.int32),
                at.astype(np.int32),
                one.reply_starts_T[at].astype(np.int32),
                one.reply_ends_T[at].astype(np.int32),
                (one.reply_starts_T >= one.reply_bytes_T(chunk[index].replies))[at],
                one.ids_T[at].astype(np.int32),
                scores.gold_logprobs_N,
                scores.ids_NK,
                scores.logprobs_NK.astype(np.float16),
            )
        )
    return Shard(*_stack(parts, settings.top_k))


def _stack(parts: Sequence[tuple[Any, ...]], top_k: int) -> list[NDArray[Any]]:
    if parts:
        return [np.concatenate(columns) for columns in zip(*parts, strict=True)]
    ints = np.zeros(0, dtype=np.int32)
    return [
        *(ints,) * 5,
        np.zeros(0, dtype=bool),
        ints,
        np.zeros(0, dtype=np.float32),
        np.zeros((0, top_k), dtype=np.int32),
        np.zeros((0, top_k), dtype=np.float16),
    ]
