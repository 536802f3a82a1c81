"""Convolution with few filters in a group, and the input gradient of one with few channels: lanes are pixels.

Where filters do not fill a vector, neighbouring pixels of a row do. The sweep is that of direct convolution (sweep.py):
a strip of rows is copied, padded, so that a tap is one constant offset; then, tile after tile, `correlate` keeps the
sums of all filters of a group for some rows of some vectors of pixels in registers. They are stored straight into y;
where neighbouring sums are not neighbours in y, as in the gradient of a strided convolution, by way of a few lines.
Measured beside others in docs/cpu.md, shapes E and G.
"""

from typing import Any

import numpy as np
from numba import prange

from kernelproof.spec import Window

from .launch import parallel, ready, serial, share, threads
from .micro_kernels import copy_row
from .sweep import Plan, backward, forward
from .vectors import LANES, REGISTERS, Words, call, micro_kernel, take
from .workspace import borrowed, in_lines


def applies(filters: int) -> bool:
    """Whether one group's filters, or in the input gradient its channels, are few enough; the geometry may be any."""
    return filters < LANES


def workspace(plan: Plan, workers: int) -> int:
    """Bytes that so many threads work in."""
    return 4 * workers * _scratch(plan)


def conv2d(x: Any, weight: Any, bias: Any, window: Window, groups: int, relu: bool = False) -> Any:
    """y in one sweep; each element is one chain of fused multiply-adds, bias first, channels, then taps row-major."""
    plan = forward(window, x.shape, weight.shape, groups)
    k, c_of_group, r, s = weight.shape
    packed = weight.reshape(groups, k // groups, c_of_group, r * s).transpose(0, 2, 3, 1)
    starts = np.zeros(k, np.float32) if bias is None else bias
    y = np.empty((len(x), k, plan.sweep.rows, plan.sweep.columns), np.float32)
    return _swept(plan, ready(x), ready(packed), ready(starts), y, relu)


def conv2d_dx(dy: Any, weight: Any, x_shape: tuple[int, ...], window: Window, groups: int) -> Any:
    """dx in one sweep; each element is one chain of fused multiply-adds, filters, then taps row-major."""
    plan = backward(window, x_shape, weight.shape, groups)
    k, c_of_group, r, s = weight.shape
    # The sweep's channels are the filters; taps in the order of the phases that they belong to.
    packed = weight.reshape(groups, k // groups, c_of_group, r * s)[..., plan.order].transpose(0, 1, 3, 2)
    starts = np.zeros(c_of_group * groups, np.float32)
    return _swept(plan, ready(dy), ready(packed), starts, np.empty(x_shape, np.float32), False)


@micro_kernel
def correlate(
    words: Words, x: Any, x_step: Any, x_row: Any, channels: Any, offsets: Any, taps: Any, weight: Any,
    weight_step: Any, start: Any, y: Any, y_step: Any, y_row: Any, pixels: Any, *,
    filters: int, rows: int, vectors: int, relu: int,
) -> None:  # fmt: skip
    """`y[f][i][q] = start[f] + sum_c sum_t x[c*x_step + i*x_row + offsets[t] + q] * weight[c*weight_step + t][f]`.

    For `filters` x `rows` x `vectors` vectors of pixels, of which the first `pixels` of a row are stored; x is read in
    whole vectors. A chain of fused multiply-adds each, channels outermost. With `relu` that of the sum.
    """
    builder = words.builder
    tile = [(row, vector) for row in range(rows) for vector in range(vectors)]
    starts = [words.splat(words.at(start, 4 * f)) for f in range(filters) for _ in tile]
    with words.loop(channels, x, weight, *starts) as outer:
        x_of_channel, weight_of_channel, *sums = outer.carried
        with words.loop(taps, weight_of_channel, *sums) as inner:
            weight_of_tap, *sums = inner.carried
            x_of_tap = words.at(x_of_channel, words.load_integer(words.at(offsets, words.times(inner.index, 8))))
            values = [
                words.load(words.at(words.at(x_of_tap, words.times(x_row, row)), words.size * vector))
                for row, vector in tile
            ]
            for f in range(filters):
                factor = words.splat(words.at(weight_of_tap, 4 * f))
                for place, value in enumerate(values, f * len(tile)):
                    sums[place] = words.fma(value, factor, sums[place])
            inner.carry(words.at(weight_of_tap, 4 * filters), *sums)
        _, *sums = inner.results
        outer.carry(words.at(x_of_channel, x_step), words.at(weight_of_channel, weight_step), *sums)
    _, _, *sums = outer.results
    valid = words.first(words.at(pixels, -words.lanes * (vectors - 1)))
    for f in range(filters):
        for (row, vector), total in zip(tile, sums[f * len(tile) :], strict=False):
            if relu:
                # Not a maximum: NaN stays NaN.
                negative = builder.fcmp_ordered("<", total, words.constant(0))
                total = builder.select(negative, words.constant(0), total)
            address = words.at(words.at(y, words.times(y_step, f)), words.times(y_row, row))
            address = words.at(address, words.size * vector)
            if vector < vectors - 1:
                words.store(total, address)
            else:
                words.store_where(valid, total, address)


@micro_kernel
def copy_rows(
    words: Words, x: Any, x_row: Any, rows: Any, count: Any, y: Any, y_row: Any, width: Any, *, inner: int
) -> None:
    """`y[row][i] = x[row][i]` for `count` floats, then zeros up to `width` or some more, row after row.

    With `inner`, whole vectors of x may be read beyond a row: loads with a mask that miss the cache are slow.
    """
    builder, lanes = words.builder, words.lanes
    whole = builder.sdiv(count, words.number(lanes))
    valid = words.first(builder.srem(count, words.number(lanes)))
    zeros = builder.sub(builder.sdiv(words.at(width, lanes - 1), words.number(lanes)), words.at(whole, 1))
    zero = words.constant(0)
    with words.loop(rows, x, y) as row:
        with words.loop(whole, *row.carried) as loop:
            source, target = loop.carried
            words.store(words.load(source), target)
            loop.carry(words.at(source, words.size), words.at(target, words.size))
        source, target = loop.results
        last = builder.select(valid, words.load(source), zero) if inner else words.load_where(valid, source)
        words.store(last, target)
        with words.loop(zeros, words.at(target, words.size)) as loop:
            words.store(zero, loop.carried[0])
            loop.carry(words.at(loop.carried[0], words.size))
        row.carry(words.at(row.carried[0], x_row), words.at(row.carried[1], y_row))


@micro_kernel
def interleave(words: Words, even: Any, odd: Any, y: Any, count: Any) -> None:
    """`y[2*i] = even[i]`, `y[2*i + 1] = odd[i]` for `count` floats of y; reads whole vectors."""
    lanes = words.lanes
    pairs = words.builder.sdiv(words.at(count, 2 * lanes - 1), words.number(2 * lanes))
    with words.loop(pairs, even, odd, y, count) as loop:
        *sources, target, left = loop.carried
        both = [words.load(each) for each in sources]
        for half in (0, 1):
            order = [half * lanes // 2 + lane // 2 + lanes * (lane % 2) for lane in range(lanes)]
            valid = words.first(words.at(left, -half * lanes))
            words.store_where(valid, words.shuffle(*both, order), words.at(target, half * words.size))
        loop.carry(
            *(words.at(each, words.size) for each in sources),
            words.at(target, 2 * words.size), words.at(left, -2 * lanes),
        )  # fmt: skip


def _tile(plan: Plan) -> tuple[int, int]:
    """Rows and vectors of pixels whose sums, with what they are made of, fit the registers."""
    sweep = plan.sweep
    most = max(1, (REGISTERS - 1) // (sweep.filters + 1))
    columns = -(-sweep.columns // sweep.column_step)
    widest = -(-columns // LANES)
    vectors = -(-widest // -(-widest // most))
    last = -(-sweep.rows // sweep.row_step) - (sweep.strips - 1) * sweep.strip
    rows = min(most // vectors, last, sweep.strip) if (sweep.row_step, sweep.column_step) == (1, 1) else 1
    return max(1, rows), vectors


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
    rows, vectors = _tile(plan)
    routines = np.array([
        correlate.address(filters=sweep.filters, rows=rows, vectors=vectors, relu=int(relu)),
        copy_row.address(step=sweep.column_stride),
        copy_rows.address(inner=0),
        copy_rows.address(inner=1),
        interleave.address(),
    ])  # fmt: skip
    scratch, workers = _scratch(plan), threads()
    taps = max(1, sweep.taps // len(plan.phases))
    cost = sweep.strip * sweep.row_step * sweep.columns * sweep.filters * (1 + sweep.channels * (taps + 4))
    with borrowed(workers * scratch) as memory:
        tables = (rows, vectors), plan.phases, plan.offsets, sweep, routines
        share(
            _sweep, len(x) * sweep.groups * sweep.strips, cost, x, weight, starts,
            y.reshape(len(y) * y.shape[1], *y.shape[2:]), memory, scratch, plan.copied + _SLACK, _line(plan), *tables,
        )  # fmt: skip
    return y


@parallel
def _sweep(
    workers, counter, last, x, weight, starts, y, memory, scratch, copied, line, tile, phases, offsets, sweep, routines
):
    for worker in prange(workers):
        own = memory[worker * scratch : (worker + 1) * scratch]
        task = take(counter)
        while task < last:
            image, first = task // sweep.strips, task % sweep.strips * sweep.strip
            group = image % sweep.groups
            rows = min(sweep.strip, -(-sweep.rows // sweep.row_step) - first)
            _copy_strip(x, image, own.ctypes.data, first, rows, sweep, routines)
            _strip(
                own, copied, line, weight[group].ctypes.data, starts.ctypes.data + 4 * group * sweep.filters,
                y[image * sweep.filters : (image + 1) * sweep.filters],
                first, rows, tile, phases, offsets, sweep, routines,
            )  # fmt: skip
            task = take(counter)


@serial
def _copy_strip(x, image, copy, first, rows, sweep, routines):
    """`copy[c][row][column phase][pitch]`, zero where it is outside x."""
    phases, pitch = sweep.column_stride, sweep.pitch
    height = (rows - 1) * sweep.row_stride + sweep.span
    top = first * sweep.row_stride - sweep.top
    above, below = min(height, max(0, -top)), min(height, max(0, top + height - sweep.height))
    of_plane = 4 * sweep.height * sweep.width
    source = x.ctypes.data + image * sweep.channels * of_plane
    for c in range(sweep.channels):
        if phases == 1 and sweep.left >= 0:
            left = (x.shape[0] * x.shape[1] - 1 - image * sweep.channels - c) * sweep.height * sweep.width
            _copy_plane(source, copy, top, above, height - above - below, below, left >= LANES, sweep, routines)
            copy += 4 * height * pitch
        else:
            for i in range(height):
                for phase in range(phases):
                    # The first w that falls in this phase, and how many follow.
                    w = max(0, -sweep.left)
                    w += (phase - sweep.left - w) % phases
                    before = min(pitch, (w + sweep.left) // phases)
                    count = min(max(0, -(-(sweep.width - w) // phases)), pitch - before)
                    if not above <= i < height - below:
                        before, count = pitch, 0
                    at = source + 4 * ((top + i) * sweep.width + w)
                    call(routines[1], (at, count, copy, before, pitch - before - count))
                    copy += 4 * pitch
        source += of_plane


@serial
def _copy_plane(x, copy, top, above, inside, below, is_inner, sweep, routines):
    """Rows that are `above`, `inside` and `below` an image, zeros between them: each row clears the next one's left."""
    pitch, width = 4 * sweep.pitch, 4 * sweep.width
    call(routines[2], (x, 0, 1, 0, copy, pitch, sweep.left))
    copy += 4 * sweep.left
    call(routines[2], (x, 0, above, 0, copy, pitch, sweep.pitch))
    copy += above * pitch
    count = min(sweep.width, sweep.pitch - sweep.left)
    call(routines[3 if is_inner else 2], (
        x + (top + above) * width, width, inside, count, copy, pitch, sweep.pitch,
    ))  # fmt: skip
    call(routines[2], (x, 0, below, 0, copy + inside * pitch, pitch, sweep.pitch))


@serial
def _strip(own, copied, line, weight, start, y, first, rows, tile, phases, offsets, sweep, routines):
    """Rows `first ..` of every phase, tile after tile; where columns have phases, by way of `own[copied:]`."""
    copy, height = own.ctypes.data, (rows - 1) * sweep.row_stride + sweep.span
    of_row = 4 * sweep.column_stride * sweep.pitch
    of_channel, of_y, width = height * of_row, 4 * sweep.rows * sweep.columns, tile[1] * LANES
    for a in range(sweep.row_step):
        i = 0
        while i < rows and (first + i) * sweep.row_step + a < sweep.rows:
            # The last tile overlaps the one before, which computed the same.
            i = min(i, rows - tile[0])
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
                        sweep.channels, offsets.ctypes.data + 8 * tap, taps, weight + 4 * tap * sweep.filters,
                        4 * sweep.taps * sweep.filters, start, target + 4 * q, of_filter, 4 * sweep.columns,
                        columns - q,
                    ))  # fmt: skip
                    q += width
            if sweep.column_step > 1:
                _join(own[copied:], line, y, p, sweep, routines)
            i += tile[0]


@serial
def _join(lines, line, y, p, sweep, routines):
    """Row p of every filter from the lines of its column phases."""
    step = sweep.column_step
    for f in range(sweep.filters):
        if step == 2 and sweep.columns > 1:
            at = lines.ctypes.data + 4 * f * line
            call(routines[4], (at, at + 4 * line * sweep.filters, y[f, p].ctypes.data, sweep.columns))
        else:
            for b in range(min(step, sweep.columns)):
                for q in range(b, sweep.columns, step):
                    y[f, p, q] = lines[np.uint64((b * sweep.filters + f) * line + q // step)]
