"""How many items for an interval of a given width, and how large a difference a number of items can show.

`spread` is the standard deviation of what is averaged: of the scores for a mean, of the per-item differences for a
paired comparison. A pilot's is `estimate.standard_error * sqrt(estimate.n)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from consilience.errors import DataError
from consilience.stats.proportions import wilson


def half_width(items: int, *, spread: float, level: float = 0.95) -> float:
    """Half the width of the t interval of a mean over so many units."""
    from scipy.special import stdtrit

    _check(level, spread=spread)
    if items < 2:
        raise DataError(f"{items} items; an interval takes at least two.")
    return float(stdtrit(items - 1, (1 + level) / 2)) * spread / math.sqrt(items)


def items_for_half_width(width: float, *, spread: float, level: float = 0.95) -> int:
    """The fewest units whose t interval of a mean is value -+ `width` or narrower."""
    _check(level, width=width, spread=spread)
    return _fewest(lambda items: half_width(items, spread=spread, level=level) <= width)


def items_for_share(width: float, *, share: float = 0.5, level: float = 0.95) -> int:
    """The fewest units whose Wilson interval around `share` is no wider than twice `width`; at most for 0.5.

    For the recall or precision of a class these are units of that class.
    """
    _check(level, width=width)
    if not 0 <= share <= 1:
        raise DataError(f"the share is {share:g}; expected 0 to 1.")

    def narrow(items: int) -> bool:
        low, high = wilson(round(share * items), items, level)
        return high - low <= 2 * width

    return _fewest(narrow)


def items_for_difference(
    difference: float,
    *,
    between: float,
    within: tuple[float, float] = (0.0, 0.0),
    answers: tuple[int, int] = (1, 1),
    power: float = 0.8,
    level: float = 0.95,
) -> int:
    """The items at which a paired `difference` lies outside the interval around 0 with probability `power`.

    `between` is the variance over items of the difference of the two models' true scores, `within` the variance of
    either model's answers to one item, of which there are `answers` (arXiv:2411.00640, equation 9).
    """
    _check(level, difference=abs(difference))
    variance = between + sum(spread / count for spread, count in zip(within, answers))
    return max(math.ceil(_reach(power, level) ** 2 * variance / difference**2), 2)


def smallest_difference(items: int, *, spread: float, power: float = 0.8, level: float = 0.95) -> float:
    """The true difference whose estimate, over so many items, lies outside the interval around 0 with that `power`."""
    _check(level, spread=spread)
    if items < 2:
        raise DataError(f"{items} items; a difference with an interval takes at least two.")
    return _reach(power, level) * spread / math.sqrt(items)


def design_effect(items_per_cluster: float, correlation: float) -> float:
    """How many times the variance grows, and the items needed with it, for items in clusters of one size (Kish)."""
    return 1 + (items_per_cluster - 1) * correlation


def effective_gold_items(gold: int, corpus: int, correlation: float) -> float:
    """The hand-coded items that `gold` of them are worth beside a model's labels of the whole corpus (PPI++).

    `correlation` is that of the model's labels with the hand's; arXiv:2311.01453, with the best tuning.
    """
    if not 0 < gold <= corpus:
        raise DataError(f"{gold} hand-coded items of a corpus of {corpus}; expected 1 to all of them.")
    return gold / (1 - correlation**2 * (1 - gold / corpus))


def _reach(power: float, level: float) -> float:
    from scipy.special import ndtri

    if not 0 < power < 1:
        raise DataError(f"the power is {power:g}; expected a probability between 0 and 1, such as 0.8.")
    return float(ndtri((1 + level) / 2) + ndtri(power))


def _fewest(enough: Callable[[int], bool]) -> int:
    high = 2
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _check(level: float, **positive: float) -> None:
    if not 0 < level < 1:
        raise DataError(f"level is {level}; expected a number between 0 and 1, such as 0.95.")
    for name, value in positive.items():
        if not 0 < value < math.inf:
            raise DataError(f"the {name} is {value:g}; expected a positive number.")
