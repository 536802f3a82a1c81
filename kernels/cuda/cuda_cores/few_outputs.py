"""The fully connected layer with at most sixteen outputs, as at a network's end: every row of x is read once.

A thread holds the sums of all outputs. Float32, for arrays of any strides, on a GPU. Forward, a block sums a row, each
thread every 256th feature in rising order, then a fixed tree; bias last. The weight gradient's rows are cut in shares,
which `sum_of_shares` adds in a fixed order.
"""

from typing import Any

from numba import cuda
from numba.cuda import types

from .. import ptx
from ..host.arrays import DeviceArray
from ..host.driver import Kernel, multiprocessors
from ..ptx import device_function, unpacked
from ..relu import in_one_piece
from ..tensor_cores.arithmetic import CHANNELS, SIXTEEN, gather, scatter
from .launch_direct import add_shares
from .windows import warp_sums_of, zeros_of

THREADS, BLOCKS = 256, 8
WARPS = THREADS // 32


def _add(builder: Any, arguments: list[Any]) -> list[Any]:
    sums, values = (unpacked(builder, each, CHANNELS) for each in arguments[:2])
    return [builder.fma(value, arguments[2], total) for total, value in zip(sums, values, strict=True)]


def _dot(builder: Any, arguments: list[Any]) -> Any:
    first, second = (unpacked(builder, each, CHANNELS) for each in arguments)
    total = builder.fmul(first[0], second[0])
    for a, b in zip(first[1:], second[1:], strict=True):
        total = builder.fma(a, b, total)
    return total


add = device_function(SIXTEEN(SIXTEEN, SIXTEEN, types.float32), _add)
"""`add(sums, values, factor)`."""
dot = device_function(types.float32(SIXTEEN, SIXTEEN), _dot)
zero, warp_sums = zeros_of(CHANNELS), warp_sums_of(CHANNELS)


def _linear(x, weight, bias, y, rows, features, outputs, x_n, x_c, w_k, w_c, y_n, y_k):
    thread, address = cuda.threadIdx.x, ptx.dynamic_shared()
    for n in range(cuda.blockIdx.x, rows, cuda.gridDim.x):
        sums = zero()
        for c in range(thread, features, THREADS):
            value = ptx.load_global(x + (n * x_n + c * x_c) * 4)
            sums = add(sums, gather(weight + c * w_c * 4, w_k * 4, outputs), value)
        sums = warp_sums(sums)
        if thread & 31 == 0:
            keep(sums, address + (thread >> 5) * CHANNELS * 4)
        cuda.syncthreads()
        if thread < outputs:
            total = types.float32(0)
            for warp in range(WARPS):
                total += ptx.load_shared(address + (warp * CHANNELS + thread) * 4)
            if bias != 0:
                total += ptx.load_global(bias + thread * 4)
            ptx.store_global(y + (n * y_n + thread * y_k) * 4, total)
        cuda.syncthreads()


def _linear_dx(dy, weight, dx, rows, features, outputs, y_n, y_k, w_k, w_c, x_n, x_c):
    for c in range(cuda.grid(1), features, cuda.gridsize(1)):
        column = gather(weight + c * w_c * 4, w_k * 4, outputs)
        for n in range(cuda.blockIdx.y, rows, cuda.gridDim.y):
            gradient = gather(dy + n * y_n * 4, y_k * 4, outputs)
            ptx.store_global(dx + (n * x_n + c * x_c) * 4, dot(gradient, column))


def _linear_dweight(dy, x, shares, rows, features, outputs, y_n, y_k, x_n, x_c):
    for c in range(cuda.grid(1), features, cuda.gridsize(1)):
        sums = zero()
        for n in range(cuda.blockIdx.y, rows, cuda.gridDim.y):
            sums = add(sums, gather(dy + n * y_n * 4, y_k * 4, outputs), ptx.load_global(x + (n * x_n + c * x_c) * 4))
        scatter(sums, shares + (cuda.blockIdx.y * outputs * features + c) * 4, features * 4, outputs)


def _keep(builder: Any, arguments: list[Any]) -> None:
    for i, value in enumerate(unpacked(builder, arguments[0], CHANNELS)):
        ptx.store_words(builder, builder.add(arguments[1], ptx.constant(4 * i)), [value])


keep = device_function(types.void(SIXTEEN, types.int32), _keep)
"""`keep(values, address)`: to shared memory, side by side."""

_FORWARD = Kernel("few outputs", _linear, types.void(*[types.int64] * 13), THREADS)
_DX = Kernel("few outputs dx", _linear_dx, types.void(*[types.int64] * 12), THREADS)
_DWEIGHT = Kernel("few outputs dweight", _linear_dweight, types.void(*[types.int64] * 10), THREADS)


def _steps(array: DeviceArray) -> tuple[int, ...]:
    return tuple(each // array.dtype.itemsize for each in array.strides)


def serves(outputs: int, *arrays: DeviceArray) -> bool:
    """Whether outputs are few and all arrays float32, none of them empty."""
    if outputs > CHANNELS or max(abs(step) for each in arrays for step in each.strides) >= 2**31:
        return False
    return all(each.dtype.name == "float32" and each.size for each in arrays)


def linear(x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, y: DeviceArray) -> None:
    """y from x."""
    (rows, features), outputs = x.shape, weight.shape[0]
    bias = None if bias is None else in_one_piece(bias)
    blocks = min(rows, BLOCKS * multiprocessors(x.place.device))
    _FORWARD(
        blocks, x.place.stream, x.address, weight.address, bias.address if bias is not None else 0, y.address,
        rows, features, outputs, *_steps(x), *_steps(weight), *_steps(y), shared=WARPS * CHANNELS * 4,
    )  # fmt: skip


def linear_dx(dy: DeviceArray, weight: DeviceArray, dx: DeviceArray) -> None:
    """dx from dy."""
    (rows, features), outputs = dx.shape, weight.shape[0]
    across = -(-features // THREADS)
    down = max(1, min(rows, BLOCKS * multiprocessors(dx.place.device) // across))
    _DX(
        (across, down), dx.place.stream, dy.address, weight.address, dx.address, rows, features, outputs,
        *_steps(dy), *_steps(weight), *_steps(dx),
    )  # fmt: skip


def linear_dweight(dy: DeviceArray, x: DeviceArray, dweight: DeviceArray) -> bool:
    """dweight, which lies in one piece, from dy and x; always."""
    (rows, features), outputs = x.shape, dy.shape[1]
    across, stream = -(-features // THREADS), x.place.stream
    down = max(1, min(rows, BLOCKS * multiprocessors(x.place.device) // across))
    shares = x.place.empty((down * dweight.size,), "float32")
    _DWEIGHT(
        (across, down), stream, dy.address, x.address, shares.address, rows, features, outputs, *_steps(dy), *_steps(x)
    )
    add_shares(-(-dweight.size // 32), stream, shares.address, dweight.address, down, dweight.size)
    return True
