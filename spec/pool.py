"""Max pooling and its gradient."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from .errors import ParameterError
from .operator import Arguments, Array, batched, check_arrays, check_equal, check_shape, operator
from .scalars import lowest, maximum
from .window import AXES, Padding, Size, Window, check_flag, row_major


def pool_window(
    operator: str,
    x_shape: Sequence[int],
    kernel_size: Size,
    stride: Size | None,
    padding: Padding,
    dilation: Size,
    ceil_mode: bool,
) -> Window:
    """The window, once every placement of it is known to see the input; raises ShapeError, ParameterError."""
    window = Window.of(operator, kernel_size, kernel_size if stride is None else stride, padding, dilation, ceil_mode)
    window.check_fits(operator, x_shape, "window")
    for axis, size in enumerate(x_shape[-2:]):
        blind = ~window.inside(axis, size).any(axis=1)
        if blind.any():
            raise ParameterError(
                operator,
                f"window {int(blind.argmax())} along the {AXES[axis]} of {size} lies wholly in the padding "
                f"{window.padding[axis]}",
                "every window to see the input",
                "Use less padding or a larger window.",
            )
    return window


def _max_pool2d_door(
    x: Any,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Arguments:
    check_arrays("max_pool2d", x=x)
    check_shape("max_pool2d", "x", x.shape, ("n", "c", "h", "w"), ("c", "h", "w"))
    check_flag("max_pool2d", "return_indices", return_indices)
    window = pool_window("max_pool2d", x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    return Arguments((batched(x, 4), window, bool(return_indices)), single=len(x.shape) == 3)


def _max_pool2d_dx_door(
    dy: Any,
    x: Any,
    kernel_size: Size,
    *,
    stride: Size | None = None,
    padding: Padding = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
) -> Arguments:
    check_arrays("max_pool2d_dx", dy=dy, x=x)
    check_shape("max_pool2d_dx", "x", x.shape, ("n", "c", "h", "w"), ("c", "h", "w"))
    check_shape("max_pool2d_dx", "dy", dy.shape, ("n", "c", "p", "q")[-len(x.shape) :])
    window = pool_window("max_pool2d_dx", x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    wanted = (*x.shape[:-2], window.p(x.shape), window.q(x.shape))
    for axis, (size, want) in enumerate(zip(dy.shape, wanted, strict=True)):
        check_equal(
            "max_pool2d_dx", f"axis {axis} of dy {tuple(dy.shape)}", size, "the forward's output size", want,
            f"Pass dy of shape {wanted}.",
        )  # fmt: skip
    return Arguments((batched(dy, 4), batched(x, 4), window), single=len(x.shape) == 3)


@operator(_max_pool2d_door)
def max_pool2d(
    x: Shaped[Array, "n c h w"], window: Window, return_indices: bool
) -> (
    Shaped[Array, "n c {window.p(x.shape)} {window.q(x.shape)}"]
    | tuple[
        Shaped[Array, "n c {window.p(x.shape)} {window.q(x.shape)}"],
        Int[Array, "n c {window.p(x.shape)} {window.q(x.shape)}"],
    ]
):
    """The greatest input in each window, and with `return_indices` where it stands.

    `y[n,c,p,q] = max_rs x[n, c, p*stride + r*dilation - pad, q*stride + s*dilation - pad]`; the index is `h*width + w`

    Padding never wins and is never chosen; ties go to the first position in row-major window order; NaN beats every
    number, the first NaN is chosen. `stride` defaults to `kernel_size`; `ceil_mode` keeps an incomplete last window if
    it starts inside the input or its left/top padding. `x` is `(n, c, h, w)` or one image `(c, h, w)`.

    Raises DtypeError, ShapeError, ParameterError. Source: PyTorch `torch.nn.functional.max_pool2d`; ONNX `MaxPool`.
    """
    taps = _in_order(window.gather(x, fill=lowest(x.dtype)))
    y = reduce(maximum, taps)
    return (y, _winner(x, y, window)) if return_indices else y


@operator(_max_pool2d_dx_door)
def max_pool2d_dx(
    dy: Shaped[Array, "n c {window.p(x.shape)} {window.q(x.shape)}"], x: Shaped[Array, "n c h w"], window: Window
) -> Shaped[Array, "n c h w"]:
    """The gradient of max_pool2d in x: dy goes to the position that won, overlapping windows add up.

    `dx[n,c,h,w] = sum_pq dy[n,c,p,q]` over the windows whose winner is `(h, w)`

    Where the winner stays the same y is the winner's copy, so the derivative is 1 there and 0 elsewhere. Arguments as
    for max_pool2d. Raises DtypeError, ShapeError, ParameterError. Source: PyTorch `torch.nn.MaxPool2d`.
    """
    winner = _winner(x, reduce(maximum, _in_order(window.gather(x, fill=lowest(x.dtype)))), window)
    n, c, h, w = x.shape
    dx = np.zeros((n, c, h * w), dy.dtype)
    image, channel = np.ogrid[:n, :c]
    np.add.at(dx, (image[..., None, None], channel[..., None, None], winner), dy)
    return dx.reshape(n, c, h, w)


def _in_order(taps: Array) -> Array:
    """`[n,c,p,q,r,s]` as `[tap][n,c,p,q]`, the taps in row-major window order."""
    n, c, p, q, r, s = taps.shape
    return np.moveaxis(taps.reshape(n, c, p, q, r * s), -1, 0)


def _winner(x: Array, y: Array, window: Window) -> Array:
    """`h*width + w` of the first tap inside the image that holds the maximum."""
    h, w = x.shape[2:]
    position = row_major(np.ogrid[:h, :w], (h, w))[None, None]
    taps, index = _in_order(window.gather(x, fill=lowest(x.dtype))), _in_order(window.gather(position, fill=-1))
    is_maximum = (taps == y) | ((taps != taps) & (y != y))
    first = (is_maximum & (index >= 0)).argmax(axis=0)
    return np.take_along_axis(np.broadcast_to(index, taps.shape), first[None], axis=0)[0]
