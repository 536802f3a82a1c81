"""The laws: each a theorem about one operator's kernel, decided exactly or within a derived bound.

A law draws its problems from the operator table, so it is written once for every operator, gradient and kernel. `check`
raises `LawBroken` with the element that is wrong, what came and what is right.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from kernelproof.spec import OPERATORS, OPS, Dual, duals

from .bounds import rounding_bound
from .problems import Problem
from .values import largest_whole

Kernel: TypeAlias = Callable[..., Any]
"""A function of arrays with the operator's own arguments: anybody's."""

AXES = {
    "conv2d": "nkpq", "conv2d.dx": "nchw", "conv2d.dweight": "kcrs", "conv2d.dbias": "k", "max_pool2d": "ncpq",
    "max_pool2d.dx": "nchw", "linear": "nk", "linear.dx": "nc", "linear.dweight": "kc", "linear.dbias": "k",
    "flatten.dx": "nchw", "cross_entropy.dlogits": "nk",
}  # fmt: skip


class LawBroken(AssertionError):  # noqa: N818 - it is the law that is broken
    """A law does not hold: where, what came, what is right, and how far they may differ."""

    def __init__(self, message: str, problem: Problem, index: tuple[int, ...] = (), **values: Any) -> None:
        super().__init__(message)
        self.problem, self.index, self.values = problem, index, values


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
class Observation:
    """What one passed check measured: the worst error over its bound, and the chance that a wrong kernel escaped it."""

    ratio: float = 0.0
    escape: float | None = None
    vacuous: bool = False


@dataclass(frozen=True)
class Law:
    """A theorem `name` at an evidence `level`, checked on problems with values of one `family`.

    `where` says which problems it has something to say about.
    """

    level: str
    name: str
    statement: str
    family: str
    holds_for: frozenset[str]
    check: Callable[[Kernel, Problem], Observation]
    where: Callable[[Problem], bool]


LAWS: dict[str, Law] = {}
"""Every law by its name; `@law` fills it."""


def law(
    level: str, family: str, operators: Iterable[str], where: Callable[[Problem], bool] = lambda problem: True
) -> Callable[[Callable[..., Observation]], Law]:
    """Register the check below as a law: its name is the theorem, its docstring the statement."""

    def register(check: Callable[[Kernel, Problem], Observation]) -> Law:
        made = Law(level, check.__name__, (check.__doc__ or "").strip(), family, frozenset(operators), check, where)
        LAWS[made.name] = made
        return made

    return register


RATIONAL = [name for name in OPERATORS if OPS[name.partition(".")[0]].rational]
LINEAR = [name for name in OPERATORS if OPS[name.partition(".")[0]].linear_in]


def evaluate(kernel: Kernel, problem: Problem, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Call the kernel and hold it to its manners: result's shape and dtype, inputs untouched, result its own memory."""
    before = {name: array.tobytes() for name, array in arrays.items()}
    results = problem.call(kernel, arrays)
    results = results if isinstance(results, tuple) else (results,)
    for name, array in arrays.items():
        if array.tobytes() != before[name]:
            raise LawBroken(f"{problem.operator}: the kernel wrote to its input {name}", problem)
    host = tuple(_on_host(problem, each) for each in results)
    for result in host:
        if any(np.shares_memory(result, array) for array in arrays.values()) and problem.op.name != "flatten":
            raise LawBroken(f"{problem.operator}: the result shares memory with an input", problem)
    return host


def _on_host(problem: Problem, result: Any) -> np.ndarray:
    if hasattr(result, "copy_to_host"):
        result = result.copy_to_host()
    elif hasattr(result, "detach"):
        result = result.detach().cpu().numpy()
    elif not isinstance(result, np.ndarray) and hasattr(result, "get"):
        result = result.get()
    if not isinstance(result, np.ndarray | np.generic):
        raise LawBroken(f"{problem.operator}: the kernel returned {type(result).__name__}, needs an array", problem)
    return np.asarray(result)


def compare(
    problem: Problem,
    came: tuple[np.ndarray, ...],
    right: tuple[np.ndarray, ...],
    allowed: tuple[np.ndarray, ...] | None = None,
) -> float:
    """The worst error over its allowance; raises LawBroken at the first element beyond it.

    Without an allowance every element is equal, or NaN where the specification has NaN. A zero's sign is not compared.
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
                f"{problem.operator} at {_where(problem, index)}: the kernel gives {got[index]!s}, the specification "
                f"{expected[index]!s}"
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


def _check_kind(problem: Problem, got: np.ndarray, expected: np.ndarray) -> None:
    if got.shape != expected.shape:
        raise LawBroken(
            f"{problem.operator}: the kernel's result has shape {got.shape}, the specification's {expected.shape}",
            problem,
        )
    wanted = np.dtype(problem.dtype) if expected.dtype.kind == "f" else np.dtype(np.int64)
    if got.dtype.kind != wanted.kind or (wanted.kind == "f" and got.dtype != wanted):
        raise LawBroken(f"{problem.operator}: the kernel's result is {got.dtype}, needs {wanted}", problem)


def _where(problem: Problem, index: tuple[int, ...]) -> str:
    letters = AXES.get(problem.operator, "")
    return f"[{','.join(letters)}] = {index}" if len(letters) == len(index) else f"index {index}"


def specified(problem: Problem, arrays: Mapping[str, np.ndarray], dtype: Any) -> tuple[np.ndarray, ...]:
    """The specification's results, evaluated in `dtype`."""
    given = {name: each if each.dtype.kind == "i" else each.astype(dtype) for name, each in arrays.items()}
    results = problem.call(problem.spec, given)
    results = results if isinstance(results, tuple) else (results,)
    # Whole numbers were computed as int64; the kernel's answer is a float that must be exactly that.
    return tuple(np.asarray(each, np.float64) if which == 0 or problem.operator == "sgd" else each
                 for which, each in enumerate(results))  # fmt: skip


