"""Two-dimensional convolution and its gradients on the CPU: the planner picks the algorithm."""

from typing import Any

import numpy as np
from numba import prange

from kernelproof import spec
from kernelproof.kernels.contract import Precision, implements
from kernelproof.spec import Window

from .convolution import shifted_rows
from .convolution.planner import taken
from .convolution.sweep import long_rows
from .launch import add_scaled, launch, parallel, ready, serial


@implements(spec.conv2d, "cpu")
def conv2d(x: Any, weight: Any, bias: Any, window: Window, groups: int, *, precision: Precision) -> Any:
    """In parallel over images and strips of their rows; any layout, one that is not row-major is copied first.

    Order of summation, workspace and rounding are the algorithm's: `kernelproof plan conv2d`. Padding is multiplied,
    as in the specification.
    """
    algorithm = taken("conv2d", x.shape, weight.shape, window, groups, x.dtype, precision)
    return algorithm.run(x, weight, bias, window, groups)


@implements(spec.conv2d_dx, "cpu")
def conv2d_dx(
    dy: Any, weight: Any, x_shape: tuple[int, ...], window: Window, groups: int, *, precision: Precision
) -> Any:
    """In parallel over images and strips of their rows; any layout, one that is not row-major is copied first.

    Order of summation, workspace and rounding are the algorithm's: `kernelproof plan conv2d_dx`.
    """
    algorithm = taken("conv2d_dx", tuple(x_shape), weight.shape, window, groups, dy.dtype, precision)
    # All algorithms but one multiply zeros around dy, which the specification does not: it shows where weights are
    # infinite.
    run = algorithm.run if np.isfinite(weight).all() else shifted_rows.conv2d_dx
    return run(dy, weight, tuple(x_shape), window, groups)


@implements(spec.conv2d_dweight, "cpu")
def conv2d_dweight(
    dy: Any, x: Any, weight_shape: tuple[int, ...], window: Window, groups: int, *, precision: Precision
) -> Any:
    """In parallel over parts of the images, else of the filters; any layout, one that is not row-major is copied first.

    Order of summation, workspace and rounding are the algorithm's: `kernelproof plan conv2d_dweight`. Padding is
    multiplied, as in the specification.
    """
    algorithm = taken("conv2d_dweight", x.shape, tuple(weight_shape), window, groups, x.dtype, precision)
    return algorithm.run(dy, x, tuple(weight_shape), window, groups)


@implements(spec.conv2d_dbias, "cpu")
def conv2d_dbias(dy: Any) -> Any:
    """Parallel over filters; columns are summed apart, images and rows in rising order, then added from left to right.

    Several short rows are one long row in this. Accumulates in the arrays' type. Any layout; one that is not row-major
    is copied first.
    """
    dbias = np.empty(dy.shape[1], dy.dtype.newbyteorder("="))
    launch(_conv2d_dbias, len(dbias), dy[:, :1].size, ready(dy).reshape(long_rows(dy.shape)), dbias)
    return dbias


@parallel
def _conv2d_dbias(first, last, dy, dbias):
    for k in prange(first, last):
        dbias[k] = _sum_of_filter(dy, k)


@serial
def _sum_of_filter(dy, k):
    sums = np.zeros(dy.shape[3], dy.dtype)
    for n in range(dy.shape[0]):
        for p in range(dy.shape[2]):
            add_scaled(sums, 1, dy[n, k, p])
    total = dy.dtype.type(0)
    for q in range(len(sums)):
        total += sums[q]
    return total
