"""Which rows and columns of an image max pooling reads, and how its planes are cut into vectors."""

import functools
from typing import NamedTuple

import numpy as np

from kernelproof.spec import Window

from .pool_vectors import columns_of
from .unpool_vectors import Spread
from .vectors import LANES

_STACK = 2**14
"""Floats of images that are pooled as one plane."""


class Reads(NamedTuple):
    """`rows[p]`, `columns[q]`: first and last position that is read, in steps of the dilations."""

    rows: np.ndarray
    columns: np.ndarray
    row_dilation: int
    column_dilation: int


class Plan(NamedTuple):
    """How `planes` of so many rows and columns of x are pooled on vectors: images, or several below each other.

    `rows[p]` as in Reads: rows `begin .. end - 1` read no padding, of which there is `left` in a row. `blocks` cuts a
    row of windows. Whole vectors stay within `reach` floats of a plane.
    """

    planes: int
    height: int
    width: int
    rows: np.ndarray
    begin: int
    end: int
    columns: int
    left: int
    blocks: np.ndarray
    reach: int
    dilation: int
    stride: int


@functools.lru_cache(maxsize=256)
def reads(window: Window, x_shape: tuple[int, ...]) -> Reads:
    """What every output row and column reads."""
    ends = []
    for axis, size in enumerate(x_shape[-2:]):
        position, inside = window.positions(axis, size), window.inside(axis, size)
        first, last = inside.argmax(axis=1), position.shape[1] - 1 - inside[:, ::-1].argmax(axis=1)
        ends.append(np.take_along_axis(position, np.stack([first, last], axis=1), axis=1))
    rows, columns = ends
    return Reads(rows, columns, *window.dilation)


@functools.lru_cache(maxsize=256)
def plan_of(window: Window, x_shape: tuple[int, ...], is_stacked: bool) -> Plan:
    """How x is pooled. Images are stacked if that is allowed and no window would reach from one into another."""
    n, c, h, w = x_shape
    planes, times = n * c, 1
    if is_stacked and planes and window.p(x_shape) * window.stride[0] == h and window.inside(0, h).all():
        times = max(each for each in range(1, max(1, min(planes, _STACK // (h * w))) + 1) if planes % each == 0)
    shape = times * h, w
    read, left, columns = reads(window, shape), window.padding[1][0], window.kernel[1]
    (begin, end), ends = (_unpadded(window, axis, size) for axis, size in enumerate(shape))
    blocks = columns_of(w, left, len(read.columns), *ends, columns, window.stride[1])
    return Plan(
        planes // times, *shape, read.rows, begin, end, len(read.columns), left, blocks,
        left + columns + 16 * LANES, window.dilation[0], window.stride[0],
    )  # fmt: skip


def _unpadded(window: Window, axis: int, size: int) -> tuple[int, int]:
    """The first window along an axis that reads no padding, and the one behind the last."""
    whole = window.inside(axis, size).all(axis=1)
    begin = int(whole.argmax())
    return begin, begin + int(whole.sum())


@functools.lru_cache(maxsize=256)
def spread_of(window: Window, x_shape: tuple[int, ...]) -> Spread:
    """The tables of the gradient for planes of that shape."""
    return Spread.of(window, x_shape, reads(window, x_shape).rows)
