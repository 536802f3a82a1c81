"""Problems as a law would draw them, for tests of the generators and of the bounds."""

import math
from functools import cache

from kernelproof.proofs.hold import draw
from kernelproof.proofs.problems import Problem, problems
from kernelproof.spec import OPERATORS

DRAWN = 1000
"""Problems of one operator among which each choice has to come up."""
SEEDS = 10


@cache
def drawn(operator: str, family: str = "whole", count: int = DRAWN) -> list[Problem]:
    """Problems as a law would see them."""
    seen: list[Problem] = []
    # One seed's draws lean on each other: the share of a choice among many is seen over several seeds.
    for seed in range(SEEDS):
        draw(problems(operator, family, ("float32", "float64")), seen.append, count // SEEDS, seed)
    return seen


LINEAR = [name for name in OPERATORS if name.startswith(("conv2d", "linear"))]
SMALL = 2000
"""Elements that pure Python is done with in an instant."""


def small(operator: str, family: str) -> list[Problem]:
    found = [problem for problem in drawn(operator, family, 150) if 0 not in problem.output]
    return [
        problem for problem in found if math.prod(problem.output) * max(map(math.prod, problem.shapes.values())) < SMALL
    ]
