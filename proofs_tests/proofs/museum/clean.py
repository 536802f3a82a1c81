"""Clean kernels in plain numpy, one tap at a time, in parts that a mutant can replace one by one."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
Pair = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """The numbers of one call. A fault planted in one of them leaves the output's size alone."""

    size: Pair
    kernel: Pair
    stride: Pair
    padding: tuple[Pair, Pair]
    dilation: Pair
    groups: int
    out: Pair

    @staticmethod
    def of(
        size: Any, kernel: Any, stride: Pair, padding: tuple[Pair, Pair], dilation: Pair, groups: int = 1
    ) -> "Geometry":
        out = tuple(len(range(0, size[i] + sum(padding[i]) - dilation[i] * (kernel[i] - 1), stride[i])) for i in (0, 1))
        return Geometry(tuple(size), tuple(kernel), stride, padding, dilation, groups, out)  # type: ignore[arg-type]

    def reads(self, axis: int, tap: int) -> Array:
        """What a tap reads at every output, counted from the start of the padded image."""
        return np.arange(self.out[axis]) * self.stride[axis] + tap * self.dilation[axis]

    def taps(self) -> Iterator[tuple[int, int, Array, Array]]:
        """Row by row each tap, with the rows and columns that it reads."""
        for r, s in itertools.product(*map(range, self.kernel)):
            yield r, s, self.reads(0, r)[:, None], self.reads(1, s)[None, :]

    def span(self, axis: int) -> int:
        """Padded size that holds the image and every read."""
        last = (self.out[axis] - 1) * self.stride[axis] + self.dilation[axis] * (self.kernel[axis] - 1)
        return max(self.padding[axis][0] + self.size[axis], last + 1)

    @property
    def inside(self) -> tuple[slice, slice]:
        """Where the image lies in the padded one."""
        return tuple(slice(before, before + size) for (before, _), size in zip(self.padding, self.size, strict=True))  # type: ignore[return-value]

    def padded(self, x: Array, fill: float = 0) -> Array:
        image = np.full((*x.shape[:2], self.span(0), self.span(1)), fill, x.dtype)
        image[:, :, *self.inside] = x
        return image


def group(array: Array, groups: int, g: int, axis: int) -> Array:
    """The channels or filters of one group, a view."""
    return np.split(array, groups, axis)[g]


def rows_joined(image: Array) -> Array:
    """`[n, c, h*w]`, the rows of each image one after the other."""
    return image.reshape(*image.shape[:2], math.prod(image.shape[2:]))


def places(x: Array) -> Array:
    """`[1, 1, h, w]`: each pixel's index, `h*width + w`."""
    return np.arange(math.prod(x.shape[2:])).reshape(1, 1, *x.shape[2:])


