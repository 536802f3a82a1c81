"""A first layer, its rectifier and pooling by twos in one kernel, and their gradients in another: nothing in full size.

What is written is the pooled output, and for each of its pixels which of four won, or that none is positive: then no
gradient comes through. Backward reads these and the output's gradient, a quarter of what lies before the pooling; a
pixel that did not win counts as a zero, which is multiplied as any other. As direct.py, on ordinary arithmetic.
"""

import functools
import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import cuda
from numba.cuda import types

from .. import ptx
from ..host.arrays import DeviceArray, image_of, steps
from ..host.driver import Kernel, multiprocessors
from ..ptx import F32, constant, device_function, emit, unpacked
from ..tensor_cores.arithmetic import gatherer
from ..tensor_cores.problem import Problem, division
from . import launch_direct
from .direct import GEOMETRY, MOST_TAPS, THREADS, Geometry, pixel_of, stage_weights
from .greatest import magnitude_of, tell_greatest, with_greatest
from .pool_by_twos import NONE_WON, total_of, winners_of
from .windows import stored_of, tuple_of, warp_sums_of, window_of, zeros_of

FORWARD = types.void(*[types.int64] * 6, GEOMETRY)
"""x, weight, bias or 0, pooled output, winners, the pooled images' greatest or 0, geometry."""
GRADIENT = types.void(*[types.int64] * 4, GEOMETRY)
"""x, the gradient of the pooled output, winners, shares, geometry."""


