"""How far a correct run of a whole chain may be from real arithmetic: each layer's bound, carried to the next."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from kernelproof.spec.chain import SpecChain, specification
from kernelproof.spec.layers import Layer

from .bounds import gamma, unit_roundoff


def chain_bound(
    chain: SpecChain, parameters: Mapping[str, Any], x: np.ndarray, dtype: Any
) -> tuple[np.ndarray, np.ndarray]:
    """The output for a batch x in float64, and for each entry the error that computing in `dtype` may leave there.

    A layer that got `x` with an error up to e hands on one up to

    - `W e + gamma(n + 1) * (W (abs x + e) + abs b) + n*tiny`, W the magnitudes of its weights, if it sums n products;
    - `max_pool2d(e)`, `flatten(e)`, `e` if it pools, flattens, rectifies: that rounds nothing and is no steeper than 1.

    n roundings are enough for n products and a bias. The unit is the dtype's and float64's together, for the output
    here is rounded too.
    Source: Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., ch. 3.
    """
    own = chain.parameters(parameters).astype(np.float64)
    y = x.astype(np.float64)
    error = np.zeros_like(y)
    for step in chain.steps:
        arrays = own.of_layer(step.name)
        error = _carried(step.layer, arrays, y, error, dtype)
        y = step.layer.forward(specification, arrays, y)
    return y, error


def _carried(
    layer: Layer, arrays: Mapping[str, np.ndarray], x: np.ndarray, error: np.ndarray, dtype: Any
) -> np.ndarray:
    if not arrays:
        return layer.forward(specification, {}, error)
    magnitudes = {key: np.abs(array) for key, array in arrays.items()}
    ones = {key: np.ones_like(array) for key, array in arrays.items()}
    terms = layer.forward(specification, ones, np.ones_like(x))
    sums = layer.forward(specification, magnitudes, np.abs(x) + error)
    steepest = layer.forward(specification, {"weight": magnitudes["weight"]}, error)
    return (
        steepest
        + gamma(terms + 1, unit_roundoff(dtype) + unit_roundoff("float64")) * sums
        + terms * np.finfo(dtype).smallest_subnormal
    )
