"""The weight gradient on tensor cores from Ampere on: tiles, shares and their sum are those of weight_gradient.py.

As in warp_gemm.py all warps load, split and multiply, half of them in turn, and x and dy of the stage after the next
are on their way meanwhile. A warp has 16 filters by 32 channels of each tap. Stages are shorter, 32 slots, for they are
there twice, and once more as they came, in less shared memory.
"""

import functools
from typing import Any

from numba import cuda
from numba.cuda import types

from .. import ptx
from .arithmetic import ARITHMETIC, CHANNELS, LOWEST_FACTOR, splitter
from .gradient_slots import FILTERS, MULTIPLIERS, WARPGROUPS, WIDTH, part_of
from .mma_sync import products_of, promoter, shares_of, zeros
from .outer_products import outer_storer
from .raw import ITEM, copy_item, read_item
from .slots import place_of

SLOTS = 32
"""Of a stage."""


def raw_bytes(width: int, slots: int) -> int:
    """Of a stage as it comes: `width` channels of x at its slots, and dy."""
    return ITEM * (width // CHANNELS * slots + FILTERS // CHANNELS * SLOTS)


@functools.cache
def kernel_of(precision: str, taps: int, rows_as_warpgroups: bool) -> Any:
    """The kernel for tiles of `taps` taps in a row of the filter."""
    arithmetic = ARITHMETIC[precision]
    parts, channels = arithmetic.parts, WIDTH if rows_as_warpgroups else WIDTH * WARPGROUPS
    halves, y_items, y_bytes = channels // CHANNELS, FILTERS // CHANNELS * SLOTS, parts * FILTERS * SLOTS * 2
    split = splitter(arithmetic, LOWEST_FACTOR if arithmetic.lowest else 0.0)
    tiles = WIDTH // 8
    multiply = products_of(arithmetic, 1, tiles, FILTERS * SLOTS * 2, transposed=True)
    zero, no_sums = zeros(shares_of(arithmetic), 1, tiles), zeros(1, 1, tiles)
    promote, store = promoter(arithmetic, 1, tiles), outer_storer(1, WIDTH)

    @cuda.jit(device=True)
    def copy(x, dy, raw, chunk, last, group, filter_, channel, a, b, shift, g):
        """Start the copies of what this thread splits of a stage: sixteen channels at a slot of x, or filters of dy."""
        x_items = halves * g.slots
        for item in range(cuda.threadIdx.x, x_items + y_items if chunk < last else 0, MULTIPLIERS):
            count, address, step = types.int32(0), x, types.int32(0)
            if item < x_items:
                half = types.int32(types.uint32(item) // types.uint32(g.slots))
                n, row, column = place_of(types.int32(chunk * SLOTS + item - half * g.slots + shift), g)
                h, w = row * g.stride_h + a - g.top, column * g.stride_w + b - g.left
                its = channel + half * CHANNELS
                if n < g.images and h >= 0 and h < g.height and w >= 0 and w < g.width:
                    count, step = types.int32(g.channels - its), types.int32(g.x_c * 4)
                    address = x + (n * g.x_n + (group * g.channels + its) * g.x_c + h * g.x_h + w * g.x_w) * 4
            else:
                half = types.int32(types.uint32(item - x_items) // types.uint32(SLOTS))
                n, p, q = place_of(types.int32(chunk * SLOTS + item - x_items - half * SLOTS), g)
                its = filter_ + half * CHANNELS
                if n < g.images and p < g.p and q < g.q:
                    count, step = types.int32(g.filters - its), types.int32(g.y_k * 4)
                    address = dy + (n * g.y_n + (group * g.filters + its) * g.y_k + p * g.y_h + q * g.y_w) * 4
            copy_item(types.int32(raw + item * ITEM), address, step, count)
        ptx.commit_copies()

    @cuda.jit(device=True)
    def split_stage(raw, to, x_bytes, g):
        """Split what this thread copied; not zero if a value was not ordinary."""
        x_items, flag = halves * g.slots, types.int32(0)
        ptx.wait_for_copies()
        for item in range(cuda.threadIdx.x, x_items + y_items, MULTIPLIERS):
            if item < x_items:
                half = types.int32(types.uint32(item) // types.uint32(g.slots))
                at = to + (half * g.slots + item) * 16
                part_step, group_step = types.int32(channels * 2 * g.slots), types.int32(g.slots * 16)
            else:
                half = types.int32(types.uint32(item - x_items) // types.uint32(SLOTS))
                at = to + x_bytes + (half * SLOTS + item - x_items) * 16
                part_step, group_step = types.int32(FILTERS * 2 * SLOTS), types.int32(SLOTS * 16)
            flag |= split(read_item(types.int32(raw + item * ITEM)), types.int32(at), part_step, group_step)
        return flag

    @cuda.jit(device=True)
    def multiply_tap(sums, a, b, g):
        """Add a stage's products of one tap."""
        part = zero()
        for i in range(SLOTS // 16):
            at_a, at_b = types.int32(a + i * 256), types.int32(b + i * 256)
            part = multiply(part, at_a, at_b, types.int32(channels * 2 * g.slots), types.int32(g.slots * 32))
        return promote(sums, part)

    def kernel(x, dy, shares, flags, g):
        shared, lane, warp = ptx.dynamic_shared(), cuda.threadIdx.x & 31, (cuda.threadIdx.x >> 5) & 3
        warpgroup = types.int32(cuda.threadIdx.x >> 7)
        x_bytes = types.int32(channels * parts * 2 * g.slots)
        stage_bytes, stage = types.int32(x_bytes + y_bytes), types.int32(0)
        raw = types.int32(shared + 2 * stage_bytes)
        tiles_of_all = cuda.gridDim.x // g.shares
        share, tile = cuda.blockIdx.x // tiles_of_all, cuda.blockIdx.x % tiles_of_all
        first = types.int32(types.int64(g.chunks) * share // g.shares)
        last = types.int32(types.int64(g.chunks) * (share + 1) // g.shares)
        group, filter_block, channel_block, row_block, phase, column_block = part_of(tile, g)
        a = row_block * g.dilation_h * (0 if rows_as_warpgroups else 1)
        b, shift = phase * g.dilation_w, column_block * taps * g.tap_step
        filter_, channel = filter_block * FILTERS, channel_block * channels
        # A lane names 8 filters, or channels, at a slot: a row of the four 8 x 8 matrices that one read transposes.
        its_dy = types.int32(x_bytes + ((2 * warp + (lane >> 3 & 1)) * SLOTS + (lane >> 4) * 8 + (lane & 7)) * 16)
        its_x = types.int32(((lane >> 4) * g.slots + (lane >> 3 & 1) * 8 + (lane & 7)) * 16)
        its_x += warpgroup * (g.warpgroup_step * 16 if rows_as_warpgroups else WIDTH // 8 * g.slots * 16)
        copy(x, dy, raw, first, last, group, filter_, channel, a, b, shift, g)
        flag = split_stage(raw, shared, x_bytes, g)
        copy(x, dy, raw, types.int32(first + 1), last, group, filter_, channel, a, b, shift, g)
        sums0, sums1, sums2 = no_sums(), no_sums(), no_sums()
        for chunk in range(first, last):
            cuda.syncthreads()
            for turn in range(2):
                if turn == warpgroup & 1:
                    if chunk + 1 < last:
                        flag |= split_stage(raw, types.int32(shared + (stage ^ 1) * stage_bytes), x_bytes, g)
                    copy(x, dy, raw, types.int32(chunk + 2), last, group, filter_, channel, a, b, shift, g)
                else:
                    at = types.int32(shared + stage * stage_bytes)
                    at_a, at_b, step = types.int32(at + its_dy), types.int32(at + its_x), g.tap_step * 16
                    sums0 = multiply_tap(sums0, at_a, at_b, g)
                    if taps > 1:
                        sums1 = multiply_tap(sums1, at_a, types.int32(at_b + step), g)
                    if taps > 2:
                        sums2 = multiply_tap(sums2, at_a, types.int32(at_b + 2 * step), g)
            stage ^= types.int32(1)
        if flag != 0:
            ptx.store_global_word(flags + types.int64(tile) * 4, 1)
        line = (types.int64(cuda.blockIdx.x) * WARPGROUPS + warpgroup) * taps * FILTERS + warp * 16 + (lane >> 2)
        corner, next_tap = shares + (line * WIDTH + 2 * (lane & 3)) * 4, FILTERS * WIDTH * 4
        store(sums0, corner)
        if taps > 1:
            store(sums1, corner + next_tap)
        if taps > 2:
            store(sums2, corner + 2 * next_tap)

    return kernel
