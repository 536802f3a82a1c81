"""The fully connected layer with at most sixteen outputs, as at a network's end: every row of x is read once.

A thread holds the sums of all outputs for several rows, or features, so that what it reads of the other operand serves
all of them. Float32, for arrays of any strides, on a GPU. Forward, a block sums rows, each thread every 256th feature
in rising order, then a fixed tree; bias last. The weight gradient's rows are cut in shares, which `sum_of_shares` adds
in a fixed order.
"""

import functools
from typing import Any

from numba import cuda
from numba.cuda import types

from .. import ptx
from ..host.arrays import DeviceArray
from ..host.driver import Kernel, multiprocessors
from ..ptx import device_function, emit, unpacked
from ..relu import in_one_piece
from ..tensor_cores.arithmetic import gatherer
from .launch_direct import sum_up
from .windows import outer_add_of, tuple_of, warp_sums_of, zeros_of

MOST, THREADS, BLOCKS = 16, 256, 8
"""Outputs; threads of a block that sums rows; its blocks on a multiprocessor."""
WARPS = THREADS // 32
COLUMNS, LANES, MANY_ROWS = 4, 64, 2048
"""Features of a thread, and threads of a block, in the gradients; rows from which on a block sums four at a time."""
LEAST_ROWS, MOST_SHARES, LEAST_OF_DX = 16, 128, 8
"""Of a share of the weight gradient; shares; rows for which a thread of dx fetches its weights."""


def keeper(count: int) -> Any:
    """`keep(values, address)`: to shared memory, side by side."""

    def generate(builder: Any, arguments: list[Any]) -> None:
        for i, value in enumerate(unpacked(builder, arguments[0], count)):
            ptx.store_words(builder, builder.add(arguments[1], ptx.constant(4 * i)), [value])

    return device_function(types.void(tuple_of(count), types.int32), generate)


def dots_of_columns(outputs: int) -> Any:
    """`dots(columns, gradient)`: for each of COLUMNS features, its weights times the gradient's outputs."""

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        weights = unpacked(builder, arguments[0], COLUMNS * outputs)
        gradient = unpacked(builder, arguments[1], outputs) if outputs > 1 else [builder.extract_value(arguments[1], 0)]
        totals = []
        for j in range(COLUMNS):
            total = builder.fmul(weights[j * outputs], gradient[0])
            for k in range(1, outputs):
                total = builder.fma(weights[j * outputs + k], gradient[k], total)
            totals.append(total)
        return totals

    return device_function(tuple_of(COLUMNS)(tuple_of(COLUMNS * outputs), tuple_of(outputs)), generate)


def joined(outputs: int) -> Any:
    """`join(a, b, c, d)`: the weights of four features, one after the other."""

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        return [value for each in arguments for value in unpacked(builder, each, outputs)]

    return device_function(tuple_of(COLUMNS * outputs)(*[tuple_of(outputs)] * COLUMNS), generate)


def columns_storer(outputs: int) -> Any:
    """`store(sums, address, column_step, output_step, count)`: the sums of the first `count` features."""
    total = COLUMNS * outputs
    text = ["{ .reg .pred p; .reg .b64 at, column;"]
    for j in range(COLUMNS):
        text.append(f"setp.gt.s64 p, ${total + 3}, {j}; mad.lo.s64 at, ${total + 1}, {j}, ${total};")
        for k in range(outputs):
            text.append(f"@p st.global.f32 [at], ${j * outputs + k}; add.s64 at, at, ${total + 2};")

    def generate(builder: Any, arguments: list[Any]) -> None:
        values = unpacked(builder, arguments[0], total)
        emit(builder, "\n".join([*text, "}"]), "", "f" * total + "llll", [*values, *arguments[1:]])

    return device_function(types.void(tuple_of(total), *[types.int64] * 4), generate)


