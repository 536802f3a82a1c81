"""The work of a verification in pieces that run anywhere, in any order: problems for one law of one operator each."""

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, replace
from typing import TypeVar

import cloudpickle

from kernelproof.spec import KernelproofError, ParameterError

from .hold import Check, directly, hold
from .isolation import Isolated
from .laws import LAWS, Law, LawBroken
from .problems import Problem
from .report import Result
from .subject import Subject

T = TypeVar("T")

APART_LIMIT = 120.0
"""Seconds for one check that a kernel may die of, compilation included, where no time limit is given."""

PART = 500
"""Problems in one job, at most: over 0.1 s of work for every law, and few enough to be spread and done again."""


@dataclass(frozen=True)
class Job:
    """One law to hold against one operator's kernel. The same job gives the same result, wherever and however often.

    `part` numbers the jobs that share a law's problems; `known` are problems that the kernel once failed.
    """

    operator: str
    law: str
    examples: int
    seed: int
    part: int = 0
    known: tuple[Problem, ...] = ()

    def run(self, subject: Subject, check: Check | None = None) -> Result:
        """Do it here; `check` says where the kernel is kept."""
        if isinstance(check, Isolated) and (why := check.refusal()):
            subject = replace(subject, unavailable=why)
        # A seed of its own for each part.
        seed = self.seed + 2**32 * self.part
        return hold(LAWS[self.law], subject, self.operator, self.examples, seed, check, self.known)

    def parts(self) -> list["Job"]:
        """The jobs that together do this one, however many workers there are."""
        count = math.ceil(self.examples / PART)
        return [
            replace(
                self,
                examples=self.examples * (part + 1) // count - self.examples * part // count,
                part=part,
                known=self.known[part::count],
            )
            for part in range(count)
        ]


def share(work: Sequence[T], shard: str | None) -> Sequence[T]:
    """For the shard "3/16" the third of every sixteen; all without one. Raises ParameterError."""
    if shard is None:
        return work
    match [int(each) for each in shard.split("/") if each.isdecimal()]:
        case [which, count] if 1 <= which <= count:
            return work[which - 1 :: count]
    raise ParameterError("verify", f"shard {shard!r}", "I/N with 1 <= I <= N", "Write for example 3/16.")


def merge(one: Result, other: Result) -> Result:
    """What both have seen of one law and one operator's kernel, in whatever order and grouping parts are merged."""
    ratios = one.ratios or other.ratios
    if one.ratios and other.ratios:
        ratios = tuple(a + b for a, b in zip(one.ratios, other.ratios, strict=True))
    return replace(
        one,
        cases=one.cases + other.cases,
        vacuous=one.vacuous + other.vacuous,
        unsupported=one.unsupported + other.unsupported,
        seconds=one.seconds + other.seconds,
        worst_ratio=max((each.worst_ratio for each in (one, other) if each.worst_ratio is not None), default=None),
        escape=max((each.escape for each in (one, other) if each.escape is not None), default=None),
        hit={name: one.hit.get(name, 0) + other.hit.get(name, 0) for name in {**one.hit, **other.hit}},
        failure=min(
            (each.failure for each in (one, other) if each.failure),
            key=lambda failure: (failure.burden, len(failure.problem), repr(failure)),
            default=None,
        ),
        ratios=ratios,
        rounded_as=dict(sorted((Counter(one.rounded_as) + Counter(other.rounded_as)).items())),
        declined=min(filter(None, (one.declined, other.declined)), default=""),
    )


def run_jobs(
    subject: Subject, jobs: Iterable[Job], executor: Executor | None = None, time_limit: float | None = None
) -> Iterator[Result]:
    """The results, in the jobs' order here and as they are done on an executor.

    Any `concurrent.futures.Executor` serves; a job whose worker is lost is done again, here. With a time limit the
    kernel is kept in a process of its own; after a hang the jobs that are left are not begun.
    """
    if executor is None:
        with kept(subject, time_limit) as check, kept(subject, time_limit or APART_LIMIT) as apart:
            for job in jobs:
                where = apart if LAWS[job.law].apart and time_limit is None else check
                yield job.run(subject, where)
                if isinstance(where, Isolated) and where.hung:
                    return
        return
    # Functions of __main__ and lambdas are kernels too: the executor's own pickle would refuse them.
    pickled = cloudpickle.dumps(subject)
    futures = {executor.submit(_run_pickled, pickled, job, time_limit): job for job in jobs}
    for future in as_completed(futures):
        try:
            result = future.result()
        except Exception:
            # Not the kernel's, which are results: the worker is lost, perhaps by the kernel. It shall not end us too.
            with Isolated(subject, time_limit) as check:
                result = futures[future].run(subject, check)
        if isinstance(result, KernelproofError):
            raise result
        yield result


def _run_pickled(pickled: bytes, job: Job, time_limit: float | None) -> Result | KernelproofError:
    subject = cloudpickle.loads(pickled)
    with kept(subject, time_limit or (APART_LIMIT if LAWS[job.law].apart else None)) as check:
        try:
            return job.run(subject, check)
        except KernelproofError as wrong_usage:
            return wrong_usage


def met(check: Check, law: Law, earlier: Problem | None) -> None:
    """Let the kernel meet a problem, if there is one, whatever comes of it."""
    if earlier is not None:
        with contextlib.suppress(LawBroken, KernelproofError, NotImplementedError):
            check(law, earlier)


@contextlib.contextmanager
def kept(subject: Subject, time_limit: float | None) -> Iterator[Check]:
    """Where the kernel runs: in this process, or with a time limit in one of its own, begun with the first check."""
    if time_limit is None:
        yield directly(subject)
        return
    with Isolated(subject, time_limit) as check:
        yield check
