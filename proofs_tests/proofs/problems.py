"""Problems to hold a kernel to: a configuration, a value family and a seed, valid by construction.

A configuration is a few choices, so a failing problem shrinks to a few small numbers and prints as one line that runs.
The arrays follow from the seed. One function a row of the operator table; gradients share the forward's. The choices
come from chance or from hypothesis: kernelproof.proofs.drawing.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any, TypeAlias, TypeVar

import numpy as np

from kernelproof.spec import OPS, Op, Window, find
from kernelproof.spec.errors import KernelproofError
from kernelproof.spec.operator import Operator
from kernelproof.spec.pool import pool_window

from .values import DRAWS, laid_out

Shape = tuple[int, ...]
T = TypeVar("T")

TILES = (7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
"""Sizes on both sides of the widths that kernels tile and vectorise by."""

MANY = (255, 256, 257, 513)
"""Channels and filters past the blocks in which convolutions go through them."""

LAYERS = (65, 96, 97, 127, 128, 129)
"""Channels and filters of a layer whose operands tensor cores have laid out beforehand."""

WIDE = tuple(
    sorted({many * tile + beside for tile in (12, 14, 16, 24, 32) for many in (1, 2) for beside in (-1, 0, 1)})
)
"""Columns of a result on both sides of what kernels keep in registers of one row, and of twice as many."""

BLOCKS = tuple(blocks * 128 + beside for blocks in (2, 3, 4, 8) for beside in (-1, 0, 1))
"""Terms on both sides of the blocks in which matrix products go through a long sum."""

PIXELS = ((5, 7, 11), (1, 13, 59), (1, 17, 17), (1, 19, 27))
"""Images, rows and columns of a result, 385, 767, 289 and 513 pixels together: of tiles of 12 to 128 pixels that all of
them are cut into, the last one then has a single pixel, or all but one."""

CLASSES = (999, 1000, 1001)

FAR = (4, 5, 6, 8, 11, 12, 16)
"""Filters, strides and dilations beyond the usual ones: of patches, of first layers, of filters with holes."""

LONG = (2**16 + 1, 2**16 + 1, 2**18 + 1)
"""More elements than elementwise kernels take in one go, and than 16 bits count."""

PLANE = 182
"""Rows and columns of an image that 15 bits do not count, so that 16 do not count two of them."""

SPARE = 5
"""Rows and columns of an image beyond those that its window just fits, at most, where it is not long."""

CONV2D_LONG = (
    "none", "channels", "channels", "filters", "n", "h", "wide", "wide", "wide", "groups", "both", "far", "pixels",
    "layer",
)  # fmt: skip
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
    def configuration(self) -> "Problem":
        """What this problem has in common with all that differ in their values alone: shapes and options."""
        return replace(self, family="whole", seed=0, dtype="float32", layout="contiguous", precision=None)

    def specified(self, arrays: Mapping[str, np.ndarray]) -> Any:
        """What the specification gives for arrays of these shapes, of any scalar type."""
        return self.call(_specification(self.configuration), arrays)

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


class _Specification:
    """The specification on one configuration: it checks the shapes of the first arrays, and all others have the same.

    The check takes longer than a small problem's arithmetic, and a law evaluates up to five times.
    """

    def __init__(self, operator: Operator[...]) -> None:
        self._operator, self._checked = operator, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        evaluate = self._operator.unchecked if self._checked else self._operator
        result = evaluate(*args, **kwargs)
        self._checked = True
        return result


@lru_cache(maxsize=16)  # A configuration's evaluations follow each other, a neighbour's among them.
def _specification(configuration: Problem) -> _Specification:
    return _Specification(configuration.spec)


@cache
def _parameters(operator: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(find(operator)).parameters


class Choices:
    """Choices that make up a configuration: each is a number below a count, and the smaller the simpler.

    What all configurations of an operator choose comes first, however much of it is used; what only some choose comes
    last. So one choice can be made simpler alone: the others keep their places, and simpler ones are no more of them.
    """

    def __init__(self, below: Callable[[int], int]) -> None:
        self._below = below

    def one_of(self, *choices: T) -> T:
        """One of these, the simplest first."""
        return choices[self._below(len(choices))]

    def between(self, least: int, most: int) -> int:
        """A number from `least` to `most`."""
        return least + self._below(most - least + 1)

    def flag(self) -> bool:
        """False or True."""
        return self.one_of(False, True)

    def size(self, most: int) -> int:
        """A size from 1 to `most`."""
        return self.between(1, most)

    def size_or_tile(self, least: int, most: int) -> int:
        """A few, or as often a size beside a tile's."""
        return self.one_of(*TILES) if self.flag() else self.between(least, most)

    def batch(self) -> int:
        """Mostly a few, now and then none: an empty batch is legal and proves little."""
        return self.one_of(1, 2, 3, 4, 2, 3, 5, 0)


Configuration: TypeAlias = tuple[dict[str, Shape], dict[str, Any], Shape]
"""The forward's shapes, its options, and its result's shape."""
Pair: TypeAlias = tuple[int, int]


