"""The compiled loops of merging. This file imports numba: only `merge/native.py` does that, and only when it compiles.

Every kernel goes over one block of a tensor: `n` entries of each input at the addresses in `inputs`, stored as `codes`
say. Input 0 is the base where there is one. Numbers are worked on in float64, CHUNK entries at a time, and rounded to
what is stored at the end. `zeros` is the address of CHUNK float64 zeros, with room behind them for what a kernel makes.
Sums are taken over segments of `segment` entries, so that they do not depend on how a tensor is cut into blocks.

Arguments are whole numbers (sizes and addresses of arrays), so that compiled code can be kept as one object file
per kernel and called without numba. Kernels return 0, or bit k set where input k holds a number that is not finite.
"""

# mypy: ignore-errors
# numba types these functions, by its own rules.
from __future__ import annotations

import numpy as np
from numba import njit

from consilience.merge.intrinsics import (
    at_least8,
    bfloat16_of,
    bits_of,
    bits_of_float,
    double_of,
    f32,
    f64,
    fetch,
    float_of,
    i64,
    keep8,
    lowest_one,
    nonzero8,
    ones_in,
    put_f32,
    put_f64,
    put_i64,
    put_u8,
    put_u16,
    put_u32,
    put_u64,
    u8,
    u16,
    u32,
    u64,
)

CHUNK = 256  # so that a chunk of everything fits in the nearest cache
AHEAD = 3 * CHUNK  # entries
BF16, F16, F32, F64 = 0, 1, 2, 3

# Ways to make numbers 0 before they are combined.
KEEP_ALL, KEEP_BAND, KEEP_RANDOM, KEEP_RANDOM_BY_RANK, KEEP_SPREAD, KEEP_REMEMBERED = 0, 1, 2, 3, 4, 5
# Ways to combine.
SUM, AGREEING_MEAN, AGREEING_SUM = 0, 1, 2
NEARSWAP, VARM_ENTRY, RAM, FUSION = 0, 1, 2, 3
# What a threshold is on.
MAGNITUDE, SPREAD, IMPORTANCE = 0, 1, 2
PLAN = 9  # int64 in a plan's row, see `masked`
BRACKET = 12  # int64 in a bracket's row, see `narrow`


_inline = njit(inline="never", error_model="numpy", nogil=True, no_cpython_wrapper=True)
# Sums side by side in the processor's registers: always the same ones, whatever the threads and blocks.
_sum = njit(
    inline="never", error_model="numpy", nogil=True, no_cpython_wrapper=True, fastmath={"reassoc", "contract", "nsz"}
)
U32, U64 = np.uint32, np.uint64


@_inline
def _load(address, code, start, n, minus, to):
    """Entries start..start+n of an input, minus the n float64 at `minus`, at `to`.

    Returns whether one of them is not finite.
    """
    # Inputs are read in turn, a little of each: too little for the processor to see what comes next.
    size = 2 if code in (BF16, F16) else 4 if code == F32 else 8
    for line in range(address + size * (start + AHEAD), address + size * (start + AHEAD + n), 64):
        fetch(line)
    if code == BF16:
        largest = np.uint16(0)
        for i in range(n):
            bits = u16(address, start + i)
            largest = max(largest, np.uint16(bits & np.uint16(0x7FFF)))
            put_f64(to, i, np.float64(float_of(U32(U32(bits) << U32(16)))) - f64(minus, i))
        return largest >= 0x7F80
    if code == F32:
        largest32 = U32(0)
        for i in range(n):
            largest32 = max(largest32, U32(u32(address, start + i) & U32(0x7FFFFFFF)))
            put_f64(to, i, np.float64(f32(address, start + i)) - f64(minus, i))
        return largest32 >= 0x7F800000
    if code == F16:
        largest = np.uint16(0)
        for i in range(n):
            bits = u16(address, start + i)
            largest = max(largest, np.uint16(bits & np.uint16(0x7FFF)))
            # The exponent's bias differs by 112; a power of two scales subnormal numbers exactly too.
            size = np.float64(float_of(U32(U32(bits & np.uint16(0x7FFF)) << U32(13)))) * 5.192296858534828e33
            put_f64(to, i, (-size if bits & np.uint16(0x8000) else size) - f64(minus, i))
        return largest >= 0x7C00
    largest64 = U64(0)
    for i in range(n):
        largest64 = max(largest64, u64(address, start + i) & U64(0x7FFFFFFFFFFFFFFF))
        put_f64(to, i, f64(address, start + i) - f64(minus, i))
    return largest64 >= U64(0x7FF0000000000000)


