"""Level L11: the specification and PyTorch give the same answers where both mean the same.

PyTorch is no dependency: without it this file is not collected.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch  # pyright: ignore[reportMissingImports]
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernelproof.proofs.bounds import rounding_bound
from kernelproof.proofs.drawing import problems
from kernelproof.proofs.problems import Problem
from kernelproof.spec import OPERATORS, Window

functional: Any = torch.nn.functional


def conv2d(x: Any, weight: Any, bias: Any = None, *, padding: Any, **options: Any) -> Any:
    (top, bottom), (left, right) = padding
    return functional.conv2d(functional.pad(x, (left, right, top, bottom)), weight, bias, **options)


def max_pool2d(x: Any, kernel_size: Any, *, padding: Any, return_indices: bool = False, **options: Any) -> Any:
    return functional.max_pool2d(
        x, kernel_size, padding=[side[0] for side in padding], return_indices=return_indices, **options
    )


def cross_entropy(logits: Any, target: Any) -> Any:
    return functional.cross_entropy(logits, target)


def sgd(parameter: Any, gradient: Any, velocity: Any, *, learning_rate: float, momentum: float = 0) -> Any:
    moved = torch.nn.Parameter(parameter.clone())
    optimiser: Any = torch.optim.SGD([moved], lr=learning_rate, momentum=momentum)
    moved.grad = gradient
    if momentum:
        optimiser.state[moved]["momentum_buffer"] = velocity.clone()
    optimiser.step()
    return moved.detach(), optimiser.state[moved]["momentum_buffer"] if momentum else gradient


FORWARD: Mapping[str, Callable[..., Any]] = {
    "conv2d": conv2d,
    "max_pool2d": max_pool2d,
    "linear": functional.linear,
    "relu": functional.relu,
    "flatten": lambda x: torch.flatten(x, 1),
    "cross_entropy": cross_entropy,
    "sgd": sgd,
}


def by_torch(problem: Problem, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The operator, or for a gradient what autograd gives, in float64."""
    tensors = {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}
    row, _, argument = problem.operator.partition(".d")
    forward = FORWARD[row]
    if not argument:
        came = problem.call(forward, tensors)
        return tuple(each.numpy() for each in came) if isinstance(came, tuple) else (came.numpy(),)
    # What a gradient is not given it does not depend on: zeros stand in for it.
    shapes = dict(problem.shapes) | ({"bias": (problem.output[1],)} if argument == "bias" else {})
    zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in shapes.items()}
    inputs = {name: tensors.get(name, zero) for name, zero in zeros.items()}
    inputs[argument].requires_grad_()
    options = {name: value for name, value in problem.options.items() if name not in ("return_indices", "kernel_size")}
    kernel = [problem.options["kernel_size"]] if row == "max_pool2d" else []
    y = forward(*inputs.values(), *kernel, **options)
    y.backward(tensors.get("dy", torch.ones(y.shape, dtype=torch.float64)))
    return (inputs[argument].grad.numpy(),)  # type: ignore[union-attr]


def is_not_empty(problem: Problem) -> bool:
    """PyTorch's pools and losses refuse arrays that the specification takes: those without entries."""
    return all(0 not in shape for shape in (*problem.shapes.values(), problem.output))


def alike(problem: Problem) -> Problem:
    """A pool with PyTorch's padding: that at the beginning on both sides, cut to half the kernel."""
    if problem.op.name != "max_pool2d":
        return problem
    options = dict(problem.options)
    kernel = options["kernel_size"]
    sides = [min(before, size // 2) for (before, _), size in zip(options["padding"], kernel, strict=True)]
    padding = ((sides[0], sides[0]), (sides[1], sides[1]))
    options["padding"] = padding
    window = Window(kernel, options["stride"], padding, options["dilation"], options["ceil_mode"])
    n, c, h, w = problem.shapes["x"]
    h, w = (max(size, window.extent(axis)) for axis, size in enumerate((h, w)))
    output = (n, c, window.p((h, w)), window.q((h, w)))
    return Problem(problem.operator, {"x": (n, c, h, w)}, options, output, problem.family, problem.seed, "float64")


@pytest.mark.parametrize("family", ["whole", "ties"])
@pytest.mark.parametrize("operator", [name for name in OPERATORS if not name.startswith("cross_entropy")])
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_torch_agrees_exactly(operator: str, family: str, data: st.DataObject):
    problem = data.draw(problems(operator, family, ("float64",)).map(alike).filter(is_not_empty))
    arrays = problem.arrays()
    came = problem.call(problem.spec, arrays)
    for got, expected in zip(came if isinstance(came, tuple) else (came,), by_torch(problem, arrays), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("operator", ["cross_entropy", "cross_entropy.dlogits"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_torch_agrees_within_the_bounds_of_both(operator: str, data: st.DataObject):
    problem = data.draw(problems(operator, "real", ("float64",)))
    arrays = problem.arrays()
    (allowed,) = rounding_bound(problem, arrays, "float64")
    assert (np.abs(problem.call(problem.spec, arrays) - by_torch(problem, arrays)[0]) <= 2 * allowed).all()


# Not max_pool2d.dx: of several NaN in a window PyTorch chooses the last, the specification the first.
@pytest.mark.parametrize("operator", ["max_pool2d", "relu", "relu.dx"])
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_torch_agrees_on_special_values(operator: str, data: st.DataObject):
    problem = data.draw(problems(operator, "special", ("float64",)).map(alike).filter(is_not_empty))
    arrays = problem.arrays()
    came = problem.call(problem.spec, arrays)
    got, expected = (came if isinstance(came, tuple) else (came,))[0], by_torch(problem, arrays)[0]
    np.testing.assert_array_equal(got, expected)
