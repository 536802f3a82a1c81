"""Every configuration of an operator up to a size, the kernel held to the exact law (L1) on each."""

import hashlib
import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice

import cloudpickle
import numpy as np

from kernelproof.spec import ParameterError, UnsupportedError
from kernelproof.spec.window import whole

from .configurations import Configurations
from .hold import Check, directly, outside, reason
from .isolation import Isolated
from .jobs import merge, share
from .judging import Kernel, LawBroken, all_zero, compare, evaluate
from .laws import LAWS, Law, Observation
from .loops import reference
from .problems import Problem
from .report import Failure, Result
from .subject import Subject
from .values import largest_whole
from .values import whole as whole_numbers

LAW = LAWS["equals_the_specification_on_whole_numbers"]

CHUNK = 1000
"""Configurations in one piece of work: over 0.1 s, and little to do again."""

AHEAD = 64
"""Chunks that are given out before the first of them is done: enough to keep so many workers busy."""


@dataclass(frozen=True)
class Scope:
    """What is to be exhausted. `draws` of values for each configuration; with `shard` "I/N" every N-th chunk only."""

    operator: str
    max_size: int
    steps: int | None = None
    draws: int = 1
    seed: int = 0
    dtype: str = "float32"
    shard: str | None = None

    @property
    def configurations(self) -> Configurations:
        """All of them, whatever the shard. Raises ParameterError."""
        return _configurations(self.operator, self.max_size, self.steps)

    @property
    def chunks(self) -> Sequence[int]:
        """The numbers of this shard's chunks. Raises ParameterError."""
        return share(range(math.ceil(self.configurations.count / CHUNK)), self.shard)

    def problems(self, number: int) -> Iterator[Problem]:
        """The problems of one chunk."""
        last = min((number + 1) * CHUNK, self.configurations.count)
        return (self.configurations.problem(index, self.seed, self.dtype) for index in range(number * CHUNK, last))

    @property
    def size(self) -> int:
        """How many configurations the shard's chunks hold."""
        chunks, count = self.chunks, self.configurations.count
        cut_short = bool(chunks) and chunks[-1] == (count - 1) // CHUNK
        return len(chunks) * CHUNK - (-count % CHUNK if cut_short else 0)

    def steps_done(self, done: int) -> int:
        """How many steps from the smallest the next configuration after so many chunks is."""
        return self.configurations.steps_of(min(self.chunks[done - 1] + 1, self.chunks[-1]) * CHUNK)


_configurations = cache(Configurations)


@dataclass(frozen=True)
class Progress:
    """So many chunks are done, with this result; the first failure ends it. As JSON it is a checkpoint."""

    done: int
    result: Result

    def text(self) -> str:
        """A checkpoint's content."""
        return json.dumps(asdict(self))

    @staticmethod
    def of(text: str) -> "Progress":
        """What a checkpoint says; raises ValueError, TypeError, KeyError."""
        data = json.loads(text)
        return Progress(data["done"], Result(**{**data["result"], "failure": None, "ratios": ()}))


def name_of_run(subject: Subject, scope: Scope) -> str:
    """Names a run by all that its result depends on: a checkpoint of another kernel, or scope, is not taken up."""
    content = json.dumps([subject.name, subject.source, subject.declared, asdict(scope)], default=str)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def exhaust(
    subject: Subject,
    scope: Scope,
    start: Progress | None = None,
    executor: Executor | None = None,
    time_limit: float | None = None,
) -> Iterator[Progress]:
    """Hold the kernel to the law on every configuration from `start` on, smallest first; what is done after each chunk.

    On an executor chunks are done ahead, but told in order: the first failure is the smallest configuration that fails.
    With a time limit, for one chunk, a kernel that hangs or ends its worker is told like any other failure. Raises
    OSError if a worker is lost for another reason, ParameterError.
    """
    whole("exhaust", "draws", scope.draws, 1)
    if scope.operator not in subject.functions:
        raise ParameterError("exhaust", f"op={scope.operator!r}", f"one of {', '.join(subject.functions)}", "Choose.")
    progress = start or Progress(0, _result(scope, 0, 0, 0, 0.0, None, None))
    for result in _results(subject, scope, scope.chunks[progress.done :], executor, time_limit):
        progress = Progress(progress.done + 1, merge(progress.result, result))
        yield progress
        if result.failure:
            return


