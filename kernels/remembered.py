"""Calls like one before: what was checked of an operator, its options and the arrays' shapes need no second look.

A check reads shapes, types and options, never a float, so a call that agrees with an earlier one in these goes straight
to the kernel's entry. Arrays of whole numbers are class numbers, whose values are checked too: by the entries that read
them, in every call.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from kernelproof.spec.operator import Arguments

Way: TypeAlias = Callable[[tuple[Any, ...]], Any]
"""From what was passed, in order, to the result."""

_MOST = 1024
"""Calls that are remembered; after that it starts anew."""


class Remembered:
    """The ways of earlier calls, by what was checked of them."""

    def __init__(self) -> None:
        self._ways: dict[Any, Way] = {}

    def find(self, key: Any) -> Way | None:
        """The way of an earlier call that this one agrees with."""
        return self._ways.get(key)

    def keep(self, key: Any, given: tuple[Any, ...], door: Arguments, entry: Callable[..., Any]) -> None:
        """Remember that the door made these arguments of what was given, unless it made new arrays."""
        if door.single:
            return
        recipe: list[tuple[int | None, Any]] = []
        for value in door.values:
            if not isinstance(value, np.ndarray):
                recipe.append((None, value))
                continue
            places = [at for at, each in enumerate(given) if each is value]
            if not places:
                return
            recipe.append((places[0], None))
        if len(self._ways) >= _MOST:
            self._ways.clear()
        self._ways[key] = lambda given: entry(*[value if at is None else given[at] for at, value in recipe])


def key_of(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call's checks depend on; None if that is more than shapes, types and options."""
    described: list[Any] = [operator, len(args)]
    for name, value in (*enumerate(args), *kwargs.items()):
        kind = type(value)
        if kind is np.ndarray:
            described.append((name, value.shape, value.dtype))
        elif kind in (int, float, bool, tuple, type(None)):
            # Its text, for True is no 1 and (2.0, 2) no (2, 2).
            described.append((name, repr(value)))
        else:
            return None
    return tuple(described)
