"""How direct convolution sweeps: its geometry, cut into strips, with tables of where each filter tap reads."""

import functools
from typing import Any, NamedTuple

import numpy as np

from kernelproof.spec import Window

from ..micro_kernels import PIXELS, VECTORS
from ..vectors import LANES
from ..workspace import in_lines

_STRIP = 2**18
"""Bytes of a strip's copy, and of its sums: together they leave room in a second-level cache for a panel of weights."""

NEAR = 3 * 2**13
"""Bytes of weights and pixels that stay in a first-level cache of 32 KiB."""

_LONG_ROW = 256
"""Pixels that are worth making a row of, if rows may be joined: they are copied at one go."""

_TASKS = 16
"""Tasks where there are rows enough: a thread that is held up leaves the others work."""


class Sweep(NamedTuple):
    """`y[k, i*row_step + a, j*column_step + b] = sum_ct x[c, i*row_stride + row_t - top, ...] * weight[c,t,k]`.

    One sweep serves forward (one phase, steps of one) and input gradient (strides of one, a phase for every (a, b)).
    Direct convolution has `tiles` in a row, of `pixels` or one more, and sums a `chunk` of channels at a time.
    """

    groups: int
    channels: int
    height: int
    width: int
    filters: int
    rows: int
    columns: int
    row_stride: int
    column_stride: int
    row_step: int
    column_step: int
    top: int
    left: int
    span: int
    taps: int
    height_of_copy: int
    pitch: int
    strip: int
    strips: int
    tiles: int
    pixels: int
    chunk: int
    pooled: int


