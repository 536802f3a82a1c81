"""Max pooling and its gradient on the CPU."""

from typing import Any

import numpy as np
from numba import prange

from kernelproof import spec
from kernelproof.kernels.contract import implements
from kernelproof.spec import Window

from .launch import launch, parallel, ready, serial


@implements(spec.max_pool2d, "cpu")
def max_pool2d(x: Any, window: Window, return_indices: bool) -> Any:
    """Parallel over images and channels. Exact: no arithmetic, y is the winner's copy.

    Any layout of x; one that is not row-major is copied first. Indices are int64.
    """
    n, c, h, w = x.shape
    p, q = window.p(x.shape), window.q(x.shape)
    y = np.empty((n, c, p, q), x.dtype.newbyteorder("="))
    index = np.empty((n, c, p, q) if return_indices else (n, c, 0, 0), np.int64)
    launch(
        _max_pool2d, n * c, p * q * _taps(window), ready(x).reshape(n * c, h, w),
        y.reshape(n * c, p, q), index.reshape(n * c, *index.shape[2:]), *_reads(window, x.shape), window.dilation,
    )  # fmt: skip
    return (y, index) if return_indices else y


@implements(spec.max_pool2d_dx, "cpu")
def max_pool2d_dx(dy: Any, x: Any, window: Window) -> Any:
    """Parallel over images and channels; the windows of one plane add up one after the other, row-major.

    Accumulates in the arrays' type. The winners are found again from x. Any layout, copied if it is not row-major.
    """
    n, c, h, w = x.shape
    p, q = dy.shape[2:]
    dx = np.zeros((n, c, h, w), x.dtype.newbyteorder("="))
    launch(
        _max_pool2d_dx, n * c, p * q * _taps(window), ready(dy).reshape(n * c, p, q),
        ready(x).reshape(n * c, h, w), dx.reshape(n * c, h, w), *_reads(window, x.shape), window.dilation,
    )  # fmt: skip
    return dx


def _taps(window: Window) -> int:
    return window.kernel[0] * window.kernel[1]


def _reads(window: Window, x_shape: tuple[int, ...]) -> list[np.ndarray]:
    """For each axis `[p]`: first and last position inside the input that window p reads."""
    reads = []
    for axis, size in enumerate(x_shape[-2:]):
        position = window.positions(axis, size)
        inside = window.inside(axis, size)
        first, last = inside.argmax(axis=1), position.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)
        reads.append(np.take_along_axis(position, np.stack([first, last], axis=1), axis=1))
    return reads


@parallel
def _max_pool2d(first, last, x, y, index, rows, columns, dilation):
    for task in prange(first, last):
        _pool_plane(x[task], y[task], index[task], rows, columns, dilation)


@serial
def _pool_plane(x, y, index, rows, columns, dilation):
    for p in range(len(rows)):
        for q in range(len(columns)):
            h, w = _winner(x, rows[p], columns[q], dilation)
            y[p, q] = x[h, w]
            if index.size:
                index[p, q] = h * x.shape[1] + w


@parallel
def _max_pool2d_dx(first, last, dy, x, dx, rows, columns, dilation):
    for task in prange(first, last):
        _pool_plane_dx(dy[task], x[task], dx[task], rows, columns, dilation)


@serial
def _pool_plane_dx(dy, x, dx, rows, columns, dilation):
    for p in range(len(rows)):
        for q in range(len(columns)):
            h, w = _winner(x, rows[p], columns[q], dilation)
            dx[h, w] += dy[p, q]


@serial
def _winner(x, rows, columns, dilation):
    """Where the greatest input stands; rows and columns are `(first, last)`. Ties go to the first, NaN wins."""
    best_h, best_w = rows[0], columns[0]
    best = x[best_h, best_w]
    for h in range(rows[0], rows[1] + 1, dilation[0]):
        for w in range(columns[0], columns[1] + 1, dilation[1]):
            value = x[h, w]
            if value > best or (np.isnan(value) and not np.isnan(best)):
                best, best_h, best_w = value, h, w
    return best_h, best_w
