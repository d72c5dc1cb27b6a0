"""Measures and combines tensors that may be larger than memory: block by block, by compiled kernels, in threads.

The bits of a result do not depend on threads or blocks: entries are computed one by one; sums are taken over segments
at fixed places and added in their order; counts are whole numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilience.merge.blocks import (
    BUFFERS,
    CODES,
    RESULT,
    SEGMENT,
    Inputs,
    Job,
    NotFinite,
    Workers,
    address_of,
    blocks_of,
    scratch,
)
from consilience.merge.drive import Engine
from consilience.merge.methods import (
    Combination,
    Facts,
    Gram,
    Keep,
    Kept,
    Linear,
    Masked,
    Measurement,
    Pointwise,
    Ranked,
    RowDivergences,
    Touched,
)
from consilience.merge.native import kernel
from consilience.merge.selection import at_ranks

KEEPS = {"all": 0, "band": 1, "random": 2, "random by rank": 3, "spread": 4}
REMEMBERED = 5  # kernels.KEEP_REMEMBERED
WAYS = {"sum": 0, "mean": 1, "agreeing sum": 2, "nearswap": 0, "varm": 1, "ram": 2, "fusion": 3}


def on_cpu(workers: Workers) -> Engine:
    return Engine(partial(measure, workers=workers), partial(combine, workers=workers))


def _by_row(request: Measurement | Combination) -> bool:
    if isinstance(request, Gram):
        return request.by_row
    if isinstance(request, Linear):
        return len(request.coefficients) > 1
    if isinstance(request, (Kept, Masked)):
        return request.keep.how == "random by rank"
    return isinstance(request, RowDivergences) or (isinstance(request, Pointwise) and request.row_factors is not None)


def _pairs(products: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Symmetric matrices [..., count, count] from their upper triangles [..., pairs]."""
    square = np.empty((*products.shape[:-1], count, count))
    for pair, (a, b) in enumerate(itertools.combinations_with_replacement(range(count), 2)):
        square[..., a, b] = square[..., b, a] = products[..., pair]
    return square


# -- measurements, over the tensors that are measured together


def measure(requests: Sequence[Measurement], jobs: Sequence[Sequence[Job]], workers: Workers) -> list[Any]:
    """What `Engine.measure` promises."""
    first = requests[0]
    if isinstance(first, Ranked):
        return at_ranks([request for request in requests if isinstance(request, Ranked)], jobs[0], workers)
    by_row = _by_row(first)
    tables: list[_Table] = []
    if isinstance(first, Kept):
        kinds = [request for request in requests if isinstance(request, Kept)]
        for same in zip(*jobs):
            for request, job in zip(kinds, same):
                _make_room(request.keep, job)
            tables.append(_Table(list(zip(kinds, same))))
    parts: dict[tuple[int, int], NDArray[Any]] = {}

    def work(item: tuple[int, tuple[int, int]]) -> None:
        place, (start, stop) = item
        job = jobs[0][place]
        bad, parts[place, start] = _measured(first, job, start, stop, tables[place] if tables else None)
        job.bad |= bad

    items = [(place, block) for place, job in enumerate(jobs[0]) for block in blocks_of(job.facts, by_row=by_row)]
    workers.each(items, work)
    by_block = [parts[key] for key in sorted(parts)]
    if isinstance(first, Kept):
        return list(np.concatenate(by_block, axis=1).sum(1))
    if isinstance(first, Touched):
        return [np.sum(by_block, axis=0)] * len(requests)
    answer = np.concatenate(by_block)
    if isinstance(first, Gram):
        facts = jobs[0][0].facts
        answer = _pairs(answer if by_row else answer.sum(0), _vectors(first, jobs[0][0]))
        if first.deltas and facts.has_base and not by_row and len(jobs[0]) == 1:
            for (job,) in jobs:
                job.gram = answer
    return [answer] * len(requests)


def _vectors(request: Gram, job: Job) -> int:
    return job.facts.models if request.deltas else len(job.inputs)


