"""How a law judges: it calls the kernel, holds it to its manners, and compares what came with what is right."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from kernelproof.spec import UnsupportedError

from .problems import Problem

Kernel: TypeAlias = Callable[..., Any]
"""A function of arrays with the operator's own arguments: anybody's."""

AXES = {
    "conv2d": "nkpq", "conv2d.dx": "nchw", "conv2d.dweight": "kcrs", "conv2d.dbias": "k", "max_pool2d": "ncpq",
    "max_pool2d.dx": "nchw", "linear": "nk", "linear.dx": "nc", "linear.dweight": "kc", "linear.dbias": "k",
    "flatten.dx": "nchw", "cross_entropy.dlogits": "nk",
}  # fmt: skip


class LawBroken(AssertionError):  # noqa: N818 - it is the law that is broken
    """A law does not hold: where, what came, what is right, and how far they may differ.

    Of a kernel that raised ValueError or TypeError, `values` hold the `refusal`. `after` is a problem that the kernel
    meets before in the same process, if the law is not broken else; it `varies` if trying the problem does not always
    break the law.
    """

    def __init__(self, message: str, problem: Problem, index: tuple[int, ...] = (), **values: Any) -> None:
        super().__init__(message)
        self.problem, self.index, self.values = problem, index, values
        self.after: Problem | None = None
        self.varies = False


@dataclass(frozen=True)
class Differences:
    """Where a result of this `shape` is wrong: of `count` elements the first ones, and how far each is off."""

    shape: tuple[int, ...]
    count: int
    indices: tuple[tuple[int, ...], ...]
    errors: tuple[float, ...]

    @staticmethod
    def of(got: np.ndarray, expected: np.ndarray, wrong: np.ndarray, most: int = 1024) -> "Differences":
        """What the wrong elements of `got` are beside the expected ones."""
        first = np.argwhere(wrong)[:most]
        indices = tuple(tuple(each) for each in first.tolist())
        errors = (abs(float(got[index]) - float(expected[index])) for index in indices)
        return Differences(wrong.shape, int(wrong.sum()), indices, tuple(errors))


@dataclass(frozen=True)
class Declared:
    """A kernel and what its author declared: for which problems it is, how it is told a number of threads.

    `reentrant`: a second call may begin before the first has ended; `checked`: it refuses wrong calls; `precision`: the
    class of its rounding, all bits of the dtype if there is none; `rounds_as`: its class on one problem, where that
    differs.
    """

    function: Kernel
    supports: Callable[[Problem], bool]
    set_threads: Callable[[int], object] | None = None
    reentrant: bool = True
    checked: bool = False
    precision: str | None = None
    rounds_as: Callable[[Problem], str | None] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def declared(kernel: Kernel) -> Declared:
    """The kernel with its declarations; a bare function declares that it takes everything."""
    return kernel if isinstance(kernel, Declared) else Declared(kernel, lambda problem: True)


def said(error: BaseException) -> str:
    """What an exception says, whatever its author made of it."""
    try:
        return str(error)
    except Exception as worse:
        return f"(its text raises {type(worse).__name__})"


def told(problem: Problem, error: BaseException) -> LawBroken:
    """What an exception says of a kernel: that its legal call raised, or that what it gave could not be judged."""
    trace, of_kernel = error.__traceback__, False
    while trace is not None:
        of_kernel = of_kernel or trace.tb_frame.f_code is Declared.__call__.__code__
        trace = trace.tb_next
    what = "the kernel raised" if of_kernel else "what the kernel gave could not be judged:"
    refusal = f"{type(error).__name__}: {said(error)}"
    refused: dict[str, Any] = {"refusal": refusal} if of_kernel and isinstance(error, ValueError | TypeError) else {}
    return LawBroken(f"{problem.operator}: {what} {refusal}", problem, **refused)


def evaluate(kernel: Kernel, problem: Problem, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Call the kernel and hold it to its manners: the inputs and what lies round them as they were, results of its own.

    Raises UnsupportedError if the kernel is not declared for the problem.
    """
    if not declared(kernel).supports(problem):
        raise UnsupportedError(
            problem.operator, "a problem that a law leads to", "one that was declared", "Declare it."
        )
    before = {name: _state(array) for name, array in arrays.items()}
    results = problem.call(kernel, arrays)
    results = tuple(results) if isinstance(results, tuple) else (results,)
    for name, array in arrays.items():
        for did, was, is_now in zip(_DID, before[name], _state(array), strict=True):
            if was != is_now:
                raise LawBroken(f"{problem.operator}: the kernel {did} its input {name}", problem)
    host = tuple(_on_host(problem, each) for each in results)
    for result in host:
        if any(np.shares_memory(result, array) for array in arrays.values()) and problem.op.name != "flatten":
            raise LawBroken(f"{problem.operator}: the result shares memory with an input", problem)
    return host


_DID = ("wrote to", "wrote to the memory round", "changed shape, strides, dtype or flags of")


def _state(array: np.ndarray) -> tuple[bytes, bytes, str]:
    """All that a call may not change: the elements, the buffer that they lie in, the array's own description."""
    owner = array
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    whole = b"" if owner is array else owner.tobytes()
    return array.tobytes(), whole, f"{array.shape} {array.strides} {array.dtype} {array.flags.writeable}"


