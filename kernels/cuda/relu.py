"""The rectifier, its gate, and the copy on a GPU: element by element, in row-major order whatever the strides."""

from typing import Any

from numba import cuda

from kernelproof import spec
from kernelproof.kernels.contract import implements

from .host.arrays import SIMULATED, DeviceArray
from .launch import launch

if not SIMULATED:
    from .cuda_cores.elementwise import elementwise


@implements(spec.relu, "cuda", array_type=DeviceArray)
def relu(x: Any) -> Any:
    """One thread per element, or per sixteen (elementwise.py); exact. Any shape and strides, no copies."""
    y = x.empty(x.shape)
    if SIMULATED or not elementwise("relu", x, y):
        launch(_relu, y.size, x, y)
    return y


@implements(spec.relu_dx, "cuda", array_type=DeviceArray)
def relu_dx(dy: Any, x: Any) -> Any:
    """One thread per element, or per sixteen (elementwise.py); exact. Any shape and strides, no copies."""
    dx = dy.empty(dy.shape)
    if SIMULATED or not elementwise("relu_dx", dy, x, dx):
        launch(_relu_dx, dx.size, dy, x, dx)
    return dx


def in_one_piece(x: Any) -> Any:
    """The array itself if its elements lie so, else a copy."""
    return x if x.is_contiguous() else copied(x)


def reshaped(x: Any, shape: Any) -> Any:
    """The array with another shape of as many elements: its own memory if the call took it, else a copy."""
    return x.reshaped(shape) if x.is_own and x.is_contiguous() and x.size else copied(x, shape)


def copied(x: Any, shape: Any = None) -> Any:
    """A row-major copy, of another shape with as many elements if one is given."""
    y = x.empty(x.shape if shape is None else shape)
    if SIMULATED or not elementwise("copy", x, y):
        launch(_copy, y.size, x, y)
    return y


@cuda.jit
def _relu(x, y):
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        value = x.flat[i]
        # Not max(value, 0): NaN has to stay NaN, and -0.0 stays -0.0.
        y.flat[i] = y.dtype.type(0) if value < 0 else value


@cuda.jit
def _relu_dx(dy, x, dx):
    for i in range(cuda.grid(1), dx.size, cuda.gridsize(1)):
        dx.flat[i] = dx.dtype.type(0) if x.flat[i] <= 0 else dy.flat[i]


@cuda.jit
def _copy(x, y):
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        y.flat[i] = x.flat[i]
