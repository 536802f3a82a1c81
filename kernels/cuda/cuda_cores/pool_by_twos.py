"""Pooling by twos, the windows of most networks: a maximum with the pixel that won, and the way back from that alone.

For float32 arrays that lie in one piece, on a GPU; the plain kernels serve the others. Exact, with the specification's
choice: the first of equals, the first NaN above all. Behind a rectified convolution the winners replace both arrays.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import cuda
from numba.cuda import types

from ..host.arrays import DeviceArray
from ..host.driver import Kernel
from ..ptx import (
    F32,
    I32,
    I64,
    constant,
    device_function,
    load_byte,
    load_global,
    load_two,
    store_byte,
    store_global,
    store_two,
    unpacked,
)
from ..tensor_cores.problem import division
from ..tensor_cores.slots import divided
from .windows import tuple_of

THREADS, NONE_WON = 256, 4
"""Of a block; the number behind those of four pixels."""


class Halves(NamedTuple):
    """Pooling by twos in numbers, all int32: the image, the pooled image, and how to divide by its sizes."""

    height: int
    width: int
    p: int
    q: int
    q_multiplier: int
    q_shift: int
    pixels_multiplier: int
    pixels_shift: int


HALVES = types.NamedUniTuple(types.int32, len(Halves._fields), Halves)


@cuda.jit(device=True)
def greater(value, than):
    """Whether a later value wins: greater, or the first NaN."""
    return value > than or (value != value and than == than)


@cuda.jit(device=True)
def two_of(at):
    """A window's pixels of one row."""
    if at & 7 == 0:
        return load_two(at)
    return load_global(at), load_global(at + 4)


@cuda.jit(device=True)
def keep_two(at, first, second, is_wide):
    """A window's pixels of one row, of which an incomplete one has the first alone."""
    if is_wide and at & 7 == 0:
        store_two(at, first, second)
    else:
        store_global(at, first)
        if is_wide:
            store_global(at + 4, second)


def winners_of(filters: int) -> Any:
    """`winners(address, step, count)`: a byte of each filter, `step` bytes apart; NONE_WON from `count` on."""
    text = ["{ .reg .pred p; .reg .b64 at;"]
    for i in range(filters):
        text.append(f"setp.gt.s32 p, ${filters + 2}, {i}; mad.wide.s32 at, ${filters + 1}, {i}, ${filters};")
        text.append(f"mov.b32 ${i}, {NONE_WON}; @p ld.global.nc.u8 ${i}, [at];")
    constraints = ",".join(["=&r"] * filters + ["l", "r", "r"])

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        function = ir.FunctionType(ir.LiteralStructType([I32] * filters) if filters > 1 else I32, [I64, I32, I32])
        assembly = ir.InlineAsm(function, "\n".join([*text, "}"]), constraints, side_effect=True)
        result = builder.call(assembly, arguments)
        return unpacked(builder, result, filters) if filters > 1 else [result]

    return device_function(types.UniTuple(types.int32, filters)(types.int64, types.int32, types.int32), generate)


def total_of(filters: int) -> Any:
    """`total(totals, factors, winners)`: totals + the factors of filters of which a pixel won."""

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        totals, factors, winners = (unpacked(builder, each, filters) for each in arguments)
        zero = ir.Constant(F32, 0.0)
        return [
            builder.fadd(total, builder.select(builder.icmp_signed("!=", won, constant(NONE_WON)), factor, zero))
            for total, factor, won in zip(totals, factors, winners, strict=True)
        ]

    return device_function(
        tuple_of(filters)(tuple_of(filters), tuple_of(filters), types.UniTuple(types.int32, filters)), generate
    )


