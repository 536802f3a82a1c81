"""Which algorithm computes a convolution: the cheapest row of the table in algorithms.py that may be taken.

The row with the least estimated cost wins among those whose conditions hold, whose rounding is allowed and whose
workspace fits. `kernelproof plan` prints the whole decision.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kernelproof.kernels.contract import Precision
from kernelproof.kernels.jit_cache import sources_hash
from kernelproof.kernels.limits import workspace as limit
from kernelproof.kernels.tuning import fastest, plans
from kernelproof.spec import Window
from kernelproof.spec.errors import UnsupportedError

from ..launch import threads
from ..vectors import processor
from .algorithms import ALGORITHMS, Algorithm, Problem

_SOURCES = sources_hash()
"""Of the kernels as they were loaded."""


@dataclass(frozen=True)
class Decision:
    """The algorithm taken, what it and others that could be taken would cost, and why the rest could not."""

    taken: Algorithm
    allowed: dict[str, Algorithm]
    costs: dict[str, float]
    refused: dict[str, str]


_READ_AGAIN = 20
"""Multiply-adds in whose time an output is written, and read again to be pooled."""


def taken(
    operator: str, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], window: Window, groups: int,
    dtype: np.dtype, precision: Precision,
) -> Algorithm:  # fmt: skip
    """The algorithm that `decide` takes; a call costs little, for every convolution makes one."""
    return _taken(operator, x_shape, weight_shape, window, groups, dtype, precision, threads(), limit(), plans())


@functools.lru_cache(maxsize=1024)
def _taken(
    operator: str, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], window: Window, groups: int,
    dtype: np.dtype, precision: Precision, *state: Any,
) -> Algorithm:  # fmt: skip
    return _decide(Problem(operator, x_shape, weight_shape, window, groups, dtype.name), precision, *state).taken


def taken_with(
    rectified: bool, pooled: bool, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], window: Window, groups: int,
    precision: Precision,
) -> Algorithm | None:  # fmt: skip
    """The algorithm for a convolution of float32 that is rectified or pooled by twos; None if none can do it in place.

    It is the one that is taken for the convolution alone, unless another spares a walk through memory.
    """
    return _taken_with(
        rectified, pooled, x_shape, weight_shape, window, groups, precision, threads(), limit(), plans()
    )  # fmt: skip


@functools.lru_cache(maxsize=1024)
def _taken_with(
    rectified: bool, pooled: bool, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], window: Window, groups: int,
    precision: Precision, *state: Any,
) -> Algorithm | None:  # fmt: skip
    problem = Problem("conv2d", x_shape, weight_shape, window, groups, "float32")
    decision = _decide(problem, precision, *state)

    def cost(each: Algorithm) -> float:
        again = pooled and not each.pooled
        return decision.costs[each.name] + again * _READ_AGAIN * problem.sums

    able = [each for each in decision.allowed.values() if each.rectified or not rectified]
    if decision.taken in able and (decision.taken.pooled or not pooled):
        return decision.taken
    return min(able, key=cost, default=None)


def decide(problem: Problem, precision: Precision) -> Decision:
    """The decision for a problem, estimated or in `tuned` measured; raises UnsupportedError if a workspace limit
    leaves no algorithm.
    """
    return _decide(problem, precision, threads(), limit(), plans())


@functools.lru_cache(maxsize=1024)
def _decide(problem: Problem, precision: Precision, threads: int, limit: int | None, plans: Path | None) -> Decision:
    rows = [each for each in ALGORITHMS if each.operator == problem.operator]
    refused = {each.name: why for each in rows if (why := each.refusal(problem, precision)) is not None}
    costs = {each.name: each.cost(problem) for each in rows if each.name not in refused}
    if not costs:
        raise UnsupportedError(
            problem.operator, f"workspace_limit({limit})",
            f"{min(each.workspace(problem) for each in rows)} bytes for the smallest algorithm", "Raise the limit.",
        )  # fmt: skip
    allowed = {each.name: each for each in rows if each.name in costs}
    if plans:
        state = problem, precision, threads, limit, processor(), _SOURCES
        name = fastest(plans, repr(state), {name: _call(each, problem) for name, each in allowed.items()})
    else:
        name = min(costs, key=lambda name: costs[name])
    return Decision(allowed[name], allowed, costs, refused)


def _call(algorithm: Algorithm, problem: Problem) -> Callable[[], object]:
    """A call of the algorithm on random arrays of the problem's shapes."""
    n, k, window = problem.x_shape[0], problem.weight_shape[0], problem.window
    shapes = problem.x_shape, problem.weight_shape, (n, k, window.p(problem.x_shape), window.q(problem.x_shape))
    generator = np.random.default_rng(0)
    x, weight, dy = (generator.standard_normal(shape).astype(problem.dtype) for shape in shapes)
    arguments = {
        "conv2d": (x, weight, None), "conv2d_dx": (dy, weight, x.shape), "conv2d_dweight": (dy, x, weight.shape),
    }[problem.operator]  # fmt: skip
    return lambda: algorithm.run(*arguments, window, problem.groups)
