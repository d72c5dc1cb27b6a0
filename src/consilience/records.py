"""The records that rooms hand to one another, and their files: JSONL, JSON and Parquet, both ways; folders of them."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import Any

from consilience.errors import DataError
from consilience.folders import is_saved, saved_rows, shards_of

ROLES = ("system", "user", "assistant", "tool")
# ShareGPT's and other exporters' names for the same roles.
ROLE_NAMES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
} | {role: role for role in ROLES}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `role` is one of ROLES."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A chat. `group` names the data set or skill it belongs to; `id` is unique within its file."""

    id: str
    messages: tuple[Message, ...]
    group: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def replies(self) -> tuple[str, ...]:
        """The contents of the assistant's turns, in order."""
        return tuple(message.content for message in self.messages if message.role == "assistant")

    @property
    def opening(self) -> str:
        """A short hash of what comes before the first reply: chats with the same opening are one independent unit.

        A text without a prompt is its own opening.
        """
        first = next(i for i, message in enumerate(self.messages) if message.role == "assistant") or 1
        words = "\0".join(f"{message.role}\0{message.content}" for message in self.messages[:first])
        return hashlib.sha256(words.encode(errors="surrogatepass")).hexdigest()[:16]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """What comes before the last assistant turn."""
        last = max(i for i, message in enumerate(self.messages) if message.role == "assistant")
        return self.messages[:last]


def read_conversations(
    path: Path | str, *, group_key: str = "group", limit: int | None = None, split: str | None = None
) -> list[Conversation]:
    """The chats of a file or folder (see `read_rows`), each with `messages` or ShareGPT's `conversations`.

    `group_key` names the field that holds a chat's group. Raises `DataError` naming file and line when a record
    cannot be read, has no assistant turn, or when there is none at all.
    """
    return conversations_of(islice(read_rows(Path(path), split=split), limit), path, group_key=group_key)


def conversations_of(
    rows: Iterable[tuple[str, Any]], name: Path | str, *, group_key: str = "group"
) -> list[Conversation]:
    """The chats of rows, each with its place, of the data called `name`. Raises `DataError` where there is none."""
    chats = [
        conversation_of(row, where=where, index=index, group_key=group_key) for index, (where, row) in enumerate(rows)
    ]
    if not chats:
        raise DataError(f"{name} holds no conversations. Expected one JSON object with 'messages' per line.")
    return chats


def conversation_of(row: Any, *, where: str, index: int, group_key: str = "group") -> Conversation:
    """One row of a chat file as a `Conversation`; `where` is put before the error's text."""
    if not isinstance(row, Mapping):
        raise DataError(f"{where}: got {type(row).__name__}, expected an object with 'messages'.")
    messages = messages_of(row, where=where)
    if not any(message.role == "assistant" for message in messages):
        raise DataError(f"{where}: the conversation has no assistant turn, so there is nothing to learn from it.")
    extra = {key: value for key, value in row.items() if key not in ("messages", "conversations", "id", group_key)}
    id_, group = row.get("id"), row.get(group_key)
    return Conversation(
        id=str(index if id_ is None else id_), messages=messages, group="" if group is None else str(group), extra=extra
    )


def messages_of(row: Mapping[str, Any], *, where: str) -> tuple[Message, ...]:
    """The turns of one row of a chat file."""
    turns = row["messages"] if row.get("messages") is not None else row.get("conversations")
    if not isinstance(turns, Sequence) or isinstance(turns, str):
        raise DataError(f"{where}: no 'messages' (or ShareGPT 'conversations') list; its keys are {sorted(row)}.")
    return tuple(_message(turn, where) for turn in turns)


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, Mapping):
        raise DataError(f"{where}: a turn is {type(turn).__name__}, expected an object with 'role' and 'content'.")
    role = turn.get("role", turn.get("from"))
    content = turn.get("content", turn.get("value"))
    if not isinstance(role, str) or role not in ROLE_NAMES:
        raise DataError(f"{where}: a turn has role {role!r}, expected one of {', '.join(ROLE_NAMES)}.")
    if not isinstance(content, str):
        raise DataError(f"{where}: a {role} turn has content of type {type(content).__name__}, expected text.")
    return Message(ROLE_NAMES[role], content)


def row_of(chat: Conversation) -> dict[str, Any]:
    """The JSON object that `read_conversations` reads back as `chat`."""
    messages = [{"role": message.role, "content": message.content} for message in chat.messages]
    row: dict[str, Any] = {"id": chat.id, "group": chat.group, "messages": messages}
    return row | {key: value for key, value in chat.extra.items() if key not in row}


