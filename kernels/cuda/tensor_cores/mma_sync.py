"""Products of matrices on tensor cores from Ampere on, a warp's registers at a time.

Both operands lie in shared memory in units of 16 bytes, eight of which, of eight filters or slots, one read brings into
the registers of the warp as one 8 x 8 matrix: in the place where `mma.sync` wants it, for 16-bit kinds and TF32 alike.
Sums lie as wgmma's do: 16 rows, and for every eight columns two in the thread's row and two in the row 8 below.
Source: PTX ISA 8.4, chapter 9.7.14 (ldmatrix, mma).
"""

from typing import Any

from llvmlite import ir
from numba.cuda import types

from ..ptx import F32, device_function, emit, unpacked
from .arithmetic import CHANNELS, Arithmetic

ROWS, COLUMNS = 16, 8
"""Of the sums of one mma.sync."""


def sums_of(blocks: int, tiles: int) -> Any:
    """The type of a thread's share of `16 * blocks` x `8 * tiles` sums."""
    return types.UniTuple(types.float32, 4 * blocks * tiles)


def shares_of(arithmetic: Arithmetic) -> int:
    """Sums that are kept apart: the greatest parts' products, and small ones, whose bits those would cut off."""
    return min(2, len(arithmetic.products))


def products_of(arithmetic: Arithmetic, blocks: int, tiles: int, a_part: int, transposed: bool = False) -> Any:
    """`multiply(sums, a, b, b_part, b_pair)`: sums with all products of `depth` terms, `16 * blocks` rows and
    `8 * tiles` columns. a and b are where each lane reads; `a_part` and `b_part` are the bytes from a part to the next.

    A unit holds the terms of a row or column. `transposed`: it holds eight rows or columns of a term, and `b_pair` are
    the bytes from two of b's units to the next two.
    """
    name = f"mma.sync.aligned.m16n8k{arithmetic.depth}.row.col.f32.{arithmetic.kind}.{arithmetic.kind}.f32"
    text = f"{name} {{$0,$1,$2,$3}}, {{$4,$5,$6,$7}}, {{$8,$9}}, {{$0,$1,$2,$3}};"
    count = 4 * blocks * tiles

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        sums = unpacked(builder, arguments[0], count * shares_of(arithmetic))
        a, b, b_part, b_pair = arguments[1:]
        its_a, its_b = list[Any](), list[Any]()
        for part in range(arithmetic.parts):
            its_a.append([_read(builder, a, part * a_part + 256 * block, 4, transposed) for block in range(blocks)])
            words, at = list[Any](), b
            for i in range(0, tiles, 2):
                words += _read(builder, at, 0 if transposed else 128 * i, min(4, 2 * (tiles - i)), transposed)
                at = builder.add(at, b_pair) if transposed else at
            its_b.append([words[2 * tile : 2 * tile + 2] for tile in range(tiles)])
            b = builder.add(b, b_part)
        for part_a, part_b in arithmetic.products:
            first = 0 if (part_a, part_b) == (0, 0) else count
            for block in range(blocks):
                for tile in range(tiles):
                    at = first + 4 * (block * tiles + tile)
                    operands = [*its_a[part_a][block], *its_b[part_b][tile]]
                    sums[at : at + 4] = emit(builder, text, "ffff", "rrrrrr", operands, sums[at : at + 4], pure=True)
        return sums

    kind = types.UniTuple(types.float32, count * shares_of(arithmetic))
    return device_function(kind(kind, *[types.int32] * 4), generate)


def _read(builder: Any, address: Any, offset: int, count: int, transposed: bool) -> list[Any]:
    """`count` 8 x 8 matrices, of which eight lanes each name the rows."""
    results = ", ".join(f"${i}" for i in range(count))
    trans = ".trans" if transposed else ""
    text = f"ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{results}}}, [${count} + {offset}];"
    return emit(builder, text, "r" * count, "r", [address])


def zeros(shares: int, blocks: int, tiles: int) -> Any:
    """`zero()`: so many shares of sums of no products."""
    count = 4 * blocks * tiles * shares
    kind = types.UniTuple(types.float32, count)
    return device_function(kind(), lambda builder, _: [ir.Constant(F32, 0.0)] * count)


def promoter(arithmetic: Arithmetic, blocks: int, tiles: int) -> Any:
    """`promote(sums, part)`: their sum in float32, rounded to nearest, the small and the great products' first."""
    count = 4 * blocks * tiles

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        sums, part = (unpacked(builder, arguments[i], count * (1, shares_of(arithmetic))[i]) for i in range(2))
        total = [builder.fadd(great, small) for great, small in zip(part[:count], part[count:], strict=False)] or part
        return [builder.fadd(a, b) for a, b in zip(sums, total, strict=True)]

    kind = sums_of(blocks, tiles)
    return device_function(kind(kind, types.UniTuple(types.float32, count * shares_of(arithmetic))), generate)


def rows_of(blocks: int, tiles: int, block: int) -> Any:
    """`rows(sums)`: the registers of a block of 16 filters, as 32 columns; zeros beyond the last."""

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        values = unpacked(builder, arguments[0], 4 * blocks * tiles)[4 * tiles * block : 4 * tiles * (block + 1)]
        return values + [ir.Constant(F32, 0.0)] * (CHANNELS - len(values))

    return device_function(types.UniTuple(types.float32, CHANNELS)(sums_of(blocks, tiles)), generate)
