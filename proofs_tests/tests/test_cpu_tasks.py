"""The CPU kernels on arrays of several tasks, which the laws' problems reach by one element at most."""

from typing import Any

import numpy as np
import pytest

from kernelproof import kernels, spec


def whole(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Numbers whose products sum without rounding in any order."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(dtype)


@pytest.mark.parametrize("size", [0, 1, 2**14 - 1, 2**14, 3 * 2**14 + 17])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_elements_of_several_chunks(size: int, dtype: Any) -> None:
    x, dy, velocity = (whole(seed, size, dtype=dtype) for seed in range(3))
    x[::5], x[1::7] = np.nan, -0.0
    assert kernels.relu(x).tobytes() == spec.relu(x).tobytes()
    assert kernels.relu_dx(dy, x).tobytes() == spec.relu_dx(dy, x).tobytes()
    for came, right in zip(
        kernels.sgd(x, dy, velocity, learning_rate=0.5, momentum=0.25),
        spec.sgd(x, dy, velocity, learning_rate=0.5, momentum=0.25),
        strict=True,
    ):
        assert np.array_equal(came, right, equal_nan=True)


# Small images are pooled several as one; of tall ones the gradient is spread in several goes.
@pytest.mark.parametrize("shape", [(40, 3, 16, 34), (7, 13, 18, 17), (2, 2, 260, 66), (2, 1, 91, 130)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((2, 3), (2, 2), 0)])
def test_pooling_of_several_stacks_of_images(shape: tuple[int, ...], kernel: Any, stride: Any, padding: int) -> None:
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    x = whole(0, *shape)
    y, index = spec.max_pool2d(x, **options, return_indices=True)
    came, where = kernels.max_pool2d(x, **options, return_indices=True)
    assert np.array_equal(came, y)
    assert np.array_equal(where, index)
    assert np.array_equal(kernels.max_pool2d(x, **options), y)
    dy = whole(1, *y.shape)
    assert np.array_equal(kernels.max_pool2d_dx(dy, x, **options), spec.max_pool2d_dx(dy, x, **options))
