"""Direct convolution on the micro-kernel: no image is unrolled, no product saved, no sum split.

A task is a strip of rows of one image and group. The strip is copied, padded, into the second-level cache as
`[c][column phase][row][pitch]`: there a filter tap is one constant offset, whatever stride and dilation are. Then, for
one panel of filters after the other, `multiply` runs over tiles of pixels; their sums are laid pixel by pixel into a
scratch, with a lane for each filter, and turned from there into rows of y.

The input gradient is the same sweep: dy is swept with the filter's taps, and for stride s the s*s phases of dx each
take the taps that reach them.
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from kernelproof.spec import Window

from ..launch import in_turn, ready, record, serial, share, sharers
from ..micro_kernels import TOGETHER, VECTORS, claim_lines, copy_lanes, from_lanes, multiply, pool_lanes, to_lanes
from ..vectors import LANES, call, take
from ..workers import on_workers
from ..workspace import borrowed, empty
from .strips import copy_planes, copy_strip
from .sweep import Plan, as_long_rows, backward, forward

_LARGE = {16: 2**60, 8: 2**25, 4: 2**60}[LANES]
"""Bytes of a result that is stored past the caches."""

_CLAIMS = LANES == 16
"""Whether it pays to ask for y's lines early: on AVX2 it does not, and its short tiles are multiplied in one call."""


def conv2d(x: Any, weight: Any, bias: Any, window: Window, groups: int, relu: bool = False) -> Any:
    """y by one sweep; each element is one chain of fused multiply-adds, bias first, channels, then taps row-major.

    `relu` is applied to what is still in the cache.
    """
    work = _forward(window, x.shape, weight.shape, groups, False, relu)
    y = empty(work.y_shape) if work.past else np.empty(work.y_shape, np.float32)
    _sweep_all(work, x, ready(weight), bias, y, _NO_WINNERS)
    return y


def pooled_conv2d(x: Any, weight: Any, bias: Any, window: Window, groups: int, relu: bool) -> tuple[Any, Any]:
    """`conv2d`, `relu` of it if asked, and its maxima in windows of 2 x 2 with stride 2; also which of the four won.

    All of it while the sums are in the cache: only maxima and their places, as int32, are written to memory.
    """
    work = _forward(window, x.shape, weight.shape, groups, True, relu)
    y, winner = np.empty(work.y_shape, np.float32), np.empty(work.y_shape, np.int32)
    _sweep_all(work, x, ready(weight), bias, y, winner)
    return y, winner


_NO_WINNERS = np.empty((0, 0, 0, 0), np.int32)


def conv2d_dx(dy: Any, weight: Any, x_shape: tuple[int, ...], window: Window, groups: int) -> Any:
    """dx by one sweep; each element is one chain of fused multiply-adds, filters, then taps row-major."""
    work = _backward(window, x_shape, weight.shape, groups)
    if window.stride != (1, 1):
        # Taps in the order of the phases that they belong to.
        weight = weight.reshape(*weight.shape[:2], 1, -1)[..., work.order]
    dx = empty(x_shape) if work.past else np.empty(x_shape, np.float32)
    _sweep_all(work, dy, ready(weight), None, dx, _NO_WINNERS)
    return dx


class Packing(NamedTuple):
    """Where weights stand in floats: `times` blocks, `block` apart, of rows `row` apart and `columns`."""

    times: int
    block: int
    row: int
    columns: int


class Routines(NamedTuple):
    """Addresses of the micro-kernels, but for those that multiply."""

    to_lanes: int
    copy_lanes: int
    copy_planes: int
    claim: int
    pool: int
    from_lanes: int


class Parts(NamedTuple):
    """Floats: of the packed weights and what sums start from, then of a thread's copy, sums and maxima, and of all."""

    weights: int
    starts: int
    copied: int
    summed: int
    winners: int
    scratch: int


