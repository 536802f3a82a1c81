"""Everybody's operators held to the same laws: who is proven, who is refuted, and what is known about it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, as_completed
from dataclasses import dataclass, field, replace
from datetime import date
from typing import Any

from kernelproof.kernels.gpu import gpu
from kernelproof.spec import OPERATORS, OPS, ParameterError, UnsupportedError

from .adapters import ADAPTERS, OWN, require
from .findings import Finding, finding_of
from .report import Report, Result, reproduction, versions
from .shape_algebra import Theorem
from .subject import operators_of, subject_of
from .verify import LEVELS, laws_of, verify, work_of

SCHEMA = "kernelproof.scoreboard/2"
"""Changes its number when a reader of the JSON would have to change."""

NOT_REACHED = "not reached before the run was ended"

HELD = tuple(level for level in LEVELS if level not in ("L0", "L9"))
"""The levels that judge answers: L0 is about this project's own sizes, L9 about the errors that wrong calls raise."""


@dataclass(frozen=True)
class Work:
    """One adapter to hold to the laws of one row of the operator table."""

    adapter: str
    op: str
    examples: int
    seed: int
    time_limit: float | None

    def do(self) -> "Entry":
        """Do it here."""
        try:
            subject = subject_of(self.adapter)
        except UnsupportedError as unsupported:
            return Entry(self.adapter, self.op, (), None, str(unsupported))
        if not set(operators_of(self.op)) & set(subject.functions):
            return Entry(self.adapter, self.op, (), Report(self.adapter, self.seed, self.examples, ()))
        subject = subject_of(subject, self.op)
        report = verify(subject, level=HELD, examples=self.examples, seed=self.seed, time_limit=self.time_limit)
        asked = tuple(each for each in work_of(subject, HELD) if not isinstance(each, Theorem))
        return Entry(self.adapter, self.op, asked, report)


@dataclass(frozen=True)
class Entry:
    """What became of it: the operators and laws that it was held to, and their report; without one, why not."""

    adapter: str
    op: str
    asked: tuple[tuple[str, str], ...]
    report: Report | None
    why: str = ""


@dataclass(frozen=True)
class Cell:
    """What a level came to for one operator: the verdict, the problems that held, the laws that fell.

    `differs` is a refutation that the adapter documents: its semantics are others, not wrong.
    """

    verdict: str
    cases: int = 0
    fallen: tuple[Result, ...] = ()


@dataclass(frozen=True)
class Scoreboard:
    """Every adapter's entries, with what is needed to make them again; `adapters` holds their packages' versions.

    `made` is the day of the latest of its runs.
    """

    adapters: Mapping[str, Mapping[str, str]]
    entries: tuple[Entry, ...]
    examples: int
    seed: int
    versions: Mapping[str, str] = field(default_factory=versions)
    made: str = field(default_factory=lambda: date.today().isoformat())

    @property
    def operators(self) -> tuple[str, ...]:
        """The board's rows: every operator with its gradients."""
        ops = {entry.op for entry in self.entries}
        return tuple(operator for operator in OPERATORS if operator.partition(".")[0] in ops)

    def cell(self, adapter: str, operator: str, level: str | None = None) -> Cell:
        """What a level came to, or all of them together."""
        op = operator.partition(".")[0]
        entry = next((each for each in self.entries if (each.adapter, each.op) == (adapter, op)), None)
        there_are = {law.name for law in laws_of(operator, HELD if level is None else [level])}
        if not there_are:
            return Cell("no law")
        if entry is None or entry.report is None:
            return Cell("not checked")
        laws = {law for held, law in entry.asked if held == operator and law in there_are}
        if not laws:
            return Cell("unsupported")
        results = [each for each in entry.report.laws if each.operator == operator and each.law in laws]
        cases, fallen = sum(each.cases for each in results), tuple(each for each in results if each.failure)
        if fallen:
            known = [finding_of(adapter, each) for each in fallen]
            documented = all(finding is not None and finding.documented for finding in known)
            return Cell("differs" if documented else "refuted", cases, fallen)
        if laws > {each.law for each in results if each.verdict != "vacuous"}:
            return Cell("not checked", cases)
        return Cell("proven" if cases else "unsupported", cases)

    def fallen(self, adapter: str) -> list[tuple[Result, Finding | None]]:
        """The laws that fell for an adapter, each with what is known about it."""
        reports = [entry.report for entry in self.entries if entry.adapter == adapter and entry.report]
        return [(result, finding_of(adapter, result)) for report in reports for result in report.failures]

    def as_json(self) -> dict[str, Any]:
        """Everything, as a program would read it."""
        cells = [
            (adapter, operator, level, self.cell(adapter, operator, level))
            for adapter in self.adapters for operator in self.operators for level in HELD
        ]  # fmt: skip
        return {
            "schema": SCHEMA,
            "examples": self.examples,
            "seed": self.seed,
            "versions": dict(self.versions),
            "made": self.made,
            "adapters": {name: dict(packages) for name, packages in self.adapters.items()},
            "board": [
                {"adapter": adapter, "operator": operator, "level": level, "verdict": cell.verdict, "cases": cell.cases,
                 "fallen": [each.law for each in cell.fallen]}
                for adapter, operator, level, cell in cells if cell.verdict != "no law"
            ],
            "entries": [
                {"adapter": entry.adapter, "operator": entry.op, "asked": [list(each) for each in entry.asked],
                 "report": entry.report and entry.report.as_json(), "why": entry.why}
                for entry in self.entries
            ],
            "fallen": [
                {"adapter": adapter, "operator": result.operator, "level": result.level, "law": result.law,
                 "message": result.failure.message if result.failure else "", "code": code(adapter, result),
                 "finding": finding and finding.sentence, "link": finding and finding.link,
                 "documented": bool(finding and finding.documented)}
                for adapter in self.adapters for result, finding in self.fallen(adapter)
            ],
        }  # fmt: skip

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Scoreboard":
        """The board that `as_json` wrote; raises ParameterError for a schema that this version does not read."""
        if data.get("schema") != SCHEMA:
            raise ParameterError("scoreboard", f"schema {data.get('schema')!r}", repr(SCHEMA), "Write it anew.")
        entries = (
            Entry(
                each["adapter"], each["operator"], tuple(map(tuple, each["asked"])),
                each["report"] and Report.from_json(each["report"]), each["why"],
            )
            for each in data["entries"]
        )  # fmt: skip
        return Scoreboard(
            data["adapters"], tuple(entries), data["examples"], data["seed"], data["versions"], data["made"]
        )

    def beside(self, other: "Scoreboard") -> "Scoreboard":
        """Both as one; raises ParameterError for runs that differ.

        The other's entries stand in place of this one's, unless only this one's have a report.
        """
        if (self.examples, self.seed) != (other.examples, other.seed):
            runs = " and ".join(f"{each.examples} examples with seed {each.seed}" for each in (self, other))
            raise ParameterError("scoreboard", f"boards of {runs}", "runs alike", "Make them anew.")
        both = sorted((*self.entries, *other.entries), key=lambda entry: entry.report is not None)
        entries = {(each.adapter, each.op): each for each in both}
        versions = {**self.adapters, **other.adapters}
        order = [name for name in (*OWN, *ADAPTERS) if name in versions]
        adapters = {name: versions[name] for name in order}
        return Scoreboard(
            adapters, tuple(entries.values()), self.examples, self.seed, other.versions, max(self.made, other.made)
        )