def _results(
    subject: Subject, scope: Scope, chunks: Sequence[int], executor: Executor | None, time_limit: float | None
) -> Iterator[Result]:
    if executor is None:
        yield from (_hold_chunk(subject, scope, chunk) for chunk in chunks)
        return
    pickled, left, ahead = cloudpickle.dumps(subject), iter(chunks), deque[tuple[int, Future[Result]]]()
    while True:
        # Enough to keep every worker busy while the first one is waited for.
        for chunk in islice(left, AHEAD - len(ahead)):
            ahead.append((chunk, executor.submit(_hold_pickled, pickled, scope, chunk)))
        if not ahead:
            return
        chunk, future = ahead.popleft()
        try:
            yield future.result(time_limit)
        except Exception as lost:  # Each executor has its own for a worker that is lost.
            # The kernel may have ended the worker, or hang: one configuration at a time tells which.
            with Isolated(subject, time_limit) as check:
                result = _held(subject, scope, chunk, LAW, check)
            if result.failure is None:
                raise OSError(
                    f"exhaust: a worker was lost or took over {time_limit} s, not by a failing case"
                ) from lost
            yield result


def _hold_pickled(pickled: bytes, scope: Scope, chunk: int) -> Result:
    return _hold_chunk(_loaded(pickled), scope, chunk)


@cache
def _loaded(pickled: bytes) -> Subject:
    return cloudpickle.loads(pickled)


def _hold_chunk(subject: Subject, scope: Scope, chunk: int) -> Result:
    law = replace(LAW, check=lambda kernel, problem: _equals_the_reference(kernel, problem, scope.draws))
    return _held(subject, scope, chunk, law, directly(subject), lambda broken: _confirmed(broken, subject))


def _held(
    subject: Subject,
    scope: Scope,
    chunk: int,
    law: Law,
    check: Check,
    confirmed: Callable[[LawBroken], LawBroken] = lambda broken: broken,
) -> Result:
    """What a chunk's problems say: up to the first that breaks the law."""
    started, held, vacuous, unsupported, escape, failure = time.perf_counter(), 0, 0, 0, None, None
    declined = ""
    for problem in scope.problems(chunk):
        if not subject.supports(problem):
            unsupported, declined = unsupported + 1, declined or outside(subject)
            continue
        try:
            seen = check(law, problem)
        except (UnsupportedError, NotImplementedError) as error:
            unsupported, declined = unsupported + 1, declined or reason(error)
            continue
        except LawBroken as broken:
            failure = Failure.of(confirmed(broken))
            break
        held += not seen.vacuous
        vacuous += seen.vacuous
        if seen.escape is not None:
            escape = max(escape or 0.0, seen.escape)
    seconds = time.perf_counter() - started
    return _result(scope, held, vacuous, unsupported, seconds, escape, failure, declined)


def _equals_the_reference(kernel: Kernel, problem: Problem, draws: int) -> Observation:
    """The law, with compiled loops in place of the specification, on the very numbers that it would draw."""
    most, vacuous = _largest(problem), True
    for draw in range(draws):
        drawn = problem.redrawn(draw)
        arrays = whole_numbers(drawn, np.random.default_rng([drawn.seed, *map(ord, drawn.family)]), most)
        right = reference(drawn, arrays)
        compare(drawn, evaluate(kernel, drawn, arrays), right)
        vacuous = vacuous and all_zero(right)
    return Observation(escape=(2 / (2 * most + 1)) ** draws if problem.op.linear_in else None, vacuous=vacuous)


def _largest(problem: Problem) -> int:
    if problem.op.name != "conv2d":
        return largest_whole(problem)
    # The loops on ones count the terms, as the specification does.
    ones = {name: np.ones(shape, np.int64) for name, shape in problem.array_shapes.items()}
    return largest_whole(problem, max(1, int(reference(problem, ones)[0].max(initial=1))))


def _confirmed(broken: LawBroken, subject: Subject) -> LawBroken:
    """The failure as the law itself, and so the reproduction, tells it."""
    assert broken.problem is not None
    try:
        directly(subject)(LAW, broken.problem)
    except LawBroken as told:
        return told
    broken.args = (f"{broken} (not every time: the kernel's answer varies)",)
    return broken


def _result(
    scope: Scope, held: int, vacuous: int, unsupported: int, seconds: float, escape: float | None,
    failure: Failure | None, declined: str = "",
) -> Result:  # fmt: skip
    return Result(
        scope.operator, LAW.name, LAW.level, LAW.statement, held, vacuous, unsupported, seconds, None, escape, {},
        failure, declined=declined,
    )  # fmt: skip
