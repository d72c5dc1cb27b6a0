"""Win rates against one baseline, in percent, as AlpacaEval counts them; intervals that keep their width at 0 and 100.

A win is a number from 0 to 1: the judge's probability that the candidate's reply is the better one, or a verdict
(1 won, 0.5 tie, 0 lost). AlpacaEval's `preference` is this number plus one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from consilience.errors import DataError
from consilience.stats.estimate import Estimate, Floats
from consilience.stats.means import mean
from consilience.stats.proportions import in_percent
from consilience.stats.units import finite


class WinCounts(NamedTuple):
    """Items won (above one half), lost and tied (exactly one half)."""

    won: int
    lost: int
    tied: int


def win_rate(
    wins: ArrayLike, units: Sequence[str] | None = None, *, unit_kind: str = "instructions", level: float = 0.95
) -> Estimate:
    """100 times the mean of `wins`; both orders of one prompt, or several turns, carry its label in `units`.

    With one item per unit value and standard error are AlpacaEval's `win_rate` and `standard_error`. The interval is
    Wilson's at the size of a sample of plain verdicts with this standard error, on Student's t: it stays within 0 and
    100 and has a width where all is won. Raises `DataError` at numbers outside 0 to 1 and at a single unit.
    """
    x = _between_0_and_1(wins)
    return in_percent(mean(x, units, unit_kind=unit_kind, level=level), "win rate in percent")


def discrete_win_rate(
    wins: ArrayLike, units: Sequence[str] | None = None, *, unit_kind: str = "instructions", level: float = 0.95
) -> Estimate:
    """The win rate of verdicts: every item counts 1, 0.5 or 0 (AlpacaEval's `discrete_win_rate`)."""
    x = _between_0_and_1(wins)
    return win_rate((np.sign(x - 0.5) + 1) / 2, units, unit_kind=unit_kind, level=level)


def win_counts(wins: ArrayLike) -> WinCounts:
    """How many items were won, lost and tied."""
    x = _between_0_and_1(wins)
    return WinCounts(won=int((x > 0.5).sum()), lost=int((x < 0.5).sum()), tied=int((x == 0.5).sum()))


def _between_0_and_1(wins: ArrayLike) -> Floats:
    x = finite(wins, "wins")
    if outside := int(((x < 0) | (x > 1)).sum()):
        raise DataError(f"{outside} of {len(x)} wins are outside 0 to 1; AlpacaEval's preference is the win plus 1.")
    return x
