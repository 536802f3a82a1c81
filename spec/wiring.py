"""What wiring a chain takes: its input read from text, the joint of two shapes, a refusal with the chain drawn."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import diagram
from .errors import ParameterError, ShapeError
from .layers import Layer
from .shape_algebra import Dimension, Domain, Shape, Size, shape_text
from .window import whole


class WiringError(ShapeError):
    """The layers do not fit each other; `drawing` shows the chain as far as it went."""

    def __init__(self, operator: str, came: str, needed: str, remedy: str, drawing: str) -> None:
        super().__init__(operator, came, needed, remedy)
        self.drawing = drawing

    def __str__(self) -> str:
        return f"{super().__str__()}\n\n{self.drawing}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.operator, self.came, self.needed, self.remedy, self.drawing)


class Step(NamedTuple):
    """One layer of a chain, nested ones laid flat: its name, itself, and the shapes before and after it."""

    name: str
    layer: Layer
    input: Shape
    output: Shape


def parse(text: str) -> Shape:
    """`"n 1 h w"` or `"n 64"` as a shape: numbers, or names for sizes left open; raises ParameterError."""
    words = text.split() if isinstance(text, str) else []
    sizes = tuple(
        whole("SpecChain", f"the size {word} in input", int(word), axis > 0)
        if word.isdecimal()
        else Dimension.named(word)
        for axis, word in enumerate(words)
    )
    if (
        len(words) not in (2, 4)
        or not all(word.isdecimal() or word.isidentifier() for word in words)
        or (len(words) == 4 and not words[1].isdecimal())
        or (words[0].isidentifier() and words[0] in words[1:])
    ):
        raise ParameterError(
            "SpecChain",
            f"input={text!r}",
            "'batch channels height width' or 'batch features', each a number or a name, channels a number",
            "Pass input='n 1 28 28' or, for every height and width, input='n 1 h w'.",
        )
    return sizes


def join(declared: Shape, shape: Shape, admits: Domain) -> Domain:
    """Where a shape is one that a chain's input declares, names standing for anything; raises ShapeError if nowhere."""
    bound: dict[str, Size] = {}
    fits = len(declared) == len(shape)
    for wanted, size in zip(declared, shape, strict=False):
        other = wanted if isinstance(wanted, int) else bound.setdefault(str(wanted), size)
        if size != other:
            # Two open sizes that differ may agree for some inputs, but those are no union of ranges.
            number, open_ = (size, other) if isinstance(size, int) else (other, size)
            admits &= Domain.equal(open_, number) if isinstance(number, int) else Domain(())
    if not fits or not admits:
        raise ShapeError(
            "SpecChain",
            f"takes {shape_text(declared)}, but {shape_text(shape)} arrives",
            "equal shapes at the joint",
            f"Declare its input as {shape_text(shape)}, or leave sizes open by names.",
        )
    return admits


@contextmanager
def drawn(steps: list[Step], shape: Shape, name: str, what: str = "") -> Iterator[None]:
    """A layer's refusal as the chain's, with the chain drawn as far as it went."""
    try:
        yield
    except ShapeError as refusal:
        start = steps[0].input if steps else shape
        raise WiringError(
            "SpecChain",
            f"{name} = {what} {refusal.came}" if what else f"{name} {refusal.came}",
            refusal.needed,
            refusal.remedy,
            diagram.text(start, steps, (name, what, f"<- {refusal.came}")),
        ) from None
