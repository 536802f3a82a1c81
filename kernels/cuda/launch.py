"""How a core is launched, and the device functions that cores share."""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from .host.arrays import SIMULATED, DeviceArray, at_least_1d, numba_stream

if not SIMULATED:
    from numba.cuda.np.numpy_support import from_dtype

# A simulated thread is a Python thread: a few of them do, and go round the grid-stride loops more than once.
THREADS, _LEAST_BLOCKS, _MOST_BLOCKS = (4, 1, 3) if SIMULATED else (256, 128, 2**20)
"""Threads in a block, a power of two; numba warns of grids under 128 blocks, whose idle blocks cost next to nothing."""


def launch(core: Any, threads: int, *arguments: Any) -> None:
    """Run `core` on about `threads` threads, on the stream of the call; no threads, no launch."""
    if threads == 0:
        return
    stream = next(each.place.stream for each in arguments if isinstance(each, DeviceArray))
    blocks = min(max(-(-threads // THREADS), _LEAST_BLOCKS), _MOST_BLOCKS)
    if not SIMULATED:
        arguments = tuple(at_least_1d(each) if isinstance(each, DeviceArray) else each for each in arguments)
        _compiled(core, tuple(map(_type, arguments)))(blocks, stream, *arguments)
        return
    with _GUARD():
        core[blocks, THREADS, numba_stream(stream)](
            *(each.view() if isinstance(each, DeviceArray) else each for each in arguments)
        )


@functools.cache
def _compiled(core: Any, kinds: tuple[Any, ...]) -> Any:
    from .host.driver import Kernel

    return Kernel(f"{core.py_func.__module__} {core.py_func.__name__}", core.py_func, types.void(*kinds), THREADS)


def _type(argument: Any) -> Any:
    """What numba compiles for; an array that lies in one piece in row-major order is indexed with less ado."""
    if isinstance(argument, DeviceArray):
        return types.Array(from_dtype(argument.dtype), argument.ndim, "C" if argument.is_contiguous() else "A")
    if isinstance(argument, tuple):
        return types.UniTuple(_type(argument[0]), len(argument))
    if isinstance(argument, np.generic):
        return from_dtype(argument.dtype)
    return types.int64


@contextlib.contextmanager
def _quiet_as_a_gpu() -> Iterator[None]:
    """The simulator computes with numpy scalars, which warn of overflow and NaN where a GPU does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        yield


_GUARD: Callable[[], Any] = _quiet_as_a_gpu if SIMULATED else contextlib.nullcontext


@cuda.jit(device=True)
def position(i, shape):
    """The four indices of entry i, counted in row-major order."""
    if i < 2**31:  # 32-bit division takes a fourth of the time.
        rest, w = _divided(i, shape[3])
        rest, h = _divided(rest, shape[2])
        n, c = _divided(rest, shape[1])
        return n, c, h, w
    i, w = divmod(i, shape[3])
    i, h = divmod(i, shape[2])
    n, c = divmod(i, shape[1])
    return n, c, h, w


@cuda.jit(device=True)
def _divided(number, divisor):
    """`divmod` for a number below 2**31."""
    quotient = np.uint32(number) // np.uint32(min(divisor, 2**31))
    return np.int64(quotient), np.int64(number - quotient * divisor)


@cuda.jit(device=True)
def reader(h, r, stride, before, dilation, size):
    """The output position that reads h with tap r, `p*stride + r*dilation - before = h`; -1 if there is none."""
    offset = h + before - r * dilation
    if offset < 0 or offset % stride != 0 or offset // stride >= size:
        return -1
    return offset // stride


@cuda.jit(device=True)
def block_sum(total, partial):
    """The sum of the block's totals in a fixed tree, told to all its threads; `partial` is shared, one entry each."""
    thread = cuda.threadIdx.x
    partial[thread] = total
    cuda.syncthreads()
    width = THREADS // 2
    while width > 0:
        if thread < width:
            partial[thread] += partial[thread + width]
        cuda.syncthreads()
        width //= 2
    total = partial[0]
    cuda.syncthreads()  # No thread overwrites partial for the next sum before all have read this one.
    return total