class Plan(NamedTuple):
    """A sweep with its tables.

    `phases[(a, b, first tap, taps)]` of what is written, the `offsets` of taps in bytes and their `order`, and
    `copies[(first column, zeros before, columns)]` of each column phase of what is read.
    """

    sweep: Sweep
    phases: np.ndarray
    offsets: np.ndarray
    order: np.ndarray
    copies: np.ndarray

    @property
    def panels(self) -> int:
        """Vectors of filters that weights are packed in, one group after the other."""
        return self.sweep.groups * -(-self.sweep.filters // LANES)

    @property
    def packed(self) -> int:
        """Floats of the packed weights, and of what sums start from."""
        return self.panels * LANES * self.sweep.channels * self.sweep.taps + self.starts

    @property
    def starts(self) -> int:
        """Floats of what sums start from."""
        return self.panels * LANES

    @property
    def scratch(self) -> int:
        """Floats that a thread works in: the strip's copy, its sums, and what is left of them after pooling."""
        return self.copied + self.summed + self.sweep.pooled * 2 * self.winners

    @property
    def summed(self) -> int:
        """Floats of a strip's sums for a panel of filters; whole squares of them are turned."""
        pixels = self.sweep.strip * self.sweep.row_step * self.sweep.columns
        return in_lines((pixels + LANES) * VECTORS * LANES)

    @property
    def winners(self) -> int:
        """Floats of a strip's maxima for a vector of filters, and as many of their places."""
        return in_lines((self.sweep.strip // 2 * (self.sweep.columns // 2) + LANES) * LANES)

    @property
    def copied(self) -> int:
        """Floats of a strip's copy."""
        sweep = self.sweep
        return in_lines(sweep.channels * sweep.height_of_copy * sweep.column_stride * sweep.pitch)


@functools.lru_cache(maxsize=256)
def forward(
    window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, pooled: bool = False
) -> Plan:
    """The sweep that is `conv2d`, or with `pooled` that and max pooling by twos."""
    (n, c, h, w), (k, *_) = x_shape, weight_shape
    (top, _), (left, _) = window.padding
    taps = [
        (r * window.dilation[0] - top, s * window.dilation[1] - left)
        for r in range(window.kernel[0])
        for s in range(window.kernel[1])
    ]
    return _planned(
        n, groups, (c // groups, h, w), (k // groups, window.p(x_shape), window.q(x_shape)),
        window.stride, (1, 1), [(0, 0, list(enumerate(taps)))], pooled,
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def backward(window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int) -> Plan:
    """The sweep that is `conv2d_dx`: `dx[h] = sum_r dy[(h + pad - r*dilation) / stride]` where that is whole."""
    (n, c, h, w), (k, _, kernel_r, kernel_s) = x_shape, weight_shape
    (top, _), (left, _) = window.padding
    phases = []
    for a in range(min(window.stride[0], h)):
        for b in range(min(window.stride[1], w)):
            reached = [
                (r * kernel_s + s, (p // window.stride[0], q // window.stride[1]))
                for r in range(kernel_r)
                for s in range(kernel_s)
                for p, q in [(a + top - r * window.dilation[0], b + left - s * window.dilation[1])]
                if p % window.stride[0] == 0 and q % window.stride[1] == 0
            ]
            phases.append((a, b, reached))
    return _planned(
        n, groups, (k // groups, window.p(x_shape), window.q(x_shape)), (c // groups, h, w),
        (1, 1), window.stride, phases, False,
    )  # fmt: skip


def _planned(
    n: int, groups: int, source: tuple[int, int, int], target: tuple[int, int, int],
    stride: tuple[int, int], step: tuple[int, int], phases: list[tuple[int, int, list[Any]]], pooled: bool,
) -> Plan:  # fmt: skip
    (channels, height, width), (filters, rows, columns) = source, target
    reached = [at for _, _, taps in phases for _, at in taps]
    first_row, first_column = (min((at[axis] for at in reached), default=0) for axis in (0, 1))
    last_row, last_column = (max((at[axis] for at in reached), default=0) for axis in (0, 1))
    span = last_row - first_row + 1
    # Phases have as many pixels in a row as the last or one more; tiles are as even as can be.
    widest, narrowest = -(-columns // step[1]), max(1, columns // step[1])
    tiles = max(1, -(-widest // PIXELS))
    pitch = max(
        widest - 1 + (last_column - first_column) // stride[1] + 1, -(-(width - min(first_column, 0)) // stride[1]) + 1
    )
    strip_rows = -(-rows // step[0])

    def fits(strip: int) -> bool:
        copied = 4 * channels * ((strip - 1) * stride[0] + span) * stride[1] * pitch
        sums = 4 * strip * step[0] * columns * VECTORS * LANES
        return max(copied, sums) <= _STRIP

    strip = max([1, *(each for each in range(1, strip_rows + 1) if fits(each))])
    strip = min(strip, max(1, strip_rows * n * groups // _TASKS))
    # A pooling window's rows stand in one strip.
    together = 2 if pooled else 1
    strip = -(-strip // together) * together
    fewest = -(-strip_rows // strip)
    strip = -(-strip_rows // (fewest * together)) * together
    strips = -(-strip_rows // strip)
    height_of_copy = (strip - 1) * stride[0] + span
    table, offsets, order = [], [], []
    for a, b, taps in phases:
        table.append((a, b, len(offsets), len(taps)))
        for tap, (row, column) in taps:
            order.append(tap)
            phase, shift = (column - first_column) % stride[1], (column - first_column) // stride[1]
            offsets.append(4 * ((phase * height_of_copy + row - first_row) * pitch + shift))
    copies = []
    for phase in range(stride[1]):
        first = max(0, first_column)
        first += (phase + first_column - first) % stride[1]
        before = min(pitch, (first - first_column) // stride[1])
        copies.append((first, before, min(max(0, -(-(width - first) // stride[1])), pitch - before)))
    sweep = Sweep(
        groups, channels, height, width, filters, rows, columns, *stride, *step, -first_row, -first_column, span,
        len(order), height_of_copy, pitch, strip, strips, tiles, narrowest // tiles,
        _chunk(channels, span, len(order), len(phases)), int(pooled),
    )  # fmt: skip
    return Plan(sweep, *(np.array(each, np.int64) for each in (table, offsets, order, copies)))


def _chunk(channels: int, span: int, taps: int, phases: int) -> int:
    """Channels that direct convolution sums before the next: what their tile reads stays in the first-level cache."""
    if LANES == 16:  # The whole sum at once was the fastest.
        return max(1, channels)
    of_channel = 4 * VECTORS * LANES * -(-taps // max(1, phases)) + 64 * 2 * span
    most = max(1, NEAR // of_channel)
    return -(-max(1, channels) // -(-max(1, channels) // most))


def as_long_rows(window: Window, x_shape: tuple[int, ...]) -> tuple[int, ...]:
    """For a window of one pixel, which does not care where a row ends: the image with several of its rows as one."""
    return long_rows(x_shape) if window == _ONE_PIXEL else x_shape


@functools.lru_cache(maxsize=256)
def long_rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """An image with several of its rows as one."""
    n, c, h, w = shape
    together = max([1, *(rows for rows in range(1, h + 1) if h % rows == 0 and rows * w <= _LONG_ROW)])
    return n, c, h // together, w * together


_ONE_PIXEL = Window((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1))