class Conv2d:
    """Convolution: for each group and tap, the inputs that it reads times its weights."""

    def __call__(self, x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
        geometry = self.geometry(Geometry.of(x.shape[2:], weight.shape[2:], **options), weight, bias)
        y = np.zeros((len(x), len(weight), *geometry.out), x.dtype)
        image, filters = self.image(x, geometry), self.filters(weight)
        for g in range(options["groups"]):
            channels, mine = self.channels(image, options["groups"], g), group(filters, options["groups"], g, 0)
            sums = group(y, options["groups"], g, 1)
            for r, s, rows, columns in geometry.taps():
                sums += self.product(channels[:, :, rows, columns], mine[:, :, r, s])
        return self.finish(y, bias)

    def geometry(self, geometry: Geometry, weight: Array, bias: Array | None) -> Geometry:
        return geometry

    def image(self, x: Array, geometry: Geometry) -> Array:
        return geometry.padded(x)

    def filters(self, weight: Array) -> Array:
        return weight

    def channels(self, image: Array, groups: int, g: int) -> Array:
        return group(image, groups, g, 1)

    def product(self, read: Array, weight: Array) -> Array:
        return np.einsum("nchw,kc->nkhw", read, weight)

    def finish(self, y: Array, bias: Array | None) -> Array:
        return y if bias is None else y + bias[:, None, None]


class Conv2dDx:
    """Input gradient: for each group and tap, the output gradients times its weights, added where it read."""

    def __call__(self, dy: Array, weight: Array, x_shape: Any, **options: Any) -> Array:
        geometry = self.geometry(Geometry.of(x_shape[2:], weight.shape[2:], **options), x_shape)
        image = np.zeros((*x_shape[:2], geometry.span(0), geometry.span(1)), dy.dtype)
        for g in range(options["groups"]):
            above, mine = (group(each, options["groups"], g, axis) for each, axis in ((dy, 1), (weight, 0)))
            below = group(image, options["groups"], g, 1)
            for r, s, rows, columns in geometry.taps():
                below[:, :, rows, columns] += np.einsum("nkpq,kc->ncpq", above, mine[:, :, r, s])
        return self.finish(image[:, :, *geometry.inside].copy(), geometry)

    def geometry(self, geometry: Geometry, x_shape: Any) -> Geometry:
        return geometry

    def finish(self, dx: Array, geometry: Geometry) -> Array:
        return dx


class Conv2dDweight:
    """Weight gradient: for each group and tap, the output gradients times the inputs that it read."""

    def __call__(self, dy: Array, x: Array, weight_shape: Any, **options: Any) -> Array:
        geometry = self.geometry(Geometry.of(x.shape[2:], weight_shape[2:], **options))
        dweight, image = np.zeros(weight_shape, dy.dtype), self.image(x, geometry)
        for g in range(options["groups"]):
            above, below = group(dy, options["groups"], g, 1), self.channels(image, options["groups"], g)
            mine = group(dweight, options["groups"], g, 0)
            for r, s, rows, columns in geometry.taps():
                mine[:, :, r, s] = self.product(above, below[:, :, rows, columns])
        return dweight

    def geometry(self, geometry: Geometry) -> Geometry:
        return geometry

    def image(self, x: Array, geometry: Geometry) -> Array:
        return geometry.padded(x)

    def channels(self, image: Array, groups: int, g: int) -> Array:
        return group(image, groups, g, 1)

    def product(self, dy: Array, read: Array) -> Array:
        return np.einsum("nkpq,ncpq->kc", dy, read)


class MaxPool2d:
    """Max pooling: the taps in row-major order, the first inside the image taken, then each that beats the one held."""

    fill = -np.inf

    def __call__(self, x: Array, kernel_size: Pair, *, return_indices: bool = False, **options: Any) -> Any:
        y, winner = self.scan(x, self.geometry(x.shape[2:], kernel_size, **options))
        return (y, winner) if return_indices else y

    def geometry(self, size: Any, kernel: Pair, *, ceil_mode: bool = False, **options: Any) -> Geometry:
        geometry = Geometry.of(size, kernel, **options)
        out = tuple(geometry.out[axis] + (ceil_mode and self.one_more(geometry, axis)) for axis in (0, 1))
        return Geometry(**{**geometry.__dict__, "out": out})

    def one_more(self, geometry: Geometry, axis: int) -> bool:
        """Whether ceil_mode adds a window: it begins in the image, and inputs or padding are left for it."""
        start = geometry.out[axis] * geometry.stride[axis]
        left = geometry.size[axis] + sum(geometry.padding[axis]) - geometry.dilation[axis] * (geometry.kernel[axis] - 1)
        return start < left - 1 + geometry.stride[axis] and start < geometry.padding[axis][0] + geometry.size[axis]

    def scan(self, x: Array, geometry: Geometry) -> tuple[Array, Array]:
        image = self.image(x, geometry)
        position = np.broadcast_to(geometry.padded(places(x), -1), image.shape)
        y = np.full((*x.shape[:2], *geometry.out), self.fill, x.dtype)
        winner = np.full(y.shape, -1)
        for _, _, rows, columns in geometry.taps():
            value, place = image[:, :, rows, columns], position[:, :, rows, columns]
            taken = (place >= 0) & self.beats(value, y, winner)
            y, winner = np.where(taken, value, y), np.where(taken, place, winner)
        return y, winner

    def image(self, x: Array, geometry: Geometry) -> Array:
        return geometry.padded(x, self.fill)

    def beats(self, value: Array, held: Array, winner: Array) -> Array:
        return (winner < 0) | (value > held) | (np.isnan(value) & ~np.isnan(held))


class MaxPool2dDx:
    """Gradient of max pooling: every output gradient to the winner of its window, one window after the other."""

    def __call__(self, dy: Array, x: Array, kernel_size: Pair, **options: Any) -> Array:
        pool = MaxPool2d()
        geometry = pool.geometry(x.shape[2:], kernel_size, **options)
        dx = self.start(x, dy.dtype)
        self.give(rows_joined(dx), dy, pool.scan(x, geometry)[1])
        return dx

    def start(self, x: Array, dtype: Any) -> Array:
        return np.zeros(x.shape, dtype)

    def give(self, flat: Array, dy: Array, winner: Array) -> None:
        n, c = np.ogrid[: len(flat), : flat.shape[1]]
        for p, q in np.ndindex(dy.shape[2:]):
            flat[n, c, winner[:, :, p, q]] += dy[:, :, p, q]


def memory(array: Array) -> tuple[Array, int]:
    """The whole buffer that an array is a view of, in the order of memory, and where the array begins in it."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    return base.ravel(order="K"), (array.ctypes.data - base.ctypes.data) // array.itemsize


def as_if_contiguous(array: Array) -> Array:
    """What a kernel sees that starts at the first element and ignores the strides."""
    if not array.size:
        return array
    flat, start = memory(array)
    return flat.take(np.arange(start, start + array.size), mode="wrap").reshape(array.shape)


def next_row(x: Array, geometry: Geometry) -> Array:
    """The padded image as loads without a guard on the right see it: past a row's end stands the next row, past the
    image's end whatever follows it in memory, here NaN."""
    image, (rows, columns) = geometry.padded(x), geometry.inside
    for column in range(columns.stop, image.shape[3]):
        beyond = np.arange(x.shape[2]) * x.shape[3] + column - columns.start
        flat = rows_joined(x)
        safe = np.minimum(beyond, max(0, flat.shape[2] - 1))
        image[:, :, rows, column] = np.where(beyond < flat.shape[2], flat[:, :, safe], np.nan)
    return image
