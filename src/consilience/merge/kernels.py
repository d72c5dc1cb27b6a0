"""The compiled loops of merging. This file imports numba: only `merge/native.py` does that, and only when it compiles.

Every kernel goes over one block of a tensor: `n` entries of each input at the addresses in `inputs`, stored as `codes`
say. Input 0 is the base where there is one. Numbers are worked on in float64, CHUNK entries at a time, and rounded to
what is stored at the end.
Sums are taken over segments of `segment` entries, so that they do not depend on how a tensor is cut into blocks.

Arguments are whole numbers (sizes and addresses of arrays), so that compiled code can be kept as one object file
per kernel and called without numba. Names ending in `_at` are addresses of arrays of the type in the comment.
Kernels return 0, or bit k set where input k holds a number that is not finite, bit 62 where the result does.
"""

# mypy: ignore-errors
# numba types these functions, by its own rules.
from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

CHUNK = 256  # so that a chunk of everything fits in the nearest cache
RUN = 16  # scores that are looked at together for one within a bracket
BF16, F16, F32, F64 = 0, 1, 2, 3
RESULT = 1 << 62

# Ways to make numbers 0 before they are combined.
KEEP_ALL, KEEP_BAND, KEEP_RANDOM, KEEP_RANDOM_BY_RANK, KEEP_SPREAD, KEEP_REMEMBERED = 0, 1, 2, 3, 4, 5
# Ways to combine.
SUM, AGREEING_MEAN, AGREEING_SUM = 0, 1, 2
NEARSWAP, VARM_ENTRY, RAM, FUSION = 0, 1, 2, 3
# What a threshold is on.
MAGNITUDE, SPREAD, IMPORTANCE = 0, 1, 2


def _typed(llvm: Any, bits: int) -> Any:
    return {("f", 32): ir.FloatType(), ("f", 64): ir.DoubleType()}.get((llvm, bits)) or ir.IntType(bits)


def _loader(kind: str, bits: int, numba_type: Any) -> Any:
    @intrinsic
    def load(typing_context, address, index):
        def codegen(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], ir.PointerType(_typed(kind, bits)))
            return builder.load(builder.gep(pointer, [args[1]]))

        return numba_type(types.int64, types.int64), codegen

    return load


def _storer(kind: str, bits: int, numba_type: Any) -> Any:
    @intrinsic
    def store(typing_context, address, index, value):
        def codegen(context, builder, signature, args):
            pointer = builder.inttoptr(args[0], ir.PointerType(_typed(kind, bits)))
            builder.store(args[2], builder.gep(pointer, [args[1]]))
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, numba_type), codegen

    return store


def _bitcast(to_kind: str, bits: int, source: Any, target: Any) -> Any:
    @intrinsic
    def cast(typing_context, value):
        def codegen(context, builder, signature, args):
            return builder.bitcast(args[0], _typed(to_kind, bits))

        return target(source), codegen

    return cast


u8 = _loader("i", 8, types.uint8)
u16 = _loader("i", 16, types.uint16)
u32 = _loader("i", 32, types.uint32)
u64 = _loader("i", 64, types.uint64)
i64 = _loader("i", 64, types.int64)
f32 = _loader("f", 32, types.float32)
f64 = _loader("f", 64, types.float64)
put_u8 = _storer("i", 8, types.uint8)
put_u16 = _storer("i", 16, types.uint16)
put_u32 = _storer("i", 32, types.uint32)
put_u64 = _storer("i", 64, types.uint64)
put_i64 = _storer("i", 64, types.int64)
put_f32 = _storer("f", 32, types.float32)
put_f64 = _storer("f", 64, types.float64)
float_of = _bitcast("f", 32, types.uint32, types.float32)
bits_of_float = _bitcast("i", 32, types.float32, types.uint32)
bits_of = _bitcast("i", 64, types.float64, types.uint64)
double_of = _bitcast("f", 64, types.uint64, types.float64)


