"""Depthwise convolution and its gradients: every channel has one filter of its own, and an image is a task.

The image is copied, padded, into a scratch that stays in the nearest cache; there `stencil` holds the sums of some rows
of pixels in registers, so that a vector that is loaded serves every row whose filter reaches it. There is so little
arithmetic that memory decides: the next image is prefetched, and a result too large for the caches is stored past them.
Measured beside others in docs/cpu.md, shape C.
"""

from typing import Any, NamedTuple

import numpy as np

from kernelproof.spec import Window

from ..launch import in_turn, ready, serial, share, threads
from ..vectors import LANES, call, take
from ..workers import on_workers
from ..workspace import borrowed, empty, in_lines
from .stencils import add_lanes, copy_image, reach, spread, stencil, stencil_dweight

_ROWS = 4
"""Rows of pixels whose sums are in registers."""

_LARGE = 2**23
"""Bytes of a result that is not looked for in the caches."""

_TOGETHER = 8
"""Channels of the weight gradient in one task, at most."""

_TAPS = 9
"""The most of a filter: they are written out one by one."""


def applies(operator: str, window: Window, weight_shape: tuple[int, ...], groups: int) -> bool:
    """Whether this file can compute `operator`, one of conv2d, conv2d_dx and conv2d_dweight."""
    (k, c_of_group, r, s), (top, _), (left, _) = weight_shape, *window.padding
    if (k, c_of_group) != (groups, 1) or window.dilation != (1, 1) or r * s > _TAPS or window.stride[1] > 2:
        return False
    if operator != "conv2d_dx":
        return True
    return (window.stride == (1, 1) and top < r and left < s) or window.stride == (2, 2)


class Image(NamedTuple):
    """An image of `height` x `width` in a scratch of `rows` rows, `pitch` apart; `top` and `left` from its corner.

    It is read from column `origin` on, so that its own columns are whole lines of the cache.
    """

    height: int
    width: int
    top: int
    left: int
    origin: int
    rows: int
    pitch: int

    @property
    def floats(self) -> int:
        """With what whole vectors may read behind it."""
        return in_lines((self.rows + 1) * self.pitch + 8 * LANES)


