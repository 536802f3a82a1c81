"""When and how the kernels of direct.py are launched."""

import functools
import math
from typing import Any

from ..host.arrays import DeviceArray, image_of, steps
from ..host.driver import Kernel, multiprocessors
from ..tensor_cores.problem import Problem, division
from . import depthwise, direct
from .direct import MOST_TAPS, THREADS, Geometry

FEW, FEWER, MANY_PIXELS = 4, 2, 1024
"""Channels or filters of a group are few up to 4; under 1024 pixels, where either way takes no time, up to 2."""
SHARED_MEMORY, BLOCKS, GRADIENT_BLOCKS, MOST_GRADIENT_TAPS = 48 * 1024, 16, 4, 49
"""Bytes for a group's weights; blocks on a multiprocessor, so that many share a staging; fewer for a gradient, whose
threads add up more pixels before warps add theirs; sums that fit registers."""
MOST_SUMS, MOST_TOGETHER, MANY_TAPS = 98, 8, 32
"""Sums that fit a thread's registers beside the inputs; filters that a thread takes together; from so many taps on it
takes one row of them, and with it more filters: fewer loads for as many products."""
FEW_LINES = 128
"""Shares that four warps add as fast as more do, and more blocks of them at a time."""
TALL = 4
"""Pixels below each other of which a thread holds the inputs: rows of inputs are read once for several windows."""
_MOST_LINES = 2**16 - 1  # of a grid's second axis


def few(size: int, pixels: int) -> bool:
    """Whether so many channels or filters are few."""
    return size <= (FEW if pixels >= MANY_PIXELS else FEWER)


