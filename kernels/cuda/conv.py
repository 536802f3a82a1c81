"""Convolution and its three gradients on a GPU: gathered, so that no two threads write to one element."""

from typing import Any

from numba import cuda

from kernelproof import spec
from kernelproof.kernels.contract import implements

from .arrays import SIMULATED, DeviceArray
from .conv_elements import input_gradient_at, output_at, pixel_at
from .launch import THREADS, block_sum, launch, position

if not SIMULATED:
    from . import fast_conv
else:
    fast_conv = None  # The simulator knows no PTX.


@implements(spec.conv2d, "cuda", array_type=DeviceArray)
def conv2d(x: Any, weight: Any, bias: Any, window: Any, groups: Any, *, precision: Any) -> Any:
    """On Hopper's tensor cores where plan.py has nothing against it (fast_conv.py), else plain.

    Plain: one thread per output element; taps in the order c, r, s, bias last, accumulated in the arrays' type. Any
    strides, no copies; 64-bit indices. Padding is multiplied as a zero, as in the specification.
    """
    y = x.empty((x.shape[0], weight.shape[0], window.p(x.shape), window.q(x.shape)))
    if fast_conv is None or not fast_conv.conv2d(x, weight, bias, y, window, groups, precision):
        absent = weight.empty((0,)) if bias is None else bias
        launch(_conv2d, y.size, x, weight, absent, y, window.stride, window.padding, window.dilation, groups)
    return y


@implements(spec.conv2d_dx, "cuda", array_type=DeviceArray)
def conv2d_dx(dy: Any, weight: Any, x_shape: Any, window: Any, groups: Any, *, precision: Any) -> Any:
    """On Hopper's tensor cores as a convolution of dy with the turned filter (fast_conv.py), else plain.

    Plain: one thread per input element gathers what its readers send back, in the order k, r, s, in the arrays' type.
    Any strides, no copies; 64-bit indices.
    """
    dx = dy.empty(x_shape)
    if fast_conv is None or not fast_conv.conv2d_dx(dy, weight, dx, window, groups, precision):
        launch(_conv2d_dx, dx.size, dy, weight, dx, window.stride, window.padding, window.dilation, groups)
    return dx


@implements(spec.conv2d_dweight, "cuda", array_type=DeviceArray)
def conv2d_dweight(dy: Any, x: Any, weight_shape: Any, window: Any, groups: Any) -> Any:
    """One block per weight: each thread sums every 256th output position in rising order, then a fixed tree adds them.

    Accumulated in the arrays' type. Any strides, no copies; 64-bit indices. Padding is multiplied as a zero.
    """
    dweight = x.empty(weight_shape)
    launch(
        _conv2d_dweight, dweight.size * THREADS, dy, x, dweight, window.stride, window.padding, window.dilation, groups
    )
    return dweight


@implements(spec.conv2d_dbias, "cuda", array_type=DeviceArray)
def conv2d_dbias(dy: Any) -> Any:
    """One block per filter: each thread sums every 256th output position in rising order, then a fixed tree adds them.

    Accumulated in the arrays' type. Any strides, no copies; 64-bit indices.
    """
    dbias = dy.empty((dy.shape[1],))
    launch(_conv2d_dbias, dbias.size * THREADS, dy, dbias)
    return dbias


@cuda.jit
def _conv2d(x, weight, bias, y, stride, padding, dilation, groups):
    for i in range(cuda.grid(1), y.size, cuda.gridsize(1)):
        n, k, p, q = position(i, y.shape)
        y[n, k, p, q] = output_at(x, weight, bias, n, k, p, q, stride, padding, dilation, groups)


@cuda.jit
def _conv2d_dx(dy, weight, dx, stride, padding, dilation, groups):
    for i in range(cuda.grid(1), dx.size, cuda.gridsize(1)):
        n, c, h, w = position(i, dx.shape)
        dx[n, c, h, w] = input_gradient_at(dy, weight, n, c, h, w, stride, padding, dilation, groups)


@cuda.jit
def _conv2d_dweight(dy, x, dweight, stride, padding, dilation, groups):
    filters, channels = dweight.shape[0] // groups, dweight.shape[1]  # of one group
    partial = cuda.shared.array(THREADS, dweight.dtype)
    for i in range(cuda.blockIdx.x, dweight.size, cuda.gridDim.x):
        k, c, r, s = position(i, dweight.shape)
        total = dweight.dtype.type(0)
        for j in range(cuda.threadIdx.x, dy.shape[0] * dy.shape[2] * dy.shape[3], THREADS):
            n, _, p, q = position(j, (dy.shape[0], 1, dy.shape[2], dy.shape[3]))
            h = p * stride[0] + r * dilation[0] - padding[0][0]
            w = q * stride[1] + s * dilation[1] - padding[1][0]
            total += dy[n, k, p, q] * pixel_at(x, n, k // filters * channels + c, h, w)
        total = block_sum(total, partial)
        if cuda.threadIdx.x == 0:
            dweight[k, c, r, s] = total


@cuda.jit
def _conv2d_dbias(dy, dbias):
    partial = cuda.shared.array(THREADS, dbias.dtype)
    for k in range(cuda.blockIdx.x, dbias.size, cuda.gridDim.x):
        total = dbias.dtype.type(0)
        for j in range(cuda.threadIdx.x, dy.shape[0] * dy.shape[2] * dy.shape[3], THREADS):
            n, _, p, q = position(j, (dy.shape[0], 1, dy.shape[2], dy.shape[3]))
            total += dy[n, k, p, q]
        total = block_sum(total, partial)
        if cuda.threadIdx.x == 0:
            dbias[k] = total
