"""Mutants of the convolution's gradients; those of transposed convolutions too, for the input gradient is one."""

from dataclasses import replace
from typing import Any

import numpy as np

from .clean import Array, Conv2dDweight, Conv2dDx, Geometry, rows_joined
from .collection import mutant


@mutant("conv2d.dx", "pytorch#99519", "inputs that no window reads")
class OutputNotAllWritten(Conv2dDx):
    """The result is allocated uninitialised, and what no output gradient reaches is never written."""

    def finish(self, dx: Array, geometry: Geometry) -> Array:
        for axis in (0, 1):
            reads = [geometry.reads(axis, tap) - geometry.padding[axis][0] for tap in range(geometry.kernel[axis])]
            unread = np.setdiff1d(np.arange(geometry.size[axis]), reads)
            dx[(..., unread, slice(None)) if axis == 0 else (..., unread)] = np.nan
        return dx


@mutant(
    "conv2d.dx", "oneDNN harness_conv_regression_general (ih32 oh10 kh5 sh3 ph1)", "a filter longer than the stride"
)
class LastOverflowRowLost(Conv2dDx):
    """The rows that only the last window's overflow past its stride reaches get nothing."""

    def finish(self, dx: Array, geometry: Geometry) -> Array:
        dx[:, :, geometry.out[0] * geometry.stride[0] - geometry.padding[0][0] :] = 0
        return dx


@mutant("conv2d.dx", "netcl 0.4.4", "3x3, stride 1, at least 64 channels, padding other than 1")
class WinogradWithoutItsPrecondition(Conv2dDx):
    """From 64 channels on the planner takes Winograd, which is written for padding 1, whatever the padding is."""

    def geometry(self, geometry: Geometry, x_shape: Any) -> Geometry:
        fast = (geometry.kernel, geometry.stride, geometry.dilation) == ((3, 3), (1, 1), (1, 1)) and x_shape[1] >= 64
        return replace(geometry, padding=((1, 1), (1, 1))) if fast else geometry


@mutant("conv2d.dx", "openxla/xla#48713", "padding wider than the filter's reach on the left, narrower on the right")
class CropReadsTheNextRow(Conv2dDx):
    """There the gradient crops dy on the left, and the path without a guard is taken: past a row's end it reads on."""

    def __call__(self, dy: Array, weight: Array, x_shape: Any, **options: Any) -> Array:
        geometry = Geometry.of(x_shape[2:], weight.shape[2:], **options)
        width = dy.shape[3]
        self.more = max(0, geometry.padding[1][0] - geometry.dilation[1] * (geometry.kernel[1] - 1))
        self.more *= geometry.stride == (1, 1)
        read = np.arange(dy.shape[2])[:, None] * width + np.arange(width + self.more)
        there = rows_joined(dy).take(read, axis=2, mode="clip")
        return super().__call__(np.where(read < dy.shape[2] * width, there, 0), weight, x_shape, **options)

    def geometry(self, geometry: Geometry, x_shape: Any) -> Geometry:
        return replace(geometry, out=(geometry.out[0], geometry.out[1] + self.more))


@mutant("conv2d.dx", "CMSIS-NN#230", "padding that is no multiple of the stride")
class PaddingFlushedInWholeStrides(Conv2dDx):
    """Rows are flushed from `padding // stride` on: the rest of the padding is lost."""

    def geometry(self, geometry: Geometry, x_shape: Any) -> Geometry:
        (top, bottom), columns = geometry.padding
        return replace(geometry, padding=((top - top % geometry.stride[0], bottom), columns))


@mutant("conv2d.dx", "rocm-libraries#7732", "stride > dilation")
class OnlyTheFirstSubGemm(Conv2dDx):
    """With a stride beyond the dilation only the first of the interleaved products is kept: every stride-th row."""

    def finish(self, dx: Array, geometry: Geometry) -> Array:
        if geometry.stride[0] > geometry.dilation[0]:
            dx[:, :, np.arange(dx.shape[2]) % geometry.stride[0] != 0] = 0
        return dx


