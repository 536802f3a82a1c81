"""Mutants of the fully connected layer, the rectifier and the loss."""

from typing import Any

import numpy as np

from .clean import Array, as_if_contiguous
from .collection import mutant
from .conv import tf32


class Linear:
    """Clean: a weighted sum of the features."""

    def __call__(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        y = self.product(x, weight)
        return y if bias is None else y + bias

    def product(self, x: Array, weight: Array) -> Array:
        return np.einsum("nc,kc->nk", x, weight)


@mutant("linear", "onnxruntime#20030", "more than one feature")
class PackedWeightReadWithAnotherStride(Linear):
    """The weight is packed in panels of 16 outputs and read in panels of 4: only the first feature meets its weight."""

    def product(self, x: Array, weight: Array) -> Array:
        (k, c), panels = weight.shape, -(-len(weight) // 16)
        packed = np.zeros((panels, c, 16), weight.dtype)
        for output, row in enumerate(weight):
            packed[output // 16, :, output % 16] = row
        read = np.arange(c) * 4 + np.arange(k)[:, None] // 16 * c * 16 + np.arange(k)[:, None] % 16
        return super().product(x, packed.reshape(-1)[read])


@mutant("linear", "Grilly 0.3", "outputs that are no multiple of 16")
class RemainderTileNotSynchronised(Linear):
    """Threads out of range leave before the barrier: a tile that is not full misses the last 16 features."""

    def product(self, x: Array, weight: Array) -> Array:
        y, full = super().product(x, weight), len(weight) // 16 * 16
        loaded = (weight.shape[1] - 1) // 16 * 16
        y[:, full:] = super().product(x[:, :loaded], weight[full:, :loaded])
        return y


@mutant("linear", "pytorch#1246, #16018, #55781, #192212", "weight is a view")
class LinearWeightReadAsContiguous(Linear):
    """A weight that is not contiguous is read as if it were."""

    def product(self, x: Array, weight: Array) -> Array:
        return super().product(x, as_if_contiguous(weight))


@mutant("linear", "pytorch#196596", "no bias")
class BetaZeroReadsGarbage(Linear):
    """Without a bias `beta = 0` still reads the uninitialised result: 0 times NaN is NaN."""

    def __call__(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        return super().__call__(x, weight, np.asarray(np.float32(0) * np.float32(np.nan)) if bias is None else bias)


@mutant("linear", "FastNN#10", "numbers with more than 11 significant bits")
class LinearInSilentTF32(Linear):
    """The operands are rounded to TF32."""

    def product(self, x: Array, weight: Array) -> Array:
        return super().product(tf32(x), tf32(weight))


@mutant("linear.dweight", "Grilly 0.5", "always: weight decay alone moved the parameters and the loss fell")
def linear_gradient_is_always_zero(dy: Array, x: Array) -> Array:
    """The backward pass returns zeros."""
    return np.zeros((dy.shape[-1], x.shape[-1]), dy.dtype)


@mutant("relu", "mxnet#11115, burn#5609, #5658", "a NaN")
def relu_of_nan_is_zero(x: Array) -> Array:
    """`x if x > 0 else 0`: NaN becomes zero."""
    return np.where(x > 0, x, np.zeros((), x.dtype))


@mutant("relu.dx", "mxnet#11115, burn#5609, #5658", "a NaN")
def relu_gate_of_nan_is_shut(dy: Array, x: Array) -> Array:
    """The gate opens for `x > 0` alone, so that a NaN hides its gradient as it hid its value."""
    return np.where(x > 0, dy, np.zeros((), dy.dtype))


@mutant("cross_entropy", "pytorch#38839", "logits far from zero, such as -1e7")
def maximum_added_back_first(logits: Array, target: Array) -> Array:
    """`(log sum exp(x - max) + max) - x`: the logarithm drowns in the maximum."""
    most = logits.max(axis=1)
    total = np.log(np.exp(logits - most[:, None]).sum(axis=1)) + most
    return np.asarray((total - logits[np.arange(len(target)), target]).mean(), logits.dtype)


@mutant("cross_entropy", "hb-pytorch#61", "a logit beyond 88.72284")
def exponential_overflows(logits: Array, target: Array) -> Array:
    """The maximum is not taken out: exp overflows."""
    total = np.log(np.exp(logits).sum(axis=1))
    return np.asarray((total - logits[np.arange(len(target)), target]).mean(), logits.dtype)


@mutant("cross_entropy.dlogits", "hb-pytorch#61", "a logit beyond 88.72284")
def softmax_overflows(logits: Array, target: Array) -> Array:
    """The maximum is not taken out: exp overflows, and inf / inf is NaN."""
    exponential: Any = np.exp(logits)
    softmax = exponential / exponential.sum(axis=1, keepdims=True)
    softmax[np.arange(len(target)), target] -= 1
    return softmax / np.asarray(len(target), logits.dtype)
