"""What touches every element once, at the speed of memory: sixteen loads of a thread in flight, then what they are for.

For float32 arrays that lie in one piece, on a GPU; the plain kernels serve the others. Exact, as those are. A thread's
elements lie a whole grid apart, so that the threads of a warp read side by side.
"""

import math
from typing import Any

from llvmlite import ir
from numba import cuda
from numba.cuda import types

from ..host.arrays import DeviceArray
from ..host.driver import Kernel, multiprocessors
from ..ptx import F32, device_function, load_global, store_global, unpacked
from ..tensor_cores.arithmetic import CHANNELS, SIXTEEN, gather, scatter
from ..tensor_cores.problem import division
from ..tensor_cores.slots import divided
from .launch_direct import sum_up
from .pool_by_twos import total_of, winners_of
from .windows import add_on, zeros_of

THREADS, BLOCKS = 256, 8
"""Of a block; blocks on a multiprocessor."""


def _each(function: Any) -> Any:
    """A device function that does the same to each of sixteen values, or pairs of values."""

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        columns = [unpacked(builder, each, CHANNELS) for each in arguments]
        return [function(builder, *row) for row in zip(*columns, strict=True)]

    return generate


def _rectified(builder: Any, x: Any) -> Any:
    zero = ir.Constant(F32, 0.0)
    return builder.select(builder.fcmp_ordered("<", x, zero), zero, x)  # NaN stays NaN, -0.0 stays -0.0.


def _gated(builder: Any, dy: Any, x: Any) -> Any:
    zero = ir.Constant(F32, 0.0)
    return builder.select(builder.fcmp_ordered("<=", x, zero), zero, dy)


rectified = device_function(SIXTEEN(SIXTEEN), _each(_rectified))
gated = device_function(SIXTEEN(SIXTEEN, SIXTEEN), _each(_gated))


@cuda.jit(device=True)
def share(size):
    """Where a thread starts, how far its elements lie apart, and after how many the next sixteen begin."""
    apart = cuda.gridsize(1)
    return cuda.grid(1), apart, CHANNELS * apart


