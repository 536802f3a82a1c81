"""Max pooling's gradient on vectors: positions that ask the windows they are in, and the special case of halves."""

from typing import Any, NamedTuple

import numpy as np

from kernelproof.spec import Window

from .pool_vectors import Taps, in_taps
from .row_vectors import ask, bits, cut, edge, over_rows, store
from .vectors import INT32, LANES, Words, micro_kernel


class Spread(NamedTuple):
    """What `spread_rows` needs of all planes of a size.

    `windows[h]`: for each row of windows that reads row h of x the first window's number, and the tap of that window
    which stands in row h and in its first column; `readers` pairs in any row, the last of which may have no tap.
    `blocks` cuts a row of dx; see `_offset` for `left` and `phase`.
    """

    windows: np.ndarray
    blocks: np.ndarray
    left: int
    phase: int
    readers: int

    @staticmethod
    def of(window: Window, x_shape: tuple[int, ...], rows: np.ndarray) -> "Spread":
        """For planes of that shape; `rows[p]` are the first and the last row of x that windows p read."""
        height, width = x_shape[-2:]
        columns, count = window.kernel[1], window.q(x_shape)
        pairs: list[list[int]] = [[] for _ in range(height)]
        for p, (first, last) in enumerate(rows):
            for r, h in enumerate(range(first, last + 1, window.dilation[0])):
                pairs[h] += p * count, r * columns
        most = max(map(len, pairs))
        windows = [[*each, *[0, -columns] * ((most - len(each)) // 2)] for each in pairs]
        left, phase = divmod(window.padding[1][0], window.stride[1])
        blocks = _columns_of(width, left, phase, count, columns, window.stride[1])
        return Spread(np.array(windows, np.int64), blocks, left, phase, most // 2)


def _columns_of(width: int, left: int, phase: int, count: int, columns: int, step: int) -> np.ndarray:
    """How a row of dx is cut into steps of `step` positions; an edge's masks: what is stored, then what is read."""
    offsets = [left + each for each in _offsets(columns, step, phase)]

    def is_whole(i: int) -> bool:
        return step * (i + LANES) <= width and all(0 <= i + offset <= count - LANES for offset in offsets)

    starts = range(0, -(-width // step), LANES)
    whole = [i for i in starts if is_whole(i)]
    return cut(whole[0] if whole else 0, len(whole), step + len(offsets), [
        [
            i,
            *(bits(step * i + half * LANES, width) for half in range(step)),
            *(bits(i + offset, count) for offset in offsets),
        ]
        for i in (edge(each, -(-width // step)) for each in starts if each not in whole)
    ])  # fmt: skip


def _offset(each: int, s: int, step: int, phase: int) -> int | None:
    """How far from window `i + left` the one stands whose tap s is position `step*i + each`; None if there is none.

    The padding at the left is `step*left + phase`.
    """
    offset, rest = divmod(each + phase - s, step)
    return None if rest else offset


def _offsets(columns: int, step: int, phase: int) -> list[int]:
    """The offsets that there are."""
    every = {_offset(each, s, step, phase) for each in range(step) for s in range(columns)}
    return sorted(offset for offset in every if offset is not None)


@micro_kernel
def spread_rows(
    words: Words, dy: Any, taps: Any, windows: Any, blocks: Any, dx: Any, dx_row: Any, rows: Any, *,
    columns: int, step: int, phase: int, readers: int, far: int, past: int = 0,
) -> None:  # fmt: skip
    """`dx[h,w] = sum_pq dy[p,q]` over the windows whose tap `taps[p,q]` stands at (h, w), for `rows` rows of dx.

    The sum goes over p, then q, from zero: `step` vectors of sums, for neighbouring positions, are in registers. dy and
    taps are the addresses of window `left`. `far` is what the caches do not hold. With `past` dx is stored past them:
    its rows begin at whole vectors.
    """
    builder = words.builder
    offsets = _offsets(columns, step, phase)
    integers = words.integers(0).type

    def block(i: Any, masks: Any, windows: Any, dx: Any) -> None:
        masks = [None] * (step + len(offsets)) if masks is None else masks

        def loaded(address: Any) -> dict[int, Any]:
            places = [words.at(address, 4 * offset) for offset in offsets]
            return {
                offset: words.load(place) if mask is None else words.load_where(mask, place)
                for offset, place, mask in zip(offsets, places, masks[step:], strict=True)
            }

        with words.loop(words.number(readers), windows, *[words.constant(0)] * step) as reader:
            pair, *sums = reader.carried
            here = words.times(builder.add(i, words.load_integer(pair)), 4)
            first = words.broadcast(builder.trunc(words.load_integer(words.at(pair, 8)), INT32))
            gradients = loaded(words.at(dy, here))
            won = {offset: builder.bitcast(each, integers) for offset, each in loaded(words.at(taps, here)).items()}
            # From the last tap to the first: that is from the first window to the last.
            for s in reversed(range(columns)):
                tap = builder.add(first, words.integers(s))
                for each in range(step):
                    offset = _offset(each, s, step, phase)
                    if offset is not None:
                        wins = builder.icmp_signed("==", won[offset], tap)
                        added = builder.fadd(sums[each], gradients[offset])
                        sums[each] = builder.select(wins, added, sums[each])
            reader.carry(words.at(pair, 16), *sums)
        _, *sums = reader.results
        _store_in_turn(words, sums, masks[:step], words.at(dx, words.times(i, 4 * step)), bool(past))

    def following(windows: Any, dx: Any) -> tuple[Any, ...]:
        if far and not past:
            ask(words, dx, dx_row, to_write=True)
        return words.at(windows, 16 * readers), words.at(dx, dx_row)

    over_rows(words, blocks, step + len(offsets), rows, (windows, dx), block, following)


@micro_kernel
def unpool_halves(
    words: Words, blocks: Any, x: Any, x_row: Any, dy: Any, count: Any, dx: Any, rows: Any, *, inner: int, far: int,
    past: int = 0,
) -> None:  # fmt: skip
    """`dx[2*p + r, 2*q + s] = dy[p,q]` where that won its 2x2 window of x, else 0, for `rows` rows of `count` windows.

    Nothing between x and dx: windows side by side need not be asked. dx and x have rows of `x_row` bytes.
    """
    both = words.times(x_row, 2)

    def block(q: Any, masks: Any, x: Any, dy: Any, dx: Any) -> None:
        valid, *stored = masks or [None] * 3
        here = Taps(words.at(x, words.times(q, 8)), x_row, None, None, None if inner else masks and stored, 2, 2, inner)
        taps = [value for row in (here.first, words.at(here.first, x_row)) for value, _ in in_taps(words, here, row)]
        place = words.at(dy, words.times(q, 4))
        shares = _of_taps(words, taps, words.load(place) if valid is None else words.load_where(valid, place))
        target = words.at(dx, words.times(q, 8))
        _store_in_turn(words, shares[:2], stored, target, bool(past))
        _store_in_turn(words, shares[2:], stored, words.at(target, x_row), bool(past))

    def following(x: Any, dy: Any, dx: Any) -> tuple[Any, ...]:
        if far:
            ask(words, x, both)
            if not past:
                ask(words, dx, both, to_write=True)
        return words.at(x, both), words.at(dy, words.times(count, 4)), words.at(dx, both)

    over_rows(words, blocks, 3, rows, (x, dy, dx), block, following)


def _store_in_turn(words: Words, vectors: list[Any], masks: list[Any], address: Any, past: bool) -> None:
    """The first lanes of all vectors, then the second ones, and so on; a mask for each vector that this makes."""
    for half, mask in enumerate(masks):
        lanes = range(half * words.lanes, (half + 1) * words.lanes)
        order = [lane // len(vectors) + lane % len(vectors) * words.lanes for lane in lanes]
        store(words, mask, words.shuffle(vectors[0], vectors[-1], order), words.at(address, half * words.size), past)


def _of_taps(words: Words, taps: list[Any], dy: Any) -> list[Any]:
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
