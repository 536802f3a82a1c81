"""Products of matrices on the micro-kernels: what the fully connected layer and its gradients are.

Two forms, so that neither packs the large operand. `transposed`, where the rows of both are summed along: a sum is a
vector, a lane for each feature modulo `LANES`, and a weight that is read serves many rows of x. `product`, where the
rows of the second operand are added up: `multiply`, with its weights where they stand. Measured
beside others in docs/cpu.md.
"""

from typing import Any

import numpy as np
from numba import prange

from .launch import parallel, ready, serial, share, threads
from .micro_kernels import PIXELS, VECTORS, multiply, to_lanes
from .vectors import LANES, Words, call, micro_kernel, take
from .workspace import borrowed

_ROWS, _COLUMNS = {16: (6, 4), 8: (2, 4), 4: (5, 4)}[LANES]
"""Rows of x and of weights whose sums are in registers: with the vectors that they are made of they fill them."""

_FEATURES = 64 * LANES
"""Features that are summed before the next rows: those of a panel stay in the second-level cache."""

_BLOCK = 8 * _ROWS
"""Rows of x in one task."""


@micro_kernel
def dots(
    words: Words, x: Any, x_step: Any, weight: Any, weight_step: Any, columns: Any, features: Any,
    sums: Any, sums_step: Any, *, rows: int, accumulate: int,
) -> None:  # fmt: skip
    """`sums[row][column] (+)= sum_v x[row][v] * weight[column][v]`, each sum a vector, for `rows` x `_COLUMNS` of them.

    v runs over whole vectors, in each lane one chain of fused multiply-adds. Of weights, only `columns` rows are read.
    """
    builder, lanes = words.builder, words.lanes
    last = words.at(columns, -1)
    inputs = [words.at(x, words.times(x_step, row)) for row in range(rows)]
    # Rows that are not there are the last one again: no branch, and their sums are not used.
    weights = []
    for column in range(_COLUMNS):
        there = builder.select(builder.icmp_signed("<", words.number(column), columns), words.number(column), last)
        weights.append(words.at(weight, words.times(weight_step, there)))
    places = [
        words.at(words.at(sums, words.times(sums_step, row)), words.size * column)
        for row in range(rows)
        for column in range(_COLUMNS)
    ]
    totals = [words.load(place) if accumulate else words.constant(0) for place in places]
    whole = builder.sdiv(features, words.number(lanes))
    left = builder.srem(features, words.number(lanes))

    def added(totals: list[Any], offset: Any, load: Any) -> list[Any]:
        factors, following = [load(words.at(each, offset)) for each in weights], []
        for row in range(rows):
            value = load(words.at(inputs[row], offset))
            following += [
                words.fma(value, factors[column], totals[row * _COLUMNS + column]) for column in range(_COLUMNS)
            ]
        return following

    with words.loop(whole, *totals) as loop:
        loop.carry(*added(list(loop.carried), words.times(loop.index, words.size), words.load))
    valid = words.first(left)
    rest = builder.zext(builder.icmp_signed(">", left, words.number(0)), left.type)
    with words.loop(rest, *loop.results) as tail:
        end = words.times(whole, words.size)
        tail.carry(*added(list(tail.carried), end, lambda address: words.load_where(valid, address)))
    for place, total in zip(places, tail.results, strict=True):
        words.store(total, place)


@micro_kernel
def totals(words: Words, sums: Any, bias: Any, y: Any, y_step: Any, rows: Any, columns: Any) -> None:
    """`y[row][column] = bias[column] + sum_lanes sums[row][column][lane]` for up to `LANES` columns, bias last.

    The lanes are added in pairs, those pairs in pairs, and so on.
    """
    builder = words.builder
    valid = words.first(columns)
    start = words.load(bias)
    with words.loop(rows, sums, y) as loop:
        source, target = loop.carried
        level = words.transpose([words.load(words.at(source, words.size * column)) for column in range(words.lanes)])
        while len(level) > 1:
            level = [builder.fadd(*level[pair : pair + 2]) for pair in range(0, len(level), 2)]
        words.store_where(valid, builder.fadd(level[0], start), target)
        loop.carry(words.at(source, words.size * words.lanes), words.at(target, y_step))


