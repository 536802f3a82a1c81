"""Max pooling and its gradient on a GPU."""

import math
from typing import Any

import numpy as np
from numba import cuda

from kernelproof import spec
from kernelproof.kernels.contract import implements

from .host.allowance import most_lines, served
from .host.arrays import SIMULATED, DeviceArray
from .launch import launch, position, reader

if not SIMULATED:
    from .cuda_cores import pool_by_twos


@implements(spec.max_pool2d, "cuda", array_type=DeviceArray)
def max_pool2d(x: Any, window: Any, return_indices: Any) -> Any:
    """One thread per output element, taps in row-major order; exact. Indices are int64, found by a second launch.

    Any strides, no copies; 64-bit indices.
    """
    y = x.empty((*x.shape[:2], window.p(x.shape), window.q(x.shape)))
    by_twos = not SIMULATED and not window.ceil_mode and pool_by_twos.is_by_twos(window) and pool_by_twos.serves(x)
    if by_twos and not return_indices:
        pool_by_twos.pool(x, y)
        return y
    launch(_max_pool2d, y.size, x, y, *_geometry(window))
    return (y, _winners(x, window)) if return_indices else y


@implements(spec.max_pool2d_dx, "cuda", array_type=DeviceArray)
def max_pool2d_dx(dy: Any, x: Any, window: Any) -> Any:
    """One thread per input element adds dy of the windows that it won, in the order r, s, in the arrays' type.

    The winners are found first, one int64 for each window. Windows side by side, without padding: one thread for each
    finds its winner and writes its pixels, all in one launch. Any strides, no copies; 64-bit indices.
    """
    dx = dy.empty(x.shape)
    by_twos = not SIMULATED and not window.ceil_mode and pool_by_twos.is_by_twos(window) and pool_by_twos.serves(x)
    if by_twos and dy.is_contiguous() and dy.size and served(_by_twos, dy, x, dx):
        return dx
    if window.kernel == window.stride and window.padding == ((0, 0), (0, 0)) and window.dilation == (1, 1):
        down, across = (-(-size // step) for size, step in zip(x.shape[2:], window.stride, strict=True))
        launch(_max_pool2d_dx_apart, math.prod(x.shape[:2]) * down * across, dy, x, dx, window.kernel, (down, across))
    else:
        most_lines("max_pool2d_dx", 8 * dy.size, 1)
        launch(_max_pool2d_dx, dx.size, dy, _winners(x, window), dx, *_geometry(window))
    return dx


def _by_twos(dy: Any, x: Any, dx: Any) -> bool:
    y, winner = dy.empty(dy.shape), pool_by_twos.winners(dy)
    pool_by_twos.pool(x, y, winner)
    pool_by_twos.unpool(dy, winner, dx)
    return True


def _winners(x: Any, window: Any) -> Any:
    winner = x.empty((*x.shape[:2], window.p(x.shape), window.q(x.shape)), np.int64)
    launch(_max_pool2d_winners, winner.size, x, winner, *_geometry(window))
    return winner


def _geometry(window: Any) -> tuple[Any, ...]:
    return window.kernel, window.stride, window.padding, window.dilation


@cuda.jit(device=True)
def _winner(x, n, c, p, q, kernel, stride, padding, dilation):
    """Row and column of the first greatest input in the window, NaN above all; padding is never looked at."""
    row = column = -1
    greatest = x.dtype.type(0)
    for r in range(kernel[0]):
        h = p * stride[0] + r * dilation[0] - padding[0][0]
        if h < 0 or h >= x.shape[2]:
            continue
        for s in range(kernel[1]):
            w = q * stride[1] + s * dilation[1] - padding[1][0]
            if w < 0 or w >= x.shape[3]:
                continue
            value = x[n, c, h, w]
            is_first_nan = value != value and greatest == greatest
            if row < 0 or value > greatest or is_first_nan:
                row, column, greatest = h, w, value
    return row, column


@cuda.jit
def _max_pool2d(x, y, kernel, stride, padding, dilation):
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        n, c, p, q = position(i, y.shape)
        h, w = _winner(x, n, c, p, q, kernel, stride, padding, dilation)
        y[n, c, p, q] = x[n, c, h, w]


@cuda.jit
def _max_pool2d_winners(x, winner, kernel, stride, padding, dilation):
    for i in range(cuda.grid(1), winner.size, cuda.gridsize(1)):
        n, c, p, q = position(i, winner.shape)
        h, w = _winner(x, n, c, p, q, kernel, stride, padding, dilation)
        winner[n, c, p, q] = h * x.shape[3] + w


@cuda.jit
def _max_pool2d_dx(dy, winner, dx, kernel, stride, padding, dilation):
    for i in range(cuda.grid(1), dx.size, cuda.gridsize(1)):
        n, c, h, w = position(i, dx.shape)
        total = dx.dtype.type(0)
        for r in range(kernel[0]):
            p = reader(h, r, stride[0], padding[0][0], dilation[0], dy.shape[2])
            if p < 0:
                continue
            for s in range(kernel[1]):
                q = reader(w, s, stride[1], padding[1][0], dilation[1], dy.shape[3])
                if q >= 0 and winner[n, c, p, q] == h * dx.shape[3] + w:
                    total += dy[n, c, p, q]
        dx[n, c, h, w] = total


@cuda.jit
def _max_pool2d_dx_apart(dy, x, dx, kernel, windows):
    for i in range(cuda.grid(1), dx.shape[0] * dx.shape[1] * windows[0] * windows[1], cuda.gridsize(1)):
        n, c, p, q = position(i, (dx.shape[0], dx.shape[1], windows[0], windows[1]))
        # The pixels behind the last whole window have no winner: they are windows without a dy.
        is_whole = p < dy.shape[2] and q < dy.shape[3]
        row = column = -1
        if is_whole:
            row, column = _winner(x, n, c, p, q, kernel, kernel, ((0, 0), (0, 0)), (1, 1))
        for h in range(p * kernel[0], min((p + 1) * kernel[0], dx.shape[2])):
            for w in range(q * kernel[1], min((q + 1) * kernel[1], dx.shape[3])):
                dx[n, c, h, w] = dy[n, c, p, q] if h == row and w == column else dx.dtype.type(0)
