"""Numbers for files and reports: each with its 95 % and 50 % interval, its n, its method and what it leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consilience.stats import Estimate
from consilience.stats.posterior import Posterior

LEVEL, HALF = 0.95, 0.5
Measured = dict[str, Any]


def measured(number: Posterior | Callable[[float], Estimate], **more: Any) -> Measured:
    """A posterior, or an estimate as a function of the level of its interval, as JSON: `half` is the 50 % interval."""
    if isinstance(number, Posterior):
        return number.to_json() | {"half": [*number.interval(HALF)]} | more
    whole, half = number(LEVEL), number(HALF)
    known = whole.to_json()
    return known | {"half": None if known["low"] is None else [half.low, half.high]} | more
