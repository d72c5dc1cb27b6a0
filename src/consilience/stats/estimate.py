"""An estimate: a value and the influence of every independent unit on it; differences and averages of estimates.

The one convention, for an estimate over G units with influences phi_1 .. phi_G:

    value  ~  truth + mean(phi),      standard error^2  =  G / (G - 1) * sum(phi^2) / G^2

With phi_i = x_i - mean(x) this is the textbook s / sqrt(n). Estimates over other units have another G, so they are
not combined through phi but through each unit's share of the error,

    share_u  =  sqrt(G / (G - 1)) * phi_u / G,      standard error^2  =  sum(share^2)

A weighted sum of estimates has the weighted sum of their shares, unit by unit: a unit in two parts is one unit (the
pairing), a unit in one part adds its own square (the parts are independent there). So a difference on the same units
has exactly the standard error of the per-unit differences, and on other units exactly that of Welch. The result's phi
is then read back from the shares over the union of the units.

Degrees of freedom are G - 1 for one sample. A combination has strata: the units with the same membership in the
samples it is made of. They are pooled by Welch and Satterthwaite, (sum v)^2 / sum(v^2 / degrees), with v a stratum's
sum of squared shares; every unit brings its sample's (G - 1) / G to its stratum's degrees, the smallest such if it is
in several.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.errors import DataError
from consilience.stats.units import Units, all_units, unit_index

Floats = NDArray[np.float64]
Strata = Sequence[int] | NDArray[np.intp]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Estimate:
    """A number measured on a sample of independent units, with its Student t interval.

    `influence` has one entry per unit in the convention of this module. `interval` replaces the t interval where the
    method has its own. `strata` and `unit_degrees` say where the degrees of freedom come from, as described above; a
    plain sample leaves them out.
    """

    value: float
    units: Units
    influence: Floats
    unit_kind: str
    method: str
    level: float = 0.95
    interval: tuple[float, float] | None = None
    strata: Strata | None = None
    unit_degrees: Floats | None = None

    def __post_init__(self) -> None:
        if not len(self.units):
            raise DataError(f"an estimate over no {self.unit_kind}; expected at least one.")
        unique = len(unit_index(self.units)[0])
        if unique != len(self.units) or self.influence.shape != (len(self.units),):
            raise ValueError(f"{self.influence.shape} influences for {len(self.units)} units, {unique} unique")
        if not 0 < self.level < 1:
            raise DataError(f"level is {self.level}; expected a number between 0 and 1, such as 0.95.")

    @property
    def n(self) -> int:
        """The number of independent units, G."""
        return len(self.units)

    @property
    def shares(self) -> Floats:
        """Each unit's share of the error; unknown (NaN) when there is but one unit."""
        return self.influence / math.sqrt(self.n * (self.n - 1)) if self.n > 1 else np.full(1, np.nan)

    @property
    def standard_error(self) -> float:
        """The square root of the summed squared shares; NaN when there is but one unit."""
        return float(np.linalg.norm(self.shares))

    @property
    def degrees_of_freedom(self) -> float:
        """G - 1 for one sample, Welch and Satterthwaite's for a combination; 0 when there is but one unit."""
        squares = self.shares**2
        if self.strata is None or self.unit_degrees is None or not squares.sum() > 0:
            return self.n - 1
        variances = np.bincount(self.strata, squares)
        degrees = np.bincount(self.strata, self.unit_degrees)
        return float(variances.sum() ** 2 / (variances**2 / degrees).sum())

    @property
    def low(self) -> float:
        """The interval's lower end; NaN when there is but one unit."""
        return self.interval[0] if self.interval else self.value - self._half_width()

    @property
    def high(self) -> float:
        """The interval's upper end; NaN when there is but one unit."""
        return self.interval[1] if self.interval else self.value + self._half_width()

    def _half_width(self) -> float:
        from scipy.special import stdtrit  # 0.2 s to import, and a command that only prints help needs none of it

        if not self.standard_error > 0:
            return self.standard_error
        return float(stdtrit(self.degrees_of_freedom, (1 + self.level) / 2)) * self.standard_error

    def to_json(self) -> dict[str, Any]:
        """The estimate for a file or a report, without the influences; what is unknown is None."""
        numbers = {"value": self.value, "low": self.low, "high": self.high, "standard_error": self.standard_error}
        known = {name: None if math.isnan(number) else float(number) for name, number in numbers.items()}
        return known | {"n": self.n, "units": self.unit_kind, "level": self.level, "method": self.method}

    def __str__(self) -> str:
        """`0.031 [0.004, 0.058] (95 %, 805 questions)`."""
        digits = shown_decimals(self.value, self.low, self.high)
        between = "no interval" if math.isnan(self.low) else f"{self.low:.{digits}f}, {self.high:.{digits}f}"
        return f"{self.value:.{digits}f} [{between}] ({100 * self.level:g} %, {self.n} {self.unit_kind})"


