"""How a stage of implicit_gemm.py comes to shared memory: x through registers, split on the way, or by copy engine.

Through registers, a thread has two items of sixteen channels of a slot on their way while it splits and stores: as soon
as one is stored, the load of the one that takes its place in the next stage starts. Where an item lies in x changes
only from tile to tile, or from phase to phase, and is found only then.
"""

from typing import Any

import numpy as np
from numba import cuda
from numba.cuda import types

from .. import ptx
from .arithmetic import (
    CHANNELS,
    gather,
    gather_taps,
    gather_whole,
    power_of_two,
    scale,
    scale_exponent,
    splitter,
)
from .slots import (
    HEADER,
    LOADERS,
    MULTIPLIERS,
    PATCHES,
    Block,
    greatest_of,
    place_of,
    quotient_and_rest,
    shift_of,
    tile_of,
)

NOWHERE = 2**15 - 1
"""So many rows below any image: where the taps of channels beyond the last would be."""


@cuda.jit(device=True)
def write_taps(table, channels, whole, taps_h, taps_w, apart_h, apart_w, x_c, x_h, x_w):
    """For each channel of a gathered block, which is a tap of a channel of x: bytes from the window's first input, and
    rows and columns from it. From `channels` on up to a whole number of blocks they lie nowhere."""
    for v in range(cuda.threadIdx.x, channels, cuda.blockDim.x):
        c, tap = quotient_and_rest(types.int32(v), types.int32(taps_h * taps_w))
        r, s = quotient_and_rest(tap, taps_w)
        down, across = r * apart_h, s * apart_w
        ptx.store_shared_word(types.int32(table + v * 8), types.int32((c * x_c + down * x_h + across * x_w) * 4))
        ptx.store_shared_word(types.int32(table + v * 8 + 4), types.int32(down << 16 | across))
    for v in range(channels + cuda.threadIdx.x, whole, cuda.blockDim.x):
        ptx.store_shared_word(types.int32(table + v * 8), 0)
        ptx.store_shared_word(types.int32(table + v * 8 + 4), types.int32(NOWHERE << 16))


@cuda.jit(device=True)
def table_of(shared, x_bytes, weight_bytes, g):
    """Where the taps' table lies: behind the stages and the patches."""
    return types.int32(shared + HEADER + g.stages * (x_bytes + weight_bytes) + PATCHES)


@cuda.jit(device=True)
def next_step(pair, chunk, a, b, tile, pairs, g):
    """What is loaded after this: another pair of items, phase, chunk of channels, tile; whether items lie elsewhere."""
    moved = pairs > 1
    pair += types.int32(1)
    if pair == pairs:
        pair, b, moved = types.int32(0), types.int32(b + 1), moved or g.phase_columns > 1
        if b == g.phase_columns:
            b, a, moved = types.int32(0), types.int32(a + 1), moved or g.phase_rows > 1
        if a == g.phase_rows:
            a, chunk = types.int32(0), types.int32(chunk + 1)
        if chunk == g.chunks:
            chunk, tile, moved = types.int32(0), types.int32(tile + cuda.gridDim.x), True
    return pair, chunk, a, b, tile, moved


@cuda.jit(device=True)
def half_of(item, slots, halves):
    """Which sixteen of a stage's channels an item is. Threads without an item look taps up as well: for the last."""
    return np.int32(1) if halves > 1 and item >= slots else np.int32(0)