@intrinsic
def bfloat16_of(typing_context, value):
    """The nearest bfloat16 to a number's nearest float32, ties to even.

    By way of float32 because a weight of 0.3 is none in binary: what lies 1e-16 beside a tie is a tie. Written in
    LLVM's terms because numba widens arithmetic on 32 bits to 64.
    """

    def codegen(context, builder, signature, args):
        word = ir.IntType(32)
        bits = builder.bitcast(builder.fptrunc(args[0], ir.FloatType()), word)
        even = builder.and_(builder.lshr(bits, word(16)), word(1))
        bits = builder.lshr(builder.add(builder.add(bits, word(0x7FFF)), even), word(16))
        return builder.trunc(bits, ir.IntType(16))

    return types.uint16(types.float64), codegen


@intrinsic
def nonzero8(typing_context, address, index):
    """Of eight float64 from 8 * index on, a bit each, the first the lowest: whether it is not 0."""

    def codegen(context, builder, signature, args):
        eight = ir.VectorType(ir.DoubleType(), 8)
        pointer = builder.gep(builder.inttoptr(args[0], ir.PointerType(eight)), [args[1]])
        zeros = ir.Constant(eight, [ir.Constant(ir.DoubleType(), 0.0)] * 8)
        return builder.bitcast(builder.fcmp_unordered("!=", builder.load(pointer, align=8), zeros), ir.IntType(8))

    return types.uint8(types.int64, types.int64), codegen


@intrinsic
def keep8(typing_context, address, index, bits):
    """Sets those of eight float64 from 8 * index on to 0 whose bit is not set."""

    def codegen(context, builder, signature, args):
        eight = ir.VectorType(ir.DoubleType(), 8)
        pointer = builder.gep(builder.inttoptr(args[0], ir.PointerType(eight)), [args[1]])
        zeros = ir.Constant(eight, [ir.Constant(ir.DoubleType(), 0.0)] * 8)
        mask = builder.bitcast(args[2], ir.VectorType(ir.IntType(1), 8))
        builder.store(builder.select(mask, builder.load(pointer, align=8), zeros), pointer, align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.uint8), codegen


_inline = njit(inline="never", error_model="numpy", nogil=True, no_cpython_wrapper=True)
# Sums side by side in the processor's registers: always the same ones, whatever the threads and blocks.
_sum = njit(
    inline="never", error_model="numpy", nogil=True, no_cpython_wrapper=True, fastmath={"reassoc", "contract", "nsz"}
)
U32, U64 = np.uint32, np.uint64


@_inline
def _load(address, code, start, n, to):
    """Entries start..start+n of an input as float64 at `to`. Returns whether one of them is not finite."""
    if code == BF16:
        largest = np.uint16(0)
        for i in range(n):
            bits = u16(address, start + i)
            largest = max(largest, np.uint16(bits & np.uint16(0x7FFF)))
            put_f64(to, i, np.float64(float_of(U32(U32(bits) << U32(16)))))
        return largest >= 0x7F80
    if code == F32:
        largest32 = U32(0)
        for i in range(n):
            largest32 = max(largest32, U32(u32(address, start + i) & U32(0x7FFFFFFF)))
            put_f64(to, i, np.float64(f32(address, start + i)))
        return largest32 >= 0x7F800000
    if code == F16:
        largest = np.uint16(0)
        for i in range(n):
            bits = u16(address, start + i)
            largest = max(largest, np.uint16(bits & np.uint16(0x7FFF)))
            # The exponent's bias differs by 112; a power of two scales subnormal numbers exactly too.
            size = np.float64(float_of(U32(U32(bits & np.uint16(0x7FFF)) << U32(13)))) * 5.192296858534828e33
            put_f64(to, i, -size if bits & np.uint16(0x8000) else size)
        return largest >= 0x7C00
    largest64 = U64(0)
    for i in range(n):
        largest64 = max(largest64, u64(address, start + i) & U64(0x7FFFFFFFFFFFFFFF))
        put_f64(to, i, f64(address, start + i))
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
def _load_all(inputs, codes, count, start, n, to):
    bad = 0
    for k in range(count):
        if _load(i64(inputs, k), i64(codes, k), start, n, to + 8 * CHUNK * k):
            bad |= 1 << k
    return bad


@_inline
def _subtract(n, one, other, to):
    for i in range(n):
        put_f64(to, i, f64(one, i) - f64(other, i))


