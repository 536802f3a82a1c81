"""What the fast kernel needs of a convolution, in rows of condition and reason, and in which arithmetic it runs."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

from .arithmetic import ARITHMETIC
from .problem import Problem
from .rungs import HOPPER, Rung
from .sizes import slots_of, slots_of_stage, taps_of
from .slots import FILTERS
from .splits import best, splits

LEAST_PRODUCTS = 256
"""In which a value of x takes part, from which on *fast* is the faster on Hopper: it saves three bfloat16 products of
six, and looks all of x through for each image's greatest first. Measured on an H200 (2026-12-01) in 30 convolutions and
input gradients: with 192 products or fewer *strict* takes 2 to 28 us less in large ones, with 256 *fast* 5 us less."""


@dataclass(frozen=True)
class Row:
    """A precondition of the fast kernel: what it asks, of the problem, the arithmetic and the rung, and why."""

    holds: Callable[[Problem, str, Rung], bool]
    reason: str


def _padded_work(problem: Problem) -> int:
    channels, filters = -(-problem.channels // 16) * 16, -(-problem.filters // FILTERS) * FILTERS
    return problem.images * problem.groups * math.prod(problem.output) * channels * filters * taps_of(problem)


def _work(problem: Problem) -> int:
    pixels = problem.images * math.prod(problem.output)
    return pixels * problem.groups * problem.channels * problem.filters * taps_of(problem)


def _slots(problem: Problem, arithmetic: str, rung: Rung) -> int:
    block = best(problem, arithmetic, rung)
    assert block is not None
    slots = slots_of(problem, block)
    return problem.images * slots.rows * slots.pitch + slots_of_stage(problem, block)


def _is_dense(problem: Problem) -> bool:
    """Whether the elements of an image fill one piece of memory, in any order."""
    sizes, expected = (problem.groups * problem.channels, *problem.image), 1
    for size, step in sorted(zip(sizes, problem.x_strides[1:], strict=True), key=lambda axis: axis[1]):
        if size > 1 and step != expected:
            return False
        expected *= size
    return True


ROWS = (
    Row(lambda p, *_: p.images > 0 and p.filters > 0 and min(p.output) > 0, "there is something to compute"),
    Row(lambda p, *_: p.channels > 0 and min(p.taps) > 0, "there is something to sum"),
    Row(
        lambda p, *_: _padded_work(p) <= max(64 * _work(p), 2**27),
        "filled up to 16 channels and 64 filters, it is at most 64 times the work, or little work",
    ),
    Row(
        lambda p, arithmetic, _: not ARITHMETIC[arithmetic].scaled or _is_dense(p),
        "each image lies in one piece, to be looked through for its greatest",
    ),
    Row(lambda p, arithmetic, rung: best(p, arithmetic, rung) is not None, "two stages fit into shared memory"),
    Row(lambda p, arithmetic, rung: _slots(p, arithmetic, rung) < 2**31, "slots are counted in 31 bits"),
    Row(
        lambda p, *_: max(map(abs, (*p.x_strides, *p.y_strides, *p.w_strides))) < 2**29,
        "strides in bytes are 32-bit numbers",
    ),
)
"""What the kernel needs of a problem. Beside it: float32, compute capability 8.0 or more, no simulator."""


@functools.lru_cache(4096)
def explain(problem: Problem, arithmetic: str, rung: Rung = HOPPER) -> str | None:
    """The first precondition that does not hold; None if the fast kernel serves the problem."""
    return next((row.reason for row in ROWS if not row.holds(problem, arithmetic, rung)), None)


@functools.lru_cache(4096)
def arithmetics_of(problems: tuple[Problem, ...], precision: str, rung: Rung = HOPPER) -> tuple[str, ...]:
    """What computes each of the convolutions of one array, one or more, where a precision is asked for.

    *Strict* stands in for *fast*, being more accurate, where it is also faster, or images cannot be looked through.
    TF32 has no layout: where several taps would read one, bf16x4 stands in for it, and for whom can share the layout.
    """
    is_fast_slow = not rung.by_warps and _are_products_few(problems)
    if precision == "fast" and (is_fast_slow or not all(map(_is_dense, problems))):
        return ("strict",) * len(problems)
    if precision == "tf32" and not rung.by_warps:
        are_laid = [splits(each, "bf16x4", rung)[0].laid for each in problems]
        if any(is_laid and taps_of(each) > 1 for is_laid, each in zip(are_laid, problems, strict=True)):
            return tuple("bf16x4" if is_laid else precision for is_laid in are_laid)
    return (precision,) * len(problems)


def _are_products_few(problems: tuple[Problem, ...]) -> bool:
    """Whether a value of x takes part in few products on average: for each problem all of x is looked through."""
    products = sum(-(-p.filters // FILTERS) * FILTERS * taps_of(p) * math.prod(p.output) for p in problems)
    return products < LEAST_PRODUCTS * sum(math.prod(p.image) for p in problems)
