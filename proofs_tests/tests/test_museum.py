"""The laws are proved: each fault in the museum breaks one of them, and no correct kernel does."""

from dataclasses import replace

import pytest

from kernelproof.proofs.hold import hold
from kernelproof.proofs.jobs import kept
from kernelproof.proofs.museum import CONTROLS, MUSEUM, WAITING, Control, Mutant
from kernelproof.proofs.report import Result
from kernelproof.proofs.subject import subject_of
from kernelproof.proofs.verify import LEVELS, laws_for, laws_of
from kernelproof.spec import OPERATORS

EXAMPLES = 100
"""Problems to a law within which every mutant has to be found."""
TIME_LIMIT = 120.0
"""Seconds for one check of a mutant that bad input may end."""
CONTROL_EXAMPLES = 8
"""Problems to a law that every control has to pass, other ones for each control."""


def verdict(mutant: Mutant) -> Result | None:
    """The first law that the mutant breaks, of those of bad input if they are what it claims to keep."""
    subject = replace(subject_of(mutant.kernel, mutant.operator), checked=mutant.checked)
    laws = laws_of(mutant.operator, ["L9"] if mutant.checked else LEVELS)
    with kept(subject, TIME_LIMIT if mutant.checked else None) as check:
        results = (hold(law, subject, mutant.operator, EXAMPLES, 0, check) for law in laws)
        return next((result for result in results if result.failure), None)


@pytest.mark.parametrize("mutant", MUSEUM.values(), ids=list(MUSEUM))
def test_every_mutant_breaks_a_law(mutant: Mutant):
    broken = verdict(mutant)
    assert broken is not None, f"{mutant.name} survives: {mutant.fault}"
    assert broken.failure is not None
    # Refuted by a wrong result, not because the fault was planted so that it crashes.
    assert "the kernel raised" not in broken.failure.message


@pytest.mark.parametrize("seed", range(2))
def test_another_seed_finds_the_rarest_too(seed: int):
    for name in ("LayoutGuessedFromTheWeight", "TapsTruncatedWithGroups", "NanLostInTheTail"):
        mutant = MUSEUM[name]
        subject = subject_of(mutant.kernel, mutant.operator)
        results = (hold(law, subject, mutant.operator, EXAMPLES, seed + 1) for law in laws_of(mutant.operator))
        assert any(result.failure for result in results), name


@pytest.mark.parametrize(("seed", "control"), list(enumerate(CONTROLS.values())), ids=list(CONTROLS))
def test_no_law_accuses_a_correct_kernel(seed: int, control: Control):
    subject = subject_of(control.kernel, control.operator, precision=control.precision)
    for law in laws_for(subject, control.operator):
        result = hold(law, subject, control.operator, CONTROL_EXAMPLES, seed)
        assert result.failure is None, f"{control.name} ({control.way}): {result.failure}"


def test_every_operator_has_a_control():
    assert {control.operator for control in CONTROLS.values()} == set(OPERATORS)
    assert len(CONTROLS) >= 20


def test_every_piece_says_where_it_is_from():
    for mutant in MUSEUM.values():
        assert mutant.source
        assert mutant.trigger
        assert mutant.fault.endswith(".")
    for waiting in WAITING:
        assert waiting.needs not in OPERATORS, f"{waiting.source} waits for an operator that is here"
