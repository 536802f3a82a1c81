"""Convolution with a lane for each pixel: for few filters, few terms, or the input gradient of few channels.

Where filters do not fill a vector, neighbouring pixels of a row do; and where a sum has few terms, turning it from a
lane to a row would take as long. The sweep is that of direct convolution (sweep.py): a strip of rows is copied, padded,
so that a tap is one constant offset; then, tile after tile, `correlate` keeps the sums of a block of filters for some
rows of some vectors of pixels in registers. They are stored straight into y; where neighbouring sums are not neighbours
in y, as in the gradient of a strided convolution, by way of a few lines. Measured beside others in docs/cpu.md, shapes
E and G.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from kernelproof.spec import Window

from ..launch import in_turn, ready, serial, share, threads
from ..vectors import LANES, REGISTERS, Words, call, micro_kernel, take
from ..workers import on_workers
from ..workspace import borrowed, in_lines
from .strips import copy_planes, copy_strip
from .sweep import Plan, Sweep, as_long_rows, backward, forward


class Tile(NamedTuple):
    """What stays in registers: the sums of a block of filters for some rows of some vectors of pixels."""

    filters: int
    blocks: int
    rows: int
    vectors: int


def tile_of(plan: Plan) -> tuple[Tile, float]:
    """The tile that is fastest, and which part of the multiply-adds that a core could do it then does for y."""
    return _tile_of(plan.sweep, len(plan.phases))


def workspace(plan: Plan, workers: int) -> int:
    """Bytes that so many threads work in, and of the weights that are packed for them."""
    tile, _ = tile_of(plan)
    packed = plan.sweep.groups * tile.blocks * tile.filters * plan.sweep.channels * plan.sweep.taps
    return 4 * (workers * _scratch(plan) + packed)


def conv2d(x: Any, weight: Any, bias: Any, window: Window, groups: int, relu: bool = False) -> Any:
    """y in one sweep; each element is one chain of fused multiply-adds, bias first, channels, then taps row-major."""
    x_shape = as_long_rows(window, x.shape)
    plan = forward(window, x_shape, weight.shape, groups)
    k, c_of_group, r, s = weight.shape
    weight = weight.reshape(groups, k // groups, c_of_group, r * s)
    starts = np.zeros(k, np.float32) if bias is None else bias
    y = np.empty((len(x), k, window.p(x.shape), window.q(x.shape)), np.float32)
    return _swept(plan, ready(x).reshape(x_shape), weight, starts.reshape(groups, k // groups), y, relu)


def conv2d_dx(dy: Any, weight: Any, x_shape: tuple[int, ...], window: Window, groups: int) -> Any:
    """dx in one sweep; each element is one chain of fused multiply-adds, filters, then taps row-major."""
    plan = backward(window, as_long_rows(window, x_shape), weight.shape, groups)
    k, c_of_group, r, s = weight.shape
    # The sweep's channels are the filters; taps in the order of the phases that they belong to.
    weight = weight.reshape(groups, k // groups, c_of_group, r * s)[..., plan.order].swapaxes(1, 2)
    starts = np.zeros((groups, c_of_group), np.float32)
    return _swept(plan, ready(dy), weight, starts, np.empty(x_shape, np.float32), False)


@micro_kernel
def correlate(
    words: Words, x: Any, x_step: Any, x_row: Any, channels: Any, offsets: Any, taps: Any, weight: Any,
    weight_step: Any, start: Any, blocks: Any, last: Any, y: Any, y_step: Any, y_row: Any, pixels: Any, *,
    filters: int, rows: int, vectors: int, relu: int, single: int = 0, past: int = 0,
) -> None:  # fmt: skip
    """`y[f][i][q] = start[f] + sum_c sum_t x[c*x_step + i*x_row + offsets[t] + q] * weight[c*weight_step + t][f]`.

    For `blocks` of `filters`, the last one from filter `last` on; of each for `rows` x `vectors` vectors of pixels, of
    which the first `pixels` of a row are stored. x is read in whole vectors. A chain of fused multiply-adds each,
    channels outermost. With `relu` that of the sum. With `single` there is one tap, at no offset; with
    `past` whole vectors go past the caches: y's rows and pixels begin at one.
    """
    builder = words.builder
    tile = [(row, vector) for row in range(rows) for vector in range(vectors)]

    def added(x: Any, weight: Any, sums: list[Any]) -> list[Any]:
        values = [
            words.load(words.at(words.at(x, words.times(x_row, row)), words.size * vector)) for row, vector in tile
        ]
        following = []
        for f in range(filters):
            factor = words.splat(words.at(weight, 4 * f))
            following += [words.fma(value, factor, sums[f * len(tile) + i]) for i, value in enumerate(values)]
        return following

    with words.loop(blocks, weight, start, words.number(0)) as block:
        weight, start, first = block.carried
        of_block = words.times(channels, weight_step)
        block.carry(words.at(weight, of_block), words.at(start, 4 * filters), words.at(first, filters))
        starts = [words.splat(words.at(start, 4 * f)) for f in range(filters) for _ in tile]
        with words.loop(channels, x, weight, *starts) as outer:
            x_of_channel, weight_of_channel, *sums = outer.carried
            if single:
                sums = added(x_of_channel, weight_of_channel, sums)
            else:
                with words.loop(taps, weight_of_channel, *sums) as inner:
                    weight_of_tap, *sums = inner.carried
                    offset = words.load_integer(words.at(offsets, words.times(inner.index, 8)))
                    sums = added(words.at(x_of_channel, offset), weight_of_tap, sums)
                    inner.carry(words.at(weight_of_tap, 4 * filters), *sums)
                _, *sums = inner.results
            outer.carry(words.at(x_of_channel, x_step), words.at(weight_of_channel, weight_step), *sums)
        _, _, *sums = outer.results
        # The last block overlaps the one before, which computed the same.
        first = builder.select(builder.icmp_signed("<", first, last), first, last)
        target = words.at(y, words.times(first, y_step))
        for f in range(filters):
            for (row, vector), total in zip(tile, sums[f * len(tile) :], strict=False):
                total = words.rectified(total) if relu else total
                address = words.at(words.at(target, words.times(y_row, row)), words.size * vector)
                if past:
                    words.store_past(total, address)
                elif vector < vectors - 1:
                    words.store(total, address)
                else:
                    words.store_first(words.at(pixels, -words.lanes * (vectors - 1)), total, address)
            target = words.at(target, y_step)


@micro_kernel
def interleave(words: Words, even: Any, odd: Any, y: Any, count: Any) -> None:
    """`y[2*i] = even[i]`, `y[2*i + 1] = odd[i]` for `count` floats of y; reads whole vectors."""
    lanes = words.lanes
    pairs = words.builder.sdiv(words.at(count, 2 * lanes - 1), words.number(2 * lanes))
    with words.loop(pairs, even, odd, y, count) as loop:
        *sources, target, left = loop.carried
        evens, odds = (words.load(each) for each in sources)
        for half in (0, 1):
            order = [half * lanes // 2 + lane // 2 + lanes * (lane % 2) for lane in range(lanes)]
            here = words.at(left, -half * lanes)
            words.store_first(here, words.shuffle(evens, odds, order), words.at(target, half * words.size))
        loop.carry(
            *(words.at(each, words.size) for each in sources),
            words.at(target, 2 * words.size), words.at(left, -2 * lanes),
        )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _tile_of(sweep: Sweep, phases: int) -> tuple[Tile, float]:
    columns = -(-sweep.columns // sweep.column_step)
    widest = -(-columns // LANES)
    last = -(-sweep.rows // sweep.row_step) - (sweep.strips - 1) * sweep.strip
    # Where sums go by way of lines, it is one row at a time.
    tallest = min(last, sweep.strip) if (sweep.row_step, sweep.column_step) == (1, 1) else 1
    found = []
    for filters in range(1, max(1, min(sweep.filters, REGISTERS - 2)) + 1):
        for vectors in range(1, min(widest, (REGISTERS - 1) // (filters + 1)) + 1):
            rows = max(1, min(tallest, (REGISTERS - 1) // (filters + 1) // vectors))
            tile = Tile(filters, -(-sweep.filters // filters), rows, vectors)
            steps = tile.blocks * -(-tallest // rows) * -(-widest // vectors)
            loads, sums = 2 * rows * vectors + filters + _OFFSET, rows * vectors * filters
            found.append((steps * max(loads / 2, sums / 2, _LATENCY), -sums, tile))
    cycles, _, tile = min(found)
    return tile, sweep.filters * tallest * columns / (2 * LANES * cycles)


_OFFSET = {16: 0, 8: 1, 4: 1}[LANES]
"""Loads of where a tap stands, unless they are hidden behind longer tiles."""

_LATENCY = 4
"""Cycles of a fused multiply-add; two are begun in each, and so are two loads, those across two lines count twice."""


def _scratch(plan: Plan) -> int:
    """Floats that a thread works in: the strip's copy, then a line of sums for each column phase and filter."""
    return plan.copied + _SLACK + in_lines(plan.sweep.column_step * plan.sweep.filters * _line(plan))


