"""What a run of the laws found: data first, then JSON of it, which is the one source of every other form."""

import math
import platform
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from typing import Any

from kernelproof.spec import OPERATORS, ParameterError

from .judging import Differences, LawBroken

SCHEMA = "kernelproof.report/1"
"""Changes its number when a reader of the JSON would have to change."""

RATIO_BINS = 20
"""Classes of the ratio of error to bound, equally wide from 0 to 1."""

PRECISION = {"float32": "fp32", "float64": "fp64"}
"""The precision class that keeps all bits of a dtype."""
ROUNDING = ("L2", "L3")
"""Levels whose laws hold a kernel to its precision class."""


@dataclass(frozen=True)
class Failure:
    """The smallest case that breaks a law, the code that shows it again, and where a larger case's result differs.

    `after` is the code of a problem that the kernel has to meet before, if there is one; `elements` counts those of the
    problem's arrays and of its output. A failure that `varies` is not seen each time that its case is tried.
    """

    message: str
    problem: str
    index: tuple[int, ...]
    values: Mapping[str, Any]
    differences: Differences | None = None
    larger: str = ""
    after: str = ""
    elements: int = 0
    varies: bool = False

    @property
    def burden(self) -> tuple[bool, bool, int]:
        """What a reader has to take in to see it: of several cases, the one with the least is shown."""
        return self.varies, bool(self.after), self.elements

    @staticmethod
    def of(broken: LawBroken, wider: LawBroken | None = None) -> "Failure":
        """The failure that a broken law describes; `wider`, a larger case of it, shows where results differ."""
        wider = wider or broken
        differences = wider.values.get("differences")
        values = {name: value for name, value in broken.values.items() if name not in ("differences", "refusal")}
        larger = repr(wider.problem) if differences else ""
        after = repr(broken.after) if broken.after else ""
        problem = broken.problem
        elements = sum(map(math.prod, (*problem.array_shapes.values(), problem.output)))
        return Failure(
            str(broken), repr(problem), broken.index, values, differences, larger, after, elements, broken.varies
        )


@dataclass(frozen=True)
class Result:
    """One law held against one operator's kernel; `vacuous` problems, where zeros are right, are no `cases`.

    `ratios` counts the problems by their worst error over its bound, in `RATIO_BINS` classes. `declined` is why one of
    the `unsupported` problems was. `rounded_as` counts the problems, by class, with the numbers and bound of another
    precision class than the one that was declared: that of the algorithm which the CPU's planner takes there.
    """

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
    ratios: tuple[int, ...] = ()
    declined: str = ""
    rounded_as: Mapping[str, int] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """proven, refuted, unsupported (it declined every problem) or vacuous (no problem said anything)."""
        if self.failure is not None:
            return "refuted"
        if self.cases:
            return "proven"
        return "vacuous" if self.vacuous else "unsupported"


def versions() -> dict[str, str]:
    """What the run was made with."""
    packages = ("kernelproof", "numpy", "numba", "hypothesis")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@dataclass(frozen=True)
