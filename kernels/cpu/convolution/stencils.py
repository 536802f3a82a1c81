"""Depthwise convolution's micro-kernels: what one filter does to one image, with its sums in registers."""

from typing import Any

from ..pool_vectors import split
from ..vectors import INT, Words, micro_kernel


@micro_kernel
def copy_image(
    words: Words, x: Any, x_row: Any, rows: Any, count: Any, y: Any, y_row: Any, width: Any, ahead: Any, *, inner: int
) -> None:
    """`y[row][i] = x[row][i]` for `count` floats, then zeros up to `width` or some more, row after row.

    What is `ahead` bytes further is prefetched. With `inner`, whole vectors of x may be read beyond a row: loads with a
    mask that miss the cache are slow.
    """
    builder, lanes = words.builder, words.lanes
    whole = builder.sdiv(count, words.number(lanes))
    valid = words.first(builder.srem(count, words.number(lanes)))
    zeros = builder.sub(builder.sdiv(words.at(width, lanes - 1), words.number(lanes)), words.at(whole, 1))
    zero = words.constant(0)
    with words.loop(rows, x, y) as row:
        with words.loop(whole, *row.carried) as loop:
            source, target = loop.carried
            words.prefetch(words.at(source, ahead))
            words.store(words.load(source), target)
            loop.carry(words.at(source, words.size), words.at(target, words.size))
        source, target = loop.results
        last = builder.select(valid, words.load(source), zero) if inner else words.load_where(valid, source)
        words.store(last, target)
        with words.loop(zeros, words.at(target, words.size)) as loop:
            words.store(zero, loop.carried[0])
            loop.carry(words.at(loop.carried[0], words.size))
        row.carry(words.at(row.carried[0], x_row), words.at(row.carried[1], y_row))


def _columns(words: Words, row: Any, taps: int, step: int) -> list[Any]:
    """For each tap of a row, lane q holds `row[q*step + tap]`."""
    if step == 1:
        return [words.load(words.at(row, 4 * tap)) for tap in range(taps)]
    found: list[Any] = []
    for tap in range(0, taps, 2):
        address = words.at(row, 4 * tap)
        found += split(words, words.load(address), words.load(words.at(address, words.size)))
    return found[:taps]


@micro_kernel
def stencil(
    words: Words, x: Any, x_row: Any, weight: Any, start: Any, y: Any, y_row: Any, pixels: Any, blocks: Any, *,
    kernel_r: int, kernel_s: int, row_step: int, step: int, rows: int, relu: int, past: int,
) -> None:  # fmt: skip
    """`y[p,q] = start + sum_rs x[p*row_step + r, q*step + s] * weight[r,s]` for `blocks` x `rows` rows of `pixels`.

    One chain of fused multiply-adds each, taps row-major. With `relu` that of the sum. With `past` it is stored past
    the caches; pixels are whole vectors then, and y is aligned.
    """
    builder, zero = words.builder, words.constant(0)
    factors = [words.splat(words.at(weight, 4 * tap)) for tap in range(kernel_r * kernel_s)]
    first = words.splat(start)
    whole = builder.sdiv(pixels, words.number(words.lanes))

    def block(valid: Any, x: Any, y: Any) -> None:
        sums = [first] * rows
        for j in range((rows - 1) * row_step + kernel_r):
            values = _columns(words, words.at(x, words.times(x_row, j)), kernel_s, step)
            for p in range(rows):
                r = j - p * row_step
                if 0 <= r < kernel_r:
                    for s, value in enumerate(values):
                        sums[p] = words.fma(value, factors[r * kernel_s + s], sums[p])
        for p, total in enumerate(sums):
            if relu:
                # Not a maximum: NaN stays NaN.
                total = builder.select(builder.fcmp_ordered("<", total, zero), zero, total)
            address = words.at(y, words.times(y_row, p))
            if valid is not None:
                words.store_where(valid, total, address)
            else:
                (words.store_past if past else words.store)(total, address)

    with words.loop(blocks, x, y) as row:
        with words.loop(whole, *row.carried) as loop:
            block(None, *loop.carried)
            loop.carry(words.at(loop.carried[0], step * words.size), words.at(loop.carried[1], words.size))
        left = builder.srem(pixels, words.number(words.lanes))
        with builder.if_then(builder.icmp_signed(">", left, words.number(0))):
            block(words.first(left), *loop.results)
        row.carry(
            words.at(row.carried[0], words.times(x_row, rows * row_step)),
            words.at(row.carried[1], words.times(y_row, rows)),
        )