class VerdictState(StrEnum):
    """What became of a judgment. Compare, never test for truth."""

    OK = "ok"
    TIE = "tie"
    UNPARSED = "unparsed"  # the judge spoke, and no verdict could be read from it
    OUT_OF_RANGE = "out_of_range"  # a rating outside the judge's scale
    REFUSED = "refused"
    API_ERROR = "api_error"
    OVER_BUDGET = "over_budget"  # the judge was not asked: it might have cost more than is left
    MISSING = "missing"  # there was no reply to judge


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgment:
    """What a judge says of one reply, or of two.

    `value` is a rating on the judge's scale; of two replies it is 1 where the first is better, 0 where the second is,
    0.5 for a tie, and a probability where the judge gives one. It is None unless the state is OK or TIE.
    """

    key: str  # a hash of everything that was asked, and of whom
    judge: str
    state: VerdictState
    value: float | None = None
    swapped: bool = False  # the second reply was shown first; `value` speaks of the first all the same
    orders: tuple[Judgment, ...] = ()  # the two judgments that this one is made of, where both orders were asked
    stated: float | None = None  # a rating outside the scale, as it was said
    said: str = ""  # the judge's words
    reason: str = ""  # why there is no verdict
    prompt: str = ""  # a hash of the judge's prompt before it was filled
    cut: bool = False  # the judge reads no text of this length: it saw a beginning only

    @property
    def consistent(self) -> bool | None:
        """Whether both orders gave the same verdict (first, second or tie); None unless both gave one."""
        sides = [(one.value > 0.5) - (one.value < 0.5) for one in self.orders if one.value is not None]
        return sides[0] == sides[1] if len(sides) == 2 else None


def row_of_judgment(judgment: Judgment) -> dict[str, Any]:
    """The JSON object that `judgment_of` reads back; fields that hold nothing are left out."""
    row = {name: getattr(judgment, name) for name in Judgment.__slots__}
    row["orders"] = [row_of_judgment(one) for one in judgment.orders]
    always = ("key", "judge", "state", "value")
    nothing: tuple[Any, ...] = (None, "", [])
    return {name: held for name, held in row.items() if name in always or (held not in nothing and held is not False)}


def judgment_of(row: Any, *, where: str) -> Judgment:
    """One row of a file of judgments. Raises `DataError` with `where` in front."""
    try:
        value = None if row["value"] is None else float(row["value"])
        rest = {name: row[name] for name in ("swapped", "stated", "said", "reason", "prompt", "cut") if name in row}
        orders = tuple(judgment_of(one, where=where) for one in row.get("orders", ()))
        state = VerdictState(row["state"])
        return Judgment(key=row["key"], judge=row["judge"], state=state, value=value, orders=orders, **rest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{where}: not a judgment ({type(error).__name__}: {error}).") from None


def read_judgments(path: Path) -> list[Judgment]:
    """The judgments of a file that holds `row_of_judgment` of each."""
    return [judgment_of(row, where=where) for where, row in read_rows(path)]


def read_rows(path: Path, *, split: str | None = None) -> Iterator[tuple[str, Any]]:
    """`(where, row)` of every record of a .jsonl, .json (both also .gz) or .parquet file; `where` names file and line.

    A folder may hold such files (`split` says which, where there are several), or be one that `save_to_disk` wrote.
    """
    if path.is_dir():
        parts = [saved_rows(path, split)] if is_saved(path) else map(read_rows, shards_of(path, split))
        yield from chain.from_iterable(parts)
        return
    if not path.is_file():
        raise DataError(f"no file {path}. Check the path; paths in a recipe are relative to the recipe.")
    kind = path.name.removesuffix(".gz").rpartition(".")[2].lower()
    if kind == "parquet":
        yield from _parquet_rows(path)
    elif kind == "json":
        yield from _json_rows(path)
    elif kind in ("jsonl", "ndjson"):
        yield from _jsonl_rows(path)
    else:
        raise DataError(f"{path} ends in .{kind}; expected .jsonl, .json or .parquet (.jsonl and .json may be .gz).")


# What reading a damaged .gz, or bytes that are no text, raises.
UNREADABLE = (UnicodeDecodeError, gzip.BadGzipFile, zlib.error, EOFError)


def _open_text(path: Path) -> Any:
    """UTF-8, with or without the mark that Windows programs put in front."""
    return gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with _open_text(path) as lines:
        number = 0
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield f"{path}, line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno}).") from None
        except UNREADABLE as error:
            after = f", after line {number}" if number else ""
            raise DataError(f"{path}{after}: not readable as UTF-8 text ({error}).") from None


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with _open_text(path) as file:
            rows = json.load(file)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}).") from None
    except UNREADABLE as error:
        raise DataError(f"{path}: not readable as UTF-8 text ({error}).") from None
    if not isinstance(rows, list):
        raise DataError(f"{path} holds a {type(rows).__name__}; expected a list of conversations.")
    for number, row in enumerate(rows, start=1):
        yield f"{path}, item {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        batches = parquet.ParquetFile(path).iter_batches(batch_size=1024)
        number = 0
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file ({error}).") from None


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Rows as JSON lines. The caller writes to a temporary name where a half-written file would matter."""
    # A lone surrogate, which UTF-8 cannot hold, is written as JSON's own escape.
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows as Parquet; column types are inferred by pyarrow."""
    import pyarrow
    import pyarrow.parquet as parquet

    parquet.write_table(pyarrow.Table.from_pylist([dict(row) for row in rows]), path)


def printable(text: str) -> str:
    """`text` with line ends, terminal escapes and direction marks spelt out, so that it can be shown anywhere."""
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)
