"""How far a convolution by fast Fourier transforms may be from real arithmetic: relative to norms, not to each element.

A transform spreads the rounding of every input over every output, so a small result errs by large ones that stand
beside it. What is bounded are the pictures of one image and one filter, as wholes, by their norms.

The transform. Each of its stages multiplies by a twiddle factor, `|error| <= (sqrt(2)*2 + 1)*u`, and takes sums of r
terms, `<= (r + 2.83)*u` of their magnitudes, which in the 2-norm are at most sqrt(r) times the result. So a stage of
radix r is off by `(3.83 + sqrt(r)*(r + 2.83))*u`, for r from 2 to 11 by less than `15*u` for each of its log2(r) bits;
radix 2 alone has less than half of that. A transform of `bits = log2(N)` is off, in the 2-norm and relative to it, by

    e = bits*15*u / (1 - bits*15*u)

The convolution of x and w with transforms X and W, unscaled: `|X|_2 = sqrt(N)*|x|_2` and `|W|_inf <= |w|_1`.

- Errors of X and of W. An output is 1/N times a sum over the frequencies, so Cauchy and Schwarz leave of both
  `((1 + e)**2 - 1) * |x|_2*|w|_2`.
- Products of complex numbers and their sum over channels, scaling, bias: gamma(channels + 6) of the same.
- The transform back. It is off by e times the norm of all that it gives, `<= |x|_2*|w|_1`, and W's own error counts
  there as it may stand in a single frequency, so by `e*(1 + e*sqrt(N))`.

Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., 3.6 (complex numbers), 24.1 (theorem 24.2).
Chirps for lengths with large prime factors (Bluestein) are not in the derivation; they are far from the bound, too.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kernelproof.spec import Window

if TYPE_CHECKING:
    from .problems import Problem

A_BIT = 15
"""Roundings for each bit of a transform's length."""

BESIDE = 6
"""Roundings beside the sum over channels: a complex product 3, the scale and scaling 2, the bias 1."""


def is_fft(problem: "Problem") -> bool:
    """Whether a kernel that declares FFT may compute the problem with it: a convolution, of any geometry."""
    return problem.precision == "fft" and problem.operator in ("conv2d", "conv2d.dx", "conv2d.dweight")


def fft_bound(problem: "Problem", magnitudes: Mapping[str, np.ndarray], u: float, tiny: float) -> np.ndarray:
    """For each element of a convolution or its gradient, the error that transforms in unit roundoff u may leave."""
    groups, argument = problem.options["groups"], problem.operator.partition(".d")[2]
    shape = problem.shapes[argument] if argument else problem.output
    # What underflows is lost absolutely: as if every operand were off by the smallest number.
    given = {name: each + tiny for name, each in magnitudes.items() if name != "bias"}
    pictures = {
        name: each.reshape(groups, len(each) // groups, *each.shape[1:])
        if name == "weight"
        else each.reshape(len(each), groups, each.shape[1] // groups, *each.shape[2:])
        for name, each in given.items()
    }
    one, two = ({name: _norm(each, order) for name, each in pictures.items()} for order in (1, 2))
    letters = {"x": "ngc", "dy": "ngk", "weight": "gkc"}
    (a, b), result = given, {"": "ngk", "x": "ngc", "weight": "gkc"}[argument]

    def summed(of_a: np.ndarray, of_b: np.ndarray) -> np.ndarray:
        return np.einsum(f"{letters[a]},{letters[b]}->{result}", of_a, of_b).reshape(*shape[:2], 1, 1)

    bits = _bits(problem)
    forth = A_BIT * bits * u / (1 - A_BIT * bits * u)
    terms = pictures[a].shape[letters[a].index((set(letters[a]) & set(letters[b]) - {"g"}).pop())]
    beside = (terms + BESIDE) * u / (1 - (terms + BESIDE) * u)
    back = forth * (1 + forth) * (1 + beside) * (1 + forth * 2 ** (bits / 2))
    # (1 + forth)**2 * (1 + beside) - 1, without the 1 that float64 would round it beside.
    bound = (forth * (2 + forth) * (1 + beside) + beside) * summed(two[a], two[b])
    bound = bound + back * np.minimum(summed(two[a], one[b]), summed(one[a], two[b]))
    if "bias" in magnitudes:
        bound = bound + beside * magnitudes["bias"][:, None, None]
    return np.broadcast_to(bound + tiny, shape)


def _norm(pictures: np.ndarray, order: int) -> np.ndarray:
    return (pictures**order).sum(axis=(-2, -1)) ** (1 / order)


def _bits(problem: "Problem") -> int:
    """log2 of the points of a transform: the padded image with room for the filter on both sides, to powers of two."""
    r, s = problem.shapes["weight"][2:]
    window = Window((r, s), *(problem.options[name] for name in ("stride", "padding", "dilation")))
    sizes = (
        size + sum(window.padding[axis]) + 2 * (window.extent(axis) - 1)
        for axis, size in enumerate(problem.shapes["x"][2:])
    )
    return sum((size - 1).bit_length() for size in sizes)
