"""The methods on a device of torch's, such as a GPU: the formulas of `kernels` on whole blocks, in float64.

Sums are added in another order than on the cpu, so coefficients may differ in their last digits; random numbers are the
same. Only `--device` leads here, so nothing else loads torch.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from consilience.errors import ConfigError
from consilience.merge.blocks import CODES, RANK_BINS, RESULT, Job, NotFinite, Operand
from consilience.merge.drive import Engine
from consilience.merge.methods import (
    Combination,
    Gram,
    Keep,
    Kept,
    Linear,
    Masked,
    Measurement,
    OfPositive,
    Pointwise,
    Rank,
    Ranked,
    RowDivergences,
    Touched,
)

BLOCK = 1 << 23  # entries that are on the device at a time; a method has some ten float64 of each
DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
BY_CODE = {CODES[name]: dtype for name, dtype in DTYPES.items()}
WORD = 0xFFFFFFFF


def on_device(name: str) -> Engine:
    """Raises `ConfigError` for a device that is not there, or that has no float64."""
    try:
        device = torch.device(name)
        torch.zeros(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        said = str(error).partition("\n")[0]
        raise ConfigError(f"--device {name} cannot be used here ({said}). Leave it out to merge on the cpu.") from None
    return Engine(partial(measure, device=device), partial(combine, device=device))


class _Block:
    """Entries start..stop of a tensor on the device, all in float64."""

    def __init__(self, job: Job, start: int, stop: int, device: torch.device) -> None:
        self.job, self.start, self.stop, self.device = job, start, stop, device
        self.inputs = [_read(operand, start, stop, device) for operand in job.inputs]
        self.base = self.inputs[0]
        for place, numbers in enumerate(self.inputs):
            if not bool(numbers.isfinite().all()):
                job.bad |= 1 << place

    @property
    def deltas(self) -> list[Tensor]:
        return [numbers - self.base for numbers in self.inputs[1:]]

    def by_row(self, numbers: Tensor) -> Tensor:
        return numbers.reshape(-1, self.job.facts.row)


def _read(operand: Operand, start: int, stop: int, device: torch.device) -> Tensor:
    address, code, alive = operand.part(start, stop)
    dtype = BY_CODE[code]
    raw: Any = (ctypes.c_char * ((stop - start) * dtype.itemsize)).from_address(address)
    numbers = torch.frombuffer(raw, dtype=dtype).to(device).to(torch.float64, copy=True)
    del alive
    return numbers


def _blocks(job: Job, device: torch.device) -> Iterator[_Block]:
    row = max(job.facts.row, 1)
    step = max(BLOCK // row, 1) * row
    for start in range(0, job.facts.size, step):
        yield _Block(job, start, min(start + step, job.facts.size), device)


# -- measurements


def measure(requests: Sequence[Measurement], jobs: Sequence[Sequence[Job]], device: torch.device) -> list[Any]:
    """What `Engine.measure` promises."""
    return [_measured(request, row, device) for request, row in zip(requests, jobs)]


def _measured(request: Measurement, jobs: Sequence[Job], device: torch.device) -> Any:
    if isinstance(request, Ranked):
        found: dict[tuple[int, Rank], float] = {}
        for model in sorted({model for model, _ in request.wanted}):
            bits = _scores(request, model, jobs, device)
            found |= {(which, rank): _at_rank(bits, rank) for which, rank in request.wanted if which == model}
        return [found[wanted] for wanted in request.wanted]
    parts = [_of_block(request, block) for job in jobs for block in _blocks(job, device)]
    by_row = isinstance(request, RowDivergences) or (isinstance(request, Gram) and request.by_row)
    return np.concatenate(parts) if by_row else sum(parts[1:], parts[0])


def _of_block(request: Measurement, block: _Block) -> Any:
    if isinstance(request, Gram):
        vectors = torch.stack(block.deltas if request.deltas else block.inputs)
        if request.by_row:
            rows = vectors.reshape(len(vectors), -1, block.job.facts.row).transpose(0, 1)
            return (rows @ rows.transpose(1, 2)).cpu().numpy()
        return (vectors @ vectors.T).cpu().numpy()
    if isinstance(request, Kept):
        kept = _kept(request.keep, block)
        sums = [(d.abs().sum(), k.abs().sum(), k.square().sum()) for d, k in zip(block.deltas, kept)]
        return np.array([[float(number) for number in of_model] for of_model in sums])
    if isinstance(request, Touched):
        by_model = torch.stack(block.deltas).abs() > request.least
        by = by_model.sum(0)
        return torch.stack([(by_model & (by == 1)).sum(1), (by_model & (by > 1)).sum(1)], dim=1).cpu().numpy()
    base, model = (block.by_row(numbers).softmax(-1) + 1e-8 for numbers in block.inputs)
    return (model * (model / base).log()).sum(-1).cpu().numpy()


def _scores(request: Ranked, model: int, jobs: Sequence[Job], device: torch.device) -> Tensor:
    """All scores' bits as whole numbers, which are in the order of the scores."""
    parts = []
    for job in jobs:
        for block in _blocks(job, device):
            scores = _spread(block.deltas) if request.kind == "spread" else block.deltas[model].abs()
            if request.kind == "importance":
                scores = (block.by_row(scores) * _factors(request.row_factors, block)).reshape(-1)
            parts.append(scores.view(torch.int64))
    return torch.cat(parts)