def through_registers(block: Block) -> Any:
    """`bring(x, packed, scales, flags, shared, x_bytes, g)`: the loaders' part where x is as it came."""
    weight_bytes, is_scaled, is_gathered = block.weight_bytes, block.arithmetic.scaled, block.gathered
    groups, halves, block_channels = block.groups, block.channels // CHANNELS, block.channels
    subgroups, pixels = block.groups // halves, block.pixels
    split = splitter(block.arithmetic, block.arithmetic.lowest)

    @cuda.jit(device=True)
    def spot_of(x, scales, flags, tile, item, items, a, b, g):
        """Where an item lies in x: its address, row and column, how many channels there are, its image's factor, and
        the step to the next channel. Outside of the image its channels are all the zero that stands before the flags.
        """
        half = half_of(item, g.slots, halves)
        pixel_tile, group, _ = tile_of(tile, g)
        n, row, column = place_of(types.int32(pixel_tile * pixels + item - half * g.slots), g)
        h, w = types.int32(row * g.stride_h - g.top), types.int32(column * g.stride_w - g.left)
        channel, left, factor = half * CHANNELS, types.int32(0), types.float32(1)
        is_there = item < items and n < g.images
        if is_gathered:
            channel, left = types.int32(0), types.int32(g.channels if is_there else 0)
        else:
            h, w = types.int32(h + a * g.phase_h), types.int32(w + b * g.phase_w)
            is_there = is_there and h >= 0 and h < g.height and w >= 0 and w < g.width
            if is_there:
                left = types.int32(g.channels - channel)
        if is_scaled and is_there:
            factor = power_of_two(scale_exponent(greatest_of(scales, n)))
        of_group = group * (g.channels // (g.taps_h * g.taps_w)) if is_gathered else group * g.channels
        offset = n * g.x_n + (of_group + channel) * g.x_c + h * g.x_h + w * g.x_w
        if left <= 0:
            return flags - 4, types.int32(NOWHERE), w, left, factor, types.int32(0)
        return x + offset * 4, h, w, left, factor, types.int32(g.x_c * 4)

    @cuda.jit(device=True)
    def load(spot, item, chunk, table, g):
        """Sixteen channels of an item; zeros outside of the image and beyond the last channel."""
        address, h, w, left, _, step = spot
        if is_gathered:
            return gather_taps(
                address,
                h,
                w,
                g.height,
                g.width,
                table + (chunk * block_channels + half_of(item, g.slots, halves) * CHANNELS) * 8,
            )
        first = types.int32(chunk * block_channels)
        address += types.int64(first) * step
        if g.channels - first >= block_channels:
            return gather_whole(address, step)
        return gather(address, step, left - first)

    @cuda.jit(device=True)
    def keep(values, spot, item, items, stage, part_step, group_step, g):
        """Split an item and store it to a stage; not zero if it holds what is not ordinary."""
        if item >= items:
            return types.int32(0)
        half = half_of(item, g.slots, halves)
        at = stage + half * subgroups * group_step + (item - half * g.slots) * 16
        return split(scale(values, spot[4]) if is_scaled else values, types.int32(at), part_step, group_step)

    @cuda.jit(device=True)
    def bring(x, packed, scales, flags, shared, x_bytes, g):
        first, second = (
            types.int32(cuda.threadIdx.x - MULTIPLIERS),
            types.int32(cuda.threadIdx.x - MULTIPLIERS + LOADERS),
        )
        group_step, items = types.int32(g.slots * 16), types.int32(halves * g.slots)
        part_step, pairs = types.int32(groups * group_step), types.int32((items + 2 * LOADERS - 1) // (2 * LOADERS))
        table = table_of(shared, x_bytes, weight_bytes, g)
        stage, parity, zero = types.int32(0), types.int32(1), types.int32(0)
        pair, chunk, a, b, ahead = zero, zero, zero, zero, types.int32(cuda.blockIdx.x)
        spot0 = spot_of(x, scales, flags, ahead, first, items, a, b, g)
        spot1 = spot_of(x, scales, flags, ahead, second, items, a, b, g)
        values0, values1 = load(spot0, first, chunk, table, g), load(spot1, second, chunk, table, g)
        for tile in range(cuda.blockIdx.x, g.tiles, cuda.gridDim.x):
            pixel_tile, group, filter_block = tile_of(tile, g)
            steps = g.chunks * g.phase_rows * g.phase_columns
            weights = packed + types.int64(group * g.filter_blocks + filter_block) * steps * weight_bytes
            flag = types.int32(0)
            for _ in range(steps):
                full, x_stage = types.int32(shared + stage * 8), types.int32(shared + HEADER + stage * x_bytes)
                ptx.barrier_wait(full + 64, parity)
                if first == 0:
                    ptx.barrier_expect(full, weight_bytes)
                    at = shared + HEADER + g.stages * x_bytes + stage * weight_bytes
                    ptx.bulk_copy(at, weights, weight_bytes, full)
                weights += weight_bytes
                for now in range(pairs):
                    its0 = types.int32(first + now * (2 * LOADERS))
                    pair, chunk, a, b, ahead, moved = next_step(pair, chunk, a, b, ahead, pairs, g)
                    next0 = types.int32(first + pair * (2 * LOADERS))
                    flag |= keep(values0, spot0, its0, items, x_stage, part_step, group_step, g)
                    if moved:
                        spot0 = spot_of(x, scales, flags, ahead, next0, items, a, b, g)
                    values0 = load(spot0, next0, chunk, table, g)
                    flag |= keep(values1, spot1, its0 + LOADERS, items, x_stage, part_step, group_step, g)
                    if moved:
                        spot1 = spot_of(x, scales, flags, ahead, next0 + LOADERS, items, a, b, g)
                    values1 = load(spot1, next0 + LOADERS, chunk, table, g)
                ptx.publish_shared()
                cuda.syncwarp()
                if first & 31 == 0:
                    ptx.barrier_arrive(full)
                stage += types.int32(1)
                if stage == g.stages:
                    stage, parity = types.int32(0), types.int32(parity ^ 1)
            if flag != 0:
                ptx.store_global_word(flags + types.int64(pixel_tile) * 4, 1)

    return bring


def by_copy_engine(block: Block) -> Any:
    """`bring`, as above, where x is laid out: one warp's part, a lane for each part of a band, and one for weights."""
    weight_bytes, parts, pixels = block.weight_bytes, block.arithmetic.parts, block.pixels

    @cuda.jit(device=True)
    def bring(x, packed, scales, flags, shared, x_bytes, g):
        lane, bands = types.int32(cuda.threadIdx.x - MULTIPLIERS), g.chunks
        if lane >= 32:
            return
        run_bytes, steps = types.int32(g.slots * 128), g.chunks * g.phase_rows * g.phase_columns
        stage, parity = types.int32(0), types.int32(1)
        for tile in range(cuda.blockIdx.x, g.tiles, cuda.gridDim.x):
            pixel_tile, group, filter_block = tile_of(tile, g)
            weights = packed + types.int64(group * g.filter_blocks + filter_block) * steps * weight_bytes
            chunk, a, b = types.int32(0), types.int32(0), types.int32(0)
            for _ in range(steps):
                full = shared + stage * 8
                phase = a * g.phase_h % g.stride_h * g.laid_columns + b * g.phase_w % g.stride_w
                line = (types.int64(phase * g.groups + group) * bands + chunk) * parts + lane
                # The pattern of units repeats after eight slots: the copy starts at the first of eight.
                first = types.int32(pixel_tile * pixels + shift_of(a, b, g)) & -8
                ptx.barrier_wait(full + 64, parity)
                if lane == 0:
                    ptx.barrier_expect(full, weight_bytes + parts * run_bytes)
                    at = shared + HEADER + g.stages * x_bytes + stage * weight_bytes
                    ptx.bulk_copy(at, weights, weight_bytes, full)
                cuda.syncwarp()
                if lane < parts:
                    at = types.int32(shared + HEADER + stage * x_bytes + lane * run_bytes)
                    ptx.bulk_copy(at, x + (line * g.laid_slots + first) * 128, run_bytes, full)
                weights += weight_bytes
                b += types.int32(1)
                if b == g.phase_columns:
                    b, a = types.int32(0), types.int32(a + 1)
                if a == g.phase_rows:
                    a, chunk = types.int32(0), types.int32(chunk + 1)
                stage += types.int32(1)
                if stage == g.stages:
                    stage, parity = types.int32(0), types.int32(parity ^ 1)

    return bring
