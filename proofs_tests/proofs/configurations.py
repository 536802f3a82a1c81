"""Every configuration of an operator up to a size, numbered: the one with the smallest sizes first.

A configuration is chosen block by block (images; channels; bias; the geometry along each axis of the image), and what
is legal is decided within a block. So configurations are counted without being made, and each number is one of them.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple, TypeAlias

from kernelproof.spec import ParameterError, ShapeError, Window
from kernelproof.spec.pool import pool_window
from kernelproof.spec.window import whole

from .problems import Problem, Shape

Block: TypeAlias = list[list[Any]]
"""The values of one block by the steps that each is away from the smallest: one step makes one number one greater."""

Geometry: TypeAlias = tuple[dict[str, Shape], dict[str, Any], Shape]
"""Shapes, options and the output's shape, as a problem has them."""


class Configurations:
    """All of one operator's whose sizes, strides, dilations, paddings and groups are at most `max_size`.

    `steps` keeps those that are at most so many steps from the smallest. Raises ParameterError.
    """

    def __init__(self, operator: str, max_size: int, steps: int | None = None) -> None:
        row, _, gradient = operator.partition(".")
        if row not in CHOICES:
            raise ParameterError("exhaust", f"op={operator!r}", f"one of {', '.join(CHOICES)}", "Choose one.")
        self.operator = operator
        self._choices = CHOICES[row](whole("exhaust", "max_size", max_size, 1), not gradient)
        farthest = max(len(choice.ways[0]) for choice in self._choices) - 1
        self.steps = farthest if steps is None else min(farthest, whole("exhaust", "steps", steps, 0))
        self._ends = [0]
        for each in range(self.steps + 1):
            self._ends.append(self._ends[-1] + sum(choice.count(each) for choice in self._choices))

    @property
    def count(self) -> int:
        """How many there are."""
        return self._ends[-1]

    def steps_of(self, index: int) -> int:
        """How many steps from the smallest the index-th is: never fewer than those before it."""
        return bisect_right(self._ends, index) - 1

    def problem(self, index: int, seed: int, dtype: str) -> Problem:
        """The index-th configuration as a problem on whole numbers, of a seed of its own."""
        steps = self.steps_of(index)
        place = index - self._ends[steps]
        for choice in self._choices:
            if place < choice.count(steps):
                return Problem(self.operator, *choice.at(steps, place), "whole", (seed + index) % 2**16, dtype)
            place -= choice.count(steps)
        raise IndexError(f"configuration {index} of {self.count}")


class Choice:
    """All combinations of values of independent blocks, and the geometry that a combination makes."""

    def __init__(self, blocks: Iterable[Block], make: Callable[..., Geometry]) -> None:
        self._blocks, self._make = list(blocks), make
        # ways[i][t]: combinations of the blocks from i on that are t steps from the smallest.
        self.ways = [[1]]
        for block in reversed(self._blocks):
            longer = [0] * (len(block) + len(self.ways[0]) - 1)
            for (own, values), (others, count) in product(enumerate(block), enumerate(self.ways[0])):
                longer[own + others] += len(values) * count
            self.ways.insert(0, longer)

    def count(self, steps: int) -> int:
        """Combinations so many steps from the smallest."""
        return _at(self.ways[0], steps)

    def at(self, steps: int, index: int) -> Geometry:
        """The index-th of them."""
        chosen = []
        for block, ways in zip(self._blocks, self.ways[1:], strict=True):
            for own, values in enumerate(block[: steps + 1]):
                others = _at(ways, steps - own)
                if index < len(values) * others:
                    which, index = divmod(index, others)
                    chosen.append(values[which])
                    steps -= own
                    break
                index -= len(values) * others
        return self._make(*chosen)


def _at(ways: Sequence[int], steps: int) -> int:
    return ways[steps] if steps < len(ways) else 0


class Axis(NamedTuple):
    """The geometry along one axis of the image."""

    size: int
    kernel: int
    stride: int
    dilation: int
    padding: tuple[int, int]
    outputs: int


def _block(values: Iterable[tuple[int, Any]]) -> Block:
    """A block of (steps, value)."""
    block: Block = []
    for steps, value in values:
        block += ([] for _ in range(steps + 1 - len(block)))
        block[steps].append(value)
    return block