class Report:
    """Every result of one `verify`, with what is needed to run it again.

    `declared` is what the author said about the kernel, `source` names the state of its source, if Python has it.
    `museum` says for each operator how many of the museum's faults the same run finds, and of how many. `shards` are
    those of a run that this holds, such as 2/3; none if it is a whole run.
    """

    kernel: str
    seed: int
    examples: int
    results: tuple[Result, ...]
    declared: Mapping[str, Any] = field(default_factory=dict)
    source: str | None = None
    versions: Mapping[str, str] = field(default_factory=versions)
    museum: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    shards: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The shards of the run that this does not hold."""
        of = {each.partition("/")[2] for each in self.shards}
        whole = [f"{i}/{count}" for count in of for i in range(1, int(count) + 1)]
        return tuple(each for each in whole if each not in self.shards)

    @property
    def verdict(self) -> str:
        """refuted if any law is; else proven if any was held and none was vacuous; else unsupported or vacuous.

        A kernel that declined every problem is unsupported, even if the sizes are proven and it refuses bad input.
        """
        verdicts = Counter(result.verdict for result in self.results)
        answers = {result.verdict for result in self.results if result.level not in ("L0", "L9")}
        if answers == {"unsupported"} and not verdicts["refuted"]:
            return "unsupported"
        for verdict in ("refuted", "vacuous", "proven"):
            if verdicts[verdict]:
                return verdict
        return "unsupported"

    def __str__(self) -> str:
        """The verdict, and what to know about each law that is broken."""
        lines = [
            f"{self.kernel}: {self.verdict}, {len(self.laws)} laws on {self.problems:,} problems, seed {self.seed}"
        ]
        for result in self.failures:
            assert result.failure is not None
            lines += ["", f"{result.level} {result.law.replace('_', ' ')}", result.failure.message]
            lines += [reproduction(result, self)]
        return "\n".join(lines)

    @property
    def exit_status(self) -> int:
        """0 proven, 1 refuted, 3 nothing checked."""
        return {"proven": 0, "refuted": 1}.get(self.verdict, 3)

    @property
    def layouts(self) -> Mapping[str, str]:
        """The declared axes of arrays that are not in the specification's order."""
        return self.declared.get("layouts", {})

    @property
    def needed(self) -> dict[str, Any]:
        """What of the declaration is needed to try one problem again, as `check` takes it: a law may lead to others."""
        limits = self.declared.get("supports")
        dtypes = tuple(self.declared.get("dtypes", ()))
        needed = {
            # A backend has its own; a function without a name that can be imported is no limit that can be told.
            "dtypes": dtypes if ":" in self.kernel and dtypes != ("float32",) else (),
            "supports": limits if limits and not re.search("<(lambda|locals)>", limits) else "",
            "layouts": dict(self.layouts),
            "threads": self.declared.get("threads"),
        }
        return {name: value for name, value in needed.items() if value}

    @property
    def precision_found(self) -> str:
        """What the laws of rounding say of the declared class: kept, not kept, or not examined."""
        verdicts = {result.verdict for result in self.results if result.level in ROUNDING}
        return "not kept" if "refuted" in verdicts else "kept" if "proven" in verdicts else "not examined"

    @property
    def precision(self) -> str:
        """The declared precision class: without one, all bits of the dtypes."""
        return self.declared.get("precision") or " and ".join(
            map(PRECISION.__getitem__, self.declared.get("dtypes", ()))
        )

    @property
    def operators(self) -> tuple[str, ...]:
        """The operators that laws were held for, in the reports' order."""
        return tuple(dict.fromkeys(result.operator for result in self.laws))

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

    @property
    def smallest(self) -> dict[str, Result]:
        """For each refuted operator the law whose failing case is pasted: the smallest, or one hardly larger before it.

        Laws are held from the most telling ones on: of 3 elements that take two calls and 4 that take one, it is these.
        """
        chosen: dict[str, Result] = {}
        for operator in dict.fromkeys(result.operator for result in self.failures):
            fallen = [(each, each.failure) for each in self.failures if each.operator == operator and each.failure]
            *kind, elements = min(failure.burden for _, failure in fallen)
            chosen[operator] = next(
                result for result, failure in fallen
                if [failure.varies, bool(failure.after)] == kind and failure.elements <= 2 * elements
            )  # fmt: skip
        return chosen

    @property
    def shown(self) -> tuple[Result, ...]:
        """The refuted laws as a page shows them: each operator's with the smallest case first, then the others."""
        smallest = list(self.smallest.values())
        return (*smallest, *(result for result in self.failures if result not in smallest))

    @property
    def worst_ratio(self) -> float | None:
        """The worst error over its bound, of all laws that measure it."""
        return max((result.worst_ratio for result in self.results if result.worst_ratio is not None), default=None)

    @property
    def escape(self) -> float | None:
        """How likely a wrong kernel is to pass one problem, for the weakest of the exact laws (L1)."""
        return max((result.escape for result in self.results if result.level == "L1" and result.escape), default=None)

    def hit(self, operator: str, level: str | None = None) -> dict[str, int]:
        """How many problems of this operator each predicate has seen, over all laws or those of a level."""
        counts: Counter[str] = Counter()
        for result in self.results:
            if result.operator == operator and level in (None, result.level):
                counts.update(result.hit)
        return dict(counts)

    def as_json(self) -> dict[str, Any]:
        """Everything, as a program would read it: what is not finite, which JSON has no number for, by its name."""
        results = [{**asdict(result), "verdict": result.verdict} for result in self.results]
        smallest = {operator: result.law for operator, result in self.smallest.items()}
        summary = {
            "schema": SCHEMA, "verdict": self.verdict, "precision": self.precision,
            "precision_found": self.precision_found, "smallest": smallest,
        }  # fmt: skip
        return _finite(summary | asdict(self) | {"results": results})

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> "Report":
        """The report that `as_json` wrote; raises ParameterError for a schema that this version does not read."""
        if data.get("schema") != SCHEMA:
            raise ParameterError("report", f"schema {data.get('schema')!r}", repr(SCHEMA), "Write it anew with verify.")
        given = {name: data[name] for name in ("kernel", "seed", "examples", "declared", "source", "versions")}
        museum = {operator: (found, planted) for operator, (found, planted) in data.get("museum", {}).items()}
        shards = tuple(map(str, data.get("shards", ())))
        return Report(results=tuple(map(_result, data["results"])), museum=museum, shards=shards, **given)


