"""Winograd convolution of 3x3 filters on the micro-kernel, forward and input gradient: 2.25 or 4 times fewer products.

A task is some rows of tiles. Its input is turned to a lane for each channel and transformed, which leaves one matrix of
tiles x channels for each point; `multiply` multiplies it by the point's matrix of channels x filters, a panel of
filters at a time; the products are transformed back and turned into rows of y. Tasks are so small that their matrices
stay in the second-level cache.

Tiles mix what a tile holds, so one NaN or infinity would spread over it: what is not finite is found as it is written,
and images that have some are done again by direct convolution, which puts it where the specification does.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from kernelproof.kernels.winograd_matrices import TAPS
from kernelproof.spec import Window

from . import direct
from .launch import parallel, ready, serial, share, threads
from .micro_kernels import PIXELS, VECTORS, copy_row, from_lanes, multiply, to_lanes
from .vectors import LANES, call, take
from .winograd_transforms import input_to_points, points_to_output, weight_to_points
from .workspace import borrowed, in_lines

_POINTS = 2**18
"""Bytes of a task's transformed input, if it has tiles enough to be worth the walk through all transformed weights."""

_STRIP = 2**15
"""Bytes of the input that is turned to lanes at a time: it stays in the first-level cache while it is transformed."""

_CHUNK = 32
"""Channels whose weights are transformed at a time."""