def transposed(x: Any, weight: Any, bias: Any) -> Any:
    """`y[n,k] = bias[k] + sum_c x[n,c] * weight[k,c]`; parallel over `LANES` outputs by `_BLOCK` rows.

    In each of `LANES` lanes one chain over c; the lanes are added in pairs, the bias last.
    """
    (n, c), k = x.shape, len(weight)
    y = np.empty((n, k), np.float32)
    panels = -(-k // LANES)
    starts = np.zeros(panels * LANES, np.float32)
    if bias is not None:
        starts[:k] = bias
    block = _BLOCK if panels >= _TASKS * threads() else max(_ROWS, _BLOCK // 4)
    blocks = -(-n // block)
    routines = np.zeros((3, 2), np.int64)
    routines[2, 0] = totals.address()
    for shape, rows in enumerate((_ROWS, n % _ROWS)):
        for accumulate in range(1 + (c > _FEATURES)) if rows and rows <= n else ():
            routines[shape, accumulate] = dots.address(rows=rows, accumulate=accumulate)
    with borrowed(threads() * block * LANES * LANES) as memory:
        share(
            _transposed, panels * blocks, block * LANES * c, ready(x), ready(weight), starts, y, block, memory, routines
        )  # fmt: skip
    return y


_TASKS = 4
"""Tasks for each thread where there is work enough: one that is held up leaves the others work."""


@parallel
def _transposed(workers, counter, last, x, weight, starts, y, block, memory, routines):
    for worker in prange(workers):
        sums = memory.ctypes.data + 4 * worker * block * LANES * LANES
        task = take(counter)
        while task < last:
            blocks = -(-len(x) // block)
            _panel(x, weight, starts, y, task // blocks * LANES, task % blocks * block, block, sums, routines)
            task = take(counter)


@serial
def _panel(x, weight, starts, y, k, first, block, sums, routines):
    """Outputs `k ..` of rows `first ..`: blocks of features outermost, then rows, then outputs."""
    (n, c), step = x.shape, 4 * x.shape[1]
    rows, columns = min(block, n - first), min(LANES, len(weight) - k)
    for feature in range(0, max(c, 1), _FEATURES):
        features, accumulate = min(_FEATURES, c - feature), int(feature > 0)
        row = 0
        while row < rows:
            shape = 0 if rows - row >= _ROWS else 1
            for column in range(0, columns, _COLUMNS):
                call(routines[shape, accumulate], (
                    x.ctypes.data + (first + row) * step + 4 * feature, step,
                    weight.ctypes.data + (k + column) * step + 4 * feature, step, columns - column, features,
                    sums + 4 * LANES * (row * LANES + column), 4 * LANES * LANES,
                ))  # fmt: skip
            row += _ROWS
    at = y.ctypes.data + 4 * (first * y.shape[1] + k)
    call(routines[2, 0], (sums, starts.ctypes.data + 4 * k, at, 4 * y.shape[1], rows, columns))


def product(a: Any, b: Any, is_transposed: bool) -> Any:
    """`y[i,j] = sum_t a[i,t] * b[t,j]`, or with a given as `a[t,i]`; parallel over panels of j and tiles of i.

    Every element is one chain of fused multiply-adds over t. b needs `LANES` columns or more. a is turned into tiles of
    columns unless it stands so.
    """
    terms, j = b.shape
    i = a.size // terms
    tile = -(-i // -(-i // min(PIXELS, LANES)))
    # Fewer rows leave registers for more vectors, and more vectors hide how long a multiply-add takes.
    fitting = [
        each for each in (VECTORS, 2 * VECTORS, 4 * VECTORS) if each * tile <= PIXELS * VECTORS and each * LANES <= j
    ]
    vectors = max(fitting, default=1)
    tiles = -(-i // tile)
    y = np.empty((i, j), np.float32)
    a, b = ready(a), ready(b)
    routines = np.array([to_lanes.address(), multiply.address(pixels=tile, vectors=vectors, pixel_step=4)])
    packed = 0 if is_transposed else tiles * terms * LANES
    panels = -(-j // (vectors * LANES))
    # Tiles in one task: all, so that they share a panel of b, unless that leaves threads without work.
    group = tiles if panels >= _TASKS * threads() else -(-tiles // (_TASKS * threads()))
    with borrowed(packed + LANES * vectors) as memory:
        memory[: LANES * vectors] = 0
        if packed:
            share(_pack, tiles, tile * terms, a, tile, memory[LANES * vectors :], routines)
        share(
            _product, panels * -(-tiles // group), group * tile * terms * vectors * LANES, a, b, y, tile, vectors,
            group, packed, memory, routines,
        )  # fmt: skip
    return y


@parallel
def _pack(workers, counter, last, a, tile, packed, routines):
    """`packed[tile][t][lane]`: rows of a, a lane for each."""
    rows, terms = a.shape
    for _ in prange(workers):
        task = take(counter)
        while task < last:
            first = min(task * tile, rows - tile)
            call(routines[0], (
                a.ctypes.data + 4 * first * terms, 4 * terms, tile, terms,
                packed.ctypes.data + 4 * task * terms * LANES, 4 * LANES,
            ))  # fmt: skip
            task = take(counter)


@parallel
def _product(workers, counter, last, a, b, y, tile, vectors, group, packed, memory, routines):
    for _ in prange(workers):
        task = take(counter)
        while task < last:
            tiles = -(-len(y) // tile)
            groups = -(-tiles // group)
            _tiles(a, b, y, tile, vectors, task // groups, task % groups * group, group, packed, memory, routines)
            task = take(counter)


@serial
def _tiles(a, b, y, tile, vectors, panel, first, group, packed, memory, routines):
    """A panel of columns of y, for tiles `first ..`; the last tile and panel overlap those before: the same sums."""
    (terms, j), i = b.shape, len(y)
    column = min(panel * vectors * LANES, j - vectors * LANES)
    zero = np.zeros(1, np.int64)
    for number in range(first, min(first + group, -(-i // tile))):
        row = min(number * tile, i - tile)
        at, step = a.ctypes.data + 4 * row, 4 * i
        if packed:
            at, step = memory.ctypes.data + 4 * LANES * (vectors + number * terms), 4 * LANES
        call(routines[1], (
            at, step, terms, zero.ctypes.data, 1, b.ctypes.data + 4 * column, 4 * j, memory.ctypes.data,
            y.ctypes.data + 4 * (row * j + column), 4 * j,
        ))  # fmt: skip
