"""The laws: each a theorem about one operator's kernel, decided exactly or within a derived bound.

A law draws its problems from the operator table, so it is written once for every operator, gradient and kernel. `check`
raises `LawBroken` with the element that is wrong, what came and what is right.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from kernelproof.spec import OPERATORS, OPS, Dual, duals
from kernelproof.spec.errors import UnsupportedError

from .bounds import rounding_bound
from .coverage import STANDS_FOR_MANY
from .judging import Declared, Kernel, LawBroken, all_zero, compare, declared, evaluate, place, specified
from .problems import LAYOUTS, Problem, layouts_of
from .values import INEXACT, largest_whole, significand_bits


@dataclass(frozen=True)
class Observation:
    """What one passed check measured: the worst error over its bound, and the chance that a wrong kernel escaped it.

    `rounded_as` is the class whose numbers and bound it was, if not the one that was declared.
    """

    ratio: float = 0.0
    escape: float | None = None
    vacuous: bool = False
    rounded_as: str | None = None


@dataclass(frozen=True)
class Law:
    """A theorem `name` at an evidence `level`, checked on problems with values of one `family`.

    `where` says which problems it has something to say about, `never` which predicates none of those has, `needs` what
    has to be declared of a kernel. `apart`: a kernel may die of it, and is kept in a process of its own.
    """

    level: str
    name: str
    statement: str
    family: str
    holds_for: frozenset[str]
    check: Callable[[Kernel, Problem], Observation]
    where: Callable[[Problem], bool]
    never: frozenset[str]
    needs: Callable[[Declared], bool]
    apart: bool


DECIDED_EXACTLY = ("L1", "L2", "L4", "L5", "L6")
"""Levels whose laws know no rounding."""


def is_exact(kernel: Declared) -> bool:
    """Whether its precision class computes with whole numbers exactly."""
    return kernel.precision not in INEXACT


LAWS: dict[str, Law] = {}
"""Every law by its name; `@law` fills it."""


def law(
    level: str,
    family: str,
    operators: Iterable[str],
    where: Callable[[Problem], bool] = lambda problem: True,
    never: Iterable[str] = (),
    needs: Callable[[Declared], bool] | None = None,
    apart: bool = False,
) -> Callable[[Callable[..., Observation]], Law]:
    """Register the check below as a law: its name is the theorem, its docstring the statement.

    Without `needs`, laws that are decided exactly need a kernel that whole numbers come through exactly.
    """
    needs = needs or (is_exact if level in DECIDED_EXACTLY else lambda kernel: True)

    def register(check: Callable[[Kernel, Problem], Observation]) -> Law:
        def checked(kernel: Kernel, problem: Problem) -> Observation:
            rounded = rounding(kernel, problem)
            try:
                seen = check(kernel, rounded)
            except LawBroken as broken:
                # Found in a problem that this one leads to; this one is what shows it again.
                broken.problem = problem
                raise
            return replace(seen, rounded_as=rounded.precision) if rounded.precision != problem.precision else seen

        statement = (check.__doc__ or "").strip()
        made = Law(
            level,
            check.__name__,
            statement,
            family,
            frozenset(operators),
            checked,
            where,
            frozenset(never) | ({STANDS_FOR_MANY} if layouts_of(family) != LAYOUTS else set()),
            needs,
            apart,
        )
        LAWS[made.name] = made
        return made

    return register


RATIONAL = [name for name in OPERATORS if OPS[name.partition(".")[0]].rational]
LINEAR = [name for name in OPERATORS if OPS[name.partition(".")[0]].linear_in]


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
            if bits or not np.isfinite(came[0]).all():
                bits = fewest_bits(kernel, problem)
            raise LawBroken(
                f"{broken}; {precision_class(bits)} ({bits} bits kept)", problem, broken.index, **broken.values
            ) from None
        raise
    return Observation(vacuous=all_zero(right))


def kept_bits(came: np.ndarray, right: np.ndarray) -> int:
    """Significand bits that survive, by the worst relative error; none if something stands where zero is right."""
    nonzero = right != 0
    if np.any(came[~nonzero]):
        return 0
    with np.errstate(invalid="ignore"):
        worst = np.abs(came[nonzero].astype(np.float64) / right[nonzero] - 1).max(initial=0.0)
    return 0 if not np.isfinite(worst) else int(min(53, max(0, np.floor(-np.log2(max(worst, 2.0**-60))))))


DRAWS = 16
"""How often numbers are drawn to name a class: rounding to 8 bits leaves every second one right to 9, by chance."""


def fewest_bits(kernel: Kernel, problem: Problem) -> int:
    """Significand bits that a kernel keeps of numbers in half precision's range, the fewest of many draws."""
    fewest, scale = 53, 2.0 ** (15 - significand_bits(problem.dtype))
    for draw in range(1, DRAWS + 1):
        drawn = problem.redrawn(draw)
        arrays = drawn.arrays()
        right = specified(drawn, arrays, np.int64)[0] * scale
        for name in _scaled(arrays) if problem.op.linear_in else arrays:
            arrays[name] = (arrays[name] * scale).astype(problem.dtype)
        fewest = min(fewest, kept_bits(evaluate(kernel, drawn, arrays)[0], right))
    return fewest


def _scaled(arrays: Mapping[str, np.ndarray]) -> set[str]:
    """Which arrays carry a factor to the result: one operand of the products, and what is added to them."""
    operands = [name for name in arrays if name != "bias"]
    return {max(operands, key=lambda name: np.abs(arrays[name]).max(initial=0)), "bias"} & set(arrays)


