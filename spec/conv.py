"""Two-dimensional convolution (cross-correlation, as in every CNN) and its three gradients.

Letters: n image, c input channel, h w input position, k filter, p q output position, r s filter tap, g group.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Shaped

from .errors import ParameterError, ShapeError
from .operator import Arguments, Array, batched, check_arrays, check_equal, check_shape, operator
from .window import Padding, Size, Window, whole, whole_shape


def _geometry(operator: str, x_shape: Sequence[int], weight_shape: Sequence[int], groups: Any, window: Window) -> int:
    """The group count, once filters, channels and window are known to fit; raises ShapeError, ParameterError."""
    groups = whole(operator, "groups", groups, 1)
    channels, filters = x_shape[-3], weight_shape[0]
    for what, count in (("input channels", channels), ("filters", filters)):
        if count == 0:
            raise ShapeError(operator, f"x {tuple(x_shape)} with weight {tuple(weight_shape)}", f"{what}", "Pass some.")
        if count % groups:
            raise ParameterError(
                operator, f"groups={groups} with {count} {what}", f"{what} divisible by groups", "Change either."
            )
    check_equal(
        operator,
        f"axis 1 of weight {tuple(weight_shape)}",
        weight_shape[1],
        f"input channels / groups = {channels} / {groups}",
        channels // groups,
        "Give x and weight matching channels.",
    )
    window.check_fits(operator, x_shape)
    return groups


def _check_dy(operator: str, dy_shape: Sequence[int], x_shape: Sequence[int], filters: int, window: Window) -> None:
    wanted = (x_shape[0], filters, window.p(x_shape), window.q(x_shape))
    for letter, size, want in zip("nkpq", dy_shape, wanted, strict=True):
        check_equal(
            operator, f"axis {letter} of dy {tuple(dy_shape)}", size, "the forward's output size", want,
            f"Pass dy of shape {wanted}.",
        )  # fmt: skip


def _conv2d_door(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Arguments:
    check_arrays("conv2d", x=x, weight=weight, bias=bias)
    check_shape("conv2d", "x", x.shape, ("n", "c", "h", "w"), ("c", "h", "w"))
    check_shape("conv2d", "weight", weight.shape, ("k", "c/groups", "r", "s"))
    window = Window.of("conv2d", weight.shape[2:], stride, padding, dilation)
    groups = _geometry("conv2d", x.shape, weight.shape, groups, window)
    if bias is not None:
        check_shape("conv2d", "bias", bias.shape, ("k",))
        check_equal("conv2d", "length of bias", bias.shape[0], "filters", weight.shape[0], "One bias per filter.")
    return Arguments((batched(x, 4), weight, bias, window, groups), single=len(x.shape) == 3)


def _conv2d_dx_door(
    dy: Any,
    weight: Any,
    x_shape: Sequence[int],
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Arguments:
    check_arrays("conv2d_dx", dy=dy, weight=weight)
    check_shape("conv2d_dx", "x_shape", x_shape, ("n", "c", "h", "w"), ("c", "h", "w"))
    check_shape("conv2d_dx", "dy", dy.shape, ("n", "k", "p", "q")[-len(x_shape) :])
    check_shape("conv2d_dx", "weight", weight.shape, ("k", "c/groups", "r", "s"))
    single, dy = len(x_shape) == 3, batched(dy, 4)
    x_shape = whole_shape("conv2d_dx", "x_shape", [1, *x_shape] if single else x_shape)
    window = Window.of("conv2d_dx", weight.shape[2:], stride, padding, dilation)
    groups = _geometry("conv2d_dx", x_shape, weight.shape, groups, window)
    _check_dy("conv2d_dx", dy.shape, x_shape, weight.shape[0], window)
    return Arguments((dy, weight, x_shape, window, groups), single)


def _conv2d_dweight_door(
    dy: Any,
    x: Any,
    weight_shape: Sequence[int],
    *,
    stride: Size = 1,
    padding: Padding = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Arguments:
    check_arrays("conv2d_dweight", dy=dy, x=x)
    check_shape("conv2d_dweight", "x", x.shape, ("n", "c", "h", "w"), ("c", "h", "w"))
    check_shape("conv2d_dweight", "dy", dy.shape, ("n", "k", "p", "q")[-len(x.shape) :])
    check_shape("conv2d_dweight", "weight_shape", weight_shape, ("k", "c/groups", "r", "s"))
    weight_shape, x, dy = whole_shape("conv2d_dweight", "weight_shape", weight_shape), batched(x, 4), batched(dy, 4)
    window = Window.of("conv2d_dweight", weight_shape[2:], stride, padding, dilation)
    groups = _geometry("conv2d_dweight", x.shape, weight_shape, groups, window)
    _check_dy("conv2d_dweight", dy.shape, x.shape, weight_shape[0], window)
    return Arguments((dy, x, weight_shape, window, groups))


def _conv2d_dbias_door(dy: Any) -> Arguments:
    check_arrays("conv2d_dbias", dy=dy)
    check_shape("conv2d_dbias", "dy", dy.shape, ("n", "k", "p", "q"), ("k", "p", "q"))
    return Arguments((batched(dy, 4),))


@operator(_conv2d_door)
def conv2d(
    x: Shaped[Array, "n c h w"],
    weight: Shaped[Array, "k c//{groups} r s"],
    bias: Shaped[Array, "k"] | None,
    window: Window,
    groups: int,
) -> Shaped[Array, "n k {window.p(x.shape)} {window.q(x.shape)}"]:
    """Slide every filter over the zero-padded image and sum the products.

    `y[n,k,p,q] = bias[k] + sum_crs x[n, c, p*stride + r*dilation - pad, q*stride + s*dilation - pad] * weight[k,c,r,s]`

    Filter k sees the channels of its group only: with `groups` g, weight is packed `(k, c // g, r, s)`. `x` is
    `(n, c, h, w)` or one image `(c, h, w)`; batch 0 is legal. `stride` and `dilation` are an int or `(h, w)`, `padding`
    an int, `(h, w)` or `((top, bottom), (left, right))`. Any scalar type, the same for all arrays. Padding is a zero
    that is multiplied: an infinite weight over it gives NaN here, while a kernel may skip it (PyTorch does either).

    Raises DtypeError, ShapeError, ParameterError. Source: PyTorch `torch.nn.functional.conv2d`; ONNX `Conv`.
    """
    k, _, r, s = weight.shape
    taps = _by_group(window.gather(x, fill=0), groups)
    y = np.einsum("ngcpqrs,gkcrs->ngkpq", taps, weight.reshape(groups, k // groups, -1, r, s))
    y = y.reshape(len(x), k, *y.shape[3:])
    return y if bias is None else y + bias[:, None, None]


@operator(_conv2d_dx_door)
def conv2d_dx(
    dy: Shaped[Array, "n k {window.p(x_shape)} {window.q(x_shape)}"],
    weight: Shaped[Array, "k c_of_group r s"],
    x_shape: tuple[int, ...],
    window: Window,
    groups: int,
) -> Shaped[Array, "n {x_shape[1]} {x_shape[2]} {x_shape[3]}"]:
    """The gradient of conv2d in x, for an output gradient dy: every product goes back to the pixel it read.

    `dx[n,c,h,w] = sum_kpqrs dy[n,k,p,q] * weight[k,c,r,s]` over `p*stride + r*dilation - pad = h`, likewise w

    y is linear in x, so dx is the transposed map applied to dy. Arguments as for conv2d; `x_shape` is x's.
    Raises DtypeError, ShapeError, ParameterError. Source: PyTorch `torch.nn.grad.conv2d_input`.
    """
    k, _, r, s = weight.shape
    taps = np.einsum("ngkpq,gkcrs->ngcpqrs", _by_group(dy, groups), weight.reshape(groups, k // groups, -1, r, s))
    return window.scatter(taps.reshape(len(dy), x_shape[1], *taps.shape[3:]), x_shape)


@operator(_conv2d_dweight_door)
def conv2d_dweight(
    dy: Shaped[Array, "n k {window.p(x.shape)} {window.q(x.shape)}"],
    x: Shaped[Array, "n c h w"],
    weight_shape: tuple[int, ...],
    window: Window,
    groups: int,
) -> Shaped[Array, "k {weight_shape[1]} {weight_shape[2]} {weight_shape[3]}"]:
    """The gradient of conv2d in weight: every tap meets the output gradient it took part in.

    `dweight[k,c,r,s] = sum_npq dy[n,k,p,q] * x[n, c, p*stride + r*dilation - pad, q*stride + s*dilation - pad]`

    y is linear in weight, so dweight is the transposed map applied to dy. Arguments as for conv2d.
    Raises DtypeError, ShapeError, ParameterError. Source: PyTorch `torch.nn.grad.conv2d_weight`.
    """
    taps = _by_group(window.gather(x, fill=0), groups)
    return np.einsum("ngcpqrs,ngkpq->gkcrs", taps, _by_group(dy, groups)).reshape(weight_shape)


@operator(_conv2d_dbias_door)
def conv2d_dbias(dy: Shaped[Array, "n k p q"]) -> Shaped[Array, "k"]:
    """The gradient of conv2d in bias: each filter's bias was added at every image and position.

    `dbias[k] = sum_npq dy[n,k,p,q]`

    Raises DtypeError, ShapeError. Source: PyTorch `torch.nn.functional.conv2d`.
    """
    return np.einsum("nkpq->k", dy)


def _by_group(array: Array, groups: int) -> Array:
    """`[n, channels, ...]` as `[n, group, channel of the group, ...]`."""
    return array.reshape(array.shape[0], groups, array.shape[1] // groups, *array.shape[2:])
