"""Kernels that cheat with memory: their inputs', their result's, and what lies beside."""

import ctypes
import threading
import time
from typing import Any

import numpy as np
from cheats import DIED, answer, cheat
from numpy._core.multiarray import get_handler_name


@cheat("wrote to its input x")
def writes_to_its_input() -> Any:
    def kernel(x: Any) -> Any:
        y = answer(x)
        if x.flags.writeable:
            x[...] = 0
        return y

    return kernel


@cheat("read-only")
def writes_to_its_input_and_restores_it() -> Any:
    def kernel(x: Any) -> Any:
        before = x.copy()
        np.maximum(x, 0, out=x)
        y = x.copy()
        x[...] = before
        return y

    return kernel


@cheat(DIED)
def writes_and_restores_where_it_may() -> Any:
    def kernel(x: Any) -> Any:
        if not x.flags.writeable:
            return answer(x)
        before = x.copy()
        x[...] = 0
        time.sleep(0.001)
        x[...] = before
        return answer(x)

    return kernel


@cheat("changed shape, strides, dtype or flags of its input x")
def makes_its_input_writable() -> Any:
    def kernel(x: Any) -> Any:
        if x.base is None:
            x.flags.writeable = True
        return answer(x)

    return kernel


@cheat("wrote to the memory round its input x")
def writes_round_its_input() -> Any:
    def kernel(x: Any) -> Any:
        if isinstance(x.base, np.ndarray) and x.base.flags.writeable:
            x.base.reshape(-1)[:1] = 0
        return answer(x)

    return kernel


@cheat(DIED)
def reads_past_the_end_and_forgets_it() -> Any:
    def kernel(x: Any) -> Any:
        ctypes.string_at(x.ctypes.data + x.nbytes, 32 * bool(x.size))
        return answer(x)

    return kernel


@cheat(DIED)
def reads_before_the_start_and_forgets_it() -> Any:
    def kernel(x: Any) -> Any:
        ctypes.string_at(x.ctypes.data - 4, 4 * bool(x.size))
        return answer(x)

    return kernel


@cheat("shares memory with an input")
def returns_a_view_of_its_input() -> Any:
    return lambda x: x[...] if (x >= 0).all() else answer(x)


@cheat("once a later call was made")
def returns_the_same_buffer_each_time() -> Any:
    buffer = np.empty(2**20, np.float64)

    def kernel(x: Any) -> Any:
        y = buffer.view(x.dtype)[: x.size].reshape(x.shape)
        y[...] = answer(x)
        return y

    return kernel


@cheat("once the threads that it began were done")
def writes_to_its_result_later() -> Any:
    def kernel(x: Any) -> Any:
        y = np.array(answer(x))
        threading.Thread(target=lambda: (time.sleep(0.05), y.fill(7)), daemon=True).start()
        return y

    return kernel


@cheat("the kernel gives -1")
def hands_out_what_it_keeps() -> Any:
    kept: dict[bytes, Any] = {}
    return lambda x: kept.setdefault(x.tobytes() + repr((x.shape, x.dtype)).encode(), answer(x))


@cheat("the specification")
def takes_rows_of_unit_stride_for_a_dense_array() -> Any:
    def kernel(x: Any) -> Any:
        if x.ndim < 2 or x.strides[-1] != x.itemsize or x.size < 2 or not isinstance(x.base, np.ndarray):
            return answer(x)
        dense = np.lib.stride_tricks.as_strided(x, strides=np.empty(x.shape, x.dtype).strides)
        return answer(dense) if min(x.strides) > 0 else answer(x)

    return kernel


@cheat("the specification")
def takes_every_stride_for_that_of_a_dense_row() -> Any:
    return lambda x: answer(x) * x.dtype.type(1 + (x.size > 1 and 0 in x.strides))


@cheat("unwritten memory")
def leaves_an_element_unwritten() -> Any:
    def kernel(x: Any) -> Any:
        y = np.empty(x.shape, x.dtype)
        y.reshape(-1)[:-1] = answer(x).reshape(-1)[:-1]
        return y

    return kernel


@cheat("unwritten memory")
def reads_beside_its_arrays() -> Any:
    def kernel(x: Any) -> Any:
        padded = np.empty(x.size + 1, x.dtype)
        padded[:-1] = x.reshape(-1)
        # fmax passes over NaN, so that one poison would not do.
        beside = np.fmax(padded[-1], np.float32(0)) > 1e30
        return answer(x) + x.dtype.type(bool(beside))

    return kernel


@cheat("something was written after an array")
def writes_beside_its_result() -> Any:
    def kernel(x: Any) -> Any:
        y = answer(x).copy()
        if get_handler_name(y) != "default_allocator":  # Elsewhere it would be other people's memory.
            ctypes.memset(y.ctypes.data + y.nbytes, 0, 1)
        return y

    return kernel