def _image(height: int, width: int, top: int, left: int, rows: int, columns: int) -> Image:
    """So that all of `rows` x `columns` may be read, zero where it is not the image."""
    margin = -(-left // LANES) * LANES
    pitch = max(margin - left + columns, margin + width)
    return Image(height, width, top, margin, margin - left, max(rows, top + height), -(-pitch // LANES) * LANES)


def workspace(window: Window, x_shape: tuple[int, ...], workers: int) -> int:
    """Bytes that so many threads work in, at most: an image each, the larger of x's and dy's, padded."""
    rows, columns = (size + window.extent(axis) + sum(window.padding[axis]) for axis, size in enumerate(x_shape[2:]))
    return (
        4 * workers * (in_lines((rows + 1) * (columns + 2 * LANES) + 8 * LANES) + in_lines(_TOGETHER * _TAPS * LANES))
    )


def conv2d(x: Any, weight: Any, bias: Any, window: Window, groups: int, relu: bool = False) -> Any:
    """y; in parallel over images and channels; each element is one chain of fused multiply-adds, bias first."""
    starts = np.zeros(groups, np.float32) if bias is None else bias
    y = empty((len(x), groups, window.p(x.shape), window.q(x.shape)))
    return _filtered(ready(x), ready(weight), ready(starts), y, window, relu)


def conv2d_dx(dy: Any, weight: Any, x_shape: tuple[int, ...], window: Window, groups: int) -> Any:
    """dx; in parallel over images and channels; each element is one chain of fused multiply-adds over the taps."""
    (r, s), (top, _), (left, _) = window.kernel, *window.padding
    dx = empty(x_shape)
    if window.stride == (1, 1):
        # dy filtered with the taps in reverse; padding of as much as they reach beyond it.
        around = Window(window.kernel, (1, 1), ((r - 1 - top, r), (s - 1 - left, s)))
        turned = ready(weight[:, :, ::-1, ::-1])
        return _filtered(ready(dy), turned, np.zeros(groups, np.float32), dx, around, False)
    (high_r, low_r), (high_s, low_s) = reach(r, top), reach(s, left)
    first = max(0, -low_r), max(0, -low_s)
    (h, w), (p, q) = x_shape[2:], dy.shape[2:]
    image = _image(
        p,
        q,
        max(0, low_r),
        max(0, low_s),
        first[0] + -(-h // 2) + high_r + low_r,
        first[1] + -(-w // 2) + high_s + low_s,
    )
    constants = {"kernel_r": r, "kernel_s": s, "top": top, "left": left}
    routines = np.array(
        [
            copy_image.address(inner=0),
            copy_image.address(inner=1),
            *(spread.address(odd=odd, **constants) for odd in (0, 1)),
        ]
    )
    with borrowed(threads() * image.floats) as memory:
        share(
            _spread, len(dy) * groups, 8 * h * w * r * s, ready(dy), ready(weight), dx, memory, image.floats, image,
            first[0] * image.pitch + first[1] + image.origin, routines,
        )  # fmt: skip
    return dx


def conv2d_dweight(dy: Any, x: Any, weight_shape: tuple[int, ...], window: Window, groups: int) -> Any:
    """dweight; in parallel over channels; in each of `LANES` lanes one chain over the images, then their pixels.

    The lanes are added last, halves to halves.
    """
    (r, s), (p, q) = window.kernel, dy.shape[2:]
    image = _padded(x.shape[2:], window, p, q)
    constants = {"kernel_r": r, "kernel_s": s, "row_step": window.stride[0], "step": window.stride[1]}
    routines = np.array(
        [
            copy_image.address(inner=0),
            copy_image.address(inner=1),
            *(stencil_dweight.address(rows=rows, **constants) for rows in (_ROWS, 1)),
            add_lanes.address(),
        ]
    )
    dweight = np.empty(weight_shape, np.float32)
    # Channels in one task: their images are neighbours in memory.
    together = max(1, min(_TOGETHER, groups // (4 * threads())))
    scratch = image.floats + in_lines(together * r * s * LANES)
    with borrowed(threads() * scratch) as memory:
        share(
            _dweight, -(-groups // together), 8 * together * len(x) * p * q * r * s, ready(dy), ready(x), dweight,
            memory, scratch, image, window.stride[0], together, routines,
        )  # fmt: skip
    return dweight


def _padded(size: tuple[int, int], window: Window, p: int, q: int) -> Image:
    """x as forward pass and weight gradient read it."""
    (top, _), (left, _) = window.padding
    rows, columns = ((outputs - 1) * window.stride[axis] + window.kernel[axis] for axis, outputs in enumerate((p, q)))
    return _image(*size, top, left, rows, columns)


def _filtered(x: Any, weight: Any, starts: Any, y: Any, window: Window, relu: bool) -> Any:
    p, q = y.shape[2:]
    image = _padded(x.shape[2:], window, p, q)
    past = y.nbytes >= _LARGE and q % LANES == 0
    constants = {
        "kernel_r": window.kernel[0], "kernel_s": window.kernel[1], "row_step": window.stride[0],
        "step": window.stride[1], "relu": int(relu), "past": int(past),
    }  # fmt: skip
    routines = np.array(
        [
            copy_image.address(inner=0),
            copy_image.address(inner=1),
            *(stencil.address(rows=rows, **constants) for rows in (_ROWS, 1)),
        ]
    )
    with borrowed(threads() * image.floats) as memory:
        share(
            _filter, y.shape[0] * y.shape[1], 8 * y[:1, :1].size * weight[0].size, x, weight, starts, y, memory,
            image.floats, image, window.stride[0], routines,
        )  # fmt: skip
    return y


@in_turn
def _filter(workers, counter, last, x, weight, starts, y, memory, scratch, image, row_step, routines):
    on_workers(
        workers, _filter_worker, (counter, last, x, weight, starts, y, memory, scratch, image, row_step, routines)
    )


@serial
def _filter_worker(worker, counter, last, x, weight, starts, y, memory, scratch, image, row_step, routines):
    _, channels, p, q = y.shape
    step, of_filter = 4 * image.pitch, 4 * weight.shape[2] * weight.shape[3]
    memory[worker * scratch : (worker + 1) * scratch] = 0
    own = memory.ctypes.data + 4 * worker * scratch
    task = take(counter)
    while task < last:
        _copy(x, task, own, image, routines)
        c, at, done = task % channels, y.ctypes.data + 4 * p * q * task, p // _ROWS * _ROWS
        factors, start = weight.ctypes.data + of_filter * c, starts.ctypes.data + 4 * c
        corner = own + 4 * image.origin
        call(routines[2], (corner, step, factors, start, at, 4 * q, q, p // _ROWS))
        call(routines[3], (
            corner + done * row_step * step, step, factors, start, at + 4 * done * q, 4 * q, q, p - done,
        ))  # fmt: skip
        # What was stored past the caches is in order with this, which is atomic.
        task = take(counter)


@serial
def _copy(x, task, own, image, routines):
    """An image into the middle of zeros that are there already: rows clear what is to their right, and no more."""
    floats = image.height * image.width
    is_inner = (x.shape[0] * x.shape[1] - 1 - task) * floats >= LANES
    call(routines[int(is_inner)], (
        x.ctypes.data + 4 * floats * task, 4 * image.width, image.height, image.width,
        own + 4 * (image.top * image.pitch + image.left), 4 * image.pitch, image.pitch, 4 * floats,
    ))  # fmt: skip


@in_turn
def _spread(workers, counter, last, dy, weight, dx, memory, scratch, image, first, routines):
    on_workers(workers, _spread_worker, (counter, last, dy, weight, dx, memory, scratch, image, first, routines))


@serial
def _spread_worker(worker, counter, last, dy, weight, dx, memory, scratch, image, first, routines):
    _, channels, h, w = dx.shape
    of_filter = 4 * weight.shape[2] * weight.shape[3]
    memory[worker * scratch : (worker + 1) * scratch] = 0
    own = memory.ctypes.data + 4 * worker * scratch
    task = take(counter)
    while task < last:
        _copy(dy, task, own, image, routines)
        at, factors, pairs = (
            dx.ctypes.data + 4 * h * w * task,
            weight.ctypes.data + of_filter * (task % channels),
            h // 2,
        )
        call(routines[2], (own + 4 * first, 4 * image.pitch, factors, at, 4 * w, w, pairs))
        call(routines[3], (
            own + 4 * (first + pairs * image.pitch), 4 * image.pitch, factors, at + 8 * pairs * w, 4 * w, w, h % 2,
        ))  # fmt: skip
        task = take(counter)


@in_turn
def _dweight(workers, counter, last, dy, x, dweight, memory, scratch, image, row_step, together, routines):
    on_workers(
        workers, _dweight_worker, (counter, last, dy, x, dweight, memory, scratch, image, row_step, together, routines)
    )


@serial
def _dweight_worker(worker, counter, last, dy, x, dweight, memory, scratch, image, row_step, together, routines):
    channels, of_filter = dy.shape[1], dweight.shape[2] * dweight.shape[3]
    own = memory[worker * scratch : (worker + 1) * scratch]
    own[:] = 0
    task = take(counter)
    while task < last:
        first = task * together
        count = min(together, channels - first)
        sums = own[scratch - together * of_filter * LANES :]
        sums[:] = 0
        for n in range(dy.shape[0]):
            for c in range(count):
                _image_dweight(
                    dy, x, n * channels + first + c, own.ctypes.data, sums.ctypes.data + 4 * of_filter * LANES * c,
                    image, row_step, routines,
                )  # fmt: skip
        at = dweight.ctypes.data + 4 * of_filter * first
        call(routines[4], (sums.ctypes.data, of_filter * count, at))
        task = take(counter)


@serial
def _image_dweight(dy, x, task, own, sums, image, row_step, routines):
    """One image's share of its channel's sums."""
    _copy(x, task, own, image, routines)
    p, q = dy.shape[2:]
    own += 4 * image.origin
    step, at, done = 4 * image.pitch, dy.ctypes.data + 4 * p * q * task, p // _ROWS * _ROWS
    call(routines[2], (own, step, at, 4 * q, q, p // _ROWS, 4 * p * q, sums))
    call(routines[3], (own + done * row_step * step, step, at + 4 * done * q, 4 * q, q, p - done, 4 * p * q, sums))
