"""How far a correct kernel may be from real arithmetic: derived, for every element, whatever its order of summation.

`gamma(n) = n*u / (1 - n*u)` bounds the relative error of n roundings of unit u in any order, with or without FMA.
Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., ch. 3.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from .fft_bound import fft_bound, is_fft
from .problems import Problem
from .values import IN_ITS_OWN_TYPE, PRECISIONS, counts, significand_bits
from .winograd_bound import is_winograd, winograd_bound

FUNCTION_ULPS = 2
"""exp and log are taken to be within this many units in the last place, as libm, SVML and CUDA document or better."""

FP16_TINY = 2.0**-24
"""Half precision's smallest subnormal: what cutting to it may lose of a small number."""

SCALED_TINY = 2.0**-39
"""The same where operands are scaled first, relative to the greatest: to at least 2**14, of which half of 2**-24."""


def unit_roundoff(dtype: str | np.dtype) -> float:
    """u, half the gap above 1: 2**-24 for float32, 2**-53 for float64."""
    return float(np.finfo(dtype).eps) / 2


def gamma(n: np.ndarray | float, u: float) -> np.ndarray | float:
    """`n*u / (1 - n*u)`."""
    return n * u / (1 - n * u)


def rounding_bound(
    problem: Problem, arrays: Mapping[str, np.ndarray], dtype: str | np.dtype, reference: str | np.dtype | None = None
) -> tuple[np.ndarray, ...]:
    """For each result, elementwise, the error that computing in `dtype` may leave; zero where nothing is rounded.

    And that of a reference in another dtype, if there is one: it keeps all its bits, whatever the kernel declares.
    """
    bound = _bound(problem, arrays)
    allowed = bound(problem.precision, dtype)
    if reference is None:
        return allowed
    return tuple(kernels + references for kernels, references in zip(allowed, bound(None, reference), strict=True))


Bound: TypeAlias = Callable[[str | None, str | np.dtype], tuple[np.ndarray, ...]]
"""What a precision class may leave in a dtype, on one problem's numbers: what all share is computed once."""


def _bound(problem: Problem, arrays: Mapping[str, np.ndarray]) -> Bound:
    magnitudes = {name: np.abs(array).astype(np.float64) for name, array in arrays.items()}
    if problem.operator == "sgd":
        return lambda precision, dtype: _sgd(problem, magnitudes, *_units(dtype))
    if problem.op.name == "cross_entropy":
        return lambda precision, dtype: _cross_entropy(problem, arrays, *_units(dtype))
    if problem.op.linear_in:
        return _sums_of_products(problem, magnitudes)
    # A selection copies; only its gradient adds, at most one dy for each window that holds the pixel.
    windows = int(np.prod(problem.options.get("kernel_size", (1,))))
    if "." not in problem.operator or windows == 1:
        exact = np.zeros(problem.output if "." not in problem.operator else problem.shapes["x"])
        return lambda precision, dtype: (exact,)
    added = np.asarray(problem.specified(magnitudes | {"x": arrays["x"].astype(np.float64)}))
    return lambda precision, dtype: (gamma(windows, unit_roundoff(dtype)) * added,)


def _units(dtype: str | np.dtype) -> tuple[float, float]:
    return unit_roundoff(dtype), float(np.finfo(dtype).smallest_subnormal)


def _sums_of_products(problem: Problem, magnitudes: Mapping[str, np.ndarray]) -> Bound:
    # On magnitudes the specification gives sum |x||w| + |b|.
    count, magnitude = counts(problem), np.asarray(problem.specified(magnitudes))

    def bound(precision: str | None, dtype: str | np.dtype) -> tuple[np.ndarray, ...]:
        u, tiny = _units(dtype)
        asked = replace(problem, precision=precision)
        if is_winograd(asked):
            return (winograd_bound(asked, magnitudes, u, tiny),)
        direct = gamma(count + 1, u) * magnitude + count * tiny
        if is_fft(asked):
            # Who has an FFT takes it where it pays, and multiplies where filters are small.
            return (np.maximum(fft_bound(asked, magnitudes, u, tiny), direct),)
        bits = PRECISIONS["fp64" if precision in IN_ITS_OWN_TYPE else precision]
        if bits < significand_bits(str(np.dtype(dtype))):
            return (_of_cut_operands(asked, magnitudes, magnitude, bits, u, tiny),)
        return (direct,)

    return bound


