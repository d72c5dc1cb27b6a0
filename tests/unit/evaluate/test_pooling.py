"""Partial pooling against drawing from the model and keeping what fits the data, and the eight schools."""

from __future__ import annotations

import numpy as np
import pytest

from consilience.errors import DataError
from consilience.evaluate.pooling import partially_pooled

EIGHT_SCHOOLS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]
FOUR = [1.0, 0.2, -0.4, 0.9], [0.3, 0.4, 0.5, 0.2]


@pytest.mark.parametrize(("data", "widest", "centre"), [(EIGHT_SCHOOLS, 100, 60), (FOUR, 30, 3)])
def test_against_importance_sampling_from_the_prior(
    data: tuple[list[float], list[float]], widest: float, centre: float
) -> None:
    y, s = map(np.array, data)
    rng = np.random.default_rng(0)
    tau, mu = rng.uniform(0, widest, 1_000_000), rng.uniform(-centre, centre, 1_000_000)
    spread = s**2 + tau[:, None] ** 2
    log = -0.5 * (np.log(spread) + (y - mu[:, None]) ** 2 / spread).sum(1)
    weights = np.exp(log - log.max())
    kept = rng.choice(len(tau), 100_000, p=weights / weights.sum())
    pull = s**2 / spread[kept]
    theta = (1 - pull) * y + pull * mu[kept, None] + rng.standard_normal(pull.shape) * np.sqrt((1 - pull) * s**2)
    for j, pooled in enumerate(partially_pooled(y, s)):
        assert pooled.value == pytest.approx(theta[:, j].mean(), abs=0.05 * s[j])
        assert (pooled.low, pooled.high) == pytest.approx(np.quantile(theta[:, j], [0.025, 0.975]), abs=0.15 * s[j])


def test_eight_schools_as_the_book_has_them() -> None:
    # Bayesian Data Analysis, section 5.5: school A's 28 is drawn to about 11.
    assert partially_pooled(*EIGHT_SCHOOLS)[0].value == pytest.approx(11, abs=1)


def test_alike_categories_are_drawn_together_and_unlike_ones_stay() -> None:
    near = partially_pooled([0.0, 0.1, -0.1, 0.0], [1.0, 1.0, 1.0, 1.0])
    assert near[0].high - near[0].low < 2 * 1.96
    apart = partially_pooled([-100.0, 0.0, 100.0], [1.0, 1.0, 1.0])
    assert [pooled.value for pooled in apart] == pytest.approx([-100, 0, 100], abs=0.1)


def test_two_categories_or_one_without_a_spread_are_refused() -> None:
    with pytest.raises(DataError, match="2 categories"):
        partially_pooled([0.0, 1.0], [1.0, 1.0])
    with pytest.raises(DataError, match="above 0"):
        partially_pooled([0.0, 1.0, 2.0], [1.0, 0.0, 1.0])