def _on_host(problem: Problem, result: Any) -> np.ndarray:
    if hasattr(result, "copy_to_host"):
        result = result.copy_to_host()
    elif hasattr(result, "detach"):
        result = result.detach().cpu().numpy()
    elif not isinstance(result, np.ndarray) and hasattr(result, "get"):
        result = result.get()
    if not isinstance(result, np.ndarray | np.generic):
        raise LawBroken(f"{problem.operator}: the kernel returned {type(result).__name__}, needs an array", problem)
    # Of a subclass only the numbers count, not what it says of itself.
    return np.asarray(result)


def compare(
    problem: Problem,
    came: tuple[np.ndarray, ...],
    right: tuple[np.ndarray, ...],
    allowed: tuple[np.ndarray, ...] | None = None,
    whose: str = "the specification",
) -> float:
    """The worst error over its allowance; raises LawBroken at the first element beyond it.

    Without an allowance every element is equal, or NaN where the specification has NaN. A zero's sign is not compared.
    `whose` answer is right, the message says.
    """
    if len(came) != len(right):
        raise LawBroken(f"{problem.operator}: the kernel gives {len(came)} results, needs {len(right)}", problem)
    worst = 0.0
    for which, (got, expected) in enumerate(zip(came, right, strict=True)):
        _check_kind(problem, got, expected)
        if allowed is None:
            wrong = ~((got == expected) | (np.isnan(got) & np.isnan(expected)))
            limit = np.zeros(expected.shape)
        else:
            limit = allowed[which]
            error = np.abs(got.astype(expected.dtype) - expected)
            wrong = ~(error <= limit)
            ratios = error[limit > 0] / limit[limit > 0]
            worst = max(worst, float(ratios.max(initial=0.0)))
        if wrong.any():
            differences = Differences.of(got, expected, wrong)
            index = differences.indices[0]
            raise LawBroken(
                f"{problem.operator} at {place(problem, index)}: the kernel gives {_number(got[index])}, {whose} "
                f"{_number(expected[index])}"
                + (f", at most {float(limit[index]):.3g} apart" if allowed else "")
                + f" ({differences.count} of {wrong.size} elements wrong)",
                problem,
                index,
                got=got[index].item(),
                expected=float(expected[index]),
                allowed=float(limit[index]),
                differences=differences,
            )
    return worst


def _number(value: Any) -> str:
    """Whole numbers with all their digits: they are compared exactly."""
    return str(int(value)) if np.isfinite(value) and value == int(value) and abs(value) < 2**53 else str(value)


def _check_kind(problem: Problem, got: np.ndarray, expected: np.ndarray) -> None:
    if got.shape != expected.shape:
        raise LawBroken(
            f"{problem.operator}: the kernel's result has shape {got.shape}, the specification's {expected.shape}",
            problem,
        )
    wanted = np.dtype(problem.dtype) if expected.dtype.kind == "f" else np.dtype(np.int64)
    if got.dtype.kind != wanted.kind or (wanted.kind == "f" and got.dtype != wanted):
        raise LawBroken(f"{problem.operator}: the kernel's result is {got.dtype}, needs {wanted}", problem)


def place(problem: Problem, index: tuple[int, ...]) -> str:
    """An index as a person reads it, with the letters of the axes."""
    letters = AXES.get(problem.operator, "")
    return f"[{','.join(letters)}] = {index}" if len(letters) == len(index) else f"index {index}"


def specified(problem: Problem, arrays: Mapping[str, np.ndarray], dtype: Any) -> tuple[np.ndarray, ...]:
    """The specification's results, evaluated in `dtype`."""
    given = {name: each if each.dtype.kind == "i" else each.astype(dtype) for name, each in arrays.items()}
    results = problem.specified(given)
    results = results if isinstance(results, tuple) else (results,)
    # Whole numbers were computed as int64; the kernel's answer is a float that must be exactly that.
    return tuple(np.asarray(each, np.float64) if which == 0 or problem.operator == "sgd" else each
                 for which, each in enumerate(results))  # fmt: skip


def all_zero(results: tuple[np.ndarray, ...]) -> bool:
    """Whether the problem proves nothing: a kernel that only fills its result with zeros would pass."""
    return not np.any(results[0])


def same_bits(problem: Problem, once: tuple[np.ndarray, ...], again: tuple[np.ndarray, ...], when: str) -> None:
    """Raises LawBroken, which tells `when`, at the first element whose bits differ."""
    for was, now in zip(once, again, strict=True):
        if (was.shape, was.dtype) != (now.shape, now.dtype):
            raise LawBroken(f"{problem.operator}: {when} the kernel gives {now.dtype}{now.shape}", problem)
        before, after = (np.ascontiguousarray(each).view(f"u{each.itemsize}").reshape(was.shape) for each in (was, now))
        if (before != after).any():
            index = tuple(int(axis) for axis in np.argwhere(before != after)[0])
            raise LawBroken(
                f"{problem.operator} at {place(problem, index)}: the kernel gives {now[index]!s} {when}, "
                f"{was[index]!s} before",
                problem, index, got=now[index].item(), expected=was[index].item(), allowed=0.0,
            )  # fmt: skip
