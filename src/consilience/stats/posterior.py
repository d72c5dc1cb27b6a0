"""A number known by draws from its posterior, where no influences of units are: ratios and maxima of small counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from consilience.errors import DataError
from consilience.stats.estimate import Floats


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Posterior:
    """A number measured on `n` units. Its value is the draws' median, its interval their quantiles.

    `plug_in` is the same number computed from the observed shares, which the median leaves where cells are empty.
    Posteriors of the same draws are paired: their difference is that of the draws.
    """

    draws_B: Floats
    plug_in: float
    n: int
    unit_kind: str
    method: str
    level: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise DataError(f"level is {self.level}; expected a number between 0 and 1, such as 0.95.")

    @property
    def value(self) -> float:
        """The draws' median."""
        return float(np.median(self.draws_B))

    @property
    def standard_error(self) -> float:
        """The draws' standard deviation."""
        return float(self.draws_B.std())

    @property
    def low(self) -> float:
        """The interval's lower end."""
        return self.interval(self.level)[0]

    @property
    def high(self) -> float:
        """The interval's upper end."""
        return self.interval(self.level)[1]

    def interval(self, level: float) -> tuple[float, float]:
        """The quantiles that hold `level` of the draws between them."""
        low, high = np.quantile(self.draws_B, [(1 - level) / 2, (1 + level) / 2])
        return float(low), float(high)

    def probability_above(self, threshold: float) -> float:
        """The share of the draws above `threshold`."""
        return float((self.draws_B > threshold).mean())

    def to_json(self) -> dict[str, Any]:
        """As `Estimate.to_json`, with the plug-in value beside it."""
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "standard_error": self.standard_error,
            "n": self.n,
            "units": self.unit_kind,
            "level": self.level,
            "method": self.method,
            "plug_in": float(self.plug_in),
        }


def combined(parts: list[Posterior], function: Callable[..., Any], method: str) -> Posterior:
    """`function` of several posteriors, draw by draw: paired where their draws are, independent where they are not."""
    sizes = {len(part.draws_B) for part in parts}
    if len(sizes) > 1 or len({part.level for part in parts}) > 1:
        raise DataError(f"posteriors of {sorted(sizes)} draws cannot be combined; draw equally many, at one level.")
    return Posterior(
        draws_B=np.asarray(function(*(part.draws_B for part in parts)), dtype=np.float64),
        plug_in=float(function(*(part.plug_in for part in parts))),
        n=sum(part.n for part in parts),
        unit_kind=parts[0].unit_kind,
        method=method,
        level=parts[0].level,
    )
