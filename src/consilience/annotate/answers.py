"""From a model's reply to a label, or to the reason why there is none. Strictly: nothing is guessed."""

from __future__ import annotations

import json
import re
from enum import StrEnum
from typing import Any

from consilience.annotate.codebook import JOINT, Codebook, Level
from consilience.annotate.strategies import LETTERS, NONE
from consilience.errors import DataError


class Status(StrEnum):
    """How the coding of one text ended. Compare, never test for truth. Only `ok` has a label."""

    OK = "ok"
    REFUSED = "refused"  # the model, or the server's filter, declined
    TRUNCATED = "truncated"  # the text leaves no room in the model's context, or the reply was cut off
    OUT_OF_SET = "out of set"  # the reply is no answer that the codebook has
    EMPTY = "empty"  # the text, or the reply, holds nothing but blanks
    ERROR = "error"  # the server gave no reply, or the chat template refused the prompt


REFUSAL = re.compile(
    r"\b(i('m| am) (sorry|unable|not able)|i (can('|no)t|cannot|won't|will not|must decline)|as an ai\b|"
    r"i do not feel comfortable)",
    re.IGNORECASE,
)
LEAD = re.compile(
    r"^(?:final\s+)?(?:answer|label|category|classification|code|rating|number)\s*(?:is)?\s*[:=]\s*", re.I
)
WRAPPING = " \t\r\n\"'“”‘’`*_.,;:!()[]{}<>#-"


def read_answer(reply: str, codebook: Codebook, *, format: str, order: tuple[int, ...] = (), text: str = "") -> Any:
    """The canonical label in a reply, or a `Status` that says why there is none.

    The whole reply has to be the answer, or its last line behind a word such as `Answer:`; blanks, quotes and other
    signs around it, and capitals, do not matter. `order` is that of option letters; `text` is what spans are quoted
    from.
    """
    if not reply.strip():
        return Status.EMPTY
    last = next(line for line in reversed(reply.splitlines()) if line.strip()).strip(" *_`#")
    candidates = [reply, *([LEAD.sub("", last)] if LEAD.match(last) else [])]
    for candidate in candidates:
        found = _read(LEAD.sub("", candidate.strip()), codebook, format, order, text)
        if found is not None:
            return found
    return Status.REFUSED if REFUSAL.search(reply) else Status.OUT_OF_SET


def _read(answer: str, book: Codebook, format: str, order: tuple[int, ...], text: str) -> str | None:
    if book.level is Level.SPAN:
        return _spans(answer, book, text)
    if format == "json":
        return _from_json(answer, book)
    if book.level is Level.FREE_TEXT:
        return answer.strip()
    if format == "letter":
        letter = answer.strip(WRAPPING)
        places = order or tuple(range(len(book.labels)))
        if len(letter) == 1 and letter.upper() in LETTERS[: len(places)]:
            return book.names[places[LETTERS.index(letter.upper())]]
        return None
    return _canonical(answer, book)


def _canonical(answer: str, book: Codebook) -> str | None:
    if book.level is Level.MULTI_LABEL:
        if answer.strip(" \n\"'`.*").casefold() in (NONE, "none"):
            return ""
        parts = [_by_name(part, book) for part in re.split(rf"[{JOINT}\n]", answer) if part.strip()]
        return book.canonical(JOINT.join(map(str, parts))) if parts and None not in parts else None
    if book.level is Level.INTERVAL:
        try:
            return book.canonical(answer.strip(" \n\"'`*%").removesuffix("."))
        except DataError:
            return None
    return _by_name(answer, book)


def _by_name(answer: str, book: Codebook) -> str | None:
    """The label that a reply is, with or without signs around it: a label may itself begin or end with one."""
    shown = answer.strip().casefold()
    bare = answer.strip(WRAPPING).casefold()
    exact = [name for name in book.names if name.casefold() == shown]
    stripped = [name for name in book.names if name.strip(WRAPPING).casefold() == bare]
    return next(iter([*exact, *stripped]), None)


def _from_json(answer: str, book: Codebook) -> str | None:
    found = _parsed(answer)
    if not isinstance(found, dict):
        return None
    if book.level is Level.MULTI_LABEL:
        labels = found.get("labels")
        if not isinstance(labels, list):
            return None
        value: Any = JOINT.join(map(str, labels))
    else:
        value = found.get("number" if book.level is Level.INTERVAL else "label")
    try:
        return None if value is None or isinstance(value, bool) else book.canonical(str(value))
    except DataError:
        return None


def _spans(answer: str, book: Codebook, text: str) -> str | None:
    """JSON `[[start, end, label], ...]` in code points; a quote that is not in the text makes the answer void."""
    found = _parsed(answer)
    if not isinstance(found, list):
        return None
    spans = []
    for span in found:
        quote = span.get("quote") if isinstance(span, dict) else None
        label = span.get("label") if isinstance(span, dict) else None
        if not isinstance(quote, str) or not quote:
            return None
        start = text.find(quote)
        if start < 0 or (book.names and label not in book.names):
            return None
        spans.append([start, start + len(quote), label if book.names else book.variable])
    return json.dumps(sorted(spans), ensure_ascii=False)


def _parsed(answer: str) -> Any:
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", answer.strip(), re.DOTALL)
    try:
        return json.loads(fenced[1] if fenced else answer)
    except ValueError:
        return None
