"""Laws of how a kernel behaves (L7, L8): call after call, thread beside thread, in its own memory."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from kernelproof.spec import OPERATORS, UnsupportedError

from .coverage import LAYERS, MANY_CHANNELS, MANY_FILTERS, MATRICES
from .judging import Kernel, LawBroken, declared, evaluate, same_bits
from .laws import Observation, Reference, law
from .memory import POISONS, Overrun, on_poisoned_memory
from .neighbours import neighbour, of_one_shape
from .pages import PROTECTS, in_read_only_pages
from .problems import Problem

ALIASED = (
    "conv2d", "conv2d.dx", "conv2d.dweight", "max_pool2d.dx", "linear", "linear.dx", "linear.dweight", "relu.dx", "sgd",
)  # fmt: skip
"""Operators with several arguments that can have one shape."""

MOMENT = 0.2
"""Seconds that threads, which a call has begun and left behind, have to be done with its result."""

THREADS = (1, 2, 3, os.cpu_count() or 1)
"""The last number is what a kernel is left with whose declaration cannot be undone."""


@law("L7", "real", list(OPERATORS))
def gives_the_same_bits_again(kernel: Kernel, problem: Problem) -> Observation:
    """The same call gives the same bits, whatever became of its result and of a neighbouring problem in between.

    The neighbour differs in one thing (values, dtype, layout, batch, bias, one option), which no cache may overlook.
    """
    between, before = neighbour(problem, declared(kernel).supports), set(threading.enumerate())
    arrays, others = problem.arrays(), between.arrays()
    first = evaluate(kernel, problem, arrays)
    kept = _copies(first)
    if begun := set(threading.enumerate()) - before:
        _wait_for(begun)
        same_bits(problem, kept, first, "once the threads that it began were done")
    after = evaluate(kernel, between, others)
    told = f"called after another problem, {_change(problem, between)}"
    Reference.of(kernel, between, others).judge(after, told)
    kept_after = _copies(after)
    same_bits(problem, kept, first, "once a later call was made")
    for result in (*first, *after):
        if result.flags.writeable and problem.op.name != "flatten":  # It may give a view of its input.
            result[...] = -1  # A result is its caller's to change.
    same_bits(problem, kept, evaluate(kernel, problem, arrays), "when the same call is made again")
    same_bits(between, kept_after, evaluate(kernel, between, others), "when the same call is made again")
    return Observation()


@law("L7", "real", list(OPERATORS))
def sees_that_its_inputs_have_changed(kernel: Kernel, problem: Problem) -> Observation:
    """The same arrays with other values give the other values' result: nothing is remembered by identity or address.

    First one element of one array is another or two have changed places, then all are others: no part of the values
    and no sum over them may stand for all of them.
    """
    if problem.layout in ("read_only", "broadcast"):
        problem = replace(problem, layout="contiguous")
    arrays, others = problem.arrays(), problem.redrawn(1).arrays()
    evaluate(kernel, problem, arrays)
    generator = np.random.default_rng([problem.seed, 7])
    name = generator.choice(list(arrays))
    if size := arrays[name].size:
        one, two = generator.integers(size, size=2)
        array = arrays[name].flat
        array[one], array[two] = generator.choice([others[name].flat[one], array[two]]), array[one]
        came = evaluate(kernel, problem, arrays)
        Reference.of(kernel, problem, arrays).judge(came, f"after an element or two of {name} were changed")
    for name, values in others.items():
        arrays[name][...] = values
    came = evaluate(kernel, problem, arrays)
    Reference.of(kernel, problem, arrays).judge(came, "after the values in its arrays were changed")
    return Observation()


def _is_cheap_as_one_shape(problem: Problem) -> bool:
    """Of one shape, there are as many images as filters, or as many filters as channels: few hundred are too many."""
    if problem.op.name != "conv2d":
        return True
    filters, channels = problem.shapes["weight"][:2]
    return filters + channels < 150 and min(filters // problem.options["groups"], channels) <= 30


@law("L7", "real", ALIASED, _is_cheap_as_one_shape, never=(MANY_FILTERS, MANY_CHANNELS, MATRICES, LAYERS))
def keeps_apart_what_was_one_array(kernel: Kernel, problem: Problem) -> Observation:
    """One array may be two arguments, and the next call of these shapes has two: nothing remembers which were one."""
    problem = of_one_shape(problem)
    arrays, others = problem.arrays(), problem.redrawn(1).arrays()
    first, *_ = arrays
    alike = [name for name in arrays if arrays[name].shape == arrays[first].shape]
    one = arrays | dict.fromkeys(alike, arrays[first])
    # Twice each, with the same bits: what is remembered may be served from the second call on.
    names = " and ".join(alike)
    for given, when in (
        (one, f"where {names} are one array"),
        (others, f"after a call in which {names} were one array"),
    ):
        reference, once = Reference.of(kernel, problem, given), ()
        for _ in range(2):
            came = evaluate(kernel, problem, given)
            reference.judge(came, when)
            same_bits(problem, once or came, came, f"when the same call is made again, {when}")
            once = _copies(came)
    return Observation()


@law("L7", "real", list(OPERATORS), needs=lambda kernel: kernel.set_threads is not None)
def gives_the_same_bits_on_any_number_of_threads(kernel: Kernel, problem: Problem) -> Observation:
    """1, 2, 3 and all threads give the same bits. For kernels that declare how they are told the number."""
    set_threads = declared(kernel).set_threads
    if set_threads is None:
        raise UnsupportedError(problem.operator, "a kernel without threads=", "how to tell it a number", "Declare it.")
    arrays, once = problem.arrays(), ()
    for count in THREADS:
        with contextlib.ExitStack() as until_done:
            told = set_threads(count)
            if isinstance(told, contextlib.AbstractContextManager):
                until_done.enter_context(told)
            came = _copies(evaluate(kernel, problem, arrays))
        same_bits(problem, once or came, came, f"on {count} threads")
        once = once or came
    return Observation()


@law("L7", "real", list(OPERATORS), needs=lambda kernel: kernel.reentrant)
def gives_the_same_bits_beside_other_calls(kernel: Kernel, problem: Problem) -> Observation:
    """Threads that call at once, two with the same arrays, one with a neighbour's, get the bits they get alone."""
    between = neighbour(problem, declared(kernel).supports)
    calls = [(problem, problem.arrays()), (between, between.arrays())]
    alone = [_copies(evaluate(kernel, *call)) for call in calls]
    at_once = [0, 0, 1]
    together = threading.Barrier(len(at_once))

    def call(which: int) -> list[tuple[np.ndarray, ...]]:
        together.wait()
        return [evaluate(kernel, *calls[which]) for _ in range(2)]

    with _switching_often(), ThreadPoolExecutor(len(at_once)) as threads:
        came = list(threads.map(call, at_once))
    for which, results in zip(at_once, came, strict=True):
        for result in results:
            same_bits(calls[which][0], alone[which], result, "beside calls of other threads")
    return Observation()


