"""Kernels compiled to PTX once, kept on disk, and launched through the driver with little ado.

numba's own launch examines every argument each time; here a signature says once what they are. What is compiled is what
the tests look at without a GPU: the same PTX.
"""

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import os
import re
import struct
import threading
from typing import Any

from numba import cuda
from numba.cuda import types

from kernelproof.kernels.files import write_whole
from kernelproof.kernels.jit_cache import cache_folder
from kernelproof.spec.errors import ParameterError

from ..ptx import store_global_word
from . import tape
from .arrays import DeviceArray
from .tape import Address, Launch

_FORMATS = {types.int64: "q", types.int32: "i4x", types.float32: "f4x", types.float64: "d"}
_LOCK = threading.Lock()
THOUGHT_OF = {"H200": ((9, 0), 132), "A100": ((8, 0), 108), "A10": ((8, 6), 72), "L4": ((8, 9), 58), "T4": ((7, 5), 40)}
"""GPUs that are only thought of: compute capability and multiprocessors. Their numbers are -1, -2, ..."""
OLDER = "KERNELPROOF_COMPUTE_CAPABILITY"
"""The environment's name for the compute capability of an older GPU, such as 8.6, whose kernels this one is to run."""


class Kernel:
    """A function of device memory addresses and numbers, or arrays, for blocks of `threads` threads."""

    def __init__(
        self, name: str, function: Any, signature: Any, threads: int, features: str = "", most_shared: int = 0
    ) -> None:
        self.name, self.function, self.signature, self.threads = name, function, signature, threads
        self.features, self.most_shared = features, most_shared
        self._formats = struct.Struct("<" + "".join(_slots(each) for each in signature.args))
        self._loaded: dict[int, Any] = {}
        self._thread = threading.local()

    def ptx(self, capability: tuple[int, int]) -> str:
        """What is compiled for a GPU of this compute capability."""
        text, _ = cuda.compile_ptx(
            self.function, self.signature, cc=(*capability, self.features), launch_bounds=(self.threads, 1)
        )
        return text

    def __call__(self, blocks: int | tuple[int, int], stream: int, *arguments: Any, shared: int = 0) -> None:
        """Launch on the current GPU with so many bytes of dynamic shared memory; no blocks, no launch."""
        across, down = blocks if isinstance(blocks, tuple) else (blocks, 1)
        if across * down == 0:
            return
        values: list[Any] = []
        for argument in arguments:
            _flatten(argument, values)
        running = tape.running()
        function = 0 if running is not None and running.is_dry else self._function()
        if running is not None:
            addresses = tuple((slot, each) for slot, each in enumerate(values) if isinstance(each, Address))
            sizes = (across, down), self.threads, shared
            running.launches.append(Launch(self.name, int(function), *sizes, self._formats.pack(*values), addresses))
            if running.is_dry:
                return
        slots, pointers = self._slots_of_thread()
        self._formats.pack_into(slots, 0, *values)
        where = ctypes.addressof(pointers)
        _check(
            self.name,
            _driver().cuLaunchKernel(function, across, down, 1, self.threads, 1, 1, shared, stream, where, 0),
        )

    def _slots_of_thread(self) -> tuple[Any, Any]:
        """Where this thread writes the arguments, and their addresses; the driver reads them before it returns."""
        try:
            return self._thread.slots, self._thread.pointers
        except AttributeError:
            slots = self._thread.slots = ctypes.create_string_buffer(self._formats.size)
            start, count = ctypes.addressof(slots), self._formats.size // 8
            pointers = self._thread.pointers = (ctypes.c_uint64 * count)(*range(start, start + 8 * count, 8))
            return slots, pointers

    def _function(self) -> Any:
        """As the driver knows it on the current GPU."""
        error, device = _driver().cuCtxGetDevice()
        function = self._loaded.get(int(device)) if int(error) == 0 else None
        return self._load() if function is None else function

    def _load(self) -> Any:
        device, driver = cuda.current_context().device, _driver()
        with _LOCK:
            if device.id in self._loaded:  # By another thread, while this one waited.
                return self._loaded[device.id]
            text = self._cached_ptx(_own_capability(device))
            library = _check(self.name, driver.cuModuleLoadData(text.encode() + b"\0"))
            entry = re.search(r"\.entry (\w+)\(", text)
            assert entry is not None
            function = _check(self.name, driver.cuModuleGetFunction(library, entry[1].encode()))
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            if self.most_shared:
                _check(self.name, driver.cuFuncSetAttribute(function, attribute, self.most_shared))
            self._loaded[device.id] = function
        return function

    def _cached_ptx(self, capability: tuple[int, int]) -> str:
        folder = cache_folder()
        if folder is None:
            return self.ptx(capability)
        versions = f"{importlib.metadata.version('numba-cuda')} {capability}{self.features} {self.signature}"
        key = hashlib.sha256(f"{self.name} {versions}".encode()).hexdigest()[:24]
        path = folder / f"{key}.ptx"
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
        text = self.ptx(capability)
        with contextlib.suppress(OSError):  # A full disk keeps nothing, and stops nobody.
            write_whole(path, text.encode())
        return text


