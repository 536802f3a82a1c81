"""Direct convolution on the micro-kernel: no image is unrolled, no product saved, no sum split.

A task is a strip of rows of one image and group. The strip is copied, padded, into the second-level cache as
`[c][column phase][row][pitch]`: there a filter tap is one constant offset, whatever stride and dilation are. Then, for
one panel of filters after the other, `multiply` runs over tiles of pixels; their sums are laid pixel by pixel into a
scratch, with a lane for each filter, and turned from there into rows of y.

The input gradient is the same sweep: dy is swept with the filter's taps, and for stride s the s*s phases of dx each
take the taps that reach them.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from kernelproof.spec import Window

from ..launch import in_turn, loop, ready, serial, share, threads
from ..micro_kernels import VECTORS, claim_lines, copy_lanes, from_lanes, multiply, pool_lanes, to_lanes
from ..vectors import LANES, call, take
from ..workspace import borrowed
from .strips import copy_planes, copy_strip
from .sweep import Plan, as_long_rows, backward, forward


def conv2d(x: Any, weight: Any, bias: Any, window: Window, groups: int, relu: bool = False) -> Any:
    """y by one sweep; each element is one chain of fused multiply-adds, bias first, channels, then taps row-major.

    `relu` is applied to what is still in the cache.
    """
    x_shape = as_long_rows(window, x.shape)
    plan = forward(window, x_shape, weight.shape, groups)
    y = np.empty((len(x), len(weight), window.p(x.shape), window.q(x.shape)), np.float32)
    _sweep_all(plan, ready(x).reshape(x_shape), ready(weight), _packing(weight), bias, (y, _NO_WINNERS), relu)
    return y


def pooled_conv2d(x: Any, weight: Any, bias: Any, window: Window, groups: int, relu: bool) -> tuple[Any, Any]:
    """`conv2d`, `relu` of it if asked, and its maxima in windows of 2 x 2 with stride 2; also which of the four won.

    All of it while the sums are in the cache: only maxima and their places, as int32, are written to memory.
    """
    plan = forward(window, x.shape, weight.shape, groups, True)
    shape = len(x), len(weight), plan.sweep.rows // 2, plan.sweep.columns // 2
    y, winner = np.empty(shape, np.float32), np.empty(shape, np.int32)
    _sweep_all(plan, ready(x), ready(weight), _packing(weight), bias, (y, winner), relu)
    return y, winner


_NO_WINNERS = np.empty((0, 0, 0, 0), np.int32)


def _packing(weight: Any) -> "Packing":
    """Of one filter, channels and taps lie in a row."""
    return Packing(1, 0, weight[0].size, weight[0].size)


def conv2d_dx(dy: Any, weight: Any, x_shape: tuple[int, ...], window: Window, groups: int) -> Any:
    """dx by one sweep; each element is one chain of fused multiply-adds, filters, then taps row-major."""
    k, c_of_group, r, s = weight.shape
    plan = backward(window, as_long_rows(window, x_shape), weight.shape, groups)
    # The sweep's channels are the filters; taps in the order of the phases that they belong to.
    weight = ready(weight).reshape(k, c_of_group, r * s)
    if window.stride != (1, 1):
        weight = ready(weight[:, :, plan.order])
    packing = Packing(k // groups, c_of_group * len(plan.order), len(plan.order), len(plan.order))
    dx = np.empty(x_shape, np.float32)
    _sweep_all(plan, ready(dy), weight, packing, None, (dx, _NO_WINNERS), False)
    return dx


class Packing(NamedTuple):
    """Where weights stand in floats: `times` blocks, `block` apart, of rows `row` apart and `columns`."""

    times: int
    block: int
    row: int
    columns: int


class Routines(NamedTuple):
    """Addresses of the micro-kernels; `multiply` for whole panels of filters, `multiply_last` for the last one."""

    to_lanes: int
    copy_lanes: int
    copy_planes: int
    claim: int
    multiply: int
    multiply_last: int
    pool: int
    from_lanes: int


def _sweep_all(plan: Plan, x: Any, weight: Any, packing: Packing, bias: Any, y: tuple[Any, Any], relu: bool) -> None:
    """Pack the weights, then sweep; y, with the winners if it is pooled, is in whatever shape its memory is."""
    sweep = plan.sweep
    starts = np.zeros((sweep.groups, -(-sweep.filters // LANES) * LANES), np.float32)
    if bias is not None:
        starts[:, : sweep.filters] = bias.reshape(sweep.groups, sweep.filters)
    workers = threads()
    of_strip = sweep.strip * sweep.row_step * sweep.columns * sweep.filters * sweep.channels
    with borrowed(plan.packed + workers * plan.scratch) as memory:
        share(
            _convolve, len(x) * sweep.groups * sweep.strips, of_strip * max(1, sweep.taps // len(plan.phases)),
            weight, packing, x, memory, plan.packed, plan.scratch, (plan.copied, plan.summed, plan.winners), starts,
            *y, (plan.phases, plan.offsets, plan.copies), sweep,
            _routines(sweep.column_stride, sweep.pixels, sweep.filters, sweep.pooled, int(relu)),
        )  # fmt: skip


@functools.cache
def _routines(column_stride: int, pixels: int, filters: int, pooled: int, relu: int) -> Routines:
    vectors = -(-filters // LANES)
    return Routines(
        to_lanes.address(), copy_lanes.address(), copy_planes.address(step=column_stride), claim_lines.address(),
        multiply.address(pixels=pixels, vectors=VECTORS, pixel_step=4),
        multiply.address(pixels=pixels, vectors=vectors - (vectors - 1) // VECTORS * VECTORS, pixel_step=4),
        pool_lanes.address(relu=relu), from_lanes.address(relu=relu and 1 - pooled),
    )  # fmt: skip


@in_turn
def _convolve(
    workers, counter, last, weight, packing, x, memory, packed, scratch, parts, starts, y, winner, tables, sweep,
    routines,
):  # fmt: skip
    """The weights are packed before the first task."""
    if counter[0] == 0:
        vectors = sweep.groups * -(-sweep.filters // LANES)
        _pack(workers, np.zeros(1, np.int64), vectors, weight, packing, sweep, memory, routines)
    _sweep(workers, counter, last, x, memory, packed, scratch, parts, starts, y, winner, tables, sweep, routines)


@loop
def _pack(workers, counter, last, weight, packing, sweep, packed, routines):
    """`packed[group][panel][c][tap][lane]`: a vector of filters is a task."""
    for _ in prange(workers):
        task = take(counter)
        while task < last:
            _pack_vector(task, weight.ctypes.data, packing, sweep, packed.ctypes.data, routines)
            task = take(counter)


@serial
def _pack_vector(task, weight, packing, sweep, packed, routines):
    vectors = -(-sweep.filters // LANES)
    group, vector = task // vectors, task % vectors
    in_panel = min(VECTORS, vectors - vector // VECTORS * VECTORS)
    first = vector * LANES
    filters = min(LANES, sweep.filters - first)
    terms = sweep.channels * sweep.taps
    source = weight + 4 * (
        group * (packing.times * packing.block if packing.block else sweep.filters * packing.row) + first * packing.row
    )
    target = packed + 4 * LANES * ((group * vectors + vector // VECTORS * VECTORS) * terms + vector % VECTORS)
    of_term = 4 * LANES * in_panel
    for _ in range(packing.times):
        if packing.row == 1:  # Filters are neighbours already.
            call(routines.copy_lanes, (source, filters, target))
        else:
            call(routines.to_lanes, (source, 4 * packing.row, filters, packing.columns, target, of_term))
        source += 4 * packing.block
        target += of_term * packing.columns


@loop
def _sweep(workers, counter, last, x, memory, packed, scratch, parts, starts, y, winner, tables, sweep, routines):
    of_filter = y.shape[2] * y.shape[3]
    for worker in prange(workers):
        task = take(counter)
        while task < last:
            image = task // sweep.strips
            group = image % sweep.groups
            own = memory.ctypes.data + 4 * (packed + worker * scratch)
            _strip(
                x.ctypes.data + 4 * image * sweep.channels * sweep.height * sweep.width,
                memory.ctypes.data + 4 * group * -(-sweep.filters // LANES) * LANES * sweep.channels * sweep.taps,
                starts[group].ctypes.data,
                y.ctypes.data + 4 * image * sweep.filters * of_filter,
                winner.ctypes.data + 4 * image * sweep.filters * of_filter,
                own, own + 4 * parts[0], own + 4 * (parts[0] + parts[1]), 4 * parts[2],
                task % sweep.strips * sweep.strip,
                tables, sweep, routines,
            )  # fmt: skip
            task = take(counter)


@serial
def _strip(x, weight, start, y, winner, copy, sums, maxima, of_maxima, first, tables, sweep, routines):
    """Rows `first ..` of every phase, for all filters of a group; arrays and scratch by their addresses."""
    phases, offsets, copies = tables
    rows = min(sweep.strip, -(-sweep.rows // sweep.row_step) - first)
    copy_strip(x, copy, first, rows, copies, sweep, routines.copy_planes)
    begin = first * sweep.row_step
    written = min(sweep.rows, begin + rows * sweep.row_step) - begin
    done = 0
    while done < sweep.filters:
        vectors = min(VECTORS, -(-(sweep.filters - done) // LANES))
        _panel(copy, weight, start, sums, y, first, rows, done, vectors, phases, offsets, sweep, routines)
        for vector in range(vectors):
            of_pixel = 4 * LANES * vectors
            source, filters = sums + 4 * LANES * vector, min(LANES, sweep.filters - done)
            if sweep.pooled:
                q = sweep.columns // 2
                of_image, at = 4 * (sweep.rows // 2) * q, 4 * (begin // 2) * q
                call(routines.pool, (
                    source, of_pixel, sweep.columns * of_pixel, q, written // 2, maxima, maxima + of_maxima,
                ))  # fmt: skip
                pixels = written // 2 * q
                call(routines.from_lanes, (maxima, 4 * LANES, pixels, y + done * of_image + at, of_image, filters))
                call(routines.from_lanes, (
                    maxima + of_maxima, 4 * LANES, pixels, winner + done * of_image + at, of_image, filters,
                ))  # fmt: skip
            else:
                of_image, at = 4 * sweep.rows * sweep.columns, 4 * begin * sweep.columns
                call(routines.from_lanes, (
                    source, of_pixel, written * sweep.columns, y + done * of_image + at, of_image, filters,
                ))  # fmt: skip
            done += LANES
        weight += 4 * LANES * vectors * sweep.channels * sweep.taps
        start += 4 * LANES * vectors


@serial
def _panel(copy, weight, start, sums, y, first, rows, done, vectors, phases, offsets, sweep, routines):
    """A panel of filters `done ..` over the strip's rows: `sums[pixel][lane]`, pixels as in y."""
    of_pixel, of_row = 4 * LANES * vectors, 4 * sweep.row_stride * sweep.pitch
    of_channel = 4 * sweep.column_stride * sweep.height_of_copy * sweep.pitch
    of_image = 4 * sweep.rows * sweep.columns
    claimed = 0 if sweep.pooled else min(vectors * LANES, sweep.filters - done)
    for phase in range(len(phases)):
        a, b, tap, taps = phases[phase]
        columns = -(-(sweep.columns - b) // sweep.column_step)
        for i in range(rows):
            p = (first + i) * sweep.row_step + a
            if p >= sweep.rows:
                break
            row = (i * sweep.row_step + a) * sweep.columns
            for tile in range(-(-columns // sweep.pixels)):
                # The last tile overlaps the one before, which computed the same.
                q = min(tile * sweep.pixels, columns - sweep.pixels)
                at = b + q * sweep.column_step
                # What the sums are turned into comes near meanwhile.
                call(routines.claim, (y + done * of_image + 4 * (p * sweep.columns + at), of_image, claimed, 1))
                call(routines.multiply if vectors == VECTORS else routines.multiply_last, (
                    copy + i * of_row + 4 * q, of_channel, sweep.channels, offsets.ctypes.data + 8 * tap, taps,
                    weight + tap * of_pixel, sweep.taps * of_pixel, start,
                    sums + (row + at) * of_pixel, sweep.column_step * of_pixel,
                ))  # fmt: skip
