"""Selection and draws by hand, and against transformers' own warpers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from consilience.models.nucleus import Kept, keep_likely
from consilience.search.selection import (
    common_prefix,
    draw,
    entropy,
    promise,
    select,
    select_published,
)


def test_the_best_come_first_and_equal_texts_once() -> None:
    assert select([1.0, 3.0, 3.0, 2.0, 3.0], ["a", "b", "b", "c", "d"], 3) == [1, 4, 3]


def test_fewer_texts_than_asked_for_are_all_kept() -> None:
    assert select([1.0, 2.0], ["a", "a"], 4) == [1]


def test_the_published_choice_keeps_copies() -> None:
    assert select_published([1.0, 3.0, 3.0], 2) in ([1, 2], [2, 1])


def test_common_prefix() -> None:
    assert common_prefix(["abcd", "abx", "ab"]) == 2
    assert common_prefix(["abc"]) == 3
    assert common_prefix([]) == 0


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (6, 0.6), (100, 1.0), (1, 0.5)])
def test_what_may_be_drawn_is_what_transformers_keeps(top_k: int, top_p: float) -> None:
    logits = torch.randn(7, 12, generator=torch.Generator().manual_seed(0)) * 2
    expected = TemperatureLogitsWarper(0.7)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    kept = keep_likely(logits, temperature=0.7, top_k=top_k, top_p=top_p)
    found = torch.zeros(7, 12).scatter_(1, kept.ids_NJ, kept.probs_NJ)
    torch.testing.assert_close(found, expected.softmax(-1))


def test_no_temperature_takes_the_likeliest() -> None:
    kept = keep_likely(torch.tensor([[0.0, 2.0, 1.0]]), temperature=0, top_k=50, top_p=1.0)
    assert draw(kept, [0], np.array([0.999999])) == ([1], [1.0])


def test_a_draw_inverts_the_distribution() -> None:
    kept = Kept(torch.tensor([[7, 3, 5]]), torch.tensor([[0.5, 0.25, 0.25]]))
    tokens, probs = draw(kept, [0] * 6, np.array([0.0, 0.49, 0.5, 0.74, 0.75, 0.9999999]))
    assert tokens == [7, 7, 3, 3, 5, 5]
    assert probs == [0.5, 0.5, 0.25, 0.25, 0.25, 0.25]


def test_a_token_that_was_cut_off_is_never_drawn() -> None:
    kept = Kept(torch.tensor([[7, 3, 5]]), torch.tensor([[0.5, 0.4999999, 0.0]]))
    assert draw(kept, [0], np.array([1 - 1e-12]))[0] == [3]


def test_promise_by_hand() -> None:
    """1 + 1.5 · 0.5 · √9 / 3 · (1 + 0.2 · 2) = 2.05, and without a visit's weight 0 + 1.5 · 0.25 · 3 / 2 · 1.4."""
    found = promise([1.0, 0.0], [0.5, 0.25], [2, 1], parent_visits=9, entropy=2.0, c=1.5, w=0.2)
    assert found.tolist() == pytest.approx([2.05, 0.7875])


def test_entropy_in_bits() -> None:
    kept = Kept(torch.tensor([[1, 2, 3]]), torch.tensor([[0.5, 0.25, 0.25]]))
    assert entropy(kept).tolist() == pytest.approx([1.5])
