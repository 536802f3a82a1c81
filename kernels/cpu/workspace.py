"""Memory that fast kernels work in: aligned, pooled, and bounded by what the user allows."""

import math

import numpy as np

from kernelproof.kernels.limits import workspace

_LINE = 64
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


def _aligned(floats: int) -> np.ndarray:
    raw = np.empty(4 * floats + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + 4 * floats].view(np.float32)
