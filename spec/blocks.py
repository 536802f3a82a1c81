"""What a chain performs one after the other: single steps, or several that a backend performs at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from .layers import Perform
from .parameters import Parameters
from .wiring import Step

Backward: TypeAlias = Callable[[Any, bool], tuple[dict[str, Any], Any]]
"""From an output gradient dy, and whether dx is wanted, to the parameters' gradients by their keys, and dx or None."""


class Block(Protocol):
    """One or more steps of a chain, in a row, forward and backward."""

    def vjp(self, perform: Perform, parameters: Parameters, x: Any) -> tuple[Any, Backward]:
        """The output for a batch x, and what takes its gradient back."""
        ...


@dataclass(frozen=True)
class Single:
    """A step as its layer performs it, which keeps its input alone."""

    step: Step

    def vjp(self, perform: Perform, parameters: Parameters, x: Any) -> tuple[Any, Backward]:
        """The output for a batch x, and what takes its gradient back."""
        name, layer = self.step.name, self.step.layer
        own = parameters.of_layer(name)

        def backward(dy: Any, of_x: bool) -> tuple[dict[str, Any], Any]:
            gradients = layer.gradients(perform, own, x, dy)
            dx = layer.dx(perform, own, x, dy) if of_x else None
            return {f"{name}.{key}": gradient for key, gradient in gradients.items()}, dx

        return layer.forward(perform, own, x), backward


def one_by_one(steps: Sequence[Step]) -> tuple[Block, ...]:
    """Every step as a block of its own."""
    return tuple(map(Single, steps))


def in_a_row(blocks: Sequence[Block], perform: Perform, parameters: Parameters, x: Any) -> tuple[Any, Backward]:
    """The blocks one after the other, as one: forward for a batch x, and what takes its gradient back."""
    y, take_back = x, []
    for block in blocks:
        y, its_backward = block.vjp(perform, parameters, y)
        take_back.append(its_backward)

    def backward(dy: Any, of_x: bool) -> tuple[dict[str, Any], Any]:
        dx, gradients = dy, {}
        for number, its_backward in reversed(list(enumerate(take_back))):
            of_its, dx = its_backward(dx, of_x or number > 0)
            gradients |= of_its
        return gradients, dx

    return y, backward
