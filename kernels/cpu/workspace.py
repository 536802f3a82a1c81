"""Memory that fast kernels work in: aligned, pooled, and bounded by what the user allows."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from kernelproof.kernels.limits import workspace

_LINE, _PAGE = 64, 2**12
_SHORTLY = 256
_pool: list[np.ndarray] = []


class borrowed:  # noqa: N801 (it reads as a verb: with borrowed(floats) as memory)
    """So many float32, 64-byte aligned, with whatever they hold; they go back to the pool after the block.

    A call takes one piece, so the pool holds at most as many as calls ever ran at once, each as large as its largest.
    """

    def __init__(self, floats: int) -> None:
        self._floats = floats

    def __enter__(self) -> np.ndarray:
        # append and pop are atomic: two threads never get the same piece.
        try:
            piece = _pool.pop()
        except IndexError:
            piece = _NOTHING
        if piece.size < self._floats:
            del piece  # First: the larger one may lie where it was.
            piece = _aligned(self._floats)
        self._piece = piece
        return piece

    def __exit__(self, *failed: object) -> None:
        most = workspace()
        if most is None or self._piece.nbytes <= most:
            _pool.append(self._piece)


_NOTHING = np.empty(0, np.float32)


def in_lines(floats: int) -> int:
    """In whole cache lines, and one more: pieces a power of two apart would share the same few lines of the cache."""
    return -(-floats // 16) * 16 + 16


def empty(shape: tuple[int, ...]) -> np.ndarray:
    """A new array of float32 with whatever it holds. It begins at a cache line: no store of a vector straddles two."""
    return _aligned(math.prod(shape)).reshape(shape)


def empty_beside(shape: tuple[int, ...], inputs: Sequence[np.ndarray]) -> np.ndarray:
    """As `empty`, to be stored past the caches while the inputs are read in the same order.

    A load waits for a store under way whose address has the same last 12 bits, and stores past the caches are under way
    for long: where a result begins up to 512 bytes past an input, in a page, sgd takes 2 to 10 times as long (Zen 3).
    """
    starts = sorted({each.ctypes.data % _PAGE for each in inputs})
    gaps = [(after - before, after) for before, after in pairwise([*starts, starts[0] + _PAGE])]
    # Shortly before an input, at the end of the widest gap.
    _, end = max(gaps)
    return _aligned(math.prod(shape), (end - _SHORTLY) // _LINE * _LINE, _PAGE).reshape(shape)


def _aligned(floats: int, start: int = 0, unit: int = _LINE) -> np.ndarray:
    """An array whose address is `start` beyond a multiple of the unit."""
    raw = np.empty(4 * floats + unit, np.uint8)
    start = (start - raw.ctypes.data) % unit
    return raw[start : start + 4 * floats].view(np.float32)
