"""Convolution by FFT in its precision class: each planted fault breaks a law. Correct ones are among the controls."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernelproof import verify
from kernelproof.proofs.museum.clean import Array, Geometry
from kernelproof.proofs.museum.fourier import FourierConv2d, FourierConv2dDweight, FourierConv2dDx
from kernelproof.proofs.subject import subject_of
from kernelproof.proofs.verify import laws_for
from kernelproof.spec import ParameterError

Pair = tuple[int, int]
FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {}


def fault(operator: str) -> Callable[[type], type]:
    def keep(kernel: type) -> type:
        FAULTS[kernel.__name__] = operator, kernel()
        return kernel

    return keep


@fault("conv2d")
class WrapsRound(FourierConv2d):
    """As transforms do that are as long as the image: what is read in the padding is the other edge."""

    def __call__(self, x: Array, weight: Array, bias: Array | None = None, *, padding: Any, **options: Any) -> Array:
        padded = np.pad(x, [(0, 0), (0, 0), *padding], mode="wrap")
        return super().__call__(padded, weight, bias, padding=((0, 0), (0, 0)), **options)


@fault("conv2d")
class OneColumnShort(FourierConv2d):
    """The last column of the padded image is added to the first."""

    def spectrum(self, array: Array, sizes: Pair) -> Array:
        array = array.copy()
        if array.shape[3] > 8:
            array[..., 0] += array[..., -1]
            array[..., -1] = 0
        return super().spectrum(array, sizes)


@fault("conv2d")
class Convolves(FourierConv2d):
    """The filter turned by half a circle: no conjugate."""

    def filters(self, weight: Array, geometry: Geometry, sizes: Pair) -> Array:
        return super().filters(weight, geometry, sizes).conj()


@fault("conv2d")
class DropsTheBias(FourierConv2d):
    """The bias is added to no image past the first."""

    def finish(self, y: Array, bias: Array | None) -> Array:
        return np.concatenate([super().finish(y[:1], bias), y[1:]])


@fault("conv2d")
class OneStride(FourierConv2d):
    """Columns are kept by the stride of rows."""

    def reads(self, geometry: Geometry, axis: int) -> Array:
        return super().reads(replace(geometry, stride=(geometry.stride[0],) * 2), axis) % geometry.span(axis)


@fault("conv2d")
class NoDilation(FourierConv2d):
    """Filters without their holes."""

    def filters(self, weight: Array, geometry: Geometry, sizes: Pair) -> Array:
        return super().filters(weight, replace(geometry, dilation=(1, 1)), sizes)


@fault("conv2d")
class ElevenBits(FourierConv2d):
    """Spectra kept as TF32 would."""

    def spectrum(self, array: Array, sizes: Pair) -> Array:
        exact = super().spectrum(array, sizes)
        return sum(unit * _cut(part) for unit, part in ((1, exact.real), (1j, exact.imag)))  # type: ignore[return-value]


@fault("conv2d")
class SpreadsNan(FourierConv2d):
    """One NaN, and the image is NaN."""

    def takes(self, *arrays: Array) -> bool:
        return True


@fault("conv2d.dx")
class CropsNothing(FourierConv2dDx):
    """The gradient of the padded image from its corner on."""

    def __call__(self, dy: Array, weight: Array, x_shape: Any, *, padding: Any, **options: Any) -> Array:
        corner = tuple((0, before + after) for before, after in padding)
        return super().__call__(dy, weight, x_shape, padding=corner, **options)


@fault("conv2d.dweight")
class FirstImageOnly(FourierConv2dDweight):
    """Images past the first are left out of the sum."""

    def __call__(self, dy: Array, x: Array, weight_shape: Any, **options: Any) -> Array:
        return super().__call__(dy[:1], x[:1], weight_shape, **options)


def _cut(array: Array) -> Array:
    mantissa, exponent = np.frexp(array)
    return np.ldexp(np.round(mantissa * 2**11) / 2**11, exponent).astype(array.dtype)


@pytest.mark.parametrize("name", FAULTS)
def test_every_planted_fault_breaks_a_law_of_the_class(name: str) -> None:
    operator, kernel = FAULTS[name]
    report = verify(kernel, operator, precision="fft", level=("L3", "L4"))
    assert report.exit_status == 1
    assert "the kernel raised" not in str(report.failures[0].failure)


def test_whole_numbers_are_no_law_of_the_class() -> None:
    report = verify(FourierConv2d(), "conv2d", precision="fft", examples=3)
    assert {result.level for result in report.results} == {"L3", "L4", "L7", "L8"}
    assert report.exit_status == 0


def test_a_class_of_convolutions_is_of_no_other_operator() -> None:
    for operator in ("linear", "conv2d.dbias", "max_pool2d"):
        with pytest.raises(ParameterError, match="precision='fft' for"):
            verify(np.add, operator, precision="fft")
    subject = subject_of(Forward(), "conv2d", precision="fft")
    assert subject.kernel("conv2d.dx").precision == "fft"
    # A sum of dy has no transform: it is held to the laws of whole numbers.
    assert "L1" in {law.level for law in laws_for(subject, "conv2d.dbias")}
    assert "L1" not in {law.level for law in laws_for(subject, "conv2d")}


class Forward:
    def forward(self, x: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
        raise NotImplementedError

    def backward(self, dy: Any) -> Any:
        raise NotImplementedError
