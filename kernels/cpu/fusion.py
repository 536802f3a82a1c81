"""Convolution with the rectifier and the pooling that follow it, at once: forward, and backward from what that kept.

Between convolution and pooling nothing goes to memory, and backward neither finds the maxima again nor reads what was
rectified: a quarter of the array, the winners, stands for both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelproof import spec
from kernelproof.kernels.contract import Precision
from kernelproof.spec import Window
from kernelproof.spec.blocks import Backward, Block, Single, in_a_row, one_by_one
from kernelproof.spec.layers import Conv2d, Flatten, MaxPool2d, Perform, ReLU
from kernelproof.spec.parameters import Parameters
from kernelproof.spec.wiring import Step

from .convolution.planner import Algorithm, taken_with
from .winners import pool, unpool
from .workspace import borrowed

_FLOAT32 = np.dtype(np.float32)
_HALVES = Window((2, 2), (2, 2), ((0, 0), (0, 0)), (1, 1))


@dataclass(frozen=True)
class Fused:
    """A convolution, alone or with what follows: `steps` are those, rectified or not, pooled by twos or not.

    The chain has checked what the operators' doors would check again.
    """

    steps: tuple[Step, ...]
    convolution: Conv2d
    rectified: bool
    pooled: bool

    def vjp(self, perform: Perform, parameters: Parameters, x: Any) -> tuple[Any, Backward]:
        """The output for a batch x, and what takes its gradient back; step by step where they cannot be fused."""
        name, conv = self.steps[0].name, self.convolution
        own = parameters.of_layer(name)
        algorithm = self._algorithm(perform, own["weight"], x)
        if algorithm is None:
            return in_a_row(one_by_one(self.steps), perform, parameters, x)
        arguments = x, own["weight"], own.get("bias"), conv.window, conv.groups
        y, winner = self._performed(algorithm, *arguments)

        def backward(dy: Any, of_x: bool) -> tuple[dict[str, Any], Any]:
            # A maximum is rectified as its y is, so what does not reach the bias does not reach any winner.
            reached = perform(spec.relu_dx, dy, y) if self.rectified else dy
            if winner is None:
                gradients, dx = self._gradients(perform, own, x, reached, of_x)
            else:
                shape = len(x), conv.out_channels, conv.window.p(x.shape), conv.window.q(x.shape)
                with borrowed(math.prod(shape)) as memory:
                    dconv = memory[: math.prod(shape)].reshape(shape)
                    unpool(reached, winner, dconv)
                    gradients, dx = self._gradients(perform, own, x, dconv, of_x)
            if conv.bias:
                # Every dy that reaches a winner reaches the bias: there is no need to look among zeros for them.
                gradients["bias"] = perform(spec.conv2d_dbias, reached)
            return {f"{name}.{key}": gradient for key, gradient in gradients.items()}, dx

        return y, backward

    def _performed(self, algorithm: Algorithm, *arguments: Any) -> tuple[Any, Any]:
        """The output, and the winners if it is pooled: in the cache if the algorithm can, else as its rows come out."""
        if self.pooled and algorithm.pooled:
            return algorithm.pooled(*arguments, self.rectified)
        run = algorithm.rectified if self.rectified else algorithm.run
        assert run is not None  # `taken_with` was asked for one that rectifies.
        y = run(*arguments)
        return pool(y) if self.pooled else (y, None)

    def _gradients(
        self, perform: Perform, own: dict[str, Any], x: Any, dy: Any, of_x: bool
    ) -> tuple[dict[str, Any], Any]:
        """Of the convolution alone, but for its bias."""
        conv = self.convolution
        dweight = perform(spec.conv2d_dweight, dy, x, own["weight"].shape, **conv.geometry)
        return {"weight": dweight}, conv.dx(perform, own, x, dy) if of_x else None

    def _algorithm(self, perform: Perform, weight: Any, x: Any) -> Algorithm | None:
        """What the planner takes for the convolution, if that can do what follows too."""
        conv = self.convolution
        if not (isinstance(x, np.ndarray) and x.dtype == weight.dtype == _FLOAT32):
            return None
        if self.pooled and min(conv.window.p(x.shape), conv.window.q(x.shape)) < 2:
            return None
        precision: Precision = getattr(perform, "precision", "strict")
        return taken_with(
            self.rectified, self.pooled, x.shape, weight.shape, conv.window, conv.groups, precision
        )  # fmt: skip


@dataclass(frozen=True)
class Flattened:
    """A flattening between other steps, which have copied what is their own: it is a view, and copies nothing."""

    step: Step

    def vjp(self, perform: Perform, parameters: Parameters, x: Any) -> tuple[Any, Backward]:
        """The output for a batch x, and what takes its gradient back."""
        shape = x.shape
        return x.reshape(len(x), math.prod(shape[1:])), lambda dy, of_x: ({}, dy.reshape(shape))


def blocks(steps: Sequence[Step]) -> tuple[Block, ...]:
    """The steps, with those that can be performed at once together, and no copy made to flatten what lies between."""
    found: list[Block] = []
    rest = list(steps)
    while rest:
        first = rest.pop(0)
        conv, taken = first.layer, [first]
        if isinstance(conv, Conv2d):
            if rest and isinstance(rest[0].layer, ReLU):
                taken.append(rest.pop(0))
            if rest and isinstance(rest[0].layer, MaxPool2d) and _by_twos(rest[0].layer):
                taken.append(rest.pop(0))
            kinds = [type(each.layer) for each in taken]
            found.append(Fused(tuple(taken), conv, ReLU in kinds, MaxPool2d in kinds))
        elif isinstance(conv, Flatten) and found and rest:
            found.append(Flattened(first))
        else:
            found.append(Single(first))
    return tuple(found)


def _by_twos(layer: MaxPool2d) -> bool:
    return layer.window == _HALVES
