"""Problems drawn: by chance, to hold kernels to, and by hypothesis, which finds the smallest one like one that failed.

Chance's are independent of each other, which hypothesis' are not, and take a fortieth of the time. Both make the same
choices, so that what chance has found is where hypothesis begins.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase, choices_to_bytes

from .problems import CONFIGURATIONS, Choices, Problem, layouts_of


@dataclass(frozen=True)
class Domain:
    """All problems of one operator with values of one family."""

    operator: str
    family: str
    dtypes: tuple[str, ...] = ("float32",)
    precision: str | None = None

    def problem(self, choices: Choices) -> Problem:
        """The problem that these choices make."""
        seed = choices.between(0, 2**16 - 1)
        layout, dtype = choices.one_of(*layouts_of(self.family)), choices.one_of(*self.dtypes)
        shapes, options, output = CONFIGURATIONS[self.operator.partition(".")[0]](choices, self.family)
        return Problem(self.operator, shapes, options, output, self.family, seed, dtype, layout, self.precision)

    def at_random(self, seed: str) -> Iterator[tuple[Problem, Sequence[int]]]:
        """Problems by chance, independent of each other, without end; beside each the choices that made it."""
        generator = random.Random(seed)
        while True:
            chosen: list[int] = []

            def below(count: int, chosen: list[int] = chosen) -> int:
                chosen.append(int(generator.random() * count))
                return chosen[-1]

            yield self.problem(Choices(below)), chosen


@cache  # hypothesis examines each new strategy, which takes longer than to draw from it.
def _below(count: int) -> st.SearchStrategy[int]:
    return st.integers(0, count - 1)


@st.composite
def _searched(draw: st.DrawFn, domain: Domain) -> Problem:
    return domain.problem(Choices(lambda count: draw(_below(count))))


def problems(
    operator: str, family: str, dtypes: tuple[str, ...] = ("float32",), precision: str | None = None
) -> st.SearchStrategy[Problem]:
    """Problems of one operator with values of one family, to write tests with hypothesis."""
    return _searched(Domain(operator, family, dtypes, precision))


class _OneExample(ExampleDatabase):
    """One example, found by whatever test asks: hypothesis starts from it.

    A secondary one, which it shrinks. What a database has among the primary ones is taken for the smallest.
    """

    def __init__(self, choices: Sequence[int]) -> None:
        super().__init__()
        self._example = choices_to_bytes(choices)

    def fetch(self, key: bytes) -> Iterable[bytes]:
        return (self._example,) if key.endswith(b".secondary") else ()

    def save(self, key: bytes, value: bytes) -> None:
        pass

    def delete(self, key: bytes, value: bytes) -> None:
        pass


def shrink(domain: Domain, choices: Sequence[int], check: Callable[[Problem], None]) -> None:
    """Raise what `check` does for the smallest problem like the one of these choices; return if it passes there."""

    @settings(
        database=_OneExample(choices),
        deadline=None,
        phases=(Phase.reuse, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType] - it reads their metaclass.
    )
    @hypothesis.seed(0)  # The same smallest case each time, on any machine.
    @hypothesis.given(_searched(domain))
    def every(problem: Problem) -> None:
        check(problem)

    every()
