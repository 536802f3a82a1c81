"""Laws of bad input (L9): what the specification's door refuses, a kernel refuses too, and it never dies of it.

A kernel's author may check before calling it, so these laws are held where they are asked for (`level="L9"`) and for
this project's backends. `verify` keeps the kernel in a process of its own for them.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from kernelproof.spec import OPERATORS, KernelproofError

from .judging import Declared, Kernel, LawBroken, evaluate, same_bits
from .laws import Observation, law
from .metamorphic import IMAGE_BY_IMAGE
from .problems import Problem

Call: TypeAlias = tuple[str, Problem, Mapping[str, Any]]
"""What is wrong with it, its options and shapes, its arrays."""

_WRONG = (0, -1, 2.5, "2", None, (1, 2, 3))
WRONG: Mapping[str, tuple[Any, ...]] = {
    "stride": (*_WRONG, (0, 1), (1, -1)),
    "padding": (-1, 1.5, "same?", (1, 2, 3), ((1, -1), (0, 0))),
    "dilation": (*_WRONG, (1, 0)),
    "groups": (0, -1, 1.5, None, 2**40),
    "kernel_size": (*_WRONG, (0, 1), (1, -1), 2**40),
    "ceil_mode": (2, "no"),
}
"""Values of options that mean nothing."""

BEYOND = 2**58
"""Bytes that no machine can address."""


def checked(kernel: Declared) -> bool:
    """Whether these laws are asked of the kernel."""
    return kernel.checked


@law("L9", "whole", list(OPERATORS), needs=checked, apart=True)
def refuses_what_the_specification_refuses(kernel: Kernel, problem: Problem) -> Observation:
    """Wrong options, ranks, sizes, dtypes and things that are no arrays raise ValueError or TypeError.

    They leave no trace: a call has the same bits afterwards.
    """
    refused = [call for call in _wrong_calls(problem) if _refused(call)]
    generator = np.random.default_rng([problem.seed, 9])
    before = tuple(each.copy() for each in evaluate(kernel, problem, problem.arrays()))
    for which in generator.permutation(len(refused))[:8]:
        what, wrong, arrays = refused[which]
        try:
            wrong.call(kernel, arrays)
        except (ValueError, TypeError, NotImplementedError):
            continue
        except Exception as error:
            came = f"raises {type(error).__name__}: {error}"
        else:
            came = "gives a result"
        raise LawBroken(f"{problem.operator} with {what}: the kernel {came}, needs ValueError or TypeError", problem)
    same_bits(problem, before, evaluate(kernel, problem, problem.arrays()), "after calls that it refused")
    return Observation(vacuous=not refused)


@law("L9", "whole", [*IMAGE_BY_IMAGE, "relu", "relu.dx"], needs=checked, apart=True)
def survives_impossible_sizes(kernel: Kernel, problem: Problem) -> Observation:
    """A batch that no memory holds is refused, or fails as an allocation that is refused, at once."""
    arrays = problem.arrays()
    if not math.prod(problem.output) or not problem.output:
        return Observation(vacuous=True)
    result = problem.shapes["x"] if "." in problem.operator else problem.output
    images = [result, *(array.shape for name, array in arrays.items() if name in ("x", "dy"))]
    batch = BEYOND // min(math.prod(shape[1:]) for shape in images)
    try:
        huge = {
            name: np.broadcast_to(array[:1], (batch, *array.shape[1:])) if name in ("x", "dy") else array
            for name, array in arrays.items()
        }
    except ValueError:
        return Observation(vacuous=True)  # Even its description is too large.
    shapes = {name: (batch, *shape[1:]) if name == "x" else shape for name, shape in problem.shapes.items()}
    try:
        replace(problem, shapes=shapes, output=(batch, *problem.output[1:])).call(kernel, huge)
    except (ValueError, TypeError, NotImplementedError, MemoryError, OverflowError):
        pass
    except Exception as error:
        message = f"{problem.operator} of {batch} images: the kernel raises {type(error).__name__}: {error}"
        raise LawBroken(message, problem) from error
    return Observation()


@law("L9", "real", ["relu.dx", "sgd"], needs=checked)
def takes_one_array_for_two_arguments(kernel: Kernel, problem: Problem) -> Observation:
    """Arguments that are one array give the same bits as equal arrays of their own."""
    arrays = problem.arrays()
    first = next(iter(arrays))
    right = evaluate(kernel, problem, {name: arrays[first].copy() for name in arrays})
    came = evaluate(kernel, problem, dict.fromkeys(arrays, arrays[first]))
    same_bits(problem, right, came, "when its arguments are one array")
    return Observation()


def _wrong_calls(problem: Problem) -> Iterator[Call]:
    """Calls that may be wrong: the specification says which are."""
    arrays = problem.arrays()
    for name in problem.options:
        for value in WRONG.get(name, ()):
            yield f"{name}={value!r}", replace(problem, options={**problem.options, name: value}), arrays
    for name, shape in problem.shapes.items():
        for wrong in (shape[:-1], (*shape, 1), (*shape[:-1], -1), (*shape[:-1], 2**40), (*shape[:-1], 1.5)):
            if f"{name}_shape" in problem.parameters:
                yield f"{name}_shape={wrong}", replace(problem, shapes={**problem.shapes, name: wrong}), arrays
    for name, array in arrays.items():
        for what, wrong in _wrong_arrays(array):
            yield f"{name} {what}", problem, {**arrays, name: wrong}


def _wrong_arrays(array: np.ndarray) -> Iterator[tuple[str, Any]]:
    yield "None", None
    yield "a list", array.tolist()
    yield "a string", "x"
    yield "of another dtype", array.astype(np.float64 if array.dtype == np.float32 else np.float32)
    yield "of complex numbers", array.astype(np.complex64)
    yield "of objects", array.astype(object)
    if array.dtype.kind == "i":
        yield "below zero", np.full_like(array, -4)
        yield "far beyond", np.full_like(array, 2**40)
    yield "with one axis more", array[None, None]
    yield "without axes", np.zeros((), array.dtype)
    for axis, size in enumerate(array.shape):
        for other in (0, size + 1):
            shape = (*array.shape[:axis], other, *array.shape[axis + 1 :])
            yield f"of shape {shape}", np.zeros(shape, array.dtype)


def _refused(call: Call) -> bool:
    _, problem, arrays = call
    try:
        problem.call(problem.spec.door, arrays)
    except KernelproofError:
        return True
    return False