@_sum
def _dot(n, one, other):
    total = 0.0
    for i in range(n):
        total += f64(one, i) * f64(other, i)
    return total


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
def _subtract_to_float(n, one, other, to):
    for i in range(n):
        put_f32(to, i, np.float32(f64(one, i) - f64(other, i)))


@_sum
def _dot_of_floats(n, one, other):
    total = np.float32(0.0)
    for i in range(n):
        total += f32(one, i) * f32(other, i)
    return np.float64(total)


@_inline
def _statistics(n, count, with_base, values, result, room, sums):
    """Adds the inner products of all deltas, the result's last, to the sums at `sums`.

    Deltas are against the base; without one, the models' against the result, and only their squares. They are made
    for the manifest: a chunk's sums are in float32, and right to about 1e-6.
    """
    vectors = 0
    against = values if with_base else result
    for k in range(1 if with_base else 0, count):
        _subtract_to_float(n, values + 8 * CHUNK * k, against, room + 4 * CHUNK * vectors)
        vectors += 1
    if with_base:
        _subtract_to_float(n, result, values, room + 4 * CHUNK * vectors)
        vectors += 1
    pair = 0
    for a in range(vectors):
        for b in range(a, vectors):
            if with_base or a == b:
                dot = _dot_of_floats(n, room + 4 * CHUNK * a, room + 4 * CHUNK * b)
                put_f64(sums, pair, f64(sums, pair) + dot)
            pair += 1


