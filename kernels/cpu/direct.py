"""Direct convolution on the micro-kernel: no image is unrolled, no product saved, no sum split.

A task is a strip of rows of one image and group. The strip is copied, padded, into the second-level cache as
`[c][row][column phase][pitch]`: there a filter tap is one constant offset, whatever stride and dilation are. Then, for
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

from .launch import parallel, ready, serial, share, threads
from .micro_kernels import PIXELS, VECTORS, copy_row, from_lanes, multiply, to_lanes
from .vectors import LANES, call, take
from .workspace import borrowed, in_lines

_STRIP = 2**18
"""Bytes of a strip's copy, and of its sums: together they leave room in a second-level cache for a panel of weights."""

_LONG_ROW = 256
"""Pixels that are worth making a row of, if rows may be joined: they are copied at one go."""

_TASKS = 16
"""Tasks where there are rows enough: a thread that is held up leaves the others work."""


class Sweep(NamedTuple):
    """`y[k, i*row_step + a, j*column_step + b] = sum_ct x[c, i*row_stride + row_t - top, ...] * weight[c,t,k]`.

    One sweep serves forward (one phase, steps of one) and input gradient (strides of one, a phase for every (a, b)).
    """

    groups: int
    channels: int
    height: int
    width: int
    filters: int
    rows: int
    columns: int
    row_stride: int
    column_stride: int
    row_step: int
    column_step: int
    top: int
    left: int
    span: int
    taps: int
    pitch: int
    strip: int
    strips: int
    pixels: int


