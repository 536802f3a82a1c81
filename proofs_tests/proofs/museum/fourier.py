"""Correct convolutions by fast Fourier transforms, in parts that a test can replace: the class `fft` must accuse none.

With `e = exp(-2*pi*i/N)`, an image's transform `X[u] = sum_h x[h]*e**(u*h)` turns sums over shifts into products:
`sum_r x[p + r]*w[r]` has the transform `X * conj(W)`, `sum_p dy[p]*w[h - p]` has `DY * W`. Strides, dilations and
padding are where the numbers stand; a length that holds the padded image lets nothing that is kept wrap round.
"""

from typing import Any

import numpy as np

from .clean import Array, Conv2d, Conv2dDweight, Conv2dDx, Geometry, Pair
from .collection import control


class Fourier:
    """What the three have in common."""

    def sizes(self, geometry: Geometry) -> Pair:
        """Rows and columns of the transforms: the padded image's, to powers of two."""
        rows, columns = (2 ** (geometry.span(axis) - 1).bit_length() for axis in (0, 1))
        return rows, columns

    def spectrum(self, array: Array, sizes: Pair) -> Array:
        """Of each picture, zero beyond it."""
        return np.fft.rfft2(array, sizes)

    def grouped(self, array: Array, sizes: Pair, groups: int) -> Array:
        """The spectrum of `[n, channels, h, w]` as `[n, group, channel of the group, ...]`."""
        channels = array.shape[1]
        spectrum = self.spectrum(array, sizes)
        return spectrum.reshape(len(array), groups, channels // groups, *spectrum.shape[2:])

    def filters(self, weight: Array, geometry: Geometry, sizes: Pair) -> Array:
        """The spectrum of the filters, their taps as far apart as the dilation says."""
        groups, (k, c, *_) = geometry.groups, weight.shape
        spectrum = self.spectrum(spread(weight, geometry.dilation), sizes)
        return spectrum.reshape(groups, k // groups, c, *spectrum.shape[2:])

    def back(self, spectrum: Array, sizes: Pair, pictures: Pair, dtype: Any) -> Array:
        """The pictures of a spectrum."""
        return np.fft.irfft2(spectrum, sizes).reshape(*pictures, *sizes).astype(dtype)

    def takes(self, *arrays: Array) -> bool:
        """Whether a spectrum tells one number from another: a NaN or an infinity makes a NaN of all."""
        return all(bool(np.isfinite(array).all()) for array in arrays)


def spread(array: Array, steps: Pair) -> Array:
    """With zeros between rows and between columns."""
    rows, columns = ((size - 1) * step + 1 for size, step in zip(array.shape[2:], steps, strict=True))
    apart = np.zeros((*array.shape[:2], rows, columns), array.dtype)
    apart[:, :, :: steps[0], :: steps[1]] = array
    return apart


@control("conv2d", precision="fft")
class FourierConv2d(Fourier):
    """Spectra multiplied, channels summed there; where a number is not finite, tap by tap."""

    def __call__(self, x: Array, weight: Array, bias: Array | None = None, **options: Any) -> Array:
        if not self.takes(x, weight):
            return Conv2d()(x, weight, bias, **options)
        geometry = Geometry.of(x.shape[2:], weight.shape[2:], **options)
        sizes = self.sizes(geometry)
        image = self.grouped(geometry.padded(x), sizes, geometry.groups)
        y = np.einsum("ngchw,gkchw->ngkhw", image, self.filters(weight, geometry, sizes).conj())
        y = self.back(y, sizes, (len(x), len(weight)), x.dtype)
        y = y[:, :, self.reads(geometry, 0)[:, None], self.reads(geometry, 1)]
        return self.finish(y, bias)

    def reads(self, geometry: Geometry, axis: int) -> Array:
        """Where the first taps of the kept windows stand."""
        return geometry.reads(axis, 0)

    def finish(self, y: Array, bias: Array | None) -> Array:
        """The bias on every output."""
        return y if bias is None else y + bias[:, None, None]


@control("conv2d", precision="fft")
class FourierConv2dInDouble(FourierConv2d):
    """Spectra in double precision, rounded once."""

    def spectrum(self, array: Array, sizes: Pair) -> Array:
        return super().spectrum(array.astype(np.float64), sizes)


@control("conv2d", precision="fft")
class FourierConv2dOfAnyLength(FourierConv2d):
    """Transforms just as long as the padded image: lengths that are prime, too."""

    def sizes(self, geometry: Geometry) -> Pair:
        return geometry.span(0), geometry.span(1)


@control("conv2d.dx", precision="fft")
class FourierConv2dDx(Fourier):
    """The spectra of the spread output gradient and the filters, multiplied."""

    def __call__(self, dy: Array, weight: Array, x_shape: Any, **options: Any) -> Array:
        if not self.takes(dy, weight):
            return Conv2dDx()(dy, weight, x_shape, **options)
        geometry = Geometry.of(x_shape[2:], weight.shape[2:], **options)
        sizes = self.sizes(geometry)
        above = self.grouped(spread(dy, geometry.stride), sizes, geometry.groups)
        dx = np.einsum("ngkhw,gkchw->ngchw", above, self.filters(weight, geometry, sizes))
        return self.back(dx, sizes, (x_shape[0], x_shape[1]), dy.dtype)[:, :, *geometry.inside].copy()


@control("conv2d.dweight", precision="fft")
class FourierConv2dDweight(Fourier):
    """The spectra of the image and of the spread output gradient, multiplied and summed over images."""

    def __call__(self, dy: Array, x: Array, weight_shape: Any, **options: Any) -> Array:
        if not self.takes(dy, x):
            return Conv2dDweight()(dy, x, weight_shape, **options)
        geometry = Geometry.of(x.shape[2:], weight_shape[2:], **options)
        sizes = self.sizes(geometry)
        image = self.grouped(geometry.padded(x), sizes, geometry.groups)
        above = self.grouped(spread(dy, geometry.stride), sizes, geometry.groups)
        dweight = np.einsum("ngchw,ngkhw->gkchw", image, above.conj())
        rows, columns = (np.arange(geometry.kernel[axis]) * geometry.dilation[axis] for axis in (0, 1))
        whole = self.back(dweight, sizes, (weight_shape[0], weight_shape[1]), dy.dtype)
        return whole[:, :, rows[:, None], columns]
