"""Winograd convolution of 3x3 filters on the micro-kernel, forward and input gradient: 2.25 or 4 times fewer products.

Input tiles are turned to a lane for each channel and transformed, which leaves a matrix of tiles x channels for each
point; `multiply` multiplies it by the point's matrix of channels x filters, a panel of filters at a time; the products
are transformed back and turned into rows of y. There are two orders, so that what is used most often stays near:

By tiles, where weights are few: all weights are transformed, then a task is some rows of tiles, so few that their
points and products stay in the second-level cache while the weights of all panels pass by.

By panels, where weights are many: some tiles are transformed by all threads, then a task is a panel of filters, which
transforms its own weights, some channels at a time, and multiplies them while they are in the second-level cache.

Tiles mix what they hold, so one NaN or infinity would spread: what is not finite is found as it is written, and images
that have some are done again by direct convolution, which puts it where the specification does.
"""

import functools
import itertools
from typing import Any, NamedTuple

import numpy as np

from kernelproof.kernels.winograd_matrices import TAPS
from kernelproof.spec import Window

from ..launch import launch, ready, record, share, threads
from ..micro_kernels import PIXELS, VECTORS, claim_lines, clear, from_lanes, multiply, pool_lanes, to_lanes
from ..vectors import LANES
from ..workspace import borrowed, in_lines
from . import direct
from .winograd_orders import TURNED, by_panels, by_tiles
from .winograd_products import Parts, Products, Routines
from .winograd_tiles import Tiles, block_of, rows_of_tiles, tiles_of
from .winograd_transforms import input_to_points, points_to_output, turned_weight_to_points, weight_to_points

_NEAR = 2**18
"""Bytes of a task's input points, by tiles, if it has tiles enough to be worth the walk through all weights."""

_WEIGHTS = 2**22
"""Bytes of all weights' points from which on a panel makes its own."""

_TILES = 128
"""Tiles that are multiplied at a time, by panels."""

_CHUNK = 128
"""Channels that are multiplied at a time, by panels."""

_OVERHEAD = 8
"""Tiles in whose time a panel transforms its weights."""


