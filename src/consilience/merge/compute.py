"""Drives a method over tensors that may be larger than memory: block by block, through compiled kernels, in threads.

The bits of a result do not depend on threads or blocks: entries are computed one by one; sums are taken over segments
at fixed places and added in their order; counts are whole numbers.
"""

from __future__ import annotations

import hashlib
import itertools
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from consilience.errors import BackendError
from consilience.merge.methods import (
    BINS,
    Combination,
    Count,
    Counted,
    Facts,
    Gram,
    Keep,
    Kept,
    Linear,
    Masked,
    Measurement,
    Pointwise,
    RowDivergences,
    Sample,
    Steps,
    Touched,
)
from consilience.merge.native import kernel

CHUNK = 256  # kernels.CHUNK, without its imports
SEGMENT = 1 << 16  # entries that a sum is taken over before sums are added
BLOCK = 1 << 18  # entries of a tensor that a thread works on at a time; a multiple of SEGMENT
LEAST_SAMPLED, MOST_SAMPLED, RUN = 1 << 13, 1 << 17, 1 << 11  # entries that are sampled, in runs
RANK_BINS, ROW_RANKED = 512, 8192  # kernels.RANK_BINS ...
RESULT = 1 << 62  # kernels.RESULT

CODES = {"BF16": 0, "F16": 1, "F32": 2, "F64": 3}  # kernels.BF16 ...
BUFFERS: dict[str, Any] = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32, "F64": np.float64}
SCORES = {"magnitude": 0, "spread": 1, "importance": 2}
KEEPS = {"all": 0, "band": 1, "random": 2, "random by rank": 3, "spread": 4}
REMEMBERED = 5  # kernels.KEEP_REMEMBERED
REMEMBERED_BYTES = 100_000_000  # at most, for what was kept of a tensor by all plans; beyond, it is drawn again
WAYS = {"sum": 0, "mean": 1, "agreeing sum": 2}
FORMULAS = {"nearswap": 0, "varm": 1, "ram": 2, "fusion": 3}


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
    bad: int = 0  # kernels' return values, or-ed
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
        self._local = threading.local()

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


_local = threading.local()


def _scratch(name: str, size: int, dtype: Any) -> NDArray[Any]:
    """This thread's array of that name, made once and reused: fresh memory costs more than arithmetic."""
    array: NDArray[Any] | None = getattr(_local, name, None)
    if array is None or len(array) < size or array.dtype != dtype:
        array = np.zeros(size, dtype)
        setattr(_local, name, array)
    return array[:size]


