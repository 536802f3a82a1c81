"""What a call launches, written down so that it can be played again on other memory.

While a tape runs, every array knows whose `Memory` it is, its address keeps that through sums, and each launch is
written down with the arguments that are addresses. Nothing else of a launch depends on the arrays but their shapes.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Memory:
    """One array's bytes, where they lay when the tape ran."""

    start: int
    size: int


class Address(int):
    """A place in a memory: a number that remembers which, also when another is added."""

    memory: Memory

    def __new__(cls, value: int, memory: Memory) -> "Address":
        address = super().__new__(cls, value)
        address.memory = memory
        return address

    def __add__(self, other: int) -> "Address":
        return Address(int(self) + other, self.memory)

    __radd__ = __add__

    @property
    def offset(self) -> int:
        """Bytes from the memory's start."""
        return int(self) - self.memory.start


@dataclass(frozen=True)
class Launch:
    """A kernel with its arguments, eight bytes each, and which of them are addresses."""

    name: str
    function: int
    blocks: tuple[int, int]
    threads: int
    shared: int
    arguments: bytes
    addresses: tuple[tuple[int, Address], ...]


class Tape:
    """The launches of one call, in order, and the memory that it took; `before` is what earlier tapes took for it.

    While a dry one runs, nothing is launched: dry.py.
    """

    def __init__(self, before: Sequence[Memory] = (), is_dry: bool = False) -> None:
        self.launches: list[Launch] = []
        self.taken: list[Memory] = []
        self.is_whole = True
        """Whether all that the call did is on the tape."""
        self.is_dry = is_dry
        self._before = tuple(before)

    def take(self, start: int, size: int) -> Memory:
        """Write down that memory was taken."""
        self.taken.append(Memory(start, size))
        return self.taken[-1]

    def address(self, value: int, memory: Memory | None) -> int:
        """The address, with whose memory it is: that named, else what was taken last there and so is taken still."""
        if memory is None:
            found = (each for each in reversed((*self._before, *self.taken)) if 0 <= value - each.start < each.size)
            memory = next(found, None)
        if memory is None:
            self.is_whole = False
            return value
        return Address(value, memory)


_thread = threading.local()


def running() -> Tape | None:
    """The tape that this thread's calls are written on."""
    return getattr(_thread, "tape", None)


@contextlib.contextmanager
def recorded_on(tape: Tape | None) -> Iterator[None]:
    """Write what this thread launches in the block on the tape, or on none."""
    before, _thread.tape = running(), tape
    try:
        yield
    finally:
        _thread.tape = before
