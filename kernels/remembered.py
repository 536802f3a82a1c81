"""Calls like one before: what was checked of an operator, its options and the arrays' shapes need no second look.

A check reads shapes, types and options, never a float, so a call that agrees with an earlier one in these goes straight
to the kernel's entry. Arrays of whole numbers are class numbers, whose values are checked too: by the entries that read
them, in every call.
"""

from collections.abc import Callable
from operator import itemgetter
from typing import Any, TypeAlias

import numpy as np

from kernelproof.spec.operator import Arguments

Way: TypeAlias = Callable[[tuple[Any, ...]], Any]
"""From what was passed, in order, to the result."""

_MOST = 1024
"""Calls that are remembered; after that it starts anew."""


class EarlierCalls:
    """The ways of earlier calls, by what was checked of them."""

    def __init__(self) -> None:
        self._ways: dict[Any, Way] = {}

    def find(self, key: Any) -> Way | None:
        """The way of an earlier call that this one agrees with."""
        return self._ways.get(key)

    def keep(self, key: Any, given: tuple[Any, ...], door: Arguments, entry: Callable[..., Any]) -> None:
        """Remember that the door made these arguments of what was given, unless it made new arrays."""
        if key is None or door.single:
            return
        # What the door made, counted on from what was given: a call then picks all that the entry takes.
        places, made = [], []
        for value in door.values:
            if isinstance(value, np.ndarray):
                found = [at for at, each in enumerate(given) if each is value]
                if len(found) != 1:  # Made anew, or given twice, which another call with these shapes need not do.
                    return
                places.append(found[0])
            else:
                places.append(len(given) + len(made))
                made.append(value)
        pick, made = _picking(places), tuple(made)
        if len(self._ways) >= _MOST:
            self._ways.clear()
        self._ways[key] = lambda given: entry(*pick(given + made))


def _picking(places: list[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """The entries at these places, as a tuple."""
    if len(places) == 1:
        return lambda values: (values[places[0]],)
    return itemgetter(*places)


def key_of(operator: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call's checks depend on; None if that is more than shapes, types and options."""
    described: list[Any] = [operator, len(args), *kwargs]
    for value in (*args, *kwargs.values()):
        kind = type(value)
        if kind is np.ndarray:
            described += value.shape, value.dtype
        elif kind is int or value is None or (kind is tuple and _are_whole(value)):
            described += kind, value
        elif kind in (float, bool, tuple):
            # Its text, for True is no 1 and (2.0, 2) no (2, 2): in a convolution's call that took a sixth of it.
            described.append(repr(value))
        else:
            return None
    return tuple(described)


def _are_whole(values: tuple[Any, ...]) -> bool:
    """Whether there is nothing but plain ints in a tuple and the tuples in it: then equal ones are the same."""
    for each in values:  # noqa: SIM110 (a generator would take as long as the text)
        if type(each) is not int and not (type(each) is tuple and _are_whole(each)):
            return False
    return True
