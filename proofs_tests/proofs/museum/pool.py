"""Mutants of max pooling and its gradient."""

from typing import Any

import numpy as np

from .clean import Array, Geometry, MaxPool2d, MaxPool2dDx, Pair, rows_joined
from .collection import mutant


@mutant(
    "max_pool2d", "pytorch#45357, pytorch/xla#2583, onnx#4958, onnxruntime#16351", "ceil_mode with padding at the end"
)
class WindowWhollyInThePadding(MaxPool2d):
    """With ceil_mode a window is kept that starts past the input."""

    def one_more(self, geometry: Geometry, axis: int) -> bool:
        span = geometry.dilation[axis] * (geometry.kernel[axis] - 1) + 1
        return (geometry.size[axis] + sum(geometry.padding[axis]) - span) % geometry.stride[axis] > 0


@mutant("max_pool2d", "tensorflow#125965, #125968", "a NaN among the columns after the last full vector of 4")
class NanLostInTheTail(MaxPool2d):
    """The vector body takes the maximum with NaN, the scalar tail compares with `>`."""

    def beats(self, value: Array, held: Array, winner: Array) -> Array:
        tail = np.arange(value.shape[3]) >= value.shape[3] // 4 * 4
        return np.where(tail, (winner < 0) | (value > held), super().beats(value, held, winner))


@mutant("max_pool2d", "pytorch#39846, #7645, Theano#3060", "a NaN")
class NanDropped(MaxPool2d):
    """`if v > m` from a finite start: NaN never wins, and a window of nothing else gives -3.4e38."""

    fill = float(np.finfo(np.float32).min)

    def beats(self, value: Array, held: Array, winner: Array) -> Array:
        return value > held


@mutant("max_pool2d", "pytorch#40131", "a window of -inf alone")
class WinnerNeverSet(MaxPool2d):
    """Nothing beats the -inf that the scan starts from: the winning index stays -1."""

    def beats(self, value: Array, held: Array, winner: Array) -> Array:
        return (value > held) | (np.isnan(value) & ~np.isnan(held))


@mutant("max_pool2d", "simplegrad", "a window of negative numbers that touches the padding")
class PaddingOfZeroWins(MaxPool2d):
    """The padding is zero and takes part: it beats every negative number."""

    def scan(self, x: Array, geometry: Geometry) -> tuple[Array, Array]:
        y, winner = super().scan(x, geometry)
        touches = [
            [(geometry.reads(axis, tap) < before) | (geometry.reads(axis, tap) >= before + geometry.size[axis])
             for tap in range(geometry.kernel[axis])]
            for axis, (before, _) in enumerate(geometry.padding)
        ]  # fmt: skip
        rows, columns = (np.any(each, axis=0) for each in touches)
        return np.where((rows[:, None] | columns) & (y < 0), 0, y).astype(x.dtype), winner


@mutant("max_pool2d", "darknet#5793, ncnn#220", "2x2 with stride 2 on an odd width")
class RowPointerOffByOne(MaxPool2d):
    """In the 2x2 path the row pointer moves by whole windows: the last pixel of an odd row shifts the next."""

    def image(self, x: Array, geometry: Geometry) -> Array:
        width = x.shape[3]
        if geometry.kernel == geometry.stride == (2, 2) and width % 2:
            step = np.arange(x.shape[2])[:, None] * (width - 1) + np.arange(width)
            x = rows_joined(x)[:, :, step]
        return super().image(x, geometry)


@mutant("max_pool2d", "tracel-ai/burn#4466", "dilation_h != dilation_w")
class PoolDilationOfRowsUsedTwice(MaxPool2d):
    """dilation[0] is used for both axes."""

    def geometry(self, size: Any, kernel: Pair, **options: Any) -> Geometry:
        geometry = super().geometry(size, kernel, **options)
        return Geometry(**{**geometry.__dict__, "dilation": (geometry.dilation[0],) * 2})


@mutant(
    "max_pool2d", "pytorch#68418, #189664, #24818", "an image of more pixels than the index type counts: 5 bits here"
)
class WinnerIndexOverflows(MaxPool2d):
    """The index of the winner is cut to a narrow integer."""

    def scan(self, x: Array, geometry: Geometry) -> tuple[Array, Array]:
        y, winner = super().scan(x, geometry)
        return y, winner & 0x1F


@mutant("max_pool2d.dx", "ocannl#512, NNlib.jl#205", "overlapping windows with the same winner")
class LastWindowOverwrites(MaxPool2dDx):
    """The gradients of windows that overlap are assigned, not added."""

    def give(self, flat: Array, dy: Array, winner: Array) -> None:
        n, c = np.ogrid[: len(flat), : flat.shape[1]]
        for p, q in np.ndindex(dy.shape[2:]):
            flat[n, c, winner[:, :, p, q]] = dy[:, :, p, q]


@mutant("max_pool2d.dx", "executorch#21686", "always")
class BufferNotCleared(MaxPool2dDx):
    """The gradient is added to whatever the buffer held before."""

    def start(self, x: Array, dtype: Any) -> Array:
        return np.full(x.shape, 3, dtype)


@mutant("max_pool2d.dx", "tinygrad#12296", "ties")
class TiesShareByAHalfPrecisionCount(MaxPool2dDx):
    """The gradient is divided among ties by a count summed in fp16, where the first alone should have it."""

    def __call__(self, dy: Array, x: Array, kernel_size: Pair, **options: Any) -> Array:
        pool = MaxPool2d()
        geometry = pool.geometry(x.shape[2:], kernel_size, **options)
        y, image = pool.scan(x, geometry)[0], pool.image(x, geometry)
        tied = [(image[:, :, rows, columns] == y, rows, columns) for _, _, rows, columns in geometry.taps()]
        count = np.sum([each for each, _, _ in tied], axis=0, dtype=np.float16).astype(dy.dtype)
        dx = np.zeros(image.shape, dy.dtype)
        for each, rows, columns in tied:
            dx[:, :, rows, columns] += each * (dy / np.maximum(count, 1))
        return dx[:, :, *geometry.inside].copy()


@mutant("max_pool2d.dx", "pytorch#40131", "a window of -inf alone")
class GradientLostWhereNothingWins(MaxPool2dDx):
    """A window whose maximum beats nothing has no winner, and its gradient goes nowhere."""

    def __call__(self, dy: Array, x: Array, kernel_size: Pair, **options: Any) -> Array:
        pool = WinnerNeverSet()
        winner = pool.scan(x, pool.geometry(x.shape[2:], kernel_size, **options))[1]
        return super().__call__(np.where(winner < 0, np.zeros((), dy.dtype), dy), x, kernel_size, **options)
