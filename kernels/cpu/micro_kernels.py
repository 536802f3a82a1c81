"""The routines that the fast kernels spend their time in: one multiply, and the turns between channels and vectors.

`multiply` is the only one that multiplies. Its tile of `pixels` x `vectors` sums stays in registers while it runs over
all terms; each step loads `vectors` vectors of weights and does `pixels * vectors` fused multiply-adds, whose other
factor is one float, broadcast as it is loaded. A tile of 14 x 2 vectors of 16 lanes fills 28 of AVX-512's 32 registers
and does 896 flops a step; a core reached 97 % of its peak with it.
"""

from collections.abc import Sequence
from typing import Any

from .vectors import LANES, Words, micro_kernel

TILES = {16: (14, 2), 8: (6, 2), 4: (12, 2)}
"""Pixels and vectors of a tile by lanes: AVX-512, AVX2, NEON. Sums, weights and what is broadcast fit the registers."""

PIXELS, VECTORS = TILES[LANES]

TOGETHER = {16: 1, 8: 2**20, 4: 1}[LANES]
"""Tiles that one call multiplies, at most: short tiles take not much longer than a call."""


@micro_kernel
def multiply(
    words: Words, x: Any, x_step: Any, channels: Any, offsets: Any, taps: Any, weight: Any, weight_step: Any,
    start: Any, y: Any, y_step: Any, tiles: Any, x_tile: Any, *,
    pixels: int, vectors: int, pixel_step: int, accumulate: int = 0, single: int = 0,
) -> None:  # fmt: skip
    """`y[pixel] = start + sum_c sum_t x[c*x_step + offsets[t] + pixel*pixel_step] * weight[c*weight_step + t]`.

    For one of `tiles` after the other, `x_tile` apart in x and side by side in y. `y[pixel]`, `start` and `weight[...]`
    are `vectors` vectors, one lane for each filter; channels outermost, taps in order, each sum a single chain of fused
    multiply-adds. With `accumulate`, the sums start from what y holds. With `single` there is one tap, at no offset: on
    short tiles a loop over it would cost a tenth.
    """
    panel = range(vectors)

    def added(x: Any, weight: Any, sums: list[Any]) -> list[Any]:
        factors, following = [words.load(words.at(weight, words.size * vector)) for vector in panel], []
        for pixel in range(pixels):
            value = words.splat(words.at(x, pixel_step * pixel))
            following += [words.fma(value, factors[vector], sums[pixel * vectors + vector]) for vector in panel]
        return following

    with words.loop(tiles, x, y) as tile:
        x, y = tile.carried
        starts = [
            words.load(words.at(words.at(y, words.times(y_step, pixel)) if accumulate else start, words.size * vector))
            for pixel in range(pixels)
            for vector in panel
        ]
        with words.loop(channels, x, weight, *starts) as outer:
            x_of_channel, weight_of_channel, *sums = outer.carried
            if single:
                sums = added(x_of_channel, weight_of_channel, sums)
            else:
                with words.loop(taps, weight_of_channel, *sums) as inner:
                    weight_of_tap, *sums = inner.carried
                    offset = words.load_integer(words.at(offsets, words.times(inner.index, 8)))
                    following = added(words.at(x_of_channel, offset), weight_of_tap, sums)
                    inner.carry(words.at(weight_of_tap, words.size * vectors), *following)
                _, *sums = inner.results
            outer.carry(words.at(x_of_channel, x_step), words.at(weight_of_channel, weight_step), *sums)
        _, _, *sums = outer.results
        for pixel in range(pixels):
            for vector in panel:
                words.store(sums[pixel * vectors + vector], words.at(y, words.size * vector))
            y = words.at(y, y_step)
        tile.carry(words.at(x, x_tile), y)


_AHEAD = 512
"""Bytes of each row that are fetched before their turn: so many rows at once are more than a processor foresees."""


@micro_kernel
def to_lanes(words: Words, x: Any, row_step: Any, rows: Any, columns: Any, y: Any, y_step: Any) -> None:
    """`y[column][row] = x[row][column]` for up to `LANES` rows; y's lanes beyond them are zero."""
    builder = words.builder
    kept, last = words.first(rows), words.at(rows, -1)
    # Rows that are not there are read from the last one and then dropped: no branch, and nothing beyond x is touched.
    begins = []
    for row in range(words.lanes):
        is_there = builder.icmp_signed("<", words.number(row), rows)
        begins.append(words.at(x, words.times(row_step, builder.select(is_there, words.number(row), last))))

    def turned(vectors: list[Any]) -> list[Any]:
        return [builder.select(kept, each, words.constant(0)) for each in words.transpose(vectors)]

    whole = builder.sdiv(columns, words.number(words.lanes))
    with words.loop(whole, y, *begins) as block:
        target, *sources = block.carried
        for source in sources:
            words.prefetch(words.at(source, _AHEAD))
        for each in turned([words.load(source) for source in sources]):
            words.store(each, target)
            target = words.at(target, y_step)
        block.carry(target, *(words.at(source, words.size) for source in sources))
    target, *sources = block.results
    left = builder.srem(columns, words.number(words.lanes))
    with builder.if_then(builder.icmp_signed(">", left, words.number(0))):
        valid = words.first(left)
        for column, each in enumerate(turned([words.load_where(valid, source) for source in sources])):
            with builder.if_then(builder.icmp_signed("<", words.number(column), left)):
                words.store(each, words.at(target, words.times(y_step, column)))


