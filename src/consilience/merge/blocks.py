"""A tensor to be merged, cut into blocks, and the threads that go over them."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from consilience.errors import BackendError
from consilience.merge.methods import Facts, Keep

CHUNK, RANK_BINS, ROW_RANKED = 256, 512, 8192  # kernels.CHUNK ..., without its imports
RESULT = 1 << 62  # in `Job.bad`: the result; bit k is input k
SEGMENT = 1 << 16  # entries that a sum is taken over before sums are added
BLOCK = 1 << 18  # entries of a tensor that a thread works on at a time; a multiple of SEGMENT

CODES = {"BF16": 0, "F16": 1, "F32": 2, "F64": 3}  # kernels.BF16 ...
BUFFERS: dict[str, Any] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
REMEMBERED_BYTES = 100_000_000  # at most, for what was kept of a tensor by all plans; beyond, it is drawn again


class NotFinite(BackendError):
    """An input or a result holds a NaN or an infinity; `Job.bad` says which."""

    def __init__(self) -> None:
        super().__init__("an input or the result holds numbers that are not finite (NaN or infinity). Mend the input.")


class Operand(Protocol):
    """One input of a merge: any part of it as numbers in memory."""

    def part(self, start: int, stop: int) -> tuple[int, int, Any]:
        """Address and code of entries start..stop, and what keeps them alive."""


@dataclass
class Job:
    """One tensor to be merged: its inputs (the base first, where there is one), and where blocks of the result go."""

    facts: Facts
    inputs: Sequence[Operand]
    keys: NDArray[np.uint64]  # of the random numbers, per model
    dtype: str
    write: Callable[[int, NDArray[Any]], None]  # first entry, entries
    statistics: bool = True
    on_block: Callable[[int], None] = lambda entries: None
    remembered_bytes: int = REMEMBERED_BYTES
    bad: int = 0  # bit k where input k is not finite somewhere, RESULT where the result is not
    products: NDArray[np.float64] | None = field(default=None, repr=False)  # of all deltas, the result's last
    gram: NDArray[np.float64] | None = field(default=None, repr=False)  # of the models' deltas, once measured
    kept: tuple[Keep, NDArray[np.uint8]] | None = field(default=None, repr=False)  # a bit per model and entry

    @property
    def rows(self) -> int:
        return self.facts.size // max(self.facts.row, 1)


def keys_of(seed: int, name: str, models: int) -> NDArray[np.uint64]:
    """A key for each model's random numbers, from the seed, the tensor's name and the model's place."""
    digests = (hashlib.sha256(f"{seed}\0{name}\0{k}".encode()).digest() for k in range(models))
    return np.array([int.from_bytes(digest[:8], "little") for digest in digests], np.uint64)


class Workers:
    """A few threads that go over blocks; `count` 1 means the calling thread alone."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(count) if count > 1 else None

    def each(self, items: Sequence[Any], work: Callable[[Any], None]) -> None:
        """Calls `work` on every item, in any order. The first error stops the rest and is raised."""
        if self._pool is None or len(items) < 2:
            for item in items:
                work(item)
            return
        queue = iter(items)
        lock = threading.Lock()
        failed = threading.Event()

        def loop() -> None:
            while not failed.is_set():
                with lock:
                    item = next(queue, None)
                if item is None:
                    return
                try:
                    work(item)
                except BaseException:
                    failed.set()
                    raise

        futures: list[Future[None]] = [self._pool.submit(loop) for _ in range(min(self.count, len(items)))]
        for future in futures:
            future.result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()


class Inputs:
    """A block's inputs as the kernels want them."""

    def __init__(self, operands: Sequence[Operand], start: int, stop: int) -> None:
        self.parts = [operand.part(start, stop) for operand in operands]
        self.addresses = np.array([part[0] for part in self.parts], np.int64)
        self.codes = np.array([part[1] for part in self.parts], np.int64)
        self.count = len(self.parts)

    @property
    def arguments(self) -> tuple[int, int, int]:
        return address_of(self.addresses), address_of(self.codes), self.count

    @property
    def room(self) -> int:
        """Address of this thread's room for a kernel: zeros first, which stay, then chunks and the tables of ranks."""
        size = (4 * self.count + 6) * CHUNK + (RANK_BINS + 1 + ROW_RANKED // 4) * self.count
        return address_of(scratch("room", size, np.float64))


def blocks_of(facts: Facts, *, by_row: bool) -> list[tuple[int, int]]:
    step = max(BLOCK // facts.row, 1) * facts.row if by_row and facts.row else BLOCK
    return [(start, min(start + step, facts.size)) for start in range(0, facts.size, step)]


_local = threading.local()


def scratch(name: str, size: int, dtype: Any) -> NDArray[Any]:
    """This thread's array of that name, made once and reused: fresh memory costs more than arithmetic."""
    array: NDArray[Any] | None = getattr(_local, name, None)
    if array is None or len(array) < size or array.dtype != dtype:
        array = np.zeros(size, dtype)
        setattr(_local, name, array)
    return array[:size]


def address_of(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address
