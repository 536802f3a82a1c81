"""Depthwise convolutions of stride 1: a thread holds the inputs of a patch of pixels, and reads each of them once.

What limits direct.py there is loads: a column of four outputs of 3x3 reads 18 inputs. A patch of 8 x 2 reads 40 for 16;
four columns read fewer still, but warps then write a quarter of a line at a time. Measured on an H200 (2026-12-01), us:
16x256x32x32 forward 17 to 12, weight gradient 41 to 15; 32x32x112x112 44 to 38, 113 to 34.

Float32, any strides in memory; taps in the order r, s, bias last. Filters of which a patch does not fit the registers,
stride and dilation are left to direct.py.
"""

import functools
from typing import Any, NamedTuple

from llvmlite import ir
from numba import cuda
from numba.cuda import types

from .. import ptx
from ..ptx import F32, constant, device_function, emit, unpacked
from ..tensor_cores.slots import divided
from .windows import stored_of, tuple_of, warp_sums_of, window_of, zeros_of

THREADS, WIDE, TALLEST, LEAST_TALL = 128, 2, 8, 4
"""Of a block; columns of a patch, and its rows, which divide the output's best."""


class Geometry(NamedTuple):
    """One depthwise convolution in numbers, all int32; strides in elements."""

    images: int
    height: int
    width: int
    x_n: int
    x_c: int
    x_h: int
    x_w: int
    top: int
    left: int
    w_group: int
    w_r: int
    w_s: int
    p: int
    q: int
    y_n: int
    y_k: int
    y_h: int
    y_w: int
    across: int  # patches
    across_multiplier: int
    across_shift: int
    patches: int  # of a plane
    patches_multiplier: int
    patches_shift: int
    rectify: int


GEOMETRY = types.NamedUniTuple(types.int32, len(Geometry._fields), Geometry)
ARGUMENTS = types.void(*[types.int64] * 4, GEOMETRY)
"""x, weight, bias or 0, y, geometry."""
GRADIENT = types.void(*[types.int64] * 3, GEOMETRY)
"""x, dy, shares, geometry."""


