"""The input gradient of a convolution with few channels in a group, on the GPU's ordinary arithmetic.

Input row `h = i*stride + a - top`, a < stride, is read by tap `r = a + j*stride` of output `p = i - j`. So the pixels
of an (i, i') in all phases (a, a') are sums over one window of dy, each with taps of its own: a thread reads that
window once for all of them and all channels, and for `tall` windows below each other, filter after filter. Accumulated
in float32, in the order k, r, s. Any strides of dy, weight and dx.

Limits (`shape_of`): up to 4 channels of a group, 48 sums and 40 inputs of a thread, 48 KB of a group's weights, no
dilation, offsets of 31 bits; a stride, or 8 filters. Else launch_conv.py takes dy phase by phase. What it bought on an
H200, 2026-11-30: 7x7/2 of 3 channels 732 to 314 us (cuDNN 492), 3x3/2 138 to 63, depthwise 3x3/2 187 to 60.
"""

import functools
import math
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from .. import ptx
from ..host.arrays import DeviceArray
from ..host.driver import Kernel, multiprocessors
from ..ptx import device_function, emit, unpacked
from ..tensor_cores.problem import Problem, division
from ..tensor_cores.slots import divided
from .direct import THREADS, stage_weights
from .launch_direct import BLOCKS, FEW, SHARED_MEMORY
from .windows import tuple_of, window_of, zeros_of

MOST_SUMS, MOST_INPUTS, TALLEST = 48, 40, 4
"""That a thread's registers hold beside each other; windows below each other."""
LEAST_FILTERS = 8
"""Without a stride there is one phase: fewer filters are served as fast by direct.py."""


class Geometry(NamedTuple):
    """One input gradient in numbers, all int32; strides in elements."""

    images: int
    filters: int  # of a group
    p: int
    q: int
    height: int
    width: int
    above: int  # the window's first row of dy lies so far above row i, its first column so far left of i'
    before: int
    skipped_h: int  # rows and columns of the first phases that lie outside of x
    skipped_w: int
    windows: int  # of an image, `tall` below each other as one
    windows_multiplier: int
    windows_shift: int
    columns: int
    columns_multiplier: int
    columns_shift: int
    w_group: int
    w_filter: int
    w_channel: int
    w_r: int
    w_s: int
    y_n: int
    y_k: int
    y_h: int
    y_w: int
    x_n: int
    x_c: int
    x_h: int
    x_w: int


GEOMETRY = types.NamedUniTuple(types.int32, len(Geometry._fields), Geometry)
ARGUMENTS = types.void(types.int64, types.int64, types.int64, GEOMETRY)
"""dy, weight, dx, geometry."""