class Tiling(NamedTuple):
    """`y[k] = sum_c x[c] * weight[k,c]`, 3 x 3, over `units` rows of `across` tiles, `together` of them in a task.

    An image has `down` times `segments` units. `block` channels of a tile lie side by side. In floats: a point of the
    weights, the input and the products is `u_point`, `v_point`, `m_point`; a thread's scratch holds `v_point` for each
    point, from `m` on products, from `copy` on turned input, from `out` on turned output, from `seen` on flags.
    """

    size: int
    groups: int
    channels: int
    height: int
    width: int
    filters: int
    rows: int
    columns: int
    top: int
    left: int
    down: int
    segments: int
    across: int
    units: int
    together: int
    strip: int
    block: int
    pixels: int
    u_point: int
    v_point: int
    m_point: int
    m: int
    copy: int
    out: int
    seen: int
    scratch: int

    @property
    def packed(self) -> int:
        """Floats of the transformed weights."""
        panels = -(-self.filters // (VECTORS * LANES))
        return self.groups * panels * (self.size + 2) ** 2 * self.u_point


def applies(operator: str, window: Window) -> bool:
    """Whether a convolution or gradient with this window is one that Winograd's transforms compute."""
    plain = window.kernel == (TAPS, TAPS) and window.stride == (1, 1) and window.dilation == (1, 1)
    # The input gradient is a convolution padded by what the window's padding lacks to two.
    return plain and (operator != "conv2d_dx" or max(max(sides) for sides in window.padding) < TAPS)


def conv2d(
    x: Any, weight: Any, bias: Any, window: Window, groups: int, size: int, relu: bool = False
) -> Any:  # fmt: skip
    """y by tiles of size x size; parallel over rows of tiles. Each product of a point is one chain over channels."""
    x, weight = ready(x), ready(weight)
    its = forward(window, x.shape, weight.shape, groups, size, threads())
    y = np.empty((len(x), weight.shape[0], its.rows, its.columns), np.float32)
    again = _convolved(its, x, weight, False, bias, y, relu)
    if len(again):
        y[again] = direct.conv2d(x[again], weight, bias, window, groups, relu)
    return y


def conv2d_dx(dy: Any, weight: Any, x_shape: tuple[int, ...], window: Window, groups: int, size: int) -> Any:
    """dx as the convolution of dy by the filters turned around; otherwise as forward."""
    dy, weight = ready(dy), ready(weight)
    its = backward(window, x_shape, weight.shape, groups, size, threads())
    dx = np.empty(x_shape, np.float32)
    again = _convolved(its, dy, weight, True, None, dx, False)
    if len(again):
        dx[again] = direct.conv2d_dx(dy[again], weight, (len(again), *x_shape[1:]), window, groups)
    return dx


def workspace(its: Tiling) -> int:
    """Bytes that a convolution works in."""
    return 4 * (its.packed + threads() * its.scratch)


@functools.lru_cache(maxsize=256)
def forward(
    window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, size: int, workers: int
) -> Tiling:
    """The tiling that is `conv2d`, in tasks for so many workers."""
    (n, c, h, w), (k, *_), ((top, _), (left, _)) = x_shape, weight_shape, window.padding
    target = k // groups, window.p(x_shape), window.q(x_shape)
    return _tiled(size, groups, n, (c // groups, h, w), target, (top, left), workers)


@functools.lru_cache(maxsize=256)
def backward(
    window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, size: int, workers: int
) -> Tiling:
    """The tiling that is `conv2d_dx`: `dx[h] = sum_r dy[h + pad - r] * weight[r]`."""
    (n, c, h, w), (k, *_), ((top, _), (left, _)) = x_shape, weight_shape, window.padding
    source = k // groups, window.p(x_shape), window.q(x_shape)
    return _tiled(size, groups, n, source, (c // groups, h, w), (TAPS - 1 - top, TAPS - 1 - left), workers)


def _tiled(
    size: int, groups: int, n: int, source: tuple[int, int, int], target: tuple[int, int, int],
    padding: tuple[int, int], workers: int,
) -> Tiling:  # fmt: skip
    (channels, height, width), (filters, rows, columns) = source, target
    points = (size + TAPS - 1) ** 2
    block = 2 * LANES if -(-channels // LANES) % 2 == 0 else LANES
    padded = -(-channels // block) * block
    most = max(2 * PIXELS, _POINTS // (4 * points * padded))
    down, wide = -(-rows // size), -(-columns // size)
    across = -(-wide // -(-wide // most))
    segments = -(-wide // across)
    units = n * segments * down

    def worth(together: int) -> float:
        tiles, tasks = together * across, groups * max(1, -(-units // together))
        return tiles / (-(-tiles // PIXELS) * PIXELS) * tiles / (tiles + 2) * tasks / (-(-tasks // workers) * workers)

    together = max(range(1, max(1, min(units, most // across)) + 1), key=worth)
    pixels = -(-together * across // -(-together * across // PIXELS))
    tiles = max(together * across, pixels)
    pitch = across * size + TAPS - 1
    strip = max(1, min(together, down, (_STRIP // (4 * LANES * pitch) - TAPS + 1) // size))
    u_point, v_point, m_point = (
        in_lines(each) for each in (padded * VECTORS * LANES, tiles * padded, tiles * VECTORS * LANES)
    )
    m = points * v_point
    copy = m + points * m_point
    out = copy + in_lines(max((strip * size + TAPS - 1) * pitch, _CHUNK * TAPS * TAPS) * LANES)
    seen = out + in_lines((size * across * size + LANES) * LANES)
    scratch = seen + in_lines(together * LANES)
    return Tiling(
        size, groups, channels, height, width, filters, rows, columns, *padding, down, segments, across, units,
        together, strip, block, pixels, u_point, v_point, m_point, m, copy, out, seen, scratch,
    )  # fmt: skip


def _convolved(its: Tiling, x: Any, weight: Any, turned: bool, bias: Any, y: Any, relu: bool) -> Any:
    """Fills y; which of its images are to be done again."""
    vectors = -(-its.filters // LANES)
    last = vectors - (vectors - 1) // VECTORS * VECTORS
    routines = np.array(
        [
            to_lanes.address(),
            copy_row.address(step=1),
            weight_to_points.address(size=its.size),
            input_to_points.address(size=its.size),
            multiply.address(pixels=its.pixels, vectors=VECTORS, pixel_step=4 * its.block),
            multiply.address(pixels=its.pixels, vectors=last, pixel_step=4 * its.block),
            points_to_output.address(size=its.size),
            from_lanes.address(relu=int(relu)),
        ]
    )
    starts = np.zeros((its.groups, vectors * LANES), np.float32)
    if bias is not None:
        starts[:, : its.filters] = bias.reshape(its.groups, its.filters)
    offsets, zeros = 4 * np.arange(its.block), np.zeros(VECTORS * LANES, np.float32)
    broken, points = np.zeros(len(x), np.bool_), (its.size + 2) ** 2
    with borrowed(its.packed + threads() * its.scratch) as memory:
        chunks = -(-its.channels // _CHUNK)
        share(
            _pack, its.groups * vectors * chunks, LANES * _CHUNK * points * 4,
            weight, turned, memory, its.packed, its, routines,
        )  # fmt: skip
        tasks = -(-its.units // its.together)
        cost = its.together * its.across * its.filters * its.channels * points
        share(
            _convolve, its.groups * tasks, cost, x, memory, its.packed, starts, zeros, offsets, y, broken, its, routines
        )
    return np.flatnonzero(broken)


@parallel
def _pack(workers, counter, last, weight, turned, memory, scratch, its, routines):
    """`u[group][panel][point][c][lane]`: a vector of filters and a chunk of channels is a task."""
    for worker in prange(workers):
        task = take(counter)
        while task < last:
            copy = memory.ctypes.data + 4 * (scratch + worker * its.scratch + its.copy)
            _pack_chunk(task, weight.ctypes.data, turned, memory.ctypes.data, copy, its, routines)
            task = take(counter)


@serial
def _pack_chunk(task, weight, turned, u, copy, its, routines):
    size, taps = 4 * LANES, TAPS * TAPS
    vectors, chunks = -(-its.filters // LANES), -(-its.channels // _CHUNK)
    group, vector, first = task // chunks // vectors, task // chunks % vectors, task % chunks * _CHUNK
    panel, filters = vector // VECTORS, min(LANES, its.filters - vector * LANES)
    in_panel = min(VECTORS, vectors - panel * VECTORS)
    here = min(_CHUNK, its.channels - first)
    padded = min(_CHUNK, -(-its.channels // its.block) * its.block - first)
    if turned:
        for c in range(first, first + here):
            source = weight + 4 * taps * ((group * its.channels + c) * its.filters + vector * LANES)
            call(routines[0], (source, 4 * taps, filters, taps, copy + (c - first) * taps * size, size))
    else:
        source = weight + 4 * taps * ((group * its.filters + vector * LANES) * its.channels + first)
        call(routines[0], (source, 4 * taps * its.channels, filters, here * taps, copy, size))
    call(routines[1], (copy, 0, copy + here * taps * size, (padded - here) * taps * LANES, 0))
    panels = -(-vectors // VECTORS)
    u += 4 * (group * panels + panel) * (its.size + 2) ** 2 * its.u_point
    u += size * (first * in_panel + vector % VECTORS)
    begin, step = (copy + (taps - 1) * size, -size) if turned else (copy, size)
    call(routines[2], (begin, TAPS * step, step, padded, taps * size, u, 4 * its.u_point, in_panel * size))


@parallel
def _convolve(workers, counter, last, x, memory, packed, starts, zeros, offsets, y, broken, its, routines):
    tasks, of_image = -(-its.units // its.together), its.down * its.segments
    panels = -(-its.filters // (VECTORS * LANES))
    for worker in prange(workers):
        scratch = packed + worker * its.scratch
        task = take(counter)
        while task < last:
            group, first = task // tasks, task % tasks * its.together
            count = min(its.together, its.units - first)
            memory[scratch + its.seen : scratch + its.seen + count * LANES] = 0
            at = memory.ctypes.data + 4 * scratch
            _transform_input(
                x.ctypes.data + 4 * group * its.channels * its.height * its.width, first, count, at, its, routines
            )
            u = memory.ctypes.data + 4 * group * panels * (its.size + 2) ** 2 * its.u_point
            for panel in range(panels):
                _multiply_panel(
                    u + 4 * panel * (its.size + 2) ** 2 * its.u_point, panel, count, at, zeros, offsets, its, routines
                )
                _transform_output(
                    starts[group].ctypes.data, panel, first, count, at,
                    y.ctypes.data + 4 * group * its.filters * its.rows * its.columns, its, routines,
                )  # fmt: skip
            for unit in range(count * LANES):
                if memory[scratch + its.seen + unit] != 0:
                    broken[(first + unit // LANES) // of_image] = True
            task = take(counter)


@serial
def _transform_input(x, first, count, scratch, its, routines):
    """`v[point][block][tile][channel]` of `count` units from `first` on."""
    v, copy, size = scratch, scratch + 4 * its.copy, 4 * LANES
    pitch, tiles = its.across * its.size + TAPS - 1, max(its.pixels, its.together * its.across)
    for c in range(0, -(-its.channels // its.block) * its.block, LANES):
        unit = 0
        while unit < count:
            row = (first + unit) % its.down
            strip = min(its.strip, count - unit, its.down - row)
            _copy_strip(x, copy, (first + unit) // its.down, row, strip, c, its, routines)
            for each in range(strip):
                tile = (c // its.block * tiles + (unit + each) * its.across) * its.block + c % its.block
                call(routines[3], (
                    copy + each * its.size * pitch * size, pitch * size, its.across, its.size * size,
                    v + 4 * tile, 4 * its.v_point, 4 * its.block,
                ))  # fmt: skip
            unit += strip


@serial
def _copy_strip(x, copy, segment, row, strip, c, its, routines):
    """`copy[row][column][channel]` of a vector of channels, zero where it is outside x."""
    pitch, size = its.across * its.size + TAPS - 1, 4 * LANES
    image, segment = segment // its.segments, segment % its.segments
    w = segment * its.across * its.size - its.left
    before = min(pitch, max(0, -w))
    inside = max(0, min(its.width - max(w, 0), pitch - before))
    x += 4 * ((image * its.groups * its.channels + c) * its.height * its.width + max(w, 0))
    for i in range(strip * its.size + TAPS - 1):
        h = row * its.size - its.top + i
        if h < 0 or h >= its.height or c >= its.channels:
            call(routines[1], (x, 0, copy, pitch * LANES, 0))
        else:
            call(routines[1], (x, 0, copy, before * LANES, 0))
            call(routines[0], (
                x + 4 * h * its.width, 4 * its.height * its.width, min(LANES, its.channels - c), inside,
                copy + before * size, size,
            ))  # fmt: skip
            call(routines[1], (x, 0, copy + (before + inside) * size, (pitch - before - inside) * LANES, 0))
        copy += pitch * size


@serial
def _multiply_panel(u, panel, count, scratch, zeros, offsets, its, routines):
    """`m[point][tile][filter]` of a panel of filters: for each point tiles x channels by channels x filters."""
    vectors = min(VECTORS, -(-its.filters // LANES) - panel * VECTORS)
    routine = routines[4] if vectors == VECTORS else routines[5]
    v, m, of_tile = scratch, scratch + 4 * its.m, 4 * LANES * vectors
    capacity = max(its.pixels, its.together * its.across)
    for _ in range((its.size + 2) ** 2):
        tile = 0
        while tile < count * its.across:
            # The last tiles overlap those before, which computed the same.
            tile = max(0, min(tile, count * its.across - its.pixels))
            call(routine, (
                v + 4 * tile * its.block, 4 * capacity * its.block, -(-its.channels // its.block), offsets.ctypes.data,
                its.block, u, its.block * of_tile, zeros.ctypes.data, m + tile * of_tile, of_tile,
            ))  # fmt: skip
            tile += its.pixels
        u, v, m = u + 4 * its.u_point, v + 4 * its.v_point, m + 4 * its.m_point


@serial
def _transform_output(starts, panel, first, count, scratch, y, its, routines):
    """Rows of y for a panel of filters of `count` units from `first` on."""
    vectors = min(VECTORS, -(-its.filters // LANES) - panel * VECTORS)
    size, out, of_image = 4 * LANES, scratch + 4 * its.out, 4 * its.rows * its.columns
    last = its.across - 1
    for vector in range(vectors):
        k = (panel * VECTORS + vector) * LANES
        filters = min(LANES, its.filters - k)
        for unit in range(count):
            segment, row = (first + unit) // its.down, (first + unit) % its.down
            image, segment = segment // its.segments, segment % its.segments
            q = segment * its.across * its.size
            columns = min(its.columns - q, its.across * its.size)
            # From the last tile to the first: what a tile has too many falls on the next row, whose tile comes later.
            call(routines[6], (
                scratch + 4 * its.m + (unit * its.across + last) * vectors * size + vector * size, 4 * its.m_point,
                its.across, -vectors * size, starts + 4 * k, out + last * its.size * size, columns * size,
                -its.size * size, scratch + 4 * its.seen + unit * size,
            ))  # fmt: skip
            p, rows = row * its.size, min(its.size, its.rows - row * its.size)
            target = y + (image * its.groups * its.filters + k) * of_image + 4 * (p * its.columns + q)
            pieces, length = (1, rows * columns) if columns == its.columns else (rows, columns)
            for piece in range(pieces):
                call(routines[7], (
                    out + piece * length * size, size, length, target + 4 * piece * its.columns, of_image, filters
                ))  # fmt: skip
