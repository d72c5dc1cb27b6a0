"""What a coder may say of a text: checked against the codebook, and written as it writes it."""

from __future__ import annotations

import json
from typing import Any

from consilience.annotate.codebook import JOINT, Codebook, Level
from consilience.annotate.coding.labels import NO_LABEL
from consilience.errors import DataError

LONGEST = 20_000  # characters of a free text, a note


def checked(value: Any, codebook: Codebook, text: str) -> str:
    """A coder's value as the store keeps it: a word or number of the codebook, labels joined by `|`, spans as JSON.

    `value` is text, a list of labels (multi-label) or a list of `[start, end, label]` (spans, in characters of
    `text`). Raises `DataError` at what the codebook does not have.
    """
    if codebook.level is Level.SPAN:
        return _spans(value, codebook, text)
    if codebook.level is Level.MULTI_LABEL:
        if isinstance(value, str):
            value = [] if value.strip() == NO_LABEL else value.split(JOINT)
        if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
            raise DataError(f"got {value!r}; expected a list of labels.")
        return codebook.canonical(JOINT.join(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = f"{value:g}"
    if not isinstance(value, str):
        raise DataError(f"got {value!r}; expected {'a number' if codebook.level is Level.INTERVAL else 'a label'}.")
    if len(value) > LONGEST:
        raise DataError(f"{len(value)} characters; expected at most {LONGEST}.")
    return codebook.canonical(value)


def _spans(value: Any, codebook: Codebook, text: str) -> str:
    try:
        spans = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise DataError(
            f"spans are not JSON ({error.msg}, column {error.colno}); expected [[start, end, label]]."
        ) from None
    if not isinstance(spans, list):
        raise DataError(f"got {value!r}; expected spans as [[start, end, label], ...].")
    kept = []
    for span in spans:
        match span:
            case [int(start), int(end), str(label)] if 0 <= start < end <= len(text):
                if codebook.names and label not in codebook.names:
                    raise DataError(f"the label {label!r} of a span is none of {', '.join(codebook.names)}.")
                kept.append((start, end, label))
            case _:
                raise DataError(f"the span {span!r}; expected [start, end, label] within {len(text)} characters.")
    return json.dumps([list(span) for span in sorted(set(kept))], ensure_ascii=False)
