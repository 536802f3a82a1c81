"""Convolutions with few channels or few filters in a group, on the GPU's ordinary arithmetic: first layers, depthwise.

Tensor cores want 16 channels and 64 filters; with one of each they would multiply zeros. Here a thread holds the inputs
of one output pixel in registers and computes all filters of the group (few channels), or walks over the channels for
one filter (few filters). Accumulated in float32, taps in the order c, r, s, bias last. Any
strides of x, weight and y, so input gradients are served as in fast_conv.py; any padding, stride, dilation.
"""

import functools
from typing import Any, NamedTuple

from llvmlite import ir
from numba import cuda
from numba.cuda import types

from . import ptx
from .ptx import F32, constant, device_function, emit, unpacked
from .slots import divided
from .tensor_core import CHANNELS, SIXTEEN, gather

THREADS, SUMMERS = 128, 1024
MOST_TAPS = 64
"""Inputs of a pixel that fit a thread's registers."""


class Geometry(NamedTuple):
    """One convolution in numbers, all int32; strides in elements. A window is taken at every pixel of the output."""

    images: int
    channels: int
    filters: int
    height: int
    width: int
    x_n: int
    x_c: int
    x_h: int
    x_w: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    dilation_h: int
    dilation_w: int
    w_group: int
    w_filter: int
    w_channel: int
    w_r: int
    w_s: int
    p: int
    q: int
    q_multiplier: int
    q_shift: int
    pixels: int
    pixels_multiplier: int
    pixels_shift: int
    y_n: int
    y_k: int
    y_h: int
    y_w: int
    rectify: int


GEOMETRY = types.NamedUniTuple(types.int32, len(Geometry._fields), Geometry)
ARGUMENTS = types.void(types.int64, types.int64, types.int64, types.int64, GEOMETRY)
"""x, weight, bias or 0, y, geometry."""
GRADIENT = types.void(types.int64, types.int64, types.int64, GEOMETRY)
"""x, dy, shares, geometry."""


def tuple_of(count: int) -> Any:
    """So many float32."""
    return types.UniTuple(types.float32, count)


def window_of(channels: int, rows: int, row: int) -> Any:
    """`inputs(x, h, w, height, width, ...)`: the inputs of the window from (h, w) on, `[c][r][s]`, zeros outside.

    What follows: bytes from a channel, a tap's row, a tap to the next, and how far apart taps' rows and taps lie.
    """
    text = ["{ .reg .pred p, q; .reg .s32 h, w; .reg .b64 at, line, plane; mov.b64 plane, $IN0;"]
    count, i = channels * rows * row, 0
    names = {f"$IN{j}": f"${count + j}" for j in range(10)}
    for _ in range(channels):
        text.append("mov.b64 line, plane; mov.b32 h, $IN1;")
        for _ in range(rows):
            # Unsigned, a negative row is a great one.
            text.append("setp.lt.u32 p, h, $IN3; mov.b64 at, line; mov.b32 w, $IN2;")
            for _ in range(row):
                text.append(f"setp.lt.and.u32 q, w, $IN4, p; mov.b32 ${i}, 0; @q ld.global.nc.f32 ${i}, [at];")
                text.append("add.s64 at, at, $IN7; add.s32 w, w, $IN9;")
                i += 1
            text.append("add.s64 line, line, $IN6; add.s32 h, h, $IN8;")
        text.append("add.s64 plane, plane, $IN5;")
    joined = "\n".join([*text, "}"])
    for name, place in names.items():
        joined = joined.replace(name, place)

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        kinds = [a.type for a in arguments]
        letters = ["l" if kind == ptx.I64 else "r" for kind in kinds]
        function = ir.FunctionType(ir.LiteralStructType([F32] * count) if count > 1 else F32, kinds)
        constraints = ",".join(["=&f"] * count + letters)
        result = builder.call(ir.InlineAsm(function, joined, constraints, side_effect=True), arguments)
        return unpacked(builder, result, count) if count > 1 else [result]

    integers = [types.int32] * 4
    return device_function(
        tuple_of(count)(types.int64, *integers, *[types.int64] * 3, types.int32, types.int32), generate
    )


