"""Convolution of single pixels: filters times pixels, a product of matrices on packed operands.

The pixels of all images are one long row, whatever the size of an image. A task copies some panels of it, `LANES *
VECTORS` pixels of every channel, side by side into the second-level cache, and runs `correlate` over them: a lane for
each pixel, so that sums go straight to y and nothing is turned. Weights are packed once, `[tile of filters][channel]`.
Both operands are read in the order in which they lie: a core multiplied at 99 % of its peak from there (Zen 3).
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np

from kernelproof.spec import Window

from ..launch import in_turn, ready, record, serial, share, threads
from ..micro_kernels import PIXELS, VECTORS, copy_lanes, copy_rows, to_lanes
from ..vectors import LANES, Words, call, micro_kernel, take
from ..workers import on_workers
from ..workspace import borrowed, empty, in_lines
from .pixel_vectors import correlate
from .strips import copy_row

WIDTH = LANES * VECTORS
"""Pixels of a panel."""

_PANELS = 2**18
"""Bytes of panels that a task multiplies: they leave room in a second-level cache for some tiles of weights."""

_NEAR = 2**17
"""Bytes of these."""

_TASKS = 16
"""Tasks where there are panels enough: a thread that is held up leaves the others work."""

_LARGE = {16: 2**60, 8: 2**25, 4: 2**60}[LANES]
"""Bytes of a result that is stored past the caches."""

_AHEAD = 4
"""Channels that are fetched before their turn."""


class Cut(NamedTuple):
    """How a product is cut: `panels` in tasks of `most` or one less, outputs in tiles of `filters`, some `near`."""

    images: int
    pixels: int
    terms: int
    outputs: int
    of_rows: int
    filters: int
    room: int
    tiles: int
    near: int
    panels: int
    most: int
    tasks: int

    @property
    def packed(self) -> int:
        """Floats of the packed weights."""
        return in_lines(self.tiles * self.terms * self.room)

    @property
    def starts(self) -> int:
        """Floats of what sums start from."""
        return in_lines(self.tiles * self.filters)

    @property
    def copied(self) -> int:
        """Floats of a task's panels."""
        return self.most * self.panel

    @property
    def panel(self) -> int:
        """Floats of a panel."""
        return in_lines(self.terms * WIDTH)

    @property
    def split(self) -> int:
        """Floats of the sums of a panel that more than one image shares."""
        return in_lines(self.near * self.filters * WIDTH)

    def workspace(self, workers: int) -> int:
        """Floats of all, for so many threads."""
        return self.packed + self.starts + workers * (self.copied + self.split)


class Parts(NamedTuple):
    """Floats: of the packed weights, what sums start from, one panel, a thread's panels, and all its scratch."""

    packed: int
    starts: int
    panel: int
    copied: int
    scratch: int


class Routines(NamedTuple):
    """Addresses of the micro-kernels."""

    to_lanes: int
    copy_rows: int
    copy_lanes: int
    copy_panels: int
    copy_run: int
    correlate: int


def applies(window: Window, groups: int) -> bool:
    """Whether every pixel of y is made from the pixel of x in its place."""
    return window.kernel == window.stride == (1, 1) and window.padding == ((0, 0), (0, 0)) and groups == 1


