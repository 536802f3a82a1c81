"""Max pooling and its gradient on the CPU: rows of float32 windows on vectors, the others one by one.

Nothing is copied or padded: a vector of windows that reaches over an edge reads what is inside. Measured beside others
in docs/cpu.md.
"""

import functools
from typing import Any

import numpy as np
from numba import prange

from kernelproof import spec
from kernelproof.kernels.contract import implements
from kernelproof.spec import Window

from .launch import in_turn, launch, parallel, ready, serial, share
from .pool_plans import Plan, plan_of, reads, spread_of
from .pool_vectors import INDICES, MAXIMA, TAPS, pool_rows
from .unpool_vectors import Spread, spread_rows, unpool_halves
from .vectors import LANES, call, take
from .workers import on_workers
from .workspace import empty_beside

HALVES = Window((2, 2), (2, 2))
"""Windows side by side, by twos."""


@implements(spec.max_pool2d, "cpu")
def max_pool2d(x: Any, window: Window, return_indices: bool) -> Any:
    """Parallel over images and channels. Exact: no arithmetic, y is the winner's copy.

    Any layout of x; one that is not row-major is copied first. Indices are int64.
    """
    n, c, h, w = x.shape
    p, q = window.p(x.shape), window.q(x.shape)
    y = np.empty((n, c, p, q), x.dtype.newbyteorder("="))
    index = np.empty((n, c, p, q) if return_indices else (n, c, 0, 0), np.int64)
    if _is_fast(window, y.dtype):
        pool(x, y, index, window, MAXIMA + INDICES * return_indices)
    else:
        planes = ready(x).reshape(n * c, h, w), y.reshape(n * c, p, q), index.reshape(n * c, *index.shape[2:])
        launch(_max_pool2d, n * c, _cost(window, p * q), *planes, reads(window, (h, w)))
    return (y, index) if return_indices else y


