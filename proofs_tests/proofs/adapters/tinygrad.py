"""tinygrad: `Tensor` methods and `nn.optim.SGD`, gradients by `Tensor.gradient`, on tinygrad's default device.

That is the CPU where there is no other, and takes clang. Optimizers keep their state in float32: `sgd` declines other
scalars.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from kernelproof.proofs.subject import Subject

from . import framework, missing
from .autograd import differentiated

tinygrad = framework("tinygrad", "tinygrad")
optim = framework("tinygrad.nn.optim", "tinygrad")
Tensor = tinygrad.Tensor

try:
    _ = tinygrad.Device.DEFAULT
except RuntimeError as error:
    raise missing("tinygrad", f"{error}", "a device, or clang for the CPU") from error


def conv2d(x: Any, weight: Any, bias: Any = None, *, padding: Any, **options: Any) -> Any:
    return x.conv2d(weight, bias, padding=flat(padding), **options)


def max_pool2d(x: Any, kernel_size: Any, *, padding: Any, **options: Any) -> Any:
    return x.max_pool2d(kernel_size, padding=flat(padding), **options)


def flat(padding: Any) -> tuple[int, ...]:
    """`(left, right, top, bottom)`, which tinygrad documents for four-sided padding."""
    (top, bottom), (left, right) = padding
    return left, right, top, bottom


def sgd(parameter: Any, gradient: Any, velocity: Any, *, learning_rate: float, momentum: float = 0) -> Any:
    if parameter.dtype != tinygrad.dtypes.float32:
        raise NotImplementedError("tinygrad's optimizers keep their state in float32")
    parameter.grad = gradient
    optimizer = optim.SGD([parameter], lr=learning_rate, momentum=momentum)
    if momentum:
        optimizer.b[0].assign(velocity)
    with tinygrad.Context(TRAINING=1):
        optimizer.step()
    # Without momentum tinygrad keeps no velocity; the specification's is then the gradient.
    return parameter, optimizer.b[0] if momentum else gradient


FORWARDS: Mapping[str, Callable[..., Any]] = {
    "conv2d": conv2d,
    "max_pool2d": max_pool2d,
    "linear": lambda x, weight, bias=None: x.linear(weight.transpose(), bias),
    "relu": lambda x: x.relu(),
    "flatten": lambda x: x.flatten(1),
    "cross_entropy": lambda logits, target: logits.cross_entropy(target),
    "sgd": sgd,
}


def pull_back(forward: Callable[..., Any], given: Mapping[str, Any], argument: str, dy: Any) -> Any:
    """The vector-Jacobian product by reverse mode."""
    return forward(**given).gradient(given[argument], gradient=dy)[0]


SUBJECT = Subject(
    "tinygrad",
    # tinygrad reads numpy's memory later, when it computes: it gets a copy of its own.
    differentiated(FORWARDS, lambda array: Tensor(np.array(array, order="C")), pull_back, lambda each: each.numpy()),
    dtypes=("float32", "float64"),
)