def precision_class(bits: int) -> str:
    """The arithmetic that keeps so many bits of 24: fp32, 3xTF32, TF32 (fp16 alike), bf16."""
    named = ((24, "fp32"), (20, "3xTF32"), (10, "TF32 or fp16"), (7, "bf16"))
    return next((f"computed in {name}" for least, name in named if bits >= least), "no known precision class")


@law("L3", "real", list(OPERATORS))
def rounds_within_the_derived_bound(kernel: Kernel, problem: Problem) -> Observation:
    """On reals, every element is within the rounding that its own sum of products allows."""
    arrays = problem.arrays()
    came = evaluate(kernel, problem, arrays)
    reference = Reference.of(kernel, problem, arrays)
    return Observation(reference.judge(came), vacuous=all_zero(reference.right))


def rounding(kernel: Kernel, problem: Problem) -> Problem:
    """The problem in the precision class whose rounding the kernel is allowed there."""
    rounds_as = declared(kernel).rounds_as
    return replace(problem, precision=rounds_as(problem)) if rounds_as else problem


@dataclass(frozen=True)
class Reference:
    """What is right on a problem's reals, and how far from it a kernel's rounding may lead."""

    problem: Problem
    right: tuple[np.ndarray, ...]
    allowed: tuple[np.ndarray, ...]

    @staticmethod
    def of(kernel: Kernel, problem: Problem, arrays: Mapping[str, np.ndarray]) -> "Reference":
        """For the kernel's precision class on these numbers."""
        # The reference rounds too, less: float64 for float32, extended precision (where there is one) for float64.
        wide = np.dtype("float64" if problem.dtype == "float32" else "longdouble")
        given = {name: each if each.dtype.kind == "i" else each.astype(wide) for name, each in arrays.items()}
        results = problem.specified(given)
        right = tuple(map(np.asarray, results if isinstance(results, tuple) else (results,)))
        allowed = rounding_bound(rounding(kernel, problem), arrays, problem.dtype, reference=wide)
        if problem.options.get("return_indices"):
            # Indices are exact by their nature.
            allowed = (*allowed, np.zeros(problem.output))
        return Reference(problem, right, allowed)

    def judge(self, came: tuple[np.ndarray, ...], when: str = "") -> float:
        """The worst error over its bound; raises LawBroken, which tells `when`, at the first element beyond it."""
        try:
            return compare(self.problem, came, self.right, self.allowed)
        except LawBroken as broken:
            raise LawBroken(f"{broken}{when and ', '}{when}", broken.problem, broken.index, **broken.values) from None


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
    """A maximum is a copy of the input at the winning index, the sign of its zero included; where a kernel tells no
    indices, of one of the greatest inputs."""
    problem = replace(problem, options={**problem.options, "return_indices": True})
    arrays = problem.arrays()
    with np.errstate(invalid="ignore"):
        right = specified(problem, arrays, problem.dtype)
    try:
        results = evaluate(kernel, problem, arrays)
    except (UnsupportedError, NotImplementedError):
        problem, right = replace(problem, options={**problem.options, "return_indices": False}), right[:1]
        results = evaluate(kernel, problem, arrays)
    compare(problem, results, right)  # So only the sign of a zero can be wrong, or that of a NaN.
    came = results[0]
    wrong = (right[0] == 0) & (np.signbit(came) != np.signbit(right[0]))
    if len(right) == 1:
        is_zero, is_negative = arrays["x"] == 0, np.signbit(arrays["x"])
        (negative,), (positive,) = (
            specified(problem, {"x": zeros.astype(problem.dtype)}, problem.dtype)
            for zeros in (is_zero & is_negative, is_zero & ~is_negative)
        )
        wrong &= np.where(np.signbit(came), negative, positive) == 0
    if wrong.any():
        index = tuple(int(axis) for axis in np.argwhere(wrong)[0])
        raise LawBroken(
            f"max_pool2d at {place(problem, index)}: the kernel gives {came[index]!s}, the winning input is "
            f"{right[0][index]!s}", problem, index, got=float(came[index]), expected=float(right[0][index]),
            allowed=0.0,
        )  # fmt: skip
    return Observation()


@law("L4", "special", ["cross_entropy", "cross_entropy.dlogits"])
def keeps_nan_and_infinities(kernel: Kernel, problem: Problem) -> Observation:
    """NaN and infinities come out exactly where the specification has them, and nowhere else."""
    return _places_of_nan_and_infinities(kernel, problem)


@law("L4", "special", [name for name in LINEAR if name.startswith("conv2d")], needs=lambda kernel: not is_exact(kernel))
def keeps_nan_and_infinities_though_it_rounds(kernel: Kernel, problem: Problem) -> Observation:
    """NaN and infinities come out exactly where the specification has them, whatever else is mixed in a tile."""
    return _places_of_nan_and_infinities(kernel, problem)


def _places_of_nan_and_infinities(kernel: Kernel, problem: Problem) -> Observation:
    arrays = problem.arrays()
    with np.errstate(invalid="ignore"):
        right = specified(problem, arrays, problem.dtype)
        # What is finite is the rounding law's business: both sides stand at zero there.
        came = tuple(
            np.where(np.isfinite(each), np.zeros_like(each), each) for each in evaluate(kernel, problem, arrays)
        )
        compare(problem, came, tuple(np.where(np.isfinite(each), 0, each) for each in right))
    return Observation(vacuous=bool(np.isfinite(right[0]).all()))


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