@_inline
def _store(source, n, address, code, start):
    """Writes float64 entries, rounded once to the nearest (to even). Returns whether one is not finite then."""
    if code == BF16:
        largest16 = np.uint16(0)
        for i in range(n):
            bits16 = bfloat16_of(f64(source, i))
            largest16 = max(largest16, np.uint16(bits16 & np.uint16(0x7FFF)))
            put_u16(address, start + i, bits16)
        return largest16 >= 0x7F80
    if code == F32:
        largest = U32(0)
        for i in range(n):
            value = np.float32(f64(source, i))
            largest = max(largest, U32(bits_of_float(value) & U32(0x7FFFFFFF)))
            put_f32(address, start + i, value)
        return largest >= 0x7F800000
    if code == F16:
        bad = False
        for i in range(n):
            exact = np.float64(np.float32(f64(source, i)))
            size = abs(exact)
            exponent = max(np.int64(bits_of(size) >> U64(52)) - 1023, -14)
            unit = double_of(U64(U64(exponent - 10 + 1023) << U64(52)))
            rounded = np.rint(size / unit) * unit
            if rounded >= 6.103515625e-05:
                bits = U32(bits_of_float(np.float32(rounded)) >> U32(13)) - U32(112 << 10)
            else:
                bits = U32(np.int64(rounded * 16777216.0))
            if not rounded <= 65504.0:
                bits = U32(0x7C00)
                bad = True
            sign = U32(bits_of(exact) >> U64(48)) & U32(0x8000)
            put_u16(address, start + i, np.uint16(bits | sign))
        return bad
    largest64 = U64(0)
    for i in range(n):
        value = f64(source, i)
        largest64 = max(largest64, bits_of(value) & U64(0x7FFFFFFFFFFFFFFF))
        put_f64(address, start + i, value)
    return largest64 >= U64(0x7FF0000000000000)


@_inline
def _load_all(inputs, codes, count, start, n, zeros, to):
    """Every input as it is: x - 0 is x, also for -0."""
    bad = 0
    for k in range(count):
        if _load(i64(inputs, k), i64(codes, k), start, n, zeros, to + 8 * CHUNK * k):
            bad |= 1 << k
    return bad


@_inline
def _load_deltas(inputs, codes, count, start, n, zeros, to):
    """The base, input 0, and every other input minus it."""
    bad = 0
    for k in range(count):
        if _load(i64(inputs, k), i64(codes, k), start, n, zeros if k == 0 else to, to + 8 * CHUNK * k):
            bad |= 1 << k
    return bad


@_inline
def _all_same(inputs, codes, count, start, n):
    """Whether the inputs are stored alike and hold the same bits here."""
    code = i64(codes, 0)
    for k in range(1, count):
        if i64(codes, k) != code:
            return False
    difference = U64(0)
    first = i64(inputs, 0)
    for k in range(1, count):
        other = i64(inputs, k)
        if code in (BF16, F16):
            for i in range(n):
                difference |= U64(u16(first, start + i) ^ u16(other, start + i))
        elif code == F32:
            for i in range(n):
                difference |= U64(u32(first, start + i) ^ u32(other, start + i))
        else:
            for i in range(n):
                difference |= u64(first, start + i) ^ u64(other, start + i)
        if difference != U64(0):
            return False
    return True


@_inline
def _copy_chunk(n, source, to):
    for i in range(n):
        put_f64(to, i, f64(source, i))


@_inline
def _fill(n, value, to):
    for i in range(n):
        put_f64(to, i, value)


@_sum
def _four_dots(n, one, a, b, c, d):
    p = q = r = s = 0.0
    for i in range(n):
        x = f64(one, i)
        p += x * f64(a, i)
        q += x * f64(b, i)
        r += x * f64(c, i)
        s += x * f64(d, i)
    return p, q, r, s


@_sum
def _dot(n, one, other):
    total = 0.0
    for i in range(n):
        total += f64(one, i) * f64(other, i)
    return total


@_inline
def _add_dots(n, one, count, vectors, sums):
    """Adds the inner products of `one` with `count` vectors to the sums at `sums`."""
    done = 0
    while count - done >= 3:
        at, last = vectors + 8 * CHUNK * done, min(3, count - done - 1)
        p, q, r, s = _four_dots(n, one, at, at + 8 * CHUNK, at + 16 * CHUNK, at + 8 * CHUNK * last)
        put_f64(sums, done, f64(sums, done) + p)
        put_f64(sums, done + 1, f64(sums, done + 1) + q)
        put_f64(sums, done + 2, f64(sums, done + 2) + r)
        if last == 3:
            put_f64(sums, done + 3, f64(sums, done + 3) + s)
        done += last + 1
    for k in range(done, count):
        put_f64(sums, k, f64(sums, k) + _dot(n, one, vectors + 8 * CHUNK * k))


@_inline
def _add_products(n, count, vectors, sums):
    """Adds the inner products of all pairs of vectors: (0, 0), (0, 1), ... (1, 1), ..."""
    for k in range(count):
        _add_dots(n, vectors + 8 * CHUNK * k, count - k, vectors + 8 * CHUNK * k, sums)
        sums += 8 * (count - k)


