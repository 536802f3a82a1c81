"""The layers a chain is wired from: records with PyTorch's constructor arguments, checked when they are made.

A layer knows its parameters' shapes, what it makes of a shape (for every size at once), and its forward and backward
in terms of the operators. Operators are called through a `perform(operator, *args, **kwargs)`, the specification's own
or a backend's. Every gradient here needs the layer's input and nothing else of the forward pass.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np

from .conv import conv2d, conv2d_dbias, conv2d_dweight, conv2d_dx
from .errors import ParameterError, ShapeError
from .linear import flatten, flatten_dx, linear, linear_dbias, linear_dweight, linear_dx
from .pool import max_pool2d, max_pool2d_dx
from .relu import relu, relu_dx
from .shape_algebra import Dimension, Domain, Shape, Size, SizeMap, Sizes, product, shape_text, size_at, through
from .window import AXES, Padding, Window, whole
from .window import Size as Extent

Perform: TypeAlias = Callable[..., Any]
Arrays: TypeAlias = Mapping[str, Any]


class Layer:
    """One step of a chain. `kind` is the stem of its name (`conv1`), `op` its row in the table of operators."""

    kind: ClassVar[str]
    op: ClassVar[str]

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters by PyTorch's key; none unless said otherwise."""
        return {}

    def wire(self, shape: Shape, admits: Domain) -> tuple[Shape, Domain]:
        """The output shape, and those of the sizes admitted so far that the layer takes; raises ShapeError if none."""
        raise NotImplementedError

    def multiply_adds(self, output: Shape) -> Size:
        """Products summed up for one image's output."""
        return 0

    def initialise(self, generator: np.random.Generator, dtype: Any) -> dict[str, np.ndarray]:
        """Kaiming-uniform as PyTorch's: weight and bias uniform in `+-1/sqrt(fan_in)`.

        Source: PyTorch `torch.nn.Conv2d`, `torch.nn.Linear` (`kaiming_uniform_` with a = sqrt(5)).
        """
        shapes = self.parameter_shapes
        return {
            key: generator.uniform(-1, 1, shape).astype(dtype) * np.asarray(1 / math.sqrt(self._fan_in), dtype)
            for key, shape in shapes.items()
        }

    @property
    def _fan_in(self) -> int:
        return math.prod(self.parameter_shapes["weight"][1:])

    def forward(self, perform: Perform, parameters: Arrays, x: Any) -> Any:
        """The output for a batch x."""
        raise NotImplementedError

    def gradients(self, perform: Perform, parameters: Arrays, x: Any, dy: Any) -> dict[str, Any]:
        """The gradients of the parameters, for forward's x and its output gradient dy; none unless said otherwise."""
        return {}

    def dx(self, perform: Perform, parameters: Arrays, x: Any, dy: Any) -> Any:
        """The gradient of x, for forward's x and its output gradient dy."""
        raise NotImplementedError

    def __repr__(self) -> str:
        # As one would write it: required arguments by position, others by name where they are not the default.
        values = [(each, getattr(self, each.name)) for each in fields(self)]  # type: ignore[arg-type]
        texts = [
            f"{value!r}" if each.default is MISSING else f"{each.name}={value!r}"
            for each, value in values
            if each.default is MISSING or value != each.default
        ]
        return f"{type(self).__name__}({', '.join(texts)})"


def _check_image(layer: Layer, shape: Shape) -> None:
    if len(shape) != 4:
        raise ShapeError(
            repr(layer),
            f"takes images (n, c, h, w), but {shape_text(shape)} arrives",
            "4 axes",
            "Place it before Flatten().",
        )


class SlidingLayer(Layer):
    """A layer with a window that slides over height and width."""

    @cached_property
    def window(self) -> Window:
        """The normalised geometry."""
        raise NotImplementedError

    def legal(self, axis: int) -> Sizes:
        """Sizes of the axis on which at least one window fits."""
        return Sizes.of((max(1, self.window.extent(axis) - sum(self.window.padding[axis])), math.inf))

    def slide(self, shape: Shape, admits: Domain, channels: Size) -> tuple[Shape, Domain]:
        """`wire` for heights and widths, where the channels are known; raises ShapeError."""
        sizes = []
        for axis, size in enumerate(shape[2:]):
            legal = self.legal(axis)
            narrowed = admits & Domain.within(size, legal)
            if not narrowed:
                known = size_at(size, admits.example())
                plain = " with dilation=1" * (self.window.dilation[axis] > 1)
                raise ShapeError(
                    repr(self),
                    f"takes {AXES[axis]} {legal}, but {shape_text(shape)} arrives",
                    legal.of_name(AXES[axis]),
                    f"kernel_size={known + sum(self.window.padding[axis])}{plain} along the {AXES[axis]} would fit.",
                )
            admits = narrowed
            sizes.append(through(SizeMap.of(self.window, axis), size))
        return (shape[0], channels, *sizes), admits


