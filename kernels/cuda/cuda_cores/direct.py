"""Convolutions with few channels or few filters in a group, on the GPU's ordinary arithmetic: first layers, depthwise.

Tensor cores want 16 channels and 64 filters; with one of each they would multiply zeros. Here a thread holds the inputs
of one output pixel in registers and computes all filters of the group (few channels), or walks over the channels for
one filter (few filters). Accumulated in float32, taps in the order c, r, s, bias last. Any
strides of x, weight and y, so input gradients are served as in launch_conv.py; any padding, stride, dilation.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from .. import ptx
from ..tensor_cores.arithmetic import CHANNELS, gather, gatherer
from ..tensor_cores.slots import divided
from .windows import add_on, dots_for, dots_of, finished_of, outer_add_of, stored_of, warp_sums_of, window_of, zeros_of

THREADS = 128
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


@cuda.jit(device=True)
def pixel_of(i, g):
    """Image, row and column of an output pixel."""
    n = divided(i, g.pixels_multiplier, g.pixels_shift)
    rest = types.int32(i - n * g.pixels)
    p = divided(rest, g.q_multiplier, g.q_shift)
    return n, p, types.int32(rest - p * g.q)


@cuda.jit(device=True)
def stage_weights(weight, bias, shared, count, padded, rows, row, g):
    """The group's weights to shared memory: for each filter its `count` taps `[c][r][s]`, its bias where there is one
    and room for it, and zeros up to `padded` numbers."""
    for i in range(cuda.threadIdx.x, g.filters * padded, cuda.blockDim.x):
        k, j = divmod(i, padded)
        value = types.float32(0)
        if j < count:
            rest, s = divmod(j, row)
            c, r = divmod(rest, rows)
            at = types.int64(k) * g.w_filter + c * g.w_channel + r * g.w_r + s * g.w_s
            value = ptx.load_global(weight + at * 4)
        elif j == count and bias != 0:
            value = ptx.load_global(bias + types.int64(k) * 4)
        ptx.store_shared(shared + i * 4, value)
    cuda.syncthreads()


@functools.cache
def few_channels(channels: int, rows: int, row: int, tall: int, step: int) -> Any:
    """One thread per group and `tall` pixels, one below the other, with all their windows' inputs in registers.

    All filters of the group in turn; taps in the order c, r, s, bias last. `step` is the stride from row to row.
    """
    inputs, dots = window_of(channels, rows + (tall - 1) * step, row), dots_of(channels, rows, row, tall, step)
    zero, finished, store = zeros_of(tall), finished_of(tall), stored_of(tall, 1)
    count = channels * rows * row
    padded = count // 4 * 4 + 4

    def kernel(x, weight, bias, y, g):
        shared, group = ptx.dynamic_shared(), cuda.blockIdx.y
        if bias != 0:
            bias += types.int64(group) * g.filters * 4
        stage_weights(weight + types.int64(group) * g.w_group * 4, bias, shared, count, padded, rows, row, g)
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
                filter_ = types.int32(shared + k * padded * 4)
                sums, more = dots(zero(), values, filter_), ptx.load_shared(types.int32(filter_ + count * 4))
                store(finished(sums, more, g.rectify), at, types.int64(g.y_h) * 4, left)
                at += types.int64(g.y_k) * 4

    return kernel


@functools.cache
def few_filters(filters: int, rows: int, row: int) -> Any:
    """One thread per pixel, group and so many filters, which divide the group's (the grid's second axis); channels in
    turn: inputs are read once for all of these filters."""
    count, zero, finished, store = rows * row, zeros_of(filters), finished_of(1), stored_of(1, 1)
    inputs, dots, padded = window_of(1, rows, row), dots_for(filters, count), -(-count // 4) * 4

    def kernel(x, weight, bias, y, g):
        shared, blocks = ptx.dynamic_shared(), g.filters // filters
        group, first_k = cuda.blockIdx.y // blocks, cuda.blockIdx.y % blocks * filters
        weight += (types.int64(group) * g.w_group + types.int64(first_k) * g.w_filter) * 4
        for i in range(cuda.threadIdx.x, g.channels * filters * padded, cuda.blockDim.x):
            rest, j = divmod(i, padded)
            c, k = divmod(rest, filters)
            value = types.float32(0)
            if j < count:
                at = types.int64(k) * g.w_filter + types.int64(c) * g.w_channel + j // row * g.w_r + j % row * g.w_s
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
                sums = dots(sums, values, shared + types.int32(c) * (filters * padded * 4))
                plane += types.int64(g.x_c) * 4
            for k in range(filters):
                channel = types.int64(group) * g.filters + first_k + k
                more = types.float32(0)
                if bias != 0:
                    more = ptx.load_global(bias + channel * 4)
                at = types.int64(n) * g.y_n + channel * g.y_k + types.int64(p) * g.y_h + types.int64(q) * g.y_w
                store(finished((sums[k],), more, g.rectify), y + at * 4, 0, 1)

    return kernel


@functools.cache
def few_channels_gradient(rows: int, row: int, filters: int, height: int) -> Any:
    """The weight gradient: the grid's second axis is a group, a channel, so many rows of the filter's `height` and so
    many filters; each thread sums a share.

    Warps add theirs in a fixed tree, and `shares[warp]` is laid out as dweight in row-major order.
    """
    taps, parts, of_filter = rows * row, height // rows, height * row
    inputs, add, zero = window_of(1, rows, row), outer_add_of(filters, taps), zeros_of(filters * taps)
    factors, warp_sums, store = gatherer(filters), warp_sums_of(filters * taps), stored_of(filters, taps)

    def kernel(x, dy, shares, g):
        blocks = (g.filters + filters - 1) // filters
        rest, block = divmod(cuda.blockIdx.y, blocks)
        rest, part = divmod(rest, parts)
        group, c = divmod(rest, g.channels)
        k = group * g.filters + block * filters
        count = types.int32(min(filters, g.filters - block * filters))
        top = types.int32(g.top - part * rows * g.dilation_h)
        sums = zero()
        for i in range(cuda.grid(1), g.images * g.pixels, cuda.gridsize(1)):
            n, p, q = pixel_of(types.int32(i), g)
            h, w = types.int32(p * g.stride_h - top), types.int32(q * g.stride_w - g.left)
            first = types.int64(n) * g.x_n + (types.int64(group) * g.channels + c) * g.x_c + types.int64(h) * g.x_h
            values = inputs(
                x + (first + types.int64(w) * g.x_w) * 4, h, w, g.height, g.width,
                g.x_c * 4, g.dilation_h * g.x_h * 4, g.dilation_w * g.x_w * 4, g.dilation_h, g.dilation_w,
            )  # fmt: skip
            at = types.int64(n) * g.y_n + types.int64(k) * g.y_k + types.int64(p) * g.y_h + types.int64(q) * g.y_w
            sums = add(sums, values, factors(dy + at * 4, g.y_k * 4, count))
        sums = warp_sums(sums)
        if cuda.threadIdx.x & 31 == 0:
            groups = cuda.gridDim.y // (g.channels * parts * blocks)
            line = types.int64(cuda.grid(1) >> 5) * groups * g.filters + k
            at = shares + ((line * g.channels + c) * of_filter + part * taps) * 4
            store(sums, at, types.int64(g.channels) * of_filter * 4, count)

    return kernel


@functools.cache
def sum_of_shares(warps: int) -> Any:
    """`result[i] = sum_j shares[j][i]`, from entry `of_result` on in `behind`.

    Of so many warps each adds every `warps`-th share of 32 entries in rising order, sixteen on their way at a time, and
    what the warps have is added in rising order too.
    """
    threads = 32 * warps

    def kernel(shares, result, behind, of_result, lines, size):
        partial = cuda.shared.array(threads, types.float32)
        thread = types.int32(cuda.threadIdx.x)
        warp, entry = thread >> 5, cuda.blockIdx.x * 32 + (thread & 31)
        total, at, step = types.float32(0), shares + (warp * size + entry) * 4, warps * size * 4
        for left in range((lines - warp + warps - 1) // warps if entry < size else 0, 0, -CHANNELS):
            total = add_on(total, gather(at, types.int32(step), types.int32(left)))
            at += step * CHANNELS
        partial[thread] = total
        cuda.syncthreads()
        if warp == 0 and entry < size:
            for i in range(1, warps):
                total += partial[thread + i * 32]
            if entry < of_result:
                ptx.store_global(result + entry * 4, total)
            else:
                ptx.store_global(behind + (entry - of_result) * 4, total)

    return kernel


SUM = types.void(*[types.int64] * 6)
"""shares, result, what follows it or 0, entries of the result, how many shares, entries of a share."""