def all_zero(results: tuple[np.ndarray, ...]) -> bool:
    """Whether the problem proves nothing: a kernel that only fills its result with zeros would pass."""
    return not np.any(results[0])


@law("L1", "whole", RATIONAL)
def equals_the_specification_on_whole_numbers(kernel: Kernel, problem: Problem) -> Observation:
    """On whole numbers whose sums are exact in any order, every element equals the specification's."""
    # Kernel minus specification is a polynomial of degree at most 2: not zero, it vanishes at a random point with
    # probability at most 2 / |S| (Schwartz 1980, Zippel 1979). Draw until the product is below 1e-9.
    escape, draw, vacuous = 1.0, 0, True
    once = 2 / (2 * largest_whole(problem) + 1) if problem.op.linear_in else None
    while draw == 0 or (once is not None and escape > 1e-9):
        drawn = problem.redrawn(draw)
        arrays = drawn.arrays()
        right = specified(drawn, arrays, np.int64)
        compare(drawn, evaluate(kernel, drawn, arrays), right)
        vacuous, draw = vacuous and all_zero(right), draw + 1
        escape *= once if once is not None else 1.0
    return Observation(escape=escape if once is not None else None, vacuous=vacuous)


@law("L1", "ties", [name for name in RATIONAL if name.startswith(("max_pool2d", "relu"))])
def equals_the_specification_where_values_tie(kernel: Kernel, problem: Problem) -> Observation:
    """With ties in most windows and zeros at the rectifier, the choice is the specification's."""
    arrays = problem.arrays()
    right = specified(problem, arrays, np.int64)
    compare(problem, evaluate(kernel, problem, arrays), right)
    return Observation(vacuous=all_zero(right))


@law("L2", "mantissa", RATIONAL)
def keeps_every_bit_of_the_significand(kernel: Kernel, problem: Problem) -> Observation:
    """Odd numbers that fill the significand come through multiplied by one and added to zero, bit for bit."""
    arrays = problem.arrays()
    right = specified(problem, arrays, np.int64)
    came = evaluate(kernel, problem, arrays)
    try:
        compare(problem, came, right)
    except LawBroken as broken:
        if broken.index and came[0].shape == right[0].shape:
            bits = kept_bits(came[0], right[0])
            raise LawBroken(
                f"{broken}; {precision_class(bits)} ({bits} bits kept)", problem, broken.index, **broken.values
            ) from None
        raise
    return Observation(vacuous=all_zero(right))


def kept_bits(came: np.ndarray, right: np.ndarray) -> int:
    """Significand bits that survive, by the worst relative error of the nonzero elements."""
    nonzero = right != 0
    with np.errstate(invalid="ignore"):
        worst = np.abs(came[nonzero].astype(np.float64) / right[nonzero] - 1).max(initial=0.0)
    return 0 if not np.isfinite(worst) else int(min(53, max(0, np.floor(-np.log2(max(worst, 2.0**-60))))))


def precision_class(bits: int) -> str:
    """The arithmetic that keeps so many bits of 24: fp32, 3xTF32, TF32 (fp16 alike), bf16."""
    named = ((24, "fp32"), (20, "3xTF32"), (10, "TF32 or fp16"), (7, "bf16"))
    return next((f"computed in {name}" for least, name in named if bits >= least), "no known precision class")


@law("L3", "real", list(OPERATORS))
def rounds_within_the_derived_bound(kernel: Kernel, problem: Problem) -> Observation:
    """On reals, every element is within the rounding that its own sum of products allows."""
    arrays = problem.arrays()
    # The reference rounds too, less: float64 for float32, extended precision (where there is one) for float64.
    wide = np.float64 if problem.dtype == "float32" else np.longdouble
    given = {name: each if each.dtype.kind == "i" else each.astype(wide) for name, each in arrays.items()}
    results = problem.call(problem.spec, given)
    right = results if isinstance(results, tuple) else (results,)
    allowed = tuple(
        kernels + references
        for kernels, references in zip(
            rounding_bound(problem, arrays, problem.dtype), rounding_bound(problem, arrays, wide), strict=True
        )
    )
    if problem.options.get("return_indices"):
        # Indices are exact by their nature.
        allowed = (*allowed, np.zeros(problem.output))
    came = evaluate(kernel, problem, arrays)
    return Observation(ratio=compare(problem, came, tuple(map(np.asarray, right)), allowed), vacuous=all_zero(right))


