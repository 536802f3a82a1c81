"""The fully connected layer, its gradients, and flattening on the CPU: sums of scaled rows of a matrix."""

from typing import Any

import numpy as np
from numba import prange

from kernelproof import spec
from kernelproof.kernels.contract import implements

from . import dot_products, matrix
from .launch import add_scaled, launch, parallel, ready, serial
from .micro_kernels import PIXELS, VECTORS
from .vectors import LANES

_MANY = 4 * PIXELS
"""Images that are worth turning the weights for."""

_LARGE = 2**18
"""Floats of turned weights that caches do not hold while they serve many images."""

_COLUMNS = 64
"""Columns in one task of linear_dbias: whole cache lines, so no two threads write to the same one."""


@implements(spec.linear, "cpu")
def linear(x: Any, weight: Any, bias: Any) -> Any:
    """Parallel over images; features in rising order, bias last, accumulated in the arrays' type.

    Any layout; weight is transposed into a copy unless its memory is column-major already. In float32 the order is that
    of dot_products.transposed or, for many images, of matrix.product with the weights turned.
    """
    if x.dtype.newbyteorder("=") == np.float32 and x.size and weight.size:
        panel = VECTORS * LANES
        if len(x) >= _MANY and len(weight) >= panel and panel * weight.shape[1] <= _LARGE:
            return matrix.product(x, weight, of_columns=True, bias=bias)
        return dot_products.transposed(x, weight, bias)
    y = np.empty((len(x), len(weight)), x.dtype.newbyteorder("="))
    bias = np.zeros(len(weight), y.dtype) if bias is None else bias
    launch(_linear, len(x), weight.size, ready(x), ready(weight.T), ready(bias), y)
    return y


@implements(spec.linear_dx, "cpu")
def linear_dx(dy: Any, weight: Any) -> Any:
    """Parallel over images; outputs in rising order, accumulated in the arrays' type.

    Any layout; one that is not row-major is copied first.
    """
    if dy.dtype.newbyteorder("=") == np.float32 and dy.size and weight.shape[1] >= LANES:
        return matrix.product(dy, weight)
    dx = np.zeros((len(dy), weight.shape[1]), dy.dtype.newbyteorder("="))
    launch(_linear_dx, len(dy), weight.size, ready(dy), ready(weight), dx)
    return dx


@implements(spec.linear_dweight, "cpu")
def linear_dweight(dy: Any, x: Any) -> Any:
    """Parallel over outputs; images in rising order, accumulated in the arrays' type.

    Any layout; x that is not row-major is copied first, and dy is transposed into a copy.
    """
    if dy.dtype.newbyteorder("=") == np.float32 and dy.size and x.shape[1] >= LANES:
        return matrix.product(dy, x, of_rows=False)
    dweight = np.zeros((dy.shape[1], x.shape[1]), dy.dtype.newbyteorder("="))
    # The same sum as dx[k,c] = sum_n dy.T[k,n] * x[n,c].
    launch(_linear_dx, dy.shape[1], x.size, ready(dy.T), ready(x), dweight)
    return dweight


@implements(spec.linear_dbias, "cpu")
def linear_dbias(dy: Any) -> Any:
    """Parallel over blocks of outputs; images in rising order, accumulated in the arrays' type.

    Any layout; one that is not row-major is copied first.
    """
    n, k = dy.shape
    dbias = np.zeros(k, dy.dtype.newbyteorder("="))
    launch(_linear_dbias, -(-k // _COLUMNS), n * _COLUMNS, ready(dy), dbias)
    return dbias


@implements(spec.flatten, "cpu")
def flatten(x: Any) -> Any:
    """numpy's copy, which no loop of ours would beat: serial, exact, any layout. Never a view of x."""
    n, c, h, w = x.shape
    return np.array(x, x.dtype.newbyteorder("="), order="C", subok=False).reshape(n, c * h * w)


@implements(spec.flatten_dx, "cpu")
def flatten_dx(dy: Any, x_shape: tuple[int, ...]) -> Any:
    """numpy's copy, as in flatten."""
    return np.array(dy, dy.dtype.newbyteorder("="), order="C", subok=False).reshape(x_shape)


@parallel
def _linear(first, last, x, weight_transposed, bias, y):
    for n in prange(first, last):
        y[n] = 0
        _add_rows(y[n], x[n], weight_transposed)
        add_scaled(y[n], 1, bias)


@parallel
def _linear_dx(first, last, dy, weight, dx):
    for n in prange(first, last):
        _add_rows(dx[n], dy[n], weight)


@parallel
def _linear_dbias(first, last, dy, dbias):
    for task in prange(first, last):
        for n in range(dy.shape[0]):
            columns = slice(task * _COLUMNS, (task + 1) * _COLUMNS)
            add_scaled(dbias[columns], 1, dy[n, columns])


@serial
def _add_rows(total, factors, rows):
    """`total[j] += sum_i factors[i] * rows[i,j]`, i in rising order."""
    for i in range(len(factors)):
        add_scaled(total, factors[i], rows[i])
