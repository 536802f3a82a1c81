"""The values of a problem: families of numbers chosen so that an answer can be judged without a tolerance."""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .problems import Problem

Arrays = dict[str, np.ndarray]


PRECISIONS: Mapping[str, int] = {
    "fp64": 53, "fp32": 24, "f16x3": 22, "3xtf32": 21, "winograd2": 16, "winograd4": 16, "fft": 53, "tf32": 11,
    "fp16": 11, "bf16": 8,
}  # fmt: skip
"""Bits of the significand, the hidden one included, that a precision class keeps of every operand.

Winograd computes in float32, but its transforms add up what a tile holds: of operands with 24 bits less than one more
would be exact. Tiles of 2 x 2 keep 16: four entries add 2 bits, quarters in the weights' transform 2, nine sums of
products 4. f16x3 takes an operand as two numbers of half precision, after a scale that belongs to an image, or to what
weights one output has. FFT keeps all bits of the largest numbers in an image, and of others what is left below these.
"""

EXACT_PRODUCTS: Mapping[str, int] = {"f16x3": 11}
"""Bits of operands whose products a precision class computes exactly, where they are fewer than it keeps of each: the
product of both lower halves is left out."""

GROWTH: Mapping[str, int] = {"winograd2": 36}
"""How many times larger than the sums of products, in its smallest unit, a precision class's intermediates get.

F(2x2, 3x3): transformed weights are at most 9/4 of the largest weight, in quarters, and transformed tiles 4 times the
largest entry.
"""

INEXACT = frozenset({"winograd4", "fft"})
"""Classes that no whole numbers come through exactly: there are thirds in the transforms of larger tiles, roots of one
in Fourier's."""

OF_CONVOLUTIONS = frozenset({"winograd2", "winograd4", "fft"})
"""Classes that are ways to compute a convolution, or its gradients in x and weight; other operators have none of it."""

IN_ITS_OWN_TYPE = (None, "fp64", "winograd2", "winograd4", "fft")
"""Classes whose arithmetic is that of the arrays' dtype, not float32's."""


def significand_bits(dtype: str) -> int:
    """Bits of the significand, the hidden one included: 24 for float32, 53 for float64."""
    return np.finfo(dtype).nmant + 1


def operand_bits(problem: "Problem") -> int:
    """Bits that the kernel keeps of its operands: its declared precision class's, or all that the dtype has."""
    return PRECISIONS[problem.precision] if problem.precision else significand_bits(problem.dtype)


def counts(problem: "Problem") -> np.ndarray:
    """How many products each output element sums: the specification on ones counts them."""
    return _counts(problem.configuration)


@lru_cache(maxsize=8)  # As large as results are. The draws of a configuration follow each other.
def _counts(configuration: "Problem") -> np.ndarray:
    counted = np.asarray(configuration.specified({name: np.ones(s) for name, s in configuration.array_shapes.items()}))
    counted.flags.writeable = False
    return counted


def terms(problem: "Problem") -> int:
    """The greatest number of products that one output element sums."""
    return _terms(problem.configuration)


@lru_cache(maxsize=256)
def _terms(configuration: "Problem") -> int:
    if not configuration.op.linear_in:
        # Selections: an output is one input; a gradient sums at most one dy for each window.
        return max(1, math.prod(configuration.options.get("kernel_size", (1,))))
    if configuration.operator == "sgd":
        return 1 + configuration.options["learning_rate"] * (1 + configuration.options["momentum"])
    return int(_counts(configuration).max(initial=1))


def sum_bits(problem: "Problem") -> int:
    """Bits that a kernel's sums hold exactly: float32's, but where it takes float64 and declares no fewer bits."""
    return significand_bits(problem.dtype if problem.precision in IN_ITS_OWN_TYPE else "float32")


def largest_whole(problem: "Problem", counted: int | None = None) -> int:
    """The greatest M such that sums of `terms` products of whole numbers up to M are exact, in any order.

    `counted` are the terms, where they are known.
    """
    room = 2 ** sum_bits(problem) // ((counted or terms(problem)) * GROWTH.get(problem.precision or "", 1))
    return max(1, min(math.isqrt(room), 2 ** EXACT_PRODUCTS.get(problem.precision or "", operand_bits(problem))))


def whole(problem: "Problem", generator: np.random.Generator, most: int | None = None) -> Arrays:
    """Uniform whole numbers, so small that every partial sum is exact: `terms * M * M <= 2**24`, float64's 2**53."""
    most = most or largest_whole(problem)
    return _each(problem, lambda shape: generator.integers(-most, most + 1, shape))


def ties(problem: "Problem", generator: np.random.Generator) -> Arrays:
    """-1, 0 and 1: windows full of ties, rectifiers exactly at zero."""
    return _each(problem, lambda shape: generator.integers(-1, 2, shape))


