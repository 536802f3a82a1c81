"""Convolution and its three gradients on a GPU: gathered, so that no two threads write to one element."""

from typing import Any

from numba import cuda

from kernelproof import spec
from kernelproof.kernels.contract import implements

from .conv_elements import input_gradient_at, output_at, weight_gradient_of
from .host.allowance import most_lines, served
from .host.arrays import SIMULATED, DeviceArray
from .launch import THREADS, block_sum, launch, position

if not SIMULATED:
    from .cuda_cores import elementwise
    from .tensor_cores import launch_conv, launch_dweight
else:
    launch_conv = None  # The simulator knows no PTX.

MOST_SHARES = 64
"""Blocks that share a filter's bias gradient."""


@implements(spec.conv2d, "cuda", array_type=DeviceArray)
def conv2d(x: Any, weight: Any, bias: Any, window: Any, groups: Any, *, precision: Any) -> Any:
    """Few channels or filters of a group: direct.py. Else on tensor cores where preconditions.py has nothing against it
    (launch_conv.py), else plain.

    Plain: one thread per output element; taps in the order c, r, s, bias last, accumulated in the arrays' type. Any
    strides, no copies; 64-bit indices. Padding is multiplied as a zero, as in the specification.
    """
    y = x.empty((x.shape[0], weight.shape[0], window.p(x.shape), window.q(x.shape)))
    if launch_conv is None or not served(launch_conv.conv2d, x, weight, bias, y, window, groups, precision):
        absent = weight.empty((0,)) if bias is None else bias
        launch(_conv2d, y.size, x, weight, absent, y, window.stride, window.padding, window.dilation, groups)
    return y


@implements(spec.conv2d_dx, "cuda", array_type=DeviceArray)
def conv2d_dx(dy: Any, weight: Any, x_shape: Any, window: Any, groups: Any, *, precision: Any) -> Any:
    """Few channels of a group, with a stride or many filters: input_gradient.py. Else one convolution of dy with the
    turned filter for each phase of the stride (launch_conv.py): of few channels or filters in direct.py, else on tensor
    cores; plain if one of them is neither, or stride and dilation both exceed 1.

    Plain: one thread per input element gathers what its readers send back, in the order k, r, s, in the arrays' type.
    Any strides, no copies; 64-bit indices.
    """
    dx = dy.empty(x_shape)
    if launch_conv is None or not served(launch_conv.conv2d_dx, dy, weight, dx, window, groups, precision):
        launch(_conv2d_dx, dx.size, dy, weight, dx, window.stride, window.padding, window.dilation, groups)
    return dx


@implements(spec.conv2d_dweight, "cuda", array_type=DeviceArray)
def conv2d_dweight(dy: Any, x: Any, weight_shape: Any, window: Any, groups: Any, *, precision: Any) -> Any:
    """Few channels of a group: direct.py, or gathered. Else on tensor cores (launch_dweight.py), else plain.

    Plain: one block per weight: each thread sums every 256th output position in rising order, then a fixed tree adds
    them. Accumulated in the arrays' type. Any strides, no copies; 64-bit indices. Padding is multiplied as a zero.
    """
    dweight = x.empty(weight_shape)
    if launch_conv is None or not served(launch_dweight.conv2d_dweight, dy, x, dweight, window, groups, precision):
        threads = dweight.size * THREADS
        launch(_conv2d_dweight, threads, dy, x, dweight, window.stride, window.padding, window.dilation, groups)
    return dweight


@implements(spec.conv2d_dbias, "cuda", array_type=DeviceArray)
def conv2d_dbias(dy: Any) -> Any:
    """One thread in 256 positions or more, one block or more per filter, then the sum of their shares, in fixed trees.

    float32 in one piece: elementwise.py. Else up to 64 blocks per filter, each thread every 256th position of a share
    of the images in rising order. Accumulated in the arrays' type. Any strides, no copies; 64-bit indices.
    """
    dbias = dy.empty((dy.shape[1],))
    if not SIMULATED and served(elementwise.bias_gradient, dy, dbias):
        return dbias
    shares = dy.empty((dy.shape[1], most_lines("conv2d_dbias", dbias.nbytes, min(dy.shape[0], MOST_SHARES))))
    launch(_conv2d_dbias_shares, shares.size * THREADS, dy, shares)
    launch(_conv2d_dbias, dbias.size * THREADS, shares, dbias)
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
    partial = cuda.shared.array(THREADS, dweight.dtype)
    for i in range(cuda.blockIdx.x, dweight.size, cuda.gridDim.x):
        k, c, r, s = position(i, dweight.shape)
        weight_gradient_of(dy, x, dweight, k, c, r, s, stride, padding, dilation, groups, partial)


@cuda.jit
def _conv2d_dbias_shares(dy, shares):
    partial = cuda.shared.array(THREADS, shares.dtype)
    for i in range(cuda.blockIdx.x, shares.size, cuda.gridDim.x):
        k, share = divmod(i, shares.shape[1])
        first, last = dy.shape[0] * share // shares.shape[1], dy.shape[0] * (share + 1) // shares.shape[1]
        total = shares.dtype.type(0)
        for j in range(cuda.threadIdx.x, (last - first) * dy.shape[2] * dy.shape[3], THREADS):
            n, _, p, q = position(j, (last - first, 1, dy.shape[2], dy.shape[3]))
            total += dy[first + n, k, p, q]
        total = block_sum(total, partial)
        if cuda.threadIdx.x == 0:
            shares[k, share] = total


@cuda.jit
def _conv2d_dbias(shares, dbias):
    partial = cuda.shared.array(THREADS, dbias.dtype)
    for k in range(cuda.blockIdx.x, dbias.size, cuda.gridDim.x):
        total = dbias.dtype.type(0)
        for share in range(cuda.threadIdx.x, shares.shape[1], THREADS):
            total += shares[k, share]
        total = block_sum(total, partial)
        if cuda.threadIdx.x == 0:
            dbias[k] = total