_SLACK = 32 * LANES
"""Floats behind the copy that whole vectors may reach: a tile's width and one more."""


def _line(plan: Plan) -> int:
    widest = -(-plan.sweep.columns // plan.sweep.column_step)
    return in_lines(widest + REGISTERS * LANES) if plan.sweep.column_step > 1 else 0


def _swept(plan: Plan, x: Any, weight: Any, starts: Any, y: Any, relu: bool) -> Any:
    sweep = plan.sweep
    tile, _ = tile_of(plan)
    # The last block overlaps the one before, which computes the same.
    firsts = np.minimum(np.arange(tile.blocks) * tile.filters, sweep.filters - tile.filters)
    block = firsts[:, None] + np.arange(tile.filters)
    packed, starts = ready(weight[:, block].transpose(0, 1, 3, 4, 2)), ready(starts[:, block])
    routines = np.array([
        correlate.address(filters=tile.filters, rows=tile.rows, vectors=tile.vectors, relu=int(relu)),
        copy_planes.address(step=sweep.column_stride),
        interleave.address(),
    ])  # fmt: skip
    scratch, workers = _scratch(plan), threads()
    taps = max(1, sweep.taps // len(plan.phases))
    cost = sweep.strip * sweep.row_step * sweep.columns * sweep.filters * (1 + sweep.channels * (taps + 4))
    with borrowed(workers * scratch) as memory:
        tables = tile, plan.phases, plan.offsets, plan.copies, sweep, routines
        share(
            _sweep, len(x) * sweep.groups * sweep.strips, cost, x, packed, starts,
            y.reshape(len(y) * y.shape[1], sweep.rows, sweep.columns), memory, scratch, plan.copied + _SLACK,
            _line(plan), *tables,
        )  # fmt: skip
    return y


@in_turn
def _sweep(
    workers,
    counter,
    last,
    x,
    weight,
    starts,
    y,
    memory,
    scratch,
    copied,
    line,
    tile,
    phases,
    offsets,
    copies,
    sweep,
    routines,
):
    on_workers(
        workers,
        _sweep_worker,
        (
            counter,
            last,
            x,
            weight,
            starts,
            y,
            memory,
            scratch,
            copied,
            line,
            tile,
            phases,
            offsets,
            copies,
            sweep,
            routines,
        ),
    )


@serial
def _sweep_worker(
    worker,
    counter,
    last,
    x,
    weight,
    starts,
    y,
    memory,
    scratch,
    copied,
    line,
    tile,
    phases,
    offsets,
    copies,
    sweep,
    routines,
):
    own = memory[worker * scratch : (worker + 1) * scratch]
    task = take(counter)
    while task < last:
        image, first = task // sweep.strips, task % sweep.strips * sweep.strip
        group = image % sweep.groups
        rows = min(sweep.strip, -(-sweep.rows // sweep.row_step) - first)
        of_image = 4 * sweep.channels * sweep.height * sweep.width
        copy_strip(x.ctypes.data + image * of_image, own.ctypes.data, first, rows, copies, sweep, routines[1])
        _strip(
            own, copied, line, weight[group].ctypes.data, starts[group].ctypes.data,
            y[image * sweep.filters : (image + 1) * sweep.filters],
            first, rows, tile, phases, offsets, sweep, routines,
        )  # fmt: skip
        task = take(counter)


@serial
def _strip(own, copied, line, weight, start, y, first, rows, tile, phases, offsets, sweep, routines):
    """Rows `first ..` of every phase, tile after tile; where columns have phases, by way of `own[copied:]`."""
    copy, of_row = own.ctypes.data, 4 * sweep.pitch
    of_channel = 4 * sweep.column_stride * sweep.height_of_copy * sweep.pitch
    of_y, width = 4 * sweep.rows * sweep.columns, tile.vectors * LANES
    for a in range(sweep.row_step):
        i = 0
        while i < rows and (first + i) * sweep.row_step + a < sweep.rows:
            # The last tile overlaps the one before, which computed the same.
            i = min(i, rows - tile.rows)
            p = (first + i) * sweep.row_step + a
            for b in range(min(sweep.column_step, sweep.columns)):
                _, _, tap, taps = phases[a * min(sweep.column_step, sweep.columns) + b]
                columns = -(-(sweep.columns - b) // sweep.column_step)
                target, of_filter = y.ctypes.data + 4 * p * sweep.columns, of_y
                if sweep.column_step > 1:
                    target = own[copied:].ctypes.data + 4 * line * sweep.filters * b
                    of_filter = 4 * line
                q = 0
                while q < columns:
                    q = max(0, min(q, columns - width))
                    call(routines[0], (
                        copy + i * sweep.row_stride * of_row + 4 * q, of_channel, sweep.row_stride * of_row,
                        sweep.channels, offsets.ctypes.data + 8 * tap, taps, weight + 4 * tap * tile.filters,
                        4 * sweep.taps * tile.filters, start, tile.blocks, sweep.filters - tile.filters,
                        target + 4 * q, of_filter, 4 * sweep.columns, columns - q,
                    ))  # fmt: skip
                    q += width
            if sweep.column_step > 1:
                _join(own[copied:], line, y, p, sweep, routines)
            i += tile.rows


@serial
def _join(lines, line, y, p, sweep, routines):
    """Row p of every filter from the lines of its column phases."""
    step = sweep.column_step
    for f in range(sweep.filters):
        if step == 2 and sweep.columns > 1:
            at = lines.ctypes.data + 4 * f * line
            call(routines[2], (at, at + 4 * line * sweep.filters, y[f, p].ctypes.data, sweep.columns))
        else:
            for b in range(min(step, sweep.columns)):
                for q in range(b, sweep.columns, step):
                    y[f, p, q] = lines[np.uint64((b * sweep.filters + f) * line + q // step)]
