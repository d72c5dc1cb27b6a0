"""Several sampled answers per item: what varies between items and what between answers; pass@k.

With K answers each, the variance of the mean over n items is between / n + within / (n K) (arXiv:2411.00640).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from consilience.errors import DataError
from consilience.stats.estimate import Estimate
from consilience.stats.means import mean
from consilience.stats.units import finite, unit_index, unit_labels


class VarianceComponents(NamedTuple):
    """`between`: of the items' true means, below 0 if they differ less than chance would have it; `within`: of an
    item's answers."""

    between: float
    within: float

    def of_the_mean(self, items: int, answers_per_item: int) -> float:
        """The variance of the mean score of so many items and answers."""
        return max(self.between, 0.0) / items + self.within / (items * answers_per_item)


def variance_components(values: ArrayLike, items: Sequence[str]) -> VarianceComponents:
    """The analysis of variance of one factor; items may have unlike numbers of answers.

    Raises `DataError` at fewer than two items, and where no item has two answers.
    """
    x = finite(values, "values")
    names, index_N = unit_index(unit_labels(items, len(x)))
    answers_G = np.bincount(index_N)
    if len(names) < 2 or len(x) == len(names):
        raise DataError(f"{len(x)} answers to {len(names)} items; expected at least two items, and two answers to one.")
    means_G = np.bincount(index_N, x) / answers_G
    within = float(((x - means_G[index_N]) ** 2).sum() / (len(x) - len(names)))
    spread = float((answers_G * (means_G - x.mean()) ** 2).sum() / (len(names) - 1))
    typical = (len(x) - float((answers_G**2).sum()) / len(x)) / (len(names) - 1)
    return VarianceComponents(between=(spread - within) / typical, within=within)


def pass_at_k(
    successes: ArrayLike, items: Sequence[str], k: int, *, unit_kind: str = "items", level: float = 0.95
) -> Estimate:
    """The probability that at least one of k answers is right, unbiased per item: 1 - C(n - c, k) / C(n, k).

    (arXiv:2107.03374.) Raises `DataError` at an item with fewer than k answers.
    """
    x = finite(successes, "successes")
    if not np.isin(x, (0.0, 1.0)).all():
        raise DataError("pass@k is of zeros and ones.")
    names, index_N = unit_index(unit_labels(items, len(x)))
    answers_G, right_G = np.bincount(index_N), np.bincount(index_N, x)
    if k < 1 or answers_G.min() < k:
        raise DataError(f"pass@{k} of items with as few as {answers_G.min()} answers; expected 1 to that many.")
    # C(n - c, k) / C(n, k) as a product: the factorials themselves overflow.
    draws_K = np.arange(k)
    wrong_GK = np.maximum(answers_G[:, None] - right_G[:, None] - draws_K, 0)
    missed_G = (wrong_GK / (answers_G[:, None] - draws_K)).prod(1)
    return mean(1 - missed_G, names, unit_kind=unit_kind, level=level)
