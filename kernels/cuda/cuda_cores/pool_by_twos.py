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
    store_byte,
    store_global,
    unpacked,
)
from ..tensor_cores.problem import division
from ..tensor_cores.slots import divided
from .greatest import magnitude_of, tell_greatest
from .windows import tuple_of

THREADS, NONE_WON = 256, 4
"""Of a block; the number behind those of four pixels."""


class Halves(NamedTuple):
    """Pooling by twos in numbers, all int32: the image, the pooled image, and how to divide by its sizes."""

    planes: int  # of an image
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


@cuda.jit(device=True)
def _place_of(i, down, across, g):
    """Window i's image, row and column, and where its first pixel lies."""
    plane = divided(i, g.pixels_multiplier, g.pixels_shift)
    rest = types.int32(i - plane * down * across)
    p = divided(rest, g.q_multiplier, g.q_shift)
    q = types.int32(rest - p * across)
    return plane, p, q, (types.int64(plane) * g.height * g.width + types.int64(2 * p) * g.width + 2 * q) * 4


@cuda.jit(device=True)
def _share(greatest):
    """A warp's first window, and how far a thread's lie apart: a grid, which is the faster; where magnitudes are told,
    so far that a warp's are of one image."""
    warp = cuda.grid(1) >> 5
    return (warp * 32, cuda.gridsize(1)) if greatest == 0 else (warp * 128, 32)


@cuda.jit(device=True)
def _windows_of(first, apart, size):
    """A thread's four windows; threads beyond the last take it again, so that warps stay whole."""
    i, last = first + (cuda.threadIdx.x & 31), size - 1
    return min(i, last), min(i + apart, last), min(i + 2 * apart, last), min(i + 3 * apart, last)


@cuda.jit(device=True)
def _tell(greatest, windows, words, g):
    """The four windows' magnitudes to their images' greatest: those of one image together."""
    first, last = _image_of(windows[0], g), _image_of(windows[3], g)
    share = windows[0] >> 7
    if cuda.all_sync(0xFFFFFFFF, first == last):
        tell_greatest(greatest, first, max(max(words[0], words[1]), max(words[2], words[3])), share)
    else:
        for i in range(4):
            tell_greatest(greatest, _image_of(windows[i], g), words[i], share)


