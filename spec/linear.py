"""The fully connected layer and its gradients, and the flattening before it."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from .operator import Arguments, Array, check_arrays, check_equal, check_shape, operator
from .window import whole_shape


def _check_features(operator: str, came: str, size: int, weight_shape: Sequence[int], axis: int) -> None:
    check_equal(
        operator, came, size, f"axis {axis} of weight {tuple(weight_shape)}", weight_shape[axis],
        f"Give weight {size} {('rows', 'columns')[axis]}, or the array {weight_shape[axis]} entries along that axis.",
    )  # fmt: skip


def _linear_door(x: Any, weight: Any, bias: Any = None) -> Arguments:
    check_arrays("linear", x=x, weight=weight, bias=bias)
    check_shape("linear", "x", x.shape, ("n", "c"), ("c",))
    check_shape("linear", "weight", weight.shape, ("k", "c"))
    _check_features("linear", f"last axis of x {tuple(x.shape)}", x.shape[-1], weight.shape, 1)
    if bias is not None:
        check_shape("linear", "bias", bias.shape, ("k",))
        _check_features("linear", "length of bias", bias.shape[0], weight.shape, 0)
    single = len(x.shape) == 1
    return Arguments((x[None] if single else x, weight, bias), single)


def _linear_dx_door(dy: Any, weight: Any) -> Arguments:
    check_arrays("linear_dx", dy=dy, weight=weight)
    check_shape("linear_dx", "dy", dy.shape, ("n", "k"), ("k",))
    check_shape("linear_dx", "weight", weight.shape, ("k", "c"))
    _check_features("linear_dx", f"last axis of dy {tuple(dy.shape)}", dy.shape[-1], weight.shape, 0)
    single = len(dy.shape) == 1
    return Arguments((dy[None] if single else dy, weight), single)


def _linear_dweight_door(dy: Any, x: Any) -> Arguments:
    check_arrays("linear_dweight", dy=dy, x=x)
    check_shape("linear_dweight", "x", x.shape, ("n", "c"), ("c",))
    check_shape("linear_dweight", "dy", dy.shape, ("n", "k")[-len(x.shape) :])
    single = len(x.shape) == 1
    dy, x = (dy[None], x[None]) if single else (dy, x)
    check_equal("linear_dweight", "batch of dy", dy.shape[0], "batch of x", x.shape[0], "Pass one dy row per x row.")
    return Arguments((dy, x))


def _linear_dbias_door(dy: Any) -> Arguments:
    check_arrays("linear_dbias", dy=dy)
    check_shape("linear_dbias", "dy", dy.shape, ("n", "k"), ("k",))
    return Arguments((dy[None] if len(dy.shape) == 1 else dy,))


@operator(_linear_door)
def linear(
    x: Shaped[Array, "n c"], weight: Shaped[Array, "k c"], bias: Shaped[Array, "k"] | None
) -> Shaped[Array, "n k"]:
    """A weighted sum of all features for every output.

    `y[n,k] = bias[k] + sum_c x[n,c] * weight[k,c]`

    `x` is `(n, c)` or one row `(c,)`; batch 0 is legal. Any scalar type, the same for all arrays.
    Raises DtypeError, ShapeError. Source: PyTorch `torch.nn.functional.linear`; ONNX `Gemm`.
    """
    y = np.einsum("nc,kc->nk", x, weight)
    return y if bias is None else y + bias


@operator(_linear_dx_door)
def linear_dx(dy: Shaped[Array, "n k"], weight: Shaped[Array, "k c"]) -> Shaped[Array, "n c"]:
    """The gradient of linear in x: the transposed map applied to dy.

    `dx[n,c] = sum_k dy[n,k] * weight[k,c]`

    Raises DtypeError, ShapeError. Source: PyTorch `torch.nn.functional.linear`.
    """
    return np.einsum("nk,kc->nc", dy, weight)


@operator(_linear_dweight_door)
def linear_dweight(dy: Shaped[Array, "n k"], x: Shaped[Array, "n c"]) -> Shaped[Array, "k c"]:
    """The gradient of linear in weight: each output's gradient times the features it saw.

    `dweight[k,c] = sum_n dy[n,k] * x[n,c]`

    Raises DtypeError, ShapeError. Source: PyTorch `torch.nn.functional.linear`.
    """
    return np.einsum("nk,nc->kc", dy, x)


@operator(_linear_dbias_door)
def linear_dbias(dy: Shaped[Array, "n k"]) -> Shaped[Array, "k"]:
    """The gradient of linear in bias, which is added to every row.

    `dbias[k] = sum_n dy[n,k]`

    Raises DtypeError, ShapeError. Source: PyTorch `torch.nn.functional.linear`.
    """
    return np.einsum("nk->k", dy)


def _flatten_door(x: Any) -> Arguments:
    check_arrays("flatten", x=x)
    check_shape("flatten", "x", x.shape, ("n", "c", "h", "w"))
    return Arguments((x,))


def _flatten_dx_door(dy: Any, x_shape: Sequence[int]) -> Arguments:
    check_arrays("flatten_dx", dy=dy)
    check_shape("flatten_dx", "dy", dy.shape, ("n", "c*h*w"))
    check_shape("flatten_dx", "x_shape", x_shape, ("n", "c", "h", "w"))
    x_shape = whole_shape("flatten_dx", "x_shape", x_shape)
    wanted = (x_shape[0], math.prod(x_shape[1:]))
    for axis in (0, 1):
        check_equal(
            "flatten_dx", f"axis {axis} of dy {tuple(dy.shape)}", dy.shape[axis], f"x_shape {tuple(x_shape)}",
            wanted[axis], f"Pass dy of shape {wanted}.",
        )  # fmt: skip
    return Arguments((dy, x_shape))


@operator(_flatten_door)
def flatten(x: Shaped[Array, "n c h w"]) -> Shaped[Array, "n c*h*w"]:
    """All features of an image in one row, in row-major order.

    `y[n, (c*height + h)*width + w] = x[n,c,h,w]`

    Raises DtypeError, ShapeError. Source: PyTorch `torch.flatten(x, 1)`; ONNX `Flatten`.
    """
    n, c, h, w = x.shape  # Named, not -1: a batch of 0 leaves -1 undetermined.
    return x.reshape(n, c * h * w)


@operator(_flatten_dx_door)
def flatten_dx(
    dy: Shaped[Array, "n features"], x_shape: tuple[int, ...]
) -> Shaped[Array, "n {x_shape[1]} {x_shape[2]} {x_shape[3]}"]:
    """The gradient of flatten: every entry back to its place.

    `dx[n,c,h,w] = dy[n, (c*height + h)*width + w]`

    Raises DtypeError, ShapeError. Source: PyTorch `torch.flatten`.
    """
    return dy.reshape(x_shape)
