"""Memory that gives a kernel away: what numpy allocates is filled with a poison and fenced on both sides.

A kernel that leaves an element unwritten, or reads beside an array, hands the poison on; one that writes beside an
array damages a fence. numpy takes its allocator from a handler (NEP 49), so no kernel has to be built anew for this.
"""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from numpy._core import _multiarray_umath  # type: ignore[reportPrivateUsage] - the home of numpy's C API

T = TypeVar("T")

FENCE = 64
"""Bytes on either side of an array: it stays aligned as malloc aligned it."""

POISONS = (0xFF, 0x7F)
"""Bytes that make every float NaN, every integer -1; and every float enormous: a maximum may pass over NaN."""


class Overrun(Exception):  # noqa: N818 - it is what happened
    """Something wrote beside an array."""


def on_poisoned_memory(poison: int, call: Callable[[], T]) -> T:
    """What `call` gives where what numpy allocates for this thread holds `poison`; raises Overrun, what it raises."""
    try:
        came = _called(call, poison, _fenced.handler)
        if not _fenced.lost:
            return came
    except BaseException:
        if not _fenced.lost:
            raise
    # A kernel that tries what numpy refuses, and then something else, did not hear of the refusal.
    return _called(call, poison, _fenced.keeper)


def _called(call: Callable[[], T], poison: int, handler: object) -> T:
    with _poisoned(poison, handler):
        return call()


@contextlib.contextmanager
def _poisoned(poison: int, handler: object) -> Iterator[None]:
    """What numpy allocates for this thread in this block holds `poison`; raises Overrun if a fence was damaged."""
    _fenced.poison, _fenced.lost = poison, False
    before = _set_handler(handler)
    try:
        yield
        _fenced.check()
    finally:
        _set_handler(before)
        _fenced.damaged.clear()


class _Allocator(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("context", "malloc", "calloc", "realloc", "free")]


class _Handler(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char * 127), ("version", ctypes.c_uint8), ("allocator", _Allocator)]


_nothing = ctypes.PYFUNCTYPE(ctypes.c_int)(("Py_IsInitialized", ctypes.pythonapi))
"""Does nothing, and as every call by ctypes raises the exception that is on its way in C."""

_malloc = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_size_t)(("PyMem_RawMalloc", ctypes.pythonapi))
_free = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(("PyMem_RawFree", ctypes.pythonapi))


class _Fenced:
    """numpy's four functions of memory, each block between two fences of its own poison."""

    def __init__(self) -> None:
        self.poison, self.blocks, self.damaged = 0, dict[int, tuple[int, int]](), list[str]()
        # Whether numpy freed an array while an exception was on its way from it: Python code ends that way.
        self.lost = False
        address, size = ctypes.c_void_p, ctypes.c_size_t
        self.functions = (
            ctypes.CFUNCTYPE(address, address, size)(lambda _, size: self.allocate(size)),
            ctypes.CFUNCTYPE(address, address, size, size)(lambda _, count, size: self.zeros(count * size)),
            ctypes.CFUNCTYPE(address, address, address, size)(lambda _, block, size: self.resize(block, size)),
            ctypes.CFUNCTYPE(None, address, address, size)(lambda _, block, size: self.free(block)),
        )
        pointers = [ctypes.cast(each, address) for each in self.functions]
        self.structures = [
            _Handler(b"kernelproof_fenced", 1, _Allocator(None, *pointers)),
            _Handler(b"kernelproof_kept", 1, _Allocator(None, *pointers[:3], ctypes.cast(_nothing, address))),
        ]
        capsule = ctypes.pythonapi.PyCapsule_New
        capsule.restype, capsule.argtypes = ctypes.py_object, [address, ctypes.c_char_p, address]
        self.handler, self.keeper = (capsule(ctypes.addressof(each), b"mem_handler", None) for each in self.structures)

    def allocate(self, size: int) -> int | None:
        start = _malloc(size + 2 * FENCE)
        if start is None:
            return None
        ctypes.memset(start, self.poison, size + 2 * FENCE)
        self.blocks[start + FENCE] = size, self.poison
        return start + FENCE

    def zeros(self, size: int) -> int | None:
        block = self.allocate(size)
        if block is not None:
            ctypes.memset(block, 0, size)
        return block

    def resize(self, block: int | None, size: int) -> int | None:
        new = self.allocate(size)
        if new is not None and block is not None:
            ctypes.memmove(new, block, min(size, self.blocks[block][0]))
            self.free(block)
        return new

    def free(self, block: int | None) -> None:
        try:
            _nothing()
        except BaseException:
            self.lost = True
        if block is None:  # NULL, which C's free takes.
            return
        self.look_at(block)
        del self.blocks[block]
        _free(block - FENCE)

    def look_at(self, block: int) -> None:
        size, poison = self.blocks[block]
        for side, start in (("before", block - FENCE), ("after", block + size)):
            if ctypes.string_at(start, FENCE) != bytes([poison]) * FENCE:
                self.damaged.append(f"{side} an array of {size} bytes")
                ctypes.memset(start, poison, FENCE)

    def check(self) -> None:
        for block in list(self.blocks):
            self.look_at(block)
        if self.damaged:
            raise Overrun(self.damaged[0])


def _c_api(index: int) -> Any:
    """A function of numpy's C API that takes an object and returns one."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    table = ctypes.cast(pointer(_multiarray_umath._ARRAY_API, None), ctypes.POINTER(ctypes.c_void_p))
    return ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(table[index])


_set_handler = _c_api(304)  # PyDataMem_SetHandler
_fenced = _Fenced()
# Arrays made here may outlive this module: the last of them is freed when Python ends.
ctypes.pythonapi.Py_IncRef(ctypes.py_object(_fenced))
