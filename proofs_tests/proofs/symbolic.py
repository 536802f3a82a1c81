"""Whole numbers as symbols: Python code that computes with them is followed down every branch, for z3 to judge.

`Whole` behaves as an int and `Truth` as a bool. Where the code asks a Truth for yes or no the run is one `Path` of
several: `paths` runs the code again until every sequence of answers has been taken.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import z3

Natural: TypeAlias = Annotated[int, 0]
"""Any whole number from 0 on."""
Positive: TypeAlias = Annotated[int, 1]
"""Any whole number from 1 on."""


class OutOfScope(Exception):  # noqa: N818 - nothing went wrong
    """The theorem says nothing about these numbers."""


def given(premise: Any) -> None:
    """What the theorem presupposes."""
    if not premise:
        raise OutOfScope


class Path:
    """One way through the branches of a run: what was decided, and the definitions of the quotients met on it."""

    def __init__(self, decisions: list[bool]) -> None:
        self.decisions, self.met = decisions, 0
        self.facts: list[Any] = []
        self.quotients: dict[tuple[int, int], tuple[Any, Any]] = {}

    def decide(self, condition: Any) -> bool:
        """The next branch: as this path decided it, true where it is new."""
        if self.met == len(self.decisions):
            self.decisions.append(True)
        decision = self.decisions[self.met]
        self.met += 1
        self.facts.append(condition if decision else z3.Not(condition))
        return decision

    def divided(self, a: Any, b: Any) -> tuple[Any, Any]:
        """Quotient and remainder by their definition, `a = b*q + r` with `0 <= r < b`: as Python's for b > 0."""
        key = (a.get_id(), b.get_id())  # Equal terms are one object in z3.
        if key not in self.quotients:
            q, r = z3.FreshInt("quotient"), z3.FreshInt("remainder")
            self.facts.append(z3.Implies(b >= 1, z3.And(a == b * q + r, r >= 0, r < b)))
            self.quotients[key] = q, r
        return self.quotients[key]


@dataclass(frozen=True, eq=False)
class Whole:
    """Any whole number: behaves as an int, its value a term of z3."""

    path: Path
    term: Any

    def __add__(self, other: Any) -> "Whole":
        return Whole(self.path, self.term + _term(other))

    def __sub__(self, other: Any) -> "Whole":
        return Whole(self.path, self.term - _term(other))

    def __rsub__(self, other: Any) -> "Whole":
        return Whole(self.path, _term(other) - self.term)

    def __mul__(self, other: Any) -> "Whole":
        return Whole(self.path, self.term * _term(other))

    def __neg__(self) -> "Whole":
        return Whole(self.path, -self.term)

    def __floordiv__(self, other: Any) -> "Whole":
        return Whole(self.path, self.path.divided(self.term, _term(other))[0])

    def __mod__(self, other: Any) -> "Whole":
        return Whole(self.path, self.path.divided(self.term, _term(other))[1])

    def __lt__(self, other: Any) -> "Truth":
        return Truth(self.path, self.term < _term(other))

    def __le__(self, other: Any) -> "Truth":
        return Truth(self.path, self.term <= _term(other))

    def __gt__(self, other: Any) -> "Truth":
        return Truth(self.path, self.term > _term(other))

    def __ge__(self, other: Any) -> "Truth":
        return Truth(self.path, self.term >= _term(other))

    def __eq__(self, other: object) -> Any:
        return Truth(self.path, self.term == _term(other))

    def __bool__(self) -> bool:
        return self.path.decide(self.term != 0)

    __radd__, __rmul__ = __add__, __mul__
    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, eq=False)
class Truth:
    """Whether something holds; asked for a bool, the path decides."""

    path: Path
    term: Any

    def __bool__(self) -> bool:
        return self.path.decide(self.term)

    def __and__(self, other: Any) -> "Truth":
        return Truth(self.path, z3.And(self.term, _term(other)))

    def __or__(self, other: Any) -> "Truth":
        return Truth(self.path, z3.Or(self.term, _term(other)))

    def __eq__(self, other: object) -> Any:
        return Truth(self.path, self.term == _term(other))

    __rand__, __ror__ = __and__, __or__
    __hash__ = None  # type: ignore[assignment]


def _term(value: Any) -> Any:
    if isinstance(value, Whole | Truth):
        return value.term
    return z3.BoolVal(value) if isinstance(value, bool) else z3.IntVal(value)


def least(holds: Callable[..., Any]) -> dict[str, int | None]:
    """The parameters of a theorem and the least number that each may be, None for any."""
    kinds = {name: parameter.annotation for name, parameter in inspect.signature(holds).parameters.items()}
    return {name: getattr(kind, "__metadata__", (None,))[0] for name, kind in kinds.items()}


def paths(holds: Callable[..., Any]) -> Iterator[tuple[dict[str, Any], list[Any], Any]]:
    """Every way through a theorem: its numbers, the facts that lead there, and what must hold."""
    bounds = least(holds)
    numbers = {name: z3.Int(name) for name in bounds}
    known = [numbers[name] >= bound for name, bound in bounds.items() if bound is not None]
    decisions: list[bool] = []
    while True:
        path = Path(decisions)
        try:
            goal = holds(**{name: Whole(path, number) for name, number in numbers.items()})
        except OutOfScope:
            pass
        else:
            yield numbers, known + path.facts, _term(goal)
        # The next path differs in the last decision that was still true.
        while decisions and not decisions[-1]:
            decisions.pop()
        if not decisions:
            return
        decisions[-1] = False
