"""The fast CPU kernels at sizes around their vectors and tiles, which the laws' small problems do not reach."""

import itertools

import numpy as np
import pytest

from kernelproof import kernels, spec


def whole(seed: int, *shape: int) -> np.ndarray:
    """Numbers whose products sum without rounding in any order."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32)


@pytest.mark.parametrize("k", [1, 4, 15, 16, 17, 33])
@pytest.mark.parametrize("c", [1, 15, 16, 17, 31, 33, 130, 1100])
def test_linear_at_the_edges_of_its_tiles(c: int, k: int):
    for n in (1, 5, 6, 7, 13, 14, 15, 29, 49):
        x, weight, bias, dy = whole(0, n, c), whole(1, k, c), whole(2, k), whole(3, n, k)
        assert np.array_equal(kernels.linear(x, weight, bias), spec.linear(x, weight, bias))
        assert np.array_equal(kernels.linear_dx(dy, weight), spec.linear_dx(dy, weight))
        assert np.array_equal(kernels.linear_dweight(dy, x), spec.linear_dweight(dy, x))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((3, 2), (1, 2), (1, 0))])
@pytest.mark.parametrize("width", [13, 14, 15, 16, 17, 31, 32, 33, 34, 65])
def test_pooling_at_the_edges_of_its_vectors(width: int, kernel, stride, padding):
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    # Ties, NaN, infinities and zeros of both signs; images enough that the inner ones may be read beyond their rows.
    values = np.array([1, 2, 3, np.nan, np.inf, -np.inf, -0.0, 0.0], np.float32)
    for height, images in itertools.product((7, 8), (1, 9)):
        x = np.random.default_rng(width).choice(values, (images, 3, height, width))
        y, index = spec.max_pool2d(x, **options, return_indices=True)
        came, where = kernels.max_pool2d(x, **options, return_indices=True)
        assert np.array_equal(came, y, equal_nan=True)
        assert np.array_equal(where, index)
        assert kernels.max_pool2d(x, **options).tobytes() == came.tobytes()
        dy = whole(1, *y.shape)
        assert np.array_equal(kernels.max_pool2d_dx(dy, x, **options), spec.max_pool2d_dx(dy, x, **options))
