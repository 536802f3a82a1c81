"""Direct convolution on the micro-kernel: no image is unrolled, no product saved, no sum split.

A task is a strip of rows of one image and group. The strip is copied, padded, into the second-level cache as
`[c][row][column phase][pitch]`: there a filter tap is one constant offset, whatever stride and dilation are. Then, for
one panel of filters after the other, `multiply` runs over tiles of pixels; their sums are laid pixel by pixel into a
scratch, with a lane for each filter, and turned from there into rows of y.

The input gradient is the same sweep: dy is swept with the filter's taps, and for stride s the s*s phases of dx each
take the taps that reach them.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import prange

from kernelproof.spec import Window

from .launch import parallel, ready, serial, share, threads
from .micro_kernels import VECTORS, copy_row, from_lanes, multiply, pool_lanes, to_lanes
from .sweep import Plan, as_long_rows, backward, forward
from .vectors import LANES, call, take
from .workspace import borrowed


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


def _sweep_all(plan: Plan, x: Any, weight: Any, packing: Packing, bias: Any, y: tuple[Any, Any], relu: bool) -> None:
    """Pack the weights, then sweep; y, with the winners if it is pooled, is in whatever shape its memory is."""
    sweep = plan.sweep
    vectors = -(-sweep.filters // LANES)
    last = vectors - (vectors - 1) // VECTORS * VECTORS
    routines = np.array(
        [
            to_lanes.address(),
            copy_row.address(step=sweep.column_stride),
            multiply.address(pixels=sweep.pixels, vectors=VECTORS, pixel_step=4),
            multiply.address(pixels=sweep.pixels, vectors=last, pixel_step=4),
            from_lanes.address(relu=int(relu and not sweep.pooled)),
            pool_lanes.address(relu=int(relu)),
        ]
    )
    starts = np.zeros((sweep.groups, vectors * LANES), np.float32)
    if bias is not None:
        starts[:, : sweep.filters] = bias.reshape(sweep.groups, sweep.filters)
    workers = threads()
    with borrowed(plan.packed + workers * plan.scratch) as memory:
        share(
            _pack, sweep.groups * vectors, LANES * sweep.channels * sweep.taps, weight, packing, sweep, memory, routines
        )
        tasks = len(x) * sweep.groups * sweep.strips
        cost = (
            sweep.strip
            * sweep.row_step
            * sweep.columns
            * sweep.filters
            * sweep.channels
            * max(1, sweep.taps // len(plan.phases))
        )
        share(
            _sweep, tasks, cost, x, memory, plan.packed, plan.scratch, (plan.copied, plan.summed, plan.winners), starts,
            *y, plan.phases, plan.offsets, sweep, routines,
        )  # fmt: skip


@parallel
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
    terms = sweep.channels * sweep.taps
    source = weight + 4 * (
        group * (packing.times * packing.block if packing.block else sweep.filters * packing.row) + first * packing.row
    )
    target = packed + 4 * LANES * ((group * vectors + vector // VECTORS * VECTORS) * terms + vector % VECTORS)
    for _ in range(packing.times):
        call(
            routines[0],
            (source, 4 * packing.row, min(LANES, sweep.filters - first), packing.columns, target, 4 * LANES * in_panel),
        )
        source += 4 * packing.block
        target += 4 * LANES * in_panel * packing.columns


@parallel
def _sweep(
    workers, counter, last, x, memory, packed, scratch, parts, starts, y, winner, phases, offsets, sweep, routines
):
    of_filter = y.shape[2] * y.shape[3]
    for worker in prange(workers):
        task = take(counter)
        while task < last:
            image, strip = task // sweep.strips, task % sweep.strips
            group = image % sweep.groups
            own = memory.ctypes.data + 4 * (packed + worker * scratch)
            _strip(
                x.ctypes.data + 4 * image * sweep.channels * sweep.height * sweep.width,
                memory.ctypes.data + 4 * group * -(-sweep.filters // LANES) * LANES * sweep.channels * sweep.taps,
                starts[group].ctypes.data,
                y.ctypes.data + 4 * image * sweep.filters * of_filter,
                winner.ctypes.data + 4 * image * sweep.filters * of_filter,
                own, own + 4 * parts[0], own + 4 * (parts[0] + parts[1]), 4 * parts[2],
                strip * sweep.strip, phases, offsets, sweep, routines,
            )  # fmt: skip
            task = take(counter)


@serial
def _strip(x, weight, start, y, winner, copy, sums, maxima, of_maxima, first, phases, offsets, sweep, routines):
    """Rows `first ..` of every phase, for all filters of a group; arrays and scratch by their addresses."""
    rows = min(sweep.strip, -(-sweep.rows // sweep.row_step) - first)
    of_row, of_channel = _copy_strip(x, copy, first, rows, sweep, routines)
    begin = first * sweep.row_step
    written = min(sweep.rows, begin + rows * sweep.row_step) - begin
    done = 0
    while done < sweep.filters:
        vectors = min(VECTORS, -(-(sweep.filters - done) // LANES))
        routine = routines[2] if vectors == VECTORS else routines[3]
        _panel(copy, of_row, of_channel, weight, start, sums, first, rows, vectors, routine, phases, offsets, sweep)
        for vector in range(vectors):
            of_pixel = 4 * LANES * vectors
            source, filters = sums + 4 * LANES * vector, min(LANES, sweep.filters - done)
            if sweep.pooled:
                q = sweep.columns // 2
                of_image, at = 4 * (sweep.rows // 2) * q, 4 * (begin // 2) * q
                call(routines[5], (
                    source, of_pixel, sweep.columns * of_pixel, q, written // 2, maxima, maxima + of_maxima,
                ))  # fmt: skip
                pixels = written // 2 * q
                call(routines[4], (maxima, 4 * LANES, pixels, y + done * of_image + at, of_image, filters))
                call(routines[4], (
                    maxima + of_maxima, 4 * LANES, pixels, winner + done * of_image + at, of_image, filters,
                ))  # fmt: skip
            else:
                of_image, at = 4 * sweep.rows * sweep.columns, 4 * begin * sweep.columns
                call(routines[4], (
                    source, of_pixel, written * sweep.columns, y + done * of_image + at, of_image, filters,
                ))  # fmt: skip
            done += LANES
        weight += 4 * LANES * vectors * sweep.channels * sweep.taps
        start += 4 * LANES * vectors


@serial
def _copy_strip(x, copy, first, rows, sweep, routines):
    """`copy[c][row][column phase][pitch]`, zero where it is outside x; the bytes of a row of y, and of a channel."""
    phases, pitch = sweep.column_stride, sweep.pitch
    height = (rows - 1) * sweep.row_stride + sweep.span
    for c in range(sweep.channels):
        for i in range(height):
            h = first * sweep.row_stride - sweep.top + i
            for phase in range(phases):
                # The first w that falls in this phase, and how many follow.
                w = max(0, -sweep.left)
                w += (phase - sweep.left - w) % phases
                before = min(pitch, (w + sweep.left) // phases)
                count = min(max(0, -(-(sweep.width - w) // phases)), pitch - before)
                if h < 0 or h >= sweep.height:
                    before, count = pitch, 0
                source = x + 4 * ((c * sweep.height + h) * sweep.width + w)
                call(routines[1], (source, count, copy, before, pitch - before - count))
                copy += 4 * pitch
    return 4 * sweep.row_stride * phases * pitch, 4 * height * phases * pitch


@serial
def _panel(copy, of_row, of_channel, weight, start, sums, first, rows, vectors, routine, phases, offsets, sweep):
    """A panel of filters over the strip's rows: `sums[pixel][lane]`, pixels as in y."""
    of_pixel = 4 * LANES * vectors
    for phase in range(len(phases)):
        a, b, tap, taps = phases[phase]
        columns = -(-(sweep.columns - b) // sweep.column_step)
        for i in range(rows):
            if (first + i) * sweep.row_step + a >= sweep.rows:
                break
            row = sums + (i * sweep.row_step + a) * sweep.columns * of_pixel
            q = 0
            while q < columns:
                # The last tile overlaps the one before, which computed the same.
                q = min(q, columns - sweep.pixels)
                call(routine, (
                    copy + i * of_row + 4 * q, of_channel, sweep.channels, offsets.ctypes.data + 8 * tap, taps,
                    weight + tap * of_pixel, sweep.taps * of_pixel, start,
                    row + (b + q * sweep.column_step) * of_pixel, sweep.column_step * of_pixel,
                ))  # fmt: skip
                q += sweep.pixels