def _sizes(max_size: int) -> Block:
    return [[size] for size in range(1, max_size + 1)]


@cache
def _axes(max_size: int, legal: Callable[[Window, int], bool], ceil_mode: bool = False) -> Block:
    """Every geometry along one axis that is legal."""
    found, numbers = [], range(1, max_size + 1)
    for size, kernel, stride, dilation, before, after in product(*(numbers,) * 4, *(range(max_size + 1),) * 2):
        window = Window((kernel, 1), (stride, 1), ((before, after), (0, 0)), (dilation, 1), ceil_mode)
        if legal(window, size):
            axis = Axis(size, kernel, stride, dilation, (before, after), window.output_size(0, size))
            found.append((size + kernel + stride + dilation - 4 + before + after, axis))
    return _block(found)


def _fits(window: Window, size: int) -> bool:
    return window.fits(0, size)


def _sees_the_input(window: Window, size: int) -> bool:
    try:
        pool_window("max_pool2d", (size, 1), window.kernel, window.stride, window.padding, window.dilation,
                    window.ceil_mode)  # fmt: skip
    except (ShapeError, ParameterError):
        return False
    return True


def _windowed(rows: Axis, columns: Axis) -> dict[str, Any]:
    return {name: (getattr(rows, name), getattr(columns, name)) for name in ("stride", "padding", "dilation")}


def _conv2d(max_size: int, forward: bool) -> list[Choice]:
    channels = _block(
        (groups + c + k - 3, (groups, c, k))
        for groups, c, k in product(range(1, max_size + 1), repeat=3)
        if groups * max(c, k) <= max_size
    )

    def make(n: int, channels: tuple[int, int, int], bias: bool, rows: Axis, columns: Axis) -> Geometry:
        groups, c, k = channels
        shapes: dict[str, Shape] = {
            "x": (n, groups * c, rows.size, columns.size),
            "weight": (groups * k, c, rows.kernel, columns.kernel),
        }
        if bias:
            shapes["bias"] = (groups * k,)
        output = (n, groups * k, rows.outputs, columns.outputs)
        return shapes, {**_windowed(rows, columns), "groups": groups}, output

    axis = _axes(max_size, _fits)
    return [Choice([_sizes(max_size), channels, _flag(forward), axis, axis], make)]


def _max_pool2d(max_size: int, forward: bool) -> list[Choice]:
    def choice(ceil_mode: bool) -> Choice:
        def make(n: int, c: int, indices: bool, rows: Axis, columns: Axis) -> Geometry:
            options = {
                **_windowed(rows, columns), "ceil_mode": ceil_mode, "kernel_size": (rows.kernel, columns.kernel),
                "return_indices": indices,
            }  # fmt: skip
            return {"x": (n, c, rows.size, columns.size)}, options, (n, c, rows.outputs, columns.outputs)

        axis, sizes = _axes(max_size, _sees_the_input, ceil_mode), _sizes(max_size)
        return Choice([sizes, sizes, _flag(forward), axis, axis], make)

    return [choice(ceil_mode) for ceil_mode in (False, True)]


def _linear(max_size: int, forward: bool) -> list[Choice]:
    def make(n: int, c: int, k: int, bias: bool) -> Geometry:
        return {"x": (n, c), "weight": (k, c)} | ({"bias": (k,)} if bias else {}), {}, (n, k)

    return [Choice([*[_sizes(max_size)] * 3, _flag(forward)], make)]


def _relu(max_size: int, forward: bool) -> list[Choice]:
    return [Choice([_sizes(max_size)] * axes, lambda *x: ({"x": x}, {}, x)) for axes in range(5)]


def _flatten(max_size: int, forward: bool) -> list[Choice]:
    return [Choice([_sizes(max_size)] * 4, lambda n, c, h, w: ({"x": (n, c, h, w)}, {}, (n, c * h * w)))]


def _flag(free: bool) -> Block:
    """Without and with; without alone for a gradient, which does not depend on it."""
    return [[False], [True]] if free else [[False]]


CHOICES: Mapping[str, Callable[[int, bool], list[Choice]]] = {
    "conv2d": _conv2d,
    "max_pool2d": _max_pool2d,
    "linear": _linear,
    "relu": _relu,
    "flatten": _flatten,
}
"""For a row of the operator table and a greatest size: what there is to choose from."""