def together(reports: Sequence[Report]) -> Report:
    """Shards of one run as one report, in whatever order; raises ParameterError for runs that differ or overlap."""
    first, *others = reports
    for name in ("kernel", "seed", "examples", "declared", "source", "versions"):
        for other in others:
            if getattr(other, name) != getattr(first, name):
                came = f"{name} {getattr(first, name)!r} and {getattr(other, name)!r}"
                raise ParameterError("report", came, "shards of one run", "Make them anew, alike.")
    results = [result for each in reports for result in each.results]
    places = Counter((result.operator, result.law) for result in results)
    if twice := [f"{law} of {operator}" for (operator, law), count in places.items() if count > 1]:
        raise ParameterError(
            "report", f"{twice[0]} in {places.most_common(1)[0][1]} of them", "each once", "Name each shard once."
        )
    museum = {name: found for each in reports for name, found in each.museum.items()}
    shards = tuple(shard for each in reports for shard in each.shards)
    return replace(first, results=in_order(results), museum=museum, shards=shards)


def in_order(results: Iterable[Result]) -> tuple[Result, ...]:
    """Results in the order of a report: theorems, then each operator's laws by level."""
    return tuple(
        sorted(results, key=lambda result: (result.level != "L0", _PLACES.index(result.operator), result.level))
    )


def _result(data: Mapping[str, Any]) -> Result:
    given = {name: value for name, value in data.items() if name != "verdict"}
    if failure := given["failure"]:
        differences = failure["differences"] and Differences(
            shape=tuple(failure["differences"]["shape"]),
            count=failure["differences"]["count"],
            indices=tuple(map(tuple, failure["differences"]["indices"])),
            errors=tuple(map(float, failure["differences"]["errors"])),
        )
        values = {name: float(value) if value in _NAMES else value for name, value in failure["values"].items()}
        given["failure"] = Failure(
            failure["message"], failure["problem"], tuple(failure["index"]), values, differences, failure["larger"],
            failure.get("after", ""), failure.get("elements", 0), failure.get("varies", False),
        )  # fmt: skip
    result = Result(**{**given, "ratios": tuple(given["ratios"])})
    texts, numbers = (result.law, result.level, result.statement), (result.cases, result.vacuous, result.unsupported)
    if result.operator not in _PLACES or not all(isinstance(each, str) for each in texts):
        raise TypeError(f"a result of {result.operator!r} {result.law!r}")
    if not all(isinstance(each, int) for each in numbers) or not isinstance(result.seconds, int | float):
        raise TypeError(f"a result on {numbers} problems in {result.seconds!r} s")
    return result


_PLACES = ("sizes", *OPERATORS)
"""What results are of, in the order of a report."""

_NAMES = ("nan", "inf", "-inf")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, tuple | list) else value


def count(number: int, what: str) -> str:
    """`1 law`, `2 laws`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def wider(result: Result) -> str:
    """How many of a law's problems were of another precision class than the declared one; nothing if none."""
    return ", ".join(
        f"{number:,} of them with the numbers and bound of {kind}" for kind, number in result.rounded_as.items()
    )


def reproduction(result: Result, report: Report) -> str:
    """Python that shows a kernel's failure again when it is pasted."""
    if result.failure is None or not result.failure.problem:
        return ""
    module, colon, name = report.kernel.partition(":")
    needed = "".join(f", {name}={value!r}" for name, value in report.needed.items())
    if result.failure.after:
        needed = f", after=earlier{needed}"
    if limit := result.failure.values.get("time_limit"):
        needed += f", time_limit={limit:g}"
    earlier = f"earlier = {result.failure.after}\n" if result.failure.after else ""
    source = f"from {module} import {name} as kernel" if colon else f"kernel = {report.kernel!r}"
    if "<locals>" in name or name.endswith("(...)"):
        source = f"# kernel = {name} of {module}, as it was built: no module has it by a name"
    elif name.endswith("()"):
        source = (
            f"from {module} import {name.partition('.')[0].removesuffix('()')}\nkernel = {name}  # As it was built."
        )
    return (
        f"from kernelproof.proofs import Problem, check\n{source}\n"
        f"{earlier}problem = {result.failure.problem}\ncheck({result.law!r}, kernel, problem{needed})"
    )


def smallest_case(result: Result) -> str:
    """What stands over the code of a failure, wherever it is shown."""
    elements = result.failure.elements if result.failure else 0
    is_shrunk = result.failure is None or result.failure.values.get("shrunk", True)  # A hang is not: it takes long.
    return (
        ("The smallest" if is_shrunk else "A")
        + " case that shows it"
        + (f" ({count(elements, 'element')})" if elements else "")
    )
