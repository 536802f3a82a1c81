"""Pooling by twos that keeps which of the four won, in as many bytes as a maximum: its gradient needs nothing else."""

from typing import Any

import numpy as np

from .launch import in_turn, ready, serial, share
from .pool import HALVES, spread_out, spreading
from .pool import pool as pool_windows
from .pool_plans import plan_of, spread_of
from .pool_vectors import MAXIMA, TAPS
from .vectors import take
from .workers import on_workers


def pool(x: Any) -> tuple[Any, Any]:
    """The maxima of windows of 2 x 2 with stride 2, and which of the four it was: the first, or the first NaN.

    Parallel over images and channels. The last row and column are left out where they have no pair.
    """
    n, c, h, w = x.shape
    y, winner = np.empty((n, c, h // 2, w // 2), np.float32), np.empty((n, c, h // 2, w // 2), np.int32)
    pool_windows(x, y, winner, HALVES, MAXIMA + TAPS)
    return y, winner


def unpool(dy: Any, winner: Any, dx: Any) -> None:
    """The gradient of what was pooled by twos, into dx: dy where the maximum came from, zero elsewhere.

    Parallel over images and channels. dy and winner are `[n,c,p,q]`; rows and columns that no window read get zero.
    """
    plan = plan_of(HALVES, dx.shape, True)
    spread = spread_of(HALVES, (plan.height, plan.width))
    cost = 4 * dy.size // max(1, plan.planes)
    share(_unpool, plan.planes, cost, ready(dy), winner, dx, plan, spread, spreading(HALVES, spread, False))


@in_turn
def _unpool(workers, counter, last, dy, winner, dx, plan, spread, routine):
    on_workers(workers, _unpool_worker, (counter, last, dy, winner, dx, plan, spread, routine))


@serial
def _unpool_worker(_, counter, last, dy, winner, dx, plan, spread, routine):
    windows, size = len(plan.rows) * plan.columns, plan.height * plan.width
    task = take(counter)
    while task < last:
        spread_out(
            dy.ctypes.data + 4 * windows * task, winner.ctypes.data + 4 * windows * task, 0, plan.height,
            plan.width, spread, dx.ctypes.data + 4 * size * task, routine,
        )  # fmt: skip
        task = take(counter)
