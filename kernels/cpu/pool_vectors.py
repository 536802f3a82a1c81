"""Max pooling's micro-kernel: a vector of neighbouring windows at once, each lane with its winner so far."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir

from .row_vectors import ask, bits, cut, edge, over_rows, store
from .vectors import INT32, LANES, Words, micro_kernel

LOWEST = float("-inf")
MAXIMA, INDICES, TAPS = 1, 2, 4
"""What is stored of each window, added up: the maximum, where it stands in the image, which of the taps it is."""


def columns_of(width: int, left: int, count: int, begin: int, end: int, columns: int, step: int) -> np.ndarray:
    """How a row of `count` windows is cut; those of `begin .. end - 1` read no padding.

    An edge's masks: the lanes that are windows, then of each vector of a row of taps what is inside the image.
    """
    start = 0 if begin == 0 else LANES
    # One window less, so that no pair of vectors that is split reaches beyond the last one.
    whole = max(0, (end - 1 - start) // LANES) if start >= begin else 0
    taps = [s + half * LANES for s in range(0, columns, step) for half in range(step)]
    at_edges = [edge(q, count) for q in range(0, count, LANES) if not start <= q < start + whole * LANES]
    return cut(start, whole, 1 + len(taps), [
        [q, bits(q, count), *(bits(q * step - left + s, width) for s in taps)] for q in at_edges
    ])  # fmt: skip


class Taps(NamedTuple):
    """A vector of windows: the `first` tap of the first one, bytes of a `row` of x, and how many `rows` a window has.

    A winner's place is `places` further in the next row. `masks` are those of an edge's vectors; None where all that is
    read counts. With `inner`, whole vectors may be read beyond rows: loads with a mask that miss the cache are slow.
    """

    first: Any
    row: Any
    rows: Any
    places: Any
    masks: Any
    columns: int
    step: int
    inner: int


@micro_kernel
def pool_rows(
    words: Words, plan: Any, x: Any, x_row: Any, taps: Any, x_step: Any, base: Any, y: Any, place: Any, count: Any,
    rows: Any, *, height: int, columns: int, step: int, stored: int, inner: int, padded: int, far: int,
) -> None:  # fmt: skip
    """`y[p,q] = max_rs x[p*x_step + r*x_row + q*step + s]` for `rows` rows of `count` windows; x[0] may be padding.

    Windows have `height` rows, or `taps` if that is 0. Row-major, the first maximum wins, or the first NaN. `stored` is
    a sum of MAXIMA (y), INDICES (place, 64 bits, `base` that of x[0]) or TAPS (place, 32 bits, r*columns + s). Best and
    place of `LANES` windows are in registers. With `inner`, whole vectors may be read beyond rows; unless `padded`, no
    window reaches beyond one; `far` is what the caches do not hold.
    """
    builder, lanes = words.builder, words.lanes
    in_row = words.number(columns) if stored & TAPS else builder.sdiv(x_row, words.number(4))

    def block(q: Any, masks: Any, x: Any, base: Any, y: Any, place: Any) -> None:
        column = words.times(q, step)
        valid, masks = (None, None) if masks is None else (masks[0], masks[1:])
        masks = None if inner and not padded else masks
        here = Taps(words.at(x, words.times(column, 4)), x_row, taps, in_row, masks, columns, step, inner)
        best, won = _winners(words, here, height, valid, bool(stored & (INDICES | TAPS)))

        if stored & MAXIMA:
            store(words, valid, best, words.at(y, words.times(q, 4)))
        if stored & TAPS:
            store(words, valid, builder.bitcast(won, words.vector), words.at(place, words.times(q, 4)))
        if stored & INDICES:
            first = words.broadcast(builder.add(base, column))
            steps = ir.Constant(first.type, [lane * step for lane in range(lanes)])
            index = builder.add(builder.sext(won, first.type), builder.add(first, steps))
            store(words, valid, index, words.at(place, words.times(q, 8)))

    def following(x: Any, base: Any, y: Any, place: Any) -> tuple[Any, ...]:
        if far:
            ask(words, x, x_step)
        return (
            words.at(x, x_step), words.at(base, builder.sdiv(x_step, words.number(4))),
            words.at(y, words.times(count, 4)), words.at(place, words.times(count, 4 if stored & TAPS else 8)),
        )  # fmt: skip

    masks = 1 + len(range(0, columns, step)) * step
    over_rows(words, plan, masks, rows, (x, base, y, place), block, following)


def _winners(words: Words, taps: Taps, height: int, valid: Any, is_place_kept: bool) -> tuple[Any, Any]:
    """The greatest in each lane's window and its place: quickly, and again with care if a valid lane is unusual."""
    builder = words.builder
    best, place, unusual = _quick(words, taps, height)
    if is_place_kept and taps.masks is not None:
        unusual = builder.or_(unusual, builder.fcmp_ordered("==", best, words.constant(LOWEST)))
    if valid is not None:
        unusual = builder.and_(unusual, valid)
    usual = builder.block
    with builder.if_then(words.any(unusual), likely=False):
        careful = _search(words, taps)
        end = builder.block
    merged = []
    for quick, found in zip((best, place), careful, strict=True):
        merged.append(builder.phi(quick.type))
        merged[-1].add_incoming(quick, usual)
        merged[-1].add_incoming(found, end)
    return merged[0], merged[1]


