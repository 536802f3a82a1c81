"""Winograd's transforms of a 3x3 convolution, exact: kernels round them, proofs bound the rounding by their magnitudes.

`y = AT [(G w GT) * (BT x B)] A` is an output tile of size x size from an input tile of (size + 2) x (size + 2), with
one product for each of (size + 2)**2 points: for size 2 that is 2.25 times, for size 4 four times fewer than direct.
"""

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TypeAlias

Matrix: TypeAlias = tuple[tuple[Fraction, ...], ...]

TAPS = 3

POINTS = {
    2: (Fraction(0), Fraction(1), Fraction(-1)),
    # They err a quarter of what 0, +-1, +-2 do: their powers stay near one and their differences apart.
    4: (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2)),
}
"""Where the polynomials are evaluated, for each size of tile; infinity is the last point of each."""


@functools.cache
def matrices(size: int) -> tuple[Matrix, Matrix, Matrix]:
    """`AT` (size, points), `G` (points, 3) and `BT` (points, points), by Cook and Toom.

    A tile is a product of polynomials, read transposed. For point i, column i of AT holds its powers, row i of G these
    over `prod_j (point_i - point_j)`, row i of BT the coefficients of `prod_j (t - point_j)`, j over the others.
    AT and BT are exact in floating point. Rows scaled by powers of two would round the same.
    Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2015; Blahut, Fast Algorithms, 2010.
    """
    points = POINTS[size]
    g, bt = [], []
    for i, point in enumerate(points):
        others = [*points[:i], *points[i + 1 :]]
        denominator = math.prod((point - other for other in others), start=Fraction(1))
        g.append(tuple(point**power / denominator for power in range(TAPS)))
        bt.append((*_with_roots(others), Fraction(0)))
    g.append(tuple(Fraction(power == TAPS - 1) for power in range(TAPS)))
    bt.append(_with_roots(points))
    at = tuple((*(point**power for point in points), Fraction(power == size - 1)) for power in range(size))
    return at, tuple(g), tuple(bt)


def transposed(matrix: Matrix) -> Matrix:
    """Rows as columns."""
    return tuple(zip(*matrix, strict=True))


def _with_roots(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients of `prod (t - root)`, the constant first."""
    product = (Fraction(1),)
    for root in roots:
        product = tuple(low - root * high for low, high in zip((0, *product), (*product, 0), strict=True))
    return product