def dots_of_patch(rows: int, row: int, tall: int) -> Any:
    """`dots(inputs, weights, bias, rectify)`: the outputs of a patch, no less than 0 if rectify is not 0."""
    pitch, taps = row + WIDE - 1, rows * row

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        inputs, weights = (
            unpacked(builder, arguments[0], (rows + tall - 1) * pitch),
            unpacked(builder, arguments[1], taps),
        )
        zero, results = ir.Constant(F32, 0.0), []
        rectify = builder.icmp_signed("!=", arguments[3], constant(0))
        for r in range(tall):
            for column in range(WIDE):
                total = zero
                for tap in range(taps):
                    value = inputs[(r + tap // row) * pitch + column + tap % row]
                    total = builder.fma(value, weights[tap], total)
                total = builder.fadd(total, arguments[2])
                negative = builder.fcmp_ordered("<", total, zero)  # So NaN stays NaN, as in relu.
                results.append(builder.select(builder.and_(rectify, negative), zero, total))
        return results

    inputs = tuple_of((rows + tall - 1) * pitch)
    return device_function(tuple_of(tall * WIDE)(inputs, tuple_of(taps), types.float32, types.int32), generate)


def patch_storer(tall: int) -> Any:
    """`store(outputs, address, row_step, column_step, rows, columns)`: those inside of the image; steps in bytes."""
    count = tall * WIDE
    address, row_step, column_step, rows, columns = (f"${count + i}" for i in range(5))
    text = [f"{{ .reg .pred p, q; .reg .b64 at, line; mov.b64 line, {address};"]
    for r in range(tall):
        text.append(f"setp.gt.s32 p, {rows}, {r}; mov.b64 at, line; add.s64 line, line, {row_step};")
        for column in range(WIDE):
            text.append(f"setp.gt.and.s32 q, {columns}, {column}, p; @q st.global.f32 [at], ${r * WIDE + column};")
            text.append(f"add.s64 at, at, {column_step};")

    def generate(builder: Any, arguments: list[Any]) -> None:
        outputs = unpacked(builder, arguments[0], count)
        emit(builder, "\n".join([*text, "}"]), "", "f" * count + "lllrr", [*outputs, *arguments[1:]])

    steps = [types.int64] * 3
    return device_function(types.void(tuple_of(count), *steps, types.int32, types.int32), generate)


def patch_adder(rows: int, row: int, tall: int) -> Any:
    """`add(sums, inputs, gradient)`: each tap's sum, and its inputs times the gradients of a patch."""
    pitch, taps, count = row + WIDE - 1, rows * row, tall * WIDE

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        sizes = (taps, (rows + tall - 1) * pitch, count)
        sums, inputs, gradient = (unpacked(builder, each, size) for each, size in zip(arguments, sizes, strict=True))
        for i, factor in enumerate(gradient):
            for tap in range(taps):
                value = inputs[(i // WIDE + tap // row) * pitch + i % WIDE + tap % row]
                sums[tap] = builder.fma(value, factor, sums[tap])
        return sums

    kind = tuple_of(taps)
    return device_function(kind(kind, tuple_of((rows + tall - 1) * pitch), tuple_of(count)), generate)


@cuda.jit(device=True)
def patch_of(i, g):
    """Image, row and column of patches of a patch."""
    n = divided(i, g.patches_multiplier, g.patches_shift)
    rest = types.int32(i - n * g.patches)
    down = divided(rest, g.across_multiplier, g.across_shift)
    return n, down, types.int32(rest - down * g.across)


@functools.cache
def forward_of(rows: int, row: int, tall: int) -> Any:
    """One thread per patch; the grid's second axis is the channels."""
    inputs, weights_of = window_of(1, rows + tall - 1, row + WIDE - 1), window_of(1, rows, row)
    dots, store, one = dots_of_patch(rows, row, tall), patch_storer(tall), 1

    def kernel(x, weight, bias, y, g):
        c, unit = types.int64(cuda.blockIdx.y), types.int32(one)
        weights = weights_of(
            weight + c * g.w_group * 4, types.int32(0), types.int32(0), types.int32(rows), types.int32(row),
            types.int64(0), types.int64(g.w_r) * 4, types.int64(g.w_s) * 4, unit, unit,
        )  # fmt: skip
        more = types.float32(0)
        if bias != 0:
            more = ptx.load_global(bias + c * 4)
        for i in range(cuda.grid(1), g.images * g.patches, cuda.gridsize(1)):
            n, down, across = patch_of(types.int32(i), g)
            p, q = types.int32(down * tall), types.int32(across * WIDE)
            h, w = types.int32(p - g.top), types.int32(q - g.left)
            first = types.int64(n) * g.x_n + c * g.x_c + types.int64(h) * g.x_h + types.int64(w) * g.x_w
            values = inputs(
                x + first * 4, h, w, g.height, g.width, types.int64(0), types.int64(g.x_h) * 4,
                types.int64(g.x_w) * 4, unit, unit,
            )  # fmt: skip
            at = types.int64(n) * g.y_n + c * g.y_k + types.int64(p) * g.y_h + types.int64(q) * g.y_w
            store(
                dots(values, weights, more, g.rectify), y + at * 4, types.int64(g.y_h) * 4, types.int64(g.y_w) * 4,
                types.int32(g.p - p), types.int32(g.q - q),
            )  # fmt: skip

    return kernel


@functools.cache
def gradient_of(rows: int, row: int, tall: int) -> Any:
    """The weight gradient: each thread sums a share of a channel's patches, the grid's second axis being the channels.

    Warps add theirs in a fixed tree, and `shares[warp]` is laid out as dweight in row-major order.
    """
    inputs, gradients = window_of(1, rows + tall - 1, row + WIDE - 1), window_of(1, tall, WIDE)
    taps = rows * row
    add, zero, warp_sums, store = patch_adder(rows, row, tall), zeros_of(taps), warp_sums_of(taps), stored_of(1, taps)

    def kernel(x, dy, shares, g):
        c, unit, sums = types.int64(cuda.blockIdx.y), types.int32(1), zero()
        for i in range(cuda.grid(1), g.images * g.patches, cuda.gridsize(1)):
            n, down, across = patch_of(types.int32(i), g)
            p, q = types.int32(down * tall), types.int32(across * WIDE)
            h, w = types.int32(p - g.top), types.int32(q - g.left)
            first = types.int64(n) * g.x_n + c * g.x_c + types.int64(h) * g.x_h + types.int64(w) * g.x_w
            values = inputs(
                x + first * 4, h, w, g.height, g.width, types.int64(0), types.int64(g.x_h) * 4,
                types.int64(g.x_w) * 4, unit, unit,
            )  # fmt: skip
            at = types.int64(n) * g.y_n + c * g.y_k + types.int64(p) * g.y_h + types.int64(q) * g.y_w
            factors = gradients(
                dy + at * 4, p, q, g.p, g.q, types.int64(0), types.int64(g.y_h) * 4, types.int64(g.y_w) * 4,
                unit, unit,
            )  # fmt: skip
            sums = add(sums, values, factors)
        sums = warp_sums(sums)
        if cuda.threadIdx.x & 31 == 0:
            line = types.int64(cuda.grid(1) >> 5) * cuda.gridDim.y + c
            store(sums, shares + line * taps * 4, types.int64(0), types.int32(1))

    return kernel


def tall_of(taps: tuple[int, int], output: tuple[int, int], most: int) -> int:
    """Rows of a patch whose inputs are at most so many, those that cover the output with the fewest to spare; 0 if they
    would be too few."""
    rows, row = taps
    fitting = [tall for tall in range(TALLEST, LEAST_TALL - 1, -1) if (rows + tall - 1) * (row + WIDE - 1) <= most]
    return min(fitting, key=lambda tall: -(-output[0] // tall) * tall, default=0) if min(output) >= LEAST_TALL else 0