def difference(ours: Estimate, theirs: Estimate) -> Estimate:
    """`ours - theirs`. Units in both are paired; units in one only are independent of the rest."""
    union = len(all_units([ours.units, theirs.units])[0])
    paired = ours.n + theirs.n - union
    if paired == union:
        method = "paired difference, Student t"
    elif paired:
        method = f"difference, {paired} of {union} {ours.unit_kind} paired, Student t"
    else:
        method = "difference of independent samples, Welch's t"
    return weighted_sum([ours, theirs], [1, -1], method)


def average(parts: Sequence[Estimate], weights: Sequence[float] | None = None) -> Estimate:
    """The average of `parts`, weighted by `weights` over their sum; a unit in several parts is one unit.

    With equal weights this is the macro average: every part counts the same however many units it has.
    """
    if not parts:
        raise DataError("an average of no estimates; expected at least one.")
    weights = [1.0] * len(parts) if weights is None else weights
    if len(weights) != len(parts) or not sum(weights) > 0:
        raise DataError(f"{len(weights)} weights summing to {sum(weights)} for {len(parts)} estimates.")
    kind = "average" if len(set(weights)) == 1 else "weighted average"
    return weighted_sum(parts, [weight / sum(weights) for weight in weights], f"{kind} of {len(parts)}, Student t")


def weighted_sum(parts: Sequence[Estimate], weights: Sequence[float], method: str) -> Estimate:
    """The sum of `weights * parts`, unit by unit in shares; a unit in several parts is one unit."""
    kinds, levels = {part.unit_kind for part in parts}, {part.level for part in parts}
    if len(kinds) > 1 or len(levels) > 1:
        unlike = ", ".join(sorted(kinds)) if len(kinds) > 1 else f"levels {sorted(levels)}"
        raise DataError(
            f"estimates over {unlike} cannot be combined; measure them over the same kind of unit and level."
        )
    union, places = all_units([part.units for part in parts])
    size = len(union)
    shares, degrees = np.zeros(size), np.full(size, np.inf)
    strata = np.zeros(size, dtype=np.intp)  # units with the same membership so far
    for part, weight, at in zip(parts, weights, places):
        shares[at] += weight * part.shares
        degrees[at] = np.minimum(degrees[at], 1 - 1 / part.n if part.unit_degrees is None else part.unit_degrees)
        own = np.zeros(part.n, dtype=np.intp) if part.strata is None else np.asarray(part.strata, dtype=np.intp)
        strata *= int(own.max()) + 2
        strata[at] += own + 1
        strata = unit_index(strata)[1]
    return Estimate(
        value=math.fsum(weight * part.value for part, weight in zip(parts, weights)),
        units=union,
        influence=shares * math.sqrt(size * (size - 1)),
        unit_kind=parts[0].unit_kind,
        method=method,
        level=parts[0].level,
        strata=strata,
        unit_degrees=degrees,
    )


def shown_decimals(value: float, low: float | None, high: float | None) -> int:
    """Decimals that show two digits of the interval's half width, or three digits of a value without one; 0 to 6."""
    width = math.nan if low is None or high is None else (high - low) / 2
    size, digits = (width, 2) if width > 0 else (abs(value), 3)
    if not size > 0:
        return 3
    return min(max(digits - 1 - math.floor(math.log10(size)), 0), 6)