@implements(spec.max_pool2d_dx, "cpu")
def max_pool2d_dx(dy: Any, x: Any, window: Window) -> Any:
    """Parallel over images and channels; at each position the windows add up row-major, from zero.

    Accumulates in the arrays' type. The winners are found again from x. On vectors each position asks the windows that
    it is in, a few rows after these were pooled. Any layout, copied if it is not row-major.
    """
    n, c, h, w = x.shape
    p, q = dy.shape[2:]
    if not _is_fast(window, x.dtype.newbyteorder("=")):
        dx = np.empty((n, c, h, w), x.dtype.newbyteorder("="))
        planes = ready(dy).reshape(n * c, p, q), ready(x).reshape(n * c, h, w), dx.reshape(n * c, h, w)
        launch(_max_pool2d_dx, n * c, _cost(window, p * q), *planes, reads(window, (h, w)))
        return dx
    far = 2 * x.size >= _LARGE
    past = far and _PAST and w % LANES == 0
    dy, x = ready(dy), ready(x)
    dx = empty_beside(x.shape, (x, dy)) if past else np.empty(x.shape, np.float32)
    core, plan, *how = _gradient(window, x.shape, far, past)
    cost = _MEMORY * _cost(window, dy.size // max(1, plan.planes))
    share(core, plan.planes, cost, dy, x, dx, plan, *how)
    return dx


_LARGE = 2**23
"""Floats of an array and its gradient that the caches do not hold."""

_PAST = LANES == 8
"""Whether a gradient that the caches do not hold is stored past them: 16 lanes and 4 were not measured.

On two cores of Zen 3, of 16x64x112x112: windows of 3x3 with stride 2 6.1 to 5.2 ms, of 2x2 5.0 to 3.3 ms.
"""

_NEAR = 2**12
"""Floats of x that are pooled before their gradient is spread: the first-level cache holds all of it."""

_MEMORY = 8
"""Multiply-adds of a micro-kernel that take the time of reading one tap."""

_MOST = 7
"""Taps in a row of a window that are written out."""

_UNROLLED = (2, 2), (3, 3)
"""Windows whose rows are written out too: those that networks have. Others go round a loop, compiled once for all."""


def pool(x: Any, y: Any, place: Any, window: Window, stored: int) -> None:
    """What is `stored` of all windows of x, in float32, into y and place; parallel over images and channels."""
    plan, routines = _forward(window, x.shape, stored, x.size + y.size >= _LARGE)
    cost = _MEMORY * _cost(window, y.size // max(1, plan.planes))
    share(_pool, plan.planes, cost, ready(x), y, place, plan, routines)


def spreading(window: Window, spread: Spread, far: bool, past: bool = False) -> int:
    """The routine that makes a row of the gradient."""
    return spread_rows.address(
        columns=window.kernel[1], step=window.stride[1], phase=spread.phase, readers=spread.readers, far=far, past=past
    )


def _cost(window: Window, windows: int) -> int:
    return window.kernel[0] * window.kernel[1] * windows


def _is_fast(window: Window, dtype: Any) -> bool:
    """Whether vectors of windows pay: those that stand further apart would be gathered float by float.

    The taps of a row are written out, so a micro-kernel for many of them would take long to compile.
    """
    return dtype == np.float32 and window.stride[1] <= 2 and window.dilation[1] == 1 and window.kernel[1] <= _MOST


@functools.lru_cache(maxsize=256)
def _forward(window: Window, x_shape: tuple[int, ...], stored: int, far: bool) -> tuple[Plan, np.ndarray]:
    """The plan, and the routines for windows of all rows and for those at an edge.

    Each of them where whole vectors may not be read and where they may.
    """
    # Indices count from the beginning of an image, so that is a plane.
    plan = plan_of(window, x_shape, not stored & INDICES)
    height = window.kernel[0] if window.kernel in _UNROLLED else 0
    is_used = plan.begin < plan.end, plan.end - plan.begin < len(plan.rows)
    is_inner = True, (plan.planes - 1) // 2 * plan.height * plan.width >= plan.reach
    return plan, np.array([
        is_used[edge] and is_inner[inner] and pool_rows.address(
            height=0 if edge else height, columns=window.kernel[1], step=window.stride[1], stored=stored, inner=inner,
            padded=window.padding[1] != (0, 0) or window.ceil_mode, far=far and not edge,
        )
        for edge in (0, 1) for inner in (0, 1)
    ], np.int64)  # fmt: skip


@functools.lru_cache(maxsize=256)
def _gradient(window: Window, x_shape: tuple[int, ...], far: bool, past: bool) -> tuple[Any, ...]:
    """The core, its plan, and what it takes beside that."""
    if window == HALVES and x_shape[2] % 2 == x_shape[3] % 2 == 0:
        routines = [unpool_halves.address(inner=inner, far=far, past=past) for inner in (0, 1)]
        return _unpool_halves, plan_of(window, x_shape, True), np.array(routines)
    plan, routines = _forward(window, x_shape, TAPS, far)
    spread = spread_of(window, (plan.height, plan.width))
    return _unpool, plan, routines, spread, spreading(window, spread, far, past)


@in_turn
def _pool(workers, counter, last, x, y, place, plan, routines):
    on_workers(workers, _pool_worker, (counter, last, x, y, place, plan, routines))


@serial
def _pool_worker(_, counter, last, x, y, place, plan, routines):
    windows = len(plan.rows) * plan.columns
    task = take(counter)
    while task < last:
        places = place.ctypes.data + place.itemsize * windows * task
        _pool_rows(
            x.ctypes.data, task, 0, len(plan.rows), y.ctypes.data + 4 * windows * task, places, place.itemsize,
            plan, routines,
        )  # fmt: skip
        task = take(counter)


@serial
def _pool_rows(x, task, p, end, y, place, of_place, plan, routines):
    """Rows of windows `p .. end - 1` of a plane of x to its y and places: those that read no padding at once."""
    inner = _is_inner(task, plan)
    while p < end:
        first, last = plan.rows[p]
        at = plan.width * first - plan.left
        is_edge = not plan.begin <= p < plan.end
        rows = 1 if is_edge else min(end, plan.end) - p
        call(routines[2 * is_edge + inner], (
            plan.blocks.ctypes.data, x + 4 * (plan.height * plan.width * task + at), 4 * plan.width * plan.dilation,
            (last - first) // plan.dilation + 1, 4 * plan.width * plan.stride, at, y + 4 * plan.columns * p,
            place + of_place * plan.columns * p, plan.columns, rows,
        ))  # fmt: skip
        p += rows


@serial
def _is_inner(task, plan):
    """Whether whole vectors may be read beyond the rows of a plane."""
    return int(min(task, plan.planes - 1 - task) * plan.height * plan.width >= plan.reach)


@in_turn
def _unpool(workers, counter, last, dy, x, dx, plan, routines, spread, spreading):
    on_workers(workers, _unpool_worker, (counter, last, dy, x, dx, plan, routines, spread, spreading))


@serial
def _unpool_worker(_, counter, last, dy, x, dx, plan, routines, spread, spreading):
    windows, group = len(plan.rows) * plan.columns, 1 + _NEAR // (plan.stride * plan.width)
    taps = np.empty(windows, np.int32)
    task = take(counter)
    while task < last:
        h = 0
        for p in range(0, len(plan.rows), group):
            end = min(p + group, len(plan.rows))
            _pool_rows(x.ctypes.data, task, p, end, 0, taps.ctypes.data, 4, plan, routines)
            # No later window reads the rows above its first.
            rows = (plan.rows[end, 0] if end < len(plan.rows) else plan.height) - h
            spread_out(
                dy.ctypes.data + 4 * windows * task, taps.ctypes.data, h, rows, plan.width, spread,
                dx.ctypes.data + 4 * plan.height * plan.width * task, spreading,
            )  # fmt: skip
            h += rows
        task = take(counter)


@serial
def spread_out(dy, taps, h, rows, width, spread, dx, routine):
    """Rows `h ..` of a plane of dx, from its windows' dy and taps."""
    call(routine, (
        dy + 4 * spread.left, taps + 4 * spread.left, spread.windows[h:].ctypes.data, spread.blocks.ctypes.data,
        dx + 4 * width * h, 4 * width, rows,
    ))  # fmt: skip


@in_turn
def _unpool_halves(workers, counter, last, dy, x, dx, plan, routines):
    on_workers(workers, _unpool_halves_worker, (counter, last, dy, x, dx, plan, routines))


@serial
def _unpool_halves_worker(_, counter, last, dy, x, dx, plan, routines):
    windows, size = len(plan.rows) * plan.columns, plan.height * plan.width
    task = take(counter)
    while task < last:
        call(routines[_is_inner(task, plan)], (
            plan.blocks.ctypes.data, x.ctypes.data + 4 * size * task, 4 * plan.width,
            dy.ctypes.data + 4 * windows * task, plan.columns, dx.ctypes.data + 4 * size * task, len(plan.rows),
        ))  # fmt: skip
        task = take(counter)


@parallel
def _max_pool2d(first, last, x, y, index, read):
    for task in prange(first, last):
        _pool_plane(x[task], y[task], index[task], read)


@serial
def _pool_plane(x, y, index, read):
    for p in range(len(read.rows)):
        for q in range(len(read.columns)):
            h, w = _winner(x, read.rows[p], read.columns[q], read.row_dilation, read.column_dilation)
            y[p, q] = x[h, w]
            if index.size:
                index[p, q] = h * x.shape[1] + w


@parallel
def _max_pool2d_dx(first, last, dy, x, dx, read):
    for task in prange(first, last):
        _pool_plane_dx(dy[task], x[task], dx[task], read)


@serial
def _pool_plane_dx(dy, x, dx, read):
    dx[:] = 0
    for p in range(len(read.rows)):
        for q in range(len(read.columns)):
            h, w = _winner(x, read.rows[p], read.columns[q], read.row_dilation, read.column_dilation)
            dx[h, w] += dy[p, q]


@serial
def _winner(x, rows, columns, row_dilation, column_dilation):
    """Where the greatest input stands; rows and columns are `(first, last)`. Ties go to the first, NaN wins."""
    best_h, best_w = rows[0], columns[0]
    best = x[best_h, best_w]
    for h in range(rows[0], rows[1] + 1, row_dilation):
        for w in range(columns[0], columns[1] + 1, column_dilation):
            value = x[h, w]
            if value > best or (np.isnan(value) and not np.isnan(best)):
                best, best_h, best_w = value, h, w
    return best_h, best_w
