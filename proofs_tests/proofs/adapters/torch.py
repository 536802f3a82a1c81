"""PyTorch: `torch.nn.functional` and `torch.optim.SGD`, gradients by autograd.

A convolution's four-sided padding is `functional.pad`, PyTorch's documented way. Max pooling pads both sides alike, by
at most half the window: the rest is declined. A tensor has no negative strides, so such arrays are copied, as read-only
ones are; all other layouts reach PyTorch as they are.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from kernelproof.proofs.subject import Subject

from . import framework
from .autograd import differentiated

torch = framework("torch", "torch")
functional = torch.nn.functional


def conv2d(x: Any, weight: Any, bias: Any = None, *, padding: Any, **options: Any) -> Any:
    (top, bottom), (left, right) = padding
    if (top, left) == (bottom, right):
        return functional.conv2d(x, weight, bias, padding=(top, left), **options)
    return functional.conv2d(functional.pad(x, (left, right, top, bottom)), weight, bias, **options)


def max_pool2d(x: Any, kernel_size: Any, *, padding: Any, **options: Any) -> Any:
    if any(before != after or before > size // 2 for (before, after), size in zip(padding, kernel_size, strict=True)):
        raise NotImplementedError("torch pads both sides of a window alike, by at most half of it")
    return functional.max_pool2d(x, kernel_size, padding=tuple(before for before, _ in padding), **options)


def sgd(parameter: Any, gradient: Any, velocity: Any, *, learning_rate: float, momentum: float = 0) -> Any:
    moved = torch.nn.Parameter(parameter.clone())
    optimizer = torch.optim.SGD([moved], lr=learning_rate, momentum=momentum)
    # Without momentum PyTorch keeps no velocity; the specification's is then the gradient.
    moved.grad, optimizer.state[moved]["momentum_buffer"] = gradient, velocity.clone()
    optimizer.step()
    return moved, optimizer.state[moved]["momentum_buffer"] if momentum else gradient.clone()


FORWARDS: Mapping[str, Callable[..., Any]] = {
    "conv2d": conv2d,
    "max_pool2d": max_pool2d,
    "linear": functional.linear,
    "relu": lambda x: functional.relu(x),
    "flatten": lambda x: torch.flatten(x, 1),
    "cross_entropy": lambda logits, target: functional.cross_entropy(logits, target),
    "sgd": sgd,
}


def tensor(array: np.ndarray) -> Any:
    """The array's own memory as a tensor, where a tensor can have it."""
    shareable = array.flags.writeable and min(array.strides, default=0) >= 0
    return torch.from_numpy(array if shareable else np.array(array, order="C"))


def pull_back(forward: Callable[..., Any], given: Mapping[str, Any], argument: str, dy: Any) -> Any:
    """The vector-Jacobian product by reverse mode."""
    wanted = given[argument].requires_grad_()
    return torch.autograd.grad(forward(**given), wanted, dy)[0]


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads in this block; left set, they would hold for this thread and not for new ones."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


SUBJECT = Subject(
    "torch",
    differentiated(FORWARDS, tensor, pull_back, on_host=lambda each: each.detach().numpy()),
    dtypes=("float32", "float64"),
    threads=threads,
)