@dataclass(frozen=True, repr=False)
class Conv2d(SlidingLayer):
    """Two-dimensional convolution with its own weight and bias: `spec.conv2d`.

    Raises ParameterError. Source: PyTorch `torch.nn.Conv2d`.
    """

    in_channels: int
    out_channels: int
    kernel_size: Extent
    stride: Extent = 1
    padding: Padding = 0
    dilation: Extent = 1
    groups: int = 1
    bias: bool = True

    kind: ClassVar[str] = "conv"
    op: ClassVar[str] = "conv2d"

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "groups"):
            whole("Conv2d", name, getattr(self, name), 1)
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ParameterError(
                    "Conv2d",
                    f"groups={self.groups} with {name}={getattr(self, name)}",
                    f"{name} divisible by groups",
                    f"Pass groups={math.gcd(self.in_channels, self.out_channels)} or a divisor of it.",
                )
        _check_flag("Conv2d", "bias", self.bias)
        _ = self.window

    @cached_property
    def window(self) -> Window:
        """The normalised geometry."""
        return Window.of("Conv2d", self.kernel_size, self.stride, self.padding, self.dilation)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        weight = (self.out_channels, self.in_channels // self.groups, *self.window.kernel)
        return {"weight": weight, "bias": (self.out_channels,)} if self.bias else {"weight": weight}

    def wire(self, shape: Shape, admits: Domain) -> tuple[Shape, Domain]:
        _check_image(self, shape)
        if shape[1] != self.in_channels:
            raise ShapeError(
                repr(self),
                f"takes (n, {self.in_channels}, h, w), but {shape_text(shape)} arrives",
                f"in_channels = {shape[1]}",
                f"in_channels={shape[1]} would fit.",
            )
        return self.slide(shape, admits, self.out_channels)

    def multiply_adds(self, output: Shape) -> Size:
        return product(math.prod(self.parameter_shapes["weight"]), *output[2:])

    def forward(self, perform: Perform, parameters: Arrays, x: Any) -> Any:
        return perform(conv2d, x, parameters["weight"], parameters.get("bias"), **self.geometry)

    def gradients(self, perform: Perform, parameters: Arrays, x: Any, dy: Any) -> dict[str, Any]:
        gradients = {"weight": perform(conv2d_dweight, dy, x, parameters["weight"].shape, **self.geometry)}
        return gradients | {"bias": perform(conv2d_dbias, dy)} if self.bias else gradients

    def dx(self, perform: Perform, parameters: Arrays, x: Any, dy: Any) -> Any:
        return perform(conv2d_dx, dy, parameters["weight"], x.shape, **self.geometry)

    @property
    def geometry(self) -> dict[str, Any]:
        """The window as the operator takes it, by keyword."""
        window = self.window
        return {
            "stride": window.stride, "padding": window.padding, "dilation": window.dilation, "groups": self.groups,
        }  # fmt: skip


@dataclass(frozen=True, repr=False)
class MaxPool2d(SlidingLayer):
    """The greatest value of each window: `spec.max_pool2d`.

    Padding must be less than the window's extent, for otherwise a window could lie wholly in the padding.
    Raises ParameterError. Source: PyTorch `torch.nn.MaxPool2d`.
    """

    kernel_size: Extent
    stride: Extent | None = None
    padding: Padding = 0
    dilation: Extent = 1
    # By keyword only: PyTorch's fifth argument is return_indices, and a chain hands on one array.
    ceil_mode: bool = field(default=False, kw_only=True)

    kind: ClassVar[str] = "pool"
    op: ClassVar[str] = "max_pool2d"

    def __post_init__(self) -> None:
        window = self.window
        for axis in (0, 1):
            if max(window.padding[axis]) >= window.extent(axis):
                raise ParameterError(
                    "MaxPool2d",
                    f"padding {window.padding[axis]} along the {AXES[axis]} with windows of {window.extent(axis)}",
                    f"padding < {window.extent(axis)}, so that no window lies wholly in it",
                    f"Pad by {window.extent(axis) - 1} or less, or use a larger window.",
                )

    @cached_property
    def window(self) -> Window:
        """The normalised geometry."""
        stride = self.kernel_size if self.stride is None else self.stride
        return Window.of("MaxPool2d", self.kernel_size, stride, self.padding, self.dilation, self.ceil_mode)

    def legal(self, axis: int) -> Sizes:
        """Sizes of the axis on which a window fits and every window sees the input.

        From `dilation` on no window misses: it starts before the input's end, ends after its beginning, and its taps
        are `dilation` apart. Smaller inputs may slip between the taps and are looked at one by one.
        """
        window = self.window
        least = max(1, window.extent(axis) - sum(window.padding[axis]))
        small = (size for size in range(least, window.dilation[axis]) if _all_see(window, axis, size))
        return Sizes.of((max(least, window.dilation[axis]), math.inf), *((size, size) for size in small))

    def wire(self, shape: Shape, admits: Domain) -> tuple[Shape, Domain]:
        _check_image(self, shape)
        return self.slide(shape, admits, shape[1])

    def forward(self, perform: Perform, parameters: Arrays, x: Any) -> Any:
        return perform(max_pool2d, x, self.window.kernel, **self.geometry)

    def dx(self, perform: Perform, parameters: Arrays, x: Any, dy: Any) -> Any:
        return perform(max_pool2d_dx, dy, x, self.window.kernel, **self.geometry)

    @property
    def geometry(self) -> dict[str, Any]:
        """The window as the operator takes it, by keyword."""
        window = self.window
        return {
            "stride": window.stride, "padding": window.padding, "dilation": window.dilation,
            "ceil_mode": window.ceil_mode,
        }  # fmt: skip


def _all_see(window: Window, axis: int, size: int) -> bool:
    return bool(window.inside(axis, size).any(axis=1).all())


@dataclass(frozen=True, repr=False)
class ReLU(Layer):
    """Negative values become zero: `spec.relu`. Source: PyTorch `torch.nn.ReLU`."""

    kind: ClassVar[str] = "relu"
    op: ClassVar[str] = "relu"

    def wire(self, shape: Shape, admits: Domain) -> tuple[Shape, Domain]:
        return shape, admits

    def forward(self, perform: Perform, parameters: Arrays, x: Any) -> Any:
        return perform(relu, x)

    def dx(self, perform: Perform, parameters: Arrays, x: Any, dy: Any) -> Any:
        return perform(relu_dx, dy, x)


@dataclass(frozen=True, repr=False)
class Flatten(Layer):
    """All features of an image in one row: `spec.flatten`. Source: PyTorch `torch.nn.Flatten`."""

    kind: ClassVar[str] = "flatten"
    op: ClassVar[str] = "flatten"

    def wire(self, shape: Shape, admits: Domain) -> tuple[Shape, Domain]:
        _check_image(self, shape)
        return (shape[0], product(*shape[1:])), admits

    def forward(self, perform: Perform, parameters: Arrays, x: Any) -> Any:
        return perform(flatten, x)

    def dx(self, perform: Perform, parameters: Arrays, x: Any, dy: Any) -> Any:
        return perform(flatten_dx, dy, x.shape)


@dataclass(frozen=True, repr=False)
class Linear(Layer):
    """A weighted sum of all features for every output, with its own weight and bias: `spec.linear`.

    Raises ParameterError. Source: PyTorch `torch.nn.Linear`.
    """

    in_features: int
    out_features: int
    bias: bool = True

    kind: ClassVar[str] = "fc"
    op: ClassVar[str] = "linear"

    def __post_init__(self) -> None:
        whole("Linear", "in_features", self.in_features, 1)
        whole("Linear", "out_features", self.out_features, 1)
        _check_flag("Linear", "bias", self.bias)

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        weight = (self.out_features, self.in_features)
        return {"weight": weight, "bias": (self.out_features,)} if self.bias else {"weight": weight}

    def wire(self, shape: Shape, admits: Domain) -> tuple[Shape, Domain]:
        """Where height and width are open: exactly the sizes that give `in_features`, over all its factorisations."""
        arrives = f"takes (n, {self.in_features}), but {shape_text(shape)} arrives"
        if len(shape) != 2:
            raise ShapeError(repr(self), arrives, "2 axes", "Place Flatten() before it.")
        narrowed = admits & Domain.equal(shape[1], self.in_features)
        if not narrowed:
            fitting, at = shape[1], ""
            if isinstance(fitting, Dimension):
                sizes = {name: admits.example()[name] for name, _ in fitting.factors}
                fitting, at = fitting.at(sizes), f" at {' and '.join(f'{a} = {b}' for a, b in sizes.items())}"
            needed, remedy = f"in_features = {shape[1]}", f"in_features={fitting} would fit{at}."
            raise ShapeError(repr(self), arrives, needed, remedy)
        return (shape[0], self.out_features), narrowed

    def multiply_adds(self, output: Shape) -> Size:
        return self.in_features * self.out_features

    def forward(self, perform: Perform, parameters: Arrays, x: Any) -> Any:
        return perform(linear, x, parameters["weight"], parameters.get("bias"))

    def gradients(self, perform: Perform, parameters: Arrays, x: Any, dy: Any) -> dict[str, Any]:
        gradients = {"weight": perform(linear_dweight, dy, x)}
        return gradients | {"bias": perform(linear_dbias, dy)} if self.bias else gradients

    def dx(self, perform: Perform, parameters: Arrays, x: Any, dy: Any) -> Any:
        return perform(linear_dx, dy, parameters["weight"])


def _check_flag(layer: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise ParameterError(layer, f"{name}={value!r}", "True or False", "Pass a bool.")