def gram(inputs, codes, count, with_base, n, segment, sums, pairs, work):
    """Inner products of all pairs of inputs (of deltas, with a base), per segment: float64 [segments, pairs]."""
    bad = 0
    deltas = work + 8 * CHUNK * count
    for s in range((n + segment - 1) // segment):
        stop = min(n, (s + 1) * segment)
        row = sums + 8 * pairs * s
        for start in range(s * segment, stop, CHUNK):
            m = min(CHUNK, stop - start)
            bad |= _load_all(inputs, codes, count, start, m, work)
            vectors, at = count, work
            if with_base:
                vectors, at = count - 1, deltas
                for k in range(vectors):
                    _subtract(m, work + 8 * CHUNK * (k + 1), work, deltas + 8 * CHUNK * k)
            pair = 0
            for a in range(vectors):
                for b in range(a, vectors):
                    dot = _dot(m, at + 8 * CHUNK * a, at + 8 * CHUNK * b)
                    put_f64(row, pair, f64(row, pair) + dot)
                    pair += 1
    return bad


@_inline
def _inner_products(n, first, count, values, room, sums):
    """Adds the inner products of input 0 and all others minus it, from the `first` on, to the sums at `sums`.

    They are made for the manifest: a chunk's sums are in float32, and right to about 1e-6.
    """
    for k in range(first, count):
        if k == 0:
            for i in range(n):
                put_f32(room, i, np.float32(f64(values, i)))
        else:
            _subtract_to_float(n, values + 8 * CHUNK * k, values, room + 4 * CHUNK * k)
    pair = 0
    for a in range(first, count):
        for b in range(a, count):
            dot = _dot_of_floats(n, room + 4 * CHUNK * a, room + 4 * CHUNK * b)
            put_f64(sums, pair, f64(sums, pair) + dot)
            pair += 1


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


def linear(inputs, codes, count, n, segment, plans, plan_count, first, sums, pairs, work):
    """sum_k c_k x_k, for each plan, of which `plans` has a row of six int64: address of the coefficients (float64),
    whether they are one row per segment, whether a chunk that all inputs hold the same bits in stays as it is, address
    and code of the result, and, written here, whether it is not finite somewhere.

    See `_inner_products` for what goes to `sums` when it is not 0: float64 [segments, pairs].
    """
    bad = 0
    result = work + 8 * CHUNK * count
    room = result + 8 * CHUNK
    for s in range((n + segment - 1) // segment):
        stop = min(n, (s + 1) * segment)
        for start in range(s * segment, stop, CHUNK):
            m = min(CHUNK, stop - start)
            bad |= _load_all(inputs, codes, count, start, m, work)
            same = _all_same(inputs, codes, count, start, m)
            for p in range(plan_count):
                plan = plans + 8 * 6 * p
                source = result
                if same and i64(plan, 2):
                    source = work
                else:
                    _mix(m, count, i64(plan, 0) + 8 * count * s * i64(plan, 1), work, result)
                if _store(source, m, i64(plan, 3), i64(plan, 4), start):
                    put_i64(plan, 5, 1)
            if sums:
                _inner_products(m, first, count, work, room, sums + 8 * pairs * s)
    return bad


@_inline
def _deltas(inputs, codes, count, start, n, work, deltas):
    """Loads everything to `work` and every model minus the base, input 0, to `deltas`."""
    bad = _load_all(inputs, codes, count, start, n, work)
    for k in range(count - 1):
        _subtract(n, work + 8 * CHUNK * (k + 1), work, deltas + 8 * CHUNK * k)
    return bad


@_inline
def _spread(n, models, deltas, to):
    """The squared differences of all pairs: exactly 0 where all agree, and the same in any order of two models."""
    for i in range(n):
        put_f64(to, i, 0.0)
    for a in range(models):
        for b in range(a + 1, models):
            for i in range(n):
                apart = f64(deltas + 8 * CHUNK * a, i) - f64(deltas + 8 * CHUNK * b, i)
                put_f64(to, i, f64(to, i) + apart * apart)


@_inline
def _score(kind, model, n, models, deltas, row_factor, to):
    if kind == SPREAD:
        _spread(n, models, deltas, to)
    else:
        at = deltas + 8 * CHUNK * model
        for i in range(n):
            put_f64(to, i, abs(f64(at, i)) * row_factor)


def scores(inputs, codes, count, kind, model, n, factor, to, work):
    """The scores of n entries, for IMPORTANCE of one row with that factor: float64 at `to`."""
    bad = 0
    deltas = work + 8 * CHUNK * count
    for start in range(0, n, CHUNK):
        m = min(CHUNK, n - start)
        bad |= _deltas(inputs, codes, count, start, m, work, deltas)
        _score(kind, model, m, count - 1, deltas, f64(factor, 0) if kind == IMPORTANCE else 1.0, to + 8 * start)
    return bad


@_inline
def _bin(n, score, low, high, shift, bins):
    for run in range(0, n, RUN):
        end = min(run + RUN, n)
        inside = 0
        for i in range(run, end):
            bits = bits_of(f64(score, i))
            inside += np.int64((bits > low) & (bits < high))
        if inside:
            for i in range(run, end):
                bits = bits_of(f64(score, i))
                if bits > low and bits < high:
                    place = 3 * np.int64((bits - low) >> shift)
                    put_u64(bins, place, u64(bins, place) + U64(1))
                    put_u64(bins, place + 1, min(u64(bins, place + 1), bits))
                    put_u64(bins, place + 2, max(u64(bins, place + 2), bits))


def narrow(inputs, codes, count, kind, n, row, row_factors, brackets, bracket_count, bins, work):
    """Counts scores for exact selection, for each bracket of their bits: int64 model, low, high, shift, bins' place.

    A score is not negative, so its bits as a whole number are in its order. A bracket's row goes on with four counts:
    of scores above `high`, above 0, at `low`, at `high`; the ends are counted apart because weights in bfloat16 have
    few different deltas, and a sampled end is one of them. Those between go into `bins`, uint64 [bracket, bin, 3]: how
    many, the smallest, the largest; a bin is (bits - low) >> shift.
    """
    bad = 0
    deltas = work + 8 * CHUNK * count
    score = deltas + 8 * CHUNK * (count - 1)
    for s in range((n + row - 1) // row):
        factor = f64(row_factors, s) if kind == IMPORTANCE else 1.0
        stop = min(n, (s + 1) * row)
        for start in range(s * row, stop, CHUNK):
            m = min(CHUNK, stop - start)
            bad |= _deltas(inputs, codes, count, start, m, work, deltas)
            made = -1
            for j in range(bracket_count):
                at = brackets + 8 * 9 * j
                model = i64(at, 0)
                if model != made:
                    _score(kind, model, m, count - 1, deltas, factor, score)
                    made = model
                low, high, shift = U64(i64(at, 1)), U64(i64(at, 2)), U64(i64(at, 3))
                above = positive = at_low = at_high = inside = 0
                for i in range(m):
                    bits = bits_of(f64(score, i))
                    above += np.int64(bits > high)
                    positive += np.int64(bits != U64(0))
                    at_low += np.int64(bits == low)
                    at_high += np.int64(bits == high)
                    inside += np.int64((bits > low) & (bits < high))
                put_i64(at, 5, i64(at, 5) + above)
                put_i64(at, 6, i64(at, 6) + positive)
                put_i64(at, 7, i64(at, 7) + at_low)
                put_i64(at, 8, i64(at, 8) + at_high)
                if inside:
                    _bin(m, score, low, high, shift, bins + i64(at, 4))
    return bad


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
def _keep_by_rank(inputs, codes, count, start, stop, numbers, work, deltas, tables):
    """Per model, what a draw must be below to keep an entry of the row start..stop, by the bin of its size.

    uint32 at `tables`, RANK_BINS float64 apart. [density - epsilon, density + epsilon], linear in the rank; the
    numbers of a bin share their mean rank. Returns the address of the models' largest sizes.
    """
    size = stop - start
    models = count - 1
    largest = tables + 8 * RANK_BINS * models
    octaves = largest + 8 * models + 8 * CHUNK
    for k in range(models):
        put_i64(largest, k, 0)
        for b in range(RANK_BINS):
            put_u64(tables + 8 * RANK_BINS * k, b, U64(0))
    for at in range(start, stop, CHUNK):
        m = min(CHUNK, stop - at)
        _deltas(inputs, codes, count, at, m, work, deltas)
        for k in range(models):
            place = octaves + 2 * (ROW_RANKED * k + (at - start if size <= ROW_RANKED else 0))
            _octaves(m, deltas + 8 * CHUNK * k, place)
            top = np.uint16(0)
            for i in range(m):
                top = max(top, u16(place, i))
            put_i64(largest, k, max(i64(largest, k), np.int64(top)))
    for at in range(start, stop, CHUNK):
        m = min(CHUNK, stop - at)
        if size > ROW_RANKED:
            _deltas(inputs, codes, count, at, m, work, deltas)
        for k in range(models):
            place = octaves + 2 * (ROW_RANKED * k + (at - start if size <= ROW_RANKED else 0))
            if size > ROW_RANKED:
                _octaves(m, deltas + 8 * CHUNK * k, place)
            _tally(m, place, i64(largest, k) - (RANK_BINS - 1), tables + 8 * RANK_BINS * k)
    for k in range(models):
        table = tables + 8 * RANK_BINS * k
        density, epsilon = f64(numbers, 2 + 8 * k + 2), f64(numbers, 2 + 8 * k + 3)
        lowest = (density - epsilon) * 4294967296.0
        step = 2 * epsilon / max(size - 1, 1) * 4294967296.0
        below = 0
        for b in range(RANK_BINS):
            here = np.int64(u32(table, b)) + np.int64(u32(table, RANK_BINS + b))
            # A draw is a whole number: below a limit is below the next whole one.
            limit = np.ceil(lowest + step * (below + 0.5 * (here - 1)))
            put_u32(table, b, U32(np.int64(min(max(limit, 0.0), 4294967295.0))))
            below += here
    return largest


@_inline
def _tally(n, octaves, least, table):
    """Counts by bin, in two tables in turn: one would wait for itself where neighbours are alike."""
    for i in range(0, n - 1, 2):
        one = max(np.int64(u16(octaves, i)) - least, 0)
        other = RANK_BINS + max(np.int64(u16(octaves, i + 1)) - least, 0)
        put_u32(table, one, U32(u32(table, one) + U32(1)))
        put_u32(table, other, U32(u32(table, other) + U32(1)))
    if n % 2:
        one = max(np.int64(u16(octaves, n - 1)) - least, 0)
        put_u32(table, one, U32(u32(table, one) + U32(1)))


@_inline
def _limits(n, octaves, least, table, to):
    for i in range(n):
        put_u32(to, i, u32(table, max(np.int64(u16(octaves, i)) - least, 0)))


@_inline
def _keep(keep, n, models, flat, numbers, keys, deltas, score, tables, largest):
    """Sets deltas to 0 where they are not kept."""
    if keep == KEEP_SPREAD:
        _spread(n, models, deltas, score)
        least = f64(numbers, 1)
        for k in range(models):
            at = deltas + 8 * CHUNK * k
            for i in range(n):
                put_f64(at, i, f64(at, i) if f64(score, i) >= least else 0.0)
        return
    for k in range(models):
        at = deltas + 8 * CHUNK * k
        low, high, density = f64(numbers, 2 + 8 * k), f64(numbers, 2 + 8 * k + 1), f64(numbers, 2 + 8 * k + 2)
        if keep == KEEP_BAND:
            for i in range(n):
                size = abs(f64(at, i))
                put_f64(at, i, f64(at, i) if (size >= low) & (size <= high) else 0.0)
        elif density < 1.0:
            _philox(u64(keys, k), flat, n, score)
            draws = score + 4 * (flat % 4)
            if keep == KEEP_RANDOM:
                limit = density * 4294967296.0
                for i in range(n):
                    put_f64(at, i, f64(at, i) if np.float64(u32(draws, i)) < limit else 0.0)
            else:
                octaves = largest + 8 * models  # a chunk's room, before the row's
                limits = octaves + 2 * CHUNK
                _octaves(n, at, octaves)
                _limits(n, octaves, i64(largest, k) - (RANK_BINS - 1), tables + 8 * RANK_BINS * k, limits)
                for i in range(n):
                    put_f64(at, i, f64(at, i) if u32(draws, i) < u32(limits, i) else 0.0)


@_inline
def _remember(n, models, flat, deltas, bits, stride):
    """A bit per entry and model, set where the delta is not 0; `flat` is a multiple of 8."""
    for k in range(models):
        for byte in range((n + 7) // 8):
            put_u8(bits + stride * k + flat // 8, byte, nonzero8(deltas + 8 * CHUNK * k, byte))


@_inline
def _recall(n, models, flat, deltas, bits, stride):
    for k in range(models):
        for byte in range((n + 7) // 8):
            keep8(deltas + 8 * CHUNK * k, byte, u8(bits + stride * k + flat // 8, byte))


def kept(inputs, codes, count, n, segment, first, keep, numbers, keys, bits, stride, sums, work):
    """Per segment and model: sum |delta|, that of the kept, sum delta^2 of the kept. float64 [segments, models, 3].

    `numbers` (float64): scale of the whole, least spread, then 8 per model: least and largest size, density, epsilon,
    weight in the vote, weight in the mean, factor, 0. `keys` (uint64): the generator's, per model. `first` is the
    place of the block's first entry in its tensor. With `bits` not 0, what was kept is remembered there, a bit per
    entry of the tensor, `stride` bytes for each model.
    """
    bad = 0
    models = count - 1
    deltas = work + 8 * CHUNK * count
    score = deltas + 8 * CHUNK * models
    tables = score + 8 * CHUNK
    for s in range((n + segment - 1) // segment):
        stop = min(n, (s + 1) * segment)
        largest = 0
        if keep == KEEP_RANDOM_BY_RANK:
            largest = _keep_by_rank(inputs, codes, count, s * segment, stop, numbers, work, deltas, tables)
        for start in range(s * segment, stop, CHUNK):
            m = min(CHUNK, stop - start)
            bad |= _deltas(inputs, codes, count, start, m, work, deltas)
            for k in range(models):
                place = 3 * (s * models + k)
                put_f64(sums, place, f64(sums, place) + _size(m, deltas + 8 * CHUNK * k))
            _keep(keep, m, models, first + start, numbers, keys, deltas, score, tables, largest)
            if bits:
                _remember(m, models, first + start, deltas, bits, stride)
            for k in range(models):
                at = deltas + 8 * CHUNK * k
                place = 3 * (s * models + k)
                put_f64(sums, place + 1, f64(sums, place + 1) + _size(m, at))
                put_f64(sums, place + 2, f64(sums, place + 2) + _dot(m, at, at))
    return bad


@_sum
def _size(n, one):
    total = 0.0
    for i in range(n):
        total += abs(f64(one, i))
    return total


def masked(
    inputs, codes, count, n, segment, first, keep, way, numbers, keys, bits, stride, out, out_code, sums, pairs, work
):
    """The base plus a sum, or a mean of those with the elected sign, of the deltas that are kept. See `kept`."""
    bad = 0
    models = count - 1
    deltas = work + 8 * CHUNK * count
    score = deltas + 8 * CHUNK * models
    result, total, weight_sum = score + 8 * CHUNK, score + 16 * CHUNK, score + 24 * CHUNK
    tables = score + 32 * CHUNK
    scale = f64(numbers, 0)
    for s in range((n + segment - 1) // segment):
        stop = min(n, (s + 1) * segment)
        largest = 0
        if keep == KEEP_RANDOM_BY_RANK:
            largest = _keep_by_rank(inputs, codes, count, s * segment, stop, numbers, work, deltas, tables)
        for start in range(s * segment, stop, CHUNK):
            m = min(CHUNK, stop - start)
            bad |= _deltas(inputs, codes, count, start, m, work, deltas)
            if _all_same(inputs, codes, count, start, m):
                _copy_chunk(m, work, result)
            else:
                if keep == KEEP_REMEMBERED:
                    _recall(m, models, first + start, deltas, bits, stride)
                elif keep != KEEP_ALL:
                    _keep(keep, m, models, first + start, numbers, keys, deltas, score, tables, largest)
                for i in range(m):
                    put_f64(result, i, 0.0)
                for k in range(models):
                    at = deltas + 8 * CHUNK * k
                    weight = f64(numbers, 2 + 8 * k + 4) * f64(numbers, 2 + 8 * k + 6)
                    for i in range(m):
                        put_f64(result, i, f64(result, i) + weight * f64(at, i))
                if way != SUM:
                    for i in range(m):
                        put_f64(total, i, 0.0)
                        put_f64(weight_sum, i, 0.0)
                    for k in range(models):
                        at = deltas + 8 * CHUNK * k
                        vote, mean = f64(numbers, 2 + 8 * k + 4), f64(numbers, 2 + 8 * k + 5)
                        factor = mean * f64(numbers, 2 + 8 * k + 6)
                        for i in range(m):
                            value = f64(at, i)
                            elected = 1.0 if f64(result, i) >= 0.0 else -1.0
                            agrees = 1.0 if vote * value * elected > 0.0 else 0.0
                            put_f64(total, i, f64(total, i) + factor * value * agrees)
                            put_f64(weight_sum, i, f64(weight_sum, i) + mean * agrees)
                    if way == AGREEING_MEAN:
                        for i in range(m):
                            weights = f64(weight_sum, i)
                            weights = weights if weights != 0.0 else 1.0
                            put_f64(result, i, f64(total, i) / weights)
                    else:
                        _copy_chunk(m, total, result)
                if models == 1:
                    # All of a single model's delta is that model, even where the base's size would swallow it.
                    for i in range(m):
                        one, base = f64(work + 8 * CHUNK, i), f64(work, i)
                        change = scale * f64(result, i)
                        put_f64(result, i, one if change == one - base else base + change)
                else:
                    for i in range(m):
                        put_f64(result, i, f64(work, i) + scale * f64(result, i))
            if _store(result, m, out, out_code, start):
                bad |= RESULT
            if sums:
                _statistics(m, count, 1, work, result, deltas, sums + 8 * pairs * s)
    return bad


def pointwise(inputs, codes, count, n, segment, way, numbers, row_factors, out, out_code, sums, pairs, work):
    """Methods that look at one entry of every model at a time. `numbers` (float64) are the method's own."""
    bad = 0
    models = count - 1
    deltas = work + 8 * CHUNK * count
    result, total, touched = (
        deltas + 8 * CHUNK * models,
        deltas + 8 * CHUNK * (models + 1),
        deltas + 8 * CHUNK * (models + 2),
    )
    for s in range((n + segment - 1) // segment):
        stop = min(n, (s + 1) * segment)
        for start in range(s * segment, stop, CHUNK):
            m = min(CHUNK, stop - start)
            bad |= _deltas(inputs, codes, count, start, m, work, deltas)
            if _all_same(inputs, codes, count, start, m):
                _copy_chunk(m, work, result)
            elif way == NEARSWAP:
                t = f64(numbers, 0)
                for i in range(m):
                    share = min(max(t / max(abs(f64(deltas, i)), 1e-300), 0.0), 1.0)
                    one = f64(work + 8 * CHUNK, i)
                    put_f64(result, i, one if share == 1.0 else share * one + (1.0 - share) * f64(work, i))
            elif way == FUSION:
                least, factor = f64(numbers, 0), f64(row_factors, s)
                for i in range(m):
                    moved = abs(f64(deltas, i)) * factor >= least
                    put_f64(result, i, f64(work + 8 * CHUNK, i) if moved else f64(work, i))
            else:
                for i in range(m):
                    put_f64(total, i, 0.0)
                    put_f64(touched, i, 0.0)
                if way == VARM_ENTRY:
                    for k in range(models):
                        at = deltas + 8 * CHUNK * k
                        for i in range(m):
                            square = f64(at, i) * f64(at, i)
                            put_f64(touched, i, f64(touched, i) + square)
                            put_f64(total, i, f64(total, i) + square * f64(at, i))
                    for i in range(m):
                        squares = f64(touched, i)
                        put_f64(result, i, f64(work, i) + f64(total, i) / (squares if squares > 0.0 else 1.0))
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
                        put_f64(result, i, f64(work, i) + f64(total, i))
            if _store(result, m, out, out_code, start):
                bad |= RESULT
            if sums:
                _statistics(m, count, 1, work, result, deltas, sums + 8 * pairs * s)
    return bad


def touched(inputs, codes, count, n, least, sums, work):
    """Per model, entries with |delta| > least (float64 at `least`): touched by it alone, and by others too. int64."""
    bad = 0
    models = count - 1
    deltas = work + 8 * CHUNK * count
    by = deltas + 8 * CHUNK * models
    limit = f64(least, 0)
    for start in range(0, n, CHUNK):
        m = min(CHUNK, n - start)
        bad |= _deltas(inputs, codes, count, start, m, work, deltas)
        for i in range(m):
            put_f64(by, i, 0.0)
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
def _softmax_terms(address, code, start, stop, to):
    """The row's largest number and the sum of exp(number - largest)."""
    largest = -np.inf
    for at in range(start, stop, CHUNK):
        m = min(CHUNK, stop - at)
        _load(address, code, at, m, to)
        for i in range(m):
            largest = max(largest, f64(to, i))
    total = 0.0
    for at in range(start, stop, CHUNK):
        m = min(CHUNK, stop - at)
        _load(address, code, at, m, to)
        for i in range(m):
            total += np.exp(f64(to, i) - largest)
    return largest, total


def row_divergences(inputs, codes, n, row, to, work):
    """Per row, KL(softmax(model) || softmax(base)) in nats, both with 1e-8 added; input 0 is the base. float64."""
    bad = 0
    for s in range((n + row - 1) // row):
        start, stop = s * row, min(n, (s + 1) * row)
        q_top, q_sum = _softmax_terms(i64(inputs, 0), i64(codes, 0), start, stop, work)
        p_top, p_sum = _softmax_terms(i64(inputs, 1), i64(codes, 1), start, stop, work)
        divergence = 0.0
        for at in range(start, stop, CHUNK):
            m = min(CHUNK, stop - at)
            bad |= _load_all(inputs, codes, 2, at, m, work)
            for i in range(m):
                q = np.exp(f64(work, i) - q_top) / q_sum + 1e-8
                p = np.exp(f64(work + 8 * CHUNK, i) - p_top) / p_sum + 1e-8
                divergence += p * np.log(p / q)
        put_f64(to, s, divergence)
    return bad


def draws(key, first, n, to):
    """The generator's numbers for entries first..first+n, from index `first` % 4 on. uint32, room for n + 7."""
    _philox(U64(key), first, n, to)
    return 0


KERNELS = {
    kernel.__name__: kernel
    for kernel in (draws, gram, kept, linear, masked, narrow, pointwise, row_divergences, scores, touched)
}
