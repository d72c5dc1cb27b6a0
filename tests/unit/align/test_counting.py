"""The pair counter, against a count in plain Python."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilience.align import PairCounter, count_pairs, counting

SHAPE = (5, 4)
shards = st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), max_size=20), max_size=12)


def columns(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    ids = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    return ids[:, 0], ids[:, 1]


@given(shards)
def test_shards_add_up_to_the_pairs_of_all(pairs: list[list[tuple[int, int]]]) -> None:
    counter = PairCounter(SHAPE)
    for shard in pairs:
        counter.add(*columns(shard))
    expected = np.zeros(SHAPE, dtype=np.int64)
    for pair, times in Counter(pair for shard in pairs for pair in shard).items():
        expected[pair] = times
    assert np.array_equal(counter.total().toarray(), expected)
    assert counter.total().has_canonical_format  # rows in order, every pair once: the file does not depend on the way
    flat = [pair for shard in pairs for pair in shard]
    assert np.array_equal(count_pairs(*columns(flat), SHAPE).toarray(), expected)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_threads_do_not_change_the_total(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "SLICE", 1000)
    rng = np.random.default_rng(0)
    shards = [(rng.geometric(0.01, size) % 3000, rng.geometric(0.1, size) % 50) for size in (0, 1, 4000, 2500, 9000)]
    counter = PairCounter((3000, 50))
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda shard: counter.add(*shard), shards))
    expected = Counter(pair for shard in shards for pair in zip(*(ids.tolist() for ids in shard)))
    total = counter.total()
    assert Counter({(s, p): int(total[s, p]) for s, p in zip(*total.nonzero())}) == expected


def test_ids_beyond_31_bits_in_one_number() -> None:
    shape = (151_646, 32_002)  # 4.9e9 pairs
    ids = np.array([151_645, 0, 151_645], dtype=np.int32), np.array([32_001, 0, 32_001], dtype=np.int32)
    total = count_pairs(*ids, shape).tocoo()
    assert [*zip(total.row, total.col, total.data)] == [(0, 0, 1), (151_645, 32_001, 2)]


def test_nothing_counted_is_a_matrix_of_zeros() -> None:
    assert PairCounter(SHAPE).total().shape == SHAPE
    assert PairCounter(SHAPE).total().nnz == 0
