"""Scalars beyond numpy's own: exact derivatives and certified ranges, for the same specs.

A spec only adds, multiplies and compares, so it runs on whatever the array's scalars are: `fractions.Fraction` gives
the exact result, `Dual` over Fraction the exact derivative, `Interval` a range that holds the true result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np


class UndecidedError(ArithmeticError):
    """Two overlapping intervals were compared: neither answer is certain."""


@dataclass(frozen=True, slots=True, eq=False)
class Dual:
    """`value + tangent*e` with `e*e = 0`: carries an exact directional derivative through any spec.

    `(a + a'e)(b + b'e) = ab + (a'b + ab')e`. Compares by value alone, so ties fall as the spec says they do.
    Source: Clifford 1873; Griewank & Walther, Evaluating Derivatives, ch. 3.
    """

    value: Any
    tangent: Any = 0

    def __add__(self, other: Any) -> Dual:
        other = _dual(other)
        return Dual(self.value + other.value, self.tangent + other.tangent)

    def __sub__(self, other: Any) -> Dual:
        other = _dual(other)
        return Dual(self.value - other.value, self.tangent - other.tangent)

    def __rsub__(self, other: Any) -> Dual:
        return _dual(other) - self

    def __mul__(self, other: Any) -> Dual:
        other = _dual(other)
        return Dual(self.value * other.value, self.tangent * other.value + self.value * other.tangent)

    def __truediv__(self, other: Any) -> Dual:
        other = _dual(other)
        quotient = self.value / other.value
        return Dual(quotient, (self.tangent - quotient * other.tangent) / other.value)

    def __neg__(self) -> Dual:
        return Dual(-self.value, -self.tangent)

    __radd__, __rmul__ = __add__, __mul__

    def exp(self) -> Dual:
        """`np.exp` calls this on arrays of objects."""
        result = math.exp(self.value)
        return Dual(result, result * self.tangent)

    def log(self) -> Dual:
        """`np.log` calls this on arrays of objects."""
        return Dual(math.log(self.value), self.tangent / self.value)

    def __eq__(self, other: object) -> bool:
        return self.value == _dual(other).value

    def __lt__(self, other: Any) -> bool:
        return self.value < _dual(other).value

    def __le__(self, other: Any) -> bool:
        return self.value <= _dual(other).value

    def __gt__(self, other: Any) -> bool:
        return self.value > _dual(other).value

    def __ge__(self, other: Any) -> bool:
        return self.value >= _dual(other).value

    def __hash__(self) -> int:
        return hash(self.value)


def _dual(x: Any) -> Dual:
    return x if isinstance(x, Dual) else Dual(x)


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """All reals from `low` to `high`: every operation rounds outward, so the true result lies inside.

    Source: Moore, Interval Analysis, 1966; IEEE 1788.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"Interval: low {self.low} is above high {self.high}; needs low <= high. Swap the ends.")

    def __contains__(self, x: Any) -> bool:
        return self.low <= x <= self.high

    def __add__(self, other: Any) -> Interval:
        other = _interval(other)
        return _outward([self.low + other.low], [self.high + other.high])

    def __sub__(self, other: Any) -> Interval:
        return self + -_interval(other)

    def __rsub__(self, other: Any) -> Interval:
        return _interval(other) - self

    def __mul__(self, other: Any) -> Interval:
        other = _interval(other)
        if 0.0 in (self.low, other.low) and (self.low == self.high == 0.0 or other.low == other.high == 0.0):
            return Interval(0.0, 0.0)  # Exactly zero times anything real: keeps padding from widening a sum.
        corners = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return _outward(corners, corners)

    def __neg__(self) -> Interval:
        return Interval(-self.high, -self.low)

    __radd__, __rmul__ = __add__, __mul__

    def maximum(self, other: Any) -> Interval:
        """The range of `max(a, b)`: no rounding, the ends are ends that came in."""
        other = _interval(other)
        return Interval(max(self.low, other.low), max(self.high, other.high))

    def __lt__(self, other: Any) -> bool:
        other = _interval(other)
        return _decided(self.high < other.low, self.low >= other.high, self, other)

    def __le__(self, other: Any) -> bool:
        other = _interval(other)
        return _decided(self.high <= other.low, self.low > other.high, self, other)

    def __gt__(self, other: Any) -> bool:
        return _interval(other) < self

    def __ge__(self, other: Any) -> bool:
        return _interval(other) <= self

    def __eq__(self, other: object) -> bool:
        other = _interval(other)
        return _decided(
            self.low == self.high == other.low == other.high,
            self.high < other.low or other.high < self.low,
            self,
            other,
        )

    def __hash__(self) -> int:
        return hash((self.low, self.high))


def _interval(x: Any) -> Interval:
    return x if isinstance(x, Interval) else Interval(_below(x), _above(x))


def _below(x: Any) -> float:
    return float(x) if float(x) <= x else math.nextafter(float(x), -math.inf)


def _above(x: Any) -> float:
    return float(x) if float(x) >= x else math.nextafter(float(x), math.inf)


def _outward(lows: Iterable[float], highs: Iterable[float]) -> Interval:
    # A corner inf*0 or inf-inf is NaN: nothing is known about it, so the interval becomes everything.
    lows, highs = list(lows), list(highs)
    if any(math.isnan(end) for end in [*lows, *highs]):
        return Interval(-math.inf, math.inf)
    return Interval(math.nextafter(min(lows), -math.inf), math.nextafter(max(highs), math.inf))


def _decided(yes: bool, no: bool, a: Interval, b: Interval) -> bool:
    if yes or no:
        return yes
    raise UndecidedError(f"Interval: {a} and {b} overlap; a comparison needs them apart. Narrow the input box.")


def intervals(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """The box `low[...] .. high[...]` as an array of Interval, ready for any spec or chain."""
    box = np.empty(np.shape(low), object)
    ends = zip(np.ravel(low), np.ravel(high), strict=True)
    box.reshape(-1)[:] = [Interval(float(a), float(b)) for a, b in ends]
    return box


def duals(values: np.ndarray, tangents: np.ndarray) -> np.ndarray:
    """`values + tangents*e` as an array of Dual, ready for any spec or chain."""
    result = np.empty(np.shape(values), object)
    parts = zip(np.ravel(values), np.ravel(tangents), strict=True)
    result.reshape(-1)[:] = [Dual(value, tangent) for value, tangent in parts]
    return result


def _maximum_of_two(a: Any, b: Any) -> Any:
    if isinstance(a, Interval) or isinstance(b, Interval):
        return _interval(a).maximum(b)
    return b if b > a or (b != b and a == a) else a


_maximum_of_objects = np.frompyfunc(_maximum_of_two, 2, 1)


def maximum(a: Any, b: Any) -> np.ndarray:
    """The greater of the two, elementwise: a tie keeps `a`, NaN beats every number, the first NaN stays."""
    a, b = np.asarray(a), np.asarray(b)
    if a.dtype == object or b.dtype == object:
        return np.asarray(_maximum_of_objects(a, b), object)
    return np.where((b > a) | ((b != b) & (a == a)), b, a)


def lowest(dtype: np.dtype) -> Any:
    """The identity of `maximum` among scalars of this type."""
    if dtype == np.bool_:
        return False
    return np.iinfo(dtype).min if np.issubdtype(dtype, np.integer) else -math.inf
