"""Products of matrices on the micro-kernel that convolutions spend their time in.

Rows of the second operand are added up: they are `multiply`'s weights where they stand, or turned into a panel that
many rows of the first share. Measured beside others in docs/cpu.md.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from .launch import in_turn, ready, record, serial, share, threads
from .micro_kernels import PIXELS, TOGETHER, VECTORS, copy_rows, multiply, to_lanes
from .vectors import LANES, call, take
from .workers import on_workers
from .workspace import borrowed, in_lines

TASKS = 4
"""Tasks for each thread where there is work enough: one that is held up leaves the others work."""

_HELD = 2**15
"""Floats of the second operand that a task reads again for each tile: they stay in the second-level cache."""

_LITTLE = 2**12
"""Terms of tiles that one thread turns before others would be awake."""

_TILES = 8
"""Tiles that are worth turning a panel for."""

_FAR = {16: 2**40, 8: 2**10, 4: 2**40}[LANES]
"""Bytes between rows from which on they are copied, that they be neighbours: else they share few lines of the cache."""


class Tiles(NamedTuple):
    """How `product` is cut: a tile is `rows` by `vectors`; a task is `group` tiles of `span` panels of columns.

    Up to `together` tiles are multiplied in one call.
    Of those a tile after the other, so that rows of y are written as they lie. `turned` floats are what a is turned or
    copied into, if it is, and `panel` those of b that a task turns or copies.
    """

    rows: int
    vectors: int
    together: int
    group: int
    groups: int
    span: int
    turned: int
    panel: int
    is_little: int
    of_rows: int
    of_columns: int


class Routines(NamedTuple):
    """Addresses: of what turns rows to lanes, multiplies, copies a tile, and copies a panel."""

    to_lanes: int
    multiply: int
    copy_tile: int
    copy_panel: int


@functools.lru_cache(maxsize=256)
def _cut(i: int, j: int, terms: int, of_rows: bool, of_columns: bool, threads: int) -> tuple[Tiles, np.ndarray]:
    """The cut, and all numbers that the core reads."""
    rows = -(-i // -(-i // min(PIXELS, LANES)))
    # Fewer rows leave registers for more vectors, and more vectors hide how long a multiply-add takes.
    fitting = [
        each for each in (VECTORS, 2 * VECTORS, 4 * VECTORS) if each * rows <= PIXELS * VECTORS and each * LANES <= j
    ]
    vectors, tiles = max(fitting, default=1), -(-i // rows)
    panels = -(-j // (vectors * LANES))
    is_turned = of_rows or (4 * i >= _FAR and i >= LANES)
    is_packed = of_columns or (4 * j >= _FAR and tiles >= _TILES and terms >= 4 * LANES)
    span = 1 if is_packed else max(1, min(panels, _HELD // (terms * vectors * LANES)))
    # Tiles in one task: all, so that they share its panels of b, unless that leaves threads without work.
    group = tiles if -(-panels // span) >= TASKS * threads else -(-tiles // (TASKS * threads))
    group = max(group, min(tiles, _TILES)) if is_packed else group
    cut = Tiles(
        rows, vectors, TOGETHER, group, -(-tiles // group), span, tiles * terms * LANES * is_turned,
        in_lines(vectors * LANES * terms) * is_packed, int(tiles * terms <= _LITTLE), int(of_rows), int(of_columns),
    )  # fmt: skip
    routines = Routines(
        to_lanes.address(),
        multiply.address(pixels=rows, vectors=vectors, pixel_step=4, single=int(LANES < 16)),
        0 if of_rows else copy_rows.address(vectors=1),
        0 if of_columns else copy_rows.address(vectors=vectors),
    )
    return cut, record(cut=cut, routines=routines)


def product(a: Any, b: Any, *, of_rows: bool = True, of_columns: bool = False, bias: Any = None) -> Any:
    """`y[i,j] = bias[j] + sum_t a[i,t] * b[t,j]`; parallel over panels of j and tiles of i.

    Without `of_rows` a is given as `a[t,i]`; with `of_columns` b is given as `b[j,t]`. Every element is one chain of
    fused multiply-adds over t, from the bias or zero. b needs `LANES` columns or more. What does not stand so is
    turned: a into tiles of columns, b into a panel for each task.
    """
    terms, j = b.shape[::-1] if of_columns else b.shape
    i = a.size // terms
    cut, work = _cut(i, j, terms, of_rows, of_columns, threads())
    y, starts, a, b = np.empty((i, j), np.float32), zeros(j) if bias is None else ready(bias), ready(a), ready(b)
    panels, tiles = -(-j // (cut.vectors * LANES)), -(-i // cut.rows)
    cost = cut.group * cut.rows * terms * cut.span * cut.vectors * LANES
    with borrowed(cut.turned + cut.panel * threads()) as memory:
        if cut.turned and not cut.is_little:
            share(_turn_tiles, tiles, cut.rows * terms, a, memory, work)
        share(_product, -(-panels // cut.span) * cut.groups, cost, a, b, starts, y, memory, work)
    return y


@functools.lru_cache(maxsize=256)
def zeros(size: int) -> np.ndarray:
    """Nothing to start from.

    Read-only, so that one serves all.
    """
    return ready(np.zeros(size, np.float32))


@in_turn
def _turn_tiles(workers, counter, last, a, turned, work):
    on_workers(workers, _turn_tiles_worker, (counter, last, a, turned, work))


@serial
def _turn_tiles_worker(_, counter, last, a, turned, work):
    task = take(counter)
    while task < last:
        _turn_tile(a, task, turned, work[0])
        task = take(counter)


@serial
def _turn_tile(a, number, turned, work):
    """`turned[number][t][lane]`: rows of a, a lane for each; the last tile overlaps the one before it."""
    cut, routines = work.cut, work.routines
    size, first = 4 * LANES, number * cut.rows
    if cut.of_rows:
        rows, terms = a.shape
        first = min(first, rows - cut.rows)
        call(routines.to_lanes, (
            a.ctypes.data + 4 * first * terms, 4 * terms, cut.rows, terms, turned.ctypes.data + number * terms * size,
            size,
        ))  # fmt: skip
    else:
        terms, rows = a.shape
        first = min(first, rows - LANES)
        call(routines.copy_tile, (
            a.ctypes.data + 4 * first, 4 * rows, terms, turned.ctypes.data + number * terms * size, size
        ))  # fmt: skip


@in_turn
def _product(workers, counter, last, a, b, starts, y, memory, work):
    cut = work[0].cut
    if cut.turned and cut.is_little:
        for number in range(-(-y.shape[0] // cut.rows)):
            _turn_tile(a, number, memory, work[0])
    on_workers(workers, _product_worker, (counter, last, a, b, starts, y, memory, work))


@serial
def _product_worker(worker, counter, last, a, b, starts, y, memory, work):
    cut = work[0].cut
    own = memory.ctypes.data + 4 * (cut.turned + worker * cut.panel)
    task = take(counter)
    while task < last:
        panel, first = task // cut.groups * cut.span, task % cut.groups * cut.group
        if cut.panel:
            _turn_panel(b, panel, own, work[0])
            _tiles(a, starts, y, panel, first, own, 4 * cut.vectors * LANES, memory, work[0])
        else:
            _tiles(a, starts, y, panel, first, b.ctypes.data, 4 * b.shape[1], memory, work[0])
        task = take(counter)


@serial
def _column(panel, columns, cut):
    """Where a panel begins: the last one overlaps the one before it, for the same sums."""
    return min(panel * cut.vectors * LANES, columns - cut.vectors * LANES)


@serial
def _turn_panel(b, panel, own, work):
    """`own[t][j]` of a panel of b."""
    cut, routines = work.cut, work.routines
    if not cut.of_columns:
        at, step = b.ctypes.data + 4 * _column(panel, b.shape[1], cut), 4 * LANES * cut.vectors
        call(routines.copy_panel, (at, 4 * b.shape[1], b.shape[0], own, step))
        return
    terms = b.shape[1]
    for vector in range(cut.vectors):
        row = _column(panel, len(b), cut) + vector * LANES
        call(routines.to_lanes, (
            b.ctypes.data + 4 * row * terms, 4 * terms, LANES, terms, own + 4 * LANES * vector,
            4 * LANES * cut.vectors,
        ))  # fmt: skip


@serial
def _tiles(a, starts, y, panel, first, b, b_step, memory, work):
    """Panels `panel ..` of tiles `first ..`; at address b is their panel, or all of them."""
    (i, j), cut = y.shape, work.cut
    terms = a.size // i
    zero = np.zeros(1, np.int64)
    tiles = min(cut.group, -(-i // cut.rows) - first)
    done = 0
    while done < tiles:
        row = min((first + done) * cut.rows, i - cut.rows)
        at, step, of_tile = a.ctypes.data + 4 * row, 4 * i, 4 * cut.rows
        if cut.turned:
            # A tile that was copied begins with rows before it where a vector more is not there.
            skipped = 0 if cut.of_rows else row - min((first + done) * cut.rows, i - LANES)
            step, of_tile = 4 * LANES, 4 * LANES * terms
            at = memory.ctypes.data + (first + done) * of_tile + 4 * skipped
        # The last tiles may overlap those before them.
        together = max(1, min(cut.together, tiles - done, (i - (LANES - cut.rows)) // cut.rows - first - done))
        for each in range(panel, min(panel + cut.span, -(-j // (cut.vectors * LANES)))):
            column = _column(each, j, cut)
            call(work.routines.multiply, (
                at, step, terms, zero.ctypes.data, 1, b if cut.panel else b + 4 * column, b_step,
                starts.ctypes.data + 4 * column, y.ctypes.data + 4 * (row * j + column), 4 * j, together, of_tile,
            ))  # fmt: skip
        done += together