@micro_kernel
def spread(
    words: Words, dy: Any, dy_row: Any, weight: Any, dx: Any, dx_row: Any, pixels: Any, rows: Any, *,
    kernel_r: int, kernel_s: int, top: int, left: int, odd: int,
) -> None:  # fmt: skip
    """`dx[2*i + a, 2*j + b] = sum_rs dy[(2*i + a + top - r)/2, (2*j + b + left - s)/2] * weight[r,s]` where whole.

    For `rows` pairs of rows, or of the first of a pair with `odd`, of `pixels` floats. dy begins with the least row and
    column that is asked for. One chain of fused multiply-adds each, taps row-major.
    """
    builder, lanes = words.builder, words.lanes
    factors = [words.splat(words.at(weight, 4 * tap)) for tap in range(kernel_r * kernel_s)]
    whole = builder.sdiv(pixels, words.number(2 * lanes))
    rest = builder.srem(pixels, words.number(2 * lanes))
    masks = words.first(rest), words.first(words.at(rest, -lanes))
    (_, low_r), (_, low_s) = reach(kernel_r, top), reach(kernel_s, left)

    def block(masks: Any, dy: Any, dx: Any) -> None:
        for a in range(1 if odd else 2):
            sums = []
            for b in (0, 1):
                total = words.constant(0)
                for r in range((a + top) % 2, kernel_r, 2):
                    for s in range((b + left) % 2, kernel_s, 2):
                        i, j = (a + top - r) // 2 + low_r, (b + left - s) // 2 + low_s
                        value = words.load(words.at(words.at(dy, words.times(dy_row, i)), 4 * j))
                        total = words.fma(value, factors[r * kernel_s + s], total)
                sums.append(total)
            evens, odds = sums
            for half in (0, 1):
                order = [half * lanes // 2 + lane // 2 + lanes * (lane % 2) for lane in range(lanes)]
                address = words.at(words.at(dx, words.times(dx_row, a)), half * words.size)
                if masks is None:
                    words.store(words.shuffle(evens, odds, order), address)
                else:
                    words.store_where(masks[half], words.shuffle(evens, odds, order), address)

    with words.loop(rows, dy, dx) as row:
        with words.loop(whole, *row.carried) as loop:
            block(None, *loop.carried)
            loop.carry(words.at(loop.carried[0], words.size), words.at(loop.carried[1], 2 * words.size))
        with builder.if_then(builder.icmp_signed(">", rest, words.number(0))):
            block(masks, *loop.results)
        row.carry(words.at(row.carried[0], dy_row), words.at(row.carried[1], words.times(dx_row, 2)))


def reach(kernel: int, before: int) -> tuple[int, int]:
    """For stride 2, how far behind i a position 2*i or 2*i + 1 is reached from, and how far before: both may be < 0."""
    ends = [(a + before - r) // 2 for a in (0, 1) for r in range((a + before) % 2, kernel, 2)]
    return max(ends, default=0), -min(ends, default=0)


@micro_kernel
def stencil_dweight(
    words: Words, x: Any, x_row: Any, dy: Any, dy_row: Any, pixels: Any, blocks: Any,
    ahead: Any, sums: Any, *,
    kernel_r: int, kernel_s: int, row_step: int, step: int, rows: int,
) -> None:  # fmt: skip
    """`sums[r,s] += sum_pq dy[p,q] * x[p*row_step + r, q*step + s]`, a vector each, for `blocks` x `rows` rows.

    A lane's chain runs over blocks, vectors of pixels, then rows. What is `ahead` bytes behind dy is prefetched.
    """
    builder, zero = words.builder, words.constant(0)
    places = [words.at(sums, words.size * tap) for tap in range(kernel_r * kernel_s)]
    whole, left = (each(pixels, words.number(words.lanes)) for each in (builder.sdiv, builder.srem))
    valid = words.first(left)
    rest = builder.zext(builder.icmp_signed(">", left, words.number(0)), INT)

    def added(x: Any, dy: Any, totals: list[Any], mask: Any) -> list[Any]:
        rows_of_dy = [words.at(dy, words.times(dy_row, p)) for p in range(rows)]
        for each in rows_of_dy if mask is None else ():
            words.prefetch(words.at(each, ahead))
        factors = [words.load(each) if mask is None else words.load_where(mask, each) for each in rows_of_dy]
        for j in range((rows - 1) * row_step + kernel_r):
            for s, value in enumerate(_columns(words, words.at(x, words.times(x_row, j)), kernel_s, step)):
                if mask is not None:
                    # What stands behind the pixels may be infinite.
                    value = builder.select(mask, value, zero)
                for p, factor in enumerate(factors):
                    r = j - p * row_step
                    if 0 <= r < kernel_r:
                        totals[r * kernel_s + s] = words.fma(value, factor, totals[r * kernel_s + s])
        return totals

    with words.loop(blocks, x, dy, *(words.load(place) for place in places)) as row:
        x_of_row, dy_of_row, *totals = row.carried
        with words.loop(whole, x_of_row, dy_of_row, *totals) as loop:
            source, gradient, *totals = loop.carried
            following = added(source, gradient, totals, None)
            loop.carry(words.at(source, step * words.size), words.at(gradient, words.size), *following)
        source, gradient, *totals = loop.results
        with words.loop(rest, *totals) as tail:
            tail.carry(*added(source, gradient, list(tail.carried), valid))
        row.carry(
            words.at(x_of_row, words.times(x_row, rows * row_step)), words.at(dy_of_row, words.times(dy_row, rows)),
            *tail.results,
        )  # fmt: skip
    for place, total in zip(places, row.results[2:], strict=True):
        words.store(total, place)


@micro_kernel
def add_lanes(words: Words, sums: Any, count: Any, y: Any) -> None:
    """`y[i] = sum_lanes sums[i][lane]`, halves added to halves."""
    with words.loop(count, sums, y) as loop:
        source, target = loop.carried
        total, half = words.load(source), words.lanes // 2
        while half:
            above = [(lane + half) % words.lanes for lane in range(words.lanes)]
            total, half = words.builder.fadd(total, words.shuffle(total, total, above)), half // 2
        words.store_where(words.first(words.number(1)), total, target)
        loop.carry(words.at(source, words.size), words.at(target, 4))
