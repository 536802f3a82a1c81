"""Arrays in pages of memory that may only be read, with no page beside them: what else touches memory dies of it.

The processor watches, so it is seen whoever reads or writes, and whether or not it shows in the result.
"""

import ctypes
import mmap
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

PROTECTS = hasattr(mmap, "PROT_READ")
"""Whether this system's pages can be protected from here: not on Windows."""

_NONE = 0
"""PROT_NONE, which Python does not name."""


def in_read_only_pages(array: np.ndarray, at_the_end: bool) -> np.ndarray:
    """The same elements and strides: the last byte is the last one that may be read, or the first one the first.

    As far as numpy knows the array may be written to.
    """
    low, high = np.lib.array_utils.byte_bounds(array)
    if not array.size:
        return array
    page, size = mmap.PAGESIZE, high - low
    inside = -(-size // page) * page
    memory = mmap.mmap(-1, inside + 2 * page)
    start = page + (inside - size if at_the_end else 0)
    memory[start : start + size] = ctypes.string_at(low, size)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    _protect(begin, page, _NONE)
    _protect(begin + page, inside, mmap.PROT_READ)
    _protect(begin + page + inside, page, _NONE)
    first = array.__array_interface__["data"][0] - low
    return np.ndarray(array.shape, array.dtype, memory, start + first, array.strides)


def _protect(start: int, size: int, how: int) -> None:
    if _mprotect()(start, size, how):
        raise OSError(ctypes.get_errno(), "mprotect")


@cache
def _mprotect() -> Callable[..., Any]:
    mprotect = ctypes.CDLL(None, use_errno=True).mprotect
    mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return mprotect