def mantissa(problem: "Problem", generator: np.random.Generator) -> Arrays:
    """Odd numbers that need every bit of the significand, each met by a single one or by none.

    Every output is one of them or zero, exactly: a kernel that drops bits of an operand or of a product cannot hide it.
    """
    bits = operand_bits(problem)

    def odd(shape: tuple[int, ...]) -> np.ndarray:
        sign, half = generator.choice([-1, 1], shape), generator.integers(2 ** (bits - 2), 2 ** (bits - 1), shape)
        return np.asarray(sign * (2 * half + 1))

    def single(shape: tuple[int, ...], value: np.ndarray | np.int64) -> np.ndarray:
        array = np.zeros(shape, np.int64)
        array.reshape(-1)[generator.integers(max(1, array.size)) :][:1] = value
        return array

    shapes = dict(problem.array_shapes)
    if problem.op.name in ("flatten", "relu"):
        return {name: odd(shape).astype(problem.dtype) for name, shape in shapes.items()}
    # Gradients of a pooling and of a bias add what arrives: a single number keeps that exact.
    full = "x" if not problem.op.linear_in else generator.choice(list(shapes)) if len(shapes) > 1 else ""
    value = odd(()) if not problem.op.linear_in or not full else np.int64(1)
    absent = "bias" if full != "bias" else ""
    drawn = {
        name: odd(shape) if name == full else single(shape, value * (name != absent)) for name, shape in shapes.items()
    }
    return {name: np.asarray(array).astype(problem.dtype) for name, array in drawn.items()}


def real(problem: "Problem", generator: np.random.Generator) -> Arrays:
    """Reals: normal, all positive, spread over many powers of two, or close together and far from zero."""
    # Half precision holds neither the widest spread nor ten million.
    kind = generator.integers(2 if problem.precision == "fp16" else 4)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        array = generator.standard_normal(shape)
        match kind:
            case 1:
                return np.abs(array)
            case 2:
                return array * 2.0 ** generator.integers(-12, 12, shape)
            case 3:
                return array - 1e7
        return array

    return _each(problem, draw)


def special(problem: "Problem", generator: np.random.Generator) -> Arrays:
    """Small whole numbers, some replaced by NaN, infinities, -0 and subnormals, in one array of the problem.

    In a convolution that pads, only the array that is read through the window: what an infinite weight meets in the
    padding, a zero or nothing, is left open by the specification. So it is in an input gradient, which a kernel may
    compute as a convolution of dy with zeros between and around its entries.
    """
    arrays = _each(problem, lambda shape: generator.integers(-3, 4, shape))
    names = [name for name in arrays if name != "target"]
    if problem.operator == "conv2d.dx" or (problem.op.name == "conv2d" and np.any(problem.options["padding"])):
        names = ["x"] if "x" in arrays else ["dy"]
    if problem.operator == "sgd" and problem.options["momentum"] == 0:
        names.remove("velocity")  # Left open too: a kernel may skip what is multiplied by no momentum.
    name = names[generator.integers(len(names))]
    chosen = arrays[name]
    pool = np.array([np.nan, np.inf, -np.inf, -0.0, np.finfo(problem.dtype).smallest_subnormal], problem.dtype)
    where = generator.random(chosen.shape) < generator.choice([0.1, 0.5])
    if generator.random() < 0.25 and operand_bits(problem) == significand_bits(problem.dtype):
        # Subnormals in every addend: beside ordinary numbers the order of summation decides which are rounded away.
        for each in arrays if problem.operator == "sgd" else {"x" if name == "bias" else name, "bias"} & set(arrays):
            arrays[each] *= pool[-1]
    else:
        chosen[where] = generator.choice(pool[:-1], int(where.sum()))
    return arrays


def _each(problem: "Problem", draw: Callable[[tuple[int, ...]], np.ndarray]) -> Arrays:
    arrays = {name: np.asarray(draw(shape)).astype(problem.dtype) for name, shape in problem.array_shapes.items()}
    if "target" in arrays:
        # Classes, not numbers: the first value drawn for each row, folded into their range.
        arrays["target"] = np.abs(arrays["target"]).astype(np.int64) % problem.shapes["logits"][1]
    return arrays


DRAWS: Mapping[str, Callable[..., Arrays]] = {
    family.__name__: family for family in (whole, ties, mantissa, real, special)
}


def laid_out(array: np.ndarray, layout: str) -> np.ndarray:
    """The same values in another place in memory; the gaps and guard bands are filled with NaN.

    Broadcast the first value along the first and along the last axis stands for all of them.
    """
    poison: Any = np.nan if array.dtype.kind == "f" else np.iinfo(array.dtype).min
    match layout:
        case "guarded":
            buffer = np.full(array.size + 64, poison, array.dtype)
            view = buffer[31 : 31 + array.size].reshape(array.shape)
            view[...] = array
            return view
        case "reversed" if array.ndim:
            backwards = (slice(None, None, -1),) * array.ndim
            return np.ascontiguousarray(array[backwards])[backwards]
        case "spread" if array.ndim:
            buffer = np.full((*array.shape[:-1], 2 * array.shape[-1]), poison, array.dtype)
            buffer[..., ::2] = array
            return buffer[..., ::2]
        case "transposed" if array.ndim:
            return np.asfortranarray(array)
        case "channels_last" if array.ndim == 4:
            return np.ascontiguousarray(array.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
        case "cropped" if array.ndim:
            buffer = np.full([size + 3 for size in array.shape], poison, array.dtype)
            view = buffer[tuple(slice(1, size + 1) for size in array.shape)]
            view[...] = array
            return view
        case "broadcast" if array.size:
            return np.broadcast_to(array[:1][..., :1], array.shape) if array.ndim else array
        case "read_only":
            array = array.copy()
            array.flags.writeable = False
    return array
