"""How strong a run is: which of the museum's faults the same laws, problems and declarations would have found."""

from collections.abc import Iterable
from dataclasses import replace

from .hold import directly, hold
from .judging import LawBroken
from .laws import LAWS, Law, Observation
from .museum import MUSEUM, Mutant
from .problems import Problem
from .subject import Subject, subject_of


class _Found(BaseException):
    """Ends the search at once: the smallest case does not matter here."""


def power(subject: Subject, work: Iterable[tuple[str, str]], examples: int, seed: int) -> dict[str, tuple[int, int]]:
    """For each operator, how many faults of the museum these laws find, drawn as for the subject, and of how many.

    Where the subject's declaration leaves out what a fault needs, it is not found. Faults of bad input (L9) are left
    out: they may end the process.
    """
    laws: dict[str, list[Law]] = {}
    for operator, law in work:
        laws.setdefault(operator, []).append(LAWS[law])
    found = {}
    for operator, held in laws.items():
        planted = [mutant for mutant in MUSEUM.values() if mutant.operator == operator and not mutant.checked]
        if planted:
            killed = sum(_finds(held, _in_place_of(subject, each), operator, examples, seed) for each in planted)
            found[operator] = killed, len(planted)
    return found


def _in_place_of(subject: Subject, mutant: Mutant) -> Subject:
    """The mutant with the subject's declaration."""
    return replace(
        subject_of(
            mutant.kernel, mutant.operator, dtypes=subject.dtypes, precision=subject.precision_of(mutant.operator)
        ),
        supports=subject.supports,
        limits=subject.limits,
    )


def _finds(laws: Iterable[Law], subject: Subject, operator: str, examples: int, seed: int) -> bool:
    check = directly(subject)

    def once(law: Law, problem: Problem) -> Observation:
        try:
            return check(law, problem)
        except LawBroken:
            raise _Found from None

    try:
        for law in (each for each in laws if not each.apart):
            hold(law, subject, operator, examples, seed, once)
    except _Found:
        return True
    return False
