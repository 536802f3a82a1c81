"""Every law of every operator, held against the CPU kernels and against the specification's own float arithmetic."""

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest

from kernelproof.proofs.verify import backend_kernel, hold, laws_of
from kernelproof.spec import OPERATORS

BOTH = ("float32", "float64")


def every_law() -> Iterator[Any]:
    """Each operator with each of its laws, named as a sentence."""
    for operator in OPERATORS:
        for law in laws_of(operator):
            yield pytest.param(operator, law, id=f"{operator} {law.name}")


@pytest.mark.parametrize(("operator", "law"), every_law())
def test_law_holds_for_the_cpu_kernel(operator: str, law: Any) -> None:
    result = hold(law, backend_kernel("cpu", operator), operator, hypothesis.settings().max_examples, 0, BOTH)
    assert result.verdict == "proven", result.failure


@pytest.mark.parametrize(("operator", "law"), every_law())
def test_law_holds_for_the_specification_in_floats(operator: str, law: Any) -> None:
    # A law that the specification breaks is wrong, or the specification is.
    result = hold(law, OPERATORS[operator], operator, hypothesis.settings().max_examples // 2, 1, BOTH)
    assert result.verdict == "proven", result.failure


@pytest.mark.parametrize("operator", OPERATORS)
def test_problems_hit_every_predicate(operator: str) -> None:
    # Counted under one law: the budget of the others must not hide a gap.
    law = next(laws_of(operator))
    result = hold(law, OPERATORS[operator], operator, 100, 2)
    assert [name for name, count in result.hit.items() if not count] == []