@functools.lru_cache(maxsize=256)
def cut(operator: str, x_shape: tuple[int, ...], weight_shape: tuple[int, ...]) -> Cut:
    """The cut of `conv2d` or `conv2d_dx`, which is the same with channels and filters in each other's place."""
    of_rows = operator == "conv2d"
    outputs, terms = weight_shape[:2] if of_rows else weight_shape[1::-1]
    pixels, panels = math.prod(x_shape[2:]), -(-x_shape[0] * math.prod(x_shape[2:]) // WIDTH)
    # Of as few as can be computed twice, the longest tile.
    filters = min(range(max(1, min(outputs, PIXELS) - 1), min(outputs, PIXELS) + 1),
                  key=lambda each: (-(-outputs // each) * each, -each)) if outputs else 1  # fmt: skip
    room, tiles = -(-filters // LANES) * LANES, -(-outputs // filters)
    most = max(1, _PANELS // (4 * max(1, terms) * WIDTH))
    tasks = max(-(-panels // most), min(panels, _TASKS))
    near = max(1, min(tiles, _NEAR // (4 * max(1, terms) * room)))
    return Cut(
        x_shape[0], pixels, terms, outputs, int(of_rows), filters, room, tiles, near, panels,
        -(-panels // max(1, tasks)), tasks,
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _record(its: Cut, relu: bool, past: bool) -> np.ndarray:
    routines = Routines(
        to_lanes.address(), copy_rows.address(vectors=1), copy_lanes.address(), copy_panels.address(),
        copy_run.address(), correlate.address(filters=its.filters, rows=1, vectors=VECTORS, relu=int(relu), single=1,
        past=int(past)),
    )  # fmt: skip
    return record(
        cut=its, parts=Parts(its.packed, its.starts, its.panel, its.copied, its.copied + its.split), routines=routines
    )


def conv2d(x: Any, weight: Any, bias: Any, window: Window, groups: int, relu: bool = False) -> Any:
    """y by one product; each element is one chain of fused multiply-adds over the channels, from the bias on."""
    its = cut("conv2d", x.shape, weight.shape)
    return _product(its, x, weight, bias, (len(x), len(weight), *x.shape[2:]), relu)


def conv2d_dx(dy: Any, weight: Any, x_shape: tuple[int, ...], window: Window, groups: int) -> Any:
    """dx by one product; each element is one chain of fused multiply-adds over the filters."""
    return _product(cut("conv2d_dx", x_shape, weight.shape), dy, weight, None, x_shape, False)


def _product(its: Cut, x: Any, weight: Any, bias: Any, y_shape: tuple[int, ...], relu: bool) -> Any:
    # Where a panel never meets two images.
    past = 4 * math.prod(y_shape) >= _LARGE and its.pixels % WIDTH == 0
    y = empty(y_shape) if past else np.empty(y_shape, np.float32)
    bias = _NO_BIAS if bias is None else ready(bias)
    with borrowed(its.workspace(threads())) as memory:
        cost = its.most * WIDTH * its.terms * its.outputs
        share(_convolve, its.tasks, cost, ready(weight), bias, ready(x), y, memory, _record(its, relu, past))
    return y


_NO_BIAS = ready(np.empty(0, np.float32))


@micro_kernel
def copy_run(words: Words, x: Any, x_step: Any, rows: Any, count: Any, y: Any, y_step: Any) -> None:
    """`y[row][i] = x[row][i]` for `count` floats of each row."""
    with words.loop(rows, x, y) as row:
        source, target = row.carried
        copy_row(words, source, target, count, words.times(x_step, _AHEAD), 1)
        row.carry(words.at(source, x_step), words.at(target, y_step))


@micro_kernel
def copy_panels(
    words: Words, x: Any, x_step: Any, rows: Any, head: Any, panels: Any, tail: Any, y: Any, y_panel: Any
) -> None:
    """Rows of x to panels: the first `head` floats end one, the next fill so many, the last `tail` begin one.

    y is where the first float goes; a panel has `WIDTH` of each row.
    """
    builder, size = words.builder, 4 * WIDTH
    beyond = words.times(x_step, _AHEAD)
    is_any = [builder.icmp_signed(">", each, words.number(0)) for each in (head, tail)]
    # Where the first whole panel is: after a head, that of the next panel.
    after = builder.select(is_any[0], builder.sub(y_panel, words.number(size)), words.number(0))
    after = words.at(after, words.times(head, 4))
    with words.loop(rows, x, y) as row:
        source, target = row.carried
        with builder.if_then(is_any[0]):
            copy_row(words, source, target, head, beyond, 1)
        begin = words.at(source, words.times(head, 4)), words.at(target, after)
        with words.loop(panels, *begin) as panel:
            words.prefetch(words.at(panel.carried[0], beyond))
            for vector in range(VECTORS):
                there, here = (words.at(each, words.size * vector) for each in panel.carried)
                words.store(words.load(there), here)
            panel.carry(words.at(panel.carried[0], size), words.at(panel.carried[1], y_panel))
        with builder.if_then(is_any[1]):
            copy_row(words, panel.results[0], panel.results[1], tail, beyond, 1)
        row.carry(words.at(source, x_step), words.at(target, size))


@in_turn
def _convolve(workers, counter, last, weight, bias, x, y, memory, work):
    """The weights are packed before the first task."""
    if counter[0] == 0:
        on_workers(workers, _pack, (counter, weight, bias, memory, work))
        counter[0] = 0
    on_workers(workers, _multiply, (counter, last, x, y, memory, work))


@serial
def _pack(_, counter, weight, bias, memory, work):
    """A tile of filters is a task."""
    task = take(counter)
    while task < work[0].cut.tiles:
        _pack_tile(task, weight.ctypes.data, bias, memory, work[0])
        task = take(counter)


@serial
def _pack_tile(tile, weight, bias, memory, work):
    """`packed[tile][term][filter]` and what their sums start from; the last tile overlaps the one before it."""
    cut, routines = work.cut, work.routines
    first = min(tile * cut.filters, cut.outputs - cut.filters)
    for f in range(cut.filters):
        memory[work.parts.packed + tile * cut.filters + f] = bias[first + f] if len(bias) else 0
    step = 4 * cut.room
    for begin in range(0, cut.filters, LANES):
        f, target = first + begin, memory.ctypes.data + tile * cut.terms * step + 4 * begin
        filters = min(LANES, cut.filters - begin)
        if cut.of_rows:
            call(routines.to_lanes, (weight + 4 * f * cut.terms, 4 * cut.terms, filters, cut.terms, target, step))
        elif f + LANES <= cut.outputs:
            call(routines.copy_rows, (weight + 4 * f, 4 * cut.outputs, cut.terms, target, step))
        else:
            for term in range(cut.terms):
                call(routines.copy_lanes, (weight + 4 * (term * cut.outputs + f), filters, target + term * step))


@serial
def _multiply(worker, counter, last, x, y, memory, work):
    """Some panels are a task."""
    task = take(counter)
    while task < last:
        _panels(task, worker, x.ctypes.data, y.ctypes.data, memory.ctypes.data, work[0])
        task = take(counter)


@serial
def _panels(task, worker, x, y, memory, work):
    """Panels of pixels by all filters; arrays by their addresses."""
    cut, parts = work.cut, work.parts
    first, end = task * cut.panels // cut.tasks, (task + 1) * cut.panels // cut.tasks
    starts = memory + 4 * parts.packed
    own = starts + 4 * (parts.starts + worker * parts.scratch)
    split = own + 4 * parts.copied
    of_panel, of_tile = 4 * parts.panel, 4 * cut.terms * cut.room
    _copy_pixels(first * WIDTH, min(end * WIDTH, cut.images * cut.pixels), x, own, work)
    for tile in range(0, cut.tiles, cut.near):
        f, tiles = tile * cut.filters, min(cut.near, cut.tiles - tile)
        for panel in range(first, end):
            image, pixel = panel * WIDTH // cut.pixels, panel * WIDTH % cut.pixels
            is_whole = pixel + WIDTH <= cut.pixels
            target = y + 4 * ((image * cut.outputs + f) * cut.pixels + pixel) if is_whole else split
            call(work.routines.correlate, (
                own + (panel - first) * of_panel, 4 * WIDTH, 0, cut.terms, 0, 1, memory + tile * of_tile, 4 * cut.room,
                starts + 4 * f, tiles, cut.outputs - cut.filters - f, target, 4 * (cut.pixels if is_whole else WIDTH),
                0, WIDTH,
            ))  # fmt: skip
            if not is_whole:
                filters = min(tiles * cut.filters, cut.outputs - f)
                _copy_sums(panel, y + 4 * f * cut.pixels, split, filters, work)


@serial
def _copy_pixels(at, end, x, own, work):
    """Pixels `at .. end - 1` to panels, a run for each image that they meet."""
    cut, of_plane, first = work.cut, 4 * work.cut.pixels, at
    while at < end:
        pixel, lane = at % cut.pixels, (at - first) % WIDTH
        count = min(cut.pixels - pixel, end - at)
        head = min(count, (WIDTH - lane) % WIDTH)
        call(work.routines.copy_panels, (
            x + at // cut.pixels * cut.terms * of_plane + 4 * pixel, of_plane, cut.terms, head,
            (count - head) // WIDTH, (count - head) % WIDTH,
            own + 4 * ((at - first) // WIDTH * work.parts.panel + lane), 4 * work.parts.panel,
        ))  # fmt: skip
        at += count


@serial
def _copy_sums(panel, y, sums, filters, work):
    """A panel's `sums[filter][pixel]` to the images that it meets."""
    cut, of_plane = work.cut, 4 * work.cut.pixels
    at, end = panel * WIDTH, min((panel + 1) * WIDTH, cut.images * cut.pixels)
    while at < end:
        pixel = at % cut.pixels
        count = min(cut.pixels - pixel, end - at)
        target = y + at // cut.pixels * cut.outputs * of_plane + 4 * pixel
        call(work.routines.copy_run, (sums + 4 * (at - panel * WIDTH), 4 * WIDTH, filters, count, target, of_plane))
        at += count
