"""Problems to hold a kernel to: a configuration, a value family and a seed, valid by construction.

hypothesis draws the configuration alone, so a failing problem shrinks to a few small numbers and prints as one line
that runs. The arrays follow from the seed. One strategy a row of the operator table; gradients share the forward's.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias, TypeVar

import numpy as np
from hypothesis import strategies as st

from kernelproof.spec import OPS, Op, Window, find
from kernelproof.spec.errors import KernelproofError
from kernelproof.spec.operator import Operator
from kernelproof.spec.pool import pool_window

from .values import DRAWS, laid_out

Shape = tuple[int, ...]
T = TypeVar("T")

TILES = (7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
"""Sizes on both sides of the widths that kernels tile and vectorise by."""

WIDE = tuple(
    sorted({many * tile + beside for tile in (12, 14, 16, 24, 32) for many in (1, 2) for beside in (-1, 0, 1)})
)
"""Columns of a result on both sides of what kernels keep in registers of one row, and of twice as many."""

BLOCKS = tuple(blocks * 128 + beside for blocks in (2, 3, 4, 8) for beside in (-1, 0, 1))
"""Terms on both sides of the blocks in which matrix products go through a long sum."""

CLASSES = (999, 1000, 1001)

FAR = (4, 5, 6, 8, 11, 12, 16)
"""Filters, strides and dilations beyond the usual ones: of patches, of first layers, of filters with holes."""

LONG = (2**16 + 1, 2**16 + 1, 2**18 + 1)
"""More elements than elementwise kernels take in one go, and than 16 bits count."""

PLANE = 182
"""Rows and columns of an image that 15 bits do not count, so that 16 do not count two of them."""

CONV2D_LONG = ("none", "channels", "channels", "filters", "n", "h", "wide", "wide", "wide", "groups", "both", "far")
POOL_LONG = ("none", "none", "wide", "wide", "wide", "wide", "wide", "channels", "n", "h", "far")
"""What is long in a problem; one in some thirty is "large" beside these."""

LAYOUTS = (
    "contiguous", "guarded", "reversed", "spread", "transposed", "channels_last", "read_only", "cropped", "broadcast",
)  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One call of one operator: everything is in these fields, `repr` is code that makes it again.

    `shapes` are the forward's arrays, `output` its result's shape; `options` the forward's other arguments, one per
    axis, padding four-sided. `family` names the values' distribution in `kernelproof.proofs.values`; `precision` is the
    class that the kernel declares, None for all the bits of its dtype.
    """

    operator: str
    shapes: Mapping[str, Shape]
    options: Mapping[str, Any]
    output: Shape
    family: str
    seed: int = 0
    dtype: str = "float32"
    layout: str = "contiguous"
    precision: str | None = None

    def __hash__(self) -> int:
        # Shapes and options are dicts; equal problems have at least these in common.
        return hash((self.operator, self.output, self.family, self.seed))

    @property
    def op(self) -> Op:
        """The row of the operator table that this problem's operator belongs to."""
        return OPS[self.operator.partition(".")[0]]

    @property
    def spec(self) -> Operator[...]:
        """The specification that decides."""
        return find(self.operator)

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """The operator's own arguments."""
        return _parameters(self.operator)

    @property
    def array_shapes(self) -> dict[str, Shape]:
        """The shapes of the operator's own array arguments, in its order."""
        shapes = {**self.shapes, "dy": self.output}
        return {name: shapes[name] for name in self.parameters if name in shapes}

    def arrays(self) -> dict[str, np.ndarray]:
        """The array arguments, drawn from the family by the seed, in the problem's memory layout."""
        generator = np.random.default_rng([self.seed, *map(ord, self.family)])
        drawn = DRAWS[self.family](self, generator)
        return {name: laid_out(array, self.layout) for name, array in drawn.items()}

    def call(self, function: Callable[..., Any], arrays: Mapping[str, Any]) -> Any:
        """`function` on these arrays with the operator's own arguments, options by name."""
        given: dict[str, Any] = {**self.options, **arrays}
        given |= {f"{name}_shape": shape for name, shape in self.shapes.items()}
        positional, by_name = [], {}
        for name, parameter in self.parameters.items():
            if parameter.kind is parameter.KEYWORD_ONLY:
                if name in given:
                    by_name[name] = given[name]
            else:
                positional.append(given.get(name, None))
        return function(*positional, **by_name)

    def redrawn(self, draw: int) -> "Problem":
        """The same configuration with other values: the `draw`-th after this one."""
        return replace(self, seed=self.seed + 2**16 * draw)


