"""Shapes for every size at once: along one axis each convolution or pool is `h -> (h + b) // s`.

Floors of floors collapse, `((h + b1)//s1 + b2)//s2 = (h + b1 + s1*b2) // (s1*s2)`, so a whole chain is one such map per
axis and equality, the legal sizes, the sizes with a wanted output and the receptive field are exact whole-number
arithmetic. The maps restate `Window.output_size` in closed form; the tests hold the two together.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

from .window import Window


@dataclass(frozen=True, repr=False)
class Sizes:
    """A set of whole numbers as sorted ranges `(first, last)` that neither touch nor overlap; `last` inf is no end."""

    ranges: tuple[tuple[int, float], ...]

    @staticmethod
    def of(*ranges: tuple[int, float]) -> "Sizes":
        """The union of ranges in any order; empty ones are dropped.

        >>> print(Sizes.of((1, 3), (4, 4), (9, math.inf)))
        1..4 or >= 9
        """
        merged: list[tuple[int, float]] = []
        for first, last in sorted(each for each in ranges if each[0] <= each[1]):
            if merged and first <= merged[-1][1] + 1:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        return Sizes(tuple(merged))

    @property
    def smallest(self) -> int:
        """The least number of a set that is not empty."""
        return self.ranges[0][0]

    def __contains__(self, size: int) -> bool:
        return any(first <= size <= last for first, last in self.ranges)

    def __bool__(self) -> bool:
        return bool(self.ranges)

    def __and__(self, other: "Sizes") -> "Sizes":
        return Sizes.of(*((max(a, c), min(b, d)) for a, b in self.ranges for c, d in other.ranges))

    def __str__(self) -> str:
        return " or ".join(_range(*each) for each in self.ranges) or "none"

    __repr__ = __str__

    def of_name(self, name: str) -> str:
        """What the set says about a size called `name`: `h = 5`, `h in 28..31`, `h >= 3`."""
        return " or ".join(
            f"{name} {'' if last == math.inf else '= ' if first == last else 'in '}{_range(first, last)}"
            for first, last in self.ranges
        )


def _range(first: int, last: float) -> str:
    return f">= {first}" if last == math.inf else f"{first}" if first == last else f"{first}..{last}"


EVERY_SIZE = Sizes.of((0, math.inf))


@dataclass(frozen=True)
class SizeMap:
    """`h -> (h + b) // s`, what a window does to one axis; two such maps are equal only if `b` and `s` are."""

    b: int = 0
    s: int = 1

    @staticmethod
    def of(window: Window, axis: int) -> "SizeMap":
        """The closed form of `window.output_size(axis, size)` wherever the window fits.

        Without ceil_mode `b = pads - extent + s`. With it the count is the lesser of `ceil(room / s) + 1` windows and
        the `ceil((size + before) / s)` that start before the padding at the end. Both divide by s, so the lesser `b`
        gives the lesser count: ceil_mode stays in the form. That needs `after < extent`, so that every window counted
        without ceil_mode starts in time.

        >>> SizeMap.of(Window.of("max_pool2d", 3, 2, 1, 1, ceil_mode=True), 0)
        SizeMap(b=2, s=2)
        """
        (before, after), s = window.padding[axis], window.stride[axis]
        b = before + after - window.extent(axis) + s
        return SizeMap(min(b + s - 1, before + s - 1) if window.ceil_mode else b, s)

    def __call__(self, size: int) -> int:
        return (size + self.b) // self.s

    def __rshift__(self, then: "SizeMap") -> "SizeMap":
        return SizeMap(self.b + self.s * then.b, self.s * then.s)

    def solve(self, out: Sizes) -> Sizes:
        """Exactly the sizes >= 0 that map into `out`: `first*s - b .. last*s + s - 1 - b`.

        >>> print(SizeMap(0, 4).solve(Sizes.of((7, 7))))
        28..31
        """
        return Sizes.of(
            *((max(0, first * self.s - self.b), last * self.s + self.s - 1 - self.b) for first, last in out.ranges)
        )

    def of_name(self, name: str) -> str:
        """The formula for a size called `name`: `h`, `h - 2`, `h//4`, `(h + 1)//2`."""
        shifted = name if self.b == 0 else f"{name} {'+' if self.b > 0 else '-'} {abs(self.b)}"
        if self.s == 1:
            return shifted
        return f"{shifted}//{self.s}" if self.b == 0 else f"({shifted})//{self.s}"


@dataclass(frozen=True)
class ReceptiveField:
    """Output p depends on inputs `p*jump + offset` to `p*jump + offset + size - 1` at most; outside is padding.

    Source: Araujo, Norris & Sim, Computing Receptive Fields of Convolutional Neural Networks, Distill 2019.
    """

    size: int = 1
    jump: int = 1
    offset: int = 0

    @staticmethod
    def of(window: Window, axis: int) -> "ReceptiveField":
        """The field of a single window: its extent, stride and left/top padding."""
        return ReceptiveField(window.extent(axis), window.stride[axis], -window.padding[axis][0])

    def __rshift__(self, then: "ReceptiveField") -> "ReceptiveField":
        return ReceptiveField(
            self.size + (then.size - 1) * self.jump, self.jump * then.jump, self.offset + then.offset * self.jump
        )


@dataclass(frozen=True, repr=False)
class Dimension:
    """A size that is not known yet: `times` the product of `map(name)` over the factors."""

    factors: tuple[tuple[str, SizeMap], ...]
    times: int = 1

    @staticmethod
    def named(name: str) -> "Dimension":
        """The size called `name` itself."""
        return Dimension(((name, SizeMap()),))

    def at(self, sizes: Mapping[str, int]) -> int:
        """The number, once every name has one."""
        return self.times * math.prod(map_(sizes[name]) for name, map_ in self.factors)

    def __str__(self) -> str:
        if len(self.factors) == 1 and self.times == 1:
            ((name, map_),) = self.factors
            return map_.of_name(name)
        texts = [name if map_ == SizeMap() else f"({map_.of_name(name)})" for name, map_ in self.factors]
        return "*".join([str(self.times)] * (self.times != 1) + texts)

    __repr__ = __str__


Size: TypeAlias = int | Dimension
Shape: TypeAlias = tuple[Size, ...]


def product(*sizes: Size) -> Size:
    """The product of numbers and unknown sizes: a number if all are."""
    times, factors = 1, []
    for size in sizes:
        times *= size if isinstance(size, int) else size.times
        factors += [] if isinstance(size, int) else size.factors
    return Dimension(tuple(factors), times) if factors and times else times


def size_at(size: Size, sizes: Mapping[str, int]) -> int:
    """The number that a size is, once every name has one."""
    return size if isinstance(size, int) else size.at(sizes)


def through(map_: SizeMap, size: Size) -> Size:
    """`map_(size)`; an unknown size must be a single factor, as heights and widths are."""
    if isinstance(size, int):
        return map_(size)
    ((name, before),) = size.factors
    return Dimension(((name, before >> map_),))


def shape_text(shape: Shape) -> str:
    """A shape as it is written: `(n, 64, h//4, (w + 1)//4)`."""
    return f"({', '.join(map(str, shape))})"


@dataclass(frozen=True, repr=False)
class Domain:
    """Which sizes the names may take: a union of boxes, each giving some names a set and leaving the others free.

    Prints as `h in 28..31 and w >= 3`, where nothing is asked as nothing.
    """

    boxes: tuple[Mapping[str, Sizes], ...] = ({},)

    @staticmethod
    def within(size: Size, allowed: Sizes) -> "Domain":
        """Where a height, width or batch lies in `allowed`."""
        if isinstance(size, int):
            return Domain() if size in allowed else Domain(())
        ((name, map_),) = size.factors
        return Domain() & Domain(({name: map_.solve(allowed)},))

    @staticmethod
    def equal(size: Size, wanted: int) -> "Domain":
        """Where `size` is exactly `wanted`: every factorisation over the factors is a box of its own."""
        if isinstance(size, int):
            return Domain() if size == wanted else Domain(())
        if size.times == 0 or wanted % size.times:
            return Domain(())
        first, *rest = size.factors
        wanted //= size.times
        if not rest:
            return Domain.within(Dimension((first,)), Sizes.of((wanted, wanted)))
        return Domain(
            tuple(
                chain.from_iterable(
                    (Domain.equal(Dimension((first,)), p) & Domain.equal(Dimension(tuple(rest)), wanted // p)).boxes
                    for p in divisors(wanted)
                )
            )
        )

    def __and__(self, other: "Domain") -> "Domain":
        both = (
            {name: a.get(name, EVERY_SIZE) & b.get(name, EVERY_SIZE) for name in {**a, **b}}
            for a in self.boxes
            for b in other.boxes
        )
        return Domain(tuple(box for box in both if all(box.values())))

    def __bool__(self) -> bool:
        return bool(self.boxes)

    def __contains__(self, sizes: Mapping[str, int]) -> bool:
        return any(all(sizes[name] in allowed for name, allowed in box.items()) for box in self.boxes)

    def example(self) -> dict[str, int]:
        """The smallest sizes of the first box, by name."""
        return {name: allowed.smallest for name, allowed in self.boxes[0].items()}

    def __str__(self) -> str:
        texts = (
            " and ".join(allowed.of_name(name) for name, allowed in box.items() if allowed != EVERY_SIZE)
            for box in self.boxes
        )
        return ", or ".join(texts)

    __repr__ = __str__


def divisors(number: int) -> Iterable[int]:
    """The divisors of a number >= 1, ascending."""
    low = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return sorted({*low, *(number // d for d in low)})
