"""The gradient of pooling by twos, from the places that the maxima came from."""

from typing import Any

from numba import prange

from .launch import parallel, ready, share
from .micro_kernels import spread_winners
from .vectors import call, take


def unpool(dy: Any, winner: Any, dx: Any) -> None:
    """The gradient of what was pooled by twos, into dx: dy where the maximum came from, zero elsewhere.

    Parallel over images and channels. dy and winner are `[n,c,p,q]`; rows and columns that no window read get zero.
    """
    n, c, h, w = dx.shape
    p, q = dy.shape[2:]
    if (h, w) != (2 * p, 2 * q):
        dx[...] = 0
    share(_unpool, n * c, 4 * p * q, ready(dy), winner, dx, spread_winners.address())


@parallel
def _unpool(workers, counter, last, dy, winner, dx, routine):
    of_plane, columns = dy.shape[2] * dy.shape[3], dx.shape[3]
    for _ in prange(workers):
        task = take(counter)
        while task < last:
            call(routine, (
                dy.ctypes.data + 4 * task * of_plane, winner.ctypes.data + 4 * task * of_plane, dy.shape[3],
                dx.ctypes.data + 4 * task * dx.shape[2] * columns, 4 * columns, dy.shape[2],
            ))  # fmt: skip
            task = take(counter)
