"""Scores at given ranks of tensors that may be larger than memory: exactly, by counting, without sorting them.

A sample says where a score about lies; one count of the scores around there mostly finds it, and only the bins of a
count that hold several different scores are counted again. No memory that grows with the tensor.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from consilience.merge.blocks import Inputs, Job, Workers, address_of, blocks_of
from consilience.merge.methods import OfPositive, Rank, Ranked
from consilience.merge.native import kernel

LEAST_SAMPLED, MOST_SAMPLED, RUN = 1 << 13, 1 << 17, 1 << 11  # entries that are sampled, in runs
BINS = 1 << 11
LARGEST_BITS = 0x7FEFFFFFFFFFFFFF  # of a finite float64
SCORES = {"magnitude": 0, "spread": 1, "importance": 2}  # kernels.MAGNITUDE ...


class Sample(NamedTuple):
    """Some of a tensor's scores, ascending, and how many of all are at least that large."""

    scores: NDArray[np.float64]
    from_top: NDArray[np.float64]


class Counted(NamedTuple):
    """How many scores are at least the bracket's low end, above it, at least its high end, above it.

    `bins` are of those between the ends: uint64 [BINS, 3], how many, the bits of the smallest and of the largest.
    """

    from_low: int
    above_low: int
    from_high: int
    above_high: int
    bins: NDArray[np.uint64]


Bracket = tuple[int, int]  # scores whose bits, as a whole number, are from one to the other: scores are not negative


def at_ranks(requests: Sequence[Ranked], jobs: Sequence[Job], workers: Workers) -> list[list[float]]:
    """The scores that each request asks for, of the jobs' tensors together. The requests' scores are the same.

    Numbers that are not finite, which `job.bad` says, have no rank; then the answer is NaN.
    """
    bounds = dict.fromkeys((each for request in requests for each in request.wanted), (0, LARGEST_BITS))
    samples = _sampled(requests[0], sorted({model for model, _ in bounds}), jobs)
    brackets = {(model, rank): _guess(samples[model], rank) for model, rank in bounds}
    found: dict[tuple[int, Rank], float] = {}
    positive: dict[int, int] = {model: 0 for model, rank in bounds if isinstance(rank, OfPositive)}
    to_count = list(positive)
    while brackets:
        asked = [(model, bracket) for (model, _), bracket in brackets.items()]
        counts = _count(requests[0], [*asked, *((model, (1, 1)) for model in to_count)], jobs, workers)
        positive |= {model: counted.from_low for model, counted in zip(to_count, counts[len(asked) :])}
        if any(job.bad for job in jobs):
            return [[math.nan] * len(request.wanted) for request in requests]  # what is no number has no rank
        to_count = []
        for (wanted, (low, high)), counted in zip(list(brackets.items()), counts):
            del brackets[wanted]
            model, rank = wanted
            place = int(rank.share * positive[model]) if isinstance(rank, OfPositive) else rank
            least, most = bounds[wanted]
            if place == 0:
                found[wanted] = math.inf
            elif place <= counted.above_high:
                bounds[wanted] = brackets[wanted] = high + 1, most
            elif place <= counted.from_high:
                found[wanted] = _value(high)
            elif place <= counted.above_low:
                from_top = counted.from_high + np.cumsum(counted.bins[::-1, 0]).astype(np.int64)
                _, first, last = counted.bins[BINS - 1 - int(np.searchsorted(from_top, place))].tolist()
                if first == last:
                    found[wanted] = _value(first)
                else:
                    bounds[wanted] = brackets[wanted] = first, last
            elif place <= counted.from_low:
                found[wanted] = _value(low)
            else:
                bounds[wanted] = brackets[wanted] = least, low - 1
    return [[found[wanted] for wanted in request.wanted] for request in requests]


def _bits(value: float) -> int:
    return int(np.float64(value).view(np.int64))


def _value(bits: int) -> float:
    return float(np.int64(bits).view(np.float64))


def _guess(sample: Sample, rank: Rank) -> Bracket:
    """A bracket that very likely holds the score at a rank."""
    scores, from_top = sample
    size, count = from_top[0], len(scores)
    positive = from_top[np.searchsorted(scores, 0, "right")] if scores[-1] > 0 else 0.0
    share = (rank if isinstance(rank, int) else int(rank.share * positive)) / size
    # Four standard errors; where neighbours are so much alike that this is too little, there is a second count.
    margin = 4 * math.sqrt(max(share * (1 - share), 1e-6) / count) if size > count else 0.0
    # Places from the top of the sample at which the share is reached.
    high, low = np.searchsorted(from_top[::-1] / size, [share - margin, share + margin])
    return (
        0 if low >= count else _bits(scores[count - 1 - int(low)]),
        LARGEST_BITS if high == 0 else _bits(scores[count - 1 - int(high)]),
    )


