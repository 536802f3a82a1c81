"""Every algorithm of the planner, held to the laws wherever it can be taken."""

import pytest

from kernelproof.proofs.algorithms import algorithms
from kernelproof.proofs.hold import hold
from kernelproof.proofs.verify import laws_for

ALGORITHMS = algorithms()
PLACES = [
    (name, operator, law)
    for name, subject in ALGORITHMS.items()
    for operator in subject.functions
    for law in laws_for(subject, operator)
]


@pytest.mark.parametrize(
    ("name", "operator", "law"),
    [pytest.param(*each, id=f"{each[0]}-{each[1]}-{each[2].name}") for each in PLACES],
)
def test_an_algorithm_holds_its_laws(name: str, operator: str, law) -> None:  # type: ignore[no-untyped-def]
    # Few problems reach a second tile: with 15 a fault in the columns past the twentieth was not seen, with 100 it is.
    examples = 100 if law.level in ("L1", "L3") else 30
    result = hold(law, ALGORITHMS[name], operator, examples, seed=0)
    assert result.failure is None, result.failure and result.failure.message
    assert result.cases or result.unsupported  # Some laws speak of geometries alone that an algorithm is not for.


def test_every_algorithm_is_held_to_an_exact_law_or_to_a_bound() -> None:
    for name, subject in ALGORITHMS.items():
        for operator in subject.functions:
            levels = {law.level for law in laws_for(subject, operator)}
            assert {"L3", "L4", "L7", "L8"} <= levels, (name, operator)