def _of_cut_operands(
    problem: Problem, magnitudes: Mapping[str, np.ndarray], magnitude: np.ndarray, bits: int, u: float, tiny: float
) -> np.ndarray:
    """Tensor cores cut both operands to so many bits and truncate, not round, where they add: twice the unit in both.

    What is split in parts has three sums for each product.
    """
    count = counts(problem)
    added = 3 * count if problem.precision in ("3xtf32", "f16x3") else count
    unit = 2.0 ** (1 - bits)
    bound = gamma(added + 1, 2 * u) * magnitude + count * tiny
    bound = bound + ((1 + unit) ** 2 - 1) * (magnitude + bound)
    if problem.precision == "fp16":
        # Half precision also loses what lies below its subnormals.
        beside = [problem.specified({**magnitudes, name: np.ones_like(each)}) for name, each in magnitudes.items()]
        bound = bound + FP16_TINY * (sum(beside) + count * FP16_TINY)
    if problem.precision == "f16x3":
        greatest = {name: _greatest(problem, name, each) for name, each in magnitudes.items()}
        beside = [problem.specified({**magnitudes, name: each}) for name, each in greatest.items()]
        bound = bound + SCALED_TINY * (sum(beside) + SCALED_TINY * problem.specified(greatest))
    return bound


def _greatest(problem: Problem, name: str, magnitude: np.ndarray) -> np.ndarray:
    """What shares a scale, all as great as its greatest: an image, or the weights of a filter (of dx: of a channel)."""
    axis = 1 if name == "weight" and problem.operator.endswith(".dx") else 0
    others = tuple(each for each in range(magnitude.ndim) if each != axis)
    return np.broadcast_to(magnitude.max(others, initial=0, keepdims=True), magnitude.shape)


def _sgd(
    problem: Problem, magnitudes: Mapping[str, np.ndarray], u: float, tiny: float
) -> tuple[np.ndarray, np.ndarray]:
    """Two products, two sums and two rounded rates: no entry passes more than six roundings."""
    rate, momentum = problem.options["learning_rate"], problem.options["momentum"]
    velocity = momentum * magnitudes["velocity"] + magnitudes["gradient"]
    parameter = magnitudes["parameter"] + rate * velocity
    return gamma(6, u) * parameter + 2 * tiny, gamma(3, u) * velocity + tiny


def _cross_entropy(problem: Problem, arrays: Mapping[str, np.ndarray], u: float, tiny: float) -> tuple[np.ndarray, ...]:
    """With `z = logits - max`, `e = exp(z)`, `S = sum e >= 1`, `p = e / S`:

    rounding z leaves e off by a factor exp(|z|u), the function by 2 ulp, so e by `a = |z|u + 4u`; S by
    `b = sum p*a + gamma(k)`; log S by `b + 4u*log S`. Each is first order, so `t / (1 - t)` closes the chain.
    """
    logits, target = arrays["logits"].astype(np.float64), arrays["target"]
    n, k = logits.shape
    z = logits - logits.max(axis=1, keepdims=True)
    e = np.exp(z)
    total = e.sum(axis=1, keepdims=True)
    p = e / total
    # Where exp underflows the relative error is lost, the absolute one is not: it stays below the smallest number.
    e_error = np.minimum(np.abs(z) * u, 1) + 2 * FUNCTION_ULPS * u
    total_error = _closed((p * e_error).sum(axis=1, keepdims=True) + gamma(k, u)) + k * tiny
    if problem.operator == "cross_entropy":
        log_total = np.log(total)
        z_target = np.abs(np.take_along_axis(z, target[:, None], axis=1))
        row = (log_total + z_target)[:, 0]
        row_error = (total_error + 2 * FUNCTION_ULPS * u * log_total + u * z_target)[:, 0]
        return (np.asarray((row_error + gamma(n + 2, u) * (row + row_error)).sum() / n + tiny),)
    is_target = np.arange(k) == target[:, None]
    # As a quotient, or as exp(z - log S): there log S has its own error, and the difference is rounded once more.
    difference_error = u * np.abs(z) + (1 + 2 * FUNCTION_ULPS) * u * np.log(total)
    p_error = p * _closed(e_error + total_error + np.maximum(u, difference_error))
    result = np.abs(p - is_target) + p_error
    return ((p_error + gamma(2, u) * result) / n + 2 * tiny,)


def _closed(t: np.ndarray) -> np.ndarray:
    return t / (1 - t)
