"""Choosing few-shot examples: what each chooser promises; nearest against scikit-learn's TF-IDF."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from consilience.annotate.examples import CHOOSERS, chooser_of, nearest
from consilience.annotate.strategies import Shot
from consilience.errors import ConfigError

POOL = [
    Shot("the minister raised taxes on fuel", "economy"),
    Shot("taxes on income will fall, taxes on fuel will not", "economy"),
    Shot("schools get more teachers", "education"),
    Shot("teachers and pupils at the schools", "education"),
    Shot("the army buys tanks", "defence"),
    Shot("fuel for the army's tanks", "defence"),
]


@pytest.mark.parametrize("name", sorted(CHOOSERS))
def test_as_many_as_asked_without_repeats_and_always_the_same(name: str) -> None:
    chosen = chooser_of(name, POOL, 3, 0)(["taxes on fuel"])[0]
    assert len(set(chosen)) == 3
    assert set(chosen) <= {*POOL}
    assert chooser_of(name, POOL, 3, 0)(["schools", "taxes on fuel"])[1] == chosen


def test_stratified_takes_labels_in_turn() -> None:
    for seed in range(5):
        counts = Counter(shot.label for shot in chooser_of("stratified", POOL, 4, seed)([""])[0])
        assert sorted(counts.values()) == [1, 1, 2]


def test_nearest_is_scikit_learns_cosine() -> None:
    text = "fuel taxes for the army"
    vectors = TfidfVectorizer(token_pattern=r"\w+").fit([shot.text for shot in POOL])
    likeness = (vectors.transform([shot.text for shot in POOL]) @ vectors.transform([text]).T).toarray()[:, 0]
    order = np.argsort(-likeness, kind="stable")[:3]
    assert nearest(POOL, text, 3, 0) == tuple(POOL[i] for i in reversed(order))


def test_a_pool_that_is_too_small_is_refused() -> None:
    with pytest.raises(ConfigError, match="7 examples are asked for, but there are 6"):
        chooser_of("fixed", POOL, 7, 0)