def _of_four(channels: int, rows: int, row: int, tap: int) -> list[int]:
    """Where the inputs of a tap lie in the window of four pixels, for each of them."""
    (c, r), s = divmod(tap // row, rows), tap % row
    return [(c * (rows + 1) + r + below) * (row + 1) + s + right for below in (0, 1) for right in (0, 1)]


def four_dots_of(channels: int, rows: int, row: int) -> Any:
    """`dots(inputs, address)`: for four pixels, the bias of the filter at a shared address and its dots with inputs."""
    count, inputs = channels * rows * row, channels * (rows + 1) * (row + 1)

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        totals, values, weights = [ir.Constant(F32, 0.0)] * 4, unpacked(builder, arguments[0], inputs), []
        for i in range(0, count + 1, 4):
            text = f"ld.shared.v4.f32 {{$0, $1, $2, $3}}, [$4+{4 * i}];"
            weights += emit(builder, text, "ffff", "r", [arguments[1]])
            for tap in range(i, min(i + 4, count)):
                for pixel, place in enumerate(_of_four(channels, rows, row, tap)):
                    totals[pixel] = builder.fma(values[place], weights[tap], totals[pixel])
        return [builder.fadd(total, weights[count]) for total in totals]

    return device_function(tuple_of(4)(tuple_of(inputs), types.int32), generate)


def _gated(builder: Any, factors: list[Any], winners: list[Any], filters: int) -> list[list[Any]]:
    zero = ir.Constant(F32, 0.0)
    return [
        [builder.select(builder.icmp_signed("==", winners[f], constant(pixel)), factors[f], zero) for pixel in range(4)]
        for f in range(filters)
    ]


def four_outer_add_of(channels: int, rows: int, row: int, filters: int) -> Any:
    """`add(sums, inputs, factors, winners)`: `sums[f][t]` + the inputs of tap t, for each of four pixels, times the
    factor of filter f if it won."""
    taps, inputs = channels * rows * row, channels * (rows + 1) * (row + 1)

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        sizes = (filters * taps, inputs, filters, filters)
        sums, values, factors, winners = (
            unpacked(builder, each, size) for each, size in zip(arguments, sizes, strict=True)
        )
        for f, gated in enumerate(_gated(builder, factors, winners, filters)):
            for tap in range(taps):
                for pixel, place in enumerate(_of_four(channels, rows, row, tap)):
                    sums[f * taps + tap] = builder.fma(values[place], gated[pixel], sums[f * taps + tap])
        return sums

    few = types.UniTuple(types.int32, filters)
    kind = tuple_of(filters * taps)
    return device_function(kind(kind, tuple_of(inputs), tuple_of(filters), few), generate)


def _greatest(builder: Any, arguments: list[Any]) -> list[Any]:
    four, zero, which = unpacked(builder, arguments[0], 4), ir.Constant(F32, 0.0), constant(3)
    text = "max.NaN.f32 $0, $1, $2;"
    (left,), (right,) = (emit(builder, text, "f", "ff", four[i : i + 2], pure=True) for i in (0, 2))
    (greatest,) = emit(builder, text, "f", "ff", [left, right], pure=True)
    for pixel in (2, 1, 0):
        which = builder.select(builder.fcmp_ordered("==", four[pixel], greatest), constant(pixel), which)
    is_none = builder.fcmp_ordered("<=", greatest, zero)
    first = builder.select(builder.fcmp_ordered("<", four[0], zero), zero, four[0])
    return [builder.select(is_none, first, greatest), builder.select(is_none, constant(NONE_WON), which)]


greatest_of = device_function(types.Tuple((types.float32, types.int32))(tuple_of(4)), _greatest)
"""`greatest_of(four)`: the greatest, rectified, and the first pixel that has it, or NONE_WON where it is not positive;
NaN if there is one, whose pixel `first_nan_of` tells. Where all are rectified, it is the first: 0.0 or -0.0."""


@cuda.jit(device=True)
def first_nan_of(four):
    """The first pixel that is NaN, of which there is one."""
    if four[0] != four[0]:
        return types.int32(0)
    if four[1] != four[1]:
        return types.int32(1)
    return types.int32(2) if four[2] != four[2] else types.int32(3)


@functools.cache
def forward_of(channels: int, rows: int, row: int) -> Any:
    """One thread per pooled pixel holds its window's inputs; filters in turn, taps in the order c, r, s, bias last."""
    inputs, dots = window_of(channels, rows + 1, row + 1), four_dots_of(channels, rows, row)
    count = channels * rows * row
    padded = count // 4 * 4 + 4

    def kernel(x, weight, bias, y, winner, images_greatest, g):
        shared, lane, size = ptx.dynamic_shared(), cuda.threadIdx.x & 31, types.int64(g.images) * g.pixels
        stage_weights(weight, bias, shared, count, padded, rows, row, g)
        for base in range(cuda.grid(1) & -32, size, cuda.gridsize(1)):
            i = min(base + lane, size - 1)  # Threads beyond the last take it again, so that warps stay whole.
            word = types.int32(0)
            n, p, q = pixel_of(types.int32(i), g)
            h, w = types.int32(2 * p - g.top), types.int32(2 * q - g.left)
            first = types.int64(n) * g.x_n + types.int64(h) * g.x_h + types.int64(w) * g.x_w
            values = inputs(
                x + first * 4, h, w, g.height, g.width, g.x_c * 4, g.x_h * 4, g.x_w * 4, types.int32(1), types.int32(1)
            )
            at = types.int64(n) * g.filters * g.pixels + (i - types.int64(n) * g.pixels)
            for k in range(g.filters):
                four = dots(values, types.int32(shared + k * padded * 4))
                greatest, which = greatest_of(four)
                if greatest != greatest:
                    which = first_nan_of(four)
                word = max(word, magnitude_of(greatest))
                ptx.store_global(y + at * 4, greatest)
                ptx.store_byte(winner + at, which)
                at += g.pixels
            if images_greatest != 0:
                tell_greatest(images_greatest, n, word, base >> 5)

    return kernel


@functools.cache
def gradient_of(channels: int, rows: int, row: int, filters: int) -> Any:
    """The grid's second axis is so many filters; each thread sums a share of the pooled pixels, warps add theirs.

    A share is laid out as dweight in row-major order, and behind it dbias.
    """
    taps = channels * rows * row
    inputs, factors, winners = window_of(channels, rows + 1, row + 1), gatherer(filters), winners_of(filters)
    add, total = four_outer_add_of(channels, rows, row, filters), total_of(filters)
    zero, none = zeros_of(filters * taps), zeros_of(filters)
    store, store_totals = stored_of(filters, taps), stored_of(filters, 1)
    warp_sums, warp_totals = warp_sums_of(filters * taps), warp_sums_of(filters)

    def kernel(x, dy, winner, shares, g):
        k = types.int32(cuda.blockIdx.y * filters)
        count = types.int32(min(filters, g.filters - k))
        sums, totals = zero(), none()
        for i in range(cuda.grid(1), g.images * g.pixels, cuda.gridsize(1)):
            n, p, q = pixel_of(types.int32(i), g)
            h, w = types.int32(2 * p - g.top), types.int32(2 * q - g.left)
            first = types.int64(n) * g.x_n + types.int64(h) * g.x_h + types.int64(w) * g.x_w
            at = (types.int64(n) * g.filters + k) * g.pixels + (i - types.int64(n) * g.pixels)
            won, gradient = winners(winner + at, g.pixels, count), factors(dy + at * 4, g.pixels * 4, count)
            values = inputs(
                x + first * 4, h, w, g.height, g.width, g.x_c * 4, g.x_h * 4, g.x_w * 4, types.int32(1), types.int32(1)
            )
            sums, totals = add(sums, values, gradient, won), total(totals, gradient, won)
        sums, totals = warp_sums(sums), warp_totals(totals)
        if cuda.threadIdx.x & 31 == 0:
            at = shares + types.int64(cuda.grid(1) >> 5) * (g.filters * (taps + 1)) * 4
            store(sums, at + types.int64(k) * taps * 4, types.int64(taps) * 4, count)
            store_totals(totals, at + (types.int64(g.filters) * taps + k) * 4, types.int64(4), count)

    return kernel


@functools.cache
def _kernels(channels: int, rows: int, row: int, filters: int) -> tuple[Kernel, Kernel]:
    key = (channels, rows, row)
    return (
        Kernel(f"first block {key}", forward_of(*key), FORWARD, THREADS),
        Kernel(f"first block gradient {key, filters}", gradient_of(*key, filters), GRADIENT, THREADS),
    )


def _together(problem: Problem) -> int:
    """Filters whose sums a thread holds."""
    taps = problem.channels * math.prod(problem.taps)
    return max(1, min(problem.filters, launch_direct.MOST_TOGETHER, launch_direct.MOST_SUMS // (taps + 1)))


def serves(problem: Problem) -> bool:
    """Whether direct.py would compute the convolution, and windows of four pixels are whole and fit the registers."""
    (rows, row), (p, q) = problem.taps, problem.output
    if launch_direct.kind_of(problem) != "channels" or problem.groups > 1 or p % 2 + q % 2 > 0:
        return False
    if (problem.stride, problem.dilation) != ((1, 1), (1, 1)) or problem.images * problem.filters * p * q >= 2**31:
        return False
    return problem.channels * (rows + 1) * (row + 1) <= MOST_TAPS and problem.channels * rows * row < MOST_TAPS // 2


def problem_of(x: DeviceArray, weight: DeviceArray, window: Any, groups: int) -> Problem:
    """The convolution as a problem; where its output would lie does not matter."""
    k, channels, rows, row = weight.shape
    w_k, w_c, w_r, w_s = steps(weight)
    return Problem(
        x.shape[0], groups, channels, k // groups, (rows, row), image_of(x), (window.p(x.shape), window.q(x.shape)),
        window.stride, (window.padding[0][0], window.padding[1][0]), window.dilation, steps(x),
        (k // groups * w_k, w_k, w_c, w_r, w_s), (0, 0, 0, 0),
    )  # fmt: skip


def _geometry(problem: Problem) -> Geometry:
    p, q = (size // 2 for size in problem.output)
    return Geometry(
        problem.images, problem.channels, problem.filters, *problem.image, *problem.x_strides, *problem.stride,
        *problem.before, *problem.dilation, *problem.w_strides, p, q, *division(q), p * q, *division(p * q),
        0, 0, 0, 0, 1,
    )  # fmt: skip


def forward(
    x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, problem: Problem, is_to_be_scaled: bool
) -> tuple[Any, Any]:
    """The pooled output of a problem that is served, and the winners."""
    p, q = (size // 2 for size in problem.output)
    y = with_greatest(x.empty((problem.images, problem.filters, p, q)), is_to_be_scaled)
    greatest = y.greatest.address if y.greatest is not None else 0
    winner, taps = x.empty(y.shape, np.uint8), problem.channels * math.prod(problem.taps)
    pixels, stream = problem.images * p * q, x.place.stream
    blocks = min(-(-pixels // THREADS), launch_direct.BLOCKS * multiprocessors(x.place.device))
    _kernels(problem.channels, *problem.taps, _together(problem))[0](
        blocks, stream, x.address, weight.address, bias.address if bias is not None else 0, y.address, winner.address,
        greatest, _geometry(problem), shared=4 * problem.filters * launch_direct.padded(taps + 1),
    )  # fmt: skip
    return y, winner


def gradients(
    dy: DeviceArray, winner: DeviceArray, x: DeviceArray, dweight: DeviceArray, dbias: DeviceArray, problem: Problem
) -> bool:
    """dweight, which lies in one piece, and dbias of a problem that is served, from the pooled output's; always."""
    together, size = _together(problem), dweight.size + dbias.size
    parts, pixels = -(-problem.filters // together), dy.shape[0] * math.prod(dy.shape[2:])
    blocks = min(
        -(-pixels // THREADS), max(1, launch_direct.GRADIENT_BLOCKS * multiprocessors(x.place.device) // parts)
    )
    lines, stream = blocks * THREADS // 32, x.place.stream
    shares = x.place.empty((lines * size,), "float32")
    _kernels(problem.channels, *problem.taps, together)[1](
        (blocks, parts), stream, x.address, dy.address, winner.address, shares.address, _geometry(problem)
    )
    launch_direct.sum_up(shares, dweight, lines, stream, behind=dbias)
    return True
