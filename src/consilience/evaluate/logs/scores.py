"""One score of one model on one item, with what became of it; and what the scores of a log mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from consilience.errors import DataError
from consilience.records import printable


class Status(StrEnum):
    """What became of an item. Compare, never test for truth."""

    SCORED = "scored"
    # The model's own doing, which counts: the score is that of a wrong answer.
    UNREADABLE = "no readable answer, counted as wrong"
    CUT_OFF = "reply cut off, counted as wrong"
    NOT_ASKED = "not asked: the template refuses it, counted as wrong"
    REFUSED = "reply withheld by a filter, counted as wrong"
    # The measurement's doing: there is no score.
    NO_REPLY = "no reply to judge"
    JUDGE_REFUSED = "the judge refused"
    UNPARSED = "unparsed verdict"
    OUT_OF_RANGE = "out of range"
    UNSCORED = "not scored"
    ERROR = "error"
    OVER_BUDGET = "not asked: the budget was spent"
    MISSING = "missing"
    # A second score of the same item: the first counts.
    DUPLICATE = "duplicate with the same score"
    CONTRADICTION = "duplicate with another score"


class Score(NamedTuple):
    """One score; `value` is NaN where there is none. `sample` tells several answers to one item apart.

    Items of one `cluster` are not independent of one another; an item without one is its own.
    """

    model: str
    metric: str
    item: str
    value: float
    status: Status = Status.SCORED
    sample: str = ""
    cluster: str = ""
    category: str = ""
    weight: float = 1.0


class Metric(NamedTuple):
    """What a number means: its scale where it has one, and its direction."""

    scale: tuple[float, float] | None = None
    lower_is_better: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """The scores of one file or folder. `judged` says by whom, where no rule scored; `notes` are for the reader."""

    kind: str
    scores: Sequence[Score]
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    item_kind: str = "items"
    cluster_kind: str = "clusters"
    judged: str = ""
    notes: Sequence[str] = ()


def number_of(value: Any) -> tuple[float, Status]:
    """A score as a float; what is no number has a status that says so."""
    if isinstance(value, bool | int | float):
        number = float(value)
        return (number, Status.SCORED) if math.isfinite(number) else (math.nan, Status.UNSCORED)
    text = "" if value is None else str(value).strip()
    if text.lower() in ("", "na", "n/a", "nan", "none", "null"):
        return math.nan, Status.UNSCORED
    if text.lower() in ("true", "false"):
        return float(text.lower() == "true"), Status.SCORED
    try:
        number = float(text)
    except ValueError:
        return math.nan, Status.UNPARSED
    return (number, Status.SCORED) if math.isfinite(number) else (math.nan, Status.UNSCORED)


def field_of(row: Mapping[str, Any], path: str, where: str) -> str:
    """The text at `path` (`subject`, or `doc.subject` inside an object); raises `DataError` where there is none."""
    found: Any = row
    for key in path.split(".") if path not in row else [path]:
        if not isinstance(found, Mapping) or key not in found:
            inside = sorted(map(str, found)) if isinstance(found, Mapping) else []
            raise DataError(f"{where}: no field {path!r} to cluster by; there are {', '.join(map(printable, inside))}.")
        found = found[key]
    if found is None or found == "":
        raise DataError(f"{where}: the field {path!r} to cluster by is empty; every item belongs to one cluster.")
    return printable(str(found))
