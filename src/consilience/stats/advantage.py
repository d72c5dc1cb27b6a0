"""Whether a model may stand in for one of several human coders: its advantage probability (arXiv:2501.10970).

For each coder and each item that they coded, model and coder are compared by how well either agrees with the coders who
remain. The advantage probability is the mean over coders of how often the model agrees at least as well. It comes with
an interval over items; what the paper's test makes of it, a verdict, is left out.

Shapes: N items, R coders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from consilience.errors import DataError, pick
from consilience.stats.estimate import Estimate, Floats
from consilience.stats.resampling import jackknife
from consilience.stats.units import several_units, sums_by_unit, unit_labels


def advantage_probability(
    model: Sequence[Any],
    ratings: Sequence[Sequence[Any]],
    units: Sequence[str] | None = None,
    *,
    alignment: str = "accuracy",
    min_items: int = 1,
    unit_kind: str = "items",
    level: float = 0.95,
) -> Estimate:
    """The mean over coders of P(the model agrees with the others at least as well as the coder does).

    `ratings` has a row per item and a column per coder, None where they did not code; `model` one label per item, None
    where it gave none, which agrees with nobody. `alignment` is a key of `ALIGNMENTS`. Coders of fewer than `min_items`
    items beside another coder are left out. The jackknife over units gives the interval, on Student's t.
    Raises `DataError` where no item has two coders.
    """
    score = pick(ALIGNMENTS, alignment, "alignment of a coder")
    coders = len(ratings[0]) if len(ratings) else 0
    parts_NR2 = np.zeros((len(ratings), coders, 2))
    for i, (label, row) in enumerate(zip(model, ratings, strict=True)):
        for j, own in enumerate(row):
            others = [other for k, other in enumerate(row) if k != j and other is not None]
            if own is None or not others:
                continue
            ours = score(label, others) if label is not None else -np.inf
            parts_NR2[i, j] = float(ours >= score(own, others)), 1.0
    enough = parts_NR2[:, :, 1].sum(0) >= max(1, min_items)
    if not enough.any():
        raise DataError(
            f"none of {coders} coders shares {min_items} items with another; the model needs others to meet."
        )
    parts_NR2 = parts_NR2[:, enough]
    names, index = several_units(unit_labels(units, len(ratings)), unit_kind)

    def advantage(sums: Floats) -> Floats:
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Floats = (sums[..., 0] / sums[..., 1]).mean(-1)
        return found

    method = (
        f"advantage probability over {int(enough.sum())} coders ({alignment}), jackknife over {unit_kind}, Student t"
    )
    return jackknife(advantage, sums_by_unit(parts_NR2, index), names, unit_kind=unit_kind, method=method, level=level)


def _same(label: Any, others: Sequence[Any]) -> float:
    return float(sum(other == label for other in others)) / len(others)


def _near(label: Any, others: Sequence[Any]) -> float:
    return -float(np.sqrt(np.mean([(float(label) - float(other)) ** 2 for other in others])))


ALIGNMENTS: dict[str, Callable[[Any, Sequence[Any]], float]] = {"accuracy": _same, "rmse": _near}
