"""Products of matrices on Hopper's tensor cores, a warpgroup's 64 rows at a time, and their sums in its registers.

Operands are parts of numbers (arithmetic.py) in shared memory. Products are started and run by themselves: what they
add to must not be touched before `finish`. Source: PTX ISA 8.4, chapter 9.7.15 (wgmma, matrix descriptors).
"""

from typing import Any

from llvmlite import ir
from numba.cuda import types

from ..ptx import F32, constant, device_function, emit, unpacked
from .arithmetic import Arithmetic
from .slots import Block


def accumulators(columns: int) -> Any:
    """The type of a warpgroup's 64 x `columns` sums: `columns / 2` registers of each thread."""
    return types.UniTuple(types.float32, columns // 2)


def block_of_products(block: Block) -> Any:
    """`multiply(sums, a, b, part_step, group_step, row_step, tap_step)`: starts the wgmma of one stage, all its taps
    and channels, for 64 rows of weights and a warpgroup's pixels. The steps are those of b, in units of 16 bytes.

    a and b are the low words of matrix descriptors: no swizzle, 8 rows of 16 bytes together. The first product
    overwrites the sums, which nobody may touch before `finish`.
    """
    arithmetic, rows, row, columns, groups = block.arithmetic, block.rows, block.row, block.columns, block.groups
    taps, count, unit_rows, tap_rows = rows * row, columns // 2, block.unit_rows, block.tap_rows
    products = arithmetic.products_of_stacked if block.stacked else arithmetic.products
    sums = "{" + ",".join(f"${i}" for i in range(count)) + "}"
    a, b, part_step, group_step, row_step, tap_step = (f"${count + i}" for i in range(6))
    transposed = "" if arithmetic.kind == "tf32" else ", 0, 0"
    name = f"wgmma.mma_async.sync.aligned.m64n{columns}k{arithmetic.depth}.f32.{arithmetic.kind}.{arithmetic.kind}"
    codes = [sum(pair[side] << 2 * i for i, pair in enumerate(products)) for side in (0, 1)]
    nounroll = r"\22nounroll\22"  # A quotation mark in LLVM's assembly.
    # A loop over the products, here and not in Python: sums in flight must not be moved to other registers.
    text = [
        "{ .reg .pred added, more; .reg .b32 la, lb, part, codes_a, codes_b, left, high, next_row; .reg .b64 da, db;",
        f"mov.b32 codes_a, {codes[0]}; mov.b32 codes_b, {codes[1]}; mov.b32 left, {len(products)};",
        f"mul.lo.s32 next_row, {tap_step}, {row - 1}; sub.s32 next_row, {row_step}, next_row; mov.b32 high, 8;",
        "setp.ne.s32 added, left, left; wgmma.fence.sync.aligned;",
        f"next_${{:uid}}: .pragma {nounroll}; and.b32 part, codes_a, 3; mad.lo.s32 la, part, {block.part_rows}, {a};",
        f"and.b32 part, codes_b, 3; mad.lo.s32 lb, part, {part_step}, {b};",
        "shr.b32 codes_a, codes_a, 2; shr.b32 codes_b, codes_b, 2; sub.s32 left, left, 1; setp.ne.s32 more, left, 0;",
    ]
    for _ in range(0, groups, 2):
        for tap in range(taps):
            text.append("mov.b64 da, {la, high}; mov.b64 db, {lb, high};")
            text.append(f"{name} {sums}, da, db, added, 1, 1{transposed}; setp.eq.s32 added, left, left;")
            text.append(f"add.s32 la, la, {tap_rows};")
            text.append(f"add.s32 lb, lb, {tap_step if (tap + 1) % row else 'next_row'};")
        text.append(f"add.s32 la, la, {2 * unit_rows - taps * tap_rows};")
        text.append(f"mad.lo.s32 lb, {row_step}, {-rows}, lb; mad.lo.s32 lb, {group_step}, 2, lb;")
    text.append("@more bra next_${:uid}; wgmma.commit_group.sync.aligned; }")

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        return emit(
            builder, "\n".join(text), "f" * count, "rrrrrr", arguments[1:], unpacked(builder, arguments[0], count)
        )

    tuple_ = accumulators(columns)
    return device_function(tuple_(tuple_, *[types.int32] * 6), generate)


def block_of_band(arithmetic: Arithmetic, filters: int, columns: int) -> Any:
    """As `block_of_products`, for one tap of a band of 64 channels that laid_out.py laid out: 128 bytes a slot, its
    units in the tensor cores' own pattern. `part_step` is from a part of b to the next."""
    units, count = 64 // arithmetic.unit, columns // 2
    sums = "{" + ",".join(f"${i}" for i in range(count)) + "}"
    a, b, part_step = (f"${count + i}" for i in range(3))
    name = f"wgmma.mma_async.sync.aligned.m64n{columns}k16.f32.{arithmetic.kind}.{arithmetic.kind}"
    text = [
        "{ .reg .pred added; .reg .b32 la, lb, high_a, high_b; .reg .b64 da, db;",
        f"mov.b32 high_a, 8; mov.b32 high_b, {64 | 1 << 30}; setp.ne.s32 added, 0, 0; wgmma.fence.sync.aligned;",
    ]
    for part_a, part_b in arithmetic.products:
        text.append(f"add.s32 la, {a}, {part_a * units * filters}; mad.lo.s32 lb, {part_step}, {part_b}, {b};")
        for _ in range(0, units, 2):
            text.append("mov.b64 da, {la, high_a}; mov.b64 db, {lb, high_b};")
            text.append(f"{name} {sums}, da, db, added, 1, 1, 0, 0; setp.eq.s32 added, 0, 0;")
            text.append(f"add.s32 la, la, {2 * filters}; add.s32 lb, lb, 2;")
    text.append("wgmma.commit_group.sync.aligned; }")

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        values = unpacked(builder, arguments[0], count)
        return emit(builder, "\n".join(text), "f" * count, "rrr", arguments[1:4], values)

    tuple_ = accumulators(columns)
    return device_function(tuple_(tuple_, *[types.int32] * 6), generate)


def finisher(columns: int) -> Any:
    """`finish(sums)`: the sums once all products that were started are in them."""
    count = columns // 2

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        values = unpacked(builder, arguments[0], count)
        return emit(builder, "wgmma.wait_group.sync.aligned 0;", "f" * count, "", [], values)

    return device_function(accumulators(columns)(accumulators(columns)), generate)


def zeros(columns: int) -> Any:
    """`zero()`: sums of nothing."""
    return device_function(accumulators(columns)(), lambda builder, _: [ir.Constant(F32, 0.0)] * (columns // 2))


def promoter(columns: int) -> Any:
    """`promote(sums, part, fresh)`: their sum in float32, rounded to nearest; the part alone if fresh is not 0."""
    count = columns // 2

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        sums, part = (unpacked(builder, each, count) for each in arguments[:2])
        fresh = builder.icmp_signed("!=", arguments[2], constant(0))
        return [
            builder.fadd(builder.select(fresh, ir.Constant(F32, 0.0), a), b) for a, b in zip(sums, part, strict=True)
        ]

    kind = accumulators(columns)
    return device_function(kind(kind, kind, types.int32), generate)


def portion(columns: int, group: int) -> Any:
    """`portion(sums)`: the registers of 32 columns from `32 * group` on; zeros beyond the last."""

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        values = unpacked(builder, arguments[0], columns // 2)[16 * group : 16 * group + 16]
        return values + [ir.Constant(F32, 0.0)] * (16 - len(values))

    return device_function(types.UniTuple(types.float32, 16)(accumulators(columns)), generate)