def dots_of(channels: int, rows: int, row: int, tall: int, step: int) -> Any:
    """`dots(starts, inputs, address)`: for `tall` windows, each `step` rows of inputs below the one before, start + sum
    of inputs times the filter at a shared address, which is read four numbers at a time, once for all."""
    count, height = channels * rows * row, rows + (tall - 1) * step

    def generate(builder: Any, arguments: list[Any]) -> Any:
        totals, inputs = unpacked(builder, arguments[0], tall), unpacked(builder, arguments[1], channels * height * row)
        for i in range(0, count, 4):
            text = f"ld.shared.v4.f32 {{$0, $1, $2, $3}}, [$4+{4 * i}];"
            weights = emit(builder, text, "ffff", "r", [arguments[2]])
            for tap in range(i, min(i + 4, count)):
                (c, r), s = divmod(tap // row, rows), tap % row
                for j in range(tall):
                    value = inputs[(c * height + r + j * step) * row + s]
                    totals[j] = builder.fma(value, weights[tap - i], totals[j])
        return totals

    inputs = tuple_of(channels * height * row)
    return device_function(tuple_of(tall)(tuple_of(tall), inputs, types.int32), generate)


def finished_of(tall: int) -> Any:
    """`finished(sums, bias, rectify)`: sums + bias, and no less than 0 if rectify is not 0."""

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        zero, results = ir.Constant(F32, 0.0), []
        rectify = builder.icmp_signed("!=", arguments[2], constant(0))
        for total in unpacked(builder, arguments[0], tall):
            value = builder.fadd(total, arguments[1])
            negative = builder.fcmp_ordered("<", value, zero)  # So NaN stays NaN, as in relu.
            results.append(builder.select(builder.and_(rectify, negative), zero, value))
        return results

    return device_function(tuple_of(tall)(tuple_of(tall), types.float32, types.int32), generate)


def outer_add_of(filters: int, taps: int) -> Any:
    """`add(sums, inputs, factors)`: `sums[f][t] + inputs[t] * factors[f]`."""
    count = filters * taps

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        sums, inputs, factors = (
            unpacked(builder, each, size) for each, size in zip(arguments, (count, taps, CHANNELS), strict=True)
        )
        return [builder.fma(inputs[i % taps], factors[i // taps], total) for i, total in enumerate(sums)]

    return device_function(tuple_of(count)(tuple_of(count), tuple_of(taps), SIXTEEN), generate)


def warp_sums_of(count: int) -> Any:
    """`warp_sums(sums)`: the warp's sums, told to all its lanes, in a fixed tree."""

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        sums = unpacked(builder, arguments[0], count)
        for lanes in (16, 8, 4, 2, 1):
            text = f"shfl.sync.bfly.b32 $0, $1, {lanes}, 31, -1;"
            sums = [builder.fadd(each, emit(builder, text, "f", "f", [each])[0]) for each in sums]
        return sums

    return device_function(tuple_of(count)(tuple_of(count)), generate)


def stored_of(filters: int, taps: int) -> Any:
    """`store(sums, address, step, count)`: the first `count` filters' sums to device memory, `step` bytes apart."""
    total = filters * taps
    text = [f"{{ .reg .pred p; .reg .b64 at; mov.b64 at, ${total};"]
    for f in range(filters):
        text.append(f"setp.gt.s32 p, ${total + 2}, {f};")
        text += [f"@p st.global.f32 [at+{4 * t}], ${f * taps + t};" for t in range(taps)]
        text.append(f"add.s64 at, at, ${total + 1};")

    def generate(builder: Any, arguments: list[Any]) -> None:
        values = unpacked(builder, arguments[0], total)
        emit(builder, "\n".join([*text, "}"]), "", "f" * total + "llr", [*values, *arguments[1:]])

    return device_function(types.void(tuple_of(total), types.int64, types.int64, types.int32), generate)


def zeros_of(count: int) -> Any:
    """`zero()`: so many zeros."""
    return device_function(tuple_of(count)(), lambda builder, _: [ir.Constant(F32, 0.0)] * count)


@cuda.jit(device=True)
def pixel_of(i, g):
    """Image, row and column of an output pixel."""
    n = divided(i, g.pixels_multiplier, g.pixels_shift)
    rest = types.int32(i - n * g.pixels)
    p = divided(rest, g.q_multiplier, g.q_shift)
    return n, p, types.int32(rest - p * g.q)


@cuda.jit(device=True)
def stage_weights(weight, shared, channels, rows, row, g):
    """The group's weights to shared memory: `[k][c][r][s]`, filled up to a multiple of four for each filter."""
    count = channels * rows * row
    padded = (count + 3) // 4 * 4
    for i in range(cuda.threadIdx.x, g.filters * padded, cuda.blockDim.x):
        k, j = divmod(i, padded)
        value = types.float32(0)
        if j < count:
            rest, s = divmod(j, row)
            c, r = divmod(rest, rows)
            at = types.int64(k) * g.w_filter + c * g.w_channel + r * g.w_r + s * g.w_s
            value = ptx.load_global(weight + at * 4)
        ptx.store_shared(shared + i * 4, value)
    cuda.syncthreads()


@functools.cache
def few_channels(channels: int, rows: int, row: int, tall: int, step: int) -> Any:
    """One thread per group and `tall` pixels, one below the other, with all their windows' inputs in registers.

    All filters of the group in turn; taps in the order c, r, s, bias last. `step` is the stride from row to row.
    """
    inputs, dots = window_of(channels, rows + (tall - 1) * step, row), dots_of(channels, rows, row, tall, step)
    zero, finished, store = zeros_of(tall), finished_of(tall), stored_of(tall, 1)
    padded = -(-channels * rows * row // 4) * 4

    def kernel(x, weight, bias, y, g):
        shared, group = ptx.dynamic_shared(), cuda.blockIdx.y
        stage_weights(weight + types.int64(group) * g.w_group * 4, shared, channels, rows, row, g)
        for i in range(cuda.grid(1), g.images * g.pixels, cuda.gridsize(1)):
            n, p, q = pixel_of(types.int32(i), g)
            p = types.int32(p * tall)
            h, w = types.int32(p * g.stride_h - g.top), types.int32(q * g.stride_w - g.left)
            first = types.int64(n) * g.x_n + types.int64(group) * channels * g.x_c + types.int64(h) * g.x_h
            values = inputs(
                x + (first + types.int64(w) * g.x_w) * 4, h, w, g.height, g.width,
                g.x_c * 4, g.dilation_h * g.x_h * 4, g.dilation_w * g.x_w * 4, g.dilation_h, g.dilation_w,
            )  # fmt: skip
            at = y + (types.int64(n) * g.y_n + types.int64(p) * g.y_h + types.int64(q) * g.y_w) * 4
            at += types.int64(group) * g.filters * g.y_k * 4
            left = types.int32(min(tall, g.p - p))
            for k in range(g.filters):
                sums = dots(zero(), values, shared + types.int32(k) * padded * 4)
                more = types.float32(0)
                if bias != 0:
                    more = ptx.load_global(bias + (types.int64(group) * g.filters + k) * 4)
                store(finished(sums, more, g.rectify), at, types.int64(g.y_h) * 4, left)
                at += types.int64(g.y_k) * 4

    return kernel


@functools.cache
def few_filters(rows: int, row: int) -> Any:
    """One thread per pixel, group and filter (the block's third axis); channels in turn."""
    count, zero, finished, store = rows * row, zeros_of(1), finished_of(1), stored_of(1, 1)
    inputs, dots, padded = window_of(1, rows, row), dots_of(1, rows, row, 1, 1), -(-count // 4) * 4

    def kernel(x, weight, bias, y, g):
        shared, group, k = ptx.dynamic_shared(), cuda.blockIdx.y // g.filters, cuda.blockIdx.y % g.filters
        weight += (types.int64(group) * g.w_group + types.int64(k) * g.w_filter) * 4
        for i in range(cuda.threadIdx.x, g.channels * padded, cuda.blockDim.x):
            c, j = divmod(i, padded)
            value = types.float32(0)
            if j < count:
                at = types.int64(c) * g.w_channel + j // row * g.w_r + j % row * g.w_s
                value = ptx.load_global(weight + at * 4)
            ptx.store_shared(shared + i * 4, value)
        cuda.syncthreads()
        for i in range(cuda.grid(1), g.images * g.pixels, cuda.gridsize(1)):
            n, p, q = pixel_of(types.int32(i), g)
            h, w = types.int32(p * g.stride_h - g.top), types.int32(q * g.stride_w - g.left)
            first = types.int64(n) * g.x_n + types.int64(group) * g.channels * g.x_c + types.int64(h) * g.x_h
            plane = x + (first + types.int64(w) * g.x_w) * 4
            sums = zero()
            for c in range(g.channels):
                values = inputs(
                    plane, h, w, g.height, g.width,
                    g.x_c * 4, g.dilation_h * g.x_h * 4, g.dilation_w * g.x_w * 4, g.dilation_h, g.dilation_w,
                )  # fmt: skip
                sums = dots(sums, values, shared + types.int32(c) * padded * 4)
                plane += types.int64(g.x_c) * 4
            channel = types.int64(group) * g.filters + k
            more = types.float32(0)
            if bias != 0:
                more = ptx.load_global(bias + channel * 4)
            at = types.int64(n) * g.y_n + channel * g.y_k + types.int64(p) * g.y_h + types.int64(q) * g.y_w
            store(finished(sums, more, g.rectify), y + at * 4, 0, 1)

    return kernel


@functools.cache
def few_channels_gradient(rows: int, row: int, filters: int) -> Any:
    """The weight gradient: the grid's second axis is a group, a channel and so many filters; each thread sums a share.

    Warps add theirs in a fixed tree, and `shares[warp]` is laid out as dweight in row-major order.
    """
    taps = rows * row
    inputs, add, zero = window_of(1, rows, row), outer_add_of(filters, taps), zeros_of(filters * taps)
    warp_sums, store = warp_sums_of(filters * taps), stored_of(filters, taps)

    def kernel(x, dy, shares, g):
        blocks = (g.filters + filters - 1) // filters
        rest, block = divmod(cuda.blockIdx.y, blocks)
        group, c = divmod(rest, g.channels)
        k = group * g.filters + block * filters
        count = types.int32(min(filters, g.filters - block * filters))
        sums = zero()
        for i in range(cuda.grid(1), g.images * g.pixels, cuda.gridsize(1)):
            n, p, q = pixel_of(types.int32(i), g)
            h, w = types.int32(p * g.stride_h - g.top), types.int32(q * g.stride_w - g.left)
            first = types.int64(n) * g.x_n + (types.int64(group) * g.channels + c) * g.x_c + types.int64(h) * g.x_h
            values = inputs(
                x + (first + types.int64(w) * g.x_w) * 4, h, w, g.height, g.width,
                g.x_c * 4, g.dilation_h * g.x_h * 4, g.dilation_w * g.x_w * 4, g.dilation_h, g.dilation_w,
            )  # fmt: skip
            at = types.int64(n) * g.y_n + types.int64(k) * g.y_k + types.int64(p) * g.y_h + types.int64(q) * g.y_w
            sums = add(sums, values, gather(dy + at * 4, g.y_k * 4, count))
        sums = warp_sums(sums)
        if cuda.threadIdx.x & 31 == 0:
            line = types.int64(cuda.grid(1) >> 5) * cuda.gridDim.y // (g.channels * blocks) * g.filters + k
            store(sums, shares + (line * g.channels + c) * taps * 4, types.int64(g.channels) * taps * 4, count)

    return kernel


def _sum_on(builder: Any, arguments: list[Any]) -> Any:
    total = arguments[0]
    for value in unpacked(builder, arguments[1], CHANNELS):
        total = builder.fadd(total, value)
    return total


add_on = device_function(types.float32(types.float32, SIXTEEN), _sum_on)
"""`add_on(total, values)`: total and the values, one after the other."""


def sum_of_shares(shares, result, lines, size):
    """`result[i] = sum_j shares[j][i]`: a warp adds every 32nd share of 32 entries in rising order, sixteen on their
    way at a time, and what the warps have is added in rising order too."""
    partial = cuda.shared.array(SUMMERS, types.float32)
    thread = types.int32(cuda.threadIdx.x)
    warp, entry, warps = thread >> 5, cuda.blockIdx.x * 32 + (thread & 31), SUMMERS // 32
    total, at, step = types.float32(0), shares + (warp * size + entry) * 4, warps * size * 4
    for left in range((lines - warp + warps - 1) // warps if entry < size else 0, 0, -CHANNELS):
        total = add_on(total, gather(at, types.int32(step), types.int32(left)))
        at += step * CHANNELS
    partial[thread] = total
    cuda.syncthreads()
    if warp == 0 and entry < size:
        for i in range(1, warps):
            total += partial[thread + i * 32]
        ptx.store_global(result + entry * 4, total)


SUM = types.void(types.int64, types.int64, types.int64, types.int64)
"""shares, result, how many shares, entries of the result."""