def _quick(words: Words, taps: Taps, height: int) -> tuple[Any, Any, Any]:
    """As `_search` with one comparison a tap; and where a tap is NaN, so that it has to be asked.

    It has also where all are -infinity, if the place matters.
    """
    builder = words.builder

    def searched(row: Any, offset: Any, best: Any, place: Any, unusual: Any) -> tuple[Any, Any, Any]:
        values = [value for value, _ in in_taps(words, taps, row)]
        for s, value in enumerate(values):
            if best is None:
                best = value
                continue
            wins = builder.fcmp_ordered(">", value, best)
            best = builder.select(wins, value, best)
            here = words.broadcast(builder.trunc(words.at(offset, s), INT32))
            place = builder.select(wins, here, place)
        for pair in zip(values[::2], [*values[1::2], values[-1]], strict=False):
            unusual = builder.or_(unusual, builder.fcmp_unordered("uno", *pair))
        return best, place, unusual

    found = None, words.integers(0), words.first(words.number(0))
    if height:
        for r in range(height):
            found = searched(words.at(taps.first, words.times(taps.row, r)), words.times(taps.places, r), *found)
        return found
    with words.loop(taps.rows, taps.first, words.number(0), words.constant(LOWEST), *found[1:]) as loop:
        row, offset, *found = loop.carried
        after = words.at(row, taps.row), builder.add(offset, taps.places)
        loop.carry(*after, *searched(row, offset, *found))
    best, place, unusual = loop.results[2:]
    return best, place, unusual


def _search(words: Words, taps: Taps) -> tuple[Any, Any]:
    """The greatest in each lane's window, and its place counted from the first tap; where masks say no, none counts.

    The first tap that counts wins in any case, even if it is -infinity.
    """
    builder = words.builder
    nothing = words.constant(LOWEST), words.integers(0 if taps.masks is None else -1)
    with words.loop(taps.rows, taps.first, words.number(0), *nothing) as loop:
        row, offset, best, place = loop.carried
        for s, (value, counts) in enumerate(in_taps(words, taps, row)):
            wins = builder.and_(builder.fcmp_unordered(">", value, best), builder.fcmp_ordered("ord", best, best))
            if counts is not None:
                is_first = builder.icmp_signed("<", place, words.integers(0))
                wins = builder.and_(builder.or_(wins, is_first), counts)
            best = builder.select(wins, value, best)
            here = words.broadcast(builder.trunc(words.at(offset, s), INT32))
            place = builder.select(wins, here, place)
        loop.carry(words.at(row, taps.row), builder.add(offset, taps.places), best, place)
    return loop.results[2], loop.results[3]


def in_taps(words: Words, taps: Taps, row: Any) -> Iterator[tuple[Any, Any]]:
    """For each tap of a row its values, and in which lanes it counts: in all, unasked, if there are no masks.

    The others hold -infinity.
    """

    def load(offset: int, mask: Any) -> Any:
        address = words.at(row, offset)
        if mask is None:
            return words.load(address)
        if not taps.inner:
            return words.load_where(mask, address, LOWEST)
        return words.builder.select(mask, words.load(address), words.constant(LOWEST))

    for number, s in enumerate(range(0, taps.columns, taps.step)):
        masks = [None if taps.masks is None else taps.masks[taps.step * number + half] for half in range(taps.step)]
        values = [load(4 * s + half * words.size, mask) for half, mask in enumerate(masks)]
        if taps.step == 1:
            yield values[0], masks[0]
            continue
        inside = masks if taps.masks is None else split(words, *masks)
        yield from list(zip(split(words, *values), inside, strict=True))[: taps.columns - s]


def split(words: Words, a: Any, b: Any) -> tuple[Any, Any]:
    """The even and the odd lanes of two vectors."""
    return tuple(words.shuffle(a, b, range(parity, 2 * words.lanes, 2)) for parity in (0, 1))
