"""Draws have the softmax's chances, cut as asked, each row by its own settings and its own luck."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import chisquare

from consilience.serve.draw import draw
from consilience.serve.generate import Sampling

PROBS = (0.5, 0.25, 0.125, 0.0625, 0.0625)
LOGITS = torch.tensor(PROBS).log()


def drawn(count: int, **settings: float) -> list[int]:
    """Counts of the tokens in `count` draws, one row each."""
    samplings = [Sampling(max_tokens=1, seed=0, **settings)] * count  # type: ignore[arg-type]
    generators = [torch.Generator().manual_seed(row) for row in range(count)]
    ids = draw(LOGITS.repeat(count, 1), samplings, generators)
    return torch.bincount(torch.tensor(ids), minlength=len(PROBS)).tolist()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PROBS),
        ({"temperature": 0.5}, tuple(p * p / sum(q * q for q in PROBS) for p in PROBS)),
        ({"top_k": 2}, (2 / 3, 1 / 3, 0, 0, 0)),
        ({"top_p": 0.7}, (2 / 3, 1 / 3, 0, 0, 0)),  # the fewest that hold 0.7
        ({"min_p": 0.2}, (4 / 7, 2 / 7, 1 / 7, 0, 0)),  # no less than 0.2 of the likeliest: 0.1
        ({"temperature": 0.0}, (1, 0, 0, 0, 0)),
    ],
)
def test_chances_by_hand(settings: dict[str, float], expected: tuple[float, ...]) -> None:
    count = 4000
    found = drawn(count, **settings)
    kept = [i for i, p in enumerate(expected) if p]
    assert sum(found[i] for i in kept) == count
    if len(kept) > 1:
        # A correct sampler fails this once in ten thousand seeds; the seeds are fixed.
        assert chisquare([found[i] for i in kept], [count * expected[i] for i in kept]).pvalue > 1e-4


def test_a_row_depends_on_nothing_in_the_others() -> None:
    own = Sampling(max_tokens=1, seed=0, temperature=0.9, top_p=0.95)
    others = [Sampling(max_tokens=1, seed=0, top_k=3), Sampling(max_tokens=1, seed=0, temperature=0.0), own]
    for seed in range(20):
        alone = draw(LOGITS[None], [own], [torch.Generator().manual_seed(seed)])
        crowd = [torch.Generator().manual_seed(seed + 100 * row) for row in (1, 2, 3, 0)]
        assert draw(LOGITS.repeat(4, 1), [*others, own], crowd)[3] == alone[0]
