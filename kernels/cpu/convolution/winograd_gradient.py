"""Winograd's weight gradient of 3x3 filters: `dweight = GT [sum_tiles (A dy AT) * (BT x B)] G`.

At each point it is one product of matrices, channels x tiles by tiles x filters. Tiles are transformed by all threads,
as many as the third-level cache keeps the points of. Then their products are added up by all threads: a task is a point
and a panel of filters, whose sums stay in registers while `multiply` runs over hundreds of tiles; after the last tile
they are transformed back. Where weights are many and tiles few, a task is a panel and some channels instead: its sums,
of all points, are made and transformed back in the second-level cache.

Every sum is one chain over all tiles in order, whatever the number of threads. A NaN or infinity spreads over its tile:
if the result has one, it is computed again by the direct weight gradient.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from kernelproof.kernels.winograd_matrices import TAPS
from kernelproof.spec import Window

from ..launch import in_turn, launch, ready, record, serial, threads
from ..micro_kernels import PIXELS, TOGETHER, clear, from_lanes, multiply, to_lanes
from ..vectors import LANES, call, take
from ..workers import on_workers
from ..workspace import borrowed, in_lines
from . import direct_gradient
from .winograd_tiles import Tiles, block_of, lanes_in, rows_of_tiles, tiles_of, transform_strip
from .winograd_transforms import gradient_to_points, input_to_points, points_to_weight

_BATCH = 2**22
"""Bytes of all points of the tiles that are worked on at a time."""

_SUMS = 2**22
"""Bytes of sums that may be kept for all weights."""

_CHUNK = 4
"""Tiles of channels that are transformed back at a time."""

_TASKS = 2
"""Tasks for each thread that are worth a walk through what all of them wait for."""


class Sums(NamedTuple):
    """Sums `[group][panel][chunk][point][channel][filter]`: `chunk` times `pixels` channels in each of `chunks`.

    A panel is `vectors` of filters; in floats a point is `point`. If not `kept`, a thread has those of one chunk only.
    """

    points: int
    pixels: int
    chunk: int
    chunks: int
    panels: int
    vectors: int
    point: int
    kept: bool


class Plan(NamedTuple):
    """Tiles of x, tiles of dy, and the sums of their products."""

    x: Tiles
    dy: Tiles
    sums: Sums
    workers: int
    record: np.ndarray

    @property
    def shared(self) -> tuple[int, int, int]:
        """Floats of kept sums, and of the points of x and of dy."""
        its = self.sums
        kept = self.x.groups * its.panels * its.chunks * its.points * its.point if its.kept else 0
        return kept, self.x.groups * self.x.floats, self.dy.groups * self.dy.floats

    @property
    def scratch(self) -> int:
        """Floats that a thread works in: flags, then turned images or weights, at last the sums of a chunk."""
        its = self.sums
        weights = in_lines((TAPS**2 * its.chunk * its.pixels + LANES) * LANES)
        return in_lines(LANES) + max(self.x.copy, self.dy.copy, weights) + its.points * its.point

    @property
    def workspace(self) -> int:
        """Bytes."""
        return 4 * (sum(self.shared) + self.workers * self.scratch)


@functools.lru_cache(maxsize=256)
def planned(
    window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, size: int, workers: int
) -> Plan:
    """Tiles and sums of a weight gradient, for so many threads."""
    (n, c, h, w), (k, *_), ((top, _), (left, _)) = x_shape, weight_shape, window.padding
    channels, filters, rows, columns = c // groups, k // groups, window.p(x_shape), window.q(x_shape)
    points = (size + TAPS - 1) ** 2
    tiles = -(-channels // PIXELS)
    pixels = -(-channels // tiles)
    # A tile's channels begin a vector each, so that a thread reads what stands together.
    of_x, of_dy = lanes_in(pixels), block_of(filters)
    panels = -(-filters // of_dy)
    most = max(1, _BATCH // (4 * points * groups * (tiles * of_x + panels * of_dy)))
    units = rows_of_tiles(size, n, rows, columns, max(most, PIXELS))
    _, _, across, count = units
    kept = 4 * points * groups * tiles * pixels * panels * of_dy <= _SUMS or count * across > 4 * most
    batches = max(1, -(-count * across // most) if kept else 1)
    together = max(1, -(-count // batches))
    chunk = min(tiles, _CHUNK)
    of_channels, of_filters = tiles, panels
    if not kept:
        # The points of x and dy that are there at a time: few, if that leaves work for all threads.
        parts = -(-together * across * 4 * points * groups * panels * of_dy // _BATCH)
        of_filters = -(-panels // parts)
        of_channels = min(tiles, chunk * -(-_TASKS * workers // (groups * of_filters)))
    its = (
        tiles_of(
            size, TAPS - 1, groups, (channels, h, w), (top, left), units, together, of_x, pixels,
            of_channels,
        ),
        tiles_of(
            size, 0, groups, (filters, rows, columns), (0, 0), units, together, of_dy, of_dy,
            of_filters,
        ),
        Sums(
            points, pixels, chunk, -(-tiles // chunk), panels, of_dy // LANES, in_lines(chunk * pixels * of_dy), kept
        ),
    )  # fmt: skip
    return Plan(*its, workers, record(x=its[0], dy=its[1], sums=its[2]))


def conv2d_dweight(dy: Any, x: Any, weight_shape: tuple[int, ...], window: Window, groups: int, size: int) -> Any:
    """dweight by tiles of size x size of dy; parallel over tiles, then points or weights; one chain over tiles."""
    dy, x = ready(dy), ready(x)
    plan = planned(window, x.shape, weight_shape, groups, size, threads())
    sums, together = plan.sums, plan.x.together
    batches = max(1, -(-plan.x.units // together))
    routines = np.array(
        [
            clear.address(),
            to_lanes.address(),
            input_to_points.address(size=size),
            gradient_to_points.address(size=size),
            multiply.address(pixels=sums.pixels, vectors=sums.vectors, pixel_step=4),
            multiply.address(pixels=sums.pixels, vectors=sums.vectors, pixel_step=4, accumulate=int(batches > 1)),
            points_to_weight.address(size=size),
            from_lanes.address(relu=0),
        ]
    )
    dweight, broken = np.empty(weight_shape, np.float32), np.zeros(1, np.bool_)
    zeros, offsets = np.zeros(sums.vectors * LANES, np.float32), 4 * plan.x.block * np.arange(plan.x.capacity)
    cost = together * plan.x.across * sums.points * weight_shape[0] * weight_shape[1]
    with borrowed(plan.workspace // 4) as memory:
        launch(
            _correlate, batches, cost // 32, plan.workers, x, dy, dweight, memory, plan.shared, plan.scratch, zeros,
            offsets, broken, plan.record, routines,
        )  # fmt: skip
    return direct_gradient.conv2d_dweight(dy, x, weight_shape, window, groups) if broken[0] else dweight


@in_turn
def _correlate(first, last, workers, x, dy, dweight, memory, shared, scratch, zeros, offsets, broken, work, routines):
    """Batches `first .. last - 1` of tiles; after the very last, or for each batch if sums are not kept, dweight."""
    of_x, of_dy, sums = work[0].x, work[0].dy, work[0].sums
    batches, counter = max(1, -(-of_x.units // of_x.together)), np.empty(1, np.int64)
    for batch in range(first, last):
        begin = batch * of_x.together
        count = min(of_x.together, of_x.units - begin)
        tiles = count * of_x.across
        for panel in range(0, sums.panels, of_dy.blocks):
            for block in range(0, -(-of_x.channels // of_x.used), of_x.blocks):
                counter[0] = 0
                on_workers(
                    workers,
                    _to_points,
                    (counter, begin, count, panel, block, x, dy, memory, shared, scratch, work, routines),
                )
                if sums.kept:
                    counter[0] = 0
                    on_workers(
                        workers,
                        _add_products,
                        (counter, tiles, batch > 0, memory, shared, zeros, offsets, work, routines),
                    )
                if batch == batches - 1:
                    counter[0] = 0
                    arguments = (
                        counter, tiles, panel, block, dweight, memory, shared, scratch, zeros, offsets, broken, work,
                        routines,
                    )  # fmt: skip
                    on_workers(workers, _from_points, arguments)


@serial
def _to_points(worker, counter, begin, count, panel, block, x, dy, memory, shared, scratch, work, routines):
    """Both points of `count` units from `begin` on: a strip of one group, of x or of dy, is a task.

    Of x from a block on, of dy from a panel on, whose points serve all blocks.
    """
    of_x, of_dy = work[0].x, work[0].dy
    strips = -(-count // of_x.strip) * of_x.groups
    copy = memory.ctypes.data + 4 * (sum(shared) + worker * scratch + 2 * LANES)
    task = take(counter)
    while task < strips * (1 if block else 2):
        group, first = task % strips // (strips // of_x.groups), task % (strips // of_x.groups) * of_x.strip
        here = min(of_x.strip, count - first)
        if task < strips:
            transform_strip(
                x.ctypes.data, memory.ctypes.data + 4 * shared[0], copy, group, block, begin, first, here, of_x,
                routines[0], routines[1], routines[2],
            )  # fmt: skip
        else:
            transform_strip(
                dy.ctypes.data, memory.ctypes.data + 4 * (shared[0] + shared[1]), copy, group, panel, begin, first,
                here, of_dy, routines[0], routines[1], routines[3],
            )  # fmt: skip
        task = take(counter)


@serial
def _add_products(worker, counter, tiles, begun, memory, shared, zeros, offsets, work, routines):
    """Adds the products of a batch to the sums that are kept: a point and a panel of filters is a task."""
    of_x, of_dy, sums = work[0].x, work[0].dy, work[0].sums
    task = take(counter)
    while task < of_x.groups * sums.points * sums.panels:
        group, point, panel = (
            task // sums.panels // sums.points, task // sums.panels % sums.points, task % sums.panels,
        )  # fmt: skip
        at = memory.ctypes.data + 4 * (group * sums.panels + panel) * sums.chunks * sums.points * sums.point
        for chunk in range(sums.chunks):
            _multiply(
                group, panel, chunk * sums.chunk, _blocks_of(chunk, of_x, sums), point, tiles,
                routines[5] if begun else routines[4], at + 4 * (chunk * sums.points + point) * sums.point,
                memory.ctypes.data, shared, zeros, offsets, of_x, of_dy, sums,
            )  # fmt: skip
        task = take(counter)


@serial
def _multiply(
    group, panel, block, blocks, point, tiles, routine, at, memory, shared, zeros, offsets, of_x, of_dy, sums
):
    """`sums[channel][filter] (+)= sum_tile x[tile][channel] * dy[tile][filter]` of one point, some blocks, a panel.

    Panel and block are counted among those whose points are there.
    """
    xs = memory + 4 * (shared[0] + (group * sums.points + point) * of_x.point)
    dys = memory + 4 * (shared[0] + shared[1] + (group * sums.points + point) * of_dy.point)
    dys += 4 * panel * of_dy.capacity * of_dy.block
    for each in range(block, block + blocks, TOGETHER):
        call(routine, (
            xs + 4 * each * of_x.capacity * of_x.block, 0, 1, offsets.ctypes.data, tiles, dys, 0, zeros.ctypes.data,
            at, 4 * of_dy.block, min(TOGETHER, block + blocks - each), 4 * of_x.capacity * of_x.block,
        ))  # fmt: skip
        at += 4 * sums.pixels * of_dy.block


@serial
def _blocks_of(chunk, of_x, sums):
    """Blocks of channels in a chunk."""
    return min(sums.chunk, -(-of_x.channels // of_x.used) - chunk * sums.chunk)


@serial
def _from_points(
    worker, counter, tiles, of_panel, of_block, dweight, memory, shared, scratch, zeros, offsets, broken, work,
    routines,
):  # fmt: skip
    """dweight from the sums, which are made first if they are not kept: a chunk and a panel of filters is a task."""
    of_x, of_dy, sums = work[0].x, work[0].dy, work[0].sums
    chunks = min(sums.chunks - of_block // sums.chunk, -(-of_x.blocks // sums.chunk))
    panels = min(sums.panels - of_panel, of_dy.blocks)
    own = sum(shared) + worker * scratch
    task = take(counter)
    while task < of_x.groups * chunks * panels:
        group, chunk, panel = task // panels // chunks, task // panels % chunks, task % panels
        chunk, panel = of_block // sums.chunk + chunk, of_panel + panel
        at = memory.ctypes.data + 4 * ((group * sums.panels + panel) * sums.chunks + chunk) * sums.points * sums.point
        if not sums.kept:
            at = memory.ctypes.data + 4 * (own + scratch - sums.points * sums.point)
            for point in range(sums.points):
                _multiply(
                    group, panel - of_panel, chunk * sums.chunk - of_block, _blocks_of(chunk, of_x, sums), point,
                    tiles, routines[4], at + 4 * point * sums.point, memory.ctypes.data, shared, zeros, offsets, of_x,
                    of_dy, sums,
                )  # fmt: skip
        memory[own : own + LANES] = 0
        _chunk_from_points(
            at, dweight.ctypes.data, memory.ctypes.data + 4 * own, group, panel, chunk, of_x, of_dy, sums, routines
        )
        for lane in range(LANES):
            if memory[own + lane] != 0:
                broken[0] = True
        task = take(counter)


@serial
def _chunk_from_points(at, dweight, seen, group, panel, chunk, of_x, of_dy, sums, routines):
    size, taps, turned = 4 * LANES, TAPS * TAPS, seen + 4 * 2 * LANES
    first = chunk * sums.chunk * sums.pixels
    channels = min(sums.chunk * sums.pixels, of_x.channels - first)
    for vector in range(sums.vectors):
        k = panel * of_dy.block + vector * LANES
        call(routines[6], (
            at + vector * size, 4 * sums.point, channels, 4 * of_dy.block, turned, taps * size, seen
        ))  # fmt: skip
        target = dweight + 4 * taps * ((group * of_dy.channels + k) * of_x.channels + first)
        call(routines[7], (
            turned, size, taps * channels, target, 4 * taps * of_x.channels, min(LANES, of_dy.channels - k)
        ))  # fmt: skip
