"""Dot products of rows: the fully connected layer for few images or outputs, which packs nothing.

Rows of x and of weights are both summed along, so a sum is a vector, a lane for each feature modulo `LANES`, and a
weight that is read serves some rows of x. Few outputs are one task's, so x is read once and no sum is made that nobody
asked for: 64 x 3136 to 10 took 92 us on one core of Zen 3, and takes 67.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from .launch import in_turn, ready, record, serial, share, threads
from .matrix import TASKS, zeros
from .pool_vectors import split
from .vectors import INT, LANES, Words, call, micro_kernel, take
from .workers import on_workers

_ROWS = {16: {4: 6, 5: 5}, 8: {4: 2, 5: 2}, 4: {4: 5, 5: 5}}[LANES]
"""By the rows of weights those of x: their sums and the vectors that they are made of fill the registers."""

_FEATURES = 64 * LANES
"""Features that are summed before the next rows: those of a panel stay in the second-level cache."""

_BLOCK = 8
"""Tiles of rows of x in one task, at most; a quarter of it at least."""


@micro_kernel
def dots(
    words: Words, x: Any, x_step: Any, weight: Any, weight_step: Any, columns: Any, features: Any,
    sums: Any, sums_step: Any, *, rows: int, held: int, accumulate: int,
) -> None:  # fmt: skip
    """`sums[row][column] (+)= sum_v x[row][v] * weight[column][v]`, each sum a vector, for `rows` x `held` of them.

    v runs over whole vectors, in each lane one chain of fused multiply-adds. Of weights, only `columns` rows are read.
    """
    builder, lanes = words.builder, words.lanes
    last = words.at(columns, -1)
    inputs = [words.at(x, words.times(x_step, row)) for row in range(rows)]
    # Rows that are not there are the last one again: no branch, and their sums are not used.
    weights = []
    for column in range(held):
        there = builder.select(builder.icmp_signed("<", words.number(column), columns), words.number(column), last)
        weights.append(words.at(weight, words.times(weight_step, there)))
    places = [
        words.at(words.at(sums, words.times(sums_step, row)), words.size * column)
        for row in range(rows)
        for column in range(held)
    ]
    totals = [words.load(place) if accumulate else words.constant(0) for place in places]
    whole = builder.sdiv(features, words.number(lanes))
    left = builder.srem(features, words.number(lanes))

    def added(totals: list[Any], offset: Any, load: Any) -> list[Any]:
        factors, following = [load(words.at(each, offset)) for each in weights], []
        for row in range(rows):
            value = load(words.at(inputs[row], offset))
            following += [words.fma(value, factors[column], totals[row * held + column]) for column in range(held)]
        return following

    with words.loop(whole, *totals) as loop:
        loop.carry(*added(list(loop.carried), words.times(loop.index, words.size), words.load))
    valid = words.first(left)
    rest = builder.zext(builder.icmp_signed(">", left, words.number(0)), INT)
    with words.loop(rest, *loop.results) as tail:
        end = words.times(whole, words.size)
        tail.carry(*added(list(tail.carried), end, lambda address: words.load_where(valid, address)))
    for place, total in zip(places, tail.results, strict=True):
        words.store(total, place)


@micro_kernel
def totals(
    words: Words, sums: Any, sums_step: Any, bias: Any, y: Any, y_step: Any, rows: Any, columns: Any
) -> None:  # fmt: skip
    """`y[row][column] = bias[column] + sum_lanes sums[row][column][lane]` for up to `LANES` columns, bias last.

    The lanes are added in pairs, those pairs in pairs, and so on.
    """
    builder = words.builder
    valid = words.first(columns)
    start = words.load_where(valid, bias)
    with words.loop(rows, sums, y) as loop:
        source, target = loop.carried
        level = [words.load(words.at(source, words.size * column)) for column in range(words.lanes)]
        while len(level) > 1:
            # The sums of two vectors' pairs of lanes are one vector: columns stay in order.
            level = [builder.fadd(*split(words, *level[pair : pair + 2])) for pair in range(0, len(level), 2)]
        words.store_where(valid, builder.fadd(level[0], start), target)
        loop.carry(words.at(source, sums_step), words.at(target, y_step))


class Dots(NamedTuple):
    """How `transposed` is cut: rows and weights in registers, outputs and tiles of a task, features before the next.

    A row of a task's sums takes `step` bytes. Last the addresses: `dots` that begins, `dots` that goes on, `totals`.
    """

    tile: int
    held: int
    span: int
    block: int
    blocks: int
    features: int
    step: int
    begin: int
    go_on: int
    totals: int


@functools.lru_cache(maxsize=256)
def _dots(n: int, c: int, k: int, threads: int) -> tuple[int, int, np.ndarray]:
    """Tasks, the cost of one, and the numbers that the core reads."""
    # Few outputs are one task's: x is read once.
    span = k if k <= 2 * LANES else LANES
    held = min(_ROWS, key=lambda each: -(-span // each) * each)
    # The last tile overlaps the one before it: the same sums.
    tile = -(-n // -(-n // _ROWS[held]))
    tiles, spans = -(-n // tile), -(-k // span)
    block = max(_BLOCK // 4, min(_BLOCK, tiles * spans // (TASKS * threads)))
    features = -(-c // -(-c // _FEATURES) // LANES) * LANES
    step = 4 * LANES * -(-span // LANES) * LANES
    begin, go_on = (dots.address(rows=tile, held=held, accumulate=int(each and c > features)) for each in (0, 1))
    cut = Dots(tile, held, span, block, -(-tiles // block), features, step, begin, go_on, totals.address())
    # What is loaded takes its time beside the products.
    return spans * cut.blocks, block * tile * (span + held) * c, record(cut=cut)


def transposed(x: Any, weight: Any, bias: Any) -> Any:
    """`y[n,k] = bias[k] + sum_c x[n,c] * weight[k,c]`; parallel over some outputs by some tiles of rows.

    In each of `LANES` lanes one chain over c; the lanes are added in pairs, those pairs in pairs, the bias last.
    """
    (n, c), k = x.shape, len(weight)
    tasks, cost, cut = _dots(n, c, k, threads())
    y, starts = np.empty((n, k), np.float32), zeros(k) if bias is None else ready(bias)
    share(_transposed, tasks, cost, ready(x), ready(weight), starts, y, cut)
    return y


@in_turn
def _transposed(workers, counter, last, x, weight, starts, y, cut):
    on_workers(workers, _transposed_worker, (counter, last, x, weight, starts, y, cut))


@serial
def _transposed_worker(_, counter, last, x, weight, starts, y, cut):
    its = cut[0].cut
    scratch = np.empty(its.block * its.tile * its.step // 4 + LANES, np.float32)
    sums = -(-scratch.ctypes.data // (4 * LANES)) * 4 * LANES
    task = take(counter)
    while task < last:
        _span(x, weight, starts, y, task // its.blocks * its.span, task % its.blocks * its.block, sums, its)
        task = take(counter)


@serial
def _span(x, weight, starts, y, k, first, sums, cut):
    """Outputs `k ..` of tiles `first ..`: blocks of features outermost, then tiles, then outputs."""
    (n, c), step, of_tile = x.shape, 4 * x.shape[1], cut.tile * cut.step
    columns, end = min(cut.span, len(weight) - k), min(first + cut.block, -(-n // cut.tile))
    for feature in range(0, c, cut.features):
        for number in range(first, end):
            row = min(number * cut.tile, n - cut.tile)
            for column in range(0, columns, cut.held):
                call(cut.go_on if feature else cut.begin, (
                    x.ctypes.data + row * step + 4 * feature, step,
                    weight.ctypes.data + (k + column) * step + 4 * feature, step, columns - column,
                    min(cut.features, c - feature), sums + of_tile * (number - first) + 4 * LANES * column,
                    cut.step,
                ))  # fmt: skip
    for number in range(first, end):
        at = y.ctypes.data + 4 * (min(number * cut.tile, n - cut.tile) * y.shape[1] + k)
        for column in range(0, columns, LANES):
            call(cut.totals, (
                sums + of_tile * (number - first) + 4 * LANES * column, cut.step,
                starts.ctypes.data + 4 * (k + column), at + 4 * column, 4 * y.shape[1], cut.tile, columns - column,
            ))  # fmt: skip
