"""Prove a kernel or refute it: every law that applies, on drawn problems, shrunk to the smallest case that fails."""

import contextlib
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.strategies import SearchStrategy

from kernelproof import kernels
from kernelproof.spec import OPERATORS, ParameterError, UnsupportedError, find
from kernelproof.spec.operator import Operator

from . import metamorphic  # noqa: F401 - registers its laws
from .coverage import predicates
from .laws import LAWS, Kernel, Law, LawBroken
from .problems import Problem, problems
from .report import Failure, Report, Result
from .shape_algebra import THEOREMS, Theorem, prove

LEVELS = ("L0", "L1", "L2", "L3", "L4", "L5", "L6", "L7")

PROFILES = {"dev": 30, "ci": 100, "nightly": 2000}
"""Problems drawn for each law of each operator."""

DIRECTED = 3
"""Problems drawn for each predicate of the coverage list that chance has left out."""


def subjects(kernel: Any, op: str | None) -> dict[str, Kernel]:
    """The kernels to prove by operator name: one function for `op`, or a backend's every operator."""
    names = list(OPERATORS) if op is None else _matching(op)
    if isinstance(kernel, str):
        kernel = kernels.backend(kernel)
    if isinstance(kernel, kernels.Backend):
        return {name: _on_backend(kernel, OPERATORS[name]) for name in names}
    if op is None:
        raise ParameterError("verify", "a function without op", "the operator it computes", 'Pass op="conv2d".')
    if not callable(kernel):
        raise ParameterError("verify", f"a {type(kernel).__name__}", "a function or a backend's name", "Pass either.")
    find(op)
    return {op: kernel}


def _matching(op: str) -> list[str]:
    """`conv2d` and its gradients for the row's name, one operator for a full one such as `conv2d.dx`."""
    find(op)
    return [name for name in OPERATORS if name == op or name.startswith(f"{op}.")]


def _on_backend(backend: kernels.Backend, operator: Operator[...]) -> Kernel:
    return lambda *args, **kwargs: backend(operator, *args, **kwargs)


def verify(
    kernel: Any = "cpu",
    op: str | None = None,
    *,
    level: str | Iterable[str] | None = None,
    examples: int = PROFILES["ci"],
    seed: int = 0,
    dtypes: tuple[str, ...] | None = None,
    progress: Callable[[Result], None] = lambda result: None,
) -> Report:
    """Hold a kernel to every law of its operator, or a backend ("cpu", "cuda") to those of all operators and of sizes.

    `kernel` is a function with the operator's own arguments: it is called as `conv2d(x, weight, bias, stride=(sh, sw),
    padding=((top, bottom), (left, right)), dilation=(dh, dw), groups=g)` on numpy arrays. `examples` problems are drawn
    for each law, from `seed`. `dtypes` defaults to float32 for a function, both float types for a backend. `progress`
    is called with each result. Raising UnsupportedError or NotImplementedError is an answer of its own, never a pass.

    Raises ParameterError for an unknown operator, level or backend.
    """
    levels = set(LEVELS) if level is None else {level} if isinstance(level, str) else set(level)
    if not levels <= set(LEVELS):
        raise ParameterError(
            "verify", f"level {sorted(levels - set(LEVELS))}", f"some of {', '.join(LEVELS)}", "Choose."
        )
    if examples < 1:
        raise ParameterError("verify", f"examples={examples}", "at least 1", "Draw some problems.")
    if dtypes is None:
        dtypes = ("float32", "float64") if isinstance(kernel, str | kernels.Backend) else ("float32",)
    results = []
    if "L0" in levels and op is None:
        for theorem in THEOREMS.values():
            results.append(proof_of(theorem))
            progress(results[-1])
    for operator, function in subjects(kernel, op).items():
        for law in laws_of(operator, levels):
            results.append(hold(law, function, operator, examples, seed, dtypes))
            progress(results[-1])
    return Report(name_of(kernel), seed, examples, tuple(results))


def proof_of(theorem: Theorem) -> Result:
    """A theorem of the shape arithmetic that all operators stand on: its cases are the paths through the arithmetic."""
    proof = prove(theorem)
    refuted = f"{theorem.name}: {proof.counterexample or 'z3 found no proof'}"
    return Result(
        operator="sizes",
        law=theorem.name,
        level="L0",
        statement=theorem.statement,
        cases=proof.paths,
        vacuous=0,
        unsupported=0,
        seconds=proof.seconds,
        worst_ratio=None,
        escape=None,
        hit={},
        failure=None if proof.proved else Failure(refuted, "", (), proof.counterexample or {}),
    )


