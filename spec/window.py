"""The sliding window: the one home of all size and index arithmetic.

Along one axis the window's tap r at output position p reads input position

    h[p,r] = p*stride + r*dilation - pad_before

and there are `(size + pad_before + pad_after - dilation*(kernel-1) - 1) // stride + 1` output positions.
Specs, kernels, chains and the ONNX exporter all ask this file.
"""

import operator as python_operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from .errors import ParameterError, ShapeError

Size: TypeAlias = int | Sequence[int]
"""One number for both axes, or `(h, w)`."""
Padding: TypeAlias = int | Sequence[int] | Sequence[Sequence[int]]
"""One number, `(h, w)`, or `((top, bottom), (left, right))`."""

AXES = ("height", "width")

MOST = 2**31 - 1
"""The greatest size or parameter: what lies beyond is a mistake, and would overflow an index before it was found."""

MOST_SEED = 2**128 - 1
"""The greatest seed: as many bits as numpy takes from the system for one."""


def whole(operator: str, name: str, value: object, least: int, most: int = MOST) -> int:
    """`value` as an int from `least` to `most`; raises ParameterError."""
    try:
        number = python_operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or not least <= number <= most:
        remedy = f"Pass {name}={most} or less." if number and number > most else f"Pass {name}={least} or more."
        raise ParameterError(operator, f"{name}={value!r}", f"a whole number from {least} to {most}", remedy)
    return number


def whole_shape(operator: str, name: str, shape: Sequence[object]) -> tuple[int, ...]:
    """A shape of whole numbers >= 0; raises ParameterError."""
    return tuple(whole(operator, f"a size in {name}", size, 0) for size in shape)


def check_flag(operator: str, name: str, value: object) -> None:
    """A bool; raises ParameterError."""
    if not isinstance(value, (bool, np.bool_)):
        raise ParameterError(operator, f"{name}={value!r}", "True or False", "Pass a bool.")