@mutant("conv2d.dx", "pytorch#13008, Theano#4729", "dilation")
class DilationIgnored(Conv2dDx):
    """The gradient is computed as if the filter were not dilated."""

    def geometry(self, geometry: Geometry, x_shape: Any) -> Geometry:
        return replace(geometry, dilation=(1, 1))


@mutant("conv2d.dx", "mxnet#11203", "stride != dilation")
class StrideAndDilationSwapped(Conv2dDx):
    """Adding the columns back to the image, stride and dilation change places."""

    def geometry(self, geometry: Geometry, x_shape: Any) -> Geometry:
        return replace(geometry, stride=geometry.dilation, dilation=geometry.stride)


@mutant(
    "conv2d.dx", "pytorch/xla#2351, tvm#6236, #5758, #19524", "inputs left over after the last window, right padding"
)
class OutputPaddingNotComputed(Conv2dDx):
    """The rows and columns that output padding adds are sized and left zero, though windows reach them."""

    def finish(self, dx: Array, geometry: Geometry) -> Array:
        for axis in (0, 1):
            last = (geometry.out[axis] - 1) * geometry.stride[axis]
            plain = last + geometry.dilation[axis] * (geometry.kernel[axis] - 1) + 1 - sum(geometry.padding[axis])
            beyond = slice(max(0, plain), None)
            dx[(..., beyond, slice(None)) if axis == 0 else (..., beyond)] = 0
        return dx


@mutant("conv2d.dx", "opencv#10702", "padding that differs at begin and end")
class PaddingSidesSwapped(Conv2dDx):
    """The transposed padding has its ends swapped."""

    def geometry(self, geometry: Geometry, x_shape: Any) -> Geometry:
        return replace(geometry, padding=tuple(side[::-1] for side in geometry.padding))


@mutant("conv2d.dx", "onnx#2788, onnxruntime#4086, #4698, openvino#32608", "padding")
class SameTreatedAsValid(Conv2dDx):
    """SAME is treated as VALID: the padding is taken for zero."""

    def geometry(self, geometry: Geometry, x_shape: Any) -> Geometry:
        return replace(geometry, padding=((0, 0), (0, 0)))


@mutant(
    "conv2d.dweight", "oneDNN harness_conv_regression_general (iw1 ow29 kw14 pw28)", "padding of a whole window or more"
)
class WindowInThePaddingPulledToTheEdge(Conv2dDweight):
    """Windows that lie wholly in the left padding are not skipped but read from the image's edge."""

    def image(self, x: Array, geometry: Geometry) -> Array:
        image, (_, columns) = geometry.padded(x), geometry.inside
        extent = geometry.dilation[1] * (geometry.kernel[1] - 1) + 1
        beyond = max(0, columns.start - extent + 1)
        image[..., :beyond] = image[..., columns.start : columns.start + 1]
        return image


@mutant("conv2d.dweight", "pytorch#51430, burn#1891", "groups > 1")
class GroupIndexLost(Conv2dDweight):
    """Every group's weight gradient is computed from the first group's channels."""

    def channels(self, image: Array, groups: int, g: int) -> Array:
        return super().channels(image, groups, 0)


@mutant("conv2d.dweight", "iree#23786", "groups > 1 and stride > 1")
class UnrolledWronglyWithGroupsAndStride(Conv2dDweight):
    """With both groups and a stride the image is unrolled as if the stride were 1."""

    def geometry(self, geometry: Geometry) -> Geometry:
        return replace(geometry, stride=(1, 1)) if geometry.groups > 1 else geometry


@mutant("conv2d.dweight", "Grilly", "a layer used twice, as it is for every image of a batch")
class LastUseOverwritesTheFirst(Conv2dDweight):
    """Gradients of several uses are assigned, not added: the last one stays."""

    def product(self, dy: Array, read: Array) -> Array:
        return super().product(dy[-1:], read[-1:])


@mutant("conv2d.dweight", "Grilly 0.5", "always: weight decay alone moved the parameters and the loss fell")
def gradient_is_always_zero(dy: Array, x: Array, weight_shape: Any, **options: Any) -> Array:
    """The backward pass returns zeros."""
    return np.zeros(weight_shape, dy.dtype)