def _sampled(request: Ranked, models: Sequence[int], jobs: Sequence[Job]) -> dict[int, Sample]:
    """Of every model; all scores where there are few."""
    total = sum(job.facts.size for job in jobs)
    factors = np.array(request.row_factors or (1.0,))
    by_row = request.kind == "importance"
    samples: list[NDArray[np.float64]] = []
    weights: list[NDArray[np.float64]] = []
    for job in jobs:
        size = job.facts.size
        wanted = min(max(size // 64, LEAST_SAMPLED), MOST_SAMPLED) * size / max(total, 1)
        runs = max(round(wanted / RUN), 1)
        if runs * RUN >= size:
            starts, length = [0], size
        else:
            starts, length = [run * ((size - RUN) // max(runs - 1, 1)) for run in range(runs)], RUN
        scores = np.empty((job.facts.models, len(starts) * length + 8))  # the kernel writes up to a multiple of eight
        for at, first in zip(range(0, len(starts) * length, max(length, 1)), starts):
            for start, stop in _cut(first, first + length, job.facts.row if by_row else size):
                inputs = Inputs(job.inputs, start, stop)
                job.bad |= kernel("scores")(
                    *inputs.arguments,
                    SCORES[request.kind],
                    stop - start,
                    address_of(factors[start // job.facts.row :] if by_row else factors),
                    address_of(scores[0, at + start - first :]),
                    scores.strides[0],
                    inputs.room,
                )
        samples.append(scores[:, :-8])
        weights.append(np.full(len(starts) * length, size / max(len(starts) * length, 1)))
    every, stands_for = np.concatenate(samples, axis=1), np.concatenate(weights)
    return {model: _sorted(every[model], stands_for) for model in models}


def _sorted(scores: NDArray[np.float64], stands_for: NDArray[np.float64]) -> Sample:
    if stands_for[0] == stands_for[-1]:
        scores = np.sort(scores)
    else:
        order = np.argsort(scores, kind="stable")
        scores, stands_for = scores[order], stands_for[order]
    return Sample(scores, np.cumsum(stands_for[::-1])[::-1])


def _cut(start: int, stop: int, step: int) -> list[tuple[int, int]]:
    """start..stop cut at the multiples of `step`."""
    cuts = [start, *range((start // step + 1) * step, stop, step), stop]
    return list(itertools.pairwise(cuts))


def _count(
    request: Ranked, asked: Sequence[tuple[int, Bracket]], jobs: Sequence[Job], workers: Workers
) -> list[Counted]:
    """Counts each model's scores around a bracket, in one pass."""
    factors = np.array(request.row_factors or (1.0,))
    by_row = request.kind == "importance"
    rows = np.zeros((len(asked), 12), np.int64)  # as kernels.narrow wants them
    for place, (row, (model, (low, high))) in enumerate(zip(rows, asked)):
        shift = max((high - low).bit_length() - BINS.bit_length() + 1, 0)
        score = 0 if request.kind == "spread" else model
        row[:8] = low, low + 1, high, high + 1, score, low, shift, place * BINS * 3 * 8
    by_thread: dict[int, tuple[NDArray[np.int64], NDArray[np.uint64]]] = {}

    def work(item: tuple[Job, tuple[int, int]]) -> None:
        job, (start, stop) = item
        if threading.get_ident() not in by_thread:
            bins = np.zeros((len(asked), BINS, 3), np.uint64)
            bins[:, :, 1] = np.iinfo(np.uint64).max
            by_thread[threading.get_ident()] = rows.copy(), bins
        mine, bins = by_thread[threading.get_ident()]
        inputs = Inputs(job.inputs, start, stop)
        row = job.facts.row if by_row else stop - start
        block_factors = factors[start // row : -(-stop // row)] if by_row else factors
        job.bad |= kernel("narrow")(
            *inputs.arguments,
            SCORES[request.kind],
            stop - start,
            row,
            address_of(block_factors),
            address_of(mine),
            len(asked),
            address_of(bins),
            inputs.room,
        )

    workers.each([(job, block) for job in jobs for block in blocks_of(job.facts, by_row=by_row)], work)
    counts = sum((mine[:, 8:] for mine, _ in by_thread.values()), np.zeros((len(asked), 4), np.int64))
    every = np.array([bins for _, bins in by_thread.values()])
    together = np.stack([every[..., 0].sum(0), every[..., 1].min(0), every[..., 2].max(0)], axis=-1)
    return [
        Counted(int(from_low), int(above_low), int(from_high), int(above_high), bins)
        for (from_low, above_low, from_high, above_high), bins in zip(counts, together)
    ]
