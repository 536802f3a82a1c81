"""What training needs beside the layers: the loss with its gradient, and the parameter update."""

import sys
from numbers import Real
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from .errors import DtypeError, ParameterError, ShapeError
from .operator import Arguments, Array, check_arrays, check_equal, check_shape, operator


def _check_classes(operator: str, logits: Any, target: Any) -> None:
    check_arrays(operator, logits=logits)
    check_arrays(operator, target=target)
    check_shape(operator, "logits", logits.shape, ("n", "k"))
    check_shape(operator, "target", target.shape, ("n",))
    check_equal(operator, "length of target", target.shape[0], "batch of logits", logits.shape[0], "One class per row.")
    if np.dtype(target.dtype).kind != "i":
        raise DtypeError(operator, f"target is {target.dtype}", "signed integers", "Use target.astype(numpy.int64).")
    if np.dtype(logits.dtype).kind not in "fO":
        raise DtypeError(operator, f"logits is {logits.dtype}", "a floating type", "Use logits.astype(numpy.float32).")
    if 0 in logits.shape:
        raise ShapeError(
            operator,
            f"logits is {tuple(logits.shape)}",
            "at least one row and one class",
            "The mean of nothing is 0/0.",
        )
    classes = target.copy_to_host() if hasattr(target, "copy_to_host") else np.asarray(target)
    wrong = (classes < 0) | (classes >= logits.shape[1])
    if wrong.any():
        row = int(wrong.argmax())
        raise ParameterError(
            operator, f"target[{row}] = {classes[row]}", f"classes 0 to {logits.shape[1] - 1}", "Correct that target."
        )


def _cross_entropy_door(logits: Any, target: Any) -> Arguments:
    _check_classes("cross_entropy", logits, target)
    return Arguments((logits, target))


def _cross_entropy_dlogits_door(logits: Any, target: Any) -> Arguments:
    _check_classes("cross_entropy_dlogits", logits, target)
    return Arguments((logits, target))


def _sgd_door(parameter: Any, gradient: Any, velocity: Any, *, learning_rate: Any, momentum: Any = 0) -> Arguments:
    arrays = {"parameter": parameter, "gradient": gradient, "velocity": velocity}
    check_arrays("sgd", **arrays)
    if len({tuple(array.shape) for array in arrays.values()}) > 1:
        raise ShapeError(
            "sgd",
            ", ".join(f"{name} is {tuple(array.shape)}" for name, array in arrays.items()),
            "equal shapes",
            "Start velocity as zeros like the parameter.",
        )
    rates = {"learning_rate": learning_rate, "momentum": momentum}
    for name, rate in rates.items():
        # The order of the abstract real numbers is declared for `<` and `<=` alone.
        if not isinstance(rate, Real) or not (0 <= rate <= sys.float_info.max):  # pyright: ignore[reportOperatorIssue]
            raise ParameterError("sgd", f"{name}={rate!r}", "a finite number >= 0", f"Pass {name}=0 or more.")
    if np.dtype(parameter.dtype).kind == "f":
        # A plain float takes the arrays' type; a numpy scalar would impose its own.
        rates = {name: float(rate) for name, rate in rates.items()}
    return Arguments((parameter, gradient, velocity, *rates.values()))


@operator(_cross_entropy_door)
def cross_entropy(logits: Shaped[Array, "n k"], target: Int[Array, "n"]) -> Shaped[Array, ""]:
    """How far the softmax of the logits is from the right classes, averaged over the batch.

    `loss = 1/N sum_n ( log sum_k exp(z[n,k]) - z[n,target[n]] )` with `z[n,k] = logits[n,k] - max_k logits[n,k]`

    The maximum is taken out first, so no exponential overflows. Unit: nats. `target` holds classes 0 .. k-1.
    Raises DtypeError, ShapeError, ParameterError. Source: PyTorch `torch.nn.functional.cross_entropy`.
    """
    z = logits - logits.max(axis=1, keepdims=True)
    loss = np.log(np.exp(z).sum(axis=1)) - np.take_along_axis(z, target[:, None], axis=1)[:, 0]
    return np.asarray(loss.sum() / len(loss), dtype=logits.dtype)


@operator(_cross_entropy_dlogits_door)
def cross_entropy_dlogits(logits: Shaped[Array, "n k"], target: Int[Array, "n"]) -> Shaped[Array, "n k"]:
    """The gradient of cross_entropy in the logits.

    `dlogits[n,k] = ( softmax(logits[n])[k] - [k = target[n]] ) / N`

    d log sum exp(z) = softmax(z) and the maximum cancels. Raises DtypeError, ShapeError, ParameterError.
    Source: PyTorch `torch.nn.functional.cross_entropy`.
    """
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    softmax = exponential / exponential.sum(axis=1, keepdims=True)
    is_target = np.arange(logits.shape[1]) == target[:, None]
    return (softmax - is_target.astype(logits.dtype)) / len(logits)


@operator(_sgd_door)
def sgd(
    parameter: Shaped[Array, "*any"],
    gradient: Shaped[Array, "*any"],
    velocity: Shaped[Array, "*any"],
    learning_rate: Real,
    momentum: Real,
) -> tuple[Shaped[Array, "*any"], Shaped[Array, "*any"]]:
    """One step of stochastic gradient descent with momentum: the new parameter and the new velocity.

    `velocity' = momentum * velocity + gradient`, `parameter' = parameter - learning_rate * velocity'`

    Start from zero velocity. With momentum 0 a NaN in velocity stays here, while a kernel may skip it (PyTorch does).
    Any shape. Raises DtypeError, ShapeError, ParameterError.
    Source: PyTorch `torch.optim.SGD` (dampening 0, no Nesterov, no weight decay).
    """
    velocity = np.asarray(momentum * velocity + gradient)
    return np.asarray(parameter - learning_rate * velocity), velocity
