"""Products of float32 matrices on tensor cores, which multiply narrower numbers: operands are split into parts.

A float32 is the exact sum of three bfloat16 (8 + 8 + 8 bits); of its nine products of parts, the six greatest leave an
error under 2**-25 of the product. Two float16 keep 22 bits within a range of 2**30, so they need a scale; TF32 keeps
11.
Tensor cores truncate as they add, so only short sums are theirs: *promotion* adds those in float32 outside of them.

Source: Ootomo and Yokota, Recovering single precision accuracy from Tensor Cores, IJHPCA 2022; PTX ISA 8.4, wgmma.
"""

import itertools
import struct
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import cuda
from numba.cuda import types

from ..ptx import F32, I32, I64, SHARED, constant, device_function, emit, float_of, store_words, unpacked

CHANNELS = 16
"""Channels that are loaded, split and stored at a time."""


@dataclass(frozen=True)
class Arithmetic:
    """How float32 operands become products: `parts` of a `kind`, and which parts are multiplied, the smallest first.

    `scaled` operands are brought to 2**14 .. 2**15 by powers of two first. An operand is *ordinary* if it is zero or
    `lowest <= |x| < highest`; where any other takes part, results are computed again by the plain kernel.
    """

    kind: str
    parts: int
    products: tuple[tuple[int, int], ...]
    lowest: float = 0.0
    highest: float = 2.0**127
    scaled: bool = False

    @property
    def unit(self) -> int:
        """Channels in the 16 bytes that tensor cores take from a row of a matrix."""
        return 4 if self.kind == "tf32" else 8

    @property
    def depth(self) -> int:
        """Channels that one instruction sums."""
        return 2 * self.unit

    @property
    def products_of_stacked(self) -> tuple[tuple[int, int], ...]:
        """As `products`, where two parts of the left operand are stacked: 2i and 2i+1 are one, i. Some products come
        beside these, all of them smaller."""
        return tuple(dict.fromkeys((left // 2, right) for left, right in reversed(self.products)))[::-1]


SPLIT = ((1, 0), (0, 1), (0, 0))
ARITHMETIC = {
    # Below 2**-76 the last parts, or products with weights of 2**-40, would leave the range where nothing is lost.
    "strict": Arithmetic("bf16", 3, ((2, 0), (0, 2), (1, 1), *SPLIT), lowest=2.0**-76, highest=2.0**60),
    "fast": Arithmetic("f16", 2, SPLIT, highest=2.0**15, scaled=True),
    "tf32": Arithmetic("tf32", 1, ((0, 0),)),
    "fp16": Arithmetic("f16", 1, ((0, 0),), highest=2.0**15, scaled=True),
    "bf16": Arithmetic("bf16", 1, ((0, 0),)),
    "bf16x4": Arithmetic("bf16", 2, ((1, 1), *SPLIT)),
}
"""By the word that allows its rounding; bf16x4 keeps 16 bits, and stands in for TF32 where operands are transposed or
laid out: all four products are taken, so that those of 11 bits are exact, as TF32's are."""

LOWEST_WEIGHT, LOWEST_FACTOR = 2.0**-40, 2.0**-58
"""The least ordinary weight, and x or dy in a weight gradient, where there is a least: products are 2**-116 or more."""


def split(builder: Any, arithmetic: Arithmetic, values: list[Any]) -> list[list[Any]]:
    """The values' parts as 32-bit words, two values a word for 16-bit kinds: `[part][word]`."""
    kind, parts = arithmetic.kind, [list[Any]() for _ in range(arithmetic.parts)]
    if kind == "tf32":
        for part in parts:
            for i, value in enumerate(values):
                (word,) = emit(builder, "cvt.rna.tf32.f32 $0, $1;", "r", "f", [value], pure=True)
                part.append(word)
                values[i] = builder.fsub(value, builder.bitcast(word, F32))
        return parts
    for part in parts:
        for i in range(0, len(values), 2):
            pair = [values[i + 1], values[i]]  # The first value in the low half.
            (word,) = emit(builder, f"cvt.rn.{kind}x2.f32 $0, $1, $2;", "r", "ff", pair, pure=True)
            part.append(word)
            for half, rounded in enumerate(_halves(builder, kind, word)):
                values[i + half] = builder.fsub(values[i + half], rounded)
    return parts


def _halves(builder: Any, kind: str, word: Any) -> list[Any]:
    if kind == "bf16":  # The upper half of a float32.
        low, high = builder.shl(word, constant(16)), builder.and_(word, constant(-65536))
        return [builder.bitcast(low, F32), builder.bitcast(high, F32)]
    text = "{ .reg .b16 low, high; mov.b32 {low, high}, $2; cvt.f32.f16 $0, low; cvt.f32.f16 $1, high; }"
    return emit(builder, text, "ff", "r", [word], pure=True)


def are_strange(builder: Any, values: list[Any], lowest: float, highest: float) -> Any:
    """Whether any value is not ordinary: NaN, too great, or too small without being zero.

    Magnitudes are compared as integers, twice the word, since the sign is at its top; one less, zero is the greatest.
    """
    greatest = least = None
    for value in values:
        twice = builder.shl(builder.bitcast(value, I32), constant(1))
        greatest = twice if greatest is None else _better(builder, ">", twice, greatest)
        if lowest:
            below = builder.sub(twice, constant(1))
            least = below if least is None else _better(builder, "<", below, least)
    wrong = builder.icmp_unsigned(">=", greatest, _twice(highest))
    if lowest:
        wrong = builder.or_(wrong, builder.icmp_unsigned("<", least, builder.sub(_twice(lowest), constant(1))))
    return wrong


def _better(builder: Any, comparison: str, value: Any, than: Any) -> Any:
    return builder.select(builder.icmp_unsigned(comparison, value, than), value, than)


def _twice(number: float) -> Any:
    """Twice the word of a positive float32, as a signed number."""
    twice = 2 * struct.unpack("<I", struct.pack("<f", number))[0]
    return constant(twice - 2**32 if twice >= 2**31 else twice)


def _is_not_finite(builder: Any, words: list[Any]) -> Any:
    """Whether a float16 among these pairs is an infinity or NaN: times zero, it is NaN, and so are sums with it."""
    total = constant(0)
    for word in words:
        (total,) = emit(builder, "fma.rn.f16x2 $0, $1, $2, $3;", "r", "rrr", [word, constant(0), total], pure=True)
    return builder.icmp_signed("!=", builder.and_(total, constant(0x7FFF7FFF)), constant(0))


def splitter(arithmetic: Arithmetic, lowest: float, space: int = SHARED, count: int = CHANNELS) -> Any:
    """`store_split(values, address, part_step, group_step) -> int32`: `count` values of one pixel or filter, split, to
    memory in units of 16 bytes; the steps are in bytes. Not zero if a value was not ordinary."""
    address = types.int32 if space == SHARED else types.int64
    # Scaled values are finite, and under 2**15, or not ordinary: then their first part is an infinity or NaN too.
    is_finite_enough = arithmetic.scaled and not lowest

    def generate(builder: Any, arguments: list[Any]) -> Any:
        values, address, part_step, group_step = arguments
        values = unpacked(builder, values, count)
        wrong = None if is_finite_enough else are_strange(builder, values, lowest, arithmetic.highest)
        parts = split(builder, arithmetic, values)
        if wrong is None:
            wrong = _is_not_finite(builder, parts[0])
        for words in parts:
            at = address
            for i in range(0, len(words), 4):
                store_words(builder, at, words[i : i + 4], space)
                at = builder.add(at, group_step)
            address = builder.add(address, part_step)
        return builder.zext(wrong, I32)

    values = types.UniTuple(types.float32, count)
    return device_function(types.int32(values, address, address, address), generate)


def gatherer(count: int) -> Any:
    """`gather(address, step, some)`: `count` floats of device memory, `step` bytes apart; zeros from `some` on."""
    address, step, some = (f"${count + i}" for i in range(3))
    text = ["{ .reg .pred p; .reg .b64 at;"]
    for i in range(count):
        text.append(f"setp.gt.s32 p, {some}, {i}; mov.b32 ${i}, 0; mad.wide.s32 at, {step}, {i}, {address};")
        text.append(f"@p ld.global.nc.f32 ${i}, [at];")
    # Early-clobber results: the operands are read after the first of them are written.
    constraints = ",".join(["=&f"] * count + ["l", "r", "r"])

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        returned = ir.LiteralStructType([F32] * count) if count > 1 else F32
        function = ir.FunctionType(returned, [I64, I32, I32])
        result = builder.call(ir.InlineAsm(function, "\n".join([*text, "}"]), constraints, side_effect=True), arguments)
        return unpacked(builder, result, count) if count > 1 else [result]

    return device_function(types.UniTuple(types.float32, count)(types.int64, types.int32, types.int32), generate)


def _gather_whole(builder: Any, arguments: list[Any]) -> list[Any]:
    text = ["{ .reg .b64 at;"]
    for i in range(CHANNELS):
        text.append(f"mad.wide.s32 at, $17, {i}, $16; ld.global.nc.f32 ${i}, [at];")
    function = ir.FunctionType(ir.LiteralStructType([F32] * CHANNELS), [I64, I32])
    assembly = ir.InlineAsm(function, "\n".join([*text, "}"]), "=&f," * CHANNELS + "l,r", side_effect=True)
    return unpacked(builder, builder.call(assembly, arguments), CHANNELS)


def _gather_taps(builder: Any, arguments: list[Any]) -> list[Any]:
    text = ["{ .reg .pred p; .reg .b64 at; .reg .b32 offset, both, h, w;"]
    for i in range(CHANNELS):
        text.append(f"ld.shared.v2.b32 {{offset, both}}, [$21+{8 * i}]; mad.wide.s32 at, offset, 1, $16;")
        text.append("shr.s32 h, both, 16; add.s32 h, h, $17; and.b32 w, both, 65535; add.s32 w, w, $18;")
        text.append("setp.lt.u32 p, h, $19; setp.lt.and.u32 p, w, $20, p;")  # Unsigned, a negative row is a great one.
        text.append(f"mov.b32 ${i}, 0; @p ld.global.nc.f32 ${i}, [at];")
    function = ir.FunctionType(ir.LiteralStructType([F32] * CHANNELS), [I64, *[I32] * 5])
    assembly = ir.InlineAsm(function, "\n".join([*text, "}"]), "=&f," * CHANNELS + "l" + ",r" * 5, side_effect=True)
    return unpacked(builder, builder.call(assembly, arguments), CHANNELS)


def _scatter(builder: Any, arguments: list[Any]) -> None:
    values = unpacked(builder, arguments[0], CHANNELS)
    text = ["{ .reg .pred p; .reg .b64 at; mov.b64 at, $16;"]
    for i in range(CHANNELS):
        text.append(f"setp.gt.s32 p, $18, {i}; @p st.global.f32 [at], ${i}; add.s64 at, at, $17;")
    emit(builder, "\n".join([*text, "}"]), "", "f" * CHANNELS + "llr", [*values, *arguments[1:]])


def scaler(count: int) -> Any:
    """`scale(values, factor)`: `count` values times a factor."""

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        return [builder.fmul(value, arguments[1]) for value in unpacked(builder, arguments[0], count)]

    kind = types.UniTuple(types.float32, count)
    return device_function(kind(kind, types.float32), generate)


def _added(builder: Any, arguments: list[Any]) -> list[Any]:
    values, more = (unpacked(builder, each, CHANNELS) for each in arguments)
    return [builder.fadd(a, b) for a, b in zip(values, more, strict=True)]


def _rectified(builder: Any, arguments: list[Any]) -> list[Any]:
    zero = ir.Constant(F32, 0.0)  # NaN is not less, and so stays NaN, as in relu.
    return [
        builder.select(builder.fcmp_ordered("<", value, zero), zero, value)
        for value in unpacked(builder, arguments[0], CHANNELS)
    ]


def _scale_rows(builder: Any, arguments: list[Any]) -> list[Any]:
    values, (upper, lower) = unpacked(builder, arguments[0], CHANNELS), arguments[1:]
    return [builder.fmul(value, lower if i & 2 else upper) for i, value in enumerate(values)]


def _greatest(builder: Any, arguments: list[Any]) -> Any:
    values, infinity = unpacked(builder, arguments[1], CHANNELS), constant(0x7F800000)
    word = arguments[0]
    for value in values:
        magnitude = builder.and_(builder.bitcast(value, I32), constant(0x7FFFFFFF))
        magnitude = builder.select(builder.icmp_signed("<", magnitude, infinity), magnitude, constant(0))
        word = builder.select(builder.icmp_signed(">", magnitude, word), magnitude, word)
    return word


def _greatest_of_eight(builder: Any, arguments: list[Any]) -> Any:
    text = "ld.global.v4.b32 {$0, $1, $2, $3}, [$8]; ld.global.v4.b32 {$4, $5, $6, $7}, [$8+16];"
    function = ir.FunctionType(ir.LiteralStructType([I32] * 8), [I64])
    words = builder.call(ir.InlineAsm(function, text, "=&r," * 8 + "l,~{memory}", side_effect=True), arguments)
    word, *others = unpacked(builder, words, 8)
    for other in others:
        word = builder.select(builder.icmp_signed(">", other, word), other, word)
    return word


SIXTEEN = types.UniTuple(types.float32, CHANNELS)
gather = gatherer(CHANNELS)
gather_whole = device_function(SIXTEEN(types.int64, types.int32), _gather_whole)
"""`gather_whole(address, step)`: sixteen floats, `step` bytes apart."""
gather_taps = device_function(SIXTEEN(types.int64, *[types.int32] * 5), _gather_taps)
"""`gather_taps(address, h, w, height, width, table)`: sixteen inputs of the window from (h, w) on, zeros outside; the
table in shared memory says for each how far it lies from the first in bytes, and in rows and columns."""
scatter = device_function(types.void(SIXTEEN, types.int64, types.int64, types.int32), _scatter)
"""`scatter(values, address, step, count)`: the first `count` to device memory, `step` bytes apart."""
scale = scaler(CHANNELS)
added, rectified = device_function(SIXTEEN(SIXTEEN, SIXTEEN), _added), device_function(SIXTEEN(SIXTEEN), _rectified)
greatest_of_sixteen = device_function(types.int32(types.int32, SIXTEEN), _greatest)
"""`greatest_of_sixteen(word, values)`: the greatest of their finite magnitudes and `word`, as a word."""
greatest_of_eight = device_function(types.int32(types.int64), _greatest_of_eight)
"""`greatest_of_eight(address)`: of eight words side by side, aligned to 16 bytes."""
scale_rows = device_function(SIXTEEN(SIXTEEN, types.float32, types.float32), _scale_rows)
"""`scale_rows(sums, upper, lower)`: a thread's share of 16 x 32 sums, each of its two rows times a factor."""


def column(pitch: int) -> Any:
    """`read(address)`: sixteen floats of shared memory, `pitch` words apart."""
    loads = "".join(f"ld.shared.f32 ${i}, [$16+{4 * pitch * i}];" for i in range(CHANNELS))

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        returned = ir.LiteralStructType([F32] * CHANNELS)
        assembly = ir.InlineAsm(ir.FunctionType(returned, [I32]), loads, "=&f," * CHANNELS + "r", side_effect=True)
        return unpacked(builder, builder.call(assembly, arguments), CHANNELS)

    return device_function(SIXTEEN(types.int32), generate)


def spreader(pitch: int) -> Any:
    """`spread(sums, corner)`: a thread's share of 16 x 32 sums to its places in shared memory, `pitch` words a row.

    wgmma leaves it pairs of columns, 8 columns apart, in two rows, 8 rows apart.
    """
    stores = "".join(
        f"st.shared.v2.f32 [$16+{4 * (8 * pitch * below + 8 * pair)}], {{${i}, ${i + 1}}};"
        for i, (pair, below) in zip(range(0, CHANNELS, 2), itertools.product(range(4), range(2)), strict=True)
    )

    def generate(builder: Any, arguments: list[Any]) -> None:
        values = unpacked(builder, arguments[0], CHANNELS)
        emit(builder, stores, "", "f" * CHANNELS + "r", [*values, arguments[1]])

    return device_function(types.void(SIXTEEN, types.int32), generate)


@cuda.jit(device=True)
def scale_exponent(greatest):
    """The biased exponent of the power of two that brings numbers up to `greatest`, given as a word, under 2**15."""
    return min(253, 268 - (greatest >> 23))


@cuda.jit(device=True)
def power_of_two(biased_exponent):
    """The float32 of that exponent."""
    return float_of(types.int32(biased_exponent << 23))
