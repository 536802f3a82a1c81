"""Max pooling and its gradient on the CPU: rows of float32 windows on vectors, the others one by one.

Nothing is copied or padded: a vector of windows that reaches over an edge reads what is inside.
Measured beside others in docs/cpu.md: PyTorch and ONNX Runtime are faster.
"""

import functools
from typing import Any, NamedTuple

import numpy as np
from numba import prange

from kernelproof import spec
from kernelproof.kernels.contract import implements
from kernelproof.spec import Window

from .launch import launch, parallel, ready, serial, share
from .pool_vectors import Blocks, pool_rows, unpool_rows
from .vectors import LANES, call, take


class Reads(NamedTuple):
    """`rows[p]`, `columns[q]`: first and last position that is read, in steps of the dilations.

    Rows `begin .. end - 1` read no padding. `blocks` as in pool_vectors.Blocks. Whole
    vectors stay within `reach` floats of an image. `halves`: 2x2 windows side by side, so
    that each position is in one window at most.
    """

    rows: np.ndarray
    columns: np.ndarray
    begin: int
    end: int
    row_dilation: int
    column_dilation: int
    row_stride: int
    blocks: np.ndarray
    reach: int
    halves: bool


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
        count, h, w, p = (n * c, h, w, p) if return_indices else _stacked(window, x.shape)
        planes = ready(x).reshape(count, h, w), y.reshape(count, p, q), index.reshape(count, *index.shape[2:])
        read = reads(window, (h, w))
        routines = _routines(window, return_indices, read, count, h * w)
        share(
            _max_pool2d_rows, count, _MEMORY * _cost(window, p * q), *planes, read, routines
        )  # fmt: skip
    else:
        planes = ready(x).reshape(n * c, h, w), y.reshape(n * c, p, q), index.reshape(n * c, *index.shape[2:])
        launch(_max_pool2d, n * c, _cost(window, p * q), *planes, reads(window, (h, w)))
    return (y, index) if return_indices else y


@implements(spec.max_pool2d_dx, "cpu")
def max_pool2d_dx(dy: Any, x: Any, window: Window) -> Any:
    """Parallel over images and channels; the windows of one plane add up one after the other, row-major.

    Accumulates in the arrays' type. The winners are found again from x. Any layout, copied if it is not row-major.
    """
    n, c, h, w = x.shape
    p, q = dy.shape[2:]
    dx = np.empty((n, c, h, w), x.dtype.newbyteorder("="))
    if _is_fast(window, dx.dtype):
        count, h, w, p = _stacked(window, x.shape)
        read = reads(window, (h, w))
        if read.halves:
            routines = np.array([[unpool_rows.address(inner=inner) for inner in (0, 1)]])
        else:
            routines = _routines(window, True, read, count, h * w)
        planes = ready(dy).reshape(count, p, q), ready(x).reshape(count, h, w), dx.reshape(count, h, w)
        share(_max_pool2d_dx_rows, count, _MEMORY * _cost(window, p * q), *planes, read, routines)
    else:
        planes = ready(dy).reshape(n * c, p, q), ready(x).reshape(n * c, h, w), dx.reshape(n * c, h, w)
        launch(_max_pool2d_dx, n * c, _cost(window, p * q), *planes, reads(window, (h, w)))
    return dx


_STACK = 2**14
"""Floats of images that are pooled as one."""

_MEMORY = 8
"""Multiply-adds of a micro-kernel that take the time of reading one tap."""

_MOST = 7
"""Taps in a row of a window that are written out."""

_UNROLLED = (2, 2), (3, 3)
"""Windows whose rows are written out too: those that networks have. Others go round a loop, compiled once for all."""


def _cost(window: Window, windows: int) -> int:
    return window.kernel[0] * window.kernel[1] * windows


