"""Prove a kernel or refute it: every law that applies, on drawn problems, shrunk to the smallest case that fails."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from kernelproof.spec import OPERATORS, ParameterError

from .cases import Case, known
from .jobs import APART_LIMIT, Job, kept, merge, met, run_jobs, share
from .laws import LAWS, Law
from .power import power
from .problems import Problem
from .report import Failure, Report, Result, in_order
from .shape_algebra import THEOREMS, Theorem, prove
from .subject import Subject, subject_for, subject_of

LEVELS = ("L0", "L1", "L2", "L3", "L4", "L5", "L6", "L7", "L8", "L9")

LONGEST = 10**6
"""Seconds that a check may be given: more than the system's own waiting takes would be an error of its own."""

PROFILES = {"dev": 30, "ci": 100, "nightly": 2000}
"""Problems drawn for each law of each operator."""


def verify(
    kernel: Any = "cpu",
    op: str | None = None,
    *,
    level: str | Iterable[str] | None = None,
    examples: int = PROFILES["ci"],
    seed: int = 0,
    dtypes: tuple[str, ...] | None = None,
    supports: str | Callable[..., bool] | None = None,
    precision: str | None = None,
    layouts: Mapping[str, str] | None = None,
    threads: str | Callable[[int], object] | None = None,
    time_limit: float | None = None,
    shard: str | None = None,
    cases: Iterable[Case] = (),
    museum: bool = False,
    executor: Executor | None = None,
    progress: Callable[[Result], None] = lambda result: None,
) -> Report:
    """Hold a kernel to every law of its operator, or a backend ("cpu", "cuda") to those of all operators and of sizes.

    `kernel` is a function with the operator's own arguments: it is called as `conv2d(x, weight, bias, stride=(sh, sw),
    padding=((top, bottom), (left, right)), dilation=(dh, dw), groups=g)` on numpy arrays; or an object with `forward`
    and `backward`; or a class like `torch.nn.Conv2d` with `backward`. What it is not written for is declared:
    `supports`, `dtypes` (default float32; both float types for a backend), `precision` (default all bits of the dtype;
    for "cuda" the word it is asked with), `layouts`, `threads` (see `subject_of`). Raising UnsupportedError or
    NotImplementedError declines a problem. Neither is ever a pass.

    `examples` problems are drawn for each law, from `seed`. With a `time_limit` (seconds for one check) the kernel is
    kept in a process of its own, so that a crash or a hang is a result. Without one it runs in this process, where it
    could end it, or change numpy, the laws and their verdict: for a kernel that is trusted not to. Bad input (L9)
    always is tried in a process of its own, on backends, and on other kernels where `level` names it. `executor`
    spreads the laws over workers; one with processes needs `if __name__ == "__main__":` in a script. `shard="3/16"`
    holds it to the third of every sixteen laws. `cases` that broke a law before (see `kernelproof.proofs.cases`) are
    tried first. With `museum` the report says how many real faults, planted in other kernels, the same run finds.
    `progress` is called with each result.

    Raises ParameterError for an unknown operator, level, backend or declaration.
    """
    levels = set(LEVELS) if level is None else {level} if isinstance(level, str) else set(level)
    if not levels <= set(LEVELS):
        raise ParameterError(
            "verify", f"level {sorted(levels - set(LEVELS))}", f"some of {', '.join(LEVELS)}", "Choose."
        )
    check_effort("verify", examples, time_limit)
    subject = subject_of(
        kernel, op, dtypes=dtypes, supports=supports, precision=precision, layouts=layouts, threads=threads
    )
    if level is not None and "L9" in levels:
        subject = replace(subject, checked=True)
    work, broke, results = work_of(subject, levels, shard), known(cases, subject.name), []
    for theorem in (each for each in work if isinstance(each, Theorem)):
        results.append(proof_of(theorem))
        progress(results[-1])
    places = [place for place in work if not isinstance(place, Theorem)]
    jobs = [part for place in places for part in Job(*place, examples, seed, known=broke.get(place, ())).parts()]
    left, merged = Counter((job.operator, job.law) for job in jobs), dict[tuple[str, str], Result]()
    for result in run_jobs(subject, jobs, executor, time_limit):
        place = result.operator, result.law
        merged[place] = merge(merged[place], result) if place in merged else result
        left[place] -= 1
        if not left[place]:
            progress(merged[place])
    results += [merged[place] for place in places if place in merged]
    strength = power(subject, places, examples, seed) if museum else {}
    return Report(
        subject.name, seed, examples, in_order(results), subject.declared, subject.source, museum=strength,
        shards=() if shard is None else (shard,),
    )  # fmt: skip


def check_effort(command: str, examples: int = 1, time_limit: float | None = None) -> None:
    """Problems can be drawn, and there is time for them; raises ParameterError."""
    if time_limit is not None and not 0 < time_limit <= LONGEST:
        raise ParameterError(
            command, f"time_limit={time_limit}", f"more than 0 seconds, at most {LONGEST:,}", "Give a check some time."
        )
    if examples < 1:
        raise ParameterError(command, f"examples={examples}", "at least 1", "Draw some problems.")


def work_of(subject: Subject, levels: Iterable[str], shard: str | None = None) -> Sequence[Theorem | tuple[str, str]]:
    """What there is to decide about a subject, or a shard of it: theorems, then operators with the name of a law.

    Level by level: which of several operators is wrong shows at once, and not when those before it are proven.
    """
    theorems = THEOREMS.values() if "L0" in levels and whole_table(subject) else ()
    laws = [(operator, law) for operator in subject.functions for law in laws_for(subject, operator, levels)]
    laws.sort(key=lambda each: each[1].level)
    return share([*theorems, *((operator, law.name) for operator, law in laws)], shard)


def laws_for(subject: Subject, operator: str, levels: Iterable[str] = LEVELS) -> list[Law]:
    """The laws that a subject's kernel for an operator is held to: those whose needs it has declared."""
    return [law for law in laws_of(operator, levels) if law.needs(subject.kernel(operator))]


def whole_table(subject: Subject) -> bool:
    """Whether the subject is a backend with all operators: then the arithmetic they share is part of the proof."""
    return set(subject.functions) == set(OPERATORS)


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


def laws_of(operator: str, levels: Iterable[str] = LEVELS) -> list[Law]:
    """The laws that apply to an operator, by level."""
    levels = set(levels)
    applying = (law for law in LAWS.values() if operator in law.holds_for and law.level in levels)
    return sorted(applying, key=lambda law: law.level)


def check(
    law: str,
    kernel: Any,
    problem: Problem,
    *,
    dtypes: tuple[str, ...] | None = None,
    supports: str | None = None,
    layouts: Mapping[str, str] | None = None,
    threads: str | None = None,
    after: Problem | None = None,
    time_limit: float | None = None,
) -> None:
    """Hold a kernel, in any form that `verify` takes, to one law on one problem; raises LawBroken.

    `after` is a problem that it meets before, whatever comes of that. With a time limit in seconds the kernel is called
    in a process of its own: what ends that is told here. This is what a report's reproduction calls.

    Raises ParameterError for an unknown law.
    """
    if law not in LAWS:
        raise ParameterError("check", f"law {law!r}", f"one of {', '.join(LAWS)}", "Correct the name.")
    subject = subject_for(problem, kernel, dtypes=dtypes, supports=supports, layouts=layouts, threads=threads)
    with kept(subject, APART_LIMIT if LAWS[law].apart and time_limit is None else time_limit) as check_one:
        met(check_one, LAWS[law], after)
        check_one(LAWS[law], problem)
