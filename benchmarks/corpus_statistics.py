"""Co-alignment counts over a corpus of real chats: what the `statistics` mapping costs at real vocabulary sizes.

Two steps, each in fresh processes: `tokenize` renders the chats with two real tokenizers and writes, shard by shard,
what `consilience fuse` has of them at that point; `count` aligns, counts and maps, and watches its own memory. The
second never loads torch.
"""

from __future__ import annotations

import gzip
import itertools
import json
import os
import pickle
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

SHARD = 250  # conversations
WORKERS = 2
SIDES = {"pivot": "mistral", "source": "qwen"}  # the makers of `real_chats.py`


@dataclass(frozen=True, slots=True)
class Corpus:
    """What `tokenize` did."""

    conversations: int
    distinct: int  # fewer than `conversations` where the folder has not so many
    set_aside: int  # that a template rewrites, or refuses
    pivot_tokens: int
    source_tokens: int
    cpu_s: float
    wall_s: float


@dataclass(frozen=True, slots=True)
class Counted:
    """What `count` found, and what it took. Memory in 10^6 bytes, of one process."""

    vocabularies: tuple[int, int]  # source, pivot
    matched_share: float
    distinct_pairs: int
    mapped_tokens: int
    cpu_s: float
    wall_s: float
    peak_mb: float  # resident, libraries included
    peak_anonymous_mb: float
    before_mb: float  # resident, with everything imported and nothing counted
    torch_loaded: bool


def measure(chats: Path, conversations: int, folder: Path) -> dict[str, Any]:
    """Both steps, with files in `folder`."""
    corpus = tokenize(chats, conversations, folder)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as child:
        counted = child.submit(count, folder).result()
    return {"corpus": asdict(corpus), "counted": asdict(counted)}


# ---- first step ----


def tokenize(chats: Path, conversations: int, folder: Path) -> Corpus:
    """Writes `conversations` chats in shards of SHARD: the same prompts by different models, repeated if too few."""
    began = time.perf_counter()
    replies = list(itertools.islice(_replies(chats), conversations))
    texts = list(itertools.islice(itertools.cycle(replies), conversations))
    shards = [(first // SHARD, texts[first : first + SHARD]) for first in range(0, len(texts), SHARD)]
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as children:
        done = list(children.map(partial(_tokenize_shards, folder), [shards[n::WORKERS] for n in range(WORKERS)]))
    set_aside, pivot_tokens, source_tokens, cpu_s = (sum(part) for part in zip(*done, strict=True))
    wall_s = time.perf_counter() - began
    return Corpus(len(texts), len(replies), int(set_aside), int(pivot_tokens), int(source_tokens), float(cpu_s), wall_s)


def _replies(chats: Path) -> Iterator[str]:
    """Lines of all files in turn: the first chat of each model, then the second of each."""
    with ExitStack() as stack:
        files = [
            stack.enter_context(gzip.open(path, "rt", encoding="utf-8")) for path in sorted(chats.glob("*.jsonl.gz"))
        ]
        for lines in itertools.zip_longest(*files):
            yield from (line for line in lines if line)


def _tokenize_shards(folder: Path, shards: list[tuple[int, list[str]]]) -> tuple[int, int, int, float]:
    """In a process of its own: shards written; returns conversations set aside, tokens of both sides, CPU seconds."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import real_chats
    from consilience.align import text_keys
    from consilience.chat import render, token_bytes
    from consilience.errors import DataError
    from consilience.records import Message

    began = time.process_time()
    scratch = folder / f"tokenizers-{os.getpid()}"
    tokenizers = {side: getattr(real_chats, maker)([], scratch / side) for side, maker in SIDES.items()}
    # Every worker knows the same texts; a rename lets the last one stand whole.
    written = scratch / "vocabularies.pickle"
    written.write_bytes(pickle.dumps({side: token_bytes(tokenizer) for side, tokenizer in tokenizers.items()}))
    written.replace(folder / "vocabularies.pickle")
    set_aside, tokens = 0, dict.fromkeys(SIDES, 0)
    for number, lines in shards:
        columns: dict[str, list[np.ndarray]] = {}
        for conversation, line in enumerate(lines):
            messages = [Message(**turn) for turn in json.loads(line)["messages"]]
            try:
                rendered = {side: render(tokenizer, messages) for side, tokenizer in tokenizers.items()}
            except DataError:
                set_aside += 1
                continue
            for side, text in rendered.items():
                at = text.reply_positions
                place = np.full(len(at), conversation), text.reply_T[at]
                columns.setdefault(f"{side}_ids", []).append(text.ids_T[at])
                columns.setdefault(f"{side}_starts", []).append(text_keys(*place, text.reply_starts_T[at]))
                columns.setdefault(f"{side}_ends", []).append(text_keys(*place, text.reply_ends_T[at]))
                tokens[side] += len(at)
        np.savez(folder / f"shard-{number:05d}.npz", **{name: np.concatenate(part) for name, part in columns.items()})
    return set_aside, tokens["pivot"], tokens["source"], time.process_time() - began


# ---- second step ----


def count(folder: Path) -> Counted:
    """In a process of its own: align every shard, count pairs of tokens on WORKERS threads, and map the vocabulary."""
    import sys

    from consilience.align import VOCABULARY_MAPPINGS, PairCounter, Vocabularies, align_spans, exact_matches

    texts = pickle.loads((folder / "vocabularies.pickle").read_bytes())
    shape = len(texts["source"]), len(texts["pivot"])
    with _Memory() as memory:
        cpu, wall = time.process_time(), time.perf_counter()
        counter = PairCounter(shape)

        def add(path: Path) -> tuple[int, int]:
            with np.load(path) as file:
                side = dict(file)
            alignment = align_spans(
                side["pivot_starts"], side["pivot_ends"], side["source_starts"], side["source_ends"]
            )
            at = alignment.matched_P
            counter.add(side["source_ids"][alignment.source_P[at]], side["pivot_ids"][at])
            return int(at.sum()), len(at)

        with ThreadPoolExecutor(WORKERS) as threads:
            matched, positions = zip(*threads.map(add, sorted(folder.glob("shard-*.npz"))), strict=True)
        counts = counter.total()
        matches = exact_matches(texts["source"], texts["pivot"])
        mapping = VOCABULARY_MAPPINGS["statistics"](Vocabularies(counts, matches, texts["source"], texts["pivot"]))
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Counted(
        vocabularies=shape,
        matched_share=sum(matched) / sum(positions),
        distinct_pairs=int(counts.nnz),
        mapped_tokens=int((np.diff(mapping.tocsr().indptr) > 0).sum()),
        cpu_s=cpu,
        wall_s=wall,
        peak_mb=memory.peak_mb,
        peak_anonymous_mb=memory.peak_anonymous_mb,
        before_mb=memory.before_mb,
        torch_loaded="torch" in sys.modules,
    )


class _Memory:
    """The most memory this process had since it began (resident), and while inside `with` (anonymous). Linux."""

    def __enter__(self) -> _Memory:
        self.before_mb = _memory_mb("VmRSS")
        self.peak_anonymous_mb = 0.0
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._over.wait(0.005):
            self.peak_anonymous_mb = max(self.peak_anonymous_mb, _memory_mb("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()
        self.peak_mb = _memory_mb("VmHWM")  # unlike getrusage's it does not begin with the parent's


def _memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e6
