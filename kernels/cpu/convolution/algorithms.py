"""Every way to compute a convolution: a table of rows, each with its conditions, its cost and its reason."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelproof.kernels.contract import Precision
from kernelproof.kernels.limits import workspace as limit
from kernelproof.spec import Window

from ..launch import threads
from ..vectors import LANES
from . import (
    depthwise,
    direct,
    direct_gradient,
    pixel_gradient,
    pixel_vectors,
    pointwise,
    shifted_rows,
    sweep,
    winograd,
    winograd_gradient,
)


@dataclass(frozen=True)
class Problem:
    """A convolution or one of its gradients, by what the choice depends on; `operator` is the specification's name."""

    operator: str
    x_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    window: Window
    groups: int
    dtype: str

    @property
    def multiply_adds(self) -> int:
        """Products that the equation sums, those with the padding among them."""
        n, k = self.x_shape[0], self.weight_shape[0]
        of_pixel = int(np.prod(self.weight_shape[1:]))
        return n * k * of_pixel * self.window.p(self.x_shape) * self.window.q(self.x_shape)

    @property
    def long_rows(self) -> tuple[int, ...]:
        """The shape of x as sweeps see it."""
        return sweep.as_long_rows(self.window, self.x_shape)

    @property
    def y_shape(self) -> tuple[int, ...]:
        """Of the output, or of its gradient."""
        return self.x_shape[0], self.weight_shape[0], self.window.p(self.x_shape), self.window.q(self.x_shape)

    @property
    def gradients(self) -> int:
        """Elements of the output's gradient."""
        return int(np.prod(self.y_shape))

    @property
    def sums(self) -> int:
        """Elements of the result."""
        shapes = {"conv2d": self.y_shape, "conv2d_dx": self.x_shape, "conv2d_dweight": self.weight_shape}
        return int(np.prod(shapes[self.operator]))

    @property
    def filters(self) -> int:
        """Of one group."""
        return self.weight_shape[0] // self.groups

    @property
    def outputs(self) -> int:
        """Filters of one group, or in the input gradient its channels."""
        return self.weight_shape[1] if self.operator == "conv2d_dx" else self.filters


@dataclass(frozen=True)
class Condition:
    """What a problem must be for an algorithm to be right, or to be worth it."""

    text: str
    holds: Callable[[Problem], bool]


@dataclass(frozen=True)
class Algorithm:
    """A row of the table.

    Without `needs` it would be wrong, without what is `worth` it does not pay, and without what it asks `strictly` it
    may leave strict's bound. `cost` estimates multiply-adds at the micro-kernel's full speed, `workspace` is its bound
    in bytes, `run` takes the specification body's arguments. Its results round as the proof kit's class `rounds_as`,
    which `rounding` allows. `rectified` and `pooled` are the same with what follows done in the cache, if it can: the
    first gives relu(y), the second the maxima of y or of relu(y) by twos, and which of the four they are.
    """

    name: str
    operator: str
    run: Callable[..., Any]
    cost: Callable[[Problem], float]
    workspace: Callable[[Problem], int]
    reason: str
    needs: tuple[Condition, ...] = ()
    worth: tuple[Condition, ...] = ()
    strictly: tuple[Condition, ...] = ()
    rounding: Precision = "strict"
    rounds_as: str | None = None
    rectified: Callable[..., Any] | None = None
    pooled: Callable[..., Any] | None = None

    def refusal(self, problem: Problem, precision: Precision) -> str | None:
        """Why it is not taken whatever it costs; None if it may be."""
        failed = [each.text for each in self.needs if not each.holds(problem)]
        if failed:
            return f"needs {', '.join(failed)}"
        failed = [each.text for each in self.worth if not each.holds(problem)]
        if failed:
            return f"pays with {', '.join(failed)}"
        failed = [each.text for each in self.strictly if not each.holds(problem)]
        if precision == "strict" and (failed or self.rounding != "strict"):
            return f"rounds more than strict allows: needs {' and '.join(failed) or 'precision=' + repr(self.rounding)}"
        bound = limit()
        if bound is not None and self.workspace(problem) > bound:
            return f"needs {self.workspace(problem)} bytes of workspace, {bound} are allowed"
        return None


