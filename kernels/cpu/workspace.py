"""Memory that fast kernels work in: aligned, pooled, and bounded by what the user allows."""

import contextlib
import math
from collections.abc import Iterator

import numpy as np

from kernelproof.kernels.limits import workspace

_LINE = 64
_pool: list[np.ndarray] = []


@contextlib.contextmanager
def borrowed(floats: int) -> Iterator[np.ndarray]:
    """So many float32, 64-byte aligned, with whatever they hold; they go back to the pool after the block.

    A call takes one piece, so the pool holds at most as many as calls ever ran at once, each as large as its largest.
    """
    # append and pop are atomic: two threads never get the same piece.
    piece = _pool.pop() if _pool else np.empty(0, np.float32)
    if piece.size < floats:
        raw = np.empty(4 * floats + _LINE, np.uint8)
        start = -raw.ctypes.data % _LINE
        piece = raw[start : start + 4 * floats].view(np.float32)
    try:
        yield piece
    finally:
        most = workspace()
        if most is None or piece.nbytes <= most:
            _pool.append(piece)


def in_lines(floats: int) -> int:
    """In whole cache lines, and one more: pieces a power of two apart would share the same few lines of the cache."""
    return -(-floats // 16) * 16 + 16


def empty(shape: tuple[int, ...]) -> np.ndarray:
    """A new array of float32 with whatever it holds. It begins at a cache line: no store of a vector straddles two."""
    size = 4 * math.prod(shape)
    raw = np.empty(size + _LINE, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + size].view(np.float32).reshape(shape)
