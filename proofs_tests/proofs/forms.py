"""The forms that a kernel may have, each as functions with the operators' own arguments.

A function has them already. An object has `forward` and `backward`, a class a constructor like PyTorch's layer; arrays
may have their axes in another order.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np

from kernelproof.spec import OPS, ParameterError, find
from kernelproof.spec.errors import type_of

from .judging import AXES, Kernel


def functions_of(kernel: Any, op: str) -> dict[str, Kernel]:
    """The functions that a function, an object or a class is, by operator name; raises ParameterError."""
    if inspect.isclass(kernel) and hasattr(kernel, "backward"):
        return _of_module(kernel, op)
    if hasattr(kernel, "forward") and hasattr(kernel, "backward"):
        return _of_pair(kernel, op)
    if not callable(kernel):
        raise ParameterError(
            "verify", type_of(kernel), "a function, or forward and backward", "See docs/prove-your-kernel.md."
        )
    return {op: kernel}


def _of_pair(kernel: Any, op: str) -> dict[str, Kernel]:
    """`forward` has the operator's own arguments; `backward(dy)` then gives the gradients, in the arguments' order.

    Both are judged: the forward as the operator, each gradient after a forward of the same problem.
    """
    row = _row(op)

    def gradient(which: int, argument: str) -> Kernel:
        def run(*args: Any, **kwargs: Any) -> Any:
            given = named_arguments(f"{op}.d{argument}", args, kwargs)
            kernel.forward(**forward_arguments(row.name, given))
            gradients = kernel.backward(given["dy"])
            return gradients[which] if isinstance(gradients, tuple | list) else gradients

        return run

    return {op: kernel.forward} | {
        f"{op}.d{argument}": gradient(which, argument) for which, argument in enumerate(row.gradients)
    }


def _of_module(kernel: Any, op: str) -> dict[str, Kernel]:
    """A class like `torch.nn.Conv2d`: built from the options, `weight` and `bias` set, called, then `backward(dy)`.

    `backward` returns dx and leaves `dweight` and `dbias` on the object. Training and evaluation mode, where the class
    has them, take turns: neither may change the answer.
    """
    row, calls = _row(op), iter(range(2**62))

    def built(given: Mapping[str, Any]) -> Any:
        layer = kernel(**_constructor(row.name, given))
        for name in ("weight", "bias"):
            if name in given:
                setattr(layer, name, given[name])
        mode = "train" if next(calls) % 2 else "eval"
        getattr(layer, mode, lambda: None)()
        return layer

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = named_arguments(op, args, kwargs)
        return built(given)(given["x"])

    def gradient(argument: str) -> Kernel:
        def run(*args: Any, **kwargs: Any) -> Any:
            named = named_arguments(f"{op}.d{argument}", args, kwargs)
            given = forward_arguments(row.name, named)
            layer = built(given)
            layer(given["x"])
            dx = layer.backward(named["dy"])
            return dx if argument == "x" else getattr(layer, f"d{argument}")

        return run

    return {op: forward} | {f"{op}.d{argument}": gradient(argument) for argument in row.gradients}


def _row(op: str) -> Any:
    if op not in OPS:
        raise ParameterError(
            "verify", f"op={op!r} for forward and backward", f"one of {', '.join(OPS)}", "Name the row."
        )
    return OPS[op]


def named_arguments(operator: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments by the operator's own names."""
    return dict(inspect.signature(find(operator)).bind(*args, **kwargs).arguments)


_NEUTRAL = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}


def forward_arguments(op: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The forward's arguments for a gradient's: ones for an operand that the gradient does not depend on.

    The gradient in the bias is told no options, for it depends on none: there the forward gets those that do nothing.
    """
    arguments = {}
    for name, parameter in inspect.signature(find(op)).parameters.items():
        if name in given:
            arguments[name] = given[name]
        elif name == "bias":
            arguments[name] = np.zeros(given["dy"].shape[1], given["dy"].dtype)
        elif name in _NEUTRAL:
            arguments[name] = _NEUTRAL[name]
        elif parameter.default is parameter.empty:
            arguments[name] = np.ones(given.get(f"{name}_shape") or _shape_beside(op, name, given), given["dy"].dtype)
    return arguments


def _shape_beside(op: str, name: str, given: Mapping[str, Any]) -> tuple[int, ...]:
    """A shape of x or weight with which the forward gives dy's, where nothing tells it: one channel, one tap."""
    n, k, *image = given["dy"].shape
    if name == "x":
        features = given["weight"].shape[1] if op == "linear" and "weight" in given else 1
        return (n, features, *image)
    return (k, given["x"].shape[1]) if op == "linear" and "x" in given else (k, 1, *(1 for _ in image))


def _constructor(op: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What PyTorch's layer of this operator is built from."""
    options = {name: each for name, each in given.items() if name not in ("x", "weight", "bias", "return_indices")}
    if op == "conv2d":
        filters, channels, *kernel_size = given["weight"].shape
        sizes = (channels * given.get("groups", 1), filters, tuple(kernel_size))
        return dict(zip(("in_channels", "out_channels", "kernel_size"), sizes, strict=True)) | options | {
            "bias": given.get("bias") is not None
        }  # fmt: skip
    if op == "linear":
        k, c = given["weight"].shape
        return {"in_features": c, "out_features": k, "bias": given.get("bias") is not None}
    return options


def permuted(function: Kernel, operator: str, layouts: Mapping[str, str]) -> Kernel:
    """The function with its arrays in the author's axis order, seen in the specification's."""
    letters = {"x": "nchw", "weight": "kcrs", "dy": "nkpq", "y": AXES.get(operator, "")}
    if operator.startswith("linear"):
        letters |= {"x": "nc", "weight": "kc", "dy": "nk"}
    if operator.startswith("max_pool2d"):
        letters["dy"] = "ncpq"
    order = {}
    for name, layout in layouts.items():
        if name not in letters or sorted(layout) != sorted(letters[name]):
            raise ParameterError(
                "verify",
                f"layout {name}={layout}",
                " or ".join(f"{k}={v} in any order" for k, v in letters.items()),
                "Correct it.",
            )
        order[name] = [letters[name].index(axis) for axis in layout]

    def run(*args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(find(operator)).bind(*args, **kwargs)
        for name, axes in order.items():
            if name in given.arguments:
                given.arguments[name] = given.arguments[name].transpose(axes)
            if f"{name}_shape" in given.arguments:
                shape = given.arguments[f"{name}_shape"]
                given.arguments[f"{name}_shape"] = tuple(shape[axis] for axis in axes)
        result = function(*given.args, **given.kwargs)
        if "y" not in order:
            return result
        back = np.argsort(order["y"])
        return tuple(each.transpose(back) for each in result) if isinstance(result, tuple) else result.transpose(back)

    return run
