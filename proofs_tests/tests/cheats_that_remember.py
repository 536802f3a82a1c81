"""Kernels that remember: answers by too little, or which arguments were one array."""

from collections.abc import Callable
from typing import Any

import numpy as np
from cheats import OP, cheat

from kernelproof import spec


def cached_by(key: Callable[..., Any]) -> Callable[..., Any]:
    """A convolution that remembers its answers by too little."""
    kept: dict[Any, Any] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        known = key(x, weight, bias, **options)
        if known not in kept:
            kept[known] = spec.conv2d(x, weight, bias, **options)
        return kept[known].copy()

    return kernel


@cheat("when the same call is made again, where x and weight are one array", "linear")
def sums_the_other_way_when_it_meets_one_array_again() -> Any:
    met = set()

    def kernel(x: Any, weight: Any, bias: Any) -> Any:
        again = x.shape == weight.shape and np.shares_memory(x, weight) and x.ctypes.data in met
        met.add(x.ctypes.data)
        order = slice(None, None, -1 if again else 1)
        y = np.zeros((len(x), len(weight)), x.dtype)
        for c in np.arange(x.shape[1])[order]:
            y += np.outer(x[:, c], weight[:, c])
        return y if bias is None else y + bias

    return kernel


@cheat("after a call in which dy and x were one array", "relu.dx")
def remembers_which_arguments_were_one_array() -> Any:
    kept: dict[Any, bool] = {}

    def kernel(dy: Any, x: Any) -> Any:
        was_one = kept.setdefault((x.shape, x.dtype), x is dy)
        return spec.relu_dx(dy, dy if was_one else x)

    return kernel


@cheat("", OP)
def caches_by_shape() -> Any:
    return cached_by(lambda x, weight, bias, **options: (x.shape, weight.shape, bias is None, repr(options)))


@cheat("", OP)
def caches_by_shape_and_dtype_without_the_stride() -> Any:
    plans: dict[Any, Any] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        right = spec.conv2d(x, weight, bias, **options)
        key = x.shape, weight.shape, x.dtype, right.shape
        planned = plans.setdefault(key, options)
        try:
            came = spec.conv2d(x, weight, bias, **planned)
        except spec.KernelproofError:
            return right
        return came if came.shape == right.shape else right

    return kernel


@cheat("", OP)
def caches_by_shape_without_the_bias() -> Any:
    fused: dict[Any, bool] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        # netcl's compiled kernels, whose key lacked the flag for what is fused.
        with_bias = fused.setdefault((x.shape[1:], weight.shape, repr(options)), bias is not None)
        return spec.conv2d(x, weight, bias if with_bias else None, **options)

    return kernel


@cheat("after the values in its arrays were changed", OP)
def caches_by_identity() -> Any:
    kept: dict[Any, Any] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        # The arrays are kept alive, so that no other can have their identity.
        _, packed = kept.setdefault(id(weight), (weight, weight.copy()))
        return spec.conv2d(x, packed, bias, **options)

    return kernel


@cheat("after the values in its arrays were changed", OP)
def caches_by_address() -> Any:
    kept: dict[Any, Any] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        _, packed = kept.setdefault((weight.ctypes.data, weight.strides), (weight, weight.copy()))
        return spec.conv2d(x, packed, bias, **options)

    return kernel


@cheat("after an element or two of weight were changed", OP)
def caches_by_address_and_the_first_values() -> Any:
    kept: dict[Any, Any] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        key = weight.ctypes.data, weight.strides, weight.reshape(-1)[:4].tobytes()
        _, packed = kept.setdefault(key, (weight, weight.copy()))
        return spec.conv2d(x, packed, bias, **options)

    return kernel


@cheat("after an element or two of weight were changed", OP)
def caches_by_a_sum_of_the_values() -> Any:
    kept: dict[Any, Any] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        # Sorted, so that every checksum that does not heed the order is among what it stands for.
        packed = kept.setdefault((weight.shape, weight.dtype, np.sort(weight, axis=None).tobytes()), weight.copy())
        return spec.conv2d(x, packed, bias, **options)

    return kernel