class Plan(NamedTuple):
    """A sweep with its tables: `phases[(a, b, first tap, taps)]`, the `offsets` of taps in bytes, and their `order`."""

    sweep: Sweep
    phases: np.ndarray
    offsets: np.ndarray
    order: np.ndarray

    @property
    def panels(self) -> int:
        """Vectors of filters that weights are packed in, one group after the other."""
        return self.sweep.groups * -(-self.sweep.filters // LANES)

    @property
    def packed(self) -> int:
        """Floats of the packed weights."""
        return self.panels * LANES * self.sweep.channels * self.sweep.taps

    @property
    def scratch(self) -> int:
        """Floats that a thread works in: the strip's copy and its sums."""
        return self.copied + in_lines(
            (self.sweep.strip * self.sweep.row_step * self.sweep.columns + LANES) * VECTORS * LANES
        )

    @property
    def copied(self) -> int:
        """Floats of a strip's copy."""
        sweep = self.sweep
        rows = (sweep.strip - 1) * sweep.row_stride + sweep.span
        return in_lines(sweep.channels * rows * sweep.column_stride * sweep.pitch)


@functools.lru_cache(maxsize=256)
def forward(window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int) -> Plan:
    """The sweep that is `conv2d`."""
    (n, c, h, w), (k, *_) = x_shape, weight_shape
    (top, _), (left, _) = window.padding
    taps = [
        (r * window.dilation[0] - top, s * window.dilation[1] - left)
        for r in range(window.kernel[0])
        for s in range(window.kernel[1])
    ]
    return _planned(
        n, groups, (c // groups, h, w), (k // groups, window.p(x_shape), window.q(x_shape)),
        window.stride, (1, 1), [(0, 0, list(enumerate(taps)))],
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def backward(window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int) -> Plan:
    """The sweep that is `conv2d_dx`: `dx[h] = sum_r dy[(h + pad - r*dilation) / stride]` where that is whole."""
    (n, c, h, w), (k, _, kernel_r, kernel_s) = x_shape, weight_shape
    (top, _), (left, _) = window.padding
    phases = []
    for a in range(min(window.stride[0], h)):
        for b in range(min(window.stride[1], w)):
            reached = [
                (r * kernel_s + s, (p // window.stride[0], q // window.stride[1]))
                for r in range(kernel_r)
                for s in range(kernel_s)
                for p, q in [(a + top - r * window.dilation[0], b + left - s * window.dilation[1])]
                if p % window.stride[0] == 0 and q % window.stride[1] == 0
            ]
            phases.append((a, b, reached))
    return _planned(
        n, groups, (k // groups, window.p(x_shape), window.q(x_shape)), (c // groups, h, w),
        (1, 1), window.stride, phases,
    )  # fmt: skip


def _planned(
    n: int, groups: int, source: tuple[int, int, int], target: tuple[int, int, int],
    stride: tuple[int, int], step: tuple[int, int], phases: list[tuple[int, int, list[Any]]],
) -> Plan:  # fmt: skip
    (channels, height, width), (filters, rows, columns) = source, target
    reached = [at for _, _, taps in phases for _, at in taps]
    first_row, first_column = (min((at[axis] for at in reached), default=0) for axis in (0, 1))
    last_row, last_column = (max((at[axis] for at in reached), default=0) for axis in (0, 1))
    span = last_row - first_row + 1
    # Every phase has at least as many pixels in a row as the last; tiles as even as can be, the last one overlapping.
    narrowest = max(1, columns // step[1])
    pixels = -(-narrowest // -(-narrowest // PIXELS))
    widest = -(-columns // step[1])
    pitch = max(
        widest - 1 + (last_column - first_column) // stride[1] + 1, -(-(width - min(first_column, 0)) // stride[1]) + 1
    )
    strip_rows = -(-rows // step[0])

    def fits(strip: int) -> bool:
        copied = 4 * channels * ((strip - 1) * stride[0] + span) * stride[1] * pitch
        sums = 4 * strip * step[0] * columns * VECTORS * LANES
        return max(copied, sums) <= _STRIP

    strip = max([1, *(each for each in range(1, strip_rows + 1) if fits(each))])
    strip = min(strip, max(1, strip_rows * n * groups // _TASKS))
    strips = -(-strip_rows // strip)
    strip = -(-strip_rows // strips)
    table, offsets, order = [], [], []
    for a, b, taps in phases:
        table.append((a, b, len(offsets), len(taps)))
        for tap, (row, column) in taps:
            order.append(tap)
            phase, shift = (column - first_column) % stride[1], (column - first_column) // stride[1]
            offsets.append(4 * (((row - first_row) * stride[1] + phase) * pitch + shift))
    sweep = Sweep(
        groups, channels, height, width, filters, rows, columns, *stride, *step, -first_row, -first_column, span,
        len(order), pitch, strip, strips, pixels,
    )  # fmt: skip
    return Plan(sweep, np.array(table, np.int64), np.array(offsets, np.int64), np.array(order, np.int64))


def conv2d(x: Any, weight: Any, bias: Any, window: Window, groups: int, relu: bool = False) -> Any:
    """y by one sweep; each element is one chain of fused multiply-adds, bias first, channels, then taps row-major."""
    k, c_of_group, r, s = weight.shape
    x_shape = _as_long_rows(window, x.shape)
    plan = forward(window, x_shape, weight.shape, groups)
    # Of one filter, channels and taps lie in a row.
    packing = Packing(1, 0, c_of_group * r * s, c_of_group * r * s)
    y = np.empty((len(x), k, window.p(x.shape), window.q(x.shape)), np.float32)
    _sweep_all(plan, ready(x).reshape(x_shape), ready(weight), packing, bias, y, relu)
    return y


def conv2d_dx(dy: Any, weight: Any, x_shape: tuple[int, ...], window: Window, groups: int) -> Any:
    """dx by one sweep; each element is one chain of fused multiply-adds, filters, then taps row-major."""
    k, c_of_group, r, s = weight.shape
    plan = backward(window, _as_long_rows(window, x_shape), weight.shape, groups)
    # The sweep's channels are the filters; taps in the order of the phases that they belong to.
    weight = ready(weight).reshape(k, c_of_group, r * s)
    if window.stride != (1, 1):
        weight = ready(weight[:, :, plan.order])
    packing = Packing(k // groups, c_of_group * len(plan.order), len(plan.order), len(plan.order))
    dx = np.empty(x_shape, np.float32)
    _sweep_all(plan, ready(dy), weight, packing, None, dx, False)
    return dx


def _as_long_rows(window: Window, x_shape: tuple[int, ...]) -> tuple[int, ...]:
    """For a window of one pixel, which does not care where a row ends: the image with several of its rows as one."""
    n, c, h, w = x_shape
    if window != Window((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)):
        return n, c, h, w
    together = max([1, *(rows for rows in range(1, h + 1) if h % rows == 0 and rows * w <= _LONG_ROW)])
    return n, c, h // together, w * together


class Packing(NamedTuple):
    """Where weights stand in floats: `times` blocks, `block` apart, of rows `row` apart and `columns`."""

    times: int
    block: int
    row: int
    columns: int


def _sweep_all(plan: Plan, x: Any, weight: Any, packing: Packing, bias: Any, y: Any, relu: bool) -> None:
    """Pack the weights, then sweep; y is in whatever shape its memory is."""
    sweep = plan.sweep
    vectors = -(-sweep.filters // LANES)
    last = vectors - (vectors - 1) // VECTORS * VECTORS
    routines = np.array(
        [
            to_lanes.address(),
            copy_row.address(step=sweep.column_stride),
            multiply.address(pixels=sweep.pixels, vectors=VECTORS, pixel_step=4),
            multiply.address(pixels=sweep.pixels, vectors=last, pixel_step=4),
            from_lanes.address(relu=int(relu)),
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
            _sweep, tasks, cost, x, memory, plan.packed, plan.scratch, plan.copied, starts, y, plan.phases,
            plan.offsets, sweep, routines,
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
def _sweep(workers, counter, last, x, memory, packed, scratch, copied, starts, y, phases, offsets, sweep, routines):
    for worker in prange(workers):
        task = take(counter)
        while task < last:
            image, strip = task // sweep.strips, task % sweep.strips
            group = image % sweep.groups
            _strip(
                x.ctypes.data + 4 * image * sweep.channels * sweep.height * sweep.width,
                memory.ctypes.data + 4 * group * -(-sweep.filters // LANES) * LANES * sweep.channels * sweep.taps,
                starts[group].ctypes.data,
                y.ctypes.data + 4 * image * sweep.filters * sweep.rows * sweep.columns,
                memory.ctypes.data + 4 * (packed + worker * scratch),
                memory.ctypes.data + 4 * (packed + worker * scratch + copied),
                strip * sweep.strip, phases, offsets, sweep, routines,
            )  # fmt: skip
            task = take(counter)


@serial
def _strip(x, weight, start, y, copy, sums, first, phases, offsets, sweep, routines):
    """Rows `first ..` of every phase, for all filters of a group, at addresses x, weight, start, y, copy and sums."""
    rows = min(sweep.strip, -(-sweep.rows // sweep.row_step) - first)
    of_row, of_channel = _copy_strip(x, copy, first, rows, sweep, routines)
    of_image = 4 * sweep.rows * sweep.columns
    begin = first * sweep.row_step
    pixels = (min(sweep.rows, begin + rows * sweep.row_step) - begin) * sweep.columns
    done = 0
    while done < sweep.filters:
        vectors = min(VECTORS, -(-(sweep.filters - done) // LANES))
        routine = routines[2] if vectors == VECTORS else routines[3]
        _panel(copy, of_row, of_channel, weight, start, sums, first, rows, vectors, routine, phases, offsets, sweep)
        for vector in range(vectors):
            call(routines[4], (
                sums + 4 * LANES * vector, 4 * LANES * vectors, pixels,
                y + done * of_image + 4 * begin * sweep.columns, of_image, min(LANES, sweep.filters - done),
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