def _stacked(window: Window, x_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """How many images, their height and width, and rows of y: those on which 2x2 windows lie side by side are stacked.

    No window lies across two of them, so a stack is an image.
    """
    n, c, h, w = x_shape
    count, times = n * c, 1
    if reads(window, (h, w)).halves and h % 2 == 0 and count:
        times = max(each for each in range(1, max(1, min(count, _STACK // (h * w))) + 1) if count % each == 0)
    return count // times, times * h, w, window.p((times * h, w))


def _is_fast(window: Window, dtype: Any) -> bool:
    """Whether vectors of windows pay: those that stand further apart would be gathered float by float.

    The taps of a row are written out, so a micro-kernel for many of them would take long to compile.
    """
    return dtype == np.float32 and window.stride[1] <= 2 and window.dilation[1] == 1 and window.kernel[1] <= _MOST


def _routines(window: Window, indices: bool, read: Reads, images: int, size: int) -> np.ndarray:
    """For windows of all rows and for those at an edge, each where whole vectors may not be read and where they may."""
    height = window.kernel[0] if window.kernel in _UNROLLED else 0
    routines = np.zeros((2, 2), np.int64)
    for edge, used in enumerate((read.begin < read.end, read.end - read.begin < len(read.rows))):
        for inner in (0, 1) if (images - 1) // 2 * size >= read.reach else (0,):
            routines[edge, inner] = used and pool_rows.address(
                height=0 if edge else height, columns=window.kernel[1], step=window.stride[1], indices=int(indices),
                inner=inner,
            )  # fmt: skip
    return routines


@functools.lru_cache(maxsize=256)
def reads(window: Window, x_shape: tuple[int, ...]) -> Reads:
    """What every output row and column reads."""
    ends, whole = [], []
    for axis, size in enumerate(x_shape[-2:]):
        position = window.positions(axis, size)
        inside = window.inside(axis, size)
        first, last = inside.argmax(axis=1), position.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)
        ends.append(np.take_along_axis(position, np.stack([first, last], axis=1), axis=1))
        begin = int(inside.all(axis=1).argmax())
        whole.append((begin, begin + int(inside.all(axis=1).sum())))
    blocks = Blocks.of(x_shape[-1], window.padding[1][0], len(ends[1]), *whole[1])
    halves = (
        window.kernel == window.stride == (2, 2)
        and window.dilation == (1, 1)
        and whole == [(0, len(ends[0])), (0, len(ends[1]))]
    )
    reach = window.padding[1][0] + window.extent(1) + 16 * LANES
    return Reads(*ends, *whole[0], *window.dilation, window.stride[0], np.array(blocks, np.int64), reach, halves)


@parallel
def _max_pool2d_rows(workers, counter, last, x, y, index, read, routines):
    for _ in prange(workers):
        task = take(counter)
        while task < last:
            at = 4 * y[0].size * task
            _pool(x, task, y.ctypes.data + at, index.ctypes.data + 2 * at, y.shape[2], read, routines)
            task = take(counter)


@serial
def _pool(x, task, y, index, columns, read, routines):
    """A plane of x to addresses y and index: the rows that read no padding at once, the others one by one."""
    _, height, width = x.shape
    plane = x.ctypes.data + 4 * height * width * task
    p = 0
    while p < len(read.rows):
        first, last = read.rows[p]
        rows = max(1, read.end - p) if p == read.begin else 1
        routine = routines[0 if read.begin <= p < read.end else 1, int(_is_inner(x, task, read))]
        call(routine, (
            read.blocks.ctypes.data, plane + 4 * width * first, 4 * width * read.row_dilation,
            (last - first) // read.row_dilation + 1, 4 * width * read.row_stride, width * first,
            y + 4 * columns * p, index + 8 * columns * p, rows,
        ))  # fmt: skip
        p += rows


@serial
def _is_inner(x, task, read):
    """Whether whole vectors may be read beyond the rows of an image."""
    return min(task, len(x) - 1 - task) * x[0].size >= read.reach


@parallel
def _max_pool2d_dx_rows(workers, counter, last, dy, x, dx, read, routines):
    for _ in prange(workers):
        scratch = 0 if read.halves else dy[0].size
        y, index = np.empty(scratch, dx.dtype), np.empty(scratch, np.int64)
        task = take(counter)
        while task < last:
            if read.halves:
                _pool_halves_dx(dy[task], x[task], dx[task], routines[0, int(_is_inner(x, task, read))])
            else:
                _pool(x, task, y.ctypes.data, index.ctypes.data, dy.shape[2], read, routines)
                _scatter(dy[task].reshape(scratch), index, dx[task].reshape(x[0].size))
            task = take(counter)


@serial
def _pool_halves_dx(dy, x, dx, routine):
    height, width = x.shape
    if height % 2 or width % 2:
        dx[:] = 0
    call(routine, (x.ctypes.data, 4 * width, dy.shape[1], dy.ctypes.data, dx.ctypes.data, dy.shape[0]))


@serial
def _scatter(dy, index, dx):
    """Each window's dy is added where its winner stands."""
    dx[:] = 0
    for i in range(len(index)):
        dx[np.uint64(index[i])] += dy[i]


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
