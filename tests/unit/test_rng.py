from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from consilience.rng import seed_of, stream


def test_the_seed_is_sha256_of_seed_and_names():
    digest = hashlib.sha256(b"7/pairs/a").digest()
    assert seed_of(7, "pairs", "a") == int.from_bytes(digest[:8], "big") // 2


def test_a_stream_is_the_same_in_another_process():
    code = "from consilience.rng import stream; print(stream(3, 'held out').integers(10**9, size=3).tolist())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == str(stream(3, "held out").integers(10**9, size=3).tolist())


@given(st.integers(0, 10**6), st.text(max_size=5), st.text(max_size=5))
def test_streams_of_other_names_or_seeds_are_others(seed, name, other):
    assert 0 <= seed_of(seed, name) < 2**63
    assert (seed_of(seed, name) == seed_of(seed, other)) == (name == other)
    assert seed_of(seed, name) != seed_of(seed + 1, name)


def test_a_draw_in_one_stream_moves_no_draw_in_another():
    undisturbed = stream(0, "b").random(4)
    stream(0, "a").random(100)
    np.random.default_rng(0).random(100)
    np.testing.assert_array_equal(stream(0, "b").random(4), undisturbed)
