"""The weight gradient with a lane for each pixel: of few weights, as in a first layer, where turning takes longest.

A task is a part of the images, strip after strip of their rows (sweep.py): x is copied, padded, so that a weight's
factor is one constant offset from its pixel; then `dot_rows` keeps the sums of some filters by some taps of channels,
each a vector, in registers, while it runs over all pixels of the strip. dy is read where it lies. There is a fixed
number of parts, which are added in order, so the bits do not depend on the number of threads.
"""

import functools
from typing import Any, NamedTuple

import numpy as np

from kernelproof.spec import Window

from ..launch import in_turn, ready, serial, share, threads
from ..vectors import INT, LANES, REGISTERS, Words, call, micro_kernel, take
from ..workers import on_workers
from ..workspace import borrowed, in_lines
from .stencils import add_lanes
from .strips import copy_planes, copy_strip
from .sweep import Plan, forward

_PARTS = 16
"""Parts that strips are divided into, if there are so many."""

_SUMS = 2**18
"""Bytes of a part's sums that stay in a second-level cache."""

_OFFSETS = 9
"""Offsets that stay in a processor's address registers, nearly all of them."""


class Tile(NamedTuple):
    """Filters and terms (taps of channels) whose sums stay in registers, and in how many blocks all of them are.

    `used` is the part of the core's multiply-adds that are of weights and of pixels that there are.
    """

    filters: int
    terms: int
    blocks_of_filters: int
    blocks_of_terms: int
    parts: int
    used: float