def pair(operator: str, name: str, value: object, least: int) -> tuple[int, int]:
    """An int or one per axis as `(h, w)`; raises ParameterError."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        number = whole(operator, name, value, least)
        return number, number
    if len(value) != 2:
        raise ParameterError(operator, f"{name}={value!r}", "one number or one per axis (h, w)", f"Pass {name}=(h, w).")
    h, w = (whole(operator, f"{axis} {name}", number, least) for axis, number in zip(AXES, value, strict=True))
    return h, w


def four_sided(operator: str, value: object) -> tuple[tuple[int, int], tuple[int, int]]:
    """Padding as `((top, bottom), (left, right))`; raises ParameterError."""
    if isinstance(value, Sequence) and len(value) == 2 and all(isinstance(side, Sequence) for side in value):
        (top, bottom), (left, right) = (pair(operator, "padding", sides, 0) for sides in value)
        return (top, bottom), (left, right)
    h, w = pair(operator, "padding", value, 0)
    return (h, h), (w, w)


def row_major(index: Sequence[Any], shape: Sequence[Any]) -> Any:
    """Where an entry stands in a row-major array: `((n*C + c)*H + h)*W + w` for `index` n, c, h, w."""
    flat = 0
    for position, size in zip(index, shape, strict=True):
        flat = flat * size + position
    return flat


def adaptive_bin(position: int, bins: int, size: int) -> tuple[int, int]:
    """First input and end of one of `bins` bins over `size` inputs: `floor(i*size/bins) .. ceil((i + 1)*size/bins)`.

    Source: PyTorch `torch.nn.AdaptiveAvgPool2d`.
    """
    return position * size // bins, -(-(position + 1) * size // bins)


@dataclass(frozen=True, slots=True)
class Window:
    """A filter's or pool's geometry, normalised: one number per axis, padding on four sides."""

    kernel: tuple[int, int]
    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False

    @staticmethod
    def of(
        operator: str,
        kernel: Size,
        stride: Size,
        padding: Padding,
        dilation: Size,
        ceil_mode: bool = False,
    ) -> "Window":
        """The window that PyTorch's arguments describe; raises ParameterError.

        >>> Window.of("conv2d", 3, 1, 1, 1)
        Window(kernel=(3, 3), stride=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), ceil_mode=False)
        """
        check_flag(operator, "ceil_mode", ceil_mode)
        return Window(
            pair(operator, "kernel_size", kernel, 1),
            pair(operator, "stride", stride, 1),
            four_sided(operator, padding),
            pair(operator, "dilation", dilation, 1),
            bool(ceil_mode),
        )

    def extent(self, axis: int) -> int:
        """Input positions that one window spans, gaps of the dilation included."""
        return self.dilation[axis] * (self.kernel[axis] - 1) + 1

    def fits(self, axis: int, size: int) -> bool:
        """Whether at least one window fits the padded axis."""
        return size + sum(self.padding[axis]) >= self.extent(axis)

    def output_size(self, axis: int, size: int) -> int:
        """Number of output positions along an axis of `size` inputs (the window must fit).

        `floor((size + pads - extent) / stride) + 1`; with `ceil_mode` the last, incomplete window counts too
        if it starts inside the input or its left/top padding.
        Source: PyTorch `torch.nn.Conv2d`, `torch.nn.MaxPool2d`.
        """
        (before, after), stride = self.padding[axis], self.stride[axis]
        room = size + before + after - self.extent(axis)
        count = room // stride + 1
        # A window that starts in the right/bottom padding would see nothing of the input.
        if self.ceil_mode and room % stride and count * stride < size + before:
            count += 1
        return count

    def p(self, x_shape: Sequence[int]) -> int:
        """Output rows for an input `[..., h, w]`."""
        return self.output_size(0, x_shape[-2])

    def q(self, x_shape: Sequence[int]) -> int:
        """Output columns for an input `[..., h, w]`."""
        return self.output_size(1, x_shape[-1])

    def position(self, axis: int, p: Any, r: Any) -> Any:
        """`p*stride + r*dilation - pad_before`: what tap r of output p reads; outside the input is padding."""
        return p * self.stride[axis] + r * self.dilation[axis] - self.padding[axis][0]

    def positions(self, axis: int, size: int) -> np.ndarray:
        """`position[p,r]` of every output and tap along an axis of `size` inputs."""
        p = np.arange(self.output_size(axis, size))[:, None]
        r = np.arange(self.kernel[axis])[None, :]
        return self.position(axis, p, r)

    def reach(self, axis: int, size: int) -> int:
        """Positions of padding at the end of an axis that hold every read.

        That asked for, or more where the last, incomplete window of ceil_mode reaches further out.
        """
        last = self.position(axis, self.output_size(axis, size) - 1, self.kernel[axis] - 1)
        return max(self.padding[axis][1], last + 1 - size)

    def gather(self, x: np.ndarray, fill: object) -> np.ndarray:
        """`taps[n,c,p,q,r,s] = x[n, c, p*stride + r*dilation - pad, q*stride + s*dilation - pad]`, `fill` outside."""
        h, w, ((top, bottom), (left, right)) = self._padded(x.shape)
        n, c, height, width = x.shape
        padded = np.full((n, c, top + height + bottom, left + width + right), fill, x.dtype)
        padded[:, :, top : top + height, left : left + width] = x
        return padded[:, :, h, w]

    def scatter(self, taps: np.ndarray, x_shape: Sequence[int]) -> np.ndarray:
        """The transpose of `gather`: adds every tap to the position that it was read from; padding is dropped."""
        h, w, ((top, bottom), (left, right)) = self._padded(x_shape)
        n, c, height, width = x_shape
        padded = np.zeros((n, c, top + height + bottom, left + width + right), taps.dtype)
        # numpy's annotation knows no tuple of indices.
        np.add.at(padded, (slice(None), slice(None), h, w), taps)  # pyright: ignore[reportArgumentType]
        return padded[:, :, top : top + height, left : left + width]

    def _padded(self, x_shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray, list[tuple[int, int]]]:
        """Rows `[p,1,r,1]` and columns `[1,q,1,s]` counted in the padded image, and padding enough to hold them."""
        rows, columns = (self.positions(axis, x_shape[axis - 2]) + self.padding[axis][0] for axis in (0, 1))
        pads = [(self.padding[axis][0], self.reach(axis, x_shape[axis - 2])) for axis in (0, 1)]
        return rows[:, None, :, None], columns[None, :, None, :], pads

    def inside(self, axis: int, size: int) -> np.ndarray:
        """`[p,r]`: whether tap r of output p reads the input, and not the padding."""
        position = self.positions(axis, size)
        return (position >= 0) & (position < size)

    def check_fits(self, operator: str, x_shape: Sequence[int], what: str = "filter") -> None:
        """Raises ShapeError, naming axis, numbers and remedy, if not even one window fits."""
        for axis, size in enumerate(x_shape[-2:]):
            if self.fits(axis, size):
                continue
            lines, pads = ("row", "column")[axis], sum(self.padding[axis])
            span = "" if self.dilation[axis] == 1 else f" (dilation {self.dilation[axis]} spans {self.extent(axis)})"
            raise ShapeError(
                operator,
                f"a {self.kernel[axis]}-{lines} {what}{span} does not fit {AXES[axis]} {size} "
                f"with padding {self.padding[axis][0]} + {self.padding[axis][1]}",
                f"{AXES[axis]} + padding >= {self.extent(axis)}",
                f"Pad by {self.extent(axis) - size - pads} more or use a smaller {what}.",
            )