class Shape(NamedTuple):
    """What is compiled: channels of a group, the filter, the stride, windows of a thread."""

    channels: int
    rows: int
    row: int
    stride_h: int
    stride_w: int
    tall: int

    @property
    def taps(self) -> int:
        """Of a filter, filled up to a multiple of four."""
        return -(-self.channels * self.rows * self.row // 4) * 4

    @property
    def reach(self) -> tuple[int, int]:
        """Rows and columns of a window of dy."""
        return -(-self.rows // self.stride_h), -(-self.row // self.stride_w)

    @property
    def sums(self) -> int:
        return self.channels * self.stride_h * self.stride_w * self.tall

    @property
    def inputs(self) -> int:
        down, across = self.reach
        return (down + self.tall - 1) * across


def spread_of(shape: Shape) -> Any:
    """`spread(sums, inputs, address)`: `sums[c][a][a'][i]` and the window's inputs times the filter's taps at a shared
    address, four of which are read at a time, once for all windows."""
    (down, across), count = shape.reach, shape.channels * shape.rows * shape.row

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        sums, inputs = unpacked(builder, arguments[0], shape.sums), unpacked(builder, arguments[1], shape.inputs)
        for first in range(0, count, 4):
            text = f"ld.shared.v4.f32 {{$0, $1, $2, $3}}, [$4+{4 * first}];"
            weights = emit(builder, text, "ffff", "r", [arguments[2]])
            for tap in range(first, min(first + 4, count)):
                (c, r), s = divmod(tap // shape.row, shape.rows), tap % shape.row
                (j, a), (k, b) = divmod(r, shape.stride_h), divmod(s, shape.stride_w)
                for i in range(shape.tall):
                    value = inputs[(down - 1 - j + i) * across + across - 1 - k]
                    at = ((c * shape.stride_h + a) * shape.stride_w + b) * shape.tall + i
                    sums[at] = builder.fma(value, weights[tap - first], sums[at])
        return sums

    return device_function(tuple_of(shape.sums)(tuple_of(shape.sums), tuple_of(shape.inputs), types.int32), generate)


def storer_of(shape: Shape) -> Any:
    """`store(sums, dx, h, w, height, width, x_c, x_h, x_w)`: the sums that lie inside of x, from where the first does
    on; steps in bytes."""
    names = ("dx", "h", "w", "height", "width", "x_c", "x_h", "x_w")
    at = {name: f"${shape.sums + i}" for i, name in enumerate(names)}
    text = ["{ .reg .pred p, q; .reg .b64 plane, line, at; .reg .s32 row, column;", f"mov.b64 plane, {at['dx']};"]
    for c in range(shape.channels):
        text.append(f"mov.b64 line, plane; mov.b32 row, {at['h']};")
        for i in range(shape.tall):
            for a in range(shape.stride_h):
                # Unsigned, a negative row is a great one.
                text.append(f"setp.lt.u32 p, row, {at['height']}; mov.b64 at, line; mov.b32 column, {at['w']};")
                for b in range(shape.stride_w):
                    value = ((c * shape.stride_h + a) * shape.stride_w + b) * shape.tall + i
                    text.append(f"setp.lt.and.u32 q, column, {at['width']}, p; @q st.global.f32 [at], ${value};")
                    text.append(f"add.s64 at, at, {at['x_w']}; add.s32 column, column, 1;")
                text.append(f"add.s64 line, line, {at['x_h']}; add.s32 row, row, 1;")
        text.append(f"add.s64 plane, plane, {at['x_c']};")
    joined = "\n".join([*text, "}"])

    def generate(builder: Any, arguments: list[Any]) -> None:
        values = unpacked(builder, arguments[0], shape.sums)
        emit(builder, joined, "", "f" * shape.sums + "lrrrrlll", [*values, *arguments[1:]])

    integers, steps = [types.int32] * 4, [types.int64] * 3
    return device_function(types.void(tuple_of(shape.sums), types.int64, *integers, *steps), generate)


@functools.cache
def kernel_of(shape: Shape) -> Any:
    """One thread per group, the grid's second axis, and (i, i'), `tall` of them below each other; filters in turn."""
    (down, across), tall, stride_h, stride_w = shape.reach, shape.tall, shape.stride_h, shape.stride_w
    inputs, spread = window_of(1, down + tall - 1, across), spread_of(shape)
    zero, store = zeros_of(shape.sums), storer_of(shape)
    channels, rows, row, of_filter = shape.channels, shape.rows, shape.row, 4 * shape.taps

    def kernel(dy, weight, dx, g):
        shared, group = ptx.dynamic_shared(), cuda.blockIdx.y
        its_weight = weight + types.int64(group) * g.w_group * 4
        stage_weights(its_weight, types.int64(0), shared, channels * rows * row, of_filter // 4, rows, row, g)
        for window in range(cuda.grid(1), g.images * g.windows, cuda.gridsize(1)):
            n = divided(types.int32(window), g.windows_multiplier, g.windows_shift)
            rest = types.int32(window - n * g.windows)
            i = divided(rest, g.columns_multiplier, g.columns_shift)
            column = types.int32(rest - i * g.columns)
            i = types.int32(i * tall)
            p, q = types.int32(i - g.above), types.int32(column - g.before)
            first = types.int64(n) * g.y_n + types.int64(group) * g.filters * g.y_k
            plane = dy + (first + types.int64(p) * g.y_h + types.int64(q) * g.y_w) * 4
            sums = zero()
            for k in range(g.filters):
                values = inputs(
                    plane, p, q, g.p, g.q, types.int64(0), types.int64(g.y_h) * 4, types.int64(g.y_w) * 4,
                    types.int32(1), types.int32(1),
                )  # fmt: skip
                sums = spread(sums, values, types.int32(shared + k * of_filter))
                plane += types.int64(g.y_k) * 4
            h, w = types.int32(i * stride_h - g.skipped_h), types.int32(column * stride_w - g.skipped_w)
            at = types.int64(n) * g.x_n + types.int64(group) * channels * g.x_c
            at += types.int64(h) * g.x_h + types.int64(w) * g.x_w
            store(
                sums, dx + at * 4, h, w, g.height, g.width,
                types.int64(g.x_c) * 4, types.int64(g.x_h) * 4, types.int64(g.x_w) * 4,
            )  # fmt: skip

    return kernel


@functools.cache
def kernel(shape: Shape) -> Kernel:
    """Compiled when first launched."""
    return Kernel(f"input gradient {tuple(shape)}", kernel_of(shape), ARGUMENTS, THREADS)


def shape_of(problem: Problem) -> Shape | None:
    """What serves the input gradient of the convolution `problem`; None where nothing here does."""
    strides = (*problem.x_strides, *problem.y_strides, *problem.w_strides)
    size = problem.images * math.prod(problem.image)
    if problem.channels > FEW or problem.dilation != (1, 1) or problem.groups >= 2**16 or size == 0:
        return None
    if min(problem.groups, problem.channels, problem.filters, *problem.output, *problem.taps) < 1:
        return None
    if max(map(abs, (*strides, size))) >= 2**29:
        return None
    if problem.stride == (1, 1) and problem.filters < LEAST_FILTERS:
        return None
    shapes = (Shape(problem.channels, *problem.taps, *problem.stride, tall) for tall in range(TALLEST, 0, -1))
    return next(
        (
            each
            for each in shapes
            if each.sums <= MOST_SUMS
            and each.inputs <= MOST_INPUTS
            and 4 * problem.filters * each.taps <= SHARED_MEMORY
        ),
        None,
    )


def launch(dy: DeviceArray, weight: DeviceArray, dx: DeviceArray, problem: Problem, shape: Shape) -> None:
    """Launch the kernel for a problem that the shape serves: every pixel of dx is written."""
    above, before = (
        reach - 1 - top // stride
        for reach, top, stride in zip(shape.reach, problem.before, problem.stride, strict=True)
    )
    skipped = problem.before[0] % problem.stride[0], problem.before[1] % problem.stride[1]
    lines, columns = (
        -(-(size + skip) // stride) for size, skip, stride in zip(problem.image, skipped, problem.stride, strict=True)
    )
    windows = -(-lines // shape.tall) * columns
    geometry = Geometry(
        problem.images, problem.filters, *problem.output, *problem.image, above, before, *skipped,
        windows, *division(windows), columns, *division(columns), *problem.w_strides, *problem.y_strides,
        *problem.x_strides,
    )  # fmt: skip
    most = max(1, BLOCKS * multiprocessors(dy.place.device) // problem.groups)
    blocks = min(-(-problem.images * windows // THREADS), most)
    kernel(shape)(
        (blocks, problem.groups), dy.place.stream, dy.address, weight.address, dx.address, geometry,
        shared=4 * problem.filters * shape.taps,
    )  # fmt: skip
