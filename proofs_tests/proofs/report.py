"""What a run of the laws found: data first, then text and JSON of it."""

import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from .laws import LawBroken


@dataclass(frozen=True)
class Failure:
    """The smallest case that breaks a law, and the code that shows it again."""

    message: str
    problem: str
    index: tuple[int, ...]
    values: Mapping[str, Any]

    @staticmethod
    def of(broken: LawBroken) -> "Failure":
        """The failure that a broken law describes."""
        return Failure(str(broken), repr(broken.problem), broken.index, dict(broken.values))


@dataclass(frozen=True)
class Result:
    """One law held against one operator's kernel; `vacuous` problems, where zeros are right, are no `cases`."""

    operator: str
    law: str
    level: str
    statement: str
    cases: int
    vacuous: int
    unsupported: int
    seconds: float
    worst_ratio: float | None
    escape: float | None
    hit: Mapping[str, int]
    failure: Failure | None

    @property
    def verdict(self) -> str:
        """proven, refuted, unsupported (it declined every problem) or vacuous (no problem said anything)."""
        if self.failure is not None:
            return "refuted"
        if self.cases:
            return "proven"
        return "vacuous" if self.vacuous else "unsupported"


@dataclass(frozen=True)
class Report:
    """Every result of one `verify`, with what is needed to run it again."""

    kernel: str
    seed: int
    examples: int
    results: tuple[Result, ...]
    layouts: Mapping[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """refuted if any law is; else proven if any was held and none was vacuous; else unsupported or vacuous."""
        verdicts = Counter(result.verdict for result in self.results)
        for verdict in ("refuted", "vacuous", "proven"):
            if verdicts[verdict]:
                return verdict
        return "unsupported"

    @property
    def exit_status(self) -> int:
        """0 proven, 1 refuted, 3 nothing checked."""
        return {"proven": 0, "refuted": 1}.get(self.verdict, 3)

    @property
    def laws(self) -> tuple[Result, ...]:
        """The laws that kernels were held to."""
        return tuple(result for result in self.results if result.level != "L0")

    @property
    def theorems(self) -> tuple[Result, ...]:
        """The theorems of the shape arithmetic (L0)."""
        return tuple(result for result in self.results if result.level == "L0")

    @property
    def problems(self) -> int:
        """How many problems the laws were checked on."""
        return sum(result.cases for result in self.laws)

    @property
    def failures(self) -> tuple[Result, ...]:
        """The refuted laws."""
        return tuple(result for result in self.results if result.failure)

    def hit(self, operator: str) -> dict[str, int]:
        """How many problems of this operator each predicate has seen, over all laws."""
        counts: Counter[str] = Counter()
        for result in self.results:
            if result.operator == operator:
                counts.update(result.hit)
        return dict(counts)

    def as_json(self) -> dict[str, Any]:
        """Everything, as a program would read it."""
        return {
            "kernel": self.kernel,
            "verdict": self.verdict,
            "seed": self.seed,
            "examples": self.examples,
            "versions": versions(),
            "results": [{**asdict(result), "verdict": result.verdict} for result in self.results],
        }


def versions() -> dict[str, str]:
    """What the run was made with."""
    packages = ("kernelproof", "numpy", "numba", "hypothesis")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def reproduction(result: Result, report: Report) -> str:
    """Python that shows a kernel's failure again when it is pasted."""
    if result.failure is None or not result.failure.problem:
        return ""
    module, colon, name = report.kernel.partition(":")
    layouts = f", layouts={dict(report.layouts)!r}" if report.layouts else ""
    source = f"from {module} import {name} as kernel" if colon else f"kernel = {report.kernel!r}"
    return (
        f"from kernelproof.proofs import Problem, check\n{source}\n"
        f"problem = {result.failure.problem}\ncheck({result.law!r}, kernel, problem{layouts})"
    )
