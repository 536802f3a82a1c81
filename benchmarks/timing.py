"""Timing side by side: everybody takes turns, medians count, and a sample that waited for a core is taken again."""

import gc
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numba import prange

from kernelproof.kernels.cpu.launch import parallel
from kernelproof.kernels.cpu.vectors import LANES, Words, call, micro_kernel

WAITED = 0.015
"""The part of a sample that its threads may have waited for a core."""
TRIES = 6
"""How often a sample that waited is taken again before the least delayed counts."""
SAMPLE = 0.02
"""Seconds of a sample: a shorter call is repeated."""
GAP = 0.05
"""Seconds of rest before a sample: OpenBLAS's threads spin for 30 ms after their work, others' for 10."""
WARM = 0.02
"""Seconds of calls before a sample: a thread that slept may take 8 ms to wake."""
FEW, MUCH_SLOWER = 3, 4.0
"""Rounds of those that are so many times slower than the fastest."""

# Page faults of arrays that come and go would be counted as torch's arithmetic: set for everybody, for they live in one
# process. How threads wait for work is left as each library has it.
FAIR = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
THREADS = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
"""Where each library reads how many threads it may use; NPROC is XLA's."""


def restart_with(threads: int) -> dict[str, str]:
    """The settings that all libraries read when they are loaded; this process starts again if it does not have them."""
    needed = FAIR | dict.fromkeys(THREADS, str(threads))
    if any(os.environ.get(name) != value for name, value in needed.items()):
        print("Started again with", *(f"{name}={value}" for name, value in needed.items()), flush=True)
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **needed})
    return needed


@dataclass(frozen=True)
class Timing:
    """Seconds of a call: the median over samples, the least, and the middle half's width over the median."""

    seconds: float
    least: float
    spread: float

    @staticmethod
    def of(samples: list[float]) -> "Timing":
        low, median, high = np.percentile(samples, (25, 50, 75))
        return Timing(float(median), min(samples), float((high - low) / median))


@dataclass
class Samples:
    """How many samples were taken, taken again because they waited, and kept though all their tries had waited."""

    taken: int = 0
    rejected: int = 0
    kept_late: int = 0


def interleaved(calls: Mapping[str, Callable[[], Any]], rounds: int, samples: Samples) -> dict[str, Timing]:
    """Each call's timing, from rounds in which all take turns, each round begun by another."""
    counts, once = {}, {}
    for name, each in calls.items():
        each()
        once[name] = min(_seconds(each, 1) for _ in range(3))
        counts[name] = max(1, int(SAMPLE / once[name]))
    slow = {name for name in calls if once[name] > MUCH_SLOWER * min(once.values())}
    taken: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    try:
        for which in range(rounds):
            names = list(calls)
            for name in names[which % len(names) :] + names[: which % len(names)]:
                if name not in slow or which < FEW:
                    taken[name].append(_sample(calls[name], counts[name], samples))
    finally:
        gc.enable()
    return {name: Timing.of(each) for name, each in taken.items()}


def _sample(each: Callable[[], Any], count: int, samples: Samples) -> float:
    tries: list[tuple[float, float]] = []
    while len(tries) < TRIES:
        time.sleep(GAP)
        # Wakes the threads, and brings back what the others' turns drove out of the caches.
        warm = time.perf_counter() + WARM
        while time.perf_counter() < warm:
            each()
        waited = _waited()
        seconds = _seconds(each, count)
        tries.append(((_waited() - waited) / (seconds * count), seconds))
        samples.taken += 1
        if tries[-1][0] <= WAITED:
            return seconds
        samples.rejected += 1
    samples.kept_late += 1
    return min(tries)[1]


def _seconds(each: Callable[[], Any], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        each()
    return (time.perf_counter() - started) / count


def _waited() -> float:
    """Seconds that this process's threads were ready and had no core, where the system tells."""
    total = 0
    for schedstat in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(schedstat.read_text().split()[1])
        except OSError:  # The thread ended meanwhile.
            continue
    return total / 1e9


CHAINS = 12 if LANES == 8 else 24
"""Independent sums: enough to hide an FMA's latency, few enough to stay in the registers."""


@micro_kernel
def multiply_in_registers(words: Words, count: Any, y: Any) -> None:
    """`count` rounds of one fused multiply-add on each of the chains; no memory."""
    sums = [words.load(words.at(y, words.size * chain)) for chain in range(CHAINS)]
    factor = words.constant(0.5)
    with words.loop(count, *sums) as loop:
        loop.carry(*(words.fma(each, factor, factor) for each in loop.carried))
    for chain, each in enumerate(loop.results):
        words.store(each, words.at(y, words.size * chain))


@parallel
def _on_each(first, last, routine, count, y):
    for thread in prange(first, last):
        call(routine, (count, y[thread].ctypes.data))


@parallel
def _copied(first, last, x, y):
    for block in prange(first, last):
        y[block] = x[block]


def peak(threads: int) -> float:
    """Floating-point operations a second of all threads, in loops of fused multiply-adds on registers."""
    sums, count = np.zeros((threads, CHAINS * LANES), np.float32), 2**19
    return (
        2
        * threads
        * count
        * CHAINS
        * LANES
        / _best(threads, lambda: _on_each(0, threads, multiply_in_registers.address(), count, sums))
    )


def bandwidth(threads: int) -> float:
    """Bytes a second that all threads read and write together, copying far more than the caches hold."""
    x = np.ones((threads * 16, 2**20), np.float32)
    y = np.empty_like(x)
    return (x.nbytes + y.nbytes) / _best(threads, lambda: _copied(0, len(x), x, y))


def _best(threads: int, work: Callable[[], Any]) -> float:
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        work()
        return min(_seconds(work, 1) for _ in range(7))
    finally:
        numba.set_num_threads(before)
