"""What can go wrong when an operator is called: typed, and told before any work is done."""

from typing import Any


def type_of(value: object) -> str:
    """The value's type, as a sentence names it: `an int`, `a list`, `a uint8`."""
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


class KernelproofError(ValueError):
    """A call that cannot be carried out: the operator, what came, what it needs, what to do.

    The four parts stay readable as attributes; the message is their sentence:
    `conv2d: a 3-row filter does not fit 2 rows with padding 0; needs height + padding >= 3. Pad by 1 more.`
    """

    def __init__(self, operator: str, came: str, needed: str, remedy: str) -> None:
        self.operator, self.came, self.needed, self.remedy = operator, came, needed, remedy
        super().__init__(f"{operator}: {came}; needs {needed}. {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        # Exceptions pickle their message alone; a worker process has to send all four parts home.
        return type(self), (self.operator, self.came, self.needed, self.remedy)


class ShapeError(KernelproofError):
    """The sizes of the arrays do not fit each other or the window."""


class DtypeError(KernelproofError):
    """An argument is not an array, or its scalar type is not one that the operator takes here."""


class ParameterError(KernelproofError):
    """A stride, padding, dilation, group count or choice outside its range."""


class UnsupportedError(KernelproofError):
    """A legal request that this implementation does not cover. Never a wrong answer instead."""