class Tiling(NamedTuple):
    """A convolution: its tiles, its products, their order, and how many tiles a task or batch of panels has at most."""

    x: Tiles
    its: Products
    by_panels: bool

    @property
    def points(self) -> int:
        return (self.x.size + TAPS - 1) ** 2

    @property
    def shared(self) -> int:
        """Floats of all weights, or of the points of a batch of tiles."""
        if self.by_panels:
            return self.x.groups * self.x.floats
        return self.x.groups * self.its.panels * self.points * self.its.weights

    @property
    def scratch(self) -> tuple[int, int, int, int, int]:
        """Floats that a thread works in: points or weights, products, what is being turned, turned rows, flags."""
        x, its = self.x, self.its
        return (
            self.points * (its.weights if self.by_panels else x.point),
            self.points * its.products,
            max(x.copy, in_lines(TURNED * TAPS**2 * LANES)),
            # Half as much again for maxima and their places, and a square of each that is turned whole.
            its.turned + bool(its.winners) * (its.turned // 2 + 2 * LANES * LANES),
            in_lines(x.together * LANES),
        )


def applies(operator: str, window: Window) -> bool:
    """Whether a convolution or gradient with this window is one that Winograd's transforms compute."""
    plain = window.kernel == (TAPS, TAPS) and window.stride == (1, 1) and window.dilation == (1, 1)
    # The input gradient is a convolution padded by what the window's padding lacks to two.
    return plain and (operator != "conv2d_dx" or max(max(sides) for sides in window.padding) < TAPS)


def conv2d(x: Any, weight: Any, bias: Any, window: Window, groups: int, size: int, relu: bool = False) -> Any:
    """y by tiles of size x size; parallel over rows of tiles, or filters. A point's product is one chain over channels.

    The bias is added last.
    """
    x, weight = ready(x), ready(weight)
    work = _forward(window, x.shape, weight.shape, groups, size, threads(), False, relu)
    y = np.empty(work.y_shape, np.float32)
    again = _convolved(work, x, weight, bias, y)
    if len(again):
        y[again] = direct.conv2d(x[again], weight, bias, window, groups, relu)
    return y


def pooled_conv2d(
    x: Any, weight: Any, bias: Any, window: Window, groups: int, relu: bool, size: int
) -> tuple[Any, Any]:
    """`conv2d`, `relu` of it if asked, its maxima in windows of 2 x 2 with stride 2, and which of the four won."""
    x, weight = ready(x), ready(weight)
    work = _forward(window, x.shape, weight.shape, groups, size, threads(), True, relu)
    both = np.empty((2, *work.y_shape), np.float32)
    y, winner = both[0], both[1].view(np.int32)
    again = _convolved(work, x, weight, bias, y)
    if len(again):
        y[again], winner[again] = direct.pooled_conv2d(x[again], weight, bias, window, groups, relu)
    return y, winner


def conv2d_dx(dy: Any, weight: Any, x_shape: tuple[int, ...], window: Window, groups: int, size: int) -> Any:
    """dx as the convolution of dy by the filters turned around; otherwise as forward."""
    dy, weight = ready(dy), ready(weight)
    dx = np.empty(x_shape, np.float32)
    again = _convolved(_backward(window, x_shape, weight.shape, groups, size, threads()), dy, weight, None, dx)
    if len(again):
        dx[again] = direct.conv2d_dx(dy[again], weight, (len(again), *x_shape[1:]), window, groups)
    return dx


def workspace(plan: Tiling) -> int:
    """Bytes that a convolution works in."""
    return 4 * (plan.shared + threads() * sum(plan.scratch))


@functools.lru_cache(maxsize=256)
def forward(
    window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, size: int, workers: int,
    pooled: bool = False,
) -> Tiling:  # fmt: skip
    """The tiling that is `conv2d`, or with `pooled` that and max pooling by twos, for so many workers."""
    (n, c, h, w), (k, *_), ((top, _), (left, _)) = x_shape, weight_shape, window.padding
    target = k // groups, window.p(x_shape), window.q(x_shape)
    return _tiled(size, groups, n, (c // groups, h, w), target, (top, left), workers, pooled)


@functools.lru_cache(maxsize=256)
def backward(
    window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, size: int, workers: int
) -> Tiling:
    """The tiling that is `conv2d_dx`: `dx[h] = sum_r dy[h + pad - r] * weight[r]`."""
    (n, c, h, w), (k, *_), ((top, _), (left, _)) = x_shape, weight_shape, window.padding
    source = k // groups, window.p(x_shape), window.q(x_shape)
    return _tiled(size, groups, n, source, (c // groups, h, w), (TAPS - 1 - top, TAPS - 1 - left), workers, False)


def _tiled(
    size: int, groups: int, n: int, source: tuple[int, int, int], target: tuple[int, int, int],
    padding: tuple[int, int], workers: int, pooled: bool,
) -> Tiling:  # fmt: skip
    channels, (filters, rows, columns) = source[0], target
    points, block = (size + TAPS - 1) ** 2, block_of(channels)
    padded, panels = -(-channels // block) * block, -(-filters // (VECTORS * LANES))
    # Panels are also too few for the threads of a larger machine.
    by_panels = groups * panels >= workers and 4 * points * groups * padded * panels * VECTORS * LANES > _WEIGHTS
    most = _TILES if by_panels else max(2 * PIXELS, _NEAR // (4 * points * padded))
    units = rows_of_tiles(size, n, rows, columns, most)
    _, _, across, count = units

    def time(together: int) -> int:
        calls = -(-together * across // PIXELS)
        tasks = -(-count // together)
        rounds = tasks if by_panels else -(-groups * tasks // workers)
        return rounds * (-(-together * across // calls) * calls + (_OVERHEAD if by_panels else 1))

    together = min(range(max(1, min(count, most // across)), 0, -1), key=time)
    tiles = together * across
    pixels = -(-tiles // -(-tiles // PIXELS))
    chunk = min(padded, _CHUNK) if by_panels else padded
    its = Products(
        filters, rows, columns, panels, pixels, chunk, in_lines(chunk * VECTORS * LANES),
        in_lines(-(-tiles // pixels) * pixels * VECTORS * LANES),
        4 * n * groups * filters * (rows // 2) * (columns // 2) * pooled,
        in_lines((size * across * size + LANES) * LANES),
    )  # fmt: skip
    x = tiles_of(
        size,
        TAPS - 1,
        groups,
        source,
        padding,
        units,
        together,
        block,
        block,
        padded // block,
        -(-tiles // pixels) * pixels,
    )
    return Tiling(x, its, by_panels)


class Work(NamedTuple):
    """What is known of a convolution before its arrays: y's shape, its tasks and what one costs, floats of workspace.

    `record` is all numbers that the core reads.
    """

    y_shape: tuple[int, ...]
    by_panels: bool
    tasks: int
    cost: int
    floats: int
    starts: tuple[int, int]
    record: np.ndarray


@functools.lru_cache(maxsize=256)
def _forward(
    window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, size: int, workers: int,
    pooled: bool, relu: bool,
) -> Work:  # fmt: skip
    plan = forward(window, x_shape, weight_shape, groups, size, workers, pooled)
    step = 2 if pooled else 1
    y_shape = x_shape[0], weight_shape[0], plan.its.rows // step, plan.its.columns // step
    return _work(plan, workers, y_shape, False, relu)


@functools.lru_cache(maxsize=256)
def _backward(
    window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, size: int, workers: int
) -> Work:
    return _work(backward(window, x_shape, weight_shape, groups, size, workers), workers, x_shape, True, False)


def _convolved(work: Work, x: Any, weight: Any, bias: Any, y: Any) -> Any:
    """Fills y; which of its images are to be done again."""
    starts, broken = _starts(work.starts, bias), np.zeros(len(x), np.bool_)
    with borrowed(work.floats) as memory:
        arguments = x, weight, y, broken, memory, starts, work.record
        if work.by_panels:
            launch(by_panels, work.tasks, work.cost // 32, threads(), *arguments)
        else:
            share(by_tiles, work.tasks, work.cost, *arguments)
    return broken.nonzero()[0]


def _starts(shape: tuple[int, int], bias: Any) -> Any:
    """What the outputs of each group begin with, in whole vectors."""
    groups, filters = shape
    if bias is not None and filters % LANES == 0:
        return ready(bias).reshape(groups, filters)
    starts = np.zeros((groups, -(-filters // LANES) * LANES), np.float32)
    if bias is not None:
        starts[:, :filters] = bias.reshape(groups, filters)
    return ready(starts)


_ZEROS, _OFFSETS = np.zeros(VECTORS * LANES, np.float32), 4 * np.arange(VECTORS * LANES)
"""What products start from, and where the channels of a tile stand."""


def _work(plan: Tiling, workers: int, y_shape: tuple[int, ...], turned: bool, relu: bool) -> Work:
    of_x, its = plan.x, plan.its
    vectors = -(-its.filters // LANES)
    last = vectors - (vectors - 1) // VECTORS * VECTORS
    sums = functools.partial(multiply.address, pixels=its.pixels, pixel_step=4 * of_x.block)
    # Compiled only if there are more channels than a chunk, or filters to turn around.
    added = functools.partial(sums, accumulate=1) if its.chunk < of_x.channels else sums
    turning = turned_weight_to_points.address(size=of_x.size) if turned else 0
    routines = Routines(
        clear.address(), claim_lines.address(), to_lanes.address(), input_to_points.address(size=of_x.size),
        weight_to_points.address(size=of_x.size), turning, sums(vectors=VECTORS), sums(vectors=last),
        added(vectors=VECTORS), added(vectors=last), points_to_output.address(size=of_x.size),
        pool_lanes.address(relu=int(relu)), from_lanes.address(relu=int(relu and not its.winners)),
    )  # fmt: skip
    products, copy, out, seen, all_of_it = itertools.accumulate(plan.scratch)
    places = products, copy, out, seen, all_of_it, _ZEROS.ctypes.data, _OFFSETS.ctypes.data
    parts = Parts(plan.shared, *places, int(turned))
    batches = -(-of_x.units // of_x.together)
    cost = of_x.together * of_x.across * its.filters * of_x.channels * plan.points
    return Work(
        y_shape, plan.by_panels, batches if plan.by_panels else of_x.groups * batches,
        cost * of_x.groups if plan.by_panels else cost, plan.shared + workers * sum(plan.scratch),
        (of_x.groups, its.filters), record(x=of_x, its=its, parts=parts, routines=routines),
    )  # fmt: skip
