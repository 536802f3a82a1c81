"""The direct weight gradient on the micro-kernel: every weight a sum over the pixels of all images.

What `multiply` calls pixels are channels here, its terms are pixels: x is turned to `[image][row][column][channel]`,
dy to `[image][pixel][filter lane]`, and a tile of channels x filters stays in registers while it runs over hundreds of
pixels. A few images, or a strip of one, are turned at a time, so that both stay in the second-level cache.

The images are divided into a fixed number of parts, each summed in order by one task, and the parts are then added in
order: the bits do not depend on the number of threads.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from kernelproof.spec import Window

from ..launch import in_turn, ready, serial, share, threads
from ..micro_kernels import PIXELS, TOGETHER, VECTORS, clear, from_lanes, multiply, to_lanes
from ..vectors import LANES, call, take
from ..workers import on_workers
from ..workspace import borrowed, in_lines

_PIXELS = 512
"""Pixels that a tile of sums runs over before it is put down."""

_TURNED = 2**19
"""Bytes of x, turned, that are worked on at a time."""

_SUMS = 2**21
"""Bytes of all parts' sums, where there is more than one part."""

_PARTS = 8
"""Parts that the images are divided into, if there are so many and their sums are small enough."""

_MERGED = min(8, LANES + 1)
"""Below so many channels, a row of taps and their channels, which lie side by side, fill the tile together.

They are one vector at most: what a second one has too many would fall on the next column's first channels.
"""