class Work(NamedTuple):
    """What is known of a sweep before its arrays: y's shape, an image's tasks and their cost, memory in floats.

    y is stored `past` the caches if it is too large for them. `order` is that of the taps; `tables` and the one
    `record` of all numbers are what the core reads.
    """

    y_shape: tuple[int, ...]
    tasks: int
    cost: int
    packed: int
    scratch: int
    past: bool
    order: np.ndarray
    tables: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
    record: np.ndarray


@functools.lru_cache(maxsize=256)
def _forward(
    window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, pooled: bool, relu: bool
) -> Work:
    shape = x_shape if pooled else as_long_rows(window, x_shape)
    # Of one filter, channels and taps lie in a row.
    of_filter = math.prod(weight_shape[1:])
    y_shape = x_shape[0], weight_shape[0], window.p(x_shape) // (1 + pooled), window.q(x_shape) // (1 + pooled)
    plan = forward(window, shape, weight_shape, groups, pooled)
    return _work(plan, Packing(1, 0, of_filter, of_filter), relu, y_shape)


@functools.lru_cache(maxsize=256)
def _backward(window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int) -> Work:
    plan = backward(window, as_long_rows(window, x_shape), weight_shape, groups)
    # The sweep's channels are the filters.
    taps, (k, c_of_group, *_) = len(plan.order), weight_shape
    return _work(plan, Packing(k // groups, c_of_group * taps, taps, taps), False, x_shape)


def _work(plan: Plan, packing: Packing, relu: bool, y_shape: tuple[int, ...]) -> Work:
    sweep = plan.sweep
    in_vectors = sweep.rows * sweep.columns % LANES == sweep.strip * sweep.row_step * sweep.columns % LANES == 0
    past = 4 * math.prod(y_shape) >= _LARGE and in_vectors and not sweep.pooled
    routines = Routines(
        to_lanes.address(), copy_lanes.address(), copy_planes.address(step=sweep.column_stride), claim_lines.address(),
        pool_lanes.address(relu=int(relu)), from_lanes.address(relu=int(relu and not sweep.pooled), past=int(past)),
    )  # fmt: skip
    parts = Parts(plan.packed - plan.starts, plan.starts, plan.copied, plan.summed, plan.winners, plan.scratch)
    of_strip = sweep.strip * sweep.row_step * sweep.columns * sweep.filters * sweep.channels
    return Work(
        y_shape, sweep.groups * sweep.strips, of_strip * max(1, sweep.taps // len(plan.phases)), plan.packed,
        plan.scratch, past, plan.order, (plan.phases, plan.offsets, plan.copies, _products(plan)),
        record(sweep=sweep, packing=packing, parts=parts, routines=routines),
    )  # fmt: skip


def _products(plan: Plan) -> np.ndarray:
    """Addresses of `multiply`, compiled as far as they are used: `[goes on][is the last panel][has a pixel more]`."""
    sweep = plan.sweep
    vectors = -(-sweep.filters // LANES)
    panels = min(VECTORS, vectors), vectors - (vectors - 1) // VECTORS * VECTORS
    widest = -(-sweep.columns // sweep.column_step)
    # A table of offsets is read unless every phase has one tap, at none.
    single = int(LANES < 16 and (plan.phases[:, 3] == 1).all() and not plan.offsets.any())
    return np.array([
        [
            [
                multiply.address(
                    pixels=sweep.pixels + longer, vectors=count, pixel_step=4, accumulate=added, single=single
                )
                for longer in (0, int(widest > sweep.tiles * sweep.pixels))
            ]
            for count in panels
        ]
        for added in (0, int(sweep.chunk < sweep.channels))
    ], np.int64)  # fmt: skip


def _sweep_all(work: Work, x: Any, weight: Any, bias: Any, y: Any, winner: Any) -> None:
    """Pack the weights, then sweep; y, with the winners if it is pooled, is in whatever shape its memory is."""
    bias = _NO_BIAS if bias is None else ready(bias)
    tasks = len(x) * work.tasks
    with borrowed(work.packed + sharers(tasks, work.cost) * work.scratch) as memory:
        share(_convolve, tasks, work.cost, weight, ready(x), bias, y, winner, memory, work.tables, work.record)


_NO_BIAS = ready(np.empty(0, np.float32))


@in_turn
def _convolve(workers, counter, last, weight, x, bias, y, winner, memory, tables, work):
    """The weights are packed before the first task."""
    if counter[0] == 0:
        on_workers(workers, _pack, (counter, weight, bias, memory, work))
        counter[0] = 0
    on_workers(workers, _sweep, (counter, last, x, y, winner, memory, tables, work))


@serial
def _pack(_, counter, weight, bias, memory, work):
    """A vector of filters is a task."""
    task = take(counter)
    while task < work[0].sweep.groups * -(-work[0].sweep.filters // LANES):
        _pack_vector(task, weight.ctypes.data, bias, memory.ctypes.data, work[0])
        task = take(counter)


@serial
def _sweep(worker, counter, last, x, y, winner, memory, tables, work):
    """A strip of an image and group is a task."""
    task = take(counter)
    while task < last:
        _strip(task, worker, x.ctypes.data, y.ctypes.data, winner.ctypes.data, memory.ctypes.data, tables, work[0])
        task = take(counter)


@serial
def _pack_vector(task, weight, bias, memory, work):
    """`packed[group][panel][c][tap][lane]` of a vector of filters, and what their sums start from."""
    sweep, packing, routines = work.sweep, work.packing, work.routines
    vectors = -(-sweep.filters // LANES)
    group, vector = task // vectors, task % vectors
    in_panel = min(VECTORS, vectors - vector // VECTORS * VECTORS)
    first = vector * LANES
    filters = min(LANES, sweep.filters - first)
    terms = sweep.channels * sweep.taps
    start = memory + 4 * (work.parts.weights + LANES * task)
    with_bias = filters if len(bias) else 0
    call(routines.copy_lanes, (bias.ctypes.data + 4 * (group * sweep.filters + first), with_bias, start))
    source = weight + 4 * (
        group * (packing.times * packing.block if packing.block else sweep.filters * packing.row) + first * packing.row
    )
    target = memory + 4 * LANES * ((group * vectors + vector // VECTORS * VECTORS) * terms + vector % VECTORS)
    of_term = 4 * LANES * in_panel
    for _ in range(packing.times):
        if packing.row == 1:  # Filters are neighbours already.
            call(routines.copy_lanes, (source, filters, target))
        else:
            call(routines.to_lanes, (source, 4 * packing.row, filters, packing.columns, target, of_term))
        source += 4 * packing.block
        target += of_term * packing.columns


@serial
def _strip(task, worker, x, y, winner, memory, tables, work):
    """Some rows of every phase of an image, for all filters of a group; arrays by their addresses."""
    sweep, parts, routines = work.sweep, work.parts, work.routines
    phases, offsets, copies, products = tables
    image, first = task // sweep.strips, task % sweep.strips * sweep.strip
    group, of_image = image % sweep.groups, (sweep.rows >> sweep.pooled) * (sweep.columns >> sweep.pooled)
    rows = min(sweep.strip, -(-sweep.rows // sweep.row_step) - first)
    vectors = group * -(-sweep.filters // LANES)
    weight = memory + 4 * LANES * vectors * sweep.channels * sweep.taps
    start = memory + 4 * (parts.weights + LANES * vectors)
    copy = memory + 4 * (parts.weights + parts.starts + worker * parts.scratch)
    sums = copy + 4 * parts.copied
    maxima, of_maxima = sums + 4 * parts.summed, 4 * parts.winners
    x += 4 * image * sweep.channels * sweep.height * sweep.width
    y += 4 * image * sweep.filters * of_image
    winner += 4 * image * sweep.filters * of_image
    copy_strip(x, copy, first, rows, copies, sweep, routines.copy_planes)
    begin = first * sweep.row_step
    written = min(sweep.rows, begin + rows * sweep.row_step) - begin
    for done in range(0, sweep.filters, VECTORS * LANES):
        vectors = min(VECTORS, -(-(sweep.filters - done) // LANES))
        _panel(copy, weight, start, sums, y, first, rows, done, vectors, phases, offsets, products, sweep, routines)
        for vector in range(vectors):
            of_pixel, k = 4 * LANES * vectors, done + vector * LANES
            source, filters = sums + 4 * LANES * vector, min(LANES, sweep.filters - k)
            if sweep.pooled:
                q = sweep.columns // 2
                of_image, at = 4 * (sweep.rows // 2) * q, 4 * (begin // 2) * q
                call(routines.pool, (
                    source, of_pixel, sweep.columns * of_pixel, q, written // 2, maxima, maxima + of_maxima,
                ))  # fmt: skip
                pixels = written // 2 * q
                call(routines.from_lanes, (maxima, 4 * LANES, pixels, y + k * of_image + at, of_image, filters))
                call(routines.from_lanes, (
                    maxima + of_maxima, 4 * LANES, pixels, winner + k * of_image + at, of_image, filters,
                ))  # fmt: skip
            else:
                of_image, at = 4 * sweep.rows * sweep.columns, 4 * begin * sweep.columns
                call(routines.from_lanes, (
                    source, of_pixel, written * sweep.columns, y + k * of_image + at, of_image, filters,
                ))  # fmt: skip
        weight += 4 * LANES * vectors * sweep.channels * sweep.taps
        start += 4 * LANES * vectors


@serial
def _panel(copy, weight, start, sums, y, first, rows, done, vectors, phases, offsets, products, sweep, routines):
    """A panel of filters `done ..` over the strip's rows: `sums[pixel][lane]`, pixels as in y."""
    of_pixel, of_row = 4 * LANES * vectors, 4 * sweep.row_stride * sweep.pitch
    of_channel = 4 * sweep.column_stride * sweep.height_of_copy * sweep.pitch
    of_image = 4 * sweep.rows * sweep.columns
    is_last = int(done + VECTORS * LANES >= sweep.filters)
    for c in range(0, max(1, sweep.channels), sweep.chunk):
        channels = min(sweep.chunk, sweep.channels - c)
        claimed = min(vectors * LANES, sweep.filters - done) * (_CLAIMS and not sweep.pooled)
        for phase in range(len(phases)):
            a, b, tap, taps = phases[phase]
            columns = -(-(sweep.columns - b) // sweep.column_step)
            longer = columns - sweep.tiles * sweep.pixels
            for i in range(rows):
                p = (first + i) * sweep.row_step + a
                if p >= sweep.rows:
                    break
                row = (i * sweep.row_step + a) * sweep.columns
                tile = 0
                while tile < sweep.tiles:
                    q = tile * sweep.pixels + min(tile, longer)
                    at = b + q * sweep.column_step
                    # What the sums are turned into comes near meanwhile.
                    if claimed:
                        call(routines.claim, (y + done * of_image + 4 * (p * sweep.columns + at), of_image, claimed, 1))
                    is_longer = int(tile < longer)
                    together = min(TOGETHER, (longer if is_longer else sweep.tiles) - tile)
                    call(products[int(c > 0), is_last, is_longer], (
                        copy + c * of_channel + i * of_row + 4 * q, of_channel, channels, offsets.ctypes.data + 8 * tap,
                        taps, weight + (c * sweep.taps + tap) * of_pixel, sweep.taps * of_pixel, start,
                        sums + (row + at) * of_pixel, sweep.column_step * of_pixel, together,
                        4 * (sweep.pixels + is_longer),
                    ))  # fmt: skip
                    tile += together
