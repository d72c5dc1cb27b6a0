"""Categories of a benchmark, each drawn towards their common mean as far as chance alone could have set them apart.

Few items to a category make for wide intervals and for extremes by chance. The model: category j's true number is
Normal(mu, tau), its estimate Normal(that, its standard error), mu and tau uniform (Gelman, Bayesian Data Analysis, 3rd
edition, 5.4; the eight schools). The posterior is integrated over tau; nothing is drawn at random.

Shapes: J categories, Q nodes of tau.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from consilience.errors import DataError

Floats = NDArray[np.float64]
FEWEST = 3  # categories: with two, a uniform tau has no posterior
NODES = 400


class Pooled(NamedTuple):
    """A category's number in the light of the others: posterior mean and equal-tailed interval."""

    value: float
    low: float
    high: float


def partially_pooled(values: ArrayLike, standard_errors: ArrayLike, *, level: float = 0.95) -> list[Pooled]:
    """The posterior of every category. Raises `DataError` at fewer than three, and at an error that is not positive."""
    from scipy.special import ndtr

    y_J, s_J = np.asarray(values, dtype=np.float64), np.asarray(standard_errors, dtype=np.float64)
    if len(y_J) < FEWEST or len(y_J) != len(s_J) or not (s_J > 0).all():
        raise DataError(f"{len(y_J)} categories with errors {s_J}; expected at least {FEWEST}, all errors above 0.")
    weights_Q, means_QJ, spreads_QJ = _given_tau(y_J, s_J)
    lows_J, highs_J = (
        _quantile(lambda x_J: weights_Q @ ndtr((x_J - means_QJ) / spreads_QJ), mass, y_J, s_J)
        for mass in ((1 - level) / 2, (1 + level) / 2)
    )
    return [Pooled(*map(float, found)) for found in zip(weights_Q @ means_QJ, lows_J, highs_J)]


def _given_tau(y_J: Floats, s_J: Floats) -> tuple[Floats, Floats, Floats]:
    """The posterior weight of every node of tau, and every category's posterior mean and spread there."""
    nodes, rule_Q = np.polynomial.legendre.leggauss(NODES)
    u_Q = (nodes + 1) / 2
    scale = float(np.median(s_J))
    tau_Q = scale * u_Q / (1 - u_Q)  # (0, 1) onto (0, infinity); the tail falls as tau^(1 - J)
    variance_QJ = s_J**2 + tau_Q[:, None] ** 2
    precision_QJ = 1 / variance_QJ
    of_mu_Q = precision_QJ.sum(1)
    mu_Q = (precision_QJ * y_J).sum(1) / of_mu_Q
    log_Q = -0.5 * (np.log(of_mu_Q) + (np.log(variance_QJ) + (y_J - mu_Q[:, None]) ** 2 * precision_QJ).sum(1))
    weights_Q = rule_Q * np.exp(log_Q - log_Q.max()) / (1 - u_Q) ** 2
    to_mu_QJ = s_J**2 * precision_QJ  # how far a category is drawn to mu
    means_QJ = (1 - to_mu_QJ) * y_J + to_mu_QJ * mu_Q[:, None]
    spreads_QJ = np.sqrt((1 - to_mu_QJ) * s_J**2 + to_mu_QJ**2 / of_mu_Q[:, None])
    return weights_Q / weights_Q.sum(), means_QJ, spreads_QJ


def _quantile(cdf: Callable[[Floats], Floats], mass: float, y_J: Floats, s_J: Floats) -> Floats:
    """Where each category's distribution function reaches `mass`, by halving: 60 halves are past all digits."""
    low_J = np.full_like(y_J, (y_J - 12 * s_J).min())
    high_J = np.full_like(y_J, (y_J + 12 * s_J).max())
    for _ in range(60):
        middle_J = (low_J + high_J) / 2
        below_J = cdf(middle_J) < mass
        low_J, high_J = np.where(below_J, middle_J, low_J), np.where(below_J, high_J, middle_J)
    return (low_J + high_J) / 2
