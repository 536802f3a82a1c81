"""Mutants of the convolution: layout, indexing, fast paths, planner, cache and fusion."""

from dataclasses import replace
from typing import Any

import numpy as np

from .clean import Array, Conv2d, Geometry, as_if_contiguous, group, next_row, rows_joined
from .collection import mutant


@mutant("conv2d", "pytorch#1246, #16018, #55781, #192212", "weight is a view such as w[:, :, ::2, ::2]")
class WeightReadAsContiguous(Conv2d):
    """A weight that is not contiguous is read as if it were."""

    def filters(self, weight: Array) -> Array:
        return as_if_contiguous(weight)


@mutant("conv2d", "pytorch#1246, #16018, #55781, #192212", "x is a view")
class ImageReadAsContiguous(Conv2d):
    """An image that is not contiguous is read as if it were."""

    def image(self, x: Array, geometry: Geometry) -> Array:
        return geometry.padded(as_if_contiguous(x))


@mutant(
    "conv2d", "pytorch#82060", "one input channel to a group: every order of the weight's axes has the same strides"
)
class LayoutGuessedFromTheWeight(Conv2d):
    """With one channel the weight passes for channels-last, and the image's memory is read as channels-last too."""

    def __call__(self, x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
        if weight.shape[1] == 1:
            n, c, h, w = x.shape
            x = np.ascontiguousarray(x).reshape(n, h, w, c).transpose(0, 3, 1, 2)
        return super().__call__(x, weight, bias, **options)


@mutant("conv2d", "PaddlePaddle/Paddle#20997", "stride_h != stride_w")
class StrideOfRowsUsedTwice(Conv2d):
    """stride[0] is used for both axes."""

    def geometry(self, geometry: Geometry, weight: Array, bias: Array | None) -> Geometry:
        return replace(geometry, stride=(geometry.stride[0], geometry.stride[0]))


@mutant("conv2d", "tracel-ai/burn#4466", "dilation_h != dilation_w")
class DilationOfRowsUsedTwice(Conv2d):
    """dilation[0] is used for both axes."""

    def geometry(self, geometry: Geometry, weight: Array, bias: Array | None) -> Geometry:
        return replace(geometry, dilation=(geometry.dilation[0], geometry.dilation[0]))


@mutant("conv2d", "tensorflow#1299, Theano#3971", "more than 16 images")
class TileLostPastABatchThreshold(Conv2d):
    """Past a batch of 16 the images of the second tile get the first tile's results."""

    def finish(self, y: Array, bias: Array | None) -> Array:
        y[16:] = np.resize(y[:16], y[16:].shape)
        return super().finish(y, bias)


@mutant("conv2d", "pytorch#96225", "a batch beyond the index type: 16 bits there, 4 bits here")
class BatchIndexTooNarrow(Conv2d):
    """The image index is cut to the low bits of a narrow integer."""

    def image(self, x: Array, geometry: Geometry) -> Array:
        return geometry.padded(x)[np.arange(len(x)) & 0xF]


@mutant("conv2d", "modular#6712", "left padding of a vector's width or more: 2 here")
class LeftGuardDropped(Conv2d):
    """With wide left padding the guard is gone: left of a row's start the end of the row before is read."""

    def image(self, x: Array, geometry: Geometry) -> Array:
        image, (rows, columns) = geometry.padded(x), geometry.inside
        if columns.start >= 2:
            before = np.pad(x, [(0, 0), (0, 0), (1, 0), (0, 0)])[:, :, :-1]
            left = min(columns.start, x.shape[3])
            image[:, :, rows, columns.start - left : columns.start] = before[..., x.shape[3] - left :]
        return image


@mutant("conv2d", "modular#6129", "groups > 1 and more than 64 products to an output")
class TapsTruncatedWithGroups(Conv2d):
    """With groups the channels of a group past the 64th are not summed."""

    def product(self, read: Array, weight: Array) -> Array:
        return super().product(read[:, : self.most], weight[:, : self.most])

    def geometry(self, geometry: Geometry, weight: Array, bias: Array | None) -> Geometry:
        self.most = 64 if geometry.groups > 1 else weight.shape[1]
        return geometry


@mutant("conv2d", "onnxruntime#1978", "no bias")
class MissingBiasTakenForAResidual(Conv2d):
    """Fused with an addition, inputs are counted by place: without a bias the next array in line is added."""

    def __call__(self, x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
        y = super().__call__(x, weight, bias, **options)
        return y + np.resize(x, y.shape) if bias is None and x.size else y


@mutant("conv2d", "ncnn#75", "dilation along a row")
class DilationGapFromTheExtent(Conv2d):
    """From the end of a filter row to the next the pointer moves `width*dilation - extent`, not `- kernel*dilation`."""

    def __call__(self, x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
        geometry = Geometry.of(x.shape[2:], weight.shape[2:], **options)
        flat = rows_joined(geometry.padded(x))
        width, (_, s) = geometry.span(1), geometry.kernel
        (dilation_h, dilation_w) = geometry.dilation
        gap = width * dilation_h - (dilation_w * (s - 1) + 1)
        start = geometry.reads(0, 0)[:, None] * width + geometry.reads(1, 0)[None, :]
        y = np.zeros((len(x), len(weight), *geometry.out), x.dtype)
        for g in range(geometry.groups):
            sums, mine = group(y, geometry.groups, g, 1), group(weight, geometry.groups, g, 0)
            for tap, (r, c) in enumerate(np.ndindex(*geometry.kernel)):
                offset = tap * dilation_w + r * gap
                read = group(flat, geometry.groups, g, 1).take(start + offset, axis=2, mode="wrap")
                sums += self.product(read, mine[:, :, r, c])
        return self.finish(y, bias)


@mutant("conv2d", "FluxML/NNlib.jl#45", "dilation along a row")
class RowEndPassedWithDilation(Conv2d):
    """With dilation the row is unrolled as if it were not: reads past its end find what comes after it in memory."""

    def image(self, x: Array, geometry: Geometry) -> Array:
        return next_row(x, geometry) if geometry.dilation[1] > 1 else geometry.padded(x)


@mutant(
    "conv2d", "pytorch#50042, OpenCV#23151, #23112", "right padding, and outputs in a last vector of 4 that is not full"
)
class VectorLoadedPastTheEdge(Conv2d):
    """The last vector of a row is loaded whole: past the edge it holds the next row, not padding."""

    def image(self, x: Array, geometry: Geometry) -> Array:
        return next_row(x, geometry) if geometry.out[1] % 4 else geometry.padded(x)


@mutant(
    "conv2d", "pytorch#68418, #189664, #24818", "more elements than the index type counts: 32 bits there, 8 bits here"
)
class FlatIndexOverflows(Conv2d):
    """The flat index of an input wraps round in a narrow signed integer."""

    def image(self, x: Array, geometry: Geometry) -> Array:
        return geometry.padded(x.reshape(-1)[np.arange(x.size).astype(np.int8)].reshape(x.shape))


_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float32)
_FILTER = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float32)


@mutant("conv2d", "ncnn#1891, ComputeLibrary#1154", "3x3, stride 1, no dilation, one group")
class WinogradInHalfPrecision(Conv2d):
    """Winograd F(2x2,3x3) whose transformed tiles are kept in fp16: digits are lost, large values overflow."""

    def __call__(self, x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
        geometry = Geometry.of(x.shape[2:], weight.shape[2:], **options)
        if (geometry.kernel, geometry.stride, geometry.dilation, geometry.groups) != ((3, 3), (1, 1), (1, 1), 1):
            return super().__call__(x, weight, bias, **options)
        (n, c), (rows, columns) = x.shape[:2], (-(-size // 2) for size in geometry.out)
        image = np.zeros((n, c, 2 * rows + 2, 2 * columns + 2), x.dtype)
        padded = geometry.padded(x)[:, :, : image.shape[2], : image.shape[3]]
        image[:, :, : padded.shape[2], : padded.shape[3]] = padded
        tiles = np.lib.stride_tricks.sliding_window_view(image, (4, 4), (2, 3))[:, :, ::2, ::2]
        v = (_INPUT @ tiles @ _INPUT.T).astype(np.float16).astype(x.dtype)
        u = (_FILTER @ weight @ _FILTER.T).astype(np.float16).astype(x.dtype)
        y = _OUTPUT @ np.einsum("ncijab,kcab->nkijab", v, u) @ _OUTPUT.T
        y = y.transpose(0, 1, 2, 4, 3, 5).reshape(len(x), len(weight), 2 * rows, 2 * columns)
        return self.finish(y[:, :, : geometry.out[0], : geometry.out[1]].astype(x.dtype), bias)


@mutant("conv2d", "openvino#33681", "3x3, stride 1, with padding")
class FastPathIgnoresPadding(Conv2d):
    """The path for 3x3 filters with stride 1 takes the padding for zero."""

    def geometry(self, geometry: Geometry, weight: Array, bias: Array | None) -> Geometry:
        fast = geometry.kernel == (3, 3) and geometry.stride == (1, 1)
        return replace(geometry, padding=((0, 0), (0, 0))) if fast else geometry


@mutant(
    "conv2d", "oneDNN harness_conv_regression_general (ic1 oc16 ih123 kh3)", "one channel to a group, right padding"
)
class VectorPastTheSourceOfOneChannel(Conv2d):
    """The path for a single channel reads a vector past the source."""

    def image(self, x: Array, geometry: Geometry) -> Array:
        return next_row(x, geometry) if x.shape[1] == geometry.groups else geometry.padded(x)


@mutant("conv2d", "oneDNN harness_conv_regression_general (ih2 kh1 sh3)", "inputs left over after the last window")
class NegativeEndPadding(Conv2d):
    """Where the last window ends before the input does, the padding at the end is negative and shifts that window."""

    def image(self, x: Array, geometry: Geometry) -> Array:
        image = geometry.padded(x)
        last = (geometry.out[0] - 1) * geometry.stride[0]
        left_over = geometry.inside[0].stop - (last + geometry.dilation[0] * (geometry.kernel[0] - 1) + 1)
        if left_over > 0:
            image[:, :, last:-left_over] = image[:, :, last + left_over :].copy()
        return image


@mutant("conv2d", "netcl 0.4.4", "a bias, or none, after the same filter sizes were used with the other")
class CacheKeyLacksTheFusionFlag(Conv2d):
    """Compiled kernels are kept by filter size alone: whether the bias is fused is decided by whoever came first."""

    def __init__(self) -> None:
        self.fused: dict[tuple[int, ...], bool] = {}

    def __call__(self, x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
        fused = self.fused.setdefault(weight.shape[1:], bias is not None)
        return super().__call__(x, weight, bias if fused else None, **options)


@mutant("conv2d", "netcl 0.4.4", "a bias with dilation or groups")
class FusedPathLosesAttributes(Conv2d):
    """The fused path, taken where there is a bias, drops dilation and groups."""

    def geometry(self, geometry: Geometry, weight: Array, bias: Array | None) -> Geometry:
        self.is_fused = bias is not None
        return replace(geometry, dilation=(1, 1)) if self.is_fused else geometry

    def channels(self, image: Array, groups: int, g: int) -> Array:
        return super().channels(image, groups, 0 if self.is_fused else g)


@mutant("conv2d", "onnx#1609, #2095, onnxruntime#8769", "padding that differs at begin and end")
class OddPaddingOnTheOtherSide(Conv2d):
    """SAME_UPPER taken for SAME_LOWER: where the padding is odd the extra position goes to the other side."""

    def geometry(self, geometry: Geometry, weight: Array, bias: Array | None) -> Geometry:
        return replace(geometry, padding=tuple(side[::-1] if sum(side) % 2 else side for side in geometry.padding))


@mutant("conv2d", "opencv#20394, onnx2tf#56", "padding that differs at begin and end")
class AsymmetricPaddingLost(Conv2d):
    """The padding at the end is taken to be that at the beginning."""

    def __call__(self, x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
        options["padding"] = tuple((before, before) for before, _ in options["padding"])
        return super().__call__(x, weight, bias, **options)


@mutant("conv2d", "FastNN#10", "numbers with more than 11 significant bits")
class SilentTF32(Conv2d):
    """The operands are rounded to TF32."""

    def image(self, x: Array, geometry: Geometry) -> Array:
        return geometry.padded(tf32(x))

    def filters(self, weight: Array) -> Array:
        return tf32(weight)


def tf32(array: Array) -> Array:
    """Float32 with the low 13 bits of the significand cut off."""
    return (np.ascontiguousarray(array, np.float32).view(np.int32) & -8192).view(np.float32)