@law("L4", "special", RATIONAL)
def puts_special_values_where_the_specification_does(kernel: Kernel, problem: Problem) -> Observation:
    """NaN, infinities, zeros and subnormals come out exactly where the specification puts them."""
    arrays = problem.arrays()
    with np.errstate(invalid="ignore"):
        right = specified(problem, arrays, problem.dtype)
        compare(problem, evaluate(kernel, problem, arrays), right)
    return Observation(vacuous=all_zero(right))


@law("L4", "special", ["max_pool2d"])
def returns_an_input_bit_for_bit(kernel: Kernel, problem: Problem) -> Observation:
    """A maximum is a copy of the input at the winning index, the sign of its zero included."""
    problem = replace(problem, options=problem.options | {"return_indices": True})
    arrays = problem.arrays()
    came, winner = evaluate(kernel, problem, arrays)
    n, c = came.shape[:2]
    image, channel = np.ogrid[:n, :c]
    row, column = np.divmod(winner, arrays["x"].shape[3])
    copied = arrays["x"][image[..., None, None], channel[..., None, None], row, column]
    number = ~np.isnan(copied)  # A NaN's payload is nobody's promise.
    if not np.array_equal(came[number].view(_bits(came)), copied[number].view(_bits(came))):
        index = tuple(int(axis) for axis in np.argwhere(number & (np.signbit(came) != np.signbit(copied)))[0])
        raise LawBroken(
            f"max_pool2d at {_where(problem, index)}: the kernel gives {came[index]!s}, the winning input is "
            f"{copied[index]!s}", problem, index, got=float(came[index]), expected=float(copied[index]), allowed=0.0,
        )  # fmt: skip
    return Observation()


def _bits(array: np.ndarray) -> Any:
    return np.dtype(f"u{array.dtype.itemsize}")


@law("L5", "whole", [name for name in LINEAR if "." in name])
def is_the_adjoint_of_the_forward(kernel: Kernel, problem: Problem) -> Observation:
    """`<gradient(dy), v> = <dy, forward(v)>` for every direction v, as whole numbers."""
    arrays = problem.arrays()
    argument = problem.operator.partition(".d")[2]
    came = evaluate(kernel, problem, arrays)[0]
    direction = _direction(problem, came.shape)
    # Linear in the argument alone: the others hold their values; what is not part of the product is zero or absent.
    forward = {name: np.zeros(shape, np.int64) for name, shape in problem.shapes.items() if name != "bias"}
    forward |= {name: array.astype(np.int64) for name, array in arrays.items() if name in forward}
    moved = replace(problem, operator=problem.op.name).call(problem.op.forward, forward | {argument: direction})
    left, right = int((came.astype(np.int64) * direction).sum()), int((arrays["dy"].astype(np.int64) * moved).sum())
    if left != right:
        raise LawBroken(
            f"{problem.operator}: <gradient(dy), v> is {left}, <dy, forward(v)> is {right}", problem,
            got=left, expected=right, allowed=0,
        )  # fmt: skip
    return Observation(escape=1 / _DIRECTIONS, vacuous=not right)


_DIRECTIONS = 2001


def _direction(problem: Problem, shape: tuple[int, ...]) -> np.ndarray:
    half = _DIRECTIONS // 2
    return np.random.default_rng([problem.seed, 5]).integers(-half, half + 1, shape)


@law("L5", "ties", ["max_pool2d.dx", "relu.dx"])
def is_the_exact_derivative(kernel: Kernel, problem: Problem) -> Observation:
    """`<gradient(dy), v>` is the derivative of `<dy, forward(x)>` along v, by dual numbers over whole numbers."""
    arrays = problem.arrays()
    came = evaluate(kernel, problem, arrays)[0]
    direction = _direction(problem, came.shape)
    whole = {name: array.astype(np.int64).astype(object) for name, array in arrays.items()}
    forward = replace(problem, operator=problem.op.name, options={**problem.options, "return_indices": False}).call(
        problem.op.forward, {"x": duals(whole["x"], direction.astype(object))}
    )
    along = sum(dy * y.tangent for dy, y in zip(whole["dy"].flat, forward.flat, strict=True) if isinstance(y, Dual))
    left = int((came.astype(np.int64) * direction).sum())
    if left != along:
        raise LawBroken(
            f"{problem.operator}: <gradient(dy), v> is {left}, the derivative along v is {along}", problem,
            got=left, expected=int(along), allowed=0,
        )  # fmt: skip
    return Observation(escape=1 / _DIRECTIONS, vacuous=not along)
