"""One law held against one kernel: problems drawn, the first that breaks the law shrunk to the smallest."""

import contextlib
import math
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TypeAlias

import hypothesis.errors

from kernelproof.spec import UnsupportedError

from . import manners, metamorphic, refusals  # noqa: F401 - they register their laws
from .coverage import predicates
from .drawing import Domain, shrink
from .fitting import fitted
from .isolation import Isolated
from .judging import said, told
from .laws import LAWS, Law, LawBroken, Observation
from .neighbours import NARROWER, legal, narrowed
from .problems import Problem
from .report import RATIO_BINS, Failure, Result
from .subject import Subject

Check: TypeAlias = Callable[[Law, Problem], Observation]
"""Checks one law on one problem: in this process, or wherever the kernel is kept."""

DIRECTED = 3
"""Problems drawn for each predicate of the coverage list that chance has left out."""

ROUNDS = 5
"""How often they are drawn, at most, when a kernel declines them."""

PATIENCE = 20
"""Problems drawn for each one asked for, at most, when a kernel declines most of them."""

SEARCHED = 2000
"""Problems among which there is one to find, or the search ends."""

SMALL = 20
"""Small problems that are tried once one has failed: the smallest that fails is looked for from there."""

SEEDS = 3
"""Values that are tried for each smaller problem, at most, beside its own."""

KEPT_STATE = "not as the first call of a new process: what the kernel keeps of earlier calls, raised ones too, decides"
"""Said of a case that holds when it is tried alone."""

WIDEST = 4096
"""Elements of the largest failing result whose differences are kept as a picture, beside the smallest case."""


def directly(subject: Subject) -> Check:
    """Check in this process."""

    def check(law: Law, problem: Problem) -> Observation:
        try:
            return law.check(subject.kernel(problem.operator), problem)
        except (LawBroken, UnsupportedError, NotImplementedError):
            raise
        except KeyboardInterrupt:
            raise  # It may be the user's.
        except BaseException as error:
            # A legal call: whatever the kernel raises, SystemExit too, is an answer that the law does not allow.
            raise told(problem, error) from error

    return check


def outside(subject: Subject) -> str:
    """Why a problem that the kernel is not declared for was not tried."""
    return f"it is declared for {subject.limits or 'other problems'}"


def reason(declined: Exception) -> str:
    """Why a kernel declined a problem, in its own words."""
    return said(declined) or f"it raised {type(declined).__name__}"


def _always(problem: Problem) -> bool:
    return True