@micro_kernel
def from_lanes(
    words: Words, x: Any, x_step: Any, columns: Any, y: Any, row_step: Any, rows: Any, *, relu: int, past: int = 0
) -> None:  # fmt: skip
    """`y[row][column] = x[column][row]` for up to `LANES` rows, `relu` of it if asked; reads x in whole squares.

    With `past` most of it is stored past the caches, two squares at a time: y and its rows begin at whole vectors.
    """
    builder = words.builder

    def block(source: Any, target: Any, store: Any, squares: int = 1) -> Any:
        turned = []
        for _ in range(squares):
            vectors = []
            for _ in range(words.lanes):
                vectors.append(words.load(source))
                source = words.at(source, x_step)
            turned.append(words.transpose(vectors))
        for row, sides in enumerate(zip(*turned, strict=True)):
            with builder.if_then(builder.icmp_signed("<", words.number(row), rows)):
                for square, each in enumerate(sides):
                    store(words.rectified(each) if relu else each, words.at(target, square * words.size))
            target = words.at(target, row_step)
        return source

    begin, whole = (x, y), builder.sdiv(columns, words.number(words.lanes))
    if past:
        with words.loop(builder.sdiv(whole, words.number(2)), x, y) as loop:
            source, target = loop.carried
            loop.carry(block(source, target, words.store_past, 2), words.at(target, 2 * words.size))
        begin, whole = loop.results, builder.srem(whole, words.number(2))
    with words.loop(whole, *begin) as loop:
        source, target = loop.carried
        loop.carry(block(source, target, words.store), words.at(target, words.size))
    source, target = loop.results
    left = builder.srem(columns, words.number(words.lanes))
    with builder.if_then(builder.icmp_signed(">", left, words.number(0))):
        valid = words.first(left)
        if words.stores_masked:
            block(source, target, lambda vector, address: words.store_where(valid, vector, address))
            return
        is_long = builder.icmp_signed(">=", columns, words.number(words.lanes))
        with builder.if_else(is_long) as (long, short):
            with long:
                # A whole square that overlaps the last one.
                first = words.at(columns, -words.lanes)
                block(words.at(x, words.times(x_step, first)), words.at(y, words.times(first, 4)), words.store)
            with short:
                block(source, target, lambda vector, address: words.store_where(valid, vector, address))


@micro_kernel
def claim_lines(words: Words, y: Any, row_step: Any, rows: Any, lines: Any) -> None:
    """Start to bring `lines` lines of 64 bytes from each `y + row*row_step` on near, to be written."""
    with words.loop(rows, y) as row:
        with words.loop(lines, *row.carried) as line:
            words.prefetch(line.carried[0], to_write=True)
            line.carry(words.at(line.carried[0], 64))
        row.carry(words.at(row.carried[0], row_step))


@micro_kernel
def clear(words: Words, y: Any, count: Any) -> None:
    """`y[i] = 0` for `count` floats."""
    whole, zero = words.builder.sdiv(count, words.number(words.lanes)), words.constant(0)
    with words.loop(whole, y) as loop:
        words.store(zero, loop.carried[0])
        loop.carry(words.at(loop.carried[0], words.size))
    left = words.builder.srem(count, words.number(words.lanes))
    if words.stores_masked:
        words.store_where(words.first(left), zero, loop.results[0])
        return
    with words.builder.if_then(words.builder.icmp_signed(">", left, words.number(0))):
        words.store_where(words.first(left), zero, loop.results[0])


@micro_kernel
def copy_lanes(words: Words, x: Any, count: Any, y: Any) -> None:
    """One vector: `y[lane] = x[lane]` for the first `count` lanes, and zero in the others."""
    words.store(words.load_where(words.first(count), x), y)


@micro_kernel
def copy_rows(words: Words, x: Any, x_row: Any, rows: Any, y: Any, y_row: Any, *, vectors: int) -> None:
    """`y[row] = x[row]`, so many vectors of each."""
    with words.loop(rows, x, y) as row:
        for vector in range(vectors):
            source, target = (words.at(each, words.size * vector) for each in row.carried)
            words.store(words.load(source), target)
        row.carry(words.at(row.carried[0], x_row), words.at(row.carried[1], y_row))


@micro_kernel
def pool_lanes(
    words: Words, x: Any, x_step: Any, x_row: Any, columns: Any, rows: Any, y: Any, winner: Any, *, relu: int
) -> None:
    """`y[p,q] = max_rs x[2*p + r, 2*q + s]` and which of the four it was, for a vector of filters at each pixel.

    The first maximum wins, or the first NaN. `relu` of y if asked: then a winner that is not positive means nothing.
    """
    with words.loop(rows, x, y, winner) as over_rows:
        row, y_row, winner_row = over_rows.carried
        with words.loop(columns, row, y_row, winner_row) as over_columns:
            source, target, place = over_columns.carried
            below = words.at(source, x_row)
            taps = [words.load(each) for each in (source, words.at(source, x_step), below, words.at(below, x_step))]
            best, won = first_maximum(words, taps)
            words.store(words.rectified(best) if relu else best, target)
            words.store(words.builder.bitcast(won, words.vector), place)
            after = words.at(source, words.times(x_step, 2)), *(words.at(each, words.size) for each in (target, place))
            over_columns.carry(*after)
        over_rows.carry(words.at(row, words.times(x_row, 2)), *over_columns.results[1:])


def first_maximum(words: Words, taps: Sequence[Any]) -> tuple[Any, Any]:
    """Lane by lane the greatest of the taps, and which it was: the first if there are several, or the first NaN."""
    builder = words.builder
    best, won = taps[0], words.integers(0)
    for which, value in enumerate(taps[1:], 1):
        wins = builder.and_(builder.fcmp_unordered(">", value, best), builder.fcmp_ordered("ord", best, best))
        best, won = builder.select(wins, value, best), builder.select(wins, words.integers(which), won)
    return best, won
