"""Each of the CPU planner's algorithms as a subject of its own: right wherever it can be taken, not only where it is.

The planner takes Winograd for large problems and laws are held on small ones, so an algorithm is held to them directly,
on every problem that it can do.
"""

from collections.abc import Callable
from typing import Any

from kernelproof.kernels.contract import DTYPES
from kernelproof.kernels.cpu.convolution import planner
from kernelproof.kernels.cpu.launch import on_threads
from kernelproof.spec import OPERATORS, Window

from .judging import Kernel
from .problems import Problem
from .subject import Subject


def algorithms() -> dict[str, Subject]:
    """The planner's algorithms for convolution by name, each with all operators that it computes."""
    names = dict.fromkeys(each.name for each in planner.ALGORITHMS)
    return {name: _subject(name, [each for each in planner.ALGORITHMS if each.name == name]) for name in names}


def _subject(name: str, rows: list[planner.Algorithm]) -> Subject:
    by_operator = {
        operator: row for row in rows for operator, each in OPERATORS.items() if each.__name__ == row.operator
    }
    (precision,) = {row.rounds_as for row in rows}

    def supports(problem: Problem) -> bool:
        row, asked = by_operator[problem.operator], planned(problem)
        return all(condition.holds(asked) for condition in row.needs)

    functions = {operator: _function(operator, row.run) for operator, row in by_operator.items()}
    return Subject(name, functions, DTYPES, supports, precision, threads=on_threads)


def _function(operator: str, run: Callable[..., Any]) -> Kernel:
    return lambda *args, **kwargs: OPERATORS[operator].perform(run, *args, **kwargs)


def rounds_as(problem: Problem) -> str | None:
    """The class of what the planner takes under strict; None where it rounds as sums of products in any order do."""
    if OPERATORS[problem.operator].__name__ not in {row.operator for row in planner.ALGORITHMS}:
        return None
    return planner.decide(planned(problem), "strict").taken.rounds_as


def planned(problem: Problem) -> planner.Problem:
    """A convolution or its gradient as the planner sees it."""
    groups = problem.options.get("groups", 1)
    weight = problem.shapes["weight"]
    _, _, r, s = weight
    window = Window((r, s), **{each: problem.options[each] for each in ("stride", "padding", "dilation")})
    return planner.Problem(
        OPERATORS[problem.operator].__name__, problem.shapes["x"], weight, window, groups, problem.dtype
    )
