"""Correct kernels, each computed in another way than the specification: no law may accuse one of them.

Winograd is not among them. Its transforms mix the inputs of a tile, so a NaN spreads to outputs that do not read it,
and its whole-number sums need two bits more than the direct ones.
"""

from typing import Any

import numpy as np

from .clean import Array, Conv2d, Conv2dDweight, Conv2dDx, Geometry, MaxPool2d, MaxPool2dDx, Pair, group, places
from .collection import control


def pairwise(array: Array) -> Array:
    """The sum over the first axis as a balanced tree of additions."""
    while len(array) > 1:
        if len(array) % 2:
            array = np.concatenate([array, np.zeros_like(array[:1])])
        array = array[::2] + array[1::2]
    return array.sum(axis=0)


@control("conv2d")
class TapByTap(Conv2d):
    """One tap after the other, the padding multiplied."""


@control("conv2d")
class TapByTapOnChannelsLast(Conv2d):
    """The padded image and the filters are held channels-last."""

    def image(self, x: Array, geometry: Geometry) -> Array:
        return np.ascontiguousarray(geometry.padded(x).transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)

    def product(self, read: Array, weight: Array) -> Array:
        return (read.transpose(0, 2, 3, 1) @ weight.T).transpose(0, 3, 1, 2)


@control("conv2d")
class PairwiseOverChannels(Conv2d):
    """The channels' products are summed as a tree."""

    def product(self, read: Array, weight: Array) -> Array:
        return pairwise(read.transpose(1, 0, 2, 3)[:, :, None] * weight.T[:, None, :, None, None])


@control("conv2d")
class BlockedOverChannels(Conv2d):
    """Channels are summed in blocks of 8, the last block first."""

    def product(self, read: Array, weight: Array) -> Array:
        starts = reversed(range(0, weight.shape[1], 8))
        return sum(Conv2d.product(self, read[:, i : i + 8], weight[:, i : i + 8]) for i in starts)  # type: ignore[return-value]


