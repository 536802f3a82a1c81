"""A strip of an image, copied so that a filter tap is one constant offset: padded, and column phases apart.

What direct convolution and the pixel vectors begin with. The copy is `[c][column phase][row][pitch]`; of an image that
is swept with a stride of two, even and odd columns are two phases.
"""

from typing import Any

from ..launch import serial
from ..vectors import Words, call, micro_kernel

_AHEAD = 4
"""Channels that are fetched before their turn: rows are short, and each begins far from the last one's end."""


@micro_kernel
def copy_planes(
    words: Words, x: Any, channels: Any, x_channel: Any, rows: Any, x_row: Any, phases: Any, y: Any, y_plane: Any,
    above: Any, below: Any, pitch: Any, *, step: int,
) -> None:  # fmt: skip
    """`y[c][phase][above + i][before + j] = x[c][i][first + j*step]`, zero elsewhere, as `phases` say.

    `phases[(first, before, count)]`; a plane has `above` rows of zeros, `rows` of x, `below` of zeros. Rows are written
    in rising order, and up to a vector beyond each: that belongs to the next.
    """
    builder, lanes = words.builder, words.lanes

    def cleared(address: Any, count: Any) -> Any:
        """The address after `count` zeros; there may be more."""
        with words.loop(builder.sdiv(words.at(count, lanes - 1), words.number(lanes)), address) as loop:
            words.store(words.constant(0), loop.carried[0])
            loop.carry(words.at(loop.carried[0], words.size))
        return words.at(address, words.times(count, 4))

    with words.loop(channels, x, y) as channel:
        plane, target = channel.carried
        for phase in range(step):
            first, before, count = (words.load_integer(words.at(phases, 8 * (3 * phase + each))) for each in range(3))
            after = builder.sub(pitch, words.at(before, count))
            start = cleared(target, words.times(above, pitch))
            with words.loop(rows, words.at(plane, words.times(first, 4)), start) as row:
                source, begin = row.carried
                begin = cleared(begin, before)
                copy_row(words, source, begin, count, words.times(x_channel, _AHEAD), step)
                row.carry(words.at(source, x_row), cleared(words.at(begin, words.times(count, 4)), after))
            cleared(row.results[1], words.times(below, pitch))
            target = words.at(target, y_plane)
        channel.carry(words.at(plane, x_channel), target)


def copy_row(words: Words, x: Any, y: Any, count: Any, ahead: Any, step: int) -> None:
    """`y[i] = x[i*step]` for `count` floats; a row of a vector or more ends with one that overlaps the last."""
    builder, lanes = words.builder, words.lanes
    whole = builder.sdiv(words.at(count, -1), words.number(lanes))
    with words.loop(whole, x, y) as loop:
        source, target = loop.carried
        for vector in range(min(step, 2)):
            words.prefetch(words.at(words.at(source, vector * words.size), ahead))
        words.store(_every(words, source, step), target)
        loop.carry(words.at(source, step * words.size), words.at(target, words.size))
    source, target = loop.results
    words.prefetch(words.at(source, ahead))
    with builder.if_else(builder.icmp_signed(">", whole, words.number(0))) as (is_long, is_short):
        with is_long:
            last = words.at(count, -lanes)
            overlapping = words.at(x, words.times(last, 4 * step))
            words.store(_every_to_the_end(words, overlapping, step), words.at(y, words.times(last, 4)))
        with is_short:
            words.store_where(words.first(count), _few(words, x, count, step), y)


def _every(words: Words, x: Any, step: int) -> Any:
    """`x[lane*step]`, where a float follows the last of them."""
    if step == 1:
        return words.load(x)
    if step == 2:
        return words.shuffle(words.load(x), words.load(words.at(x, words.size)), range(0, 2 * words.lanes, 2))
    return words.gather(words.first(words.number(words.lanes)), x, step)


def _every_to_the_end(words: Words, x: Any, step: int) -> Any:
    """`x[lane*step]`, where nothing need follow the last of them."""
    if step != 2:
        return _every(words, x, step)
    half = words.lanes // 2
    odd_of_last = [words.lanes + 2 * lane + 1 for lane in range(half)]
    return words.shuffle(
        words.load(x), words.load(words.at(x, words.size - 4)), [*range(0, words.lanes, 2), *odd_of_last]
    )


def _few(words: Words, x: Any, count: Any, step: int) -> Any:
    """`x[lane*step]` for the first `count` lanes, whose memory alone is touched."""
    if step == 1:
        return words.load_where(words.first(count), x)
    if step == 2:
        floats = words.at(words.times(count, 2), -1)
        halves = (
            words.load_where(words.first(floats), x),
            words.load_where(words.first(words.at(floats, -words.lanes)), words.at(x, words.size)),
        )
        return words.shuffle(*halves, range(0, 2 * words.lanes, 2))
    return words.gather(words.first(count), x, step)


@serial
def copy_strip(x, copy, first, rows, phases, sweep, routine):
    """An image's strip that rows `first ..` of the sweep read; arrays by their addresses."""
    height = (rows - 1) * sweep.row_stride + sweep.span
    top = first * sweep.row_stride - sweep.top
    above, below = min(height, max(0, -top)), min(height, max(0, top + height - sweep.height))
    call(routine, (
        x + 4 * (top + above) * sweep.width, sweep.channels, 4 * sweep.height * sweep.width, height - above - below,
        4 * sweep.width, phases.ctypes.data, copy, 4 * sweep.height_of_copy * sweep.pitch, above, below, sweep.pitch,
    ))  # fmt: skip