@cuda.jit(device=True)
def _image_of(i, g):
    return types.int32(divided(i, g.pixels_multiplier, g.pixels_shift) // g.planes)


@cuda.jit(device=True)
def _inputs_of(x, i, g):
    """The four pixels of window i."""
    at = x + _place_of(i, g.p, g.q, g)[3]
    below = at + types.int64(g.width) * 4
    return load_global(at), load_global(at + 4), load_global(below), load_global(below + 4)


@cuda.jit(device=True)
def _settle(four, y, winner, is_gate, i):
    """Window i's maximum and winner to their places; the maximum's magnitude."""
    value, which = four[0], 0
    if greater(four[1], value):
        value, which = four[1], 1
    if greater(four[2], value):
        value, which = four[2], 2
    if greater(four[3], value):
        value, which = four[3], 3
    store_global(y + types.int64(i) * 4, value)
    if is_gate != 0 and value <= 0:
        which = NONE_WON
    if winner != 0:
        store_byte(winner + types.int64(i), which)
    return magnitude_of(value)


def _pool(x, y, winner, is_gate, greatest, size, g):
    """Four windows in a thread, all read before any is written: each one's maximum, and if `winner` is not 0 a byte
    that says which of its four pixels won.

    As a gate, it says NONE_WON where the maximum is not positive. If `greatest` is not 0, images' maxima go there.
    """
    start, apart = _share(greatest)
    for first in range(start, size, 4 * cuda.gridsize(1)):
        windows = _windows_of(first, apart, size)
        i, j, k, m = windows
        a, b, c, d = _inputs_of(x, i, g), _inputs_of(x, j, g), _inputs_of(x, k, g), _inputs_of(x, m, g)
        words = (
            _settle(a, y, winner, is_gate, i), _settle(b, y, winner, is_gate, j),
            _settle(c, y, winner, is_gate, k), _settle(d, y, winner, is_gate, m),
        )  # fmt: skip
        if greatest != 0:
            _tell(greatest, windows, words, g)


@cuda.jit(device=True)
def _gradient_of(dy, winner, i, g):
    """Who won window i, and its gradient; an incomplete window nobody."""
    plane, p, q, _ = _place_of(i, (g.height + 1) // 2, (g.width + 1) // 2, g)
    which, gradient = types.int32(NONE_WON), types.float32(0)
    if p < g.p and q < g.q:
        at = (types.int64(plane) * g.p + p) * g.q + q
        which, gradient = load_byte(winner + at), load_global(dy + at * 4)
    return which, gradient


@cuda.jit(device=True)
def _spread(won, dx, i, g):
    """A window's gradient to the pixel that won, zero to the others; the gradient's magnitude if one did."""
    _, p, q, first = _place_of(i, (g.height + 1) // 2, (g.width + 1) // 2, g)
    (which, gradient), zero, at = won, types.float32(0), dx + first
    below, is_low, is_wide = at + types.int64(g.width) * 4, 2 * p + 1 < g.height, 2 * q + 1 < g.width
    store_global(at, gradient if which == 0 else zero)
    if is_wide:
        store_global(at + 4, gradient if which == 1 else zero)
    if is_low:
        store_global(below, gradient if which == 2 else zero)
    if is_low and is_wide:
        store_global(below + 4, gradient if which == 3 else zero)
    return magnitude_of(gradient) if which != NONE_WON else types.int32(0)


def _unpool(dy, winner, dx, greatest, size, g):
    """Four windows in a thread, as in `_pool`, incomplete ones at the edge too."""
    start, apart = _share(greatest)
    for first in range(start, size, 4 * cuda.gridsize(1)):
        windows = _windows_of(first, apart, size)
        i, j, k, m = windows
        a, b = _gradient_of(dy, winner, i, g), _gradient_of(dy, winner, j, g)
        c, d = _gradient_of(dy, winner, k, g), _gradient_of(dy, winner, m, g)
        words = _spread(a, dx, i, g), _spread(b, dx, j, g), _spread(c, dx, k, g), _spread(d, dx, m, g)
        if greatest != 0:
            _tell(greatest, windows, words, g)


_POOL = Kernel("pool by twos", _pool, types.void(*[types.int64] * 6, HALVES), THREADS)
_UNPOOL = Kernel("unpool", _unpool, types.void(*[types.int64] * 5, HALVES), THREADS)


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


def pool(
    x: DeviceArray, y: DeviceArray, winner: DeviceArray | None = None, is_gate: bool = False,
    greatest: DeviceArray | None = None,
) -> None:  # fmt: skip
    """The maxima into y and who won, as a gate nobody where a rectifier lets no gradient through."""
    height, width = x.shape[2:]
    p, q = height // 2, width // 2
    numbers = Halves(x.shape[1], height, width, p, q, *division(q), *division(p * q))
    where = (0 if each is None else each.address for each in (winner, greatest))
    its_winner, its_greatest = where
    _POOL(
        -(-y.size // (4 * THREADS)), x.place.stream, x.address, y.address, its_winner, int(is_gate), its_greatest,
        y.size, numbers,
    )  # fmt: skip


def unpool(dy: DeviceArray, winner: DeviceArray, dx: DeviceArray, greatest: DeviceArray | None = None) -> None:
    """The gradient of what was pooled into dx."""
    (height, width), (p, q) = dx.shape[2:], dy.shape[2:]
    down, across = -(-height // 2), -(-width // 2)
    numbers = Halves(dx.shape[1], height, width, p, q, *division(across), *division(down * across))
    size, its_greatest = dx.shape[0] * dx.shape[1] * down * across, 0 if greatest is None else greatest.address
    _UNPOOL(
        -(-size // (4 * THREADS)), dx.place.stream, dy.address, winner.address, dx.address, its_greatest, size, numbers
    )
