"""The whole of `consilience power`: items for a width or a difference, and what a number of items can show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from consilience.errors import ConfigError
from consilience.pipelines.compare import CompareSettings, compare_logs
from consilience.stats import (
    design_effect,
    half_width,
    items_for_difference,
    items_for_half_width,
    items_for_share,
    smallest_difference,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is asked (`items`, `width` or `difference`, one or more), and the spread: given, of a share, or a pilot's.

    Raises `ConfigError` where nothing is asked, or the spread is given in no way or in several.
    """

    items: int | None = None
    width: float | None = None
    difference: float | None = None
    spread: float | None = None
    share: float | None = None
    pilot: tuple[str, ...] = ()
    metric: str | None = None
    probability: float = 0.8
    level: float = 0.95
    cluster_size: float = 1.0
    correlation: float = 0.0

    def __post_init__(self) -> None:
        if self.items is None and self.width is None and self.difference is None:
            raise ConfigError("nothing is asked. Give --items N, --width W or --difference D.")
        ways = [self.spread is not None, self.share is not None, bool(self.pilot)]
        if sum(ways) != 1:
            raise ConfigError(
                f"the spread is given in {sum(ways)} ways. Give one: --spread (a standard deviation), --share (of a "
                "benchmark of yes and no), or --pilot (logs of two models)."
            )
        if self.share is not None and not 0 < self.share < 1:
            raise ConfigError(f"--share is {self.share:g}; expected a share between 0 and 1.")
        if not 0 <= self.correlation <= 1:
            raise ConfigError(f"--correlation is {self.correlation:g}; expected 0 to 1.")


def plan(asked: Plan) -> dict[str, Any]:
    """The answers, and the same as sentences."""
    spread, of, unit = _spread(asked)
    effect = design_effect(asked.cluster_size, asked.correlation)
    result: dict[str, Any] = {"spread": spread, "of": of, "level": asked.level, "design_effect": effect}
    sentences = [f"standard deviation {spread:.4g} of {of}"]
    if effect != 1:
        sentences[0] += f"; clusters of {asked.cluster_size:g} take {effect:.3g} times the {unit}"
    at = f"{100 * asked.level:g} %"
    if asked.items is not None:
        worth = max(int(asked.items / effect), 2)
        result |= {"items": asked.items, "half_width": half_width(worth, spread=spread, level=asked.level)}
        sentences.append(f"{asked.items} {unit}: a {at} interval of value -+ {result['half_width']:.3g}")
        result["smallest_difference"] = smallest_difference(
            worth, spread=spread, power=asked.probability, level=asked.level
        )
        sentences.append(
            f"{asked.items} {unit}: a true difference of {result['smallest_difference']:.3g} has an interval "
            f"without 0 with probability {asked.probability:g}"
        )
    if asked.width is not None:
        if asked.share is not None:
            needed = items_for_share(asked.width, share=asked.share, level=asked.level)
        else:
            needed = items_for_half_width(asked.width, spread=spread, level=asked.level)
        result |= {"width": asked.width, "items_for_width": math.ceil(needed * effect)}
        sentences.append(f"a {at} interval of value -+ {asked.width:g}: {result['items_for_width']} {unit}")
    if asked.difference is not None:
        needed = items_for_difference(asked.difference, between=spread**2, power=asked.probability, level=asked.level)
        result |= {"difference": asked.difference, "items_for_difference": math.ceil(needed * effect)}
        sentences.append(
            f"a true difference of {asked.difference:g} with an interval without 0 with probability "
            f"{asked.probability:g}: {result['items_for_difference']} {unit}"
        )
    return result | {"sentences": sentences}


def _spread(asked: Plan) -> tuple[float, str, str]:
    """The standard deviation, of what, and what it is counted in."""
    if asked.spread is not None:
        return asked.spread, "what is averaged", "items"
    if asked.share is not None:
        return math.sqrt(asked.share * (1 - asked.share)), f"a share of {asked.share:g}", "items"
    found = compare_logs(asked.pilot, CompareSettings(metric=asked.metric, level=asked.level))
    if len(found["pairs"]) != 1:
        raise ConfigError(f"a pilot is of two models; there are {', '.join(found['models'])}. Give files of two.")
    pair = found["pairs"][0]
    difference = pair["difference"]
    spread = difference["standard_error"] * math.sqrt(difference["n"])
    if not spread > 0:
        raise ConfigError("the pilot's two models do not differ on any item, so it shows no spread.")
    between = f"{pair['first']} - {pair['second']}, paired, in the pilot of {difference['n']} {difference['units']}"
    return spread, between, difference["units"]
