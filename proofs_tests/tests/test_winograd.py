"""Winograd convolution: the transforms are exact, the kernels right at every edge, and NaN stays where it belongs."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from kernelproof import spec
from kernelproof.kernels.cpu.convolution import direct, direct_gradient, winograd, winograd_gradient
from kernelproof.kernels.cpu.launch import on_threads
from kernelproof.kernels.winograd_matrices import POINTS, TAPS, matrices

SIZES = pytest.mark.parametrize("size", POINTS)

GEOMETRIES = pytest.mark.parametrize(("n", "channels", "filters", "height", "width", "padding", "groups"), [
    (2, 15, 17, 13, 14, 1, 1), (1, 16, 16, 14, 15, 0, 1), (1, 17, 15, 15, 13, 2, 1), (3, 33, 65, 1, 5, 1, 1),
    (1, 1, 1, 3, 3, 0, 1), (2, 6, 40, 7, 9, ((0, 2), (1, 0)), 2), (1, 3, 5, 5, 700, 1, 1), (0, 4, 4, 8, 8, 1, 1),
    (2, 300, 310, 5, 6, 1, 1), (5, 192, 384, 13, 12, 1, 1),
])  # fmt: skip


def whole_numbers(shape: tuple[int, ...], most: int, factor: int = 1) -> np.ndarray:
    """Small whole numbers, times a factor: their sums are exact in float32."""
    drawn = np.random.default_rng(len(shape) + most).integers(-most, most + 1, shape)
    return (factor * drawn).astype(np.float32)


def on_tiles(kernel: Callable[..., Any], size: int) -> Callable[..., Any]:
    return lambda *arguments: kernel(*arguments, size)


@SIZES
def test_the_transforms_are_a_convolution(size: int):
    at, g, bt = matrices(size)
    for p in range(size):
        for r in range(TAPS):
            for h in range(size + TAPS - 1):
                product = sum(at[p][i] * g[i][r] * bt[i][h] for i in range(size + TAPS - 1))
                assert product == Fraction(h == p + r)


@GEOMETRIES
def test_tiles_of_two_are_exact_on_whole_numbers(
    n: int, channels: int, filters: int, height: int, width: int, padding: Any, groups: int
):
    # Each dimension of a filter's transform halves: fours leave whole numbers.
    x = whole_numbers((n, channels, height, width), 3)
    weight = whole_numbers((filters, channels // groups, 3, 3), 2, 4)
    bias, options = whole_numbers((filters,), 5), {"padding": padding, "groups": groups}
    y = spec.conv2d.perform(on_tiles(winograd.conv2d, 2), x, weight, bias, **options)
    np.testing.assert_array_equal(y, spec.conv2d(x, weight, bias, **options))
    dy = whole_numbers(y.shape, 4)
    dx = spec.conv2d_dx.perform(on_tiles(winograd.conv2d_dx, 2), dy, weight, x.shape, **options)
    np.testing.assert_array_equal(dx, spec.conv2d_dx(dy, weight, x.shape, **options))
    dy *= 4  # Here it is the result that is halved in each dimension.
    dweight = spec.conv2d_dweight.perform(on_tiles(winograd_gradient.conv2d_dweight, 2), dy, x, weight.shape, **options)
    np.testing.assert_array_equal(dweight, spec.conv2d_dweight(dy, x, weight.shape, **options))


@SIZES
def test_rectified_in_passing(size: int):
    x, weight = whole_numbers((1, 4, 9, 9), 3), whole_numbers((5, 4, 3, 3), 2)
    window = spec.Window((3, 3))
    plain = winograd.conv2d(x, weight, None, window, 1, size)
    np.testing.assert_array_equal(winograd.conv2d(x, weight, None, window, 1, size, relu=True), spec.relu(plain))


@SIZES
@pytest.mark.parametrize("outlier", [np.nan, np.inf, -np.inf, np.float32(3e38)])
def test_what_is_not_finite_lands_where_the_direct_kernel_puts_it(size: int, outlier: float):
    x, weight = whole_numbers((3, 4, 11, 12), 3), whole_numbers((5, 4, 3, 3), 2)
    window = spec.Window((3, 3), padding=((1, 1), (1, 1)))
    spoilt_x, spoilt_weight = x.copy(), weight.copy()
    spoilt_x[1, 2, 5, 6] = spoilt_weight[3, 1, 0, 2] = outlier
    for x_, weight_ in ((spoilt_x, weight), (x, spoilt_weight)):
        y, expected = winograd.conv2d(x_, weight_, None, window, 1, size), direct.conv2d(x_, weight_, None, window, 1)
        np.testing.assert_array_equal(np.isnan(y), np.isnan(expected))
        np.testing.assert_array_equal(y[np.isinf(expected)], expected[np.isinf(expected)])
        dx = winograd.conv2d_dx(y, weight_, x.shape, window, 1, size)
        expected = direct.conv2d_dx(y, weight_, x.shape, window, 1)
        np.testing.assert_array_equal(np.isnan(dx), np.isnan(expected))
        np.testing.assert_array_equal(dx[np.isinf(expected)], expected[np.isinf(expected)])
        dweight = winograd_gradient.conv2d_dweight(y, x_, weight.shape, window, 1, size)
        expected = direct_gradient.conv2d_dweight(y, x_, weight.shape, window, 1)
        np.testing.assert_array_equal(dweight, expected)


@SIZES
@pytest.mark.parametrize("shape", [(3, 20, 19, 23), (2, 160, 7, 7)])
def test_the_bits_do_not_depend_on_the_threads(size: int, shape: tuple[int, ...]):
    random = np.random.default_rng(1)
    x, dy = (random.standard_normal(each).astype(np.float32) for each in (shape, (shape[0], 192, *shape[2:])))
    weight = random.standard_normal((192, shape[1], 3, 3)).astype(np.float32)
    window = spec.Window((3, 3), padding=((1, 1), (1, 1)))

    def results(threads: int) -> list[np.ndarray]:
        with on_threads(threads):
            return [
                winograd.conv2d(x, weight, None, window, 1, size),
                winograd.conv2d_dx(dy, weight, x.shape, window, 1, size),
                winograd_gradient.conv2d_dweight(dy, x, weight.shape, window, 1, size),
            ]

    alone = results(1)
    for threads in (2, 3):
        for one, other in zip(results(threads), alone, strict=True):
            np.testing.assert_array_equal(one, other)


@SIZES
def test_by_tiles_and_by_panels_give_the_same_bits(size: int, monkeypatch: pytest.MonkeyPatch):
    random = np.random.default_rng(2)
    x, weight = (random.standard_normal(each).astype(np.float32) for each in ((2, 290, 9, 8), (70, 290, 3, 3)))
    window, results = spec.Window((3, 3)), []
    for most_weights in (0, 2**30):
        monkeypatch.setattr(winograd, "_WEIGHTS", most_weights)
        winograd.forward.cache_clear()
        assert winograd.forward(window, x.shape, weight.shape, 1, size, 1).by_panels == (most_weights == 0)
        with on_threads(1):
            results.append(winograd.conv2d(x, weight, None, window, 1, size))
    winograd.forward.cache_clear()
    np.testing.assert_array_equal(*results)
