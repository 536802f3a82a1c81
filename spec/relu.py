"""The rectifier and its gate."""

from typing import Any

import numpy as np
from jaxtyping import Shaped

from .errors import ShapeError
from .operator import Arguments, Array, check_arrays, operator
from .scalars import maximum


def _relu_door(x: Any) -> Arguments:
    check_arrays("relu", x=x)
    return Arguments((x,))


def _relu_dx_door(dy: Any, x: Any) -> Arguments:
    check_arrays("relu_dx", dy=dy, x=x)
    if tuple(dy.shape) != tuple(x.shape):
        raise ShapeError(
            "relu_dx", f"dy is {tuple(dy.shape)} and x {tuple(x.shape)}", "equal shapes", "Pass the forward's x."
        )
    return Arguments((dy, x))


@operator(_relu_door)
def relu(x: Shaped[Array, "*any"]) -> Shaped[Array, "*any"]:
    """Negative values become zero.

    `y = max(x, 0)`

    NaN stays NaN; relu(-0.0) is -0.0 here, for a tie keeps x, as in PyTorch and ONNX Runtime; kernels may drop
    the sign. Any shape.
    Raises DtypeError. Source: PyTorch `torch.nn.functional.relu`; ONNX `Relu`.
    """
    zero = np.zeros((), x.dtype)
    # Exact scalars have no -0.0 to keep; there a tie keeps the zero, which has no tangent: the derivative at 0 is 0.
    return maximum(zero, x) if x.dtype == object else maximum(x, zero)


@operator(_relu_dx_door)
def relu_dx(dy: Shaped[Array, "*any"], x: Shaped[Array, "*any"]) -> Shaped[Array, "*any"]:
    """The gradient of relu: dy passes where x was above zero.

    `dx = dy where x > 0, else 0`

    The derivative at exactly 0 is taken as 0. Where x is NaN dy passes, as in PyTorch.
    Raises DtypeError, ShapeError. Source: PyTorch `torch.nn.functional.relu`.
    """
    return np.where(x <= 0, np.zeros((), dy.dtype), dy)
