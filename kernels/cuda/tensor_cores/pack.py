"""What stands before a fast convolution: weights split and laid out for the copy engine, each image's greatest value.

The packed weights are, for each block of filters and stage: `[tap][part][unit of 16 bytes][filter]`, or, where two
parts are stacked to the 64 rows of a product, `[tap][unit of 16 bytes][part][filter]`, with an even number of parts.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from .. import ptx
from .arithmetic import (
    CHANNELS,
    LOWEST_WEIGHT,
    Arithmetic,
    gather,
    gather_whole,
    greatest_of_sixteen,
    power_of_two,
    scale,
    scale_exponent,
    splitter,
)
from .slots import FILTERS as LINES
from .slots import SHARES, Block, quotient_and_rest

THREADS = 256
WARPS = THREADS // 32


def together_of(arithmetic: Arithmetic) -> int:
    """Filters of a block of threads. Of several, what is written lies side by side; but the greatest magnitude of a
    scaled one is soonest found by a whole block."""
    return 1 if arithmetic.scaled else 4


def threads_of(arithmetic: Arithmetic) -> int:
    """Of a block that packs."""
    return THREADS if arithmetic.scaled else 2 * THREADS


class Filters(NamedTuple):
    """The weights as the convolution reads them, all int32; strides in elements, negative where it turns the filter."""

    channels: int
    groups: int
    filters: int
    filter_blocks: int
    w_group: int
    w_filter: int
    w_channel: int
    w_r: int
    w_s: int
    row: int  # taps in a row of the whole filter
    chunks: int
    phase_rows: int
    phase_columns: int
    images: int
    flags: int  # of tiles of pixels, which stand before those of filters


FILTERS = types.NamedUniTuple(types.int32, len(Filters._fields), Filters)
ARGUMENTS = types.void(*[types.int64] * 7, FILTERS)
"""weight, packed weights, scales or 0, flags, x, elements from one image to the next, elements of an image, filters."""
GREATEST = types.void(types.int64, types.int64, types.int64, types.int64)
"""x, its greatest magnitudes, elements from one image to the next, elements of an image."""


@cuda.jit(device=True)
def greatest_of_share(x, size, first, apart):
    """The greatest finite magnitude of every `apart`-th of `size` elements, as a word, told to the whole warp.

    A maximum of integers, so the order does not matter.
    """
    word = types.int32(0)
    for i in range(first, size, CHANNELS * apart):
        if i + (CHANNELS - 1) * apart < size:
            word = greatest_of_sixteen(word, gather_whole(x + types.int64(i) * 4, apart * 4))
        else:
            count = types.int32((size - i + apart - 1) // apart)
            word = greatest_of_sixteen(word, gather(x + types.int64(i) * 4, apart * 4, count))
    for offset in (16, 8, 4, 2, 1):
        word = max(word, cuda.shfl_xor_sync(0xFFFFFFFF, word, offset))
    return types.int32(word)


@cuda.jit(device=True)
def greatest_of_block(word, shared):
    """The greatest of all warps' words, told to all threads; `shared` has an entry for each warp."""
    if cuda.threadIdx.x & 31 == 0:
        shared[cuda.threadIdx.x >> 5] = word
    cuda.syncthreads()
    for i in range(WARPS):
        word = max(word, shared[i])
    return types.int32(word)


