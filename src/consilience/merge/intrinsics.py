"""What the kernels need of the processor and numba has no word for: memory at an address, bits, eight numbers at once.

This file imports numba: see `merge/kernels.py`.
"""

# mypy: ignore-errors
# numba types these functions, by its own rules.
from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic


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
def keep8(typing_context, address, index, bits, to):
    """Eight float64 from 8 * index on, 0 where the bit is not set, to the same places at `to`."""

    def codegen(context, builder, signature, args):
        eight = ir.VectorType(ir.DoubleType(), 8)
        pointer = builder.gep(builder.inttoptr(args[0], ir.PointerType(eight)), [args[1]])
        zeros = ir.Constant(eight, [ir.Constant(ir.DoubleType(), 0.0)] * 8)
        mask = builder.bitcast(args[2], ir.VectorType(ir.IntType(1), 8))
        target = builder.gep(builder.inttoptr(args[3], ir.PointerType(eight)), [args[1]])
        builder.store(builder.select(mask, builder.load(pointer, align=8), zeros), target, align=8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.uint8, types.int64), codegen


@intrinsic
def at_least8(typing_context, address, index, limit):
    """Of eight float64 from 8 * index on, a bit each, the first the lowest: whether it is at least `limit`."""

    def codegen(context, builder, signature, args):
        eight = ir.VectorType(ir.DoubleType(), 8)
        pointer = builder.gep(builder.inttoptr(args[0], ir.PointerType(eight)), [args[1]])
        limits = ir.Constant(eight, ir.Undefined)
        for lane in range(8):
            limits = builder.insert_element(limits, args[2], ir.Constant(ir.IntType(32), lane))
        bits = builder.bitcast(builder.fcmp_ordered(">=", builder.load(pointer, align=8), limits), ir.IntType(8))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(types.int64, types.int64, types.float64), codegen


@intrinsic
def ones_in(typing_context, bits):
    """How many bits are set."""
    return types.int64(types.int64), lambda context, builder, signature, args: builder.ctpop(args[0])


@intrinsic
def lowest_one(typing_context, bits):
    """The place of the lowest bit that is set; there is one."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), codegen


@intrinsic
def fetch(typing_context, address):
    """Asks the processor to bring the 64 bytes at an address nearer. There need not be any."""

    def codegen(context, builder, signature, args):
        byte_pointer, number = ir.PointerType(ir.IntType(8)), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte_pointer, number, number, number])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(prefetch, [builder.inttoptr(args[0], byte_pointer), number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