@dataclass
class _Run:
    """What one law has seen of one kernel."""

    law: Law
    subject: Subject
    operator: str
    check_one: Check
    cases: int = 0
    vacuous: int = 0
    unsupported: int = 0
    declined: str = ""
    missed: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0
    ratios: Counter[int] = field(default_factory=Counter)
    rounded_as: Counter[str] = field(default_factory=Counter)
    escape: float | None = None
    hit: Counter[str] = field(default_factory=Counter)
    broken: LawBroken | None = None
    widest: LawBroken | None = None

    @property
    def domain(self) -> Domain:
        return Domain(self.operator, self.law.family, self.subject.dtypes, self.subject.precision_of(self.operator))

    def check(self, problem: Problem, holds: Callable[[Problem], bool] = _always) -> None:
        """Check the law on a problem, or on one that fits the declaration, if the problem does not, and still holds."""
        if not self.subject.supports(problem):
            self.decline(outside(self.subject), problem)
            fitting = fitted(problem, lambda each: self.subject.supports(each) and self.law.where(each) and holds(each))
            if fitting is None:
                return
            problem = fitting
        try:
            seen = self.check_one(self.law, problem)
        except (UnsupportedError, NotImplementedError) as error:
            self.decline(reason(error), problem)
            return
        except LawBroken as broken:
            if self.declines_the_layout(problem, broken):
                self.decline(f"laid out as {problem.layout!r}: {broken.values['refusal']}", problem)
                return
            self.broken = broken
            if self.widest is None or _picture(self.widest) < _picture(broken):
                self.widest = broken
            raise
        self.cases += not seen.vacuous
        self.vacuous += seen.vacuous
        self.worst = max(self.worst, seen.ratio)
        self.ratios[min(int(seen.ratio * RATIO_BINS), RATIO_BINS - 1)] += not seen.vacuous
        if seen.rounded_as and not seen.vacuous:
            self.rounded_as[seen.rounded_as] += 1
        if seen.escape is not None:
            self.escape = max(self.escape or 0.0, seen.escape)
        self.hit.update(self.predicates_of(problem))

    def declines_the_layout(self, problem: Problem, broken: LawBroken) -> bool:
        """Whether a kernel that refused a problem takes the same values where they lie plainly in memory."""
        if "refusal" not in broken.values or problem.layout == "contiguous" or self.subject.checked:
            return False
        if problem.layout == "read_only" and self.refuses(problem):
            return False  # Who refuses what cannot be written to writes to its inputs.
        try:
            self.check_one(self.law, replace(problem, layout="contiguous"))
        except (LawBroken, UnsupportedError, NotImplementedError):
            return False
        return True

    def refuses(self, problem: Problem) -> bool:
        """Whether a single call raises: some laws make calls in other layouts beside it."""
        try:
            self.check_one(LAWS["rounds_within_the_derived_bound"], problem)
        except LawBroken as broken:
            return "refusal" in broken.values
        except (UnsupportedError, NotImplementedError):
            return False
        return False

    def decline(self, why: str, problem: Problem) -> None:
        self.unsupported += 1
        self.declined = self.declined or why
        self.missed.update(self.predicates_of(problem))

    def predicates_of(self, problem: Problem) -> Iterable[str]:
        return (name for name, holds in predicates(self.operator).items() if holds(problem))

    @property
    def seen(self) -> int:
        return self.cases + self.vacuous

    def draw(self, examples: int, seed: int) -> None:
        """Check as many problems as were asked for, and some for each predicate that chance has left out."""
        for tried, (problem, choices) in enumerate(islice(self.drawn(seed), PATIENCE * examples)):
            # What is declared fits at once, or the law leads away from it; what is raised may be rare.
            in_vain = not self.unsupported or (self.subject.limits and not self.seen)
            if tried >= examples and (self.seen >= examples or in_vain):
                break
            self.check_or_shrink(problem, choices)
        for name in predicates(self.operator):
            if self.seen and name not in self.law.never:
                self.draw_with(name, seed)

    def draw_with(self, name: str, seed: int) -> None:
        """Check problems with a predicate until one is taken, unless the kernel seems to decline them all."""
        holds, found = predicates(self.operator)[name], self.drawn(seed, name)
        for again in range(ROUNDS):
            # Were they declined as seldom as other problems, so many of them would have been taken by now.
            taken_by_chance = self.missed[name] * self.seen / max(1, self.unsupported)
            if self.hit[name] or taken_by_chance >= DIRECTED or (again and not self.missed[name]):
                break
            for problem, choices in islice(found, DIRECTED):
                self.check_or_shrink(problem, choices, holds)

    def drawn(self, seed: int, predicate: str = "") -> Iterator[tuple[Problem, Sequence[int]]]:
        """The law's problems, with the predicate if one is named, as long as there is one among so many."""
        # A seed of its own for each law: laws that saw the same problems would be blind to the same faults.
        chance = self.domain.at_random(f"{seed} {self.law.name} {self.operator} {predicate}")
        holds, searched = predicates(self.operator).get(predicate, _always), 0
        for problem, choices in chance:
            searched += 1
            if self.law.where(problem) and holds(problem):
                searched = 0
                yield problem, choices
            if searched == SEARCHED:
                return

    def check_or_shrink(
        self, problem: Problem, choices: Sequence[int], holds: Callable[[Problem], bool] = _always
    ) -> None:
        """Check one problem; what leaves is the exception of the smallest that fails like it."""

        def smaller(problem: Problem) -> None:
            hypothesis.assume(self.law.where(problem) and holds(problem))
            # Where only some values show the fault, others of a small problem do what these of a larger one did.
            for seed in dict.fromkeys((problem.seed, *range(SEEDS))):
                self.check(replace(problem, seed=seed), holds)

        try:
            self.check(problem, holds)
        except LawBroken as broken:
            shrink(self.domain, self.small_one(holds) or choices, smaller)
            raise hypothesis.errors.Flaky("It held when it was tried again.") from broken

    def narrow(self) -> None:
        """Look past the choices that the smallest case was drawn with: one filter, or one image, may fail as well."""
        for what in NARROWER:
            assert self.broken is not None
            problem = narrowed(self.broken.problem, what)
            if problem == self.broken.problem or not legal(problem):
                continue
            if self.law.where(problem) and self.subject.supports(problem):
                with contextlib.suppress(LawBroken):  # Which is the smallest case then.
                    self.check(problem)

    def small_one(self, holds: Callable[[Problem], bool]) -> Sequence[int] | None:
        """The choices of a small problem that fails too, if one is soon found: what begins small ends small."""
        drawn = (each for each in islice(self.domain.at_random(self.law.name), SEARCHED // 4) if holds(each[0]))
        legal = [each for each in drawn if self.law.where(each[0])]
        for problem, choices in sorted(legal, key=lambda each: (len(each[1]), sum(each[1][1:])))[:SMALL]:
            try:
                self.check(problem, holds)
            except LawBroken:
                return choices
        return None


def hold(
    law: Law,
    subject: Subject,
    operator: str,
    examples: int,
    seed: int,
    check: Check | None = None,
    known: Iterable[Problem] = (),
) -> Result:
    """Hold one law against the subject's kernel for one operator: first the problems that it is known for failing."""
    started, run = time.perf_counter(), _Run(law, subject, operator, check or directly(subject))
    try:
        with warnings.catch_warnings():
            # Overflowing and invalid operations are part of the problems; the answer is what counts.
            warnings.simplefilter("ignore", RuntimeWarning)
            # Other threads of a Dask worker use `random` meanwhile, which hypothesis takes for ours.
            warnings.simplefilter("ignore", hypothesis.errors.HypothesisDeprecationWarning)
            if subject.unavailable:
                run.declined, run.unsupported = subject.unavailable, examples
                known, examples = (), 0
            elif not law.needs(subject.kernel(operator)):
                run.declined, run.unsupported = "what the law needs of it is not declared", examples
                examples = 0
            for problem in known:
                if problem.dtype in subject.dtypes and problem.precision == subject.precision_of(operator):
                    run.check(problem)
            if examples:
                run.draw(examples, seed)
    except LawBroken:
        run.narrow()
        if run.broken and isinstance(check, Isolated) and check.hung is None:
            anew = check.anew(law, run.broken.problem)
            if anew is None or anew.after is not None:
                run.broken.after, run.broken.varies = anew and anew.after, anew is None
                run.broken.args = (f"{anew or run.broken} ({KEPT_STATE})",)
    except hypothesis.errors.Flaky:
        # The smallest case passed when it was tried again: the law broke all the same.
        if run.broken is None:
            raise
        run.broken.varies = True
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
        ratios=tuple(run.ratios[each] for each in range(RATIO_BINS)) if law.level == "L3" else (),
        escape=run.escape,
        hit={name: run.hit[name] for name in predicates(operator)},
        failure=Failure.of(run.broken, run.widest) if run.broken else None,
        declined=run.declined,
        rounded_as=dict(run.rounded_as),
    )


def _picture(broken: LawBroken) -> tuple[bool, int]:
    """How much the differences show: first of all where the result is right, then in how many elements."""
    differences = broken.values.get("differences")
    size = math.prod(differences.shape) if differences else 0
    return (False, 0) if not differences or size > WIDEST else (differences.count < size, size)