def gram(inputs, codes, count, with_base, n, segment, sums, pairs, zeros):
    """Inner products of all pairs of inputs (of deltas, with a base), per segment: float64 [segments, pairs]."""
    bad = 0
    values = zeros + 8 * CHUNK
    for s in range((n + segment - 1) // segment):
        stop = min(n, (s + 1) * segment)
        for start in range(s * segment, stop, CHUNK):
            m = min(CHUNK, stop - start)
            if with_base:
                bad |= _load_deltas(inputs, codes, count, start, m, zeros, values)
                _add_products(m, count - 1, values + 8 * CHUNK, sums + 8 * pairs * s)
            else:
                bad |= _load_all(inputs, codes, count, start, m, zeros, values)
                _add_products(m, count, values, sums + 8 * pairs * s)
    return bad


@_inline
def _mix(n, count, weights, values, to):
    """sum_k c_k x_k in the order of the inputs. Those with coefficient 0 stay out: 0 * x + y is not y where y is -0."""
    begun = 0
    a = b = c = d = values
    p = q = r = s = 0.0
    for k in range(count):
        weight, at = f64(weights, k), values + 8 * CHUNK * k
        if weight != 0.0:
            if begun == 0:
                a, p = at, weight
            elif begun == 1:
                b, q = at, weight
            elif begun == 2:
                c, r = at, weight
            elif begun == 3:
                d, s = at, weight
            begun += 1
    # Up to four in one loop: most merges are of no more.
    if begun == 0:
        for i in range(n):
            put_f64(to, i, 0.0)
    elif begun == 1:
        for i in range(n):
            put_f64(to, i, p * f64(a, i))
    elif begun == 2:
        for i in range(n):
            put_f64(to, i, p * f64(a, i) + q * f64(b, i))
    elif begun == 3:
        for i in range(n):
            put_f64(to, i, p * f64(a, i) + q * f64(b, i) + r * f64(c, i))
    else:
        for i in range(n):
            put_f64(to, i, p * f64(a, i) + q * f64(b, i) + r * f64(c, i) + s * f64(d, i))
    if begun > 4:
        for k in range((d - values) // (8 * CHUNK) + 1, count):
            weight, at = f64(weights, k), values + 8 * CHUNK * k
            if weight != 0.0:
                for i in range(n):
                    put_f64(to, i, f64(to, i) + weight * f64(at, i))


def linear(inputs, codes, count, n, segment, plans, plan_count, first, sums, pairs, zeros):
    """sum_k c_k x_k, for each plan, of which `plans` has a row of six int64: address of the coefficients (float64),
    whether they are one row per segment, whether a chunk that all inputs hold the same bits in stays as it is, address
    and code of the result, and, written here, whether it is not finite somewhere.

    `sums`, when it is not 0: inner products of input 0 and all others minus it, from the `first` on, per segment.
    """
    bad = 0
    values = zeros + 8 * CHUNK
    result = values + 8 * CHUNK * count
    for s in range((n + segment - 1) // segment):
        stop = min(n, (s + 1) * segment)
        for start in range(s * segment, stop, CHUNK):
            m = min(CHUNK, stop - start)
            bad |= _load_all(inputs, codes, count, start, m, zeros, values)
            same = _all_same(inputs, codes, count, start, m)
            for p in range(plan_count):
                plan = plans + 8 * 6 * p
                source = result
                if same and i64(plan, 2):
                    source = values
                else:
                    _mix(m, count, i64(plan, 0) + 8 * count * s * i64(plan, 1), values, result)
                if _store(source, m, i64(plan, 3), i64(plan, 4), start):
                    put_i64(plan, 5, 1)
            if sums:
                for k in range(1, count):
                    for i in range(m):
                        put_f64(values + 8 * CHUNK * k, i, f64(values + 8 * CHUNK * k, i) - f64(values, i))
                _add_products(m, count - first, values + 8 * CHUNK * first, sums + 8 * pairs * s)
    return bad


@_inline
def _spread(n, models, deltas, to):
    """The squared differences of all pairs: exactly 0 where all agree, and the same in any order of two models."""
    _fill(n, 0.0, to)
    for a in range(models):
        for b in range(a + 1, models):
            for i in range(n):
                apart = f64(deltas + 8 * CHUNK * a, i) - f64(deltas + 8 * CHUNK * b, i)
                put_f64(to, i, f64(to, i) + apart * apart)


@_inline
def _scores(kind, n, models, deltas, factor, to, stride):
    """Of every model, `stride` bytes apart; the spread of all is one. Up to a multiple of eight, -1 follows."""
    if kind == SPREAD:
        _spread(n, models, deltas, to)
        _fill(-n % 8, -1.0, to + 8 * n)
        return
    for k in range(models):
        at = deltas + 8 * CHUNK * k
        for i in range(n):
            put_f64(to + stride * k, i, abs(f64(at, i)) * factor)
        _fill(-n % 8, -1.0, to + stride * k + 8 * n)


def scores(inputs, codes, count, kind, n, factor, to, stride, zeros):
    """The scores of n entries, for IMPORTANCE of one row with that factor: float64, as `_scores` puts them."""
    bad = 0
    base = zeros + 8 * CHUNK
    for start in range(0, n, CHUNK):
        m = min(CHUNK, n - start)
        bad |= _load_deltas(inputs, codes, count, start, m, zeros, base)
        row_factor = f64(factor, 0) if kind == IMPORTANCE else 1.0
        _scores(kind, m, count - 1, base + 8 * CHUNK, row_factor, to + 8 * start, stride)
    return bad


def narrow(inputs, codes, count, kind, n, row, row_factors, brackets, bracket_count, bins, zeros):
    """Counts scores for exact selection, for each bracket `low` to `high`, of which `brackets` has a row.

    float64 `low`, the next number, `high`, the next number; int64 model, bits of `low`, shift, bins' place; then, added
    to here, how many scores are at least each of the four. Of the scores between the ends, which are counted apart
    because weights in bfloat16 have few different deltas, and a sampled end is one of them, each goes into a bin
    (bits - bits of low) >> shift: a score is not negative, so its bits as a whole number are in its order. `bins` are
    uint64 [bracket, bin, 3]: how many, the smallest, the largest.
    """
    bad = 0
    base = zeros + 8 * CHUNK
    deltas = base + 8 * CHUNK
    first_score = deltas + 8 * CHUNK * (count - 1)
    for s in range((n + row - 1) // row):
        factor = f64(row_factors, s) if kind == IMPORTANCE else 1.0
        stop = min(n, (s + 1) * row)
        for start in range(s * row, stop, CHUNK):
            m = min(CHUNK, stop - start)
            bad |= _load_deltas(inputs, codes, count, start, m, zeros, base)
            _scores(kind, m, count - 1, deltas, factor, first_score, 8 * CHUNK)
            for j in range(bracket_count):
                at = brackets + 8 * BRACKET * j
                score = first_score + 8 * CHUNK * i64(at, 4)
                _count(m, score, at, U64(i64(at, 5)), U64(i64(at, 6)), bins + i64(at, 7))
    return bad


@_inline
def _count(n, score, bracket, low_bits, shift, bins):
    low, over_low, high, over_high = f64(bracket, 0), f64(bracket, 1), f64(bracket, 2), f64(bracket, 3)
    from_low = from_over_low = from_high = from_over_high = 0
    for eight in range((n + 7) // 8):
        above_low, above_high = at_least8(score, eight, over_low), at_least8(score, eight, high)
        from_low += ones_in(at_least8(score, eight, low))
        from_over_low += ones_in(above_low)
        from_high += ones_in(above_high)
        from_over_high += ones_in(at_least8(score, eight, over_high))
        inside = above_low & ~above_high
        while inside:
            bits = bits_of(f64(score, 8 * eight + lowest_one(inside)))
            inside &= inside - 1
            place = 3 * np.int64((bits - low_bits) >> shift)
            put_u64(bins, place, u64(bins, place) + U64(1))
            put_u64(bins, place + 1, min(u64(bins, place + 1), bits))
            put_u64(bins, place + 2, max(u64(bins, place + 2), bits))
    put_i64(bracket, 8, i64(bracket, 8) + from_low)
    put_i64(bracket, 9, i64(bracket, 9) + from_over_low)
    put_i64(bracket, 10, i64(bracket, 10) + from_high)
    put_i64(bracket, 11, i64(bracket, 11) + from_over_high)


@_inline
def _philox(key, first, n, to):
    """Philox4x32-10 (Salmon et al. 2011): entry i of the tensor has word i % 4 of counter i // 4; uint32 at `to`.

    The word of entry `first` is at index `first` % 4.
    """
    low, high = U32(key & U64(0xFFFFFFFF)), U32(key >> U64(32))
    counter = first // 4
    for j in range((first + n + 3) // 4 - counter):
        c0, c1 = U32((counter + j) & 0xFFFFFFFF), U32((counter + j) >> 32)
        c2 = c3 = U32(0)
        k0, k1 = low, high
        for _ in range(10):
            p0, p1 = U64(0xD2511F53) * U64(c0), U64(0xCD9E8D57) * U64(c2)
            c0, c1, c2, c3 = (
                U32(U32(p1 >> U64(32)) ^ c1 ^ k0),
                U32(p1 & U64(0xFFFFFFFF)),
                U32(U32(p0 >> U64(32)) ^ c3 ^ k1),
                U32(p0 & U64(0xFFFFFFFF)),
            )
            k0, k1 = U32(k0 + U32(0x9E3779B9)), U32(k1 + U32(0xBB67AE85))
        put_u32(to, 4 * j, c0)
        put_u32(to, 4 * j + 1, c1)
        put_u32(to, 4 * j + 2, c2)
        put_u32(to, 4 * j + 3, c3)


RANK_BINS = 512  # 16 octaves below the largest number of the row, 32 to an octave
RANK_SHIFT = 47
ROW_RANKED = 8192  # entries of a row whose sizes are remembered while it is ranked; in longer rows they are made again


@_inline
def _octaves(n, one, to):
    """|x| as uint16: float64's exponent and the first five bits after it."""
    for i in range(n):
        put_u16(to, i, np.uint16((bits_of(f64(one, i)) >> U64(RANK_SHIFT)) & U64(0xFFFF)))


@_inline
def _rank_row(inputs, codes, count, start, stop, zeros, base, tables):
    """Per model, the mean rank of the entries of a bin, among the sizes in the row start..stop.

    float64 at `tables`, RANK_BINS for each model, the smallest bin first. Returns the address of the largest octaves.
    """
    size = stop - start
    models = count - 1
    largest = tables + 8 * RANK_BINS * models
    octaves = largest + 8 * models
    for k in range(models):
        put_i64(largest, k, 0)
    for at in range(start, stop, CHUNK):
        m = min(CHUNK, stop - at)
        _load_deltas(inputs, codes, count, at, m, zeros, base)
        for k in range(models):
            place = octaves + 2 * (ROW_RANKED * k + (at - start if size <= ROW_RANKED else 0))
            _octaves(m, base + 8 * CHUNK * (k + 1), place)
            top = np.uint16(0)
            for i in range(m):
                top = max(top, u16(place, i))
            put_i64(largest, k, max(i64(largest, k), np.int64(top)))
    for k in range(models):
        _fill(RANK_BINS, 0.0, tables + 8 * RANK_BINS * k)
    for at in range(start, stop, CHUNK):
        m = min(CHUNK, stop - at)
        if size > ROW_RANKED:
            _load_deltas(inputs, codes, count, at, m, zeros, base)
        for k in range(models):
            place = octaves + 2 * (ROW_RANKED * k + (at - start if size <= ROW_RANKED else 0))
            if size > ROW_RANKED:
                _octaves(m, base + 8 * CHUNK * (k + 1), place)
            _tally(m, place, i64(largest, k) - (RANK_BINS - 1), tables + 8 * RANK_BINS * k)
    for k in range(models):
        table = tables + 8 * RANK_BINS * k
        # Three loops, because only the second cannot be done eight at a time.
        for b in range(RANK_BINS):
            both = u64(table, b)
            put_u64(table, b, (both & U64(0xFFFFFFFF)) + (both >> U64(32)))
        below = 0
        for b in range(RANK_BINS):
            here = i64(table, b)
            put_i64(table, b, 2 * below + here - 1)
            below += here
        for b in range(RANK_BINS):
            put_f64(table, b, np.float64(i64(table, b)) * 0.5)
    return largest


@_inline
def _tally(n, octaves, least, table):
    """Counts by bin, each as two uint32 in turn: one would wait for itself where neighbours are alike."""
    for i in range(n):
        place = 2 * max(np.int64(u16(octaves, i)) - least, 0) + i % 2
        put_u32(table, place, U32(u32(table, place) + U32(1)))


@_inline
def _ranks(n, one, least, table, octaves, to):
    _octaves(n, one, octaves)
    for i in range(n):
        put_f64(to, i, f64(table, max(np.int64(u16(octaves, i)) - least, 0)))


@_inline
def _keep(plan, n, models, flat, row, deltas, score, draws, ranks, to):
    """The deltas, 0 where the plan does not keep them, at `to`. Returns `deltas` where it keeps all."""
    keep, numbers = i64(plan, 0), i64(plan, 2)
    if keep == KEEP_ALL:
        return deltas
    least = f64(numbers, 1)
    for k in range(models):
        at, kept, draw = deltas + 8 * CHUNK * k, to + 8 * CHUNK * k, draws + 8 * CHUNK * k + 4 * (flat % 4)
        field = numbers + 8 * (2 + k)
        low, high, density = f64(field, 0), f64(field, models), f64(field, 2 * models)
        if keep == KEEP_SPREAD:
            for i in range(n):
                put_f64(kept, i, f64(at, i) if f64(score, i) >= least else 0.0)
        elif keep == KEEP_BAND:
            for i in range(n):
                size = abs(f64(at, i))
                put_f64(kept, i, f64(at, i) if (size >= low) & (size <= high) else 0.0)
        elif keep == KEEP_REMEMBERED:
            bits = i64(plan, 3) + i64(plan, 4) * k + flat // 8
            for byte in range((n + 7) // 8):
                keep8(at, byte, u8(bits, byte), kept)
        elif density >= 1.0:
            _copy_chunk(n, at, kept)
        elif keep == KEEP_RANDOM:
            limit = density * 4294967296.0
            for i in range(n):
                put_f64(kept, i, f64(at, i) if np.float64(u32(draw, i)) < limit else 0.0)
        else:
            epsilon = f64(field, 3 * models)
            lowest, step = (density - epsilon) * 4294967296.0, 2 * epsilon / max(row - 1, 1) * 4294967296.0
            rank = ranks + 8 * CHUNK * k
            for i in range(n):
                limit = lowest + step * f64(rank, i)
                put_f64(kept, i, f64(at, i) if np.float64(u32(draw, i)) < limit else 0.0)
    return to


@_inline
def _ways_to_keep(plans, plan_count):
    """A bit for each that a plan has."""
    ways = 0
    for p in range(plan_count):
        ways |= 1 << i64(plans + 8 * PLAN * p, 0)
    return ways


@_inline
def _prepare(ways, n, models, flat, keys, deltas, score, draws, ranks, tables, largest):
    """What plans need to know of a chunk's deltas: their spread, random numbers, their ranks in the row.

    The random number of entry `flat` is at index flat % 4.
    """
    if ways & (1 << KEEP_SPREAD):
        _spread(n, models, deltas, score)
    if ways & (1 << KEEP_RANDOM | 1 << KEEP_RANDOM_BY_RANK):
        for k in range(models):
            _philox(u64(keys, k), flat, n, draws + 8 * CHUNK * k)
    if ways & (1 << KEEP_RANDOM_BY_RANK):
        for k in range(models):
            _octaves(n, deltas + 8 * CHUNK * k, score)
            least, table = i64(largest, k) - (RANK_BINS - 1), tables + 8 * RANK_BINS * k
            for i in range(n):
                put_f64(ranks + 8 * CHUNK * k, i, f64(table, max(np.int64(u16(score, i)) - least, 0)))


@_sum
def _sizes(n, delta, kept):
    size = kept_size = square = 0.0
    for i in range(n):
        size += abs(f64(delta, i))
        kept_size += abs(f64(kept, i))
        square += f64(kept, i) * f64(kept, i)
    return size, kept_size, square


@_inline
def _add_kept(plan, n, models, flat, deltas, kept, sums):
    """Adds, per model, sum |delta|, that of the kept, sum delta^2 of the kept; remembers which are kept in bits."""
    bits = i64(plan, 3)
    for k in range(models):
        at = kept + 8 * CHUNK * k
        size, kept_size, square = _sizes(n, deltas + 8 * CHUNK * k, at)
        put_f64(sums, 3 * k, f64(sums, 3 * k) + size)
        put_f64(sums, 3 * k + 1, f64(sums, 3 * k + 1) + kept_size)
        put_f64(sums, 3 * k + 2, f64(sums, 3 * k + 2) + square)
        if bits:
            for byte in range((n + 7) // 8):
                put_u8(bits + i64(plan, 4) * k + flat // 8, byte, nonzero8(at, byte))


def masked(inputs, codes, count, n, segment, first, keys, plans, plan_count, sums, zeros):
    """The base plus a sum, or a mean of those with the elected sign, of the deltas that are kept, for each plan.

    A plan is a row of int64: how it keeps and how it combines; address of its numbers; address and bytes per model of
    what was remembered; address and code of the result; address of sums; and, written here, whether the result is not
    finite somewhere. Its numbers are float64: scale of the whole, least spread, then eight rows of one per model: least
    and largest size, density, epsilon, vote, sign of the vote, weight in the mean, weight times factor. `first` is the
    place of the block's first entry in its tensor, `keys` (uint64) are the generator's, per model.

    Inner products are added, per segment, where there is an address for them: of all pairs of deltas to `sums`, of the
    result's change with every delta and itself to the plan's. A plan without a result has what `_add_kept` says,
    float64 [segments, models, 3], at its sums; with an address for bits, one per entry of the tensor is written there.
    """
    bad = 0
    models = count - 1
    base = zeros + 8 * CHUNK
    deltas = base + 8 * CHUNK
    change = deltas + 8 * CHUNK * models
    room = change + 8 * CHUNK
    total = room + 8 * CHUNK * models
    result = total + 8 * CHUNK
    score = result + 8 * CHUNK
    draws = score + 8 * CHUNK
    ranks = draws + 8 * CHUNK * models
    tables = ranks + 8 * CHUNK * models
    ways = _ways_to_keep(plans, plan_count)
    for s in range((n + segment - 1) // segment):
        stop = min(n, (s + 1) * segment)
        row = stop - s * segment
        largest = 0
        if ways & (1 << KEEP_RANDOM_BY_RANK):
            largest = _rank_row(inputs, codes, count, s * segment, stop, zeros, base, tables)
        for start in range(s * segment, stop, CHUNK):
            m = min(CHUNK, stop - start)
            flat = first + start
            bad |= _load_deltas(inputs, codes, count, start, m, zeros, base)
            _prepare(ways, m, models, flat, keys, deltas, score, draws, ranks, tables, largest)
            for p in range(plan_count):
                plan = plans + 8 * PLAN * p
                numbers = i64(plan, 2)
                by_model = numbers + 8 * 2
                at = _keep(plan, m, models, flat, row, deltas, score, draws, ranks, room)
                if i64(plan, 5) == 0:
                    _add_kept(plan, m, models, flat, deltas, at, i64(plan, 7) + 8 * 3 * models * s)
                    continue
                _mix(m, models, by_model + 8 * 4 * models, at, change)
                if i64(plan, 1) != SUM:
                    _elect(m, models, i64(plan, 1), by_model + 8 * 5 * models, at, change, zeros, total, result)
                scale = f64(numbers, 0)
                if models == 1:
                    # All of a single model's delta is that model, even where the base's size would swallow it.
                    _load(i64(inputs, 1), i64(codes, 1), start, m, zeros, total)
                    for i in range(m):
                        moved = scale * f64(change, i)
                        put_f64(result, i, f64(total, i) if moved == f64(deltas, i) else f64(base, i) + moved)
                else:
                    for i in range(m):
                        moved = scale * f64(change, i)
                        put_f64(result, i, f64(base, i) + moved if moved != 0.0 else f64(base, i))
                if _store(result, m, i64(plan, 5), i64(plan, 6), start):
                    put_i64(plan, 8, 1)
                _add_change(m, models, base, deltas, change, result, i64(plan, 7), s)
            if sums:
                _add_products(m, models, deltas, sums + 8 * (models * (models + 1) // 2) * s)
    return bad


@_inline
def _elect(n, models, way, fields, kept, votes, zeros, total, weights):
    """The sum, or the mean, of the kept deltas whose vote has the sign of all votes, in place of these.

    `fields`: sign of the vote, weight in the mean, weight times factor, of every model.
    """
    if models <= 4:
        _elect_four(n, models, way, fields, kept, votes, zeros)
        return
    _fill(n, 0.0, total)
    _fill(n, 0.0, weights)
    for k in range(models):
        at, sign = kept + 8 * CHUNK * k, f64(fields, k)
        mean, factor = f64(fields, models + k), f64(fields, 2 * models + k)
        for i in range(n):
            value = f64(at, i)
            agrees = (sign * value > 0.0) if f64(votes, i) >= 0.0 else (sign * value < 0.0)
            put_f64(total, i, f64(total, i) + (factor * value if agrees else 0.0))
            put_f64(weights, i, f64(weights, i) + (mean if agrees else 0.0))
    for i in range(n):
        weight = f64(weights, i) if way == AGREEING_MEAN else 1.0
        put_f64(votes, i, f64(total, i) / (weight if weight != 0.0 else 1.0))


@_inline
def _elect_four(n, models, way, fields, kept, votes, zeros):
    """`_elect` of up to four models in one loop: most merges are of no more."""
    a, p, u, f = kept, f64(fields, 0), f64(fields, models), f64(fields, 2 * models)
    b = c = d = zeros
    q = r = s = v = w = x = g = h = j = 0.0
    if models > 1:
        b, q, v, g = kept + 8 * CHUNK, f64(fields, 1), f64(fields, models + 1), f64(fields, 2 * models + 1)
    if models > 2:
        c, r, w, h = kept + 16 * CHUNK, f64(fields, 2), f64(fields, models + 2), f64(fields, 2 * models + 2)
    if models > 3:
        d, s, x, j = kept + 24 * CHUNK, f64(fields, 3), f64(fields, models + 3), f64(fields, 2 * models + 3)
    is_mean = way == AGREEING_MEAN
    for i in range(n):
        elected = 1.0 if f64(votes, i) >= 0.0 else -1.0
        one, two, three, four = f64(a, i), f64(b, i), f64(c, i), f64(d, i)
        total = f * one if p * one * elected > 0.0 else 0.0
        weight = u if p * one * elected > 0.0 else 0.0
        total += g * two if q * two * elected > 0.0 else 0.0
        weight += v if q * two * elected > 0.0 else 0.0
        total += h * three if r * three * elected > 0.0 else 0.0
        weight += w if r * three * elected > 0.0 else 0.0
        total += j * four if s * four * elected > 0.0 else 0.0
        weight += x if s * four * elected > 0.0 else 0.0
        weight = weight if is_mean else 1.0
        put_f64(votes, i, total / (weight if weight != 0.0 else 1.0))


@_inline
def _add_change(n, models, base, deltas, change, result, sums, segment):
    """Adds the inner products of the result minus the base with every delta and itself to a plan's sums."""
    if sums:
        for i in range(n):
            put_f64(change, i, f64(result, i) - f64(base, i))
        _add_dots(n, change, models + 1, deltas, sums + 8 * (models + 1) * segment)


def pointwise(inputs, codes, count, n, segment, first, keys, plans, plan_count, sums, zeros):
    """Methods that look at one entry of every model at a time. Plans as in `masked`, but for their own `numbers`, and
    with the address of a factor per segment (float64) at the place of the bits'.
    """
    bad = 0
    models = count - 1
    base = zeros + 8 * CHUNK
    deltas = base + 8 * CHUNK
    change = deltas + 8 * CHUNK * models
    result = change + 8 * CHUNK
    total, touched = result + 8 * CHUNK, result + 8 * CHUNK * 2
    for s in range((n + segment - 1) // segment):
        stop = min(n, (s + 1) * segment)
        for start in range(s * segment, stop, CHUNK):
            m = min(CHUNK, stop - start)
            bad |= _load_deltas(inputs, codes, count, start, m, zeros, base)
            for p in range(plan_count):
                plan = plans + 8 * PLAN * p
                way, numbers = i64(plan, 1), i64(plan, 2)
                _fill(m, 0.0, total)
                _fill(m, 0.0, touched)
                if way == NEARSWAP:
                    t = f64(numbers, 0)
                    _load(i64(inputs, 1), i64(codes, 1), start, m, zeros, total)
                    for i in range(m):
                        share = min(max(t / max(abs(f64(deltas, i)), 1e-300), 0.0), 1.0)
                        one = f64(total, i)
                        put_f64(result, i, one if share == 1.0 else share * one + (1.0 - share) * f64(base, i))
                elif way == FUSION:
                    least, factor = f64(numbers, 0), f64(i64(plan, 3), s)
                    _load(i64(inputs, 1), i64(codes, 1), start, m, zeros, total)
                    for i in range(m):
                        moved = abs(f64(deltas, i)) * factor >= least
                        put_f64(result, i, f64(total, i) if moved else f64(base, i))
                elif way == VARM_ENTRY:
                    for k in range(models):
                        at = deltas + 8 * CHUNK * k
                        for i in range(m):
                            square = f64(at, i) * f64(at, i)
                            put_f64(touched, i, f64(touched, i) + square)
                            put_f64(total, i, f64(total, i) + square * f64(at, i))
                    for i in range(m):
                        squares = f64(touched, i)
                        moved = f64(total, i) / (squares if squares > 0.0 else 1.0)
                        put_f64(result, i, f64(base, i) + moved if moved != 0.0 else f64(base, i))
                else:
                    least = f64(numbers, 0)
                    for k in range(models):
                        at = deltas + 8 * CHUNK * k
                        for i in range(m):
                            put_f64(touched, i, f64(touched, i) + (1.0 if abs(f64(at, i)) > least else 0.0))
                    for k in range(models):
                        at, alone = deltas + 8 * CHUNK * k, f64(numbers, 1 + k)
                        for i in range(m):
                            value = f64(at, i) if abs(f64(at, i)) > least else 0.0
                            share = alone if f64(touched, i) == 1.0 else 1.0 / max(f64(touched, i), 1.0)
                            put_f64(total, i, f64(total, i) + value * share)
                    for i in range(m):
                        moved = f64(total, i)
                        put_f64(result, i, f64(base, i) + moved if moved != 0.0 else f64(base, i))
                if _store(result, m, i64(plan, 5), i64(plan, 6), start):
                    put_i64(plan, 8, 1)
                _add_change(m, models, base, deltas, change, result, i64(plan, 7), s)
            if sums:
                _add_products(m, models, deltas, sums + 8 * (models * (models + 1) // 2) * s)
    return bad


def touched(inputs, codes, count, n, least, sums, zeros):
    """Per model, entries with |delta| > least (float64 at `least`): touched by it alone, and by others too. int64."""
    bad = 0
    models = count - 1
    deltas = zeros + 8 * CHUNK * 2
    by = deltas + 8 * CHUNK * models
    limit = f64(least, 0)
    for start in range(0, n, CHUNK):
        m = min(CHUNK, n - start)
        bad |= _load_deltas(inputs, codes, count, start, m, zeros, zeros + 8 * CHUNK)
        _fill(m, 0.0, by)
        for k in range(models):
            for i in range(m):
                put_f64(by, i, f64(by, i) + (1.0 if abs(f64(deltas + 8 * CHUNK * k, i)) > limit else 0.0))
        for k in range(models):
            alone = shared = 0
            for i in range(m):
                mine = abs(f64(deltas + 8 * CHUNK * k, i)) > limit
                alone += np.int64(mine & (f64(by, i) == 1.0))
                shared += np.int64(mine & (f64(by, i) > 1.0))
            put_i64(sums, 2 * k, i64(sums, 2 * k) + alone)
            put_i64(sums, 2 * k + 1, i64(sums, 2 * k + 1) + shared)
    return bad


@_inline
def _softmax_terms(address, code, start, stop, zeros, to):
    """The row's largest number and the sum of exp(number - largest)."""
    largest = -np.inf
    for at in range(start, stop, CHUNK):
        m = min(CHUNK, stop - at)
        _load(address, code, at, m, zeros, to)
        for i in range(m):
            largest = max(largest, f64(to, i))
    total = 0.0
    for at in range(start, stop, CHUNK):
        m = min(CHUNK, stop - at)
        _load(address, code, at, m, zeros, to)
        for i in range(m):
            total += np.exp(f64(to, i) - largest)
    return largest, total


def row_divergences(inputs, codes, n, row, to, zeros):
    """Per row, KL(softmax(model) || softmax(base)) in nats, both with 1e-8 added; input 0 is the base. float64."""
    bad = 0
    values = zeros + 8 * CHUNK
    for s in range((n + row - 1) // row):
        start, stop = s * row, min(n, (s + 1) * row)
        q_top, q_sum = _softmax_terms(i64(inputs, 0), i64(codes, 0), start, stop, zeros, values)
        p_top, p_sum = _softmax_terms(i64(inputs, 1), i64(codes, 1), start, stop, zeros, values)
        divergence = 0.0
        for at in range(start, stop, CHUNK):
            m = min(CHUNK, stop - at)
            bad |= _load_all(inputs, codes, 2, at, m, zeros, values)
            for i in range(m):
                q = np.exp(f64(values, i) - q_top) / q_sum + 1e-8
                p = np.exp(f64(values + 8 * CHUNK, i) - p_top) / p_sum + 1e-8
                divergence += p * np.log(p / q)
        put_f64(to, s, divergence)
    return bad


def draws(key, first, n, to):
    """The generator's numbers for entries first..first+n, from index `first` % 4 on. uint32, room for n + 7."""
    _philox(U64(key), first, n, to)
    return 0


KERNELS = {
    kernel.__name__: kernel
    for kernel in (draws, gram, linear, masked, narrow, pointwise, row_divergences, scores, touched)
}
