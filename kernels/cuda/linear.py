"""The fully connected layer, its gradients, and flattening on a GPU."""

from typing import Any

from numba import cuda

from kernelproof import spec
from kernelproof.kernels.contract import implements

from .arrays import DeviceArray
from .launch import launch
from .relu import copied


@implements(spec.linear, "cuda", array_type=DeviceArray)
def linear(x: Any, weight: Any, bias: Any) -> Any:
    """One thread per output element; features in rising order, bias last, accumulated in the arrays' type.

    Any strides, no copies; 64-bit indices.
    """
    y = x.empty((x.shape[0], weight.shape[0]))
    launch(_linear, y.size, x, weight, weight.empty((0,)) if bias is None else bias, y)
    return y


@implements(spec.linear_dx, "cuda", array_type=DeviceArray)
def linear_dx(dy: Any, weight: Any) -> Any:
    """One thread per input element; outputs in rising order, accumulated in the arrays' type.

    Any strides, no copies; 64-bit indices.
    """
    dx = dy.empty((dy.shape[0], weight.shape[1]))
    launch(_linear_dx, dx.size, dy, weight, dx)
    return dx


@implements(spec.linear_dweight, "cuda", array_type=DeviceArray)
def linear_dweight(dy: Any, x: Any) -> Any:
    """One thread per weight; rows in rising order, accumulated in the arrays' type.

    Any strides, no copies; 64-bit indices.
    """
    dweight = dy.empty((dy.shape[1], x.shape[1]))
    launch(_linear_dweight, dweight.size, dy, x, dweight)
    return dweight


@implements(spec.linear_dbias, "cuda", array_type=DeviceArray)
def linear_dbias(dy: Any) -> Any:
    """One thread per output; rows in rising order, accumulated in the arrays' type.

    Any strides, no copies; 64-bit indices.
    """
    dbias = dy.empty((dy.shape[1],))
    launch(_linear_dbias, dbias.size, dy, dbias)
    return dbias


@implements(spec.flatten, "cuda", array_type=DeviceArray)
def flatten(x: Any) -> Any:
    """One thread per element; exact. Any strides; the result never shares memory with x."""
    n, c, h, w = x.shape
    return copied(x, (n, c * h * w))


@implements(spec.flatten_dx, "cuda", array_type=DeviceArray)
def flatten_dx(dy: Any, x_shape: Any) -> Any:
    """One thread per element; exact. Any strides; the result never shares memory with dy."""
    return copied(dy, x_shape)


@cuda.jit
def _linear(x, weight, bias, y):
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        n, k = divmod(i, y.shape[1])
        total = y.dtype.type(0)
        for c in range(x.shape[1]):
            total += x[n, c] * weight[k, c]
        if bias.size > 0:
            total += bias[k]
        y[n, k] = total


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
    for k in range(cuda.grid(1), dbias.size, cuda.gridsize(1)):
        total = dbias.dtype.type(0)
        for n in range(dy.shape[0]):
            total += dy[n, k]
        dbias[k] = total
