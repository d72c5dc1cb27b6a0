"""What a coder may say of a text: checked against the codebook, and written as it writes it."""

from __future__ import annotations

from typing import Any

from consilience.annotate.codebook import JOINT, Codebook, Level
from consilience.annotate.coding.labels import NO_LABEL
from consilience.annotate.spans import read_spans, written
from consilience.errors import DataError

LONGEST = 20_000  # characters of a free text, a note


def checked(value: Any, codebook: Codebook, text: str) -> str:
    """A coder's value as the store keeps it: a word or number of the codebook, labels joined by `|`, spans as JSON.

    `value` is text, a list of labels (multi-label) or a list of `[start, end, label]` (spans, in characters of
    `text`). Raises `DataError` at what the codebook does not have.
    """
    if codebook.level is Level.SPAN:
        return written(read_spans(value, codebook.names, len(text)))
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