@control("conv2d")
class AccumulatedInDouble(Conv2d):
    """Every product and sum is in float64, rounded once at the end."""

    def __call__(self, x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
        wide = [None if each is None else each.astype(np.float64) for each in (x, weight, bias)]
        return super().__call__(*wide, **options).astype(x.dtype)  # type: ignore[arg-type]


@control("conv2d")
class FusedMultiplyAdd(Conv2d):
    """Channel by channel, each product unrounded when it is added, as a fused multiply-add does."""

    def product(self, read: Array, weight: Array) -> Array:
        total = np.zeros((len(read), len(weight), *read.shape[2:]), read.dtype)
        for channel in range(weight.shape[1]):
            exact = read[:, None, channel].astype(np.longdouble) * weight[:, channel, None, None]
            total = (total + exact).astype(read.dtype)
        return total


@control("conv2d")
def unrolled_to_one_matrix_product(x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
    """im2col: every window a column, then one matrix product for each group, by BLAS."""
    geometry = Geometry.of(x.shape[2:], weight.shape[2:], **options)
    image, groups = geometry.padded(x), geometry.groups
    columns = np.stack([image[:, :, rows, columns] for _, _, rows, columns in geometry.taps()], axis=2)
    n, c, taps, p, q = columns.shape
    matrices = columns.reshape(n, groups, c // groups * taps, p * q)
    y = (weight.reshape(groups, -1, c // groups * taps) @ matrices).reshape(n, len(weight), p, q)
    return y if bias is None else y + bias[:, None, None]


@control("conv2d")
def pushed_by_the_input(x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
    """Scatter: the bias first, then the taps from last to first, added to the outputs that read inside the image."""
    geometry = Geometry.of(x.shape[2:], weight.shape[2:], **options)
    y = np.zeros((len(x), len(weight), *geometry.out), x.dtype)
    y += 0 if bias is None else bias[:, None, None]
    for g in range(geometry.groups):
        image, mine = group(x, geometry.groups, g, 1), group(weight, geometry.groups, g, 0)
        for r, s, rows, columns in reversed(list(geometry.taps())):
            h, w = rows[:, 0] - geometry.padding[0][0], columns[0] - geometry.padding[1][0]
            p, q = (np.flatnonzero((at >= 0) & (at < size)) for at, size in zip((h, w), geometry.size, strict=True))
            read = image[:, :, h[p][:, None], w[q]]
            group(y, geometry.groups, g, 1)[:, :, p[:, None], q] += np.einsum("nchw,kc->nkhw", read, mine[:, :, r, s])
    return y


@control("conv2d.dx")
class TransposedTapByTap(Conv2dDx):
    """One tap after the other, added where it read."""


@control("conv2d.dx")
def correlated_with_the_turned_filter(dy: Array, weight: Array, x_shape: Any, **options: Any) -> Array:
    """The output gradient with zeros between its entries, convolved with the filter turned by half a circle."""
    geometry = Geometry.of(x_shape[2:], weight.shape[2:], **options)
    reach = [gap * (size - 1) for gap, size in zip(geometry.dilation, geometry.kernel, strict=True)]
    spread = np.zeros((*dy.shape[:2], *(geometry.span(axis) + reach[axis] for axis in (0, 1))), dy.dtype)
    (top, _), (left, _) = geometry.padding
    rows, columns = (geometry.reads(axis, 0) + reach[axis] for axis in (0, 1))
    spread[:, :, rows[:, None], columns] = dy
    groups = geometry.groups
    turned = np.concatenate([each.swapaxes(0, 1) for each in np.split(weight, groups)])[..., ::-1, ::-1]
    whole = Conv2d()(spread, turned, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=geometry.dilation, groups=groups)
    return whole[:, :, top : top + x_shape[2], left : left + x_shape[3]].copy()


@control("conv2d.dx")
def gathered_by_the_input(dy: Array, weight: Array, x_shape: Any, **options: Any) -> Array:
    """Gather: each input row asks which outputs read it, through which filter row; sums in float64."""
    geometry = Geometry.of(x_shape[2:], weight.shape[2:], **options)

    def readers(axis: int, tap: int) -> tuple[Array, Array]:
        """The rows that some output reads through this tap, and the outputs that do."""
        start = np.arange(x_shape[2 + axis]) + geometry.padding[axis][0] - tap * geometry.dilation[axis]
        output, beside = np.divmod(start, geometry.stride[axis])
        read = (beside == 0) & (output >= 0) & (output < geometry.out[axis])
        return np.flatnonzero(read), output[read]

    n, k, p, q = dy.shape
    grouped = dy.reshape(n, geometry.groups, k // geometry.groups, p, q).astype(np.float64)
    filters = weight.reshape(geometry.groups, k // geometry.groups, *weight.shape[1:]).astype(np.float64)
    dx = np.zeros((n, geometry.groups, weight.shape[1], *x_shape[2:]))
    for r, s in np.ndindex(*geometry.kernel):
        above = np.einsum("ngkpq,gkc->ngcpq", grouped, filters[..., r, s])
        (h, p), (w, q) = readers(0, r), readers(1, s)
        dx[..., h[:, None], w] += above[..., p[:, None], q]
    return dx.reshape(x_shape).astype(dy.dtype)


@control("conv2d.dweight")
class WeightGradientTapByTap(Conv2dDweight):
    """One tap after the other, summed over images and positions."""


@control("conv2d.dweight")
class ImageByImage(Conv2dDweight):
    """Every image's contribution is summed first, then the images as a tree."""

    def product(self, dy: Array, read: Array) -> Array:
        if not len(dy):
            return np.zeros((dy.shape[1], read.shape[1]), dy.dtype)
        return pairwise(np.einsum("nkpq,ncpq->nkc", dy, read))


@control("conv2d.dweight")
class WeightGradientByMatrixProduct(Conv2dDweight):
    """All images and positions in one long axis, multiplied by BLAS."""

    def product(self, dy: Array, read: Array) -> Array:
        above, below = (each.transpose(1, 0, 2, 3).reshape(each.shape[1], -1) for each in (dy, read))
        return above @ below.T


@control("conv2d.dbias")
def bias_gradient_as_a_tree(dy: Array) -> Array:
    """Images and positions are summed as a tree."""
    flat = dy.transpose(0, 2, 3, 1).reshape(-1, dy.shape[1])
    return pairwise(flat)


@control("conv2d.dbias")
def bias_gradient_backwards(dy: Array) -> Array:
    """Columns first, then rows, then images, each from the last to the first."""
    return dy[::-1, :, ::-1, ::-1].cumsum(axis=3)[..., -1].sum(axis=2).sum(axis=0)


@control("max_pool2d")
class PoolTapByTap(MaxPool2d):
    """One tap after the other, in order."""


@control("max_pool2d")
class PoolBackwards(MaxPool2d):
    """The taps from the last to the first: a tie replaces, an earlier NaN replaces a later one."""

    def scan(self, x: Array, geometry: Geometry) -> tuple[Array, Array]:
        image = self.image(x, geometry)
        position = np.broadcast_to(geometry.padded(places(x), -1), image.shape)
        y = np.full((*x.shape[:2], *geometry.out), -np.inf, x.dtype)
        winner = np.full(y.shape, -1)
        for _, _, rows, columns in reversed(list(geometry.taps())):
            value, place = image[:, :, rows, columns], position[:, :, rows, columns]
            taken = (place >= 0) & ((value >= y) | np.isnan(value))
            y, winner = np.where(taken, value, y), np.where(taken, place, winner)
        return y, winner


@control("max_pool2d")
def pooled_by_sorting(x: Array, kernel_size: Pair, *, return_indices: bool = False, **options: Any) -> Any:
    """Every window is sorted, stably and NaN first: the first place is the winner's."""
    geometry = MaxPool2d().geometry(x.shape[2:], kernel_size, **options)
    image, position = geometry.padded(x, -np.inf), geometry.padded(places(x), -1)
    value, place = (np.stack([each[:, :, rows, columns] for _, _, rows, columns in geometry.taps()], axis=-1)
                    for each in (image, position))  # fmt: skip
    place = np.broadcast_to(place, value.shape)
    order = np.lexsort((-value, ~np.isnan(value), place < 0), axis=-1)[..., :1]
    y, winner = (np.take_along_axis(each, order, axis=-1)[..., 0] for each in (value, place))
    return (y, winner) if return_indices else y


@control("max_pool2d.dx")
class GivenWindowByWindow(MaxPool2dDx):
    """Every output gradient to its winner, one window after the other."""


@control("max_pool2d.dx")
class GivenByCounting(MaxPool2dDx):
    """One weighted count over all winners, in float64."""

    def give(self, flat: Array, dy: Array, winner: Array) -> None:
        for n, c in np.ndindex(flat.shape[:2]):
            with np.errstate(invalid="ignore"):
                flat[n, c] = np.bincount(winner[n, c].ravel(), dy[n, c].ravel(), flat.shape[2])


@control("linear")
def linear_by_blas(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """One matrix product."""
    y = x @ weight.T
    return y if bias is None else y + bias


@control("linear")
def linear_as_a_tree(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """The bias is one more feature, all products are summed as a tree."""
    products = x.T[:, :, None] * weight.T[:, None, :]
    if bias is not None:
        products = np.concatenate([np.broadcast_to(bias, (1, *products.shape[1:])), products])
    return pairwise(products)


@control("linear")
def linear_transposed_in_double(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """The transposed product in float64, the features from the last to the first."""
    y = (weight[:, ::-1].astype(np.float64) @ x[:, ::-1].T.astype(np.float64)).T
    return (y if bias is None else y + bias).astype(x.dtype)


@control("linear.dx")
def linear_dx_by_blas(dy: Array, weight: Array) -> Array:
    """One matrix product."""
    return dy @ weight


@control("linear.dx")
def linear_dx_backwards(dy: Array, weight: Array) -> Array:
    """Output by output, from the last to the first."""
    return np.add.reduce([dy[:, k : k + 1] * weight[k] for k in reversed(range(len(weight)))])


@control("linear.dweight")
def linear_dweight_by_blas(dy: Array, x: Array) -> Array:
    """One matrix product."""
    return dy.T @ x


@control("linear.dweight")
def linear_dweight_as_a_tree(dy: Array, x: Array) -> Array:
    """Row by row, the rows as a tree."""
    return pairwise(dy[:, :, None] * x[:, None, :])


@control("linear.dbias")
def linear_dbias_by_blas(dy: Array) -> Array:
    """A row of ones times the output gradient."""
    return np.ones(len(dy), dy.dtype) @ dy


@control("relu")
def relu_by_maximum(x: Array) -> Array:
    """numpy's maximum, which keeps NaN."""
    return np.maximum(x, np.zeros((), x.dtype))


@control("relu")
def relu_by_the_bits(x: Array) -> Array:
    """The sign bit alone decides: -0.0 becomes 0.0, a NaN is passed on."""
    return np.where(np.signbit(x) & ~np.isnan(x), np.zeros((), x.dtype), x)


@control("relu.dx")
def relu_dx_by_index(dy: Array, x: Array) -> Array:
    """A copy of dy in which the places of shut gates are overwritten."""
    dx = np.array(dy)
    dx[x <= 0] = 0
    return dx


@control("flatten")
def flattened_entry_by_entry(x: Array) -> Array:
    """Every entry carried to its place."""
    n, c, h, w = x.shape
    y = np.empty((n, c * h * w), x.dtype)
    for channel, row, column in np.ndindex(c, h, w):
        y[:, (channel * h + row) * w + column] = x[:, channel, row, column]
    return y


@control("flatten.dx")
def unflattened_entry_by_entry(dy: Array, x_shape: Any) -> Array:
    """Every entry carried back."""
    dx = np.empty(x_shape, dy.dtype)
    for column, place in enumerate(np.ndindex(*x_shape[1:])):
        dx[:, *place] = dy[:, column]
    return dx


@control("cross_entropy")
def cross_entropy_by_logaddexp(logits: Array, target: Array) -> Array:
    """The maximum taken out, then logarithms of sums, two at a time, in float64."""
    z = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    return np.asarray((np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), target]).mean(), logits.dtype)


@control("cross_entropy")
def cross_entropy_two_at_a_time(logits: Array, target: Array) -> Array:
    """Two logits at a time, `log(e^a + e^b)`, once the maximum is taken out, in float64."""
    z = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    losses = np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), target]
    return np.asarray(losses.sum() / len(z), logits.dtype)


@control("cross_entropy.dlogits")
def dlogits_by_log_softmax(logits: Array, target: Array) -> Array:
    """`exp(log_softmax)` in the logits' type, as PyTorch computes it."""
    z = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))
    p[np.arange(len(p)), target] -= 1
    return p / np.asarray(len(p), p.dtype)


@control("sgd")
def sgd_in_double(
    parameter: Array, gradient: Array, velocity: Array, *, learning_rate: float, momentum: float = 0
) -> tuple[Array, Array]:
    """The velocity in float64, the step with the unrounded velocity."""
    moved = gradient.astype(np.float64) + momentum * velocity.astype(np.float64)
    return np.asarray(parameter - learning_rate * moved, parameter.dtype), np.asarray(moved, parameter.dtype)
