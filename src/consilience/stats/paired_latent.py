"""P(ours is better) for a few paired yes-or-no items under bayes_evals' model, which lets them go together beforehand.

The model (arXiv:2503.01747): each side's share of ones is uniform beforehand; item by item the two answers are the
signs of a pair of normal numbers with correlation 2 Beta(4, 2) - 1, so that what one gets right the other tends to get
right. Its probabilities are a little further from one half than those of the flat prior on the four cells, which has
both shares near one half and unrelated. bayes_evals draws 10^4 or more times; here the integral is a product rule.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from consilience.errors import DataError
from consilience.stats.estimate import Floats
from consilience.stats.paired_shares import PairedCounts

MOST_ITEMS = 200  # beyond, the posterior is narrower than the rule's steps, and the prior no longer matters
SHARES, CORRELATIONS, ARC = 64, 24, 20  # nodes of the rules


def probability_better_latent(counts: PairedCounts) -> float:
    """P(our share > their share), to 1e-3; for up to 200 items. Raises `DataError` beyond: take the Dirichlet's."""
    if not 0 < counts.n <= MOST_ITEMS:
        raise DataError(f"{counts.n} items; expected 1 to {MOST_ITEMS}, take probability_above_by for more.")
    log_p_4SSC, log_weight_SSC = _cells()
    swapped = PairedCounts(counts.both, counts.theirs_only, counts.ours_only, counts.neither)
    logs = [np.tensordot(np.array(side, float), log_p_4SSC, 1) + log_weight_SSC for side in (counts, swapped)]
    top = max(float(log.max()) for log in logs)
    ours, theirs = (float(np.exp(log - top).sum()) for log in logs)
    return ours / (ours + theirs)


@cache
def _cells() -> tuple[Floats, Floats]:
    """Log probabilities of the four cells where the first share is the larger, and the log prior mass of each node.

    The first share is a, the second a v with v in (0, 1), so no node lies on the line where they are equal.
    """
    from scipy.special import ndtri

    a, v, b = np.meshgrid(_unit(SHARES)[0], _unit(SHARES)[0], _unit(CORRELATIONS)[0], indexing="ij")
    mass = np.einsum("i,j,k->ijk", _unit(SHARES)[1], _unit(SHARES)[1], _unit(CORRELATIONS)[1])
    second = a * v
    both = _both_positive(ndtri(a), ndtri(second), 2 * b - 1)
    cells = np.stack([both, a - both, second - both, 1 - a - second + both])
    prior = b**3 * (1 - b) * a  # Beta(4, 2) up to a constant, and the Jacobian of the second share
    return np.log(np.maximum(cells, 1e-300)), np.log(mass * prior)


def _both_positive(h: Floats, k: Floats, correlation: Floats) -> Floats:
    """P(X < h, Y < k) of two standard normals: Phi(h) Phi(k) and an integral over the arc of the correlation (Plackett
    1954)."""
    from scipy.special import ndtr

    found: Floats = ndtr(h) * ndtr(k)
    arc = np.arcsin(correlation)
    for node, weight in zip(*_unit(ARC)):
        angle = arc * node
        density = np.exp(-(h**2 + k**2 - 2 * h * k * np.sin(angle)) / (2 * np.cos(angle) ** 2))
        found = found + arc * weight * density / (2 * np.pi)
    return found


def _unit(nodes: int) -> tuple[Floats, Floats]:
    """The Gauss-Legendre rule on (0, 1)."""
    x, weights = np.polynomial.legendre.leggauss(nodes)
    return (x + 1) / 2, weights / 2
