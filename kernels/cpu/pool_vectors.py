"""Max pooling's micro-kernels: a vector of neighbouring windows at once, each lane with its winner so far."""

from collections.abc import Iterator
from typing import Any

from llvmlite import ir

from .vectors import INT, Words, micro_kernel

_INT32 = ir.IntType(32)


@micro_kernel
def pool_row(
    words: Words, x: Any, x_row: Any, rows: Any, count: Any, y: Any, index: Any, base: Any, *,
    columns: int, step: int, dilation: int, indices: int,
) -> None:  # fmt: skip
    """`y[q] = max_rs x[r*x_row + q*step + s*dilation]` for `count` windows wholly inside; with `indices` where it is.

    `index[q] = base + r*x_row + q*step + s*dilation` of the first maximum, rows outermost; the first NaN wins.
    """
    builder, lanes = words.builder, words.lanes
    integers, longs = ir.VectorType(_INT32, lanes), ir.VectorType(INT, lanes)
    # One less, so that no pair of vectors that is split reaches beyond the last window.
    whole = builder.sdiv(words.at(count, -1), words.number(lanes))
    in_row = builder.sdiv(x_row, words.number(4))

    def block(source: Any, targets: tuple[Any, Any, Any], left: Any) -> tuple[Any, Any, Any]:
        y, index, base = targets
        # Lower than everything but itself: the first tap's place then stands already.
        lowest = words.constant(float("-inf")), ir.Constant(integers, [0] * lanes)
        with words.loop(rows, source, words.number(0), *lowest) as loop:
            row, offset, best, place = loop.carried
            for s, value in enumerate(_taps(words, row, columns, step, dilation, left)):
                wins = builder.and_(builder.fcmp_unordered(">", value, best), builder.fcmp_ordered("ord", best, best))
                best = builder.select(wins, value, best)
                here = words.broadcast(builder.trunc(words.at(offset, s * dilation), _INT32))
                place = builder.select(wins, here, place)
            loop.carry(words.at(row, x_row), words.at(offset, in_row), best, place)
        _, _, best, place = loop.results
        stored = [(best, y)]
        if indices:
            first = builder.add(words.broadcast(base), ir.Constant(longs, [lane * step for lane in range(lanes)]))
            stored.append((builder.add(builder.sext(place, longs), first), index))
        for vector, address in stored:
            if left is None:
                words.store(vector, address)
            else:
                words.store_where(words.first(left), vector, address)
        return words.at(y, words.size), words.at(index, 8 * lanes), words.at(base, lanes * step)

    with words.loop(whole, x, y, index, base) as loop:
        source, *targets = loop.carried
        loop.carry(words.at(source, step * words.size), *block(source, tuple(targets), None))
    source, *targets = loop.results
    block(source, tuple(targets), builder.sub(count, words.times(whole, lanes)))


def _taps(words: Words, row: Any, columns: int, step: int, dilation: int, left: Any) -> Iterator[Any]:
    """The taps of a row: lane q holds `row[q*step + s*dilation]`. Only the first `left` lanes' memory is touched."""
    if step != 2 or dilation != 1:
        for s in range(columns):
            address = words.at(row, 4 * s * dilation)
            if step > 1:
                yield words.gather(words.first(words.number(words.lanes) if left is None else left), address, step)
            else:
                yield words.load(address) if left is None else words.load_where(words.first(left), address)
        return
    for s in range(0, columns, 2):
        floats = None if left is None else words.at(words.times(left, 2), columns - 2 - s)
        even, odd = pairs(words, words.at(row, 4 * s), floats)
        yield even
        if s + 1 < columns:
            yield odd


def pairs(words: Words, address: Any, floats: Any) -> tuple[Any, Any]:
    """The even and the odd ones of two vectors of floats, the first `floats` of them if not all."""
    if floats is None:
        both = words.load(address), words.load(words.at(address, words.size))
    else:
        masks = words.first(floats), words.first(words.at(floats, -words.lanes))
        both = words.load_where(masks[0], address), words.load_where(masks[1], words.at(address, words.size))
    return words.shuffle(*both, range(0, 2 * words.lanes, 2)), words.shuffle(*both, range(1, 2 * words.lanes, 2))


@micro_kernel
def unpool_row(words: Words, x: Any, x_row: Any, count: Any, dy: Any, dx: Any) -> None:
    """`dx[r, 2*q + s] = dy[q]` where that won its 2x2 window of x, else 0; dx and x have rows of `x_row` bytes."""
    builder, lanes = words.builder, words.lanes
    whole = builder.sdiv(count, words.number(lanes))
    zero = words.constant(0)
    low, high = (
        [half + lane // 2 + lanes * (lane % 2) for lane in range(lanes)] for half in (0, lanes // 2)
    )  # fmt: skip

    def block(source: Any, gradient: Any, target: Any, left: Any) -> None:
        floats = None if left is None else words.times(left, 2)
        taps = [*pairs(words, source, floats), *pairs(words, words.at(source, x_row), floats)]
        best, won = taps[0], []
        for value in taps[1:]:
            wins = builder.and_(builder.fcmp_unordered(">", value, best), builder.fcmp_ordered("ord", best, best))
            best = builder.select(wins, value, best)
            won.append(wins)
        # A zero added, as by every sum: -0 becomes 0.
        rest = words.load(gradient) if left is None else words.load_where(words.first(left), gradient)
        rest, shares = builder.fadd(rest, zero), []
        for wins in reversed(won):
            shares.insert(0, builder.select(wins, rest, zero))
            rest = builder.select(wins, zero, rest)
        shares.insert(0, rest)
        for r, address in enumerate((target, words.at(target, x_row))):
            for half, order in enumerate((low, high)):
                vector, place = words.shuffle(*shares[2 * r : 2 * r + 2], order), words.at(address, half * words.size)
                if floats is None:
                    words.store(vector, place)
                else:
                    words.store_where(words.first(words.at(floats, -half * lanes)), vector, place)

    with words.loop(whole, x, dy, dx) as loop:
        source, gradient, target = loop.carried
        block(source, gradient, target, None)
        loop.carry(words.at(source, 2 * words.size), words.at(gradient, words.size), words.at(target, 2 * words.size))
    left = builder.sub(count, words.times(whole, lanes))
    with builder.if_then(builder.icmp_signed(">", left, words.number(0))):
        block(*loop.results, left)