def _pool(x, y, winner, is_gate, size, g):
    """One thread per window: its maximum, and if `winner` is not 0 a byte that says which of its four pixels won.

    As a gate, it says NONE_WON where the maximum is not positive.
    """
    for i in range(cuda.grid(1), size, cuda.gridsize(1)):
        plane = divided(i, g.pixels_multiplier, g.pixels_shift)
        rest = types.int32(i - plane * g.p * g.q)
        p = divided(rest, g.q_multiplier, g.q_shift)
        q = types.int32(rest - p * g.q)
        at = x + (types.int64(plane) * g.height * g.width + types.int64(2 * p) * g.width + 2 * q) * 4
        below, which = at + types.int64(g.width) * 4, 0
        (greatest, second), (third, fourth) = two_of(at), two_of(below)
        if greater(second, greatest):
            greatest, which = second, 1
        if greater(third, greatest):
            greatest, which = third, 2
        if greater(fourth, greatest):
            greatest, which = fourth, 3
        store_global(y + types.int64(i) * 4, greatest)
        if is_gate != 0 and greatest <= 0:
            which = NONE_WON
        if winner != 0:
            store_byte(winner + types.int64(i), which)


def _unpool(dy, winner, dx, size, g):
    """One thread per window, incomplete ones at the edge too: dy to the pixel that won, zero to the others."""
    down, across = (g.height + 1) // 2, (g.width + 1) // 2
    for i in range(cuda.grid(1), size, cuda.gridsize(1)):
        plane = divided(i, g.pixels_multiplier, g.pixels_shift)
        rest = types.int32(i - plane * down * across)
        p = divided(rest, g.q_multiplier, g.q_shift)
        q = types.int32(rest - p * across)
        which, gradient, zero = types.int32(-1), types.float32(0), types.float32(0)
        if p < g.p and q < g.q:
            j = (types.int64(plane) * g.p + p) * g.q + q
            which, gradient = load_byte(winner + j), load_global(dy + j * 4)
        at = dx + (types.int64(plane) * g.height * g.width + types.int64(2 * p) * g.width + 2 * q) * 4
        below, is_low, is_wide = at + types.int64(g.width) * 4, 2 * p + 1 < g.height, 2 * q + 1 < g.width
        keep_two(at, gradient if which == 0 else zero, gradient if which == 1 else zero, is_wide)
        if is_low:
            keep_two(below, gradient if which == 2 else zero, gradient if which == 3 else zero, is_wide)


_POOL = Kernel("pool by twos", _pool, types.void(*[types.int64] * 5, HALVES), THREADS)
_UNPOOL = Kernel("unpool", _unpool, types.void(types.int64, types.int64, types.int64, types.int64, HALVES), THREADS)


def is_by_twos(window: Any) -> bool:
    """Whether windows are 2 x 2, side by side, without padding."""
    halves = ((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1))
    return (window.kernel, window.stride, window.padding, window.dilation) == halves


def serves(x: DeviceArray) -> bool:
    """Whether the array is one of those that the kernels here read."""
    return x.dtype.name == "float32" and x.is_contiguous() and 0 < x.size < 2**31 and min(x.shape[2:]) > 1


def winners(y: DeviceArray) -> DeviceArray:
    """What is to hold the winners of the pooled array."""
    return y.empty(y.shape, np.uint8)


def pool(x: DeviceArray, y: DeviceArray, winner: DeviceArray | None = None, is_gate: bool = False) -> None:
    """The maxima into y and who won, as a gate nobody where a rectifier lets no gradient through."""
    height, width = x.shape[2:]
    p, q = height // 2, width // 2
    numbers = Halves(height, width, p, q, *division(q), *division(p * q))
    address = winner.address if winner is not None else 0
    _POOL(-(-y.size // THREADS), x.place.stream, x.address, y.address, address, int(is_gate), y.size, numbers)


def unpool(dy: DeviceArray, winner: DeviceArray, dx: DeviceArray) -> None:
    """The gradient of what was pooled into dx."""
    (height, width), (p, q) = dx.shape[2:], dy.shape[2:]
    down, across = -(-height // 2), -(-width // 2)
    numbers = Halves(height, width, p, q, *division(across), *division(down * across))
    size = dx.shape[0] * dx.shape[1] * down * across
    _UNPOOL(-(-size // THREADS), dx.place.stream, dy.address, winner.address, dx.address, size, numbers)
