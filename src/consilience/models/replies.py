"""Replies on disk as they come: a sampler is asked in parts, and a stop costs one part at most.

FOLDER/replies-00000.jsonl   a line each: {"id", "sample", "text", "status", "tokens", "detail"}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from consilience.errors import DataError
from consilience.models.endpoint.gone import refuse_gone_server, unanswered
from consilience.models.protocols import Prompt, Reply, ReplyStatus, Sampler, Sampling
from consilience.records import read_rows, write_jsonl

PART = 256  # prompts between two writes: what a stop can cost a model in this process
OnProgress = Callable[[int, int], None]


def sample_to_disk(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    folder: Path,
    *,
    needs_all: bool = False,
    on_progress: OnProgress = lambda done, total: None,
) -> list[Reply]:
    """Every reply to every prompt, in the order of prompts and samples; parts that are in `folder` are kept.

    A part is sampled as a whole or not at all, so that what a model in this process replies after a stop is, bit for
    bit, what it would have replied without. A server's replies are kept by its cache, within a part too.

    With `needs_all` raises `BackendError` where the server is gone or its budget spent: such a part is not written.
    """
    found: list[Reply] = []
    total = len(prompts) * sampling.samples
    folder.mkdir(parents=True, exist_ok=True)
    for number, begin in enumerate(range(0, len(prompts), PART)):
        part, path = prompts[begin : begin + PART], folder / f"replies-{number:05d}.jsonl"
        expected = [(prompt.id, sample) for prompt in part for sample in range(sampling.samples)]
        replies = _part_at(path, expected)
        if not replies:
            by_name: dict[tuple[str, int], Reply] = {}
            for reply in sampler.sample(part, sampling):
                by_name[reply.id, reply.sample] = reply
                on_progress(len(found) + len(by_name), total)
            replies = [by_name[name] for name in expected]
            if needs_all:
                refuse_gone_server(sampler.name, [unanswered(reply.status, reply.detail) for reply in replies])
            partial = path.with_suffix(".partial")
            write_jsonl(partial, map(asdict, replies))
            partial.rename(path)
        found += replies
        on_progress(len(found), total)
    return found


def read_replies(folder: Path) -> list[Reply]:
    """What `sample_to_disk` wrote, in the same order."""
    return [reply for path in sorted(folder.glob("replies-*.jsonl")) for reply in _read(path)]


def _part_at(path: Path, expected: Sequence[tuple[str, int]]) -> list[Reply]:
    """The replies in the file, if they are all there: a power cut may leave a file with a name and nothing in it."""
    try:
        replies = _read(path) if path.is_file() else []
    except (DataError, TypeError, ValueError):
        return []
    return replies if [(reply.id, reply.sample) for reply in replies] == list(expected) else []


def _read(path: Path) -> list[Reply]:
    return [_reply_of(row) for _, row in read_rows(path)]


def _reply_of(row: Mapping[str, object]) -> Reply:
    return Reply(**{**row, "status": ReplyStatus(str(row.get("status")))})  # type: ignore[arg-type]
