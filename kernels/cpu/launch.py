"""How a kernel's core is compiled and started: arrays made ready, work cut into short native calls, one at a time."""

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from types import FunctionType
from typing import Any

import llvmlite.binding
import numba
import numpy as np

from kernelproof.kernels.jit_cache import is_caching
from kernelproof.spec.errors import UnsupportedError
from kernelproof.spec.window import MOST

_BLOCK = 2**25
"""Multiply-adds in one native call: under 100 ms even where nothing vectorises, for Ctrl-C waits until it returns."""

_SHARE = 2**16
"""Multiply-adds that are worth a thread: waking one takes as long as tens of thousands.

On two cores of Zen 3 two workers take 3 us longer than one while both are awake, and 6 ms after 30 ms of rest: one
image through CNN2 (150 us) on both cores gained nothing in the first case.
"""

WITHIN: dict[str, Any] = {"nogil": True, "cache": is_caching(), "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
"""What only jitted code calls is compiled without a way in from Python, which takes a quarter of the time."""

serial = numba.njit(**WITHIN)
"""Decorates the serial functions that do the work of one task."""


def parallel(core: Callable[..., None]) -> Any:
    """Decorates a core: `core(first, last, *arguments)` performs the tasks `first .. last - 1` on all cores.

    Its attribute `alone` does so without the threads' machinery: each way is compiled when it is first taken.
    """
    # Compiled functions are kept by their names.
    alone = FunctionType(core.__code__, core.__globals__, f"{core.__name__}_alone", core.__defaults__, core.__closure__)
    alone.__qualname__ = f"{core.__qualname__}_alone"
    on_threads = numba.njit(nogil=True, cache=is_caching(), parallel=True)(core)
    serially = numba.njit(nogil=True, cache=is_caching())(alone)
    on_threads.alone = serially  # pyright: ignore[reportAttributeAccessIssue] - it is ours.
    return on_threads


in_turn = numba.njit(nogil=True, cache=is_caching())
"""Decorates a core that hands its workers several loops, one after the other."""

_AT_ONCE = 32
"""Multiply-adds that a micro-kernel does in the time of one plain one."""

_lock = threading.Lock()
_layer_before_fork = None
_is_started = False
_count = numba.get_num_threads
"""How many threads this Python thread's launches may use; once they are started, the short way."""
_threads: ContextVar[int | None] = ContextVar("threads", default=None)


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    """Every launch by this thread in this block runs on `count` threads, or all there are if fewer, however little its
    work. Other threads that are in such blocks at the same time have their own number."""
    token = _threads.set(count)
    try:
        yield
    finally:
        _threads.reset(token)


def launch(core: Callable[..., None], tasks: int, cost: int, *arguments: Any) -> None:
    """Perform `tasks` independent tasks of about `cost` multiply-adds each; raises UnsupportedError in a forked child.

    Neither blocks nor threads show in the result: no task sees another.
    """

    def call(core: Callable[..., None], workers: int, first: int, last: int) -> None:
        core(first, last, *arguments)

    _in_blocks(core, call, tasks, cost)


def share(core: Callable[..., None], tasks: int, cost: int, *arguments: Any) -> None:
    """As `launch`, for a core `core(workers, counter, last, *arguments)` on the micro-kernels.

    Its workers take tasks from the counter: each has a scratch of its own, and one that is held up takes fewer.
    """
    counter = np.zeros(1, np.int64)
    if tasks and _is_little(tasks, cost) and not _layer_before_fork:
        # Straight there: Python's own microseconds would be most of it.
        if not _is_started:
            _start()
        getattr(core, "alone", core)(1, counter, tasks, *arguments)
        return

    def call(core: Callable[..., None], workers: int, first: int, last: int) -> None:
        counter[0] = first
        core(min(workers, last - first), counter, last, *arguments)

    _in_blocks(core, call, tasks, cost // _AT_ONCE)


def _start() -> None:
    """Start numba's threads. What one core compiled for several workers is kept with, another loads without: its calls
    to the threads would lead nowhere, and all others of the same library with them."""
    global _is_started, _count
    numba.get_num_threads()
    # What numba's own compiled loops call: it takes a tenth of the time of asking from Python, in every small call.
    at = llvmlite.binding.address_of_symbol("get_num_threads")
    _count = ctypes.PYFUNCTYPE(ctypes.c_int)(at) if at else numba.get_num_threads
    _is_started = True


def sharers(tasks: int, cost: int) -> int:
    """How many threads `share` may run so many tasks of that cost on."""
    return 1 if _is_little(tasks, cost) else threads()


def _is_little(tasks: int, cost: int) -> bool:
    """Whether `share` has too little to do for a second thread."""
    return not _threads.get() and tasks * cost < _SHARE * _AT_ONCE


def record(**parts: Any) -> np.ndarray:
    """Named tuples of whole numbers as one argument of a core, which reads them as `record[0].part.field`.

    A named tuple that is passed itself is taken apart number by number, in microseconds.
    """
    kinds = [(name, [(field, np.int64) for field in part._fields]) for name, part in parts.items()]
    return np.array([tuple(parts.values())], np.dtype(kinds))


def _in_blocks(core: Any, call: Callable[..., None], tasks: int, cost: int) -> None:
    """Calls for the tasks, in pieces of at most a tenth of a second, on as many threads as the work is worth."""
    if _layer_before_fork == "omp":
        raise UnsupportedError(
            "kernels on cpu",
            "a process forked after kernels ran on OpenMP threads",
            "a process with threads of its own (GNU OpenMP would end this one)",
            'Start it with multiprocessing.get_context("spawn"), or set NUMBA_THREADING_LAYER=workqueue.',
        )
    if not _is_started:
        _start()
    wanted = _threads.get() or 1 + tasks * cost // _SHARE
    if wanted == 1 and hasattr(core, "alone"):
        for first, last in _blocks(tasks, cost, 1):
            call(core.alone, 1, first, last)
        return
    before = _count()
    workers = min(before, wanted)
    if workers != before:
        numba.set_num_threads(workers)
    try:
        for first, last in _blocks(tasks, cost, workers):
            with _lock:  # Two threads in parallel code at once abort the process on the workqueue layer.
                call(core, workers, first, last)
    finally:
        if workers != before:
            numba.set_num_threads(before)


def _blocks(tasks: int, cost: int, workers: int) -> Iterator[tuple[int, int]]:
    block = workers * max(1, _BLOCK // max(workers * cost, 1))
    return ((first, min(first + block, tasks)) for first in range(0, tasks, block))


def threads() -> int:
    """How many threads a launch may run on."""
    if not _is_started:
        _start()
    return min(_count(), _threads.get() or MOST)


_PLAIN = 0x1 | 0x100
"""numpy's bits for what is C-contiguous and aligned."""


def ready(array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """The same values, C-contiguous, aligned, in native byte order and read-only: what cores are compiled for.

    It copies only what is laid out otherwise. The compiler itself refuses a core that writes to it.
    """
    is_plain = type(array) is np.ndarray and array.flags.num & _PLAIN == _PLAIN and array.dtype.isnative
    if not is_plain or (dtype is not None and array.dtype != dtype):
        native = np.dtype(array.dtype if dtype is None else dtype).newbyteorder("=")
        array = np.require(array, native, ["C_CONTIGUOUS", "ALIGNED", "ENSUREARRAY"])
    view = array[...]  # As array.view() and its flags would, in half the time: every small call makes some.
    view.setflags(False)  # pyright: ignore[reportCallIssue] - `write`, by its place, which takes less.
    return view


def _remember_threads() -> None:
    global _lock, _layer_before_fork
    _lock = threading.Lock()  # The parent's may have been held by a thread that does not exist here.
    try:
        _layer_before_fork = numba.threading_layer()  # pyright: ignore[reportPrivateImportUsage] - documented.
    except ValueError:  # No thread was ever started.
        _layer_before_fork = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_remember_threads)


# Not fastmath=True, which folds isnan away; contraction alone makes multiply-add round once instead of twice.
@numba.njit(nogil=True, cache=is_caching(), fastmath={"contract"})
def add_scaled(total, factor, row):
    """`total[j] += factor * row[j]`: neighbours stay neighbours, so it vectorises without reordering any sum."""
    for j in range(len(total)):
        total[j] += factor * row[j]
