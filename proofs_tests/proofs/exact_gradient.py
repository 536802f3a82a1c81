"""The derivative as it is by definition: dual numbers over the rationals, no limit and no finite difference."""

from collections.abc import Callable, Mapping
from fractions import Fraction

import numpy as np

from kernelproof.spec import Dual


def rational(array: np.ndarray) -> np.ndarray:
    """Every entry of an array as the Fraction that it is, exactly."""
    return np.asarray(np.frompyfunc(Fraction, 1, 1)(array), object)


def exact_gradient(
    function: Callable[[Mapping[str, np.ndarray]], Dual], arguments: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The partial derivative of a scalar function in every entry of every argument, exact, in one evaluation.

    `f(v + e_i) = f(v) + df/dv_i e_i`: entry i gets the tangent e_i, a unit vector with one place for each entry of all
    arguments, so the tangent of the result is the whole gradient. At a tie the spec decides, as for numbers.
    Source: Griewank & Walther, Evaluating Derivatives, ch. 3 (vector forward mode).
    """
    values = np.concatenate([rational(array).ravel() for array in arguments.values()])
    units = np.eye(len(values), dtype=int).astype(object)
    seeded = np.empty(len(values), object)
    seeded[:] = [Dual(value, unit) for value, unit in zip(values, units, strict=True)]
    gradient = function(_split(seeded, arguments)).tangent
    # A function that uses none of its arguments leaves the tangent at the plain number 0.
    return _split(np.broadcast_to(gradient, len(values)), arguments)


def _split(flat: np.ndarray, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    ends = np.cumsum([array.size for array in like.values()])
    parts = np.split(flat, ends[:-1])
    return {name: part.reshape(array.shape) for (name, array), part in zip(like.items(), parts, strict=True)}
