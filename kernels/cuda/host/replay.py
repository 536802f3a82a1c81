"""A tape as one CUDA graph that runs on whatever memory each call brings.

Launching a graph costs the host less than launching one kernel (1.7 against 4.0 us on an H200), however many there are
in it, and telling a kernel of it another address 0.5 us. So nothing is copied to where a graph expects it.
"""

import ctypes
import functools
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from ctypes import c_uint, c_uint64, c_void_p
from typing import NamedTuple

from .tape import Launch, Memory


class Spot(NamedTuple):
    """Where a memory lies: in which of the call's memories, and how far from its start."""

    number: int
    offset: int


class _Parameters(ctypes.Structure):
    """The driver's CUDA_KERNEL_NODE_PARAMS."""

    _fields_ = (
        ("function", c_void_p),
        *((f"{of}_{axis}", c_uint) for of in ("grid", "block") for axis in "xyz"),
        ("shared", c_uint),
        *((name, c_void_p) for name in ("arguments", "extra", "kernel", "context")),
    )


class _Node:
    """A launch in a graph, and its arguments, where the driver reads them."""

    def __init__(self, launch: Launch) -> None:
        count = len(launch.arguments) // 8
        self.handle = c_void_p()
        self.slots = (c_uint64 * count).from_buffer_copy(launch.arguments)
        start = ctypes.addressof(self.slots)
        self._pointers = (c_uint64 * count)(*range(start, start + 8 * count, 8))
        self._parameters = _Parameters(
            launch.function, *launch.blocks, 1, launch.threads, 1, 1, launch.shared, ctypes.addressof(self._pointers)
        )
        self.parameters = ctypes.byref(self._parameters)


class Graph:
    """Launches one after the other on a stream; `spots` says where in a call's memories each that they name lies."""

    def __init__(self, launches: Sequence[Launch], spots: Mapping[Memory, Spot], stream: int) -> None:
        self._nodes = [_Node(each) for each in launches]
        self._uses: dict[int, list[tuple[_Node, int, int]]] = {}
        for node, launch in zip(self._nodes, launches, strict=True):
            for slot, address in launch.addresses:
                number, offset = spots[address.memory]
                self._uses.setdefault(number, []).append((node, slot, offset + address.offset))
        self._at: Sequence[int] = ()
        self._stream = c_void_p(stream)
        driver, graph, self._executable = _driver(), c_void_p(), c_void_p()
        _done(driver.create(ctypes.byref(graph), 0))
        # Kept as long as the executable, whose kernels are named by it.
        weakref.finalize(self, driver.destroy, graph).atexit = False
        before = None
        for node in self._nodes:
            after, count = (None, 0) if before is None else (ctypes.byref(before), 1)
            _done(driver.add(ctypes.byref(node.handle), graph, after, ctypes.c_size_t(count), node.parameters))
            before = node.handle
        _done(driver.instantiate(ctypes.byref(self._executable), graph, c_uint64(0)))
        # One that still runs is freed once it is done (CUDA driver API, cuGraphExecDestroy).
        weakref.finalize(self, driver.destroy_executable, self._executable).atexit = False

    def __call__(self, addresses: Sequence[int]) -> None:
        """Launch it on the memories that start at these addresses; not from two threads at once."""
        if addresses != self._at:
            moved = set()
            for number, address in enumerate(addresses):
                if number >= len(self._at) or address != self._at[number]:
                    for node, slot, offset in self._uses.get(number, ()):
                        node.slots[slot] = address + offset
                        moved.add(node)
            self._at = ()  # Until the driver knows all of them.
            for node in moved:
                _done(_driver().move(self._executable, node.handle, node.parameters))
            self._at = addresses
        _done(_driver().launch(self._executable, self._stream))


class _Driver:
    """The driver's functions for graphs, called past the bindings, which take several times as long."""

    def __init__(self) -> None:
        library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        self.create, self.destroy = library["cuGraphCreate"], library["cuGraphDestroy"]
        self.add, self.instantiate = library["cuGraphAddKernelNode_v2"], library["cuGraphInstantiateWithFlags"]
        self.move, self.launch = library["cuGraphExecKernelNodeSetParams_v2"], library["cuGraphLaunch"]
        self.destroy_executable = library["cuGraphExecDestroy"]
        self.is_capturing, self.current_device = library["cuStreamIsCapturing"], library["cuCtxGetDevice"]


_driver = functools.cache(_Driver)


class _Answer(threading.local):
    """Where the driver writes a number for this thread."""

    def __init__(self) -> None:
        self.number = ctypes.c_int()
        self.place = ctypes.byref(self.number)


_answer = _Answer()


def is_on(device: int) -> bool:
    """Whether this thread works on the GPU of that number."""
    return _driver().current_device(_answer.place) == 0 and _answer.number.value == device


def is_capturing(stream: int) -> bool:
    """Whether someone records the stream's work in a graph of theirs, or the driver will not say."""
    return _driver().is_capturing(c_void_p(stream), _answer.place) != 0 or _answer.number.value != 0


def _done(error: int) -> None:
    if error != 0:
        raise RuntimeError(f"a CUDA graph: the driver answers {error}")