@law("L8", "real", list(OPERATORS))
def touches_no_memory_but_its_own(kernel: Kernel, problem: Problem) -> Observation:
    """The same bits whatever unwritten memory holds, and nothing written beside an array.

    For the memory that numpy allocates, the inputs' included: it is poisoned, and fenced on both sides.
    """
    right = _copies(evaluate(kernel, problem, problem.arrays()))
    for poison in POISONS:
        try:
            came = on_poisoned_memory(poison, lambda: evaluate(kernel, problem, problem.arrays()))
        except Overrun as overrun:
            raise LawBroken(f"{problem.operator}: something was written {overrun}", problem) from None
        same_bits(problem, right, came, f"where unwritten memory is filled with {poison:#x}")
    return Observation()


@law("L8", "real", list(OPERATORS), needs=lambda kernel: PROTECTS, apart=True)
def reads_its_inputs_and_nothing_beside_them(kernel: Kernel, problem: Problem) -> Observation:
    """The kernel survives inputs in memory that can only be read, with none before the first byte or after the last."""
    drawn = problem.arrays()
    for at_the_end in (True, False):
        # What it gives is other laws' business.
        evaluate(kernel, problem, {name: in_read_only_pages(array, at_the_end) for name, array in drawn.items()})
    return Observation()


def _wait_for(threads: set[threading.Thread]) -> None:
    """Until these are done, or have had their time: a pool's are never done."""
    until = time.monotonic() + MOMENT
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))


def _copies(results: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return tuple(result.copy() for result in results)


def _change(problem: Problem, other: Problem) -> str:
    """What a neighbour has changed, in words."""
    was = {"dtype": problem.dtype, "layout": problem.layout, **problem.options, **problem.shapes}
    now = {"dtype": other.dtype, "layout": other.layout, **other.options, **other.shapes}
    names = [name for name in was | now if was.get(name) != now.get(name)]
    return " and ".join(f"{name} {was.get(name)} then, {now.get(name)} now" for name in names) or "other values"


@contextlib.contextmanager
def _switching_often() -> Iterator[None]:
    """Python changes threads as often as it can: small problems would else be done before another thread begins."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
