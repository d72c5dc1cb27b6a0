"""AlpacaEval 2's length-controlled win rate of judged pairs: the fit is `stats.length_controlled_win_rate`'s.

Two readings where AlpacaEval's file of gamed baselines is given. The estimate finds an instruction's difficulty by the
instruction; the published-compatible value finds it by the row's place among the judged ones, as the package does,
which goes wrong from the first missing reply on.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from consilience.errors import DataError
from consilience.evaluate.judged import Judged, OneTurnTask
from consilience.stats import Estimate, GamedBaselines, LengthControlled, length_controlled_win_rate

COLUMNS = ("preference", "index", "std_delta_len", "instruction_difficulty")


class Gamed(NamedTuple):
    """The gamed baselines' judgments, and the difficulty of every instruction, by item in the order of the set."""

    baselines: GamedBaselines
    difficulty: Mapping[str, float]


def read_gamed(path: Path, items: Sequence[str]) -> Gamed:
    """AlpacaEval's `df_gamed.csv`; its `index` is the place of an instruction in the set, which `items` are in order.

    Raises `DataError` where it is another file, or knows fewer instructions than there are items.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    if not rows or not set(COLUMNS) <= rows[0].keys():
        raise DataError(f"{path}: expected AlpacaEval's df_gamed.csv, with {', '.join(COLUMNS)}.")
    name = dict(enumerate(items))
    difficulty = {int(row["index"]): float(row["instruction_difficulty"]) for row in rows}
    without = [item for place, item in name.items() if place not in difficulty]
    if without:
        raise DataError(
            f"{path} has the difficulties of {len(difficulty)} instructions; {len(without)} of {len(items)} questions "
            "have none. It is for AlpacaEval's own 805, in their order: leave `gamed` out for other questions."
        )
    baselines = GamedBaselines(
        [float(row["preference"]) for row in rows],
        [float(row["std_delta_len"]) for row in rows],
        [name.get(int(row["index"]), f"gamed {row['index']}") for row in rows],
    )
    return Gamed(baselines, {name[place]: value for place, value in sorted(difficulty.items()) if place in name})


class Fit(NamedTuple):
    """One model's fit: at every level its estimate, and what else the report shows of it."""

    at: Callable[[float], Estimate]
    shown: Mapping[str, Any]


def fit(judged: Sequence[Judged], gamed: Gamed | None) -> Fit:
    """The fit of one model's judged pairs. Raises `DataError` where none can be made: all lengths alike, say."""
    known = [one for one in judged if one.judgment.value is not None]
    wins = [float(one.judgment.value or 0.0) for one in known]
    gaps = [one.baseline_characters - one.characters for one in known]
    units = [one.item for one in known]

    def controlled(level: float = 0.95, *, by_row: bool = False) -> LengthControlled:
        return length_controlled_win_rate(
            wins,
            gaps,
            units,
            difficulty=gamed.difficulty if gamed else None,
            gamed=gamed.baselines if gamed else None,
            difficulty_by_row=by_row,
            level=level,
        )

    found = controlled()
    if not found.estimate.standard_error > 1e-9:
        raise DataError(f"{len(known)} judged pairs: all alike, or too few against the fit's penalty.")
    published = controlled(by_row=True) if gamed and len(set(units)) == len(units) else None
    return Fit(
        at=lambda level: controlled(level).estimate,
        shown={
            "length_effect": found.length_effect,
            "published_compatible": published.estimate.value if published else None,
            "published_standard_error": published.published_standard_error if published else None,
            "characters": sum(one.characters for one in known) / len(known),
            "baseline_characters": sum(one.baseline_characters for one in known) / len(known),
        },
    )


def fits(
    task: OneTurnTask, judged: Sequence[Judged], file: Callable[[str], Path]
) -> tuple[dict[str, Fit], dict[str, str]]:
    """Every model's fit, and of those that have none why."""
    control = getattr(task.settings, "length_control", False)
    gamed = None
    if not isinstance(control, bool) and control.gamed is not None:
        gamed = read_gamed(file(control.gamed), [item.id for item in task.items])
    made: dict[str, Fit] = {}
    refused: dict[str, str] = {}
    for model in dict.fromkeys(one.model for one in judged):
        try:
            made[model] = fit([one for one in judged if one.model == model], gamed)
        except DataError as error:
            refused[model] = str(error)
    return made, refused
