"""Cases that broke a law, kept as files: rerun against the present kernel, and tried first by the next `verify`."""

import ast
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kernelproof.kernels.contract import DTYPES
from kernelproof.spec import OPERATORS, ParameterError

from .jobs import APART_LIMIT, kept, met
from .laws import LAWS, LawBroken
from .neighbours import legal, resized
from .problems import LAYOUTS, Problem
from .report import Report, versions
from .subject import subject_for
from .values import DRAWS, PRECISIONS


@dataclass(frozen=True)
class Case:
    """One law that a kernel broke on one problem, `problem` being the code that makes it, `after` that of one before.

    `layouts`, `threads`, `supports` and `dtypes` are what the author declared; `message` says what was wrong then, with
    those `versions`.
    """

    kernel: str
    law: str
    problem: str
    layouts: Mapping[str, str] = field(default_factory=dict)
    message: str = ""
    versions: Mapping[str, str] = field(default_factory=versions)
    threads: str | None = None
    supports: str | None = None
    dtypes: tuple[str, ...] = ()
    after: str = ""

    @staticmethod
    def of(report: Report) -> list["Case"]:
        """The cases that a report's failures are."""
        return [
            Case(
                report.kernel,
                result.law,
                result.failure.problem,
                message=result.failure.message,
                after=result.failure.after,
                **report.needed,
            )
            for result in report.failures
            if result.failure and result.failure.problem
        ]

    @property
    def file_name(self) -> str:
        """By content: a failure found twice is one file. What was said about it, and when, does not count."""
        after = [self.after] if self.after else []
        content = json.dumps([self.kernel, self.law, self.problem, self.layouts, *after], sort_keys=True)
        return f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.json"

    def text(self) -> str:
        """The file's content."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def problem_again(self) -> Problem:
        """The problem; nothing is executed to read it. Raises ValueError."""
        return _problem(self.problem)

    def earlier(self) -> Problem | None:
        """The problem that the kernel has to meet before, if there is one. Raises ValueError."""
        return _problem(self.after) if self.after else None


def _problem(code: str) -> Problem:
    match ast.parse(code, mode="eval").body:
        case ast.Call(func=ast.Name(id="Problem"), args=[], keywords=keywords):
            problem = Problem(**{each.arg or "": ast.literal_eval(each.value) for each in keywords})
            if not _possible(problem):
                raise ValueError("no operator can be called like that")
            return problem
    raise ValueError("it is no Problem(...)")


def _possible(problem: Problem) -> bool:
    """Whether the problem is a legal call whose arrays can be drawn; a file may hold anything."""
    try:
        named = {problem.family: DRAWS, problem.layout: LAYOUTS, problem.dtype: DTYPES, problem.operator: OPERATORS}
        drawn = all(name in known for name, known in named.items()) and problem.seed >= 0
        kept = problem.precision is None or problem.precision in PRECISIONS
        return drawn and kept and legal(problem) and resized(problem, problem.shapes).output == problem.output
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return False


def load(path: Path) -> Case:
    """The case in a file; raises ParameterError if there is none, OSError."""
    try:
        data = json.loads(path.read_text())
        case = Case(**{**data, "dtypes": tuple(data.get("dtypes", ()))})
        if not isinstance(case.kernel, str) or not isinstance(case.law, str):
            raise TypeError("its kernel and its law have names")
        case.problem_again()
        case.earlier()
    except (ValueError, TypeError, SyntaxError) as error:
        raise ParameterError("replay", f"{path}: {error}", "a case as verify saves it", "Remove the file.") from error
    if case.law not in LAWS:
        raise ParameterError("replay", f"{path}: law {case.law!r}", "a law that there is", "Remove the file.")
    return case


def load_all(folder: Path) -> list[Case]:
    """The cases in a folder, by file name; none if it is not there. Raises ParameterError, OSError."""
    return [load(path) for path in sorted(folder.glob("*.json"))]


def known(cases: Iterable[Case], kernel: str) -> dict[tuple[str, str], tuple[Problem, ...]]:
    """The problems that this kernel once failed, by operator and law."""
    found: dict[tuple[str, str], tuple[Problem, ...]] = {}
    for case in cases:
        if case.kernel == kernel:
            problem = case.problem_again()
            place = problem.operator, case.law
            found[place] = (*found.get(place, ()), *filter(None, (case.earlier(), problem)))
    return found


def replay(case: Case, kernel: Any, time_limit: float | None = None) -> LawBroken | None:
    """How the kernel breaks the case's law today, None if it holds; with a time limit in a process of its own.

    So are laws that a kernel may die of.

    Raises UnsupportedError or NotImplementedError if the kernel declines the problem.
    """
    problem = case.problem_again()
    declared = {"supports": case.supports, "layouts": case.layouts, "threads": case.threads}
    subject = subject_for(problem, kernel, dtypes=case.dtypes or None, **declared)
    with kept(subject, time_limit or (APART_LIMIT if LAWS[case.law].apart else None)) as check:
        met(check, LAWS[case.law], case.earlier())
        try:
            check(LAWS[case.law], problem)
        except LawBroken as broken:
            return broken
    return None