@functools.cache
def forward_of(outputs: int, together: int) -> Any:
    """A block sums so many rows at a time."""
    count = outputs * together
    zero, sum_warps, keep, add = zeros_of(count), warp_sums_of(count), keeper(count), outer_add_of(together, outputs)
    fetch, fetch_rows = gatherer(outputs), gatherer(together)

    def kernel(x, weight, bias, y, rows, features, x_n, x_c, w_k, w_c, y_n, y_k):
        thread, shared = types.int32(cuda.threadIdx.x), ptx.dynamic_shared()
        for n in range(cuda.blockIdx.x * together, rows, cuda.gridDim.x * together):
            sums = zero()
            for c in range(thread, features, THREADS):
                values = fetch_rows(x + (n * x_n + c * x_c) * 4, x_n * 4, rows - n)
                sums = add(sums, fetch(weight + c * w_c * 4, w_k * 4, outputs), values)
            sums = sum_warps(sums)
            if thread & 31 == 0:
                keep(sums, types.int32(shared + (thread >> 5) * count * 4))
            cuda.syncthreads()
            if thread < count and n + thread // outputs < rows:
                total, k = types.float32(0), thread % outputs
                for warp in range(WARPS):
                    total += ptx.load_shared(types.int32(shared + (warp * count + thread) * 4))
                if bias != 0:
                    total += ptx.load_global(bias + k * 4)
                ptx.store_global(y + ((n + thread // outputs) * y_n + k * y_k) * 4, total)
            cuda.syncthreads()

    return kernel


@functools.cache
def dx_of(outputs: int) -> Any:
    """A thread holds the weights of four features, a block's threads apart, and walks over rows."""
    fetch, join, dots, store = gatherer(outputs), joined(outputs), dots_of_columns(outputs), columns_storer(1)

    def kernel(dy, weight, dx, rows, features, y_n, y_k, w_k, w_c, x_n, x_c):
        c = types.int64(cuda.blockIdx.x * (COLUMNS * LANES) + cuda.threadIdx.x)
        left = (features - c + LANES - 1) // LANES
        if left <= 0:
            return
        at, step = weight + c * w_c * 4, LANES * w_c * 4
        weights = join(
            fetch(at, w_k * 4, outputs), fetch(at + step, w_k * 4, outputs if left > 1 else 0),
            fetch(at + 2 * step, w_k * 4, outputs if left > 2 else 0),
            fetch(at + 3 * step, w_k * 4, outputs if left > 3 else 0),
        )  # fmt: skip
        for n in range(cuda.blockIdx.y, rows, cuda.gridDim.y):
            gradient = fetch(dy + n * y_n * 4, y_k * 4, outputs)
            store(dots(weights, gradient), dx + (n * x_n + c * x_c) * 4, LANES * x_c * 4, types.int64(0), left)

    return kernel


@functools.cache
def dweight_of(outputs: int) -> Any:
    """A thread sums four features, a block's threads apart, over a share of the rows."""
    fetch, fetch_columns, add = gatherer(outputs), gatherer(COLUMNS), outer_add_of(COLUMNS, outputs)
    zero, store = zeros_of(COLUMNS * outputs), columns_storer(outputs)

    def kernel(dy, x, shares, rows, features, y_n, y_k, x_n, x_c):
        c = types.int64(cuda.blockIdx.x * (COLUMNS * LANES) + cuda.threadIdx.x)
        left = (features - c + LANES - 1) // LANES
        if left <= 0:
            return
        sums = zero()
        for n in range(cuda.blockIdx.y, rows, cuda.gridDim.y):
            values = fetch_columns(x + (n * x_n + c * x_c) * 4, LANES * x_c * 4, left)
            sums = add(sums, fetch(dy + n * y_n * 4, y_k * 4, outputs), values)
        at = shares + (cuda.blockIdx.y * outputs * features + c) * 4
        store(sums, at, types.int64(LANES * 4), features * 4, left)

    return kernel


@functools.cache
def _forward(outputs: int, together: int) -> Kernel:
    kinds = types.void(*[types.int64] * 12)
    return Kernel(f"few outputs {outputs, together}", forward_of(outputs, together), kinds, THREADS)


@functools.cache
def _dx(outputs: int) -> Kernel:
    return Kernel(f"few outputs dx {outputs}", dx_of(outputs), types.void(*[types.int64] * 11), LANES)


@functools.cache
def _dweight(outputs: int) -> Kernel:
    return Kernel(f"few outputs dweight {outputs}", dweight_of(outputs), types.void(*[types.int64] * 9), LANES)


def _steps(array: DeviceArray) -> tuple[int, ...]:
    return tuple(each // array.dtype.itemsize for each in array.strides)


def serves(outputs: int, *arrays: DeviceArray) -> bool:
    """Whether outputs are few and all arrays float32, none of them empty."""
    if outputs > MOST or max(abs(step) for each in arrays for step in each.strides) >= 2**31 // LANES:
        return False
    return all(each.dtype.name == "float32" and each.size for each in arrays)


def linear(x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, y: DeviceArray) -> None:
    """y from x."""
    (rows, features), outputs = x.shape, weight.shape[0]
    bias = None if bias is None else in_one_piece(bias)
    together = 4 if rows >= MANY_ROWS else 2
    blocks = min(-(-rows // together), BLOCKS * multiprocessors(x.place.device))
    _forward(outputs, together)(
        blocks, x.place.stream, x.address, weight.address, bias.address if bias is not None else 0, y.address,
        rows, features, *_steps(x), *_steps(weight), *_steps(y), shared=WARPS * outputs * together * 4,
    )  # fmt: skip


def linear_dx(dy: DeviceArray, weight: DeviceArray, dx: DeviceArray) -> None:
    """dx from dy."""
    (rows, features), outputs = dx.shape, weight.shape[0]
    across = -(-features // (COLUMNS * LANES))
    down = max(1, min(-(-rows // LEAST_OF_DX), 4 * BLOCKS * multiprocessors(dx.place.device) // across))
    _dx(outputs)(
        (across, down), dx.place.stream, dy.address, weight.address, dx.address, rows, features,
        *_steps(dy), *_steps(weight), *_steps(dx),
    )  # fmt: skip


def linear_dweight(dy: DeviceArray, x: DeviceArray, dweight: DeviceArray) -> bool:
    """dweight, which lies in one piece, from dy and x; always."""
    (rows, features), outputs = x.shape, dy.shape[1]
    across, stream = -(-features // (COLUMNS * LANES)), x.place.stream
    down = max(1, min(-(-rows // LEAST_ROWS), MOST_SHARES))
    shares = x.place.empty((down * dweight.size,), "float32")
    _dweight(outputs)(
        (across, down), stream, dy.address, x.address, shares.address, rows, features, *_steps(dy), *_steps(x)
    )
    sum_up(shares, dweight, down, stream)
    return True
