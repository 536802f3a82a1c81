"""The work of a verification in pieces that run anywhere: one law of one operator each."""

import contextlib
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, as_completed
from dataclasses import dataclass

import cloudpickle

from .hold import Check, directly, hold
from .isolation import Isolated
from .laws import LAWS
from .report import Result
from .subject import Subject


@dataclass(frozen=True)
class Job:
    """One law to hold against one operator's kernel. The same job gives the same result, wherever and however often."""

    operator: str
    law: str
    examples: int
    seed: int

    def run(self, subject: Subject, check: Check | None = None) -> Result:
        """Do it here; `check` says where the kernel is kept."""
        return hold(LAWS[self.law], subject, self.operator, self.examples, self.seed, check)


def run_jobs(
    subject: Subject, jobs: Iterable[Job], executor: Executor | None = None, time_limit: float | None = None
) -> Iterator[Result]:
    """The results, in the jobs' order here and as they are done on an executor.

    Any `concurrent.futures.Executor` serves; a job whose worker is lost is done again, here. With a time limit the
    kernel is kept in a process of its own; after a hang the jobs that are left are not begun.
    """
    if executor is None:
        with _kept(subject, time_limit) as check:
            for job in jobs:
                yield job.run(subject, check)
                if isinstance(check, Isolated) and check.hung:
                    return
        return
    # Functions of __main__ and lambdas are kernels too: the executor's own pickle would refuse them.
    pickled = cloudpickle.dumps(subject)
    futures = {executor.submit(_run_pickled, pickled, job, time_limit): job for job in jobs}
    for future in as_completed(futures):
        try:
            yield future.result()
        except BrokenExecutor:
            with _kept(subject, time_limit) as check:
                yield futures[future].run(subject, check)


def _run_pickled(pickled: bytes, job: Job, time_limit: float | None) -> Result:
    subject = cloudpickle.loads(pickled)
    with _kept(subject, time_limit) as check:
        return job.run(subject, check)


@contextlib.contextmanager
def _kept(subject: Subject, time_limit: float | None) -> Iterator[Check]:
    """Where the kernel runs: in this process, or with a time limit in one of its own."""
    if time_limit is None:
        yield directly(subject)
        return
    with Isolated(subject, time_limit) as check:
        yield check
