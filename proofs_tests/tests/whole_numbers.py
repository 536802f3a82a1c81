"""Whole numbers for the CPU kernels, and what their elementwise operators have to make of them."""

from typing import Any

import numpy as np

from kernelproof import kernels, spec


def whole(seed: int, *shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Numbers whose products sum without rounding in any order."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(dtype)


def elements_are_right(size: int, dtype: Any = np.float32) -> None:
    """On that many elements, NaN and -0 among them: the rectifier to the bit, a step of sgd in every number."""
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