@functools.lru_cache(maxsize=256)
def planned(
    window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int
) -> tuple[Plan, Tile, np.ndarray]:
    """The sweep, the tile that takes the fewest cycles, and each term's offset in bytes."""
    plan = forward(window, x_shape, weight_shape, groups)
    sweep = plan.sweep
    of_channel = 4 * sweep.column_stride * sweep.height_of_copy * sweep.pitch
    offsets = (np.arange(sweep.channels)[:, None] * of_channel + plan.offsets).reshape(-1)
    found = []
    for terms in range(1, max(1, min(_OFFSETS, len(offsets))) + 1):
        for filters in range(1, max(1, min(sweep.filters, (REGISTERS - 2) // (terms + 1))) + 1):
            blocks = -(-sweep.filters // filters) * -(-len(offsets) // terms)
            found.append((blocks * max(filters * terms / 2, filters + terms, 4), -filters * terms, filters, terms))
    cycles, _, filters, terms = min(found)
    used = sweep.filters * len(offsets) * sweep.columns / (2 * LANES * cycles * max(1, -(-sweep.columns // LANES)))
    pieces = x_shape[0] * sweep.strips
    parts = max(2**i for i in range(_PARTS.bit_length()) if 2**i <= max(1, min(_PARTS, pieces)))
    tile = Tile(filters, terms, -(-sweep.filters // filters), -(-len(offsets) // terms), parts, used)
    # A last block that is not full does its last term again.
    wanted = np.minimum(np.arange(tile.blocks_of_terms * terms), len(offsets) - 1)
    return plan, tile, offsets[wanted]


def is_near(window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int) -> bool:
    """Whether a part's sums, a vector for each weight, stay in the second-level cache."""
    return 4 * LANES * int(np.prod(weight_shape)) // groups <= _SUMS


def workspace(
    window: Window, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], groups: int, workers: int
) -> int:
    """Bytes that so many threads work in, with the sums of all parts."""
    plan, tile, offsets = planned(window, x_shape, weight_shape, groups)
    return 4 * (groups * tile.parts * _sums(plan, offsets) + workers * _copied(plan))


def _sums(plan: Plan, offsets: np.ndarray) -> int:
    return in_lines(plan.sweep.filters * len(offsets) * LANES)


def _copied(plan: Plan) -> int:
    """Whole vectors are read, the last of a row beyond it."""
    return plan.copied + in_lines(LANES)


def conv2d_dweight(dy: Any, x: Any, weight_shape: tuple[int, ...], window: Window, groups: int) -> Any:
    """dweight; in each of `LANES` lanes one chain over a part's images, rows and columns; then parts, then lanes.

    Parts are added in order, lanes halves to halves.
    """
    plan, tile, offsets = planned(window, x.shape, tuple(weight_shape), groups)
    sweep = plan.sweep
    rest = sweep.filters % tile.filters or tile.filters
    routines = np.array([
        copy_planes.address(step=sweep.column_stride), add_lanes.address(),
        dot_rows.address(filters=tile.filters, terms=tile.terms), dot_rows.address(filters=rest, terms=tile.terms),
    ])  # fmt: skip
    dweight = np.empty(weight_shape, np.float32)
    tasks, sums = groups * tile.parts, _sums(plan, offsets)
    with borrowed(tasks * sums + threads() * _copied(plan)) as memory:
        share(
            _gradient, tasks, dweight.size * dy[:, 0].size // tasks, tasks, ready(x), ready(dy), memory, sums,
            _copied(plan), offsets, plan.copies, dweight, tile, sweep, routines,
        )  # fmt: skip
    return dweight


@micro_kernel
def dot_rows(
    words: Words, x: Any, x_row: Any, offsets: Any, dy: Any, dy_filter: Any, dy_row: Any, rows: Any, columns: Any,
    sums: Any, sums_filter: Any, *, filters: int, terms: int,
) -> None:  # fmt: skip
    """`sums[f][t] += sum_pq dy[f][p][q] * x[p*x_row + offsets[t] + q]`, each a vector, for `filters` x `terms` of them.

    Lane by lane one chain of fused multiply-adds; beyond `columns` nothing is read, and nothing added.
    """
    builder = words.builder
    shifts = [words.load_integer(words.at(offsets, 8 * term)) for term in range(terms)]
    places = [
        words.at(words.at(sums, words.times(sums_filter, f)), words.size * term)
        for f in range(filters)
        for term in range(terms)
    ]
    whole = builder.sdiv(columns, words.number(words.lanes))
    left = builder.srem(columns, words.number(words.lanes))
    valid, rest = words.first(left), builder.zext(builder.icmp_signed(">", left, words.number(0)), INT)

    def added(x: Any, dy: Any, totals: list[Any], load: Any) -> list[Any]:
        factors, following = [load(words.at(dy, words.times(dy_filter, f))) for f in range(filters)], list(totals)
        for term, shift in enumerate(shifts):
            value = load(words.at(x, shift))
            for f in range(filters):
                following[f * terms + term] = words.fma(value, factors[f], following[f * terms + term])
        return following

    with words.loop(rows, x, dy, *(words.load(place) for place in places)) as row:
        source, target, *totals = row.carried
        with words.loop(whole, source, target, *totals) as inner:
            at, to, *carried = inner.carried
            following = added(at, to, carried, words.load)
            inner.carry(words.at(at, words.size), words.at(to, words.size), *following)
        at, to, *carried = inner.results
        with words.loop(rest, *carried) as tail:
            tail.carry(*added(at, to, list(tail.carried), lambda address: words.load_where(valid, address)))
        row.carry(words.at(source, x_row), words.at(target, dy_row), *tail.results)
    for place, total in zip(places, row.results[2:], strict=True):
        words.store(total, place)


@in_turn
def _gradient(
    workers, counter, last, tasks, x, dy, memory, sums, copied, offsets, copies, dweight, tile, sweep, routines
):
    """The parts are added after the last task."""
    on_workers(
        workers, _sum_parts, (counter, last, x, dy, memory, sums, copied, offsets, copies, tile, sweep, routines)
    )
    if last == tasks:
        for group in range(sweep.groups):
            _add_parts(memory, group, sums, dweight, len(offsets), tile, sweep, routines)


@serial
def _sum_parts(worker, counter, last, x, dy, memory, sums, copied, offsets, copies, tile, sweep, routines):
    task = take(counter)
    while task < last:
        own = memory[task * sums : (task + 1) * sums]
        own[:] = 0
        copy = memory.ctypes.data + 4 * (sweep.groups * tile.parts * sums + worker * copied)
        _part(
            x.ctypes.data, dy.ctypes.data, len(x), own.ctypes.data, copy, task // tile.parts, task % tile.parts,
            offsets, copies, tile, sweep, routines,
        )  # fmt: skip
        task = take(counter)


@serial
def _part(x, dy, n, sums, copy, group, part, offsets, copies, tile, sweep, routines):
    """Strips in rising order, images outermost."""
    of_filter, terms = 4 * sweep.rows * sweep.columns, len(offsets)
    for piece in range(part * n * sweep.strips // tile.parts, (part + 1) * n * sweep.strips // tile.parts):
        image, first = piece // sweep.strips * sweep.groups + group, piece % sweep.strips * sweep.strip
        rows = min(sweep.strip, sweep.rows - first)
        copy_strip(
            x + 4 * image * sweep.channels * sweep.height * sweep.width, copy, first, rows, copies, sweep, routines[0]
        )
        for block in range(tile.blocks_of_filters):
            f = block * tile.filters
            for term in range(0, terms, tile.terms):
                call(routines[2 if f + tile.filters <= sweep.filters else 3], (
                    copy, 4 * sweep.row_stride * sweep.pitch, offsets.ctypes.data + 8 * term,
                    dy + (image * sweep.filters + f) * of_filter + 4 * first * sweep.columns, of_filter,
                    4 * sweep.columns, rows, sweep.columns,
                    sums + 4 * LANES * (f * terms + term), 4 * LANES * terms,
                ))  # fmt: skip


@serial
def _add_parts(memory, group, sums, dweight, terms, tile, sweep, routines):
    """A group's first part becomes the sum of all, then its lanes are added."""
    begin = group * tile.parts * sums
    total = memory[begin : begin + sums]
    for part in range(1, tile.parts):
        total += memory[begin + part * sums : begin + (part + 1) * sums]
    weights = sweep.channels * sweep.taps
    for f in range(sweep.filters):
        call(routines[1], (
            total.ctypes.data + 4 * LANES * f * terms, weights,
            dweight.ctypes.data + 4 * (group * sweep.filters + f) * weights,
        ))  # fmt: skip
