"""Memory that played calls work in: one piece for each stream, which they take in turn."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from .arrays import Place, address_of

POOLED, ALIGNMENT, _MOST_STREAMS = 256 * 2**20, 512, 16
"""Bytes that are kept for a stream at most; what memories start at multiples of; streams with a piece at a time."""


class Lifetime(NamedTuple):
    """How many bytes are needed from one launch to another."""

    size: int
    first: int
    last: int


def laid_out(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Where each starts in one piece of memory, and its size: those needed at once lie apart, the largest first."""
    offsets = [0] * len(lifetimes)
    placed: list[int] = []
    for each in sorted(range(len(lifetimes)), key=lambda i: -lifetimes[i].size):
        size, first, last = lifetimes[each]
        meeting = (i for i in placed if lifetimes[i].first <= last and first <= lifetimes[i].last)
        start = 0
        for other in sorted(meeting, key=lambda i: offsets[i]):
            if start + size <= offsets[other]:
                break
            start = max(start, aligned(offsets[other] + lifetimes[other].size))
        offsets[each] = start
        placed.append(each)
    return offsets, max((start + each.size for start, each in zip(offsets, lifetimes, strict=True)), default=0)


def aligned(size: int) -> int:
    """The size, filled up to where the next memory may start."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class Pool:
    """A piece of memory for each of the latest streams: work there is done in turn, and so may share it."""

    def __init__(self) -> None:
        self._pieces: OrderedDict[Place, tuple[Any, int, int]] = OrderedDict()

    def piece(self, place: Place, size: int) -> tuple[Any, int]:
        """Memory for the call that is launched next on the place's stream, and its address; to be held until then."""
        owner, address, held = self._pieces.get(place, (None, 0, 0))
        if size <= held:
            return owner, address
        owner = place.empty((size,), "uint8").owner
        address = address_of(owner)
        if size <= POOLED:
            self._pieces[place] = owner, address, size
            self._pieces.move_to_end(place)
            if len(self._pieces) > _MOST_STREAMS:
                self._pieces.popitem(last=False)
        return owner, address
