"""One seed, many named streams: a draw added in one place moves no draw in another."""

from __future__ import annotations

import hashlib

import numpy as np


def seed_of(seed: int, *names: str) -> int:
    """A 63-bit seed for the stream called `names`; the same on every machine and in every process."""
    digest = hashlib.sha256("/".join((str(seed), *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def stream(seed: int, *names: str) -> np.random.Generator:
    """The generator of the stream called `names` under `seed`."""
    return np.random.default_rng(seed_of(seed, *names))