def code(adapter: str, result: Result) -> str:
    """Python that shows again what fell."""
    return reproduction(result, Report(adapter, 0, 0, ()))


def scoreboard(
    adapters: Sequence[str] = (),
    ops: Iterable[str] = (),
    *,
    examples: int = 30,
    seed: int = 0,
    time_limit: float | None = None,
    executor: Executor | None = None,
    progress: Callable[[Entry, Scoreboard], None] = lambda entry, board: None,
) -> Scoreboard:
    """Hold the adapters, by default all that are installed, to the laws of these rows of the table, by default all.

    With a `time_limit`, seconds for one check, functions run in a process of their own; an `executor` makes the entries
    in its workers. `progress` is called with each entry and the board as it is then: an interrupted run has that much.

    Raises ParameterError for an unknown adapter or row, UnsupportedError for an adapter that is not installed.
    """
    names, rows = tuple(adapters) or installed(), tuple(ops) or tuple(OPS)
    for row in rows:
        if row not in OPS:
            raise ParameterError("scoreboard", f"operator {row!r}", f"one of {', '.join(OPS)}", "Correct the name.")
    for name in names:
        if name not in OWN:
            require(name)
    packages = {name: ADAPTERS[name].versions if name in ADAPTERS else {} for name in names}
    work = [Work(name, row, examples, seed, time_limit) for name in names for row in rows]
    entries = {(each.adapter, each.op): Entry(each.adapter, each.op, (), None, NOT_REACHED) for each in work}
    board = Scoreboard(packages, tuple(entries.values()), examples, seed)
    for entry in _entries(work, executor):
        entries[entry.adapter, entry.op] = entry
        board = replace(board, entries=tuple(entries.values()))
        progress(entry, board)
    return board


def _entries(work: Sequence[Work], executor: Executor | None) -> Iterator[Entry]:
    if executor is None:
        yield from (each.do() for each in work)
        return
    futures = {executor.submit(each.do): each for each in work}
    for future in as_completed(futures):
        try:
            yield future.result()
        except Exception as error:  # Whatever becomes of one shall not end the others.
            why = "its process ended" if isinstance(error, BrokenExecutor) else f"{type(error).__name__}: {error}"
            yield Entry(futures[future].adapter, futures[future].op, (), None, why)


def installed() -> tuple[str, ...]:
    """The names that can run here, this project's own first."""
    own = [name for name in OWN if name != "cuda" or gpu()[0]]
    return (*own, *(name for name, adapter in ADAPTERS.items() if adapter.installed))
