"""How far Winograd's convolution may be from real arithmetic: its own steps on magnitudes, times gamma of their number.

Each step is a sum of products; on absolute values, with the transforms' absolute entries, the same steps give for each
output what its rounding errors are relative to. It is componentwise, but in what a whole tile holds: an output may err
by a large neighbour that it does not depend on.
Source: Higham, ch. 3; Barabasz et al., Error Analysis and Improving the Accuracy of Winograd Convolution, 2020.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from kernelproof.kernels.winograd_matrices import TAPS, Matrix, matrices, transposed

if TYPE_CHECKING:
    from .problems import Problem

SIZES: Mapping[str, int] = {"winograd2": 2, "winograd4": 4}
"""The tile size by the name of the precision class."""


def is_winograd(problem: "Problem") -> bool:
    """Whether a kernel that declares Winograd may compute the problem with it: elsewhere it rounds as others do."""
    options = problem.options
    return (
        problem.precision in SIZES
        and problem.operator in ("conv2d", "conv2d.dx", "conv2d.dweight")
        and problem.shapes["weight"][2:] == (TAPS, TAPS)
        and options["stride"] == options["dilation"] == (1, 1)
    )


def winograd_bound(problem: "Problem", magnitudes: Mapping[str, np.ndarray], u: float, tiny: float) -> np.ndarray:
    """For each element of a convolution or its gradient, the error that Winograd in unit roundoff u may leave."""
    size = SIZES[problem.precision or ""]
    groups = problem.options.get("groups", 1)
    (top, bottom), (left, right) = problem.options.get("padding", ((0, 0), (0, 0)))
    # What underflows is lost absolutely: as if every operand were off by the smallest number.
    given = {name: each + tiny for name, each in magnitudes.items()}
    if problem.operator == "conv2d.dweight":
        bound = _dweight(given["dy"], _padded(given["x"], (top, bottom), (left, right)), size, groups, u)
    elif problem.operator == "conv2d.dx":
        k, c_of_group, *_ = given["weight"].shape
        turned = given["weight"][:, :, ::-1, ::-1].reshape(groups, k // groups, c_of_group, TAPS, TAPS)
        weight = turned.transpose(0, 2, 1, 3, 4).reshape(groups * c_of_group, k // groups, TAPS, TAPS)
        dy = _padded(given["dy"], (2 - top, 2 - bottom), (2 - left, 2 - right))
        bound = _forward(dy, weight, 0.0, size, groups, u)
    else:
        bias = given["bias"][:, None, None] if "bias" in given else 0.0
        x = _padded(given["x"], (top, bottom), (left, right))
        bound = _forward(x, given["weight"], bias, size, groups, u)
    return bound + tiny


def _forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | float, size: int, groups: int, u: float
) -> np.ndarray:
    """`|AT| [sum_c (|G| w |GT|) * (|BT| x |B|)] |A| + |b|`, tile by tile, times gamma of the roundings on its way."""
    at, g, bt = (_absolute(each) for each in matrices(size))
    (n, _, h, w), (k, channels, *_) = x.shape, weight.shape
    down, across = -(-(h - 2) // size), -(-(w - 2) // size)
    tiles = _tiles(x, size + 2, size, down, across).reshape(n, groups, channels, down, across, size + 2, size + 2)
    points_of_x = np.einsum("ia,ngcyxab,jb->ngcyxij", bt, tiles, bt)
    points_of_w = np.einsum("ia,gkcab,jb->gkcij", g, weight.reshape(groups, k // groups, channels, TAPS, TAPS), g)
    products = np.einsum("gkcij,ngcyxij->ngkyxij", points_of_w, points_of_x)
    y = np.einsum("pi,ngkyxij,qj->ngkypxq", at, products, at).reshape(n, k, down * size, across * size)
    roundings = channels + 1 + 2 * (_terms(at) + _terms(g) + 1 + _terms(bt))
    return _gamma(roundings, u) * (y[:, :, : h - 2, : w - 2] + bias)


def _dweight(dy: np.ndarray, x: np.ndarray, size: int, groups: int, u: float) -> np.ndarray:
    """`|GT| [sum_tiles (|A| dy |AT|) * (|BT| x |B|)] |G|`, times gamma of the roundings on its way."""
    at, g, bt = (_absolute(each) for each in matrices(size))
    (n, k, p, q), c = dy.shape, x.shape[1]
    down, across = -(-p // size), -(-q // size)
    tiles_of_x = _tiles(x, size + 2, size, down, across).reshape(
        n, groups, c // groups, down, across, size + 2, size + 2
    )
    tiles_of_dy = _tiles(dy, size, size, down, across).reshape(n, groups, k // groups, down, across, size, size)
    points_of_x = np.einsum("ia,ngcyxab,jb->ngcyxij", bt, tiles_of_x, bt)
    points_of_dy = np.einsum("ai,ngkyxab,bj->ngkyxij", at, tiles_of_dy, at)
    products = np.einsum("ngkyxij,ngcyxij->gkcij", points_of_dy, points_of_x)
    dweight = np.einsum("ir,gkcij,js->gkcrs", g, products, g).reshape(k, c // groups, TAPS, TAPS)
    terms = sum(_terms(each) for each in (transposed(matrices(size)[0]), transposed(matrices(size)[1])))
    return _gamma(n * down * across + 2 * (terms + 1 + _terms(bt)), u) * dweight


def _padded(x: np.ndarray, *sides: tuple[int, int]) -> np.ndarray:
    """Padded; where the padding is negative, as the input gradient's past the filter's reach, cropped."""
    padded = np.pad(x, ((0, 0), (0, 0), *((max(0, before), max(0, after)) for before, after in sides)))
    kept = (
        slice(max(0, -before), size - max(0, -after))
        for (before, after), size in zip(sides, padded.shape[2:], strict=True)
    )
    return padded[:, :, *kept]


def _tiles(x: np.ndarray, extent: int, step: int, down: int, across: int) -> np.ndarray:
    """`[n, c, tile row, tile column, extent, extent]`, zero beyond x."""
    rows, columns = (
        max(0, (count - 1) * step + extent - size) for count, size in zip((down, across), x.shape[2:], strict=True)
    )
    whole = _padded(x, (0, rows), (0, columns))
    windows = np.lib.stride_tricks.sliding_window_view(whole, (extent, extent), axis=(2, 3))
    return windows[:, :, : (down - 1) * step + 1 : step, : (across - 1) * step + 1 : step]


def _absolute(matrix: Matrix) -> np.ndarray:
    return np.abs(np.array(matrix, np.float64))


def _terms(matrix: Matrix | np.ndarray) -> int:
    """Most terms in a row: as many roundings, with or without fused multiply-adds."""
    return max(sum(each != 0 for each in row) for row in matrix)


def _gamma(n: int, u: float) -> float:
    return n * u / (1 - n * u)
