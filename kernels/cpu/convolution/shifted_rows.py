"""Convolution and its gradients as sums of shifted, scaled rows: the plain rung, for any float and any geometry.

The padded image is kept as `Planes`: for stride 2 four images, of the even and odd rows and columns. There
neighbouring outputs read neighbouring inputs whatever stride and dilation are, and a filter tap is one constant offset,
so every inner loop runs down memory without a bounds test and vectorises.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import prange

from kernelproof.spec import Window

from ..launch import add_scaled, launch, parallel, ready, serial

_STRIP = 1024
"""Sums that one pass over the taps carries: they stay in the first-level cache."""


@dataclass(frozen=True)
class Planes:
    """The padded image split by phase: `plane[a,b,i,j] = x[i*stride + a - padding, j*stride + b - padding]`.

    Outside x it is zero. Output (p, q) is tied to the flat position `p*pitch + q`; a tap reads `offsets[tap]` further.
    """

    shape: tuple[int, int, int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    offsets: np.ndarray | None = None

    @staticmethod
    def of(window: Window, x_shape: tuple[int, ...]) -> "Planes":
        # Tap r reads row p*stride + r*dilation of the padded image: row p + shift of phase r*dilation - shift*stride.
        (shift_r, phase_r), (shift_s, phase_s) = (
            np.divmod(np.arange(kernel) * dilation, stride)
            for kernel, dilation, stride in zip(window.kernel, window.dilation, window.stride, strict=True)
        )
        i, j = window.p(x_shape) + int(shift_r[-1]), window.q(x_shape) + int(shift_s[-1])
        a, b = int(phase_r.max()) + 1, int(phase_s.max()) + 1
        offsets = ((phase_r[:, None] * b + phase_s) * i + shift_r[:, None]) * j + shift_s
        (top, _), (left, _) = window.padding
        return Planes((a, b, i, j), window.stride, (top, left), offsets.reshape(-1))

    @property
    def pitch(self) -> int:
        return self.shape[3]

    def split(self, x: np.ndarray) -> np.ndarray:
        """`[n,c,position]`: every channel of x in this layout."""
        n, c, h, w = x.shape
        planes = np.empty((n, c, math.prod(self.shape)), x.dtype.newbyteorder("="))
        launch(
            _split_channels, n * c, planes[:1, :1].size, ready(x).reshape(n * c, h, w),
            planes.reshape(n * c, *self.shape), self.stride, self.padding,
        )  # fmt: skip
        return planes

    def pitched(self, dy: np.ndarray) -> np.ndarray:
        """`[n,k,p*pitch + q]`: dy at the positions that its elements are tied to, zeros between its columns."""
        return Planes((1, 1, dy.shape[2], self.pitch)).split(dy)


def conv2d(x: Any, weight: Any, bias: Any, window: Window, groups: int) -> Any:
    """Parallel over images and filters; channels, then taps row-major, bias last, accumulated in the arrays' type.

    Copies x once, padded; any layout. Padding is multiplied, as in the specification.
    """
    (n, c), (k, _, r, s) = x.shape[:2], weight.shape
    planes = Planes.of(window, x.shape)
    y = np.empty((n, k, window.p(x.shape), window.q(x.shape)), x.dtype.newbyteorder("="))
    bias = np.zeros(k, y.dtype) if bias is None else bias
    launch(
        _conv2d, n * k, weight[0].size * y[:1, 0].size, planes.split(x),
        ready(weight).reshape(k, c // groups, r * s), ready(bias), y, planes.offsets, planes.pitch,
    )  # fmt: skip
    return y


def conv2d_dx(dy: Any, weight: Any, x_shape: tuple[int, ...], window: Window, groups: int) -> Any:
    """Parallel over images and channels; filters, then taps row-major, accumulated in the arrays' type.

    Each task adds dy into its own padded channel, then drops the padding. Copies dy once; any layout.
    """
    (n, c), (k, _, r, s) = x_shape[:2], weight.shape
    planes = Planes.of(window, x_shape)
    dx = np.empty(x_shape, dy.dtype.newbyteorder("="))
    launch(
        _conv2d_dx, n * c, weight[:, 0].size // groups * dy[:1, 0].size, planes.pitched(dy),
        ready(weight).reshape(k, c // groups, r * s), dx, dy.shape[2:], groups, planes.offsets, planes.shape,
        planes.stride, planes.padding,
    )  # fmt: skip
    return dx


def conv2d_dweight(dy: Any, x: Any, weight_shape: tuple[int, ...], window: Window, groups: int) -> Any:
    """Parallel over filters, channels and taps; every position is summed over the images, then rows, then columns in
    rising order, all in the arrays' type.

    Copies x once, padded, and dy once; any layout. Padding is multiplied, as in the specification.
    """
    k, c_of_group, r, s = weight_shape
    planes = Planes.of(window, x.shape)
    dweight = np.empty(weight_shape, dy.dtype.newbyteorder("="))
    launch(
        _conv2d_dweight, dweight.size, dy[:, 0].size, planes.pitched(dy), planes.split(x),
        dweight.reshape(k, c_of_group, r * s), dy.shape[2:], planes.offsets, planes.pitch,
    )  # fmt: skip
    return dweight


@parallel
def _split_channels(first, last, x, split, stride, padding):
    for task in prange(first, last):
        _split_channel(x[task], split[task], stride, padding)


@serial
def _split_channel(x, plane, stride, padding):
    """`plane[a,b,i,j] = x[i*stride + a - pad, j*stride + b - pad]`, zero where that is outside x."""
    plane[:] = 0
    for a in range(plane.shape[0]):
        i, h = _inside(a - padding[0], stride[0], plane.shape[2], x.shape[0])
        for b in range(plane.shape[1]):
            j, w = _inside(b - padding[1], stride[1], plane.shape[3], x.shape[1])
            plane[a, b, i, j] = x[h, w]


@serial
def _join_channel(plane, x, stride, padding):
    """The transpose of `_split_channel`: drops the padding; positions of x that stand in no plane become zero."""
    x[:] = 0
    for a in range(plane.shape[0]):
        i, h = _inside(a - padding[0], stride[0], plane.shape[2], x.shape[0])
        for b in range(plane.shape[1]):
            j, w = _inside(b - padding[1], stride[1], plane.shape[3], x.shape[1])
            x[h, w] = plane[a, b, i, j]


@serial
def _inside(start, stride, count, size):
    """Slices of `i < count` with `0 <= start + i*stride < size`, and of those positions."""
    first = min(count, max(0, -(start // stride)))
    last = max(first, min(count, (size - 1 - start) // stride + 1))
    h = start + first * stride
    return slice(first, last), slice(h, h + (last - first) * stride, stride)


@parallel
def _conv2d(first, last, split, weight, bias, y, offsets, pitch):
    filters = len(weight)
    for task in prange(first, last):
        n, k = task // filters, task % filters
        channels = weight.shape[1]
        c = k // (filters * channels // split.shape[1]) * channels
        _filter_image(split[n, c : c + channels], weight[k], bias[k], y[n, k], offsets, pitch)


@serial
def _filter_image(split, weight, bias, y, offsets, pitch):
    """Strip by strip of whole rows: sums run over the pitch, between y's columns too, and only y's columns are kept."""
    rows, columns = y.shape
    strip = max(1, min(rows, _STRIP // pitch))
    total = np.empty((strip - 1) * pitch + columns, y.dtype)
    for start in range(0, rows, strip):
        height = min(strip, rows - start)
        sums = total[: (height - 1) * pitch + columns]
        sums[:] = 0
        for c in range(len(weight)):
            for tap in range(len(offsets)):
                begin = offsets[tap] + start * pitch
                add_scaled(sums, weight[c, tap], split[c, begin : begin + len(sums)])
        for p in range(height):
            for q in range(columns):
                y[start + p, q] = sums[p * pitch + q] + bias


@parallel
def _conv2d_dx(first, last, dy, weight, dx, y_shape, groups, offsets, shape, stride, padding):
    for task in prange(first, last):
        n, c = task // dx.shape[1], task % dx.shape[1]
        channels, filters = weight.shape[1], len(weight) // groups
        k = c // channels * filters
        _channel_image(
            dy[n, k : k + filters], weight[k : k + filters, c % channels], dx[n, c],
            y_shape, offsets, shape, stride, padding,
        )  # fmt: skip


@serial
def _channel_image(dy, weight, dx, y_shape, offsets, shape, stride, padding):
    """The group's filters in rising order, summed in a plane of the task's own, which is then put together."""
    plane = np.zeros(shape, dx.dtype)
    for k in range(len(weight)):
        _spread(dy[k], weight[k], plane.reshape(plane.size), y_shape, offsets, shape[3])
    _join_channel(plane, dx, stride, padding)


@serial
def _spread(dy, weight, plane, y_shape, offsets, pitch):
    """`plane[offsets[tap] + p*pitch + q] += weight[tap] * dy[p*pitch + q]`"""
    rows, columns = y_shape
    length = (rows - 1) * pitch + columns
    for tap in range(len(offsets)):
        # Between the columns stand zeros: they add nothing, except to an infinite or NaN weight.
        run, step = (length, length) if math.isfinite(weight[tap]) else (columns, pitch)
        for position in range(0, length, step):
            begin = offsets[tap] + position
            add_scaled(plane[begin : begin + run], weight[tap], dy[position : position + run])


@parallel
def _conv2d_dweight(first, last, dy, split, dweight, y_shape, offsets, pitch):
    filters, channels, taps = dweight.shape
    for task in prange(first, last):
        k, c, tap = task // (channels * taps), task // taps % channels, task % taps
        channel = k // (filters * channels // split.shape[1]) * channels + c
        dweight[k, c, tap] = _correlation(dy, k, split, channel, y_shape, offsets[tap], pitch)


@serial
def _correlation(dy, k, split, channel, y_shape, offset, pitch):
    """`sum_npq dy[n, k, p*pitch + q] * split[n, channel, offset + p*pitch + q]`, by strips of whole rows."""
    rows, columns = y_shape
    strip = max(1, min(rows, _STRIP // pitch))
    products = np.empty((strip - 1) * pitch + columns, dy.dtype)
    sums = np.zeros(columns, dy.dtype)
    for start in range(0, rows, strip):
        height = min(strip, rows - start)
        begin, end = start * pitch, (start + height - 1) * pitch + columns
        products[:] = 0
        for n in range(len(dy)):
            _add_products(
                products[: end - begin], dy[n, k, begin:end], split[n, channel, offset + begin : offset + end]
            )
        for p in range(height):  # What stands between the columns is left behind.
            add_scaled(sums, 1, products[p * pitch : p * pitch + columns])
    return _total(sums)


@serial
def _add_products(sums, a, b):
    for i in range(len(sums)):
        sums[i] += a[i] * b[i]


@serial
def _total(sums):
    total = sums.dtype.type(0)
    for i in range(len(sums)):
        total += sums[i]
    return total