def _slots(kind: Any) -> str:
    """What one argument is passed as: an array as numba's structure, a tuple as its entries."""
    if isinstance(kind, types.Array):
        return "q" * (5 + 2 * kind.ndim)
    if isinstance(kind, types.BaseTuple):
        return "".join(_slots(each) for each in kind)
    return _FORMATS[kind]


def _flatten(argument: Any, values: list[Any]) -> None:
    if isinstance(argument, DeviceArray):
        values += (0, 0, argument.size, argument.dtype.itemsize, argument.address, *argument.shape, *argument.strides)
    elif isinstance(argument, tuple) and argument and isinstance(argument[0], tuple):
        for each in argument:
            _flatten(each, values)
    elif isinstance(argument, tuple):
        values += argument
    else:
        values.append(argument)


@functools.cache
def _driver() -> Any:
    import cuda.bindings.driver as driver  # pyright: ignore[reportMissingImports] - it comes with numba-cuda.

    return driver


@functools.cache
def capability(device: int) -> tuple[int, int]:
    """The compute capability that plans are made for: that of the GPU of that number, or the older one asked for."""
    own = _thought_of(device)[0] if device < 0 else _own_capability(cuda.gpus[device])
    asked = os.environ.get(OLDER)
    if asked is None:
        return own
    came = re.fullmatch(r"(\d+)\.(\d)", asked)
    older = None if came is None else (int(came[1]), int(came[2]))
    # Hopper's own instructions are on no later GPU.
    if older is None or older > own or (older == (9, 0) and own != older):
        needed = f"a compute capability up to {own[0]}.{own[1]}, 9.0 on Hopper alone, such as 8.6"
        raise ParameterError("kernels", f"{OLDER}={asked}", needed, "Correct it, or unset it.")
    return older


def _own_capability(device: Any) -> tuple[int, int]:
    major, minor = device.compute_capability
    return major, minor


@functools.cache
def multiprocessors(device: int) -> int:
    """Of the GPU of that number."""
    return _thought_of(device)[1] if device < 0 else cuda.gpus[device].MULTIPROCESSOR_COUNT


def _thought_of(device: int) -> tuple[tuple[int, int], int]:
    return list(THOUGHT_OF.values())[-1 - device]


def _check(name: str, result: tuple[Any, ...]) -> Any:
    error, *values = result
    if int(error) != 0:
        raise RuntimeError(f"{name}: the CUDA driver answers {error.name}")
    return values[0] if values else None


def _zeros(first, words):
    for i in range(cuda.grid(1), words, cuda.gridsize(1)):
        store_global_word(first + types.int64(i) * 4, 0)


_ZEROS = Kernel("zeros", _zeros, types.void(types.int64, types.int64), 256)


def fill_with_zeros(array: DeviceArray) -> None:
    """On the array's stream; it has to lie in one piece of whole words."""
    words = array.size * array.dtype.itemsize // 4
    blocks = min(-(-words // _ZEROS.threads), 8 * multiprocessors(array.place.device))
    _ZEROS(blocks, array.place.stream, array.address, words)