def _spread(deltas: Sequence[Tensor]) -> Tensor:
    spread = torch.zeros_like(deltas[0])
    for a, one in enumerate(deltas):
        for other in deltas[a + 1 :]:
            spread += (one - other).square()
    return spread


def _factors(row_factors: Any, block: _Block) -> Tensor:
    row = block.job.facts.row
    factors = np.asarray(row_factors, np.float64)[block.start // row : -(-block.stop // row)]
    return torch.from_numpy(factors.copy()).to(block.device)[:, None]


def _at_rank(bits: Tensor, rank: Rank) -> float:
    """The score at a rank, 16 bits after 16 bits: counted, not sorted."""
    place = int(rank.share * int((bits > 0).sum())) if isinstance(rank, OfPositive) else rank
    if place == 0:
        return math.inf
    value = 0
    for shift in (48, 32, 16, 0):
        digits = (bits >> shift) & 0xFFFF
        from_top = torch.bincount(digits, minlength=1 << 16).flip(0).cumsum(0)
        reached = int(torch.searchsorted(from_top, place))
        place -= int(from_top[reached - 1]) if reached else 0
        digit = 0xFFFF - reached
        bits = bits[digits == digit]
        value |= digit << shift
    return float(np.int64(value).view(np.float64))


# -- which entries of the deltas are kept


def _kept(keep: Keep, block: _Block) -> list[Tensor]:
    deltas = block.deltas
    if keep.how == "all":
        return deltas
    if keep.how == "spread":
        there = _spread(deltas) >= keep.least
        return [torch.where(there, delta, 0.0) for delta in deltas]
    if keep.how == "band":
        sizes = [delta.abs() for delta in deltas]
        bands = zip(deltas, sizes, keep.low, keep.high)
        return [torch.where((size >= low) & (size <= high), delta, 0.0) for delta, size, low, high in bands]
    kept = []
    for k, (delta, density) in enumerate(zip(deltas, keep.density)):
        if density >= 1:
            kept.append(delta)
            continue
        limits: Any = density * 2**32
        if keep.how == "random by rank":
            row = block.job.facts.row
            lowest, step = (density - keep.epsilon[k]) * 2**32, 2 * keep.epsilon[k] / max(row - 1, 1) * 2**32
            limits = lowest + step * _ranks(block.by_row(delta)).reshape(-1)
        draws = philox(int(block.job.keys[k]), block.start, len(delta), block.device)
        kept.append(torch.where(draws.double() < limits, delta, 0.0))
    return kept


def _ranks(deltas: Tensor) -> Tensor:
    """The mean rank, in its row, of the entries whose size is in the same 1/32 of an octave."""
    octaves = (deltas.view(torch.int64) >> 47) & 0xFFFF
    least = octaves.amax(1, keepdim=True) - (RANK_BINS - 1)
    bins = (octaves - least).clamp_min(0)
    counts = torch.zeros(len(bins), RANK_BINS, dtype=torch.int64, device=deltas.device)
    counts.scatter_add_(1, bins, torch.ones_like(bins))
    below = counts.cumsum(1) - counts
    return (below + 0.5 * (counts - 1).double()).gather(1, bins)


def philox(key: int, first: int, count: int, device: torch.device) -> Tensor:
    """The numbers of `kernels.draws` for entries first..first+count: int64, below 2^32."""
    counter = torch.arange(first // 4, (first + count + 3) // 4, device=device)
    c0, c1 = counter & WORD, counter >> 32
    c2 = c3 = torch.zeros_like(counter)
    k0, k1 = key & WORD, key >> 32
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # the product's lower 64 bits, whatever their sign
        c0, c1, c2, c3 = ((p1 >> 32) & WORD) ^ c1 ^ k0, p1 & WORD, ((p0 >> 32) & WORD) ^ c3 ^ k1, p0 & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return torch.stack([c0, c1, c2, c3], dim=1).reshape(-1)[first % 4 :][:count]


# -- combinations


def combine(made: Sequence[tuple[Combination, Job]], device: torch.device) -> None:
    """What `Engine.combine` promises."""
    for combination, job in made:
        for block in _blocks(job, device):
            result = _combined(combination, block)
            if job.statistics:
                products = _products(block, result)
                job.products = products if job.products is None else job.products + products
            stored = result.float() if job.dtype in ("BF16", "F16") else result  # as on the cpu: see bfloat16_of
            stored = stored.to(DTYPES[job.dtype])
            if not bool(stored.isfinite().all()):
                job.bad |= RESULT
            bits = stored.view(torch.int16) if job.dtype == "BF16" else stored
            numbers = bits.cpu().numpy()
            job.write(block.start, numbers.view(np.uint16) if job.dtype == "BF16" else numbers)
            job.on_block(len(numbers))
    if any(job.bad for _, job in made):
        raise NotFinite


def _products(block: _Block, result: Tensor) -> Any:
    """Inner products of all deltas, the result's last; without a base, of the models against the result."""
    if block.job.facts.has_base:
        vectors = torch.stack([*block.deltas, result - block.base])
    else:
        vectors = torch.stack(block.inputs) - result
    return (vectors @ vectors.T).cpu().numpy()


def _combined(combination: Combination, block: _Block) -> Tensor:
    if isinstance(combination, Linear):
        return _linear(combination, block)
    if isinstance(combination, Masked):
        return _masked(combination, block)
    return POINTWISE[combination.way](combination, block)


def _linear(combination: Linear, block: _Block) -> Tensor:
    rows = combination.coefficients
    terms = [
        (block.by_row(numbers) * _factors(rows[:, k], block)).reshape(-1) if len(rows) > 1 else rows[0, k] * numbers
        for k, numbers in enumerate(block.inputs)
        if rows[:, k].any()  # 0 * x + y is not y where y is -0
    ]
    total = sum(terms[1:], terms[0]) if terms else torch.zeros_like(block.base)
    if not combination.keeps_same:
        return total
    same = torch.stack([numbers == block.base for numbers in block.inputs]).all(0)
    return torch.where(same, block.base, total)


def _masked(combination: Masked, block: _Block) -> Tensor:
    kept = _kept(combination.keep, block)
    change = torch.zeros_like(block.base)
    for delta, vote, factor in zip(kept, combination.vote, combination.factor):
        change = change + (vote * factor) * delta
    if combination.way != "sum":
        plus = change >= 0
        total, weights = torch.zeros_like(change), torch.zeros_like(change)
        for delta, vote, mean, factor in zip(kept, combination.vote, combination.mean, combination.factor):
            voted = math.copysign(1.0, vote) * delta if vote else torch.zeros_like(delta)
            agrees = torch.where(plus, voted > 0, voted < 0)
            total = total + torch.where(agrees, (mean * factor) * delta, 0.0)
            weights = weights + mean * agrees.double()
        change = total / torch.where(weights != 0, weights, 1.0) if combination.way == "mean" else total
    change = combination.scale * change
    if len(kept) == 1:
        # All of a single model's delta is that model, even where the base's size would swallow it.
        return torch.where(change == block.deltas[0], block.inputs[1], block.base + change)
    return torch.where(change == 0, block.base, block.base + change)


def _nearswap(combination: Pointwise, block: _Block) -> Tensor:
    share = (combination.numbers[0] / block.deltas[0].abs().clamp_min(1e-300)).clamp(0, 1)
    return torch.where(share == 1, block.inputs[1], share * block.inputs[1] + (1 - share) * block.base)


def _fusion(combination: Pointwise, block: _Block) -> Tensor:
    importance = block.by_row(block.deltas[0].abs()) * _factors(combination.row_factors, block)
    return torch.where(importance.reshape(-1) >= combination.numbers[0], block.inputs[1], block.base)


def _varm(combination: Pointwise, block: _Block) -> Tensor:
    squares, total = torch.zeros_like(block.base), torch.zeros_like(block.base)
    for delta in block.deltas:
        squares, total = squares + delta.square(), total + delta.square() * delta
    change = total / torch.where(squares > 0, squares, 1.0)
    return torch.where(change == 0, block.base, block.base + change)


def _ram(combination: Pointwise, block: _Block) -> Tensor:
    least, *alone = combination.numbers
    touched = torch.stack(block.deltas).abs() > least
    by = touched.sum(0)
    change = torch.zeros_like(block.base)
    for delta, mine, factor in zip(block.deltas, touched, alone):
        change = change + torch.where(mine, delta, 0.0) * torch.where(by == 1, factor, 1 / by.clamp_min(1).double())
    return torch.where(change == 0, block.base, block.base + change)


POINTWISE: dict[str, Callable[[Pointwise, _Block], Tensor]] = {
    "nearswap": _nearswap,
    "fusion": _fusion,
    "varm": _varm,
    "ram": _ram,
}
