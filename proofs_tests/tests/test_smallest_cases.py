"""What fails is made small: hypothesis begins with what chance has found."""

from collections.abc import Callable, Sequence
from itertools import islice
from math import prod

import pytest

from kernelproof.proofs.drawing import Domain, shrink
from kernelproof.proofs.problems import (
    TILES,
    Problem,
)
from kernelproof.spec import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS)
def test_hypothesis_begins_with_what_chance_has_found(operator: str) -> None:
    domain = Domain(operator, "real", ("float32", "float64"))
    for problem, choices in islice(domain.at_random("0"), 5):
        tried: list[Problem] = []
        shrink(domain, choices, tried.append)
        assert tried == [problem]


def test_what_fails_is_made_small() -> None:
    def check(problem: Problem) -> None:
        if problem.options["stride"][1] > 1 and problem.shapes["x"][1] > 2:
            smallest.append(problem)
            raise AssertionError

    domain, smallest = Domain("conv2d", "real"), list[Problem]()
    found = (choices for problem, choices in domain.at_random("0") if problem.options["stride"] == (3, 3)
             and problem.shapes["x"][1] > 2)  # fmt: skip
    with pytest.raises(AssertionError):
        shrink(domain, next(found), check)
    assert smallest[-1].options["stride"] == (1, 2)
    assert smallest[-1].shapes["x"] in ((1, 3, 1, 1), (1, min(TILES), 1, 1))
    assert smallest[-1].seed == 0


FAULTS: dict[str, tuple[Callable[[Problem], bool], dict[str, tuple[int, ...]]]] = {
    "conv2d": (lambda problem: problem.options["padding"][1][1] > 0, {"x": (1, 1, 1, 1), "weight": (1, 1, 1, 1)}),
    "max_pool2d": (lambda problem: problem.options["return_indices"], {"x": (1, 1, 1, 1)}),
    "linear": (lambda problem: problem.shapes["x"][1] > 2, {"x": (1, 3), "weight": (1, 3)}),
    "relu": (lambda problem: prod(problem.output) > 4, {"x": (5,)}),
    "cross_entropy": (lambda problem: problem.shapes["logits"][0] > 1, {"logits": (2, 1), "target": (2,)}),
}


@pytest.mark.parametrize("operator", FAULTS)
def test_what_fails_is_made_as_small_wherever_it_begins_and_by_the_same_steps(operator: str) -> None:
    fault, shapes = FAULTS[operator]
    domain, tried = Domain(operator, "real"), list[Problem]()

    def check(problem: Problem) -> None:
        tried.append(problem)
        assert not fault(problem)

    def steps(choices: Sequence[int]) -> list[Problem]:
        tried.clear()
        with pytest.raises(AssertionError):
            shrink(domain, choices, check)
        return list(tried)

    found = [choices for problem, choices in islice(domain.at_random("0"), 200) if fault(problem)]
    for choices in found[:4]:
        assert steps(choices)[-1].shapes == shapes
    assert steps(found[0]) == steps(found[0])