def _measured(request: Measurement, job: Job, start: int, stop: int, plans: _Table | None) -> tuple[int, NDArray[Any]]:
    inputs = Inputs(job.inputs, start, stop)
    size = stop - start
    segment = job.facts.row if _by_row(request) else SEGMENT
    segments = -(-size // segment)
    if isinstance(request, Gram):
        count = _vectors(request, job)
        sums = np.zeros((segments, count * (count + 1) // 2))
        more = size, segment, address_of(sums), sums.shape[1], inputs.room
        return kernel("gram")(*inputs.arguments, int(request.deltas), *more), sums
    if plans:
        sums = np.zeros((len(plans.rows), segments, job.facts.models, 3))
        rows = plans.rows.copy()
        rows[:, 7] = [address_of(own) for own in sums]
        return plans.call("masked", inputs, job, start, stop, rows, 0), sums
    if isinstance(request, Touched):
        counts = np.zeros((job.facts.models, 2), np.int64)
        least = np.array([request.least])
        return kernel("touched")(*inputs.arguments, size, address_of(least), address_of(counts), inputs.room), counts
    divergences = np.zeros(segments)
    addresses, codes, _ = inputs.arguments
    bad = kernel("row_divergences")(addresses, codes, size, job.facts.row, address_of(divergences), inputs.room)
    return bad, divergences


def _make_room(keep: Keep, job: Job) -> None:
    """For a bit per model and entry, so that what ranks and draws decided is not found out twice."""
    stride = -(-job.facts.size // 8)
    ends_whole = keep.how == "random" or job.facts.row % 8 == 0  # a byte is of one block
    if "random" in keep.how and ends_whole and job.facts.models * stride <= job.remembered_bytes:
        job.kept = keep, np.zeros((job.facts.models, stride), np.uint8)


class _Table:
    """Plans for the same tensor as kernels want them: a row for each; its addresses are of `numbers`."""

    def __init__(self, plans: Sequence[tuple[Kept | Masked | Pointwise, Job]]) -> None:
        self.by_row = _by_row(plans[0][0])
        self.rows = np.zeros((len(plans), 9), np.int64)
        self.numbers = [_numbers(request, job.facts.models) for request, job in plans]
        for row, numbers, (request, job) in zip(self.rows, self.numbers, plans):
            row[2] = address_of(numbers)
            if not isinstance(request, Kept):
                row[1] = WAYS[request.way]
            if not isinstance(request, Pointwise):
                row[0] = KEEPS[request.keep.how]
                if job.kept and job.kept[0] == request.keep:
                    row[3:5] = address_of(job.kept[1]), job.kept[1].shape[1]
                    row[0] = row[0] if isinstance(request, Kept) else REMEMBERED

    def call(self, name: str, inputs: Inputs, job: Job, start: int, stop: int, rows: Any, sums: int) -> int:
        """Goes over a block with a kernel that takes plans: `rows`, this block's copy of the table's."""
        segment = job.facts.row if self.by_row else SEGMENT
        plans = address_of(job.keys), address_of(rows), len(rows)
        return kernel(name)(*inputs.arguments, stop - start, segment, start, *plans, sums, inputs.room)


def _numbers(request: Kept | Masked | Pointwise, models: int) -> NDArray[np.float64]:
    if isinstance(request, Pointwise):
        return np.array(request.numbers or (0.0,))
    keep = request.keep
    numbers = np.ones(2 + 8 * models)
    numbers[1] = keep.least
    fields = numbers[2:].reshape(8, models)
    fields[0] = keep.low or 0.0
    fields[1] = keep.high or np.inf
    fields[2] = keep.density or 1.0
    fields[3] = keep.epsilon or 0.0
    if isinstance(request, Masked):
        vote, mean, factor = np.array([request.vote, request.mean, request.factor])
        numbers[0] = request.scale
        fields[4:] = vote * factor, np.sign(vote), mean, mean * factor
    return numbers


# -- combinations


def combine(made: Sequence[tuple[Combination, Job]], workers: Workers) -> None:
    """What `Engine.combine` promises. Combinations of a kind go over the inputs together."""
    together: dict[Any, list[Any]] = {}
    for combination, job in made:
        together.setdefault((type(combination), _by_row(combination)), []).append((combination, job))
    for (kind, _), group in together.items():
        (_combine_linear if kind is Linear else _combine_deltas)(group, workers)
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
        inputs = Inputs(operands, start, stop)
        sums = np.zeros((-(-(stop - start) // segment), pairs))
        table = np.zeros((len(made), 6), np.int64)
        outs = []
        for row, (place, (combination, job)) in zip(table, enumerate(made)):
            outs.append(scratch(f"out{place}", stop - start, BUFFERS[job.dtype]))
            rows = combination.coefficients[start // segment :] if by_row else combination.coefficients
            row[:5] = address_of(rows), by_row, combination.keeps_same, address_of(outs[-1]), CODES[job.dtype]
        bad = kernel("linear")(
            *inputs.arguments,
            stop - start,
            segment,
            address_of(table),
            len(made),
            first,
            address_of(sums) if measures else 0,
            pairs,
            inputs.room,
        )
        parts[start] = sums
        for row, out, (_, job) in zip(table, outs, made):
            job.bad |= bad | (RESULT if row[5] else 0)
            job.write(start, out)
            job.on_block(stop - start)

    workers.each(blocks_of(facts, by_row=by_row), work)
    if measures:
        inner = np.concatenate([parts[start] for start in sorted(parts)])
        measured = _pairs(inner if by_row else inner.sum(0), count - first)
        measured = _behind_zeros(measured) if first else measured
    for combination, job in made:
        if job.statistics:
            # What a method measured of the deltas says nothing of the base itself.
            known = _behind_zeros(job.gram) if job.gram is not None and not by_row else measured
            job.products = _products_of_linear(combination.coefficients, facts, known)


def _behind_zeros(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Square matrices with a row and a column of zeros before the others: of input 0, which was not measured."""
    count = products.shape[-1]
    wider = np.zeros((*products.shape[:-2], count + 1, count + 1))
    wider[..., 1:, 1:] = products
    return wider


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


def _combine_deltas(made: Sequence[tuple[Masked | Pointwise, Job]], workers: Workers) -> None:
    first, job = made[0]
    facts, operands = job.facts, job.inputs
    by_row = _by_row(first)
    segment = facts.row if by_row else SEGMENT
    name = "masked" if isinstance(first, Masked) else "pointwise"
    measures = any(job.statistics for _, job in made)
    table = _Table(made)
    parts: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def work(block: tuple[int, int]) -> None:
        start, stop = block
        inputs = Inputs(operands, start, stop)
        segments = -(-(stop - start) // segment)
        of_deltas = np.zeros((segments, facts.models * (facts.models + 1) // 2))
        of_results = np.zeros((len(made), segments, facts.models + 1))
        rows, outs = table.rows.copy(), []
        for place, (row, sums, (combination, job)) in enumerate(zip(rows, of_results, made)):
            outs.append(scratch(f"out{place}", stop - start, BUFFERS[job.dtype]))
            row[5:8] = address_of(outs[-1]), CODES[job.dtype], address_of(sums) if job.statistics else 0
            if isinstance(combination, Pointwise) and combination.row_factors is not None:
                row[3] = address_of(combination.row_factors[start // segment :])
        sums_at = address_of(of_deltas) if measures else 0
        bad = table.call(name, inputs, job, start, stop, rows, sums_at)
        parts[start] = of_deltas, of_results
        for row, out, (_, job) in zip(rows, outs, made):
            job.bad |= bad | (RESULT if row[8] else 0)
            job.write(start, out)
            job.on_block(stop - start)

    workers.each(blocks_of(facts, by_row=by_row), work)
    if not measures:
        return
    products = np.empty((facts.models + 1, facts.models + 1))
    products[:-1, :-1] = _pairs(np.concatenate([parts[start][0] for start in sorted(parts)]).sum(0), facts.models)
    of_results = np.concatenate([parts[start][1] for start in sorted(parts)], axis=1).sum(1)
    for sums, (_, job) in zip(of_results, made):
        products[-1] = products[:, -1] = sums
        job.products = products.copy() if job.statistics else None
