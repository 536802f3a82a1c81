"""Every law of every operator, held against the CPU kernels and against the specification's own float arithmetic."""

from typing import Any

import hypothesis
import pytest

from kernelproof.kernels.cpu import launch
from kernelproof.proofs.hold import hold
from kernelproof.proofs.laws import Observation
from kernelproof.proofs.subject import Subject, subject_of
from kernelproof.proofs.verify import laws_for, laws_of
from kernelproof.spec import OPERATORS

SPECIFICATION = Subject("specification", OPERATORS, ("float32", "float64"), checked=True)


EVERY_LAW = [
    pytest.param(operator, law, id=f"{operator} {law.name}") for operator in OPERATORS for law in laws_of(operator)
]


# What is for kernels that round alone is held in test_algorithms.py.
OF_CPU = [
    pytest.param(operator, law, id=f"{operator} {law.name}")
    for operator in OPERATORS
    for law in laws_for(subject_of("cpu", operator), operator)
]


@pytest.mark.parametrize(("operator", "law"), OF_CPU)
def test_law_holds_for_the_cpu_kernel(operator: str, law: Any) -> None:
    result = hold(law, subject_of("cpu", operator), operator, hypothesis.settings().max_examples, 0)
    assert result.verdict == "proven", result.failure


@pytest.mark.parametrize(("operator", "law"), EVERY_LAW)
def test_law_holds_for_the_specification_in_floats(operator: str, law: Any) -> None:
    # A law that the specification breaks is wrong, or the specification is.
    if not law.needs(SPECIFICATION.kernel(operator)):
        pytest.skip("what the law needs is not declared of it")
    result = hold(law, SPECIFICATION, operator, hypothesis.settings().max_examples // 2, 1)
    assert result.verdict == "proven", result.failure


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_cpu_kernel_is_exact_when_its_work_is_cut_small(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # One task in one native call, on as many threads as there are: the seams that large arrays have, on small ones.
    monkeypatch.setattr(launch, "_BLOCK", 1)
    monkeypatch.setattr(launch, "_SHARE", 1)
    law = laws_of(operator)[0]
    assert hold(law, subject_of("cpu", operator), operator, 50, 3).verdict == "proven"


@pytest.mark.parametrize("operator", OPERATORS)
def test_problems_hit_every_predicate(operator: str) -> None:
    # Counted under one law: the budget of the others must not hide a gap.
    law = laws_of(operator)[0]
    result = hold(law, SPECIFICATION, operator, 100, 2)
    assert [name for name, count in result.hit.items() if not count and name not in law.never] == []
    # What that law's problems never have, another's do.
    assert frozenset.intersection(*(each.never for each in laws_of(operator))) == frozenset()


NARROWED = [
    pytest.param(operator, law, id=f"{operator} {law.name}")
    for operator in OPERATORS
    for law in laws_for(SPECIFICATION, operator)
    if law.never and "." not in operator  # A gradient's problems are its forward's.
]


@pytest.mark.parametrize(("operator", "law"), NARROWED)
def test_a_law_says_which_predicates_its_problems_never_have(operator: str, law: Any) -> None:
    # One that it does not say is looked for among a thousand problems, in vain, each time the law is held.
    result = hold(law, SPECIFICATION, operator, 30, 2, lambda law, problem: Observation())
    assert {name for name, count in result.hit.items() if not count} == law.never & set(result.hit)