def layouts_of(family: str) -> tuple[str, ...]:
    """The memory layouts that values of a family may have.

    One element cannot stand for a whole axis where the values are independent of each other, on which the escape
    probability rests, or where only one is not zero.
    """
    return LAYOUTS[:-1] if family in ("whole", "mantissa") else LAYOUTS


@cache
def _parameters(operator: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(find(operator)).parameters


# Strategies are made once: hypothesis examines each new one, which takes longer than to draw from it.


@cache
def _one_of(*choices: T) -> st.SearchStrategy[T]:
    return st.sampled_from(choices)


@cache
def _between(least: int, most: int) -> st.SearchStrategy[int]:
    return st.integers(least, most)


def _size(most: int) -> st.SearchStrategy[int]:
    return _between(1, most)


@cache
def _size_or_tile(least: int, most: int) -> st.SearchStrategy[int]:
    return st.one_of(_between(least, most), _one_of(*TILES))


_batch = _one_of(1, 2, 3, 4, 2, 3, 5, 0)
"""Mostly a few, now and then none: an empty batch is legal and proves little."""


_extent = _one_of(1, 2, 3, 1, 2, 3, 4, 5, 7)
_flag = st.booleans()
_axes = st.lists(_batch, max_size=4)


Pair: TypeAlias = tuple[int, int]


def _geometry(draw: st.DrawFn, common: Pair, stride: int, kind: str) -> tuple[Pair, Pair, Pair]:
    """Filter, stride and dilation; one in four has the `common` filter, with this stride, that kernels are fast at.

    Of the kind "far" one of the three is larger than usual, of the kind "large" the filter is small.
    """
    if draw(_one_of("any", "any", "any", "common")) == "common" and kind != "far":
        return common, (stride, stride), (1, 1)
    extent = {"far": _size(3), "large": _size(2)}.get(kind, _extent)
    chosen = [(draw(extent), draw(extent)), *((draw(_size(3)), draw(_size(3))) for _ in range(2))]
    if kind == "far":
        which = draw(_between(0, 2))
        chosen[which] = (draw(_one_of(*FAR)), draw(_one_of(1, *FAR)))[:: draw(_one_of(1, -1))]
    kernel, stride_of_axes, dilation = chosen
    return kernel, stride_of_axes, dilation


@st.composite
def conv2d(draw: st.DrawFn, family: str) -> tuple[dict[str, Shape], dict[str, Any], Shape]:
    """Every geometry of a convolution: any stride, dilation, four paddings and groups, sizes that fit."""
    # One long axis at a time: past every tile and vector width, at a cost that stays small.
    long = draw(_one_of(*3 * CONV2D_LONG, "large"))
    groups, n = draw(_one_of(1, 2, 1, 3)), draw(_batch)
    channels, filters = draw(_size(3)), draw(_size(3))
    # The 3x3 that fast algorithms are written for, with any padding: preconditions get forgotten there.
    kernel, stride, dilation = _geometry(draw, (3, 3), 1, long)
    side = _between(0, 8 if long == "far" else 3)
    padding = tuple((draw(side), draw(side)) for _ in range(2))
    window = Window(kernel, stride, padding, dilation)
    h, w = (_fitting(draw, window, axis) for axis in (0, 1))
    match long:
        case "channels":
            channels = draw(_one_of(*TILES))
        case "filters":
            filters = draw(_one_of(*TILES))
        case "n":
            n = draw(_one_of(*TILES[:12]))
        case "h":
            h += draw(_one_of(*TILES[:12]))
        case "wide":
            # Registers hold columns of several filters, or of channels in the gradient: two tiles along both axes.
            w = _across(draw, window)
            many = draw(_one_of(1, 2, 3, *TILES[3:9]))
            n, (channels, filters) = min(n, 2), draw(_one_of((2, many), (many, 2)))
        case "groups":
            groups = draw(_one_of(*TILES[:9]))
        case "both":
            # Blocks of filters and of channels in one matrix product.
            n, channels, filters = min(n, 2), draw(_one_of(*TILES[3:9])), draw(_one_of(*TILES[3:9]))
        case "large":
            n, groups, channels, filters, h, w = 2, min(groups, 2), min(channels, 2), min(filters, 2), PLANE, PLANE
            h, w = h + window.extent(0), w + window.extent(1)
    shapes = {"x": (n, channels * groups, h, w), "weight": (filters * groups, channels, *kernel)}
    if draw(_flag):
        shapes["bias"] = (filters * groups,)
    output = (n, filters * groups, window.p((h, w)), window.q((h, w)))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return shapes, options, output


@st.composite
def max_pool2d(draw: st.DrawFn, family: str) -> tuple[dict[str, Shape], dict[str, Any], Shape]:
    """Every geometry of max pooling in which each window sees the input."""
    long = draw(_one_of(*3 * POOL_LONG, "large"))
    n, c = draw(_batch), draw(_size(4))
    # The 2x2 with stride 2 that kernels have a path of their own for.
    kernel, stride, dilation = _geometry(draw, (2, 2), 2, long)
    padding = ((0, 0), (0, 0))
    if (kernel, stride, dilation) != ((2, 2), (2, 2), (1, 1)):
        reaches = ((size - 1) * gap for size, gap in zip(kernel, dilation, strict=True))
        padding = tuple((draw(_between(0, reach)), draw(_between(0, reach))) for reach in reaches)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": draw(_flag)}
    window = Window(kernel, **options)
    h, w = (_fitting(draw, window, axis) for axis in (0, 1))
    match long:
        case "wide":
            w = _across(draw, window)
        case "channels":
            c = draw(_one_of(*TILES[:12]))
        case "n":
            n = draw(_one_of(*TILES[:9]))
        case "h":
            h += draw(_one_of(*TILES[:12]))
        case "large":
            n, c, h, w = 2, min(c, 2), PLANE, PLANE
    try:
        pool_window("max_pool2d", (h, w), kernel, **options)
    except KernelproofError:
        # A window that sees padding only is refused by the operator. Without padding none does.
        options["padding"] = ((0, 0), (0, 0))
        h, w = max(h, window.extent(0)), max(w, window.extent(1))
    window = Window(kernel, **options)
    options |= {"kernel_size": kernel, "return_indices": draw(_flag)}
    return {"x": (n, c, h, w)}, options, (n, c, window.p((h, w)), window.q((h, w)))


@st.composite
def linear(draw: st.DrawFn, family: str) -> tuple[dict[str, Shape], dict[str, Any], Shape]:
    """Any batch and feature counts: one of them long, past the blocks of a sum, or all past a tile."""
    n, c, k = draw(_batch), draw(_size(5)), draw(_size(5))
    match draw(_one_of("none", "n", "c", "k", "n", "c", "k", "all", "large")):
        case "n":
            n = draw(_one_of(*TILES, *BLOCKS))
        case "c":
            c = draw(_one_of(*TILES, *BLOCKS))
        case "k":
            k = draw(_one_of(*TILES, *BLOCKS))
        case "all":
            n, c, k = (draw(_one_of(*TILES[:12])) for _ in range(3))
        case "large":
            n, c, k = draw(_one_of((257, 257, k), (n, 257, 257), (257, c, 257)))
    shapes = {"x": (n, c), "weight": (k, c)}
    if draw(_flag):
        shapes["bias"] = (k,)
    return shapes, {}, (n, k)


@st.composite
def relu(draw: st.DrawFn, family: str) -> tuple[dict[str, Shape], dict[str, Any], Shape]:
    """Any shape, of up to five axes."""
    shape = draw(_any_shape())
    return {"x": shape}, {}, shape


@st.composite
def flatten(draw: st.DrawFn, family: str) -> tuple[dict[str, Shape], dict[str, Any], Shape]:
    """Any batch of images, one of the sizes long now and then."""
    n, c, h, w = draw(_batch), draw(_size(4)), draw(_size(5)), draw(_size(5))
    match draw(_one_of(*2 * ("none", "n", "c", "h", "w", "w"), "large")):
        case "n":
            n = draw(_one_of(*TILES))
        case "c":
            c = draw(_one_of(*TILES))
        case "h":
            h = draw(_one_of(*TILES))
        case "w":
            w = draw(_one_of(*TILES))
        case "large":
            n, h, w = 2, PLANE, PLANE
    return {"x": (n, c, h, w)}, {}, (n, c * h * w)


@st.composite
def cross_entropy(draw: st.DrawFn, family: str) -> tuple[dict[str, Shape], dict[str, Any], Shape]:
    """Any number of rows and classes; more than a few now and then, up to a thousand classes."""
    n, k = draw(_size_or_tile(1, 5)), draw(st.one_of(_size_or_tile(1, 6), _one_of(*BLOCKS, *CLASSES)))
    return {"logits": (n, k), "target": (n,)}, {}, ()


@st.composite
def sgd(draw: st.DrawFn, family: str) -> tuple[dict[str, Shape], dict[str, Any], Shape]:
    """Any shape; whole rates where the result has to be exact, everyday ones where it is rounded."""
    shape = draw(_any_shape())
    rates = {"real": (0.0, 0.01, 0.1, 0.9), "mantissa": (0, 1)}.get(family, (0, 1, 2, 3))
    options = {"learning_rate": draw(_one_of(*rates)), "momentum": draw(_one_of(*rates))}
    return {"parameter": shape, "gradient": shape, "velocity": shape}, options, shape


@cache
@st.composite
def _any_shape(draw: st.DrawFn) -> Shape:
    # Mostly rows of several elements: a single one is zero too often to prove anything.
    match draw(_one_of("rows", "rows", "rows", "rows", "rows", "rows", "one", "long")):
        case "one":
            return ()
        case "long":
            # Past what kernels hand to one task, or a GPU to one block of threads.
            return (draw(_one_of(*LONG)),)
    return (*draw(_axes), draw(_size_or_tile(4, 10)))


def _fitting(draw: st.DrawFn, window: Window, axis: int, outputs: int = 1, spare: int = 5) -> int:
    """An input size at which the window takes so many positions, the smallest legal one or up to `spare` above it."""
    least = (outputs - 1) * window.stride[axis] + window.extent(axis) - sum(window.padding[axis])
    return max(1, least) + draw(_between(0, spare))


def _across(draw: st.DrawFn, window: Window) -> int:
    """A width across which the window takes as many steps as there are columns in several register tiles."""
    _, stride = window.stride
    return _fitting(draw, window, 1, draw(_one_of(*WIDE)), stride - 1)


STRATEGIES: Mapping[str, Callable[[str], st.SearchStrategy[Any]]] = {
    "conv2d": conv2d,
    "max_pool2d": max_pool2d,
    "linear": linear,
    "relu": relu,
    "flatten": flatten,
    "cross_entropy": cross_entropy,
    "sgd": sgd,
}


@cache
def _configurations(row: str, family: str) -> st.SearchStrategy[tuple[dict[str, Shape], dict[str, Any], Shape]]:
    return STRATEGIES[row](family)


@st.composite
def problems(
    draw: st.DrawFn,
    operator: str,
    family: str,
    dtypes: tuple[str, ...] = ("float32",),
    precision: str | None = None,
) -> Problem:
    """Problems of one operator with values of one family."""
    shapes, options, output = draw(_configurations(operator.partition(".")[0], family))
    seed = draw(_between(0, 2**16 - 1))
    layout = draw(_one_of(*layouts_of(family)))
    dtype = draw(_one_of(*dtypes))
    return Problem(operator, shapes, options, output, family, seed, dtype, layout, precision)