def laws_of(operator: str, levels: Iterable[str] = LEVELS) -> Iterator[Law]:
    """The laws that apply to an operator, by level."""
    return (law for law in sorted(LAWS.values(), key=lambda law: law.level)
            if operator in law.holds_for and law.level in levels)  # fmt: skip


def name_of(kernel: Any) -> str:
    """What to call the kernel in a report: the backend, or the function's module and name."""
    if isinstance(kernel, str | kernels.Backend):
        return kernel if isinstance(kernel, str) else kernel.name
    return f"{getattr(kernel, '__module__', '?')}:{getattr(kernel, '__qualname__', type(kernel).__name__)}"


@dataclass
class _Run:
    """What one law has seen of one kernel."""

    law: Law
    kernel: Kernel
    operator: str
    cases: int = 0
    vacuous: int = 0
    unsupported: int = 0
    worst: float = 0.0
    escape: float | None = None
    hit: Counter[str] = field(default_factory=Counter)
    broken: LawBroken | None = None

    def check(self, problem: Problem) -> None:
        try:
            seen = self.law.check(self.kernel, problem)
        except (UnsupportedError, NotImplementedError):
            self.unsupported += 1
            return
        except LawBroken as broken:
            self.broken = broken
            raise
        except Exception as error:
            # A legal call: whatever the kernel raises is an answer that the law does not allow.
            self.broken = LawBroken(f"{self.operator}: the kernel raised {type(error).__name__}: {error}", problem)
            raise self.broken from error
        self.cases += not seen.vacuous
        self.vacuous += seen.vacuous
        self.worst = max(self.worst, seen.ratio)
        if seen.escape is not None:
            self.escape = max(self.escape or 0.0, seen.escape)
        self.hit.update(name for name, holds in predicates(self.operator).items() if holds(problem))


def hold(
    law: Law, kernel: Kernel, operator: str, examples: int, seed: int, dtypes: tuple[str, ...] = ("float32",)
) -> Result:
    """Draw problems, check the law on each, shrink the first that breaks it."""
    started, run = time.perf_counter(), _Run(law, kernel, operator)
    strategy = problems(operator, law.family, dtypes).filter(law.where)
    # A seed of its own for each law: laws that saw the same problems would be blind to the same faults.
    seed = zlib.crc32(f"{seed} {law.name} {operator}".encode())
    try:
        with warnings.catch_warnings():
            # Overflowing and invalid operations are part of the problems; the answer is what counts.
            warnings.simplefilter("ignore", RuntimeWarning)
            _draw(strategy, run.check, examples, seed)
            for name, holds in predicates(operator).items():
                if not run.hit[name] and not run.unsupported:
                    _draw(strategy.filter(holds), run.check, DIRECTED, seed)
    except LawBroken:
        pass
    except hypothesis.errors.Flaky:
        # The smallest case passed when it was tried again: the law broke all the same.
        if run.broken is None:
            raise
        run.broken.args = (f"{run.broken} (not every time: the kernel's answer varies)",)
    return Result(
        operator=operator,
        law=law.name,
        level=law.level,
        statement=law.statement,
        cases=run.cases,
        vacuous=run.vacuous,
        unsupported=run.unsupported,
        seconds=time.perf_counter() - started,
        worst_ratio=run.worst if law.level == "L3" else None,
        escape=run.escape,
        hit={name: run.hit[name] for name in predicates(operator)},
        failure=Failure.of(run.broken) if run.broken else None,
    )


def _draw(strategy: SearchStrategy[Problem], check: Callable[[Problem], None], examples: int, seed: int) -> None:
    """Check drawn problems; the exception that leaves is the smallest failing problem's."""

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def every(problem: Problem) -> None:
        check(problem)

    with contextlib.suppress(hypothesis.errors.Unsatisfiable):
        every()


def check(law: str, kernel: Kernel, problem: Problem) -> None:
    """Hold one kernel to one law on one problem, as a report's reproduction does; raises LawBroken."""
    if law not in LAWS:
        raise ParameterError("check", f"law {law!r}", f"one of {', '.join(LAWS)}", "Correct the name.")
    LAWS[law].check(kernel, problem)


def backend_kernel(backend: str, operator: str) -> Kernel:
    """The function that `backend` ("cpu", "cuda") performs `operator` ("conv2d.dx") with."""
    return _on_backend(kernels.backend(backend), find(operator))
