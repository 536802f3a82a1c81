"""The rectifier and its gate on the CPU."""

from typing import Any

import numpy as np
from numba import prange

from kernelproof import spec
from kernelproof.kernels.contract import implements

from . import elementwise
from .launch import launch, parallel, ready, serial

_CHUNK = 2**14
"""Elements in one task: far more work than starting it, and small enough to share between threads."""


@implements(spec.relu, "cpu")
def relu(x: Any) -> Any:
    """Parallel over chunks of the flattened array. Exact. Any layout; one that is not row-major is copied first."""
    if x.dtype.newbyteorder("=") == np.float32:
        return elementwise.perform(elementwise.relu, (ready(x),), 1)[0]
    y = np.empty(x.shape, x.dtype.newbyteorder("="))
    launch(_relu, -(-x.size // _CHUNK), _CHUNK, ready(x).reshape(-1), y.reshape(-1))
    return y


@implements(spec.relu_dx, "cpu")
def relu_dx(dy: Any, x: Any) -> Any:
    """Parallel over chunks of the flattened array. Exact. Any layout; one that is not row-major is copied first."""
    if x.dtype.newbyteorder("=") == np.float32:
        return elementwise.perform(elementwise.relu_dx, (ready(dy), ready(x)), 1)[0]
    dx = np.empty(x.shape, x.dtype.newbyteorder("="))
    chunks = -(-x.size // _CHUNK)
    launch(_relu_dx, chunks, _CHUNK, ready(dy).reshape(-1), ready(x).reshape(-1), dx.reshape(-1))
    return dx


@parallel
def _relu(first, last, x, y):
    for task in prange(first, last):
        _relu_chunk(x[task * _CHUNK : (task + 1) * _CHUNK], y[task * _CHUNK : (task + 1) * _CHUNK])


@serial
def _relu_chunk(x, y):
    for i in range(x.size):
        # Not max(x, 0), which leaves NaN and -0.0 to the compiler: both compare false here and stay.
        y[i] = 0 if x[i] < 0 else x[i]


@parallel
def _relu_dx(first, last, dy, x, dx):
    for task in prange(first, last):
        chunk = slice(task * _CHUNK, (task + 1) * _CHUNK)
        _relu_dx_chunk(dy[chunk], x[chunk], dx[chunk])


@serial
def _relu_dx_chunk(dy, x, dx):
    for i in range(x.size):
        dx[i] = 0 if x[i] <= 0 else dy[i]
