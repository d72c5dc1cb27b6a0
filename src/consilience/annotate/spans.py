"""Spans of a text: read and checked, and cut into runs of characters that all coders marked alike.

A span is `[start, end, label]` in characters (code points) of the text, its end not included.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from consilience.errors import DataError


class Span(NamedTuple):
    """Characters `start` to `end` of a text, the last not included."""

    start: int
    end: int
    label: str


def read_spans(value: Any, labels: Collection[str], length: int | None = None) -> tuple[Span, ...]:
    """The spans in JSON or a list, in order, none twice.

    Raises `DataError` at what is no list of spans, at another label than `labels` (if there are any), and where the
    text's `length` is known at a span beyond it.
    """
    try:
        found = json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise DataError(
            f"spans are not JSON ({error.msg}, column {error.colno}); expected [[start, end, label]]."
        ) from None
    if not isinstance(found, list):
        raise DataError(f"got {value!r}; expected spans as [[start, end, label], ...].")
    within = "" if length is None else f" within {length} characters"
    kept = set()
    for span in found:
        match span:
            case [int(start), int(end), str(label)] if 0 <= start < end and (length is None or end <= length):
                if labels and label not in labels:
                    raise DataError(f"the label {label!r} of a span is none of {', '.join(labels)}.")
                kept.add(Span(start, end, label))
            case _:
                raise DataError(f"the span {span!r}; expected [start, end, label]{within}.")
    return tuple(sorted(kept))


def written(spans: Sequence[Span]) -> str:
    """Spans as a table's cell holds them."""
    return json.dumps([list(span) for span in spans], ensure_ascii=False)


def runs(marked: Sequence[Sequence[Span] | None], length: int) -> list[tuple[int, tuple[bool | None, ...]]]:
    """How many characters in a row are marked by the same coders, and by which; None for a coder who has not coded.

    `marked` are every coder's spans of one text of `length` characters. The lengths add up to `length`.
    """
    ends = {end for spans in marked if spans for span in spans for end in span[:2] if end < length}
    borders = [*sorted(ends | {0}), length] if length else []
    return [
        (
            end - start,
            tuple(None if spans is None else any(s.start <= start < s.end for s in spans) for spans in marked),
        )
        for start, end in pairwise(borders)
    ]


def merged(spans: Sequence[Span], *, labels: bool = True) -> tuple[Span, ...]:
    """Spans that share characters made one: those of one label, or without `labels` of any; such as touch stay two."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda span: (span.label if labels else "", span.start)):
        last = kept[-1] if kept else None
        if last and span.start < last.end and (span.label == last.label or not labels):
            kept[-1] = Span(last.start, max(last.end, span.end), last.label)
        else:
            kept.append(span)
    return tuple(sorted(kept))