def _geometry(choices: Choices, common: Pair, stride: int, kind: str) -> tuple[Pair, Pair, Pair]:
    """Filter, stride and dilation; one in four has the `common` filter, with this stride, that kernels are fast at.

    Of the kind "far" one of the three is larger than usual, of the kind "large" the filter is small.
    """
    is_common = choices.one_of("any", "any", "any", "common") == "common"
    extents = {"far": (1, 2, 3), "layer": (1, 2, 3), "large": (1, 2)}.get(kind, (1, 2, 3, 1, 2, 3, 4, 5, 7))
    chosen = [(choices.one_of(*each), choices.one_of(*each)) for each in (extents, (1, 2, 3), (1, 2, 3))]
    if kind == "far":
        which = choices.between(0, 2)
        far, other = choices.one_of(*FAR), choices.one_of(1, *FAR)
        chosen[which] = (far, other) if choices.one_of(1, -1) == 1 else (other, far)
    elif is_common:
        return common, (stride, stride), (1, 1)
    kernel, stride_of_axes, dilation = chosen
    return kernel, stride_of_axes, dilation


def conv2d(choices: Choices, family: str) -> Configuration:
    """Every geometry of a convolution: any stride, dilation, four paddings and groups, sizes that fit."""
    # One long axis at a time: past every tile and vector width, at a cost that stays small.
    long = choices.one_of(*3 * CONV2D_LONG, "large")
    groups, n = choices.one_of(1, 2, 1, 3), choices.batch()
    channels, filters, has_bias = choices.size(3), choices.size(3), choices.flag()
    most = 8 if long == "far" else 3
    rows, columns = ((choices.between(0, most), choices.between(0, most)) for _ in range(2))
    padding = rows, columns
    spare = choices.between(0, SPARE), choices.between(0, SPARE)
    # The 3x3 that fast algorithms are written for, with any padding: preconditions get forgotten there.
    kernel, stride, dilation = _geometry(choices, (3, 3), 1, long)
    window = Window(kernel, stride, padding, dilation)
    h, w = (_fitting(window, axis) + spare[axis] for axis in (0, 1))
    match long:
        case "channels":
            channels = choices.one_of(*TILES, *MANY)
        case "filters":
            filters = choices.one_of(*TILES, *MANY)
        case "n":
            n = choices.one_of(*TILES[:12])
        case "h":
            h += choices.one_of(*TILES[:12])
        case "wide":
            # Registers hold columns of several filters, or of channels in the gradient: two tiles along both axes.
            w = _across(choices, window)
            many = choices.one_of(1, 2, 3, *TILES[3:9])
            n, (channels, filters) = min(n, 2), choices.one_of((2, many), (many, 2))
        case "pixels":
            n, *sizes = choices.one_of(*PIXELS)
            h, w = (_fitting(window, axis, size) for axis, size in enumerate(sizes))
        case "groups":
            groups = choices.one_of(*TILES[:9])
        case "both":
            # Blocks of filters and of channels in one matrix product.
            n, channels, filters = min(n, 2), choices.one_of(*TILES[3:9]), choices.one_of(*TILES[3:9])
        case "layer":
            n, groups, channels, filters = 2, 1, choices.one_of(*LAYERS), choices.one_of(*LAYERS)
            h, w = _fitting(window, 0, 7), _fitting(window, 1, 9)
        case "large":
            n, groups, channels, filters, h, w = 2, min(groups, 2), min(channels, 2), min(filters, 2), PLANE, PLANE
            h, w = h + window.extent(0), w + window.extent(1)
    if max(channels, filters) >= MANY[0]:
        n, groups = min(n, 2), 1  # It costs as much as others do.
    shapes: dict[str, Shape] = {"x": (n, channels * groups, h, w), "weight": (filters * groups, channels, *kernel)}
    if has_bias:
        shapes["bias"] = (filters * groups,)
    output = (n, filters * groups, window.p((h, w)), window.q((h, w)))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return shapes, options, output


def max_pool2d(choices: Choices, family: str) -> Configuration:
    """Every geometry of max pooling in which each window sees the input."""
    long = choices.one_of(*3 * POOL_LONG, "large")
    n, c = choices.batch(), choices.size(4)
    ceil_mode, return_indices = choices.flag(), choices.flag()
    spare = choices.between(0, SPARE), choices.between(0, SPARE)
    # The 2x2 with stride 2 that kernels have a path of their own for, without padding.
    kernel, stride, dilation = _geometry(choices, (2, 2), 2, long)
    is_common = (kernel, stride, dilation) == ((2, 2), (2, 2), (1, 1))
    reaches = (0 if is_common else (size - 1) * gap for size, gap in zip(kernel, dilation, strict=True))
    padding = tuple((choices.between(0, reach), choices.between(0, reach)) for reach in reaches)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    window = Window(kernel, **options)
    h, w = (_fitting(window, axis) + spare[axis] for axis in (0, 1))
    match long:
        case "wide":
            w = _across(choices, window)
        case "channels":
            c = choices.one_of(*TILES[:12])
        case "n":
            n = choices.one_of(*TILES[:9])
        case "h":
            h += choices.one_of(*TILES[:12])
        case "large":
            n, c, h, w = 2, min(c, 2), PLANE, PLANE
    try:
        pool_window("max_pool2d", (h, w), kernel, **options)
    except KernelproofError:
        # A window that sees padding only is refused by the operator. Without padding none does.
        options["padding"] = ((0, 0), (0, 0))
        h, w = max(h, window.extent(0)), max(w, window.extent(1))
    window = Window(kernel, **options)
    options |= {"kernel_size": kernel, "return_indices": return_indices}
    return {"x": (n, c, h, w)}, options, (n, c, window.p((h, w)), window.q((h, w)))


