"""The CPU kernels in float64 past one task, which the laws' problems reach by one element at most."""

import numpy as np
import pytest

from kernelproof import kernels, spec


def whole(seed: int, *shape: int) -> np.ndarray:
    """Numbers whose products sum without rounding in any order."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float64)


@pytest.mark.parametrize("size", [0, 1, 2**14 - 1, 2**14, 3 * 2**14 + 17])
def test_elements_at_the_edges_of_tasks(size: int) -> None:
    x, dy, velocity = whole(0, size), whole(1, size), whole(2, size)
    x[::5], x[1::7] = np.nan, -0.0
    assert kernels.relu(x).tobytes() == spec.relu(x).tobytes()
    assert kernels.relu_dx(dy, x).tobytes() == spec.relu_dx(dy, x).tobytes()
    for came, right in zip(
        kernels.sgd(x, dy, velocity, learning_rate=0.5, momentum=0.25),
        spec.sgd(x, dy, velocity, learning_rate=0.5, momentum=0.25),
        strict=True,
    ):
        assert np.array_equal(came, right, equal_nan=True)
