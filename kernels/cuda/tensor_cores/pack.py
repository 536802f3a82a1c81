"""What stands before a fast convolution: weights split and laid out for the copy engine, each image's greatest value.

The packed weights are, for each block of filters and stage: `[tap][part][unit of 16 bytes][filter]`.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from .. import ptx
from .arithmetic import (
    CHANNELS,
    LOWEST_WEIGHT,
    gather,
    greatest_of_sixteen,
    power_of_two,
    scale,
    scale_exponent,
    splitter,
)
from .slots import Block, quotient_and_rest

THREADS = 128


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
ARGUMENTS = types.void(types.int64, types.int64, types.int64, types.int64, FILTERS)
"""weight, packed weights, scales or 0, flags, filters."""
GREATEST = types.void(types.int64, types.int64, types.int64, types.int64)
"""x, its greatest magnitudes, elements from one image to the next, elements of an image."""


@functools.cache
def kernel_of(precision: str, rows: int, row: int, channels: int, filters: int) -> Any:
    """The packing for all blocks of this shape: one block of threads a filter, which also clears the flags of pixels.

    Where operands are scaled, the filter's greatest magnitude goes to `scales`, behind the images'.
    """
    block = Block(precision, rows, row, channels, columns=64, side_by_side=filters == 64)
    arithmetic, taps, units, unit_bytes = block.arithmetic, rows * row, block.groups, filters * 16
    lowest = LOWEST_WEIGHT if arithmetic.lowest else 0.0
    split = splitter(arithmetic, lowest, ptx.GLOBAL)
    parts, is_scaled, halves = arithmetic.parts, arithmetic.scaled, channels // CHANNELS
    subunits = units // halves

    @cuda.jit(device=True)
    def greatest_of(weight, count, g):
        """The greatest finite magnitude of `count` channels of a filter, as a word, told to all threads."""
        shared = cuda.shared.array(THREADS, types.int32)
        thread, taps_of_all = cuda.threadIdx.x, g.phase_rows * rows * g.row
        greatest = types.int32(0)
        for i in range(thread, count * taps_of_all, THREADS):
            c, tap = quotient_and_rest(i, taps_of_all)
            r, s = quotient_and_rest(tap, g.row)
            at = types.int64(c) * g.w_channel + types.int64(r) * g.w_r + types.int64(s) * g.w_s
            magnitude = ptx.load_global_word(weight + at * 4) & 0x7FFFFFFF
            if magnitude < 0x7F800000:
                greatest = max(greatest, types.int32(magnitude))
        shared[thread] = greatest
        cuda.syncthreads()
        for i in range(THREADS):
            greatest = max(greatest, shared[i])
        return greatest

    def kernel(weight, packed, scales, flags, g):
        thread, line = cuda.threadIdx.x, cuda.blockIdx.x
        for i in range(line * THREADS + thread, g.flags, cuda.gridDim.x * THREADS):
            ptx.store_global_word(flags + types.int64(i) * 4, 0)
        block, m = divmod(line, filters)
        group, filter_block = divmod(block, g.filter_blocks)
        filter_ = filter_block * filters + m
        weight += (types.int64(group) * g.w_group + types.int64(filter_) * g.w_filter) * 4
        count = types.int32(g.channels if filter_ < g.filters else 0)
        factor = types.float32(1)
        if is_scaled:
            for i in range(line * THREADS + thread, g.images, cuda.gridDim.x * THREADS):
                ptx.store_global_word(scales + types.int64(i) * 4, 0)
            greatest = greatest_of(weight, count, g)
            factor = power_of_two(scale_exponent(greatest))
            if thread == 0:
                ptx.store_global_word(scales + types.int64(g.images + line) * 4, greatest)
        steps = g.chunks * g.phase_rows * g.phase_columns
        packed += types.int64(block) * steps * taps * parts * units * unit_bytes + types.int64(m) * 16
        flag = types.int32(0)
        for i in range(thread, steps * taps * halves, THREADS):
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
            at = types.int64(step * taps + tap) * parts * units + half * subunits
            flag |= split(values, packed + at * unit_bytes, units * unit_bytes, unit_bytes)
        any_flag = cuda.syncthreads_or(flag)
        if thread == 0:
            ptx.store_global_word(flags + types.int64(g.flags + line) * 4, 1 if any_flag != 0 else 0)

    return kernel


def greatest_of_images(x, greatest, image_step, size):
    """The greatest finite magnitude of each image, as a word: a maximum of integers, so the order does not matter."""
    n, apart = cuda.blockIdx.y, cuda.gridDim.x * THREADS
    x += types.int64(n) * image_step * 4
    word = types.int32(0)
    for i in range(cuda.blockIdx.x * THREADS + cuda.threadIdx.x, size, CHANNELS * apart):
        count = types.int32(min(CHANNELS, (size - i + apart - 1) // apart))
        word = greatest_of_sixteen(word, gather(x + types.int64(i) * 4, apart * 4, count))
    for offset in (16, 8, 4, 2, 1):
        word = max(word, cuda.shfl_xor_sync(0xFFFFFFFF, word, offset))
    if cuda.threadIdx.x & 31 == 0:
        ptx.maximum_global(greatest + types.int64(n) * 4, word)