FLOAT32 = Condition("float32", lambda problem: problem.dtype == "float32")


def _used(across: int) -> float:
    """The part of the lanes that have something to work on, if so many things lie across them."""
    return across / (-(-across // LANES) * LANES)


_TURNED, _TURNED_BACK = 20, 9
"""Multiply-adds in whose time a pixel of a filter is turned to its lane, and a sum back to its row."""


def _plain(operator: str, run: Callable[..., Any], copies: Callable[[Problem], int]) -> Algorithm:
    return Algorithm(
        "shifted rows", operator, run, lambda problem: 8.0 * problem.multiply_adds, copies,
        "any float and any geometry; vectors are whatever the compiler finds",
    )  # fmt: skip


def _direct(operator: str, run: Callable[..., Any], workspace: Callable[[Problem], int], **fused: Any) -> Algorithm:
    def cost(problem: Problem) -> float:
        products = problem.multiply_adds / _used(problem.outputs) / 0.9
        if operator != "conv2d_dweight":
            return products + _TURNED_BACK * problem.sums
        channels = direct_gradient.used(problem.weight_shape[1])
        return products / channels + _TURNED * problem.gradients / _used(problem.outputs)

    return Algorithm(
        "direct", operator, run, cost, workspace,
        "one chain of fused multiply-adds for each element, a lane for each filter, any geometry", (FLOAT32,),
        **fused,
    )  # fmt: skip


_OF_TILE = {16: 0.9, 8: 0.75, 4: 0.9}[LANES]
"""The part of a tile of pixel vectors' speed that whole sweeps reach: tiles of AVX2 are shorter than half a line."""


def _pixel_vectors(operator: str, run: Callable[..., Any], plan: Callable[..., sweep.Plan]) -> Algorithm:
    def cost(problem: Problem) -> float:
        its = plan(problem.window, problem.long_rows, problem.weight_shape, problem.groups)
        # Empty problems cost nothing whatever the part.
        return problem.multiply_adds / max(pixel_vectors.tile_of(its)[1], 0.01) / _OF_TILE

    def workspace(problem: Problem) -> int:
        its = plan(problem.window, problem.long_rows, problem.weight_shape, problem.groups)
        return pixel_vectors.workspace(its, threads())

    return Algorithm(
        "pixel vectors", operator, run, cost, workspace,
        "as direct, but a lane for each pixel of a row: for few filters, or sums that are sooner made than turned",
        (FLOAT32,),
        rectified=functools.partial(run, relu=True) if operator == "conv2d" else None,
    )  # fmt: skip


_STORED = 4
"""Multiply-adds in whose time a sum of a panel is begun and stored."""


def _pointwise(operator: str, run: Callable[..., Any]) -> Algorithm:
    def cost(problem: Problem) -> float:
        its = pointwise.cut(operator, problem.x_shape, problem.weight_shape)
        # The last panel and the last tile may be partly empty.
        sums = its.panels * pointwise.WIDTH * its.tiles * its.filters
        return sums * (its.terms / 0.95 + _STORED)

    return Algorithm(
        "pointwise", operator, run, cost,
        lambda problem: 4 * pointwise.cut(operator, problem.x_shape, problem.weight_shape).workspace(threads()),
        "a product of matrices: pixels of all images in one row, a lane for each, both operands packed",
        (FLOAT32, Condition(
            "1x1 filters with stride 1, no padding and one group",
            lambda problem: pointwise.applies(problem.window, problem.groups),
        )),
        (Condition(
            f"{pointwise.WIDTH} or more pixels in an image",
            lambda problem: math.prod(problem.x_shape[2:]) >= pointwise.WIDTH,
        ),),
        rectified=functools.partial(run, relu=True) if operator == "conv2d" else None,
    )  # fmt: skip


def _pixel_gradient(problem: Problem) -> tuple[Window, tuple[int, ...], tuple[int, ...], int]:
    return problem.window, problem.x_shape, problem.weight_shape, problem.groups


_PIXEL_GRADIENT = Algorithm(
    "pixel vectors", "conv2d_dweight", pixel_gradient.conv2d_dweight,
    # x is read at every shift, so that half of its vectors lie across two lines of the cache.
    lambda problem: problem.multiply_adds / max(pixel_gradient.planned(*_pixel_gradient(problem))[1].used, 0.01) / 0.55,
    lambda problem: pixel_gradient.workspace(*_pixel_gradient(problem), threads()),
    "a lane for each pixel: of few weights, turning the pixels to lanes would take longest",
    (FLOAT32,),
    (Condition("few weights: their sums stay near", lambda each: pixel_gradient.is_near(*_pixel_gradient(each))),),
)  # fmt: skip


def _depthwise(operator: str, run: Callable[..., Any]) -> Algorithm:
    def applies(problem: Problem) -> bool:
        return depthwise.applies(operator, problem.window, problem.weight_shape, problem.groups)

    return Algorithm(
        "depthwise", operator, run,
        # Nine products for a pixel that is read and one that is written: memory is the limit.
        lambda problem: 1.8 * problem.multiply_adds,
        lambda problem: depthwise.workspace(problem.window, problem.x_shape, threads()),
        "a channel's rows stay in registers while the filter moves over them",
        (FLOAT32, Condition("one filter for each channel, small, with stride 1 or 2 and dilation 1", applies)),
        rectified=functools.partial(run, relu=True) if operator == "conv2d" else None,
    )  # fmt: skip


def _planes(problem: Problem) -> int:
    """Bytes of the padded copies of x and dy."""
    window, x_shape = problem.window, problem.x_shape
    padded = shifted_rows.Planes.of(window, x_shape).shape
    split = int(np.prod(padded)) * x_shape[0] * x_shape[1]
    pitched = x_shape[0] * problem.weight_shape[0] * window.p(x_shape) * padded[3]
    of_operator = {"conv2d": split, "conv2d_dx": pitched, "conv2d_dweight": split + pitched}
    return of_operator[problem.operator] * np.dtype(problem.dtype).itemsize


def _sweep(plan: Callable[..., sweep.Plan]) -> Callable[[Problem], int]:
    def workspace(problem: Problem) -> int:
        its = plan(problem.window, problem.long_rows, problem.weight_shape, problem.groups)
        return 4 * (its.packed + threads() * its.scratch)

    return workspace


def _correlation(problem: Problem) -> int:
    its = direct_gradient.planned(problem.window, problem.x_shape, problem.weight_shape, problem.groups, threads())
    parts = its.correlation.groups * its.correlation.parts * its.sums
    return 4 * (parts + threads() * (its.turned_x + its.turned_dy))


def _is_for_winograd(problem: Problem) -> bool:
    return winograd.applies(problem.operator, problem.window)


_TILED = Condition("3x3 filters with stride 1 and dilation 1, in the input gradient padding up to 2", _is_for_winograd)
_WIDE = Condition(
    f"{2**4} or more channels and filters in a group",
    lambda problem: min(problem.weight_shape[1], problem.filters) >= 2**4,
)


def _fewest_terms(problem: Problem) -> int:
    """Of all sums with any: channels, filters or images times what both axes meet of the filter, or under one tap."""
    window, image = problem.window, problem.x_shape[2:]
    inside = [window.inside(axis, size) for axis, size in enumerate(image)]
    if problem.operator == "conv2d_dweight":
        return problem.x_shape[0] * math.prod(int(each.sum(axis=0).min()) for each in inside)
    if problem.operator == "conv2d":
        met, summed = [each.sum(axis=1) for each in inside], problem.weight_shape[1]
    else:
        at = [window.positions(axis, size)[each] for axis, (size, each) in enumerate(zip(image, inside, strict=True))]
        met, summed = [np.bincount(each) for each in at], problem.filters
    return summed * math.prod(int(each[each > 0].min(initial=3)) for each in met)


# Winograd also sums terms of other entries, which cancel. What they leave was up to 1.6 times the bound of 9 terms, 0.9
# that of 17, 0.15 that of 36, on normal random values.
_LONG_SUMS = Condition(f"{2**5} or more terms in every sum", lambda problem: _fewest_terms(problem) >= 2**5)


def _tiling(tiling: Callable[..., winograd.Tiling], size: int) -> Callable[[Problem], int]:
    return lambda problem: winograd.workspace(
        tiling(problem.window, problem.x_shape, problem.weight_shape, problem.groups, size, threads())
    )


def _sums(size: int) -> Callable[[Problem], int]:
    return lambda problem: (
        winograd_gradient.planned(
            problem.window, problem.x_shape, problem.weight_shape, problem.groups, size, threads()
        ).workspace
    )


_TRANSFORMED = 10
"""Multiply-adds in whose time an entry of a tile is transformed, with the walk through memory that it takes."""


def _winograd(size: int, operator: str, run: Callable[..., Any], workspace: Callable[[Problem], int]) -> Algorithm:
    def cost(problem: Problem) -> float:
        """Products for each point of each tile, and entries transformed on the way in, out and of the weights."""
        n, c = problem.x_shape[:2]
        k, channels = problem.weight_shape[:2]
        points, window = (size + 2) ** 2, problem.window
        shape = (
            problem.x_shape[2:] if operator == "conv2d_dx" else (window.p(problem.x_shape), window.q(problem.x_shape))
        )
        tiles = n * -(-shape[0] // size) * -(-shape[1] // size)
        products = tiles * points * k * channels / _used(problem.outputs) / 0.9
        return products + _TRANSFORMED * points * (tiles * (c + k) + k * channels)

    return Algorithm(
        f"winograd F({size}x{size}, 3x3)", operator, functools.partial(run, size=size), cost, workspace,
        f"{9 * size**2 / (size + 2) ** 2:g} times fewer products", (FLOAT32, _TILED), (_WIDE,),
        (_LONG_SUMS,), "strict" if size == 2 else "fast", f"winograd{size}",
        functools.partial(run, size=size, relu=True) if operator == "conv2d" else None,
        functools.partial(winograd.pooled_conv2d, size=size) if operator == "conv2d" else None,
    )  # fmt: skip


ALGORITHMS: tuple[Algorithm, ...] = (
    _plain("conv2d", shifted_rows.conv2d, _planes),
    _plain("conv2d_dx", shifted_rows.conv2d_dx, _planes),
    _plain("conv2d_dweight", shifted_rows.conv2d_dweight, _planes),
    _direct(
        "conv2d",
        direct.conv2d,
        _sweep(sweep.forward),
        rectified=functools.partial(direct.conv2d, relu=True),
        pooled=direct.pooled_conv2d,
    ),
    _depthwise("conv2d", depthwise.conv2d),
    _depthwise("conv2d_dx", depthwise.conv2d_dx),
    _depthwise("conv2d_dweight", depthwise.conv2d_dweight),
    _pixel_vectors("conv2d", pixel_vectors.conv2d, sweep.forward),
    _pixel_vectors("conv2d_dx", pixel_vectors.conv2d_dx, sweep.backward),
    _pointwise("conv2d", pointwise.conv2d),
    _pointwise("conv2d_dx", pointwise.conv2d_dx),
    *(_winograd(size, "conv2d", winograd.conv2d, _tiling(winograd.forward, size)) for size in (2, 4)),
    *(_winograd(size, "conv2d_dx", winograd.conv2d_dx, _tiling(winograd.backward, size)) for size in (2, 4)),
    *(_winograd(size, "conv2d_dweight", winograd_gradient.conv2d_dweight, _sums(size)) for size in (2, 4)),
    _direct("conv2d_dx", direct.conv2d_dx, _sweep(sweep.backward)),
    _direct("conv2d_dweight", direct_gradient.conv2d_dweight, _correlation),
    _PIXEL_GRADIENT,
)
"""Every way to compute a convolution or one of its gradients on this CPU."""
