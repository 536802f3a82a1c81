"""Problems as a law would draw them, for tests of the generators and of the bounds."""

import math
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any

from kernelproof.proofs.drawing import Domain
from kernelproof.proofs.problems import Problem
from kernelproof.spec import OPERATORS

DRAWN = 1000
"""Problems of one operator among which each choice has to come up."""


@cache
def drawn(operator: str, family: str = "whole", count: int = DRAWN) -> list[Problem]:
    """Problems as a law would see them."""
    chance = Domain(operator, family, ("float32", "float64")).at_random("0")
    return [problem for problem, _ in islice(chance, count)]


LINEAR = [name for name in OPERATORS if name.startswith(("conv2d", "linear"))]
SMALL = 2000
"""Elements that pure Python is done with in an instant."""


def small(operator: str, family: str) -> list[Problem]:
    found = [problem for problem in drawn(operator, family, 150) if 0 not in problem.output]
    return [
        problem for problem in found if math.prod(problem.output) * max(map(math.prod, problem.shapes.values())) < SMALL
    ]


def sides(problem: Problem) -> tuple[int, ...]:
    return tuple(side for axis in problem.options["padding"] for side in axis)


def linear(family: str, **fields: Any) -> Problem:
    """A linear layer with so many numbers that all that may come does."""
    return replace(
        Problem("linear", {"x": (40, 100), "weight": (30, 100), "bias": (30,)}, {}, (40, 30), family), **fields
    )
