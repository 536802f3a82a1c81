"""Pooling by twos that keeps which of the four won, in as many bytes as a maximum: its gradient needs nothing else."""

from typing import Any

import numpy as np
from numba import prange

from .launch import parallel, ready, share
from .micro_kernels import first_maximum
from .pool_vectors import pairs
from .vectors import Words, call, micro_kernel, take


def pool(x: Any) -> tuple[Any, Any]:
    """The maxima of windows of 2 x 2 with stride 2, and which of the four it was: the first, or the first NaN.

    Parallel over images and channels. The last row and column are left out where they have no pair.
    """
    n, c, h, w = x.shape
    y, winner = np.empty((n, c, h // 2, w // 2), np.float32), np.empty((n, c, h // 2, w // 2), np.int32)
    share(_pool, n * c, 4 * y[:1, :1].size, x, y, winner, pool_winners.address())
    return y, winner


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


@parallel
def _pool(workers, counter, last, x, y, winner, routine):
    of_plane, columns = y.shape[2] * y.shape[3], x.shape[3]
    for _ in prange(workers):
        task = take(counter)
        while task < last:
            call(routine, (
                x.ctypes.data + 4 * task * x.shape[2] * columns, 4 * columns, y.shape[2],
                y.ctypes.data + 4 * task * of_plane, winner.ctypes.data + 4 * task * of_plane, y.shape[3],
            ))  # fmt: skip
            task = take(counter)


@micro_kernel
def pool_winners(words: Words, x: Any, x_row: Any, rows: Any, y: Any, winner: Any, columns: Any) -> None:
    """`y[p,q] = max_rs x[2*p + r, 2*q + s]` and which of the four; rows of y and winner follow one another."""
    builder, lanes = words.builder, words.lanes
    whole = builder.sdiv(columns, words.number(lanes))
    left = builder.sub(columns, words.times(whole, lanes))
    floats = words.times(left, 2)
    rest = words.first(floats), words.first(words.at(floats, -lanes))

    def block(source: Any, target: Any, place: Any, masks: Any) -> None:
        best, won = first_maximum(words, [*pairs(words, source, masks), *pairs(words, words.at(source, x_row), masks)])
        for vector, address in ((best, target), (builder.bitcast(won, words.vector), place)):
            if masks is None:
                words.store(vector, address)
            else:
                words.store_where(words.first(left), vector, address)

    with words.loop(rows, x, y, winner) as over_rows:
        with words.loop(whole, *over_rows.carried) as over_columns:
            source, *targets = over_columns.carried
            block(source, *targets, None)
            over_columns.carry(words.at(source, 2 * words.size), *(words.at(each, words.size) for each in targets))
        with builder.if_then(builder.icmp_signed(">", left, words.number(0))):
            block(*over_columns.results, rest)
        source, *targets = over_rows.carried
        after = [words.at(each, words.times(columns, 4)) for each in targets]
        over_rows.carry(words.at(source, words.times(x_row, 2)), *after)


@micro_kernel
def spread_winners(words: Words, dy: Any, winner: Any, columns: Any, dx: Any, dx_row: Any, rows: Any) -> None:
    """`dx[2*p + r, 2*q + s] = dy[p,q]` where that tap won, else 0. Rows of dy and winner follow one another."""
    builder, lanes = words.builder, words.lanes
    whole = builder.sdiv(columns, words.number(lanes))
    left = builder.sub(columns, words.times(whole, lanes))

    def block(sources: Any, target: Any, mask: Any) -> None:
        gradient, bits = (words.load(each) if mask is None else words.load_where(mask, each) for each in sources)
        won = builder.bitcast(bits, words.integers(0).type)
        taps = [
            builder.select(builder.icmp_signed("==", won, words.integers(which)), gradient, words.constant(0))
            for which in range(4)
        ]
        for r, address in enumerate((target, words.at(target, dx_row))):
            for half in (0, 1):
                order = [half * lanes // 2 + lane // 2 + lanes * (lane % 2) for lane in range(lanes)]
                vector, place = words.shuffle(*taps[2 * r : 2 * r + 2], order), words.at(address, half * words.size)
                if mask is None:
                    words.store(vector, place)
                else:
                    words.store_where(words.first(words.at(words.times(left, 2), -half * lanes)), vector, place)

    with words.loop(rows, dy, winner, dx) as over_rows:
        with words.loop(whole, *over_rows.carried) as over_columns:
            *sources, target = over_columns.carried
            block(sources, target, None)
            after = [words.at(each, words.size) for each in sources]
            over_columns.carry(*after, words.at(target, 2 * words.size))
        with builder.if_then(builder.icmp_signed(">", left, words.number(0))):
            *sources, target = over_columns.results
            block(sources, target, words.first(left))
        *sources, target = over_rows.carried
        after = [words.at(each, words.times(columns, 4)) for each in sources]
        over_rows.carry(*after, words.at(target, words.times(dx_row, 2)))
