"""Max pooling's micro-kernels: a vector of neighbouring windows at once, each lane with its winner so far."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from llvmlite import ir

from .vectors import INT32, LANES, Words, micro_kernel

LOWEST = float("-inf")


class Blocks(NamedTuple):
    """How a row of windows is cut into vectors: `whole` ones from `start` on, inside the image, and `edges` others."""

    width: int
    left: int
    count: int
    start: int
    whole: int
    edge: int
    edge_step: int
    edges: int

    @staticmethod
    def of(width: int, left: int, count: int, begin: int, end: int) -> "Blocks":
        """For `count` windows of which `begin .. end - 1` read no padding; at most two blocks, or all, are edges."""
        start = 0 if begin == 0 else LANES
        # One window less, so that no pair of vectors that is split reaches beyond the last one.
        whole = max(0, (end - 1 - start) // LANES) if start >= begin else 0
        after = start + whole * LANES
        if whole == 0 or count - after > LANES:
            return Blocks(width, left, count, 0, 0, 0, LANES, -(-count // LANES))
        edges = ([0] if start else []) + ([after] if after < count else [])
        return Blocks(width, left, count, start, whole, edges[0], edges[-1] - edges[0], len(edges))


@micro_kernel
def pool_rows(
    words: Words, blocks: Any, x: Any, x_row: Any, taps: Any, x_step: Any, base: Any, y: Any, index: Any, rows: Any, *,
    height: int, columns: int, step: int, indices: int, inner: int,
) -> None:  # fmt: skip
    """`y[p,q] = max_rs x[p*x_step + r*x_row + q*step + s - left]` for `rows` rows of y.

    Windows have `height` rows, or `taps` if that is 0.
    With `indices` also where it is, `base` the place of x[0]. Row-major, the first maximum wins, or the first NaN.
    With `inner`, whole vectors may be read beyond rows: loads with a mask that miss the cache are slow.
    Best and place of `LANES` windows are in registers.
    """
    builder, lanes = words.builder, words.lanes
    width, left, count, start, whole, edge, edge_step, edges = (
        words.load_integer(words.at(blocks, 8 * number)) for number in range(len(Blocks._fields))
    )

    def block(q: Any, is_edge: bool) -> None:
        """A column of blocks: what its lanes may read is decided once."""
        column = builder.sub(words.times(q, step), left)
        masks = _masks(words, column, width, columns, step) if is_edge else None
        stored = words.first(builder.sub(count, q))
        here = words.at(x, words.times(column, 4)), words.at(y, words.times(q, 4)), words.at(index, words.times(q, 8))
        with words.loop(rows, *here, builder.add(base, column)) as row:
            x_at, y_at, index_at, place_at = row.carried
            at = x_at, x_row, taps, masks, columns, step, inner
            best, place, unusual = _quick(words, *at, height)
            if indices:
                lowest = builder.fcmp_ordered("==", best, words.constant(LOWEST))
                unusual = builder.or_(unusual, lowest)
            if is_edge:
                unusual = builder.and_(unusual, stored)
            usual = builder.block
            with builder.if_then(words.any(unusual), likely=False):
                careful = _search(words, *at)
                end = builder.block
            merged = []
            for quick, found in zip((best, place), careful, strict=True):
                merged.append(builder.phi(quick.type))
                merged[-1].add_incoming(quick, usual)
                merged[-1].add_incoming(found, end)
            best, place = merged
            results = [(best, y_at)]
            if indices:
                first = words.broadcast(place_at)
                steps = ir.Constant(first.type, [lane * step for lane in range(lanes)])
                results.append((builder.add(builder.sext(place, first.type), builder.add(first, steps)), index_at))
            for vector, address in results:
                if is_edge:
                    words.store_where(stored, vector, address)
                else:
                    words.store(vector, address)
            row.carry(
                words.at(x_at, x_step), words.at(y_at, words.times(count, 4)),
                words.at(index_at, words.times(count, 8)), builder.add(place_at, builder.sdiv(x_step, words.number(4))),
            )  # fmt: skip

    with words.loop(whole, start) as loop:
        block(loop.carried[0], is_edge=False)
        loop.carry(words.at(loop.carried[0], lanes))
    with words.loop(edges, edge) as loop:
        block(loop.carried[0], is_edge=True)
        loop.carry(builder.add(loop.carried[0], edge_step))


def _quick(
    words: Words,
    x: Any,
    x_row: Any,
    taps: Any,
    masks: Any,
    columns: int,
    step: int,
    inner: int,
    height: int,
) -> tuple[Any, Any, Any]:
    """As `_search` with one comparison a tap; and where a tap is NaN, so that it has to be asked.

    It has also where all are -infinity, if the place matters.
    """
    builder = words.builder
    integers = ir.VectorType(INT32, words.lanes)

    def searched(row: Any, offset: Any, best: Any, place: Any, unusual: Any) -> tuple[Any, Any, Any]:
        values = [value for value, _ in _taps(words, row, masks, columns, step, inner)]
        for s, value in enumerate(values):
            wins = builder.fcmp_ordered(">", value, best)
            best = builder.select(wins, value, best)
            here = words.broadcast(builder.trunc(words.at(offset, s), INT32))
            place = builder.select(wins, here, place)
        for pair in zip(values[::2], [*values[1::2], values[-1]], strict=False):
            unusual = builder.or_(unusual, builder.fcmp_unordered("uno", *pair))
        return best, place, unusual

    found = words.constant(LOWEST), ir.Constant(integers, [0] * words.lanes), words.first(words.number(0))
    in_row = builder.sdiv(x_row, words.number(4))
    if height:
        for r in range(height):
            found = searched(words.at(x, words.times(x_row, r)), words.times(in_row, r), *found)
        return found
    with words.loop(taps, x, words.number(0), *found) as loop:
        row, offset, *found = loop.carried
        loop.carry(words.at(row, x_row), builder.add(offset, in_row), *searched(row, offset, *found))
    best, place, unusual = loop.results[2:]
    return best, place, unusual


def _search(
    words: Words, x: Any, x_row: Any, taps: Any, masks: Any, columns: int, step: int, inner: int
) -> tuple[Any, Any]:
    """The greatest in each lane's window, and its place counted from the first tap; where masks say no, none counts.

    The first tap that counts wins in any case, even if it is -infinity.
    """
    builder = words.builder
    integers = ir.VectorType(INT32, words.lanes)
    nothing = words.constant(LOWEST), ir.Constant(integers, [0 if masks is None else -1] * words.lanes)
    with words.loop(taps, x, words.number(0), *nothing) as loop:
        row, offset, best, place = loop.carried
        for s, (value, counts) in enumerate(_taps(words, row, masks, columns, step, inner)):
            wins = builder.and_(builder.fcmp_unordered(">", value, best), builder.fcmp_ordered("ord", best, best))
            if counts is not None:
                is_first = builder.icmp_signed("<", place, ir.Constant(integers, [0] * words.lanes))
                wins = builder.and_(builder.or_(wins, is_first), counts)
            best = builder.select(wins, value, best)
            here = words.broadcast(builder.trunc(words.at(offset, s), INT32))
            place = builder.select(wins, here, place)
        in_row = builder.sdiv(x_row, words.number(4))
        loop.carry(words.at(row, x_row), builder.add(offset, in_row), best, place)
    return loop.results[2], loop.results[3]


def _masks(words: Words, column: Any, width: Any, columns: int, step: int) -> list[Any]:
    """Which floats of each vector that `_taps` loads stand inside `width`, if the first tap stands at `column`."""
    if step == 2:
        return [
            words.inside(words.at(column, s + half * words.lanes), width)
            for s in range(0, columns, 2)
            for half in (0, 1)
        ]
    return [words.inside(words.at(column, s), width) for s in range(columns)]


def _taps(words: Words, row: Any, masks: Any, columns: int, step: int, inner: int) -> Iterator[tuple[Any, Any]]:
    """For each tap of a row its values, and in which lanes it counts: in all, unasked, if there are no masks.

    The others hold -infinity.
    """

    def load(address: Any, mask: Any) -> Any:
        if mask is None:
            return words.load(address)
        if not inner:
            return words.load_where(mask, address, LOWEST)
        return words.builder.select(mask, words.load(address), words.constant(LOWEST))

    for s in range(0, columns, 2 if step == 2 else 1):
        address = words.at(row, 4 * s)
        if step == 2:
            masks_of_pair = (None, None) if masks is None else masks[s : s + 2]
            inside = (None, None) if masks is None else split(words, *masks_of_pair)
            both = [load(words.at(address, half * words.size), mask) for half, mask in enumerate(masks_of_pair)]
            yield from list(zip(split(words, *both), inside, strict=True))[: columns - s]
            continue
        mask = None if masks is None else masks[s]
        yield load(address, mask), mask


def pairs(words: Words, address: Any, masks: Any) -> tuple[Any, Any]:
    """The even and the odd floats of two vectors, of those that the two masks name if there are masks."""
    addresses = address, words.at(address, words.size)
    return split(words, *(map(words.load, addresses) if masks is None else map(words.load_where, masks, addresses)))


def split(words: Words, a: Any, b: Any) -> tuple[Any, Any]:
    """The even and the odd lanes of two vectors."""
    return tuple(words.shuffle(a, b, range(parity, 2 * words.lanes, 2)) for parity in (0, 1))


@micro_kernel
def unpool_rows(words: Words, x: Any, x_row: Any, count: Any, dy: Any, dx: Any, rows: Any, *, inner: int) -> None:
    """`dx[2*p + r, 2*q + s] = dy[p,q]` where that won its 2x2 window of x, else 0, for `rows` rows of `count` windows.

    dx and x have rows of `x_row` bytes. With `inner`, whole vectors may be read beyond them.
    """
    builder, lanes = words.builder, words.lanes
    whole = builder.sdiv(count, words.number(lanes))
    left = builder.sub(count, words.times(whole, lanes))
    floats = words.times(left, 2)
    rest = words.first(floats), words.first(words.at(floats, -lanes))

    def block(source: Any, gradient: Any, target: Any, masks: Any) -> None:
        read = None if inner else masks
        taps = [*pairs(words, source, read), *pairs(words, words.at(source, x_row), read)]
        dy = words.load(gradient) if read is None else words.load_where(words.first(left), gradient)
        shares = _shares(words, taps, dy)
        for r, address in enumerate((target, words.at(target, x_row))):
            for half in (0, 1):
                order = [half * lanes // 2 + lane // 2 + lanes * (lane % 2) for lane in range(lanes)]
                vector, place = words.shuffle(*shares[2 * r : 2 * r + 2], order), words.at(address, half * words.size)
                if masks is None:
                    words.store(vector, place)
                else:
                    words.store_where(masks[half], vector, place)

    with words.loop(rows, x, dy, dx) as row:
        with words.loop(whole, *row.carried) as loop:
            source, gradient, target = loop.carried
            block(source, gradient, target, None)
            loop.carry(
                words.at(source, 2 * words.size), words.at(gradient, words.size), words.at(target, 2 * words.size)
            )
        with builder.if_then(builder.icmp_signed(">", left, words.number(0))):
            block(*loop.results, rest)
        source, gradient, target = row.carried
        two = words.times(x_row, 2)
        row.carry(words.at(source, two), words.at(gradient, words.times(count, 4)), words.at(target, two))


def _shares(words: Words, taps: list[Any], dy: Any) -> list[Any]:
    """For each tap of a window dy if it is the first maximum or the first NaN, else zero."""
    builder, zero = words.builder, words.constant(0)
    best, won = taps[0], []
    for value in taps[1:]:
        wins = builder.and_(builder.fcmp_unordered(">", value, best), builder.fcmp_ordered("ord", best, best))
        best = builder.select(wins, value, best)
        won.append(wins)
    # Zero is added, as in every sum: -0 becomes 0.
    rest, shares = builder.fadd(dy, zero), []
    for wins in reversed(won):
        shares.append(builder.select(wins, rest, zero))
        rest = builder.select(wins, zero, rest)
    return [rest, *reversed(shares)]