@cuda.jit(device=True)
def left_of(size, i, apart):
    """How many of the sixteen elements from i on there are."""
    return types.int32(min(CHANNELS, (size - i + apart - 1) // apart))


def _copy(x, y, size):
    first, apart, step = share(size)
    for i in range(first, size, step):
        count = left_of(size, i, apart)
        scatter(gather(x + i * 4, apart * 4, count), y + i * 4, apart * 4, count)


def _relu(x, y, size):
    first, apart, step = share(size)
    for i in range(first, size, step):
        count = left_of(size, i, apart)
        scatter(rectified(gather(x + i * 4, apart * 4, count)), y + i * 4, apart * 4, count)


def _relu_dx(dy, x, dx, size):
    first, apart, step = share(size)
    for i in range(first, size, step):
        count = left_of(size, i, apart)
        gradient = gather(dy + i * 4, apart * 4, count)
        scatter(gated(gradient, gather(x + i * 4, apart * 4, count)), dx + i * 4, apart * 4, count)


_ADDRESS, _SIZE = types.int64, types.int64
_COPY = Kernel("elementwise copy", _copy, types.void(_ADDRESS, _ADDRESS, _SIZE), THREADS)
_RELU = Kernel("elementwise relu", _relu, types.void(_ADDRESS, _ADDRESS, _SIZE), THREADS)
_RELU_DX = Kernel("elementwise relu_dx", _relu_dx, types.void(_ADDRESS, _ADDRESS, _ADDRESS, _SIZE), THREADS)
KERNELS = {"copy": _COPY, "relu": _RELU, "relu_dx": _RELU_DX}


def elementwise(name: str, *arrays: DeviceArray) -> bool:
    """Compute the last array from the others, if they lie in one piece; whether that was done."""
    if any(each.dtype.name != "float32" or not each.is_contiguous() for each in arrays):
        return False
    result = arrays[-1]
    blocks = min(-(-result.size // (CHANNELS * THREADS)), BLOCKS * multiprocessors(result.place.device))
    KERNELS[name](blocks, result.place.stream, *(each.address for each in arrays), result.size)
    return True


@cuda.jit(device=True)
def _entry(dy, i, count, plane, step, multiplier, shift):
    """Entry i of a filter's planes, which lie `step` apart; zero behind the last."""
    if i >= count:
        return types.float32(0)
    n = divided(types.int32(i), multiplier, shift)
    return load_global(dy + (types.int64(n) * (step - plane) + i) * 4)


def _plane_sums(dy, shares, count, plane, step, multiplier, shift):
    """A filter's planes, the grid's second axis: each thread sums a share in four chains, each warp in a fixed tree."""
    k, apart = cuda.blockIdx.y, cuda.gridsize(1)
    dy += types.int64(k) * plane * 4
    a = b = c = d = types.float32(0)
    for i in range(cuda.grid(1), count, 4 * apart):
        a += _entry(dy, i, count, plane, step, multiplier, shift)
        b += _entry(dy, i + apart, count, plane, step, multiplier, shift)
        c += _entry(dy, i + 2 * apart, count, plane, step, multiplier, shift)
        d += _entry(dy, i + 3 * apart, count, plane, step, multiplier, shift)
    total = (a + b) + (c + d)
    for lanes in (16, 8, 4, 2, 1):
        total += cuda.shfl_xor_sync(0xFFFFFFFF, total, lanes)
    if cuda.threadIdx.x & 31 == 0:
        store_global(shares + (types.int64(cuda.grid(1) >> 5) * cuda.gridDim.y + k) * 4, total)


_PLANE_SUMS = Kernel("plane sums", _plane_sums, types.void(*[types.int64] * 5, types.int32, types.int32), THREADS)
add_where_one_won, winners = total_of(CHANNELS), winners_of(CHANNELS)
_none = zeros_of(CHANNELS)


def _gated_sums(dy, winner, shares, images, size):
    """One thread per element of an image: its sum over a share of the images, the grid's second axis, in sixteen chains
    that are added in rising order; nothing where none won."""
    i, sums = cuda.grid(1), _none()
    if i >= size:
        return
    for n in range(cuda.blockIdx.y * CHANNELS, images, cuda.gridDim.y * CHANNELS):
        at, count = n * size + i, types.int32(min(CHANNELS, images - n))
        won = winners(winner + at, types.int32(size), count)
        sums = add_where_one_won(sums, gather(dy + at * 4, types.int32(size * 4), count), won)
    store_global(shares + (cuda.blockIdx.y * size + i) * 4, add_on(types.float32(0), sums))


_GATED_SUMS = Kernel("gated sums", _gated_sums, types.void(*[types.int64] * 5), THREADS)


def gated_bias_gradient(dy: DeviceArray, winner: DeviceArray, dbias: DeviceArray) -> bool:
    """Sum each filter's planes but for entries where none won: over shares of the images, then as `bias_gradient`."""
    images, size = dy.shape[0], math.prod(dy.shape[1:])
    across = -(-size // THREADS)
    lines = max(1, min(-(-images // CHANNELS), BLOCKS * multiprocessors(dy.place.device) // across))
    shares = dy.empty((lines, *dy.shape[1:]))
    addresses = dy.address, winner.address, shares.address
    _GATED_SUMS((across, lines), dy.place.stream, *addresses, images, size)
    return bias_gradient(shares, dbias)


def bias_gradient(dy: DeviceArray, dbias: DeviceArray) -> bool:
    """Sum each filter's planes, if dy lies in one piece; whether that was done."""
    plane, filters = dy.shape[2] * dy.shape[3], dy.shape[1]
    count = dy.shape[0] * plane
    if dy.dtype.name != "float32" or not dy.is_contiguous() or not 0 < count < 2**29 or not 0 < filters < 2**16:
        return False
    blocks = max(1, min(-(-count // (4 * THREADS)), BLOCKS * multiprocessors(dy.place.device) // filters))
    lines, stream = blocks * THREADS // 32, dy.place.stream
    shares = dy.empty((lines, filters))
    _PLANE_SUMS(
        (blocks, filters), stream, dy.address, shares.address, count, plane, filters * plane, *division(plane),
    )  # fmt: skip
    sum_up(shares, dbias, lines, stream)
    return True