def linear(choices: Choices, family: str) -> Configuration:
    """Any batch and feature counts: one of them long, past the blocks of a sum, or all past a tile."""
    long = choices.one_of("none", "n", "c", "k", "n", "c", "k", "all", "large")
    n, c, k, has_bias = choices.batch(), choices.size(5), choices.size(5), choices.flag()
    match long:
        case "n":
            n = choices.one_of(*TILES, *BLOCKS)
        case "c":
            c = choices.one_of(*TILES, *BLOCKS)
        case "k":
            k = choices.one_of(*TILES, *BLOCKS)
        case "all":
            n, c, k = (choices.one_of(*TILES[:12]) for _ in range(3))
        case "large":
            n, c, k = choices.one_of((257, 257, k), (n, 257, 257), (257, c, 257))
    shapes: dict[str, Shape] = {"x": (n, c), "weight": (k, c)}
    if has_bias:
        shapes["bias"] = (k,)
    return shapes, {}, (n, k)


def relu(choices: Choices, family: str) -> Configuration:
    """Any shape, of up to five axes."""
    shape = _any_shape(choices)
    return {"x": shape}, {}, shape


def flatten(choices: Choices, family: str) -> Configuration:
    """Any batch of images, one of the sizes long now and then."""
    long = choices.one_of(*2 * ("none", "n", "c", "h", "w", "w"), "large")
    n, c, h, w = choices.batch(), choices.size(4), choices.size(5), choices.size(5)
    match long:
        case "n":
            n = choices.one_of(*TILES)
        case "c":
            c = choices.one_of(*TILES)
        case "h":
            h = choices.one_of(*TILES)
        case "w":
            w = choices.one_of(*TILES)
        case "large":
            n, h, w = 2, PLANE, PLANE
    return {"x": (n, c, h, w)}, {}, (n, c * h * w)


def cross_entropy(choices: Choices, family: str) -> Configuration:
    """Any number of rows and classes; more than a few now and then, up to a thousand classes."""
    many = choices.flag()
    n, k = choices.size_or_tile(1, 5), choices.size_or_tile(1, 6)
    if many:
        k = choices.one_of(*BLOCKS, *CLASSES)
    return {"logits": (n, k), "target": (n,)}, {}, ()


def sgd(choices: Choices, family: str) -> Configuration:
    """Any shape; whole rates where the result has to be exact, everyday ones where it is rounded."""
    rates = {"real": (0.0, 0.01, 0.1, 0.9, 10.0), "mantissa": (0, 1)}.get(family, (0, 1, 2, 3, 10))
    options = {"learning_rate": choices.one_of(*rates), "momentum": choices.one_of(*rates)}
    shape = _any_shape(choices)
    return {"parameter": shape, "gradient": shape, "velocity": shape}, options, shape


def _any_shape(choices: Choices) -> Shape:
    # Mostly rows of several elements: a single one is zero too often to prove anything.
    kind = choices.one_of("rows", "rows", "rows", "rows", "rows", "rows", "one", "long")
    axes, sizes = choices.between(0, 4), [choices.batch() for _ in range(4)]
    row = choices.size_or_tile(4, 10)
    match kind:
        case "one":
            return ()
        case "long":
            # Past what kernels hand to one task, or a GPU to one block of threads.
            return (choices.one_of(*LONG),)
    return (*sizes[:axes], row)


def _fitting(window: Window, axis: int, outputs: int = 1) -> int:
    """The smallest legal input size at which the window takes so many positions."""
    least = (outputs - 1) * window.stride[axis] + window.extent(axis) - sum(window.padding[axis])
    return max(1, least)


def _across(choices: Choices, window: Window) -> int:
    """A width across which the window takes as many steps as there are columns in several register tiles."""
    _, stride = window.stride
    return _fitting(window, 1, choices.one_of(*WIDE)) + choices.between(0, stride - 1)


CONFIGURATIONS: Mapping[str, Callable[[Choices, str], Configuration]] = {
    "conv2d": conv2d,
    "max_pool2d": max_pool2d,
    "linear": linear,
    "relu": relu,
    "flatten": flatten,
    "cross_entropy": cross_entropy,
    "sgd": sgd,
}