def padded(numbers: int) -> int:
    """How many numbers a filter takes in shared memory, which is read four at a time."""
    return -(-numbers // 4) * 4


def kind_of(problem: Problem) -> str | None:
    """Which kernel serves the problem, "channels" or "filters" being few; None if none does."""
    taps, pixels = math.prod(problem.taps), problem.images * math.prod(problem.output)
    if min(problem.images, problem.groups, problem.channels, problem.filters, *problem.output, *problem.taps) < 1:
        return None
    strides = (*problem.x_strides, *problem.y_strides, *problem.w_strides, pixels)
    if max(map(abs, strides)) * 4 * max(*problem.dilation, 1) >= 2**31 or problem.groups > _MOST_LINES:
        return None
    if few(problem.channels, pixels) and problem.channels * taps <= MOST_TAPS:
        staged = 4 * problem.filters * padded(problem.channels * taps + 1)
        return "channels" if staged <= SHARED_MEMORY else None
    if few(problem.filters, pixels) and taps <= MOST_GRADIENT_TAPS:
        is_staged = _staged_filters(problem) > 0
        return "filters" if is_staged and problem.groups * problem.filters <= _MOST_LINES else None
    return None


def _staged_filters(problem: Problem) -> int:
    """Of few filters those that a thread takes: all, or one, or none if the shared memory does not hold its weights."""
    bytes_ = 4 * problem.channels * padded(math.prod(problem.taps))
    return next((each for each in (problem.filters, 1) if bytes_ * each <= SHARED_MEMORY), 0)


def serves(problem: Problem) -> bool:
    """Whether few channels or few filters make the direct kernels the faster ones."""
    return kind_of(problem) is not None


def _together(problem: Problem) -> tuple[int, int]:
    """How many pixels below each other a thread takes, and how many rows of inputs lie from one to the next."""
    step, (rows, row) = problem.stride[0], problem.taps
    is_close = problem.dilation[0] == 1 and problem.output[0] >= TALL
    if is_close and problem.channels * (rows + (TALL - 1) * step) * row <= MOST_TAPS:
        return TALL, step
    return 1, 1


@functools.cache
def _kernel(kind: str, count: int, rows: int, row: int, tall: int = 1, step: int = 1) -> Kernel:
    if kind == "filters":
        function, key = direct.few_filters(count, rows, row), (count, rows, row)
    else:
        function = direct.few_channels(count, rows, row, tall, step)
        key = (count, rows, row, tall, step)
    return Kernel(f"direct {kind} {key}", function, direct.ARGUMENTS, THREADS)


@functools.cache
def _gradient_kernel(rows: int, row: int, filters: int, height: int) -> Kernel:
    function = direct.few_channels_gradient(rows, row, filters, height)
    return Kernel(f"direct gradient {rows, row, filters, height}", function, direct.GRADIENT, THREADS)


@functools.cache
def add_shares(warps: int) -> Kernel:
    """Compiled when first launched."""
    return Kernel(f"sum_of_shares {warps}", direct.sum_of_shares(warps), direct.SUM, 32 * warps)


def sum_up(
    shares: DeviceArray, result: DeviceArray, lines: int, stream: int, behind: DeviceArray | None = None
) -> None:
    """Add so many shares of the result, and of what lies behind it in each."""
    size = result.size + (0 if behind is None else behind.size)
    following = 0 if behind is None else behind.address
    add_shares(4 if lines <= FEW_LINES else 32)(
        -(-size // 32), stream, shares.address, result.address, following, result.size, lines, size
    )


def _geometry(problem: Problem, rectify: bool = False, tall: int = 1) -> Geometry:
    p, q = problem.output
    pixels = -(-p // tall) * q
    return Geometry(
        problem.images, problem.channels, problem.filters, *problem.image, *problem.x_strides, *problem.stride,
        *problem.before, *problem.dilation, *problem.w_strides, p, q, *division(q), pixels, *division(pixels),
        *problem.y_strides, int(rectify),
    )  # fmt: skip


def _patch_of(problem: Problem) -> int:
    """Rows of the patches in which depthwise.py computes a problem that is served here; 0 if it does not."""
    is_depthwise = (problem.channels, problem.filters) == (1, 1) and problem.groups > 1
    is_close = (problem.stride, problem.dilation) == ((1, 1), (1, 1))
    return depthwise.tall_of(problem.taps, problem.output, MOST_TAPS) if is_depthwise and is_close else 0


def _patches(problem: Problem, tall: int, rectify: bool = False) -> depthwise.Geometry:
    p, q = problem.output
    across, (w_group, _, _, w_r, w_s) = -(-q // depthwise.WIDE), problem.w_strides
    patches = -(-p // tall) * across
    return depthwise.Geometry(
        problem.images, *problem.image, *problem.x_strides, *problem.before, w_group, w_r, w_s, p, q,
        *problem.y_strides, across, *division(across), patches, *division(patches), int(rectify),
    )  # fmt: skip


def _blocks(problem: Problem, patches: depthwise.Geometry, most: int, x: DeviceArray) -> int:
    """Of threads for each channel, up to so many on a multiprocessor."""
    whole = -(-problem.images * patches.patches // depthwise.THREADS)
    return min(whole, max(1, most * multiprocessors(x.place.device) // problem.groups))


@functools.cache
def _depthwise(rows: int, row: int, tall: int) -> Kernel:
    kernel = depthwise.forward_of(rows, row, tall)
    return Kernel(f"depthwise {rows, row, tall}", kernel, depthwise.ARGUMENTS, depthwise.THREADS)


@functools.cache
def _depthwise_gradient(rows: int, row: int, tall: int) -> Kernel:
    kernel = depthwise.gradient_of(rows, row, tall)
    return Kernel(f"depthwise gradient {rows, row, tall}", kernel, depthwise.GRADIENT, depthwise.THREADS)


def convolve(
    x: DeviceArray, weight: DeviceArray, bias: DeviceArray | None, y: DeviceArray, problem: Problem,
    first_pixel: int = 0, first_tap: int = 0, rectify: bool = False,
) -> None:  # fmt: skip
    """Launch the kernel for a problem that it serves."""
    tall = _patch_of(problem)
    its_weight, its_bias, its_y = (
        weight.address + 4 * first_tap, bias.address if bias is not None else 0, y.address + 4 * first_pixel
    )  # fmt: skip
    if tall > 0:
        patches = _patches(problem, tall, rectify)
        blocks = _blocks(problem, patches, BLOCKS, x), problem.groups
        _depthwise(*problem.taps, tall)(blocks, x.place.stream, x.address, its_weight, its_bias, its_y, patches)
        return
    kind = kind_of(problem)
    assert kind is not None
    filters = _staged_filters(problem) if kind == "filters" else problem.filters
    lines = problem.groups * problem.filters // filters
    staged = problem.channels * filters if kind == "filters" else filters
    taps = math.prod(problem.taps)
    numbers = taps if kind == "filters" else problem.channels * taps + 1
    tall, step = _together(problem) if kind == "channels" else (1, 1)
    geometry = _geometry(problem, rectify, tall)
    pixels = problem.images * geometry.pixels
    blocks = min(-(-pixels // THREADS), max(1, BLOCKS * multiprocessors(x.place.device) // lines))
    _kernel(kind, problem.channels if kind == "channels" else filters, *problem.taps, tall, step)(
        (blocks, lines), x.place.stream, x.address, its_weight, its_bias, its_y, geometry,
        shared=4 * staged * padded(numbers),
    )  # fmt: skip


def serves_gradient(x: DeviceArray, dy: DeviceArray, dweight: DeviceArray, groups: int) -> bool:
    """Whether few channels in a group make the direct weight gradient the faster one."""
    filters, channels, rows, row = dweight.shape
    pixels = dy.shape[0] * dy.shape[2] * dy.shape[3]
    if 0 in (*x.shape, *dy.shape, *dweight.shape) or filters * channels * rows > _MOST_LINES:
        return False
    span = max(map(abs, (*x.strides, *dy.strides, pixels)))
    return few(channels, pixels) and rows * row <= MOST_GRADIENT_TAPS and span < 2**31 and groups > 0


def weight_gradient(dy: DeviceArray, x: DeviceArray, dweight: DeviceArray, window: Any, groups: int) -> None:
    """Launch the gradient, each warp summing a share of the pixels, and the sum of the shares."""
    filters, channels, height, row = dweight.shape
    problem = Problem(
        x.shape[0], groups, channels, filters // groups, (height, row), image_of(x), image_of(dy), window.stride,
        (window.padding[0][0], window.padding[1][0]), window.dilation, steps(x), (0, 0, 0, 0, 0), steps(dy),
    )  # fmt: skip
    stream, tall = x.place.stream, _patch_of(problem)
    if tall > 0:
        patches = _patches(problem, tall)
        blocks = _blocks(problem, patches, GRADIENT_BLOCKS, x)
        lines = blocks * depthwise.THREADS // 32
        shares = x.place.empty((lines * dweight.size,), "float32")
        _depthwise_gradient(height, row, tall)((blocks, groups), stream, x.address, dy.address, shares.address, patches)
        sum_up(shares, dweight, lines, stream)
        return
    pixels = problem.images * math.prod(problem.output)
    rows = height if height * row < MANY_TAPS else 1
    together = max(1, min(problem.filters, MOST_SUMS // (rows * row), MOST_TOGETHER))
    parts = groups * channels * height // rows * -(-problem.filters // together)
    blocks = min(-(-pixels // THREADS), max(1, GRADIENT_BLOCKS * multiprocessors(x.place.device) // parts))
    lines = blocks * THREADS // 32
    shares = x.place.empty((lines * dweight.size,), "float32")
    _gradient_kernel(rows, row, together, height)(
        (blocks, parts), stream, x.address, dy.address, shares.address, _geometry(problem)
    )
    sum_up(shares, dweight, lines, stream)