def _address(array: NDArray[Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _work(inputs: int) -> int:
    """Address of this thread's room for a kernel: chunks of inputs, deltas, results, and the tables of ranks."""
    return _address(_scratch("work", (3 * inputs + 9) * CHUNK + (RANK_BINS + 1 + ROW_RANKED // 4) * inputs, np.float64))


class _Inputs:
    """A block's inputs as the kernels want them."""

    def __init__(self, operands: Sequence[Operand], start: int, stop: int) -> None:
        self.parts = [operand.part(start, stop) for operand in operands]
        self.addresses = np.array([part[0] for part in self.parts], np.int64)
        self.codes = np.array([part[1] for part in self.parts], np.int64)
        self.count = len(self.parts)

    @property
    def arguments(self) -> tuple[int, int, int]:
        return _address(self.addresses), _address(self.codes), self.count


def _by_row(request: Measurement | Combination) -> bool:
    if isinstance(request, Gram):
        return request.by_row
    if isinstance(request, Linear):
        return len(request.coefficients) > 1
    if isinstance(request, (Kept, Masked)):
        return request.keep.how == "random by rank"
    if isinstance(request, Count):
        return request.kind == "importance"
    return isinstance(request, RowDivergences) or (isinstance(request, Pointwise) and request.row_factors is not None)


def _blocks(facts: Facts, by_row: bool) -> list[tuple[int, int]]:
    step = max(BLOCK // facts.row, 1) * facts.row if by_row and facts.row else BLOCK
    return [(start, min(start + step, facts.size)) for start in range(0, facts.size, step)]


def _pairs(products: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Symmetric matrices [..., count, count] from their upper triangles [..., pairs]."""
    square = np.empty((*products.shape[:-1], count, count))
    for pair, (a, b) in enumerate(itertools.combinations_with_replacement(range(count), 2)):
        square[..., a, b] = square[..., b, a] = products[..., pair]
    return square


def _numbers(keep: Keep, models: int, combination: Masked | None = None) -> NDArray[np.float64]:
    numbers = np.zeros(2 + 8 * models)
    numbers[0] = combination.scale if combination else 1.0
    numbers[1] = keep.least
    by_model = numbers[2:].reshape(models, 8)
    ones = (1.0,) * models
    by_model[:, 0] = keep.low or 0.0
    by_model[:, 1] = keep.high or np.inf
    by_model[:, 2] = keep.density or 1.0
    by_model[:, 3] = keep.epsilon or 0.0
    by_model[:, 4] = combination.vote if combination else ones
    by_model[:, 5] = combination.mean if combination else ones
    by_model[:, 6] = combination.factor if combination else ones
    return numbers


# -- measurements, over the tensors that are measured together


def measure(request: Measurement, jobs: Sequence[Job], workers: Workers) -> Any:
    """The result of a measurement, as the method's `yield` gives it."""
    if isinstance(request, Sample):
        return [_sample(request, model, jobs) for model in request.models]
    if isinstance(request, Count):
        return _count(request, jobs, workers)
    if isinstance(request, Kept) and request.keep.how in ("random", "random by rank"):
        for job in jobs:
            _make_room(request.keep, job)
    by_row = _by_row(request)
    parts: dict[tuple[int, int], Any] = {}

    def work(item: tuple[int, tuple[int, int]]) -> None:
        place, (start, stop) = item
        job = jobs[place]
        bad, parts[place, start] = _measured(request, job, start, stop)
        job.bad |= bad

    items = [(place, block) for place, job in enumerate(jobs) for block in _blocks(job.facts, by_row)]
    workers.each(items, work)
    by_segment = [parts[key] for key in sorted(parts)]
    facts = jobs[0].facts
    if isinstance(request, Gram):
        count = facts.models if request.deltas else len(jobs[0].inputs)
        products = np.concatenate(by_segment) if by_segment else np.zeros((1, count * (count + 1) // 2))
        square = _pairs(products if request.by_row else products.sum(0), count)
        if request.deltas and jobs[0].facts.has_base and not request.by_row and len(jobs) == 1:
            jobs[0].gram = square
        return square
    if isinstance(request, RowDivergences):
        return np.concatenate(by_segment)
    if isinstance(request, Touched):
        return np.sum(by_segment, axis=0)
    return np.concatenate(by_segment).sum(0)


def _make_room(keep: Keep, job: Job) -> None:
    """For a bit per model and entry, so that what ranks and draws decided is not found out twice."""
    stride = -(-job.facts.size // 8)
    ends_whole = keep.how == "random" or job.facts.row % 8 == 0  # a byte is of one block
    if ends_whole and job.facts.models * stride <= job.remembered_bytes:
        job.kept = keep, np.zeros((job.facts.models, stride), np.uint8)


def _measured(request: Measurement, job: Job, start: int, stop: int) -> tuple[int, NDArray[Any]]:
    inputs = _Inputs(job.inputs, start, stop)
    facts, size = job.facts, stop - start
    segment = facts.row if _by_row(request) else SEGMENT
    segments = -(-size // segment)
    work = _work(inputs.count)
    if isinstance(request, Gram):
        # A base that only takes part as one of the inputs is no origin.
        vectors = facts.models if request.deltas else inputs.count
        pairs = vectors * (vectors + 1) // 2
        sums = np.zeros((segments, pairs))
        bad = kernel("gram")(*inputs.arguments, int(request.deltas), size, segment, _address(sums), pairs, work)
        return bad, sums
    if isinstance(request, Kept):
        sums = np.zeros((segments, facts.models, 3))
        numbers = _numbers(request.keep, facts.models)
        bad = kernel("kept")(
            *inputs.arguments,
            size,
            segment,
            start,
            KEEPS[request.keep.how],
            _address(numbers),
            _address(job.keys),
            _address(job.kept[1]) if job.kept else 0,
            job.kept[1].shape[1] if job.kept else 0,
            _address(sums),
            work,
        )
        return bad, sums
    if isinstance(request, Touched):
        counts = np.zeros((facts.models, 2), np.int64)
        least = np.array([request.least])
        return kernel("touched")(*inputs.arguments, size, _address(least), _address(counts), work), counts
    divergences = np.zeros(segments)
    addresses, codes, _ = inputs.arguments
    bad = kernel("row_divergences")(addresses, codes, size, facts.row, _address(divergences), work)
    return bad, divergences


def _sample(request: Sample, model: int, jobs: Sequence[Job]) -> NDArray[np.float64]:
    """Sorted scores and how many entries each stands for; all of them where there are few."""
    total = sum(job.facts.size for job in jobs)
    factors = np.array(request.row_factors or (1.0,))
    by_row = request.kind == "importance"
    samples = []
    for job in jobs:
        size = job.facts.size
        wanted = min(max(size // 64, LEAST_SAMPLED), MOST_SAMPLED) * size / max(total, 1)
        runs = max(round(wanted / RUN), 1)
        if runs * RUN >= size:
            starts, length = [0], size
        else:
            starts, length = [run * ((size - RUN) // max(runs - 1, 1)) for run in range(runs)], RUN
        scores = np.empty((len(starts), length))
        for run, first in zip(scores, starts):
            for start, stop in _cut(first, first + length, job.facts.row if by_row else size):
                inputs = _Inputs(job.inputs, start, stop)
                factor = factors[start // job.facts.row :] if by_row else factors
                job.bad |= kernel("scores")(
                    *inputs.arguments,
                    SCORES[request.kind],
                    model,
                    stop - start,
                    _address(factor),
                    _address(run[start - first :]),
                    _work(inputs.count),
                )
        samples.append(np.stack([np.sort(scores, axis=None), np.full(scores.size, size / max(scores.size, 1))]))
    if len(samples) == 1:
        return samples[0]
    sample = np.concatenate(samples, axis=1)
    return sample[:, np.argsort(sample[0], kind="stable")]


def _cut(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """start..stop cut at the multiples of `step`."""
    cuts = [start, *range((start // step + 1) * step, stop, step), stop]
    return list(itertools.pairwise(cuts))


def _count(request: Count, jobs: Sequence[Job], workers: Workers) -> list[Counted]:
    brackets = request.brackets
    factors = np.array(request.row_factors or (1.0,))
    shifts = [max((bracket.high - bracket.low).bit_length() - BINS.bit_length() + 1, 0) for bracket in brackets]
    by_thread: dict[int, tuple[NDArray[np.int64], NDArray[np.uint64]]] = {}

    def accumulators() -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
        thread = threading.get_ident()
        if thread not in by_thread:
            table = np.zeros((len(brackets), 9), np.int64)
            for j, (bracket, shift) in enumerate(zip(brackets, shifts)):
                table[j, :5] = bracket.model, bracket.low, bracket.high, shift, j * BINS * 3 * 8
            bins = np.zeros((len(brackets), BINS, 3), np.uint64)
            bins[:, :, 1] = np.iinfo(np.uint64).max
            by_thread[thread] = table, bins
        return by_thread[thread]

    def work(item: tuple[Job, tuple[int, int]]) -> None:
        job, (start, stop) = item
        inputs = _Inputs(job.inputs, start, stop)
        table, bins = accumulators()
        by_row = request.kind == "importance"
        row = job.facts.row if by_row else stop - start
        block_factors = factors[start // row : -(-stop // row)] if by_row else factors
        job.bad |= kernel("narrow")(
            *inputs.arguments,
            SCORES[request.kind],
            stop - start,
            row,
            _address(block_factors),
            _address(table),
            len(brackets),
            _address(bins),
            _work(inputs.count),
        )

    workers.each([(job, block) for job in jobs for block in _blocks(job.facts, _by_row(request))], work)
    tables = sum((table[:, 5:] for table, _ in by_thread.values()), np.zeros((len(brackets), 4), np.int64))
    every = [bins for _, bins in by_thread.values()] or [np.zeros((len(brackets), BINS, 3), np.uint64)]
    results = []
    for j, (bracket, shift, (above, positive, at_low, at_high)) in enumerate(zip(brackets, shifts, tables.tolist())):
        counts = np.sum([bins[j, :, 0] for bins in every], axis=0)
        smallest = np.min([bins[j, :, 1] for bins in every], axis=0)
        largest = np.max([bins[j, :, 2] for bins in every], axis=0)
        for end, there in {bracket.low: at_low, bracket.high: at_high}.items():
            if there:
                place = (end - bracket.low) >> shift
                counts[place] += np.uint64(there)
                smallest[place] = min(int(smallest[place]), end)
                largest[place] = max(int(largest[place]), end)
        results.append(Counted(above, positive, counts, smallest, largest))
    return results


# -- combinations


def combine(made: Sequence[tuple[Combination, Job]], workers: Workers) -> None:
    """Computes tensors from the same inputs and hands them to their `job.write`, block by block.

    Combinations of a kind go over the inputs together. The inner products go to `job.products`. Raises `NotFinite`
    after all of it; `job.bad` says in which.
    """
    together: dict[Any, list[tuple[Combination, Job]]] = {}
    for place, (combination, job) in enumerate(made):
        kind = "linear" if isinstance(combination, Linear) and not _by_row(combination) else place
        together.setdefault(kind, []).append((combination, job))
    for group in together.values():
        if isinstance(group[0][0], Linear):
            _combine_linear(
                [(combination, job) for combination, job in group if isinstance(combination, Linear)], workers
            )
        else:
            _combine_one(*group[0], workers)
    if any(job.bad for _, job in made):
        raise NotFinite


def _combine_linear(made: Sequence[tuple[Linear, Job]], workers: Workers) -> None:
    facts, operands = made[0][1].facts, made[0][1].inputs
    by_row = _by_row(made[0][0])
    segment = facts.row if by_row else SEGMENT
    unknown = [combination for combination, job in made if job.statistics and (job.gram is None or by_row)]
    measures = bool(unknown)
    first = 1 if all(_sums_to_one(combination.coefficients).all() for combination in unknown) else 0
    count = len(operands)
    pairs = (count - first) * (count - first + 1) // 2
    parts: dict[int, NDArray[np.float64]] = {}

    def work(block: tuple[int, int]) -> None:
        start, stop = block
        inputs = _Inputs(operands, start, stop)
        sums = np.zeros((-(-(stop - start) // segment), pairs))
        table = np.zeros((len(made), 6), np.int64)
        outs = []
        for row, (place, (combination, job)) in zip(table, enumerate(made)):
            outs.append(_scratch(f"out{place}", stop - start, BUFFERS[job.dtype]))
            rows = combination.coefficients[start // segment :] if by_row else combination.coefficients
            row[:5] = _address(rows), by_row, combination.keeps_same, _address(outs[-1]), CODES[job.dtype]
        bad = kernel("linear")(
            *inputs.arguments,
            stop - start,
            segment,
            _address(table),
            len(made),
            first,
            _address(sums) if measures else 0,
            pairs,
            _work(inputs.count),
        )
        parts[start] = sums
        for row, out, (_, job) in zip(table, outs, made):
            job.bad |= bad | (RESULT if row[5] else 0)
            job.write(start, out)
            job.on_block(stop - start)

    workers.each(_blocks(facts, by_row), work)
    if measures:
        inner = np.concatenate([parts[start] for start in sorted(parts)])
        measured = _pairs(inner if by_row else inner.sum(0), count - first)
        measured = np.pad(measured, [(0, 0)] * (measured.ndim - 2) + [(first, 0), (first, 0)])
    for combination, job in made:
        if job.statistics:
            # What a method measured of the deltas says nothing of the base itself.
            known = np.pad(job.gram, ((1, 0), (1, 0))) if job.gram is not None and not by_row else measured
            job.products = _products_of_linear(combination.coefficients, facts, known)


def _sums_to_one(coefficients: NDArray[np.float64]) -> NDArray[np.bool_]:
    apart: NDArray[np.bool_] = np.abs(coefficients.sum(-1) - 1) < 1e-9
    return apart


def _products_of_linear(
    coefficients: NDArray[np.float64], facts: Facts, products: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Inner products of all deltas, the result's last; without a base, of the models' against the result.

    `products` are of input 0 and of the others minus it; of them the result minus input 0 is a sum too, so that
    nobody needs to go over the result. One matrix, or one per row of coefficients.
    """
    result = coefficients.copy()
    result[:, 0] = np.where(_sums_to_one(coefficients), 0, coefficients.sum(-1) - 1)
    inputs = np.eye(coefficients.shape[1])
    if facts.has_base:
        mix = np.stack([np.vstack([inputs[1:], row]) for row in result])
    else:
        inputs[0] = 0
        mix = inputs - result[:, None, :]
    if products.ndim == 2:
        mix = mix[:1]
    squares: NDArray[np.float64] = (mix @ products @ mix.transpose(0, 2, 1)).sum(0)
    np.fill_diagonal(squares, np.maximum(np.diagonal(squares), 0))  # rounding
    return squares


def _combine_one(combination: Combination, job: Job, workers: Workers) -> None:
    parts: dict[int, NDArray[np.float64]] = {}

    def work(block: tuple[int, int]) -> None:
        bad, parts[block[0]] = _combined(combination, job, *block)
        job.bad |= bad
        job.on_block(block[1] - block[0])

    workers.each(_blocks(job.facts, _by_row(combination)), work)
    if job.statistics and parts:
        vectors = len(job.inputs)
        job.products = _pairs(np.concatenate([parts[start] for start in sorted(parts)]).sum(0), vectors)


def _combined(combination: Combination, job: Job, start: int, stop: int) -> tuple[int, NDArray[np.float64]]:
    inputs = _Inputs(job.inputs, start, stop)
    facts, size = job.facts, stop - start
    segment = facts.row if _by_row(combination) else SEGMENT
    pairs = inputs.count * (inputs.count + 1) // 2  # deltas of the models and of the result: as many as inputs
    sums = np.zeros((-(-size // segment), pairs))
    out = _scratch("out", size, BUFFERS[job.dtype])
    tail = (
        _address(out),
        CODES[job.dtype],
        _address(sums) if job.statistics else 0,
        pairs,
        _work(inputs.count),
    )
    if isinstance(combination, Masked):
        remembered = job.kept[1] if job.kept and job.kept[0] == combination.keep else None
        numbers = _numbers(combination.keep, facts.models, combination)
        bad = kernel("masked")(
            *inputs.arguments,
            size,
            segment,
            start,
            KEEPS[combination.keep.how] if remembered is None else REMEMBERED,
            WAYS[combination.way],
            _address(numbers),
            _address(job.keys),
            0 if remembered is None else _address(remembered),
            0 if remembered is None else remembered.shape[1],
            *tail,
        )
    else:
        assert isinstance(combination, Pointwise)
        values = np.array(combination.numbers or (0.0,))
        factors = combination.row_factors
        block_factors = values if factors is None else factors[start // segment :]
        bad = kernel("pointwise")(
            *inputs.arguments,
            size,
            segment,
            FORMULAS[combination.way],
            _address(values),
            _address(block_factors),
            *tail,
        )
    job.write(start, out)
    return bad, sums


def merge(steps: Sequence[Steps], jobs: Sequence[Job], workers: Workers) -> list[Mapping[str, Any]]:
    """Measures and combines tensors from the same inputs, each by its own method's steps.

    Returns what each method says of it. There is nothing to say of no entries. Raises `NotFinite`; `job.bad` says
    in which tensor.
    """
    if jobs[0].facts.size == 0:
        return [{} for _ in jobs]
    for job in jobs:
        job.remembered_bytes = REMEMBERED_BYTES // len(jobs)
    combinations = settle(steps, [[job] for job in jobs], workers)
    combine(list(zip(combinations, jobs)), workers)
    return [combination.record for combination in combinations]


def settle(steps: Sequence[Steps], jobs: Sequence[Sequence[Job]], workers: Workers) -> list[Combination]:
    """Runs methods' measurements over the same inputs, of one or more tensors; returns their combinations.

    `jobs` has a row for each method: the tensors that it measures together. What several ask for is measured once,
    and scores of a kind are counted for all at once. Raises `NotFinite` after the measurement that found it.
    """
    made: dict[int, Combination] = {}
    asked: dict[int, Measurement] = {}

    def go_on(place: int, result: Any) -> None:
        try:
            asked[place] = steps[place].send(result)
        except StopIteration as end:
            asked.pop(place, None)
            made[place] = end.value

    for place in range(len(steps)):
        go_on(place, None)
    while asked:
        results: dict[int, Any] = {}
        for places in _asked_together(asked):
            requests = [asked[place] for place in places]
            answer = measure(_union(requests), jobs[places[0]], workers)
            for place, request in zip(places, requests):
                for job, first in zip(jobs[place], jobs[places[0]]):
                    job.bad |= first.bad
                    job.gram = first.gram if isinstance(request, Gram) and request.deltas else job.gram
                    job.kept = first.kept if isinstance(request, Kept) else job.kept
                results[place] = answer
                if isinstance(request, Count):
                    results[place], answer = answer[: len(request.brackets)], answer[len(request.brackets) :]
        if any(job.bad for row in jobs for job in row):
            raise NotFinite  # nothing that follows from it would mean anything
        for place, result in results.items():
            go_on(place, result)
    return [made[place] for place in range(len(steps))]


def _asked_together(asked: Mapping[int, Measurement]) -> list[list[int]]:
    """Which places' requests are the same, or counts of the same scores."""
    groups: dict[Any, list[int]] = {}
    for place, request in asked.items():
        kind = (request.kind, request.row_factors) if isinstance(request, Count) else request
        groups.setdefault(kind, []).append(place)
    return list(groups.values())


def _union(requests: Sequence[Measurement]) -> Measurement:
    first = requests[0]
    if not isinstance(first, Count):
        return first
    brackets = [bracket for request in requests if isinstance(request, Count) for bracket in request.brackets]
    return Count(first.kind, tuple(brackets), first.row_factors)


# -- arrays in memory


class ArrayOperand:
    """An array in memory, of a type in BUFFERS; bfloat16 as its bits in uint16."""

    def __init__(self, array: NDArray[Any], dtype: str) -> None:
        self.array = np.ascontiguousarray(array).reshape(-1)
        self.code = CODES[dtype]

    def part(self, start: int, stop: int) -> tuple[int, int, Any]:
        return _address(self.array) + start * self.array.itemsize, self.code, self.array
