"""The file of a search's replies: a line per prompt as it is done, and what decided them beside it.

replies.jsonl                 a line per prompt, in their order once the search is over
replies.jsonl.settings.json   settings and models; other ones are refused, and nothing is overwritten
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from consilience.config import flatten
from consilience.errors import ConfigError, DataError
from consilience.models.endpoint import Status
from consilience.records import write_jsonl
from consilience.run import write_json
from consilience.search import Prompt, Result
from consilience.search.chunks import NoReply

Row = Mapping[str, Any]
REFUSED = "refused"
ASKED_AGAIN = {str(Status.API_ERROR), str(Status.OVER_BUDGET)}  # a reply may come another time


class Replies:
    """The rows by a prompt's id: those that were there, and those that are added."""

    def __init__(self, path: Path, file: IO[str], found: dict[str, Row]) -> None:
        self.path, self.found, self._file = path, found, file

    def add(self, row: Row) -> None:
        """Is on the disk when this returns."""
        self.found[row["id"]] = row
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def refuse_other(self, prompts: Sequence[Prompt]) -> None:
        """Raises `ConfigError` where there is a reply to another prompt of the same id."""
        for prompt in prompts:
            row = self.found.get(prompt.id)
            if row is not None and row["messages"][: len(prompt.messages)] != _turns(prompt):
                raise ConfigError(
                    f"{self.path} holds a reply to another prompt under the id {prompt.id!r}. Give another --out."
                )

    def put_in_order(self, prompts: Sequence[Prompt]) -> None:
        """Replies in the order of the prompts, then those of prompts that were asked for earlier."""
        ids = [prompt.id for prompt in prompts]
        partial = self.path.with_name(self.path.name + ".partial")
        write_jsonl(partial, [self.found[id_] for id_ in [*ids, *(id_ for id_ in self.found if id_ not in set(ids))]])
        partial.rename(self.path)


@contextlib.contextmanager
def open_replies(out: Path, outcome: Row) -> Iterator[Replies]:
    """The file `out`, locked and open for more rows; `outcome` decides them.

    Raises `ConfigError` where it was made by something else, or by other settings or models.
    """
    beside = out.with_name(out.name + ".settings.json")
    if out.is_dir():
        raise ConfigError(f"{out} is a folder. Give --out a file, such as replies.jsonl.")
    if out.exists() and not beside.exists():
        raise ConfigError(f"{out} was not made by a search. Give --out another file.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        file = out.open("a+", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}). Give another --out.") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"another search writes {out}. Wait for it, or give another --out.") from None
        found = _whole_lines(out, file)
        if found:
            _refuse_changes(out, json.loads(beside.read_text(encoding="utf-8")), outcome)
        else:  # also after a first try with a wrong URL
            write_json(beside, dict(outcome))
        yield Replies(out, file, found)


def row_of(prompt: Prompt, result: Result) -> Row:
    """The line of a prompt that has a reply."""
    best = result.replies[0]
    return {
        "id": prompt.id,
        "messages": [*_turns(prompt), {"role": "assistant", "content": best.text}],
        "status": str(best.finish),
        "score": _rounded(best.score),
        "tokens": best.tokens,
        "prompt_tokens": result.prompt_tokens,
        "chunks": result.chunks,
        "others": [
            {"reply": each.text, "status": str(each.finish), "score": _rounded(each.score)}
            for each in result.replies[1:]
        ],
    }


def row_without_reply(prompt: Prompt, error: DataError | NoReply) -> Row:
    """The line of a prompt that has none, and why."""
    status = error.status if isinstance(error, NoReply) else REFUSED
    return {"id": prompt.id, "messages": _turns(prompt), "status": status, "why": str(error)}


def _refuse_changes(out: Path, made: Row, asked: Row) -> None:
    was, now = flatten(made), flatten(asked)
    changes = [
        f"{key} was {was.get(key)!r}, now {now.get(key)!r}" for key in sorted(was | now) if was.get(key) != now.get(key)
    ]
    if changes:
        raise ConfigError(f"{out} was made with other settings: {'; '.join(changes)}. Give another --out, or those.")


def _whole_lines(out: Path, file: IO[str]) -> dict[str, Row]:
    """The rows by id, but for those that are asked for again; what a killed search left of a line is cut off.

    Raises `ConfigError` for a line that no search has written.
    """
    file.seek(0)
    found, end = {}, 0
    for line in iter(file.readline, ""):
        if not line.endswith("\n"):
            break
        try:
            row = json.loads(line)
            found[row["id"]] = row
        except (ValueError, TypeError, KeyError):
            raise ConfigError(f"{out} holds a line that no search wrote: {line[:60]!r}. Give another --out.") from None
        end = file.tell()
    file.truncate(end)
    file.seek(0, os.SEEK_END)
    return {id_: row for id_, row in found.items() if row["status"] not in ASKED_AGAIN}


def _turns(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


def _rounded(score: float | None) -> float | None:
    """Nats without the digits that depend on what else was in the batch."""
    return None if score is None else round(score, 4)
