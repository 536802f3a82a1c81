"""The fully connected layer, its gradients, and flattening on a GPU."""

from typing import Any

from numba import cuda

from kernelproof import spec
from kernelproof.kernels.contract import implements
from kernelproof.spec.window import Window

from .host.allowance import served
from .host.arrays import SIMULATED, DeviceArray
from .launch import THREADS, block_sum, launch
from .relu import reshaped

if not SIMULATED:
    from .cuda_cores import few_outputs
    from .tensor_cores import launch_conv, launch_dweight


@implements(spec.linear, "cuda", array_type=DeviceArray)
def linear(x: Any, weight: Any, bias: Any, *, precision: Any) -> Any:
    """Up to 16 outputs: few_outputs.py; from 32 rows and outputs on a convolution of one-pixel images; else plain.

    Plain: one block per output element, each thread every 256th feature in rising order, then a fixed tree; bias last;
    accumulated in the arrays' type. Any strides, no copies; 64-bit indices.
    """
    y = x.empty((x.shape[0], weight.shape[0]))
    if not SIMULATED and few_outputs.serves(y.shape[1], x, weight, y):
        few_outputs.linear(x, weight, bias, y)
    elif not served(_as_convolution, "conv2d", precision, x, weight, bias, y):
        launch(_linear, y.size * THREADS, x, weight, weight.empty((0,)) if bias is None else bias, y)
    return y


@implements(spec.linear_dx, "cuda", array_type=DeviceArray)
def linear_dx(dy: Any, weight: Any, *, precision: Any) -> Any:
    """Served as `linear` is; plain: one thread per input element; outputs in rising order.

    Accumulated in the arrays' type. Any strides, no copies; 64-bit indices.
    """
    dx = dy.empty((dy.shape[0], weight.shape[1]))
    if not SIMULATED and few_outputs.serves(dy.shape[1], dy, weight, dx):
        few_outputs.linear_dx(dy, weight, dx)
    elif not served(_as_convolution, "conv2d_dx", precision, dy, weight, dx):
        launch(_linear_dx, dx.size, dy, weight, dx)
    return dx


@implements(spec.linear_dweight, "cuda", array_type=DeviceArray)
def linear_dweight(dy: Any, x: Any, *, precision: Any) -> Any:
    """Served as `linear` is; plain: one thread per weight; rows in rising order.

    Accumulated in the arrays' type. Any strides, no copies; 64-bit indices.
    """
    dweight = dy.empty((dy.shape[1], x.shape[1]))
    few = not SIMULATED and few_outputs.serves(dy.shape[1], dy, x, dweight)
    if few and served(few_outputs.linear_dweight, dy, x, dweight):
        return dweight
    if not served(_as_convolution, "conv2d_dweight", precision, dy, x, dweight):
        launch(_linear_dweight, dweight.size, dy, x, dweight)
    return dweight


@implements(spec.linear_dbias, "cuda", array_type=DeviceArray)
def linear_dbias(dy: Any) -> Any:
    """One block per output: each thread sums every 256th row in rising order, then a fixed tree adds them.

    Accumulated in the arrays' type. Any strides, no copies; 64-bit indices.
    """
    dbias = dy.empty((dy.shape[1],))
    launch(_linear_dbias, dbias.size * THREADS, dy, dbias)
    return dbias


_ONE_PIXEL = Window((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))
_LEAST = 32
"""Rows, and outputs or inputs, from which on the tensor cores' tiles are not mostly empty."""


def _as_convolution(operator: str, precision: str, *arrays: Any) -> bool:
    """Compute the last array as that of a convolution of one-pixel images; whether that was done."""
    if SIMULATED or min(arrays[0].shape) * min(arrays[-1].shape) == 0:
        return False
    few = arrays[-1].shape[1] if operator != "conv2d_dweight" else _LEAST
    if min(arrays[0].shape[0], few) < _LEAST:
        return False
    images = [each if each is None or each.ndim == 1 else each.as_images() for each in arrays]
    if any(image is None and array is not None for image, array in zip(images, arrays, strict=True)):
        return False
    module = launch_dweight if operator == "conv2d_dweight" else launch_conv
    return getattr(module, operator)(*images, _ONE_PIXEL, 1, precision)


@implements(spec.flatten, "cuda", array_type=DeviceArray)
def flatten(x: Any) -> Any:
    """One thread per element; exact. Any strides; the result never shares memory with an x of the caller's.

    Within a chain nothing is copied where x lies in one piece: no kernel writes to what it reads.
    """
    n, c, h, w = x.shape
    return reshaped(x, (n, c * h * w))


@implements(spec.flatten_dx, "cuda", array_type=DeviceArray)
def flatten_dx(dy: Any, x_shape: Any) -> Any:
    """One thread per element; exact. Any strides; the result never shares memory with a dy of the caller's."""
    return reshaped(dy, tuple(x_shape))


@cuda.jit
def _linear(x, weight, bias, y):
    partial = cuda.shared.array(THREADS, y.dtype)
    for i in range(cuda.blockIdx.x, y.size, cuda.gridDim.x):
        n, k = divmod(i, y.shape[1])
        total = y.dtype.type(0)
        for c in range(cuda.threadIdx.x, x.shape[1], THREADS):
            total += x[n, c] * weight[k, c]
        total = block_sum(total, partial)
        if cuda.threadIdx.x == 0:
            y[n, k] = total + bias[k] if bias.size > 0 else total


@cuda.jit
def _linear_dx(dy, weight, dx):
    for i in range(cuda.grid(1), dx.size, cuda.gridsize(1)):
        n, c = divmod(i, dx.shape[1])
        total = dx.dtype.type(0)
        for k in range(dy.shape[1]):
            total += dy[n, k] * weight[k, c]
        dx[n, c] = total


@cuda.jit
def _linear_dweight(dy, x, dweight):
    for i in range(cuda.grid(1), dweight.size, cuda.gridsize(1)):
        k, c = divmod(i, dweight.shape[1])
        total = dweight.dtype.type(0)
        for n in range(dy.shape[0]):
            total += dy[n, k] * x[n, c]
        dweight[k, c] = total


@cuda.jit
def _linear_dbias(dy, dbias):
    partial = cuda.shared.array(THREADS, dbias.dtype)
    for k in range(cuda.blockIdx.x, dbias.size, cuda.gridDim.x):
        total = dbias.dtype.type(0)
        for n in range(cuda.threadIdx.x, dy.shape[0], THREADS):
            total += dy[n, k]
        total = block_sum(total, partial)
        if cuda.threadIdx.x == 0:
            dbias[k] = total
