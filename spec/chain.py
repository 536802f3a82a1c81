"""A chain of layers whose shapes are proven when it is wired, for every size that its input leaves open."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from . import diagram
from .backends import load, performer, specification
from .blocks import in_a_row, one_by_one
from .errors import DtypeError, ParameterError, ShapeError, UnsupportedError
from .layers import Layer, Perform, SlidingLayer
from .operator import check_arrays, check_shape
from .parameters import Gradients, Parameters
from .shape_algebra import Domain, ReceptiveField, Shape, SizeMap, Sizes, shape_text
from .window import MOST_SEED, pair, whole
from .wiring import Step, drawn, join, parse

_MOST = 1024
"""Shapes that a chain remembers it admits."""


class _Section(NamedTuple):
    """Layers that were wired together, from the input that was declared for them."""

    input: Shape
    layers: tuple["Layer | SpecChain", ...]


def _no_chain(operand: object) -> ParameterError:
    remedy = "Make a layer a chain first: SpecChain(layer, input=...)."
    return ParameterError("SpecChain", f"{operand!r} beside >>", "a chain on both sides", remedy)


class SpecChain:
    """Layers in a row, from an input such as `"n 1 28 28"` or, for every height and width, `"n 1 h w"`.

    Shapes are proven here and not met at run time: a chain that exists works on every input it `admits`. A name that
    stands twice is one size. Layers may be chains themselves; `a >> b` puts two chains in a row. Attributes, all to be
    read only: `input`, `steps` (flat), `admits` (the exact set of sizes), `perform`.

    >>> from kernelproof.spec import Conv2d, Flatten, Linear, MaxPool2d, ReLU
    >>> chain = SpecChain(Conv2d(1, 8, 3, padding=1), ReLU(), MaxPool2d(2), Flatten(), Linear(392, 10), input="n 1 h w")
    >>> print(chain.admits)
    h in 2..3 and w in 98..99, or h in 14..15 and w in 14..15, or h in 98..99 and w in 2..3

    Raises WiringError with the chain drawn as far as it went, ParameterError.
    """

    def __init__(self, *layers: "Layer | SpecChain", input: str) -> None:  # noqa: A002 (it is the word for it)
        for layer in layers:
            if not isinstance(layer, (Layer, SpecChain)):
                raise ParameterError("SpecChain", f"{layer!r} as a layer", "layers and chains", "Pass Conv2d(...).")
            if isinstance(layer, SpecChain):
                layer._check_uncompiled()
        self._wire((_Section(parse(input), layers),))

    def _wire(self, sections: tuple[_Section, ...]) -> None:
        steps: list[Step] = []
        self._sections, self.input, self.perform = sections, sections[0].input, specification
        positive = {str(size): Sizes.of((1, math.inf)) for size in self.input[1:] if not isinstance(size, int)}
        self.output, self.admits = self._extend(steps, self.input, Domain((positive,)), "")
        self.steps = tuple(steps)
        self._blocks, self._whole = one_by_one(self.steps), None
        self._needed = {
            f"{step.name}.{key}": shape for step in self.steps for key, shape in step.layer.parameter_shapes.items()
        }
        self._were_admitted: set[tuple[int, ...]] = set()

    def _extend(self, steps: list[Step], shape: Shape, admits: Domain, prefix: str) -> tuple[Shape, Domain]:
        """Append this chain's steps to those wired so far; what comes through: shape and sizes. Raises WiringError."""
        counts: dict[str, int] = {}
        for section in self._sections:
            with drawn(steps, shape, f"{prefix}input" if prefix else "joint"):
                admits = join(section.input, shape, admits)
            for layer in section.layers:
                kind = "chain" if isinstance(layer, SpecChain) else layer.kind
                counts[kind] = counts.get(kind, 0) + 1
                name = f"{prefix}{kind}{counts[kind]}"
                if isinstance(layer, SpecChain):
                    shape, admits = layer._extend(steps, shape, admits, f"{name}.")
                    continue
                with drawn(steps, shape, name, repr(layer)):
                    output, admits = layer.wire(shape, admits)
                steps.append(Step(name, layer, shape, output))
                shape = output
        return shape, admits

    def __rshift__(self, then: "SpecChain") -> "SpecChain":
        """This chain, then the other: one flat chain, named afresh, its shapes proven at the joint."""
        if not isinstance(then, SpecChain):
            raise _no_chain(then)
        self._check_uncompiled()
        then._check_uncompiled()
        both = object.__new__(SpecChain)
        both._wire(self._sections + then._sections)
        return both

    def __rrshift__(self, before: object) -> "SpecChain":
        """What stands before a chain and is none is refused."""
        raise _no_chain(before)

    def _check_uncompiled(self) -> None:
        if self.perform is not specification:
            raise ParameterError(
                "SpecChain", "a compiled chain as a part", "plain chains", "Compile the whole instead."
            )

    @property
    def layers(self) -> tuple["Layer | SpecChain", ...]:
        """The layers as they were given, chains among them."""
        return tuple(layer for section in self._sections for layer in section.layers)

    @property
    def shapes(self) -> dict[str, Shape]:
        """The output shape of every layer by its name, the input first."""
        return {"input": self.input, **{step.name: step.output for step in self.steps}}

    def _axis(self, axis: int) -> tuple[SizeMap, Sizes]:
        """What all windows together do to an axis, and the sizes on which all of them are legal."""
        self._check_image()
        whole_map, legal = SizeMap(), Sizes.of((1, math.inf))
        for layer in self._sliding:
            legal &= whole_map.solve(layer.legal(axis))
            whole_map >>= SizeMap.of(layer.window, axis)
        return whole_map, legal

    @property
    def _sliding(self) -> list[SlidingLayer]:
        return [step.layer for step in self.steps if isinstance(step.layer, SlidingLayer)]

    def _check_image(self) -> None:
        if len(self.input) != 4:
            raise UnsupportedError(
                "SpecChain", f"the input {shape_text(self.input)} is no image", "4 axes", "Ask a chain of images."
            )

    def solve(self, *, out: Sequence[int]) -> tuple[Sizes, Sizes]:
        """Exactly the heights and the widths for which the last feature map is `out`, as `(height, width)`.

        Looks at the windows alone: what Flatten and Linear ask beyond that is in `admits`.
        """
        wanted = pair("SpecChain", "out", out, 1)
        axes = [self._axis(axis) for axis in (0, 1)]
        h, w = (legal & map_.solve(Sizes.of((size, size))) for (map_, legal), size in zip(axes, wanted, strict=True))
        return h, w

    def smallest_input(self) -> tuple[int, int]:
        """The least height and width that every window fits. What Flatten and Linear ask beyond is in `admits`."""
        return self._axis(0)[1].smallest, self._axis(1)[1].smallest

    def receptive_field(self) -> tuple[ReceptiveField, ReceptiveField]:
        """Along height and width, which input positions a position of the last feature map depends on."""
        self._check_image()
        height, width = ReceptiveField(), ReceptiveField()
        for layer in self._sliding:
            height >>= ReceptiveField.of(layer.window, 0)
            width >>= ReceptiveField.of(layer.window, 1)
        return height, width

    def summary(self) -> str:
        """A table: every layer with its output shape, parameters, multiply-adds per image and receptive field."""
        return diagram.summary(self.input, self.steps)

    def diagram(self, form: str = "mermaid") -> str:
        """The chain drawn: `"mermaid"` text, or `"svg"`, a self-contained image for light and dark pages."""
        if form == "mermaid":
            return diagram.mermaid(self.input, self.steps)
        if form == "svg":
            return diagram.svg(self.input, self.steps, self.admits)
        raise ParameterError("SpecChain", f"diagram({form!r})", "'mermaid' or 'svg'", "Pass one of them.")

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter under PyTorch's key."""
        return dict(self._needed)

    def parameters(self, arrays: Mapping[str, Any]) -> Parameters:
        """The arrays as this chain's record; raises ParameterError, ShapeError, DtypeError."""
        if isinstance(arrays, Parameters) and arrays.are_of(self._needed):
            return arrays
        return Parameters(self._needed, arrays)

    def initialise(self, seed: int, dtype: Any = np.float32) -> Parameters:
        """Kaiming-uniform parameters as PyTorch's layers start with, the same for the same seed."""
        if np.dtype(dtype).kind != "f":
            raise DtypeError("SpecChain", f"dtype={dtype}", "a floating type", "Use .astype on the record afterwards.")
        generator = np.random.default_rng(whole("SpecChain", "seed", seed, 0, MOST_SEED))
        return self.parameters(
            {
                f"{step.name}.{key}": array
                for step in self.steps
                for key, array in step.layer.initialise(generator, dtype).items()
            }
        )

    def forward(self, parameters: Mapping[str, Any], x: Any) -> Any:
        """The output for a batch x or a single image; any scalar type, the same for x and all parameters.

        With intervals, `intervals(array, array)` for every parameter, the output is a certified range for the box x.
        Raises ShapeError (a size outside `admits`), DtypeError, ParameterError.
        """
        return self.vjp(parameters, x)[0]

    def backward(self, parameters: Mapping[str, Any], x: Any, dy: Any) -> Gradients:
        """The gradients of every parameter and of x, for an output gradient dy. Raises as `forward` does."""
        return self.vjp(parameters, x)[1](dy)

    def vjp(
        self, parameters: Mapping[str, Any], x: Any, *, of_x: bool = True
    ) -> tuple[Any, Callable[[Any], Gradients]]:
        """The output, and the function that takes its gradient dy back: one forward pass for both.

        Without `of_x` the gradient of x, which training has no use for, is None and is not computed.
        Source: JAX `jax.vjp`. Raises as `forward` does.
        """
        if self._whole is None:
            return self._vjp(parameters, x, of_x)
        return self._whole(self._vjp, parameters, x, of_x)

    def _vjp(self, parameters: Mapping[str, Any], x: Any, of_x: bool) -> tuple[Any, Callable[[Any], Gradients]]:
        own = self.parameters(parameters)
        if not (type(x) is np.ndarray and own.dtype is not None and x.dtype == own.dtype):
            check_arrays("SpecChain", x=x, **own)
        single = len(x.shape) == len(self.input) - 1
        x = x[None] if single else x
        self._check_admitted(x.shape)
        y, take_back = in_a_row(self._blocks, self.perform, own, x)
        y_shape = tuple(y.shape[single:])

        def backward(dy: Any) -> Gradients:
            check_arrays("SpecChain", x=x, dy=dy)
            if tuple(dy.shape) != y_shape:
                raise ShapeError("SpecChain", f"dy is {tuple(dy.shape)}", f"the output's {y_shape}", "Pass one like y.")
            gradients, dx = take_back(dy[None] if single else dy, of_x)
            return Gradients(self.parameters(gradients), dx[0] if single and of_x else dx)

        return (y[0] if single else y), backward

    def _check_admitted(self, x_shape: Sequence[int]) -> None:
        if x_shape in self._were_admitted:
            return
        check_shape("SpecChain", "x", x_shape, tuple(map(str, self.input)), tuple(map(str, self.input[1:])))
        sizes: dict[str, int] = {}
        for wanted, size in zip(self.input, x_shape, strict=True):
            if size != (wanted if isinstance(wanted, int) else sizes.setdefault(str(wanted), size)):
                break
        else:
            if sizes in self.admits:
                if len(self._were_admitted) < _MOST:
                    self._were_admitted.add(tuple(x_shape))
                return
        admitted = f" with {self.admits}" if str(self.admits) else ""
        raise ShapeError(
            "SpecChain",
            f"x is {tuple(x_shape)}",
            f"{shape_text(self.input)}{admitted}",
            "Resize, crop or pad x, or wire the chain for that size.",
        )

    def compile(self, backend: str | Perform | ModuleType, *, precision: str = "strict") -> "SpecChain":
        """The same chain on other kernels: `"cpu"`, `"cuda"`, any `perform(operator, *args, **kwargs)`, or a module
        with functions of the operators' names. `precision` says what rounding a backend's kernels may add: `"strict"`,
        `"fast"` and what else `kernelproof.kernels` lists.

        Raises UnsupportedError, saying what to install, if there is no such backend, or if what performs knows one
        precision alone; ParameterError.
        """
        compiled = copy.copy(self)
        compiled.perform = performer(backend, precision)
        # A backend may perform several steps at once, what none but it can know.
        compiled._blocks = getattr(compiled.perform, "blocks", one_by_one)(self.steps)
        compiled._whole = getattr(compiled.perform, "whole", lambda: None)()
        return compiled

    def to_onnx(self, parameters: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Export with these parameters; what else is passed goes to `kernelproof.models.onnx_export.to_onnx`.

        Raises UnsupportedError, with what to install, if there is no exporter.
        """
        return load("kernelproof.exporters", "onnx")(self, self.parameters(parameters), *args, **kwargs)

    def __repr__(self) -> str:
        inner = "".join(f"{layer!r}, " for layer in self.layers)
        return f'SpecChain({inner}input="{" ".join(map(str, self.input))}")'