@functools.cache
def kernel_of(precision: str, rows: int, row: int, channels: int, filters: int) -> Any:
    """The packing for all blocks of this shape: one block of threads for some filters, which its threads take in turn;
    they also clear the flags of pixels.

    Where operands are scaled, the filter's greatest magnitude goes to `scales`, behind the images'. Theirs are found
    here too, by SHARES blocks for each image, if x's size is given; else they are what x is, or cleared if that is 0.
    """
    is_stacked = filters == LINES // 2
    block = Block(precision, rows, row, channels, columns=64, side_by_side=filters <= LINES, stacked=is_stacked)
    arithmetic, taps, units, unit_bytes = block.arithmetic, rows * row, block.groups, block.unit_rows * 16
    part_bytes, tap_bytes = filters * 16 if is_stacked else units * unit_bytes, block.tap_rows * 16
    lowest = LOWEST_WEIGHT if arithmetic.lowest else 0.0
    split = splitter(arithmetic, lowest, ptx.GLOBAL)
    parts, is_scaled, halves = arithmetic.parts, arithmetic.scaled, channels // CHANNELS
    subunits, together, threads = units // halves, together_of(arithmetic), threads_of(arithmetic)

    @cuda.jit(device=True)
    def greatest_of(weight, count, shared, g):
        """The greatest finite magnitude of `count` channels of a filter, as a word, told to all threads."""
        taps_of_all = g.phase_rows * rows * g.row
        greatest = types.int32(0)
        for i in range(cuda.threadIdx.x, count * taps_of_all, THREADS):
            c, tap = quotient_and_rest(i, taps_of_all)
            r, s = quotient_and_rest(tap, g.row)
            at = types.int64(c) * g.w_channel + types.int64(r) * g.w_r + types.int64(s) * g.w_s
            magnitude = ptx.load_global_word(weight + at * 4) & 0x7FFFFFFF
            if magnitude < 0x7F800000:
                greatest = max(greatest, types.int32(magnitude))
        for offset in (16, 8, 4, 2, 1):
            greatest = max(greatest, cuda.shfl_xor_sync(0xFFFFFFFF, greatest, offset))
        return greatest_of_block(greatest, shared)

    def kernel(weight, packed, scales, flags, x, image_step, size, g):
        thread, line = types.int32(cuda.threadIdx.x), types.int32(cuda.blockIdx.x)
        shared, are_strange = cuda.shared.array(WARPS, types.int32), cuda.shared.array(together, types.int32)
        apart = types.int32(cuda.gridDim.x * threads)
        if is_scaled and size > 0:
            if line < g.images * SHARES:
                image, share = types.int32(line // SHARES), types.int32(line % SHARES)
                x += types.int64(image) * image_step * 4
                word = greatest_of_share(x, types.int32(size), share * THREADS + thread, types.int32(SHARES * THREADS))
                word = greatest_of_block(word, shared)
                if thread == 0:
                    ptx.store_global_word(scales + types.int64(line) * 4, word)
                return
            line -= types.int32(g.images * SHARES)
            apart -= types.int32(g.images * SHARES * THREADS)
        # The flags of pixels, and before them a zero that loaders.py reads where x has nothing.
        for i in range(line * threads + thread, g.flags + 1, apart):
            ptx.store_global_word(flags + types.int64(i - 1) * 4, 0)
        if is_scaled and size == 0:
            for i in range(line * threads + thread, g.images * SHARES, apart):
                word = types.int32(0)
                if x != 0:
                    word = ptx.load_global_word(x + types.int64(i) * 4)
                ptx.store_global_word(scales + types.int64(i) * 4, word)
        if thread < together:
            are_strange[thread] = 0
        line = types.int32(line * together + thread % together)
        block, m = divmod(line, filters)
        group, filter_block = divmod(block, g.filter_blocks)
        filter_ = filter_block * filters + m
        weight += (types.int64(group) * g.w_group + types.int64(filter_) * g.w_filter) * 4
        count = types.int32(g.channels if filter_ < g.filters else 0)
        factor = types.float32(1)
        if is_scaled:
            greatest = greatest_of(weight, count, shared, g)
            factor = power_of_two(scale_exponent(greatest))
            if thread < together:
                ptx.store_global_word(scales + types.int64(g.images * SHARES + line) * 4, greatest)
        steps = g.chunks * g.phase_rows * g.phase_columns
        packed += types.int64(block) * steps * taps * tap_bytes + types.int64(m) * 16
        flag = types.int32(0)
        for i in range(thread // together, steps * taps * halves, threads // together):
            rest, half = quotient_and_rest(i, halves)
            step, tap = quotient_and_rest(rest, taps)
            rest, b = quotient_and_rest(step, g.phase_columns)
            chunk, a = quotient_and_rest(rest, g.phase_rows)
            r, s = a + tap // row, b + tap % row * g.phase_columns
            channel = chunk * channels + half * CHANNELS
            at = types.int64(channel) * g.w_channel + types.int64(r) * g.w_r + types.int64(s) * g.w_s
            values = gather(weight + at * 4, g.w_channel * 4, count - channel if s < g.row else 0)
            if is_scaled:
                values = scale(values, factor)
            at = packed + types.int64(step * taps + tap) * tap_bytes + half * subunits * unit_bytes
            flag |= split(values, at, part_bytes, unit_bytes)
            if is_stacked and parts % 2 == 1:  # Beside the last part there is nothing.
                for unit in range(subunits):
                    for word in range(4):
                        zero_at = at + parts * part_bytes + unit * unit_bytes + word * 4
                        ptx.store_global_word(zero_at, types.int32(0))
        cuda.syncthreads()
        if flag != 0:
            are_strange[thread % together] = 1
        cuda.syncthreads()
        if thread < together:
            ptx.store_global_word(flags + types.int64(g.flags + line) * 4, are_strange[thread])

    return kernel


def greatest_of_images(x, greatest, image_step, size):
    """Each image's greatest finite magnitude, by many blocks an image: where images are too few for SHARES of each."""
    n = cuda.blockIdx.y
    x += types.int64(n) * image_step * 4
    word = greatest_of_share(
        x, types.int32(size), types.int32(cuda.grid(1)), types.int32(cuda.gridDim.x * THREADS)
    )  # fmt: skip
    if cuda.threadIdx.x & 31 == 0:
        ptx.maximum_global(greatest + types.int64(n) * (SHARES * 4), word)
