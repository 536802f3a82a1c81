"""JAX: `jax.lax` and `jax.nn`, gradients by `jax.vjp`, float32 as JAX is set when it starts.

`lax.reduce_window` has neither `ceil_mode` nor indices: both are declined. There is no `sgd`, optax is another package.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernelproof.proofs.subject import Subject

from . import framework
from .autograd import differentiated

jax = framework("jax", "jax")
lax, jnp = jax.lax, jax.numpy


def conv2d(x: Any, weight: Any, bias: Any = None, *, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    y = lax.conv_general_dilated(x, weight, stride, padding, rhs_dilation=dilation, feature_group_count=groups)
    return y if bias is None else y + bias[:, None, None]


def max_pool2d(
    x: Any, kernel_size: Any, *, stride: Any, padding: Any, dilation: Any, ceil_mode: bool, return_indices: bool = False
) -> Any:
    if ceil_mode or return_indices:
        raise NotImplementedError("lax.reduce_window has no ceil_mode and no indices")
    window, strides, dilations = ((1, 1, *each) for each in (kernel_size, stride, dilation))
    return lax.reduce_window(
        x, -np.inf, lax.max, window, strides, ((0, 0), (0, 0), *padding), window_dilation=dilations
    )


def linear(x: Any, weight: Any, bias: Any = None) -> Any:
    y = x @ weight.T
    return y if bias is None else y + bias


def cross_entropy(logits: Any, target: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), target[:, None], axis=1).mean()


FORWARDS: Mapping[str, Callable[..., Any]] = {
    "conv2d": conv2d,
    "max_pool2d": max_pool2d,
    "linear": linear,
    "relu": lambda x: jax.nn.relu(x),
    "flatten": lambda x: lax.collapse(x, 1),
    "cross_entropy": cross_entropy,
}


def pull_back(forward: Callable[..., Any], given: Mapping[str, Any], argument: str, dy: Any) -> Any:
    """The vector-Jacobian product by reverse mode."""
    _, vjp = jax.vjp(lambda wanted: forward(**{**given, argument: wanted}), given[argument])
    return vjp(dy)[0]


SUBJECT = Subject("jax", differentiated(FORWARDS, jnp.asarray, pull_back, on_host=np.asarray))