def used(channels: int) -> float:
    """The part of a tile's places that so many channels of a group fill, at least."""
    return 1.0 if channels < _MERGED else channels / (-(-channels // LANES) * LANES)


class Correlation(NamedTuple):
    """`dweight[k,c,r,s] = sum_npq dy[n,k,p,q] * x[n, c, p*stride + r*dilation - top, ...]`, by groups, parts, strips.

    `block` channels (or `s, c` merged) lie side by side in turned x, in `tiles` of `tile` or one more; `pitch` such
    blocks in a row. Pixels stand `apart` bytes from the next, if all do: then one loop runs over them. Else, and in
    vectors of 16, it is 0.
    """

    groups: int
    channels: int
    height: int
    width: int
    filters: int
    rows: int
    columns: int
    top: int
    left: int
    row_stride: int
    row_span: int
    pitch: int
    blocks: int
    block: int
    tiles: int
    tile: int
    taps: int
    merged: int
    images: int
    strip: int
    parts: int
    splits: int
    apart: int


class Plan(NamedTuple):
    """A correlation with its tables in bytes: where tap t and pixel p stand in turned x."""

    correlation: Correlation
    taps: np.ndarray
    pixels: np.ndarray

    @property
    def sums(self) -> int:
        """Floats of one part's sums of one group."""
        its = self.correlation
        return in_lines(-(-its.filters // LANES) * LANES * its.blocks * its.block * its.taps)

    @property
    def turned_x(self) -> int:
        """Floats of turned x."""
        its = self.correlation
        rows = (its.strip - 1) * its.row_stride + its.row_span
        # Whole vectors of channels are stored, the last one beyond the last column's block.
        return in_lines(its.blocks * its.images * rows * its.pitch * its.block + LANES)

    @property
    def turned_dy(self) -> int:
        """Floats of a panel of turned dy."""
        return in_lines(self.correlation.images * len(self.pixels) * VECTORS * LANES)


@functools.lru_cache(maxsize=256)
def planned(window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, workers: int) -> Plan:
    """The correlation that is `conv2d_dweight`, with work for so many threads."""
    (n, _, h, w), (k, channels, kernel_r, kernel_s) = x_shape, weight_shape
    (top, _), (left, _) = window.padding
    (stride_r, stride_s), (dilation_r, dilation_s) = window.stride, window.dilation
    rows, columns, filters = window.p(x_shape), window.q(x_shape), k // groups
    merged = channels < _MERGED and dilation_s == 1
    # No vector of a block without channels.
    block = kernel_s * channels if merged else LANES * (2 - -(-channels // LANES) % 2)
    of_column = channels if merged else block
    blocks = 1 if merged else -(-channels // block)
    # As even as can be: on AVX2, a tile of four has too few sums to hide how long a multiply-add takes.
    tiles = -(-block // PIXELS)
    pitch = max(left + w, (columns - 1) * stride_s + dilation_s * (kernel_s - 1) + 1)
    span = dilation_r * (kernel_r - 1) + 1
    of_row = 4 * blocks * pitch * of_column
    fitting = [p for p in range(1, rows + 1)
               if p * columns <= _PIXELS and ((p - 1) * stride_r + span) * of_row <= _TURNED]  # fmt: skip
    # Strips, images at a time and parts are all as even as can be: the largest of them is waited for.
    strip = _evenly(rows, max(fitting, default=1))
    of_image = ((strip - 1) * stride_r + span) * of_row
    images = _evenly(n, max(1, min(_PIXELS // (strip * columns), _TURNED // of_image))) if strip == rows else 1
    size = 4 * k * channels * kernel_r * kernel_s
    pieces = -(-n // images) * -(-rows // strip)
    parts = max([2**i for i in range(_PARTS.bit_length()) if 2**i <= min(_SUMS // size, pieces)], default=1)
    # Parts show in the bits, splits do not: each turns x anew, so there are no more than threads need.
    splits = min(-(-workers // parts), -(-filters // (VECTORS * LANES)))
    shifts = [0] if merged else [s * dilation_s for s in range(kernel_s)]
    taps = [4 * (r * dilation_r * pitch + shift) * of_column for r in range(kernel_r) for shift in shifts]
    pixels = [4 * (p * stride_r * pitch + q * stride_s) * of_column for p in range(strip) for q in range(columns)]
    # Of several images, each is whole.
    apart = 4 * stride_s * of_column
    is_even = pixels == [apart * pixel for pixel in range(strip * columns)]
    is_even &= images == 1 or ((strip - 1) * stride_r + span) * pitch * of_column * 4 == strip * columns * apart
    correlation = Correlation(
        groups, channels, h, w, filters, rows, columns, top, left, stride_r, span, pitch, blocks, block, tiles,
        block // tiles, len(taps), int(merged), images, strip, parts, splits, apart * is_even * (LANES < 16),
    )  # fmt: skip
    return Plan(correlation, np.array(taps, np.int64), np.array(pixels, np.int64))


def _evenly(count: int, most: int) -> int:
    """How many at a time, at most so many, that `count` is gone through in as few rounds, the last nearly full."""
    return max(1, -(-count // max(1, -(-count // most))))


def conv2d_dweight(dy: Any, x: Any, weight_shape: tuple[int, ...], window: Window, groups: int) -> Any:
    """dweight by one correlation; each sum is one chain of fused multiply-adds over a part's images, rows, columns in
    rising order; then the parts are added in order."""
    workers = threads()
    plan = planned(window, x.shape, weight_shape, groups, workers)
    its = plan.correlation
    k, channels, kernel_r, kernel_s = weight_shape
    vectors = -(-its.filters // LANES)
    last = vectors - (vectors - 1) // VECTORS * VECTORS
    longer = int(its.block > its.tiles * its.tile)
    tiles = [(tile, count) for count in (VECTORS, last) for tile in (its.tile, its.tile + longer)]
    routines = np.array(
        [to_lanes.address(), from_lanes.address(relu=0), clear.address()]
        + [
            multiply.address(pixels=tile, vectors=count, pixel_step=4, accumulate=1, single=int(its.apart > 0))
            for tile, count in tiles
        ]
    )
    turned = plan.turned_x + plan.turned_dy
    dweight = np.empty((k, its.taps, its.block) if its.merged else (k, channels, its.taps), np.float32)
    with borrowed(its.groups * its.parts * plan.sums + workers * turned) as memory:
        cost = dweight.size * dy[:, 0].size // (its.groups * its.parts * its.splits)
        share(
            _gradient, its.groups * its.parts * its.splits, cost, its.groups * its.parts * its.splits, ready(x),
            ready(dy), memory, plan.sums, turned, plan.turned_x, plan.taps, plan.pixels, dweight, its, routines,
        )  # fmt: skip
    if its.merged:  # [k, r, (s, c)]
        dweight = np.ascontiguousarray(dweight.reshape(k, kernel_r, kernel_s, channels).transpose(0, 3, 1, 2))
    return dweight.reshape(weight_shape)


@in_turn
def _gradient(
    workers, counter, last, tasks, x, dy, memory, sums, turned, turned_x, taps, pixels, dweight, its, routines
):
    """The parts are added after the last task."""
    on_workers(workers, _correlate, (counter, last, x, dy, memory, sums, turned, turned_x, taps, pixels, its, routines))
    if last == tasks:
        counter[0] = 0
        on_workers(workers, _add_parts, (counter, memory, sums, dweight, its, routines))


@serial
def _correlate(worker, counter, last, x, dy, memory, sums, turned, turned_x, taps, pixels, its, routines):
    """A task is a part of the images for a split of the panels of a group's filters."""
    task = take(counter)
    while task < last:
        group, part, split = task // (its.parts * its.splits), task // its.splits % its.parts, task % its.splits
        begin = memory.ctypes.data + 4 * (group * its.parts + part) * sums
        scratch = memory.ctypes.data + 4 * (its.groups * its.parts * sums + worker * turned)
        _part(
            x.ctypes.data + 4 * group * its.channels * its.height * its.width,
            dy.ctypes.data + 4 * group * its.filters * its.rows * its.columns,
            len(x), begin, scratch, scratch + 4 * turned_x, part, split, taps, pixels, its, routines,
        )  # fmt: skip
        task = take(counter)


@serial
def _part(x, dy, n, sums, turned_x, turned_dy, part, split, taps, pixels, its, routines):
    """Groups of images, each by strips of rows, in rising order."""
    panels = -(-its.filters // (VECTORS * LANES))
    first, last = split * panels // its.splits, (split + 1) * panels // its.splits
    of_filter = 4 * LANES * its.blocks * its.block * its.taps
    begin = sums + first * VECTORS * of_filter
    call(
        routines[2],
        (begin, (min(-(-its.filters // LANES), last * VECTORS) - first * VECTORS) * of_filter // 4),
    )
    strips = -(-its.rows // its.strip)
    pieces = -(-n // its.images) * strips
    for piece in range(part * pieces // its.parts, (part + 1) * pieces // its.parts):
        image, p = piece // strips * its.images, piece % strips * its.strip
        images, rows = min(its.images, n - image), min(its.strip, its.rows - p)
        of_image = _turn_x(x, turned_x, image, images, p, rows, its, routines)
        for panel in range(first, last):
            vectors = min(VECTORS, -(-its.filters // LANES) - panel * VECTORS)
            _turn_dy(dy, turned_dy, image, images, p, rows, panel, vectors, its, routines)
            _panel(
                turned_x, of_image, turned_dy, images, rows * its.columns, sums + panel * VECTORS * of_filter, vectors,
                taps, pixels, its, routines,
            )  # fmt: skip


@serial
def _turn_x(x, turned, image, images, p, rows, its, routines):
    """`turned[block][image][row][column][channel]`, zero where it is outside x; the bytes of an image."""
    of_column = 4 * (its.channels if its.merged else its.block)
    of_image = ((its.strip - 1) * its.row_stride + its.row_span) * its.pitch * of_column
    of_channel = 4 * its.height * its.width
    after = its.pitch - its.left - its.width
    for block in range(its.blocks):
        for each in range(images):
            row = turned + (block * images + each) * of_image
            source = x + ((image + each) * its.groups * its.channels + block * its.block) * of_channel
            for i in range((rows - 1) * its.row_stride + its.row_span):
                h = p * its.row_stride - its.top + i
                if h < 0 or h >= its.height:
                    call(routines[2], (row, its.pitch * of_column // 4))
                else:
                    call(routines[2], (row, its.left * of_column // 4))
                    for c in range(0, its.channels if its.merged else its.block, LANES):
                        call(routines[0], (
                            source + c * of_channel + 4 * h * its.width, of_channel,
                            min(LANES, its.channels - block * its.block - c), its.width,
                            row + its.left * of_column + 4 * c, of_column,
                        ))  # fmt: skip
                    call(routines[2], (row + (its.pitch - after) * of_column, after * of_column // 4))
                row += its.pitch * of_column
    return of_image


@serial
def _turn_dy(dy, turned, image, images, p, rows, panel, vectors, its, routines):
    """`turned[image][pixel][filter lane]` for one panel of filters."""
    of_filter = 4 * its.rows * its.columns
    pixels = rows * its.columns
    for vector in range(vectors):
        k = (panel * VECTORS + vector) * LANES
        for each in range(images):
            call(routines[0], (
                dy + ((image + each) * its.groups * its.filters + k) * of_filter + 4 * p * its.columns, of_filter,
                min(LANES, its.filters - k), pixels,
                turned + 4 * LANES * (each * pixels * vectors + vector), 4 * LANES * vectors,
            ))  # fmt: skip


@serial
def _panel(turned_x, of_image, turned_dy, images, pixels_here, sums, vectors, taps, pixels, its, routines):
    """`sums[c][tap][lane]`, or `[tap][s, c][lane]` where they are merged, over these images, for one panel."""
    of_sum = 4 * LANES * vectors
    of_channel, of_tap = (of_sum, its.block * of_sum) if its.merged else (its.taps * of_sum, of_sum)
    step, outer, inner = of_image, images, pixels_here
    if its.apart:
        step, outer, inner = its.apart, images * pixels_here, 1
    longer = its.block - its.tiles * its.tile
    for block in range(its.blocks):
        for tap in range(its.taps):
            x = turned_x + block * images * of_image + taps[tap]
            tile = 0
            while tile < its.tiles:
                m = tile * its.tile + min(tile, longer)
                is_longer = int(tile < longer)
                together = min(TOGETHER, (longer if is_longer else its.tiles) - tile)
                which = 3 + is_longer if vectors == VECTORS else 5 + is_longer
                call(routines[which], (
                    x + 4 * m, step, outer, pixels.ctypes.data, inner, turned_dy, inner * of_sum, 0,
                    sums + (block * its.block + m) * of_channel + tap * of_tap, of_channel, together,
                    4 * (its.tile + is_longer),
                ))  # fmt: skip
                tile += together


@serial
def _add_parts(worker, counter, memory, sums, dweight, its, routines):
    """A task is a vector of filters: its sums over all parts, turned to rows of dweight."""
    task = take(counter)
    while task < its.groups * -(-its.filters // LANES):
        _add_vector(task, memory, sums, dweight.ctypes.data, dweight[0].size, its, routines)
        task = take(counter)


@serial
def _add_vector(task, memory, sums, dweight, weights, its, routines):
    vectors = -(-its.filters // LANES)
    group, vector = task // vectors, task % vectors
    in_panel = min(VECTORS, vectors - vector // VECTORS * VECTORS)
    floats = its.blocks * its.block * its.taps * LANES
    begin = group * its.parts * sums + vector // VECTORS * VECTORS * floats + vector % VECTORS * LANES
    for part in range(1, its.parts):
        for weight in range(weights):
            first = begin + weight * in_panel * LANES
            for lane in range(first, first + LANES):
                memory[lane] += memory[part * sums + lane]
    k = vector * LANES
    call(routines[1], (
        memory.ctypes.data + 4 * begin, 4 * LANES * in_panel, weights,
        dweight + 4 * (group * its.filters + k) * weights, 4 * weights, min(LANES, its.filters - k),
    ))  # fmt: skip
