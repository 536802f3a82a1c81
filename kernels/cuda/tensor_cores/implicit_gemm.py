"""Convolution as one matrix product that nobody writes down: the kernel behind every fast convolution here.

All images, with their shared padding, lie end to end in one row of *slots*: slot `(n*rows + h)*pitch + w`. Then a tap
of the filter is a constant distance in slots, for every pixel alike, and the products of a tap are a matrix product
with x itself, shifted. Nothing in the inner loop knows borders: padding slots hold zeros, and what comes out for them
is not stored.

A *stage* is what shared memory takes at a time: some channels of a tile of slots, and the weights of a `Block` of taps.
Strides, dilations and large filters walk over several stages, *phases*, that start at other rows and columns of x.

Warpgroups 0 and 1 multiply, 2 and 3 load. The loaders read x in any layout, split it in parts for the tensor cores and
store it; the copy engine brings the weights, split beforehand by `pack`. Where many tiles would split the same slots, x
is laid out beforehand too (laid_out.py), and a single warp has the copy engine bring both. Barriers pass the stages to
and fro.
"""

import functools
from typing import Any

from numba import cuda
from numba.cuda import types

from .. import ptx
from .arithmetic import (
    CHANNELS,
    column,
    complete,
    gather,
    power_of_two,
    scale,
    scale_exponent,
    scale_rows,
    scatter,
    splitter,
    spreader,
)
from .slots import FILTERS, GEOMETRY, HEADER, LOADERS, MULTIPLIERS, PATCH, Block, place_of, shift_of, tile_of
from .wgmma import block_of_band, block_of_products, finisher, portion, promoter, zeros

ARGUMENTS = types.void(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, GEOMETRY)
"""x, packed weights, y, bias or 0, scales or 0, flags, geometry."""


@cuda.jit(device=True)
def inverse_at(scales, i):
    """One over the factor that the operand behind entry i of `scales` was brought into range with."""
    greatest = ptx.load_global_word(scales + types.int64(i) * 4)
    return power_of_two(254 - scale_exponent(greatest))


@functools.cache
def kernel_of(block: Block) -> Any:
    """The kernel for this block: one persistent block of threads on each multiprocessor, over all tiles in turn."""
    arithmetic = block.arithmetic
    columns, filters, pixels, groups = block.columns, block.filters, block.pixels, block.groups
    weight_bytes, parts, is_scaled = block.weight_bytes, arithmetic.parts, arithmetic.scaled
    subgroups, halves = groups * CHANNELS // block.channels, block.channels // CHANNELS
    columns_apart, rows_apart = (columns, 0) if block.side_by_side else (0, FILTERS)
    split, zero = splitter(arithmetic, arithmetic.lowest), zeros(columns)
    promote, finish = promoter(columns), finisher(columns)
    is_laid, block_channels, run_units = block.laid, block.channels, 8
    if is_laid:
        multiply = block_of_band(arithmetic, filters, columns)
        fewer, more = ptx.registers(40, more=False), ptx.registers(232, more=True)
    else:
        multiply = block_of_products(arithmetic, filters, columns, block.rows, block.row, block.channels)
        fewer, more = ptx.registers(88, more=False), ptx.registers(168, more=True)
    portion0, portion1, portion2, portion3, portion4 = (portion(columns, i) for i in range(5))
    count, spread, read = -(-columns // 32), spreader(PATCH), column(PATCH)

    @cuda.jit(device=True)
    def load(x, scales, first, item, group, chunk, a, b, g):
        """Sixteen channels of a slot, zeros outside of the image and beyond the last channel; its image's greatest."""
        half = types.int32(types.uint32(item) // types.uint32(g.slots)) if halves > 1 else types.int32(0)
        channel = chunk * block_channels + half * CHANNELS
        n, row, column = place_of(types.int32(first + item - half * g.slots), g)
        h, w = row * g.stride_h + a * g.phase_h - g.top, column * g.stride_w + b * g.phase_w - g.left
        inside = n < g.images and h >= 0 and h < g.height and w >= 0 and w < g.width
        offset = n * g.x_n + (group * g.channels + channel) * g.x_c + h * g.x_h + w * g.x_w
        values = gather(x + offset * 4, g.x_c * 4, g.channels - channel if inside else 0)
        greatest = types.int32(0)
        if is_scaled and inside:
            greatest = ptx.load_global_word(scales + types.int64(n) * 4)
        return values, greatest

    @cuda.jit(device=True)
    def load_tiles(x, packed, scales, flags, shared, x_bytes, g):
        """The loaders' part: x through registers, the next item on its way while one is split; weights by bulk copy."""
        thread = types.int32(cuda.threadIdx.x - MULTIPLIERS)
        group_step, part_step, items = g.slots * 16, groups * g.slots * 16, halves * g.slots
        steps = g.chunks * g.phase_rows * g.phase_columns
        stage, parity = types.int32(0), types.int32(1)
        ahead, ahead_chunk, ahead_a, ahead_b = thread, types.int32(0), types.int32(0), types.int32(0)
        ahead_tile = types.int32(cuda.blockIdx.x)
        ahead_pixels, ahead_group, _ = tile_of(ahead_tile, g)
        values, greatest = load(x, scales, ahead_pixels * pixels, ahead, ahead_group, ahead_chunk, ahead_a, ahead_b, g)
        for tile in range(cuda.blockIdx.x, g.tiles, cuda.gridDim.x):
            pixel_tile, group, filter_block = tile_of(tile, g)
            weights = packed + types.int64(group * g.filter_blocks + filter_block) * steps * weight_bytes
            flag = types.int32(0)
            for _ in range(steps):
                full, x_stage = shared + stage * 8, shared + HEADER + stage * x_bytes
                ptx.barrier_wait(full + 64, parity)
                if thread == 0:
                    ptx.barrier_expect(full, weight_bytes)
                    at = shared + HEADER + g.stages * x_bytes + stage * weight_bytes
                    ptx.bulk_copy(at, weights, weight_bytes, full)
                weights += weight_bytes
                for item in range(thread, items, LOADERS):
                    half = types.int32(types.uint32(item) // types.uint32(g.slots)) if halves > 1 else types.int32(0)
                    at = x_stage + half * subgroups * group_step + (item - half * g.slots) * 16
                    now = values
                    ahead += types.int32(LOADERS)
                    if ahead >= items:
                        ahead, ahead_b = thread, types.int32(ahead_b + 1)
                        if ahead_b == g.phase_columns:
                            ahead_b, ahead_a = types.int32(0), types.int32(ahead_a + 1)
                        if ahead_a == g.phase_rows:
                            ahead_a, ahead_chunk = types.int32(0), types.int32(ahead_chunk + 1)
                        if ahead_chunk == g.chunks:
                            ahead_chunk, ahead_tile = types.int32(0), types.int32(ahead_tile + cuda.gridDim.x)
                            ahead_pixels, ahead_group, _ = tile_of(ahead_tile, g)
                    factor = power_of_two(scale_exponent(greatest)) if is_scaled else types.float32(1)
                    values, greatest = load(
                        x, scales, ahead_pixels * pixels, ahead, ahead_group, ahead_chunk, ahead_a, ahead_b, g
                    )
                    flag |= split(scale(now, factor), at, part_step, group_step)
                ptx.publish_shared()
                cuda.syncwarp()
                if thread & 31 == 0:
                    ptx.barrier_arrive(full)
                stage += types.int32(1)
                if stage == g.stages:
                    stage, parity = types.int32(0), types.int32(parity ^ 1)
            if flag != 0:
                ptx.store_global_word(flags + types.int64(pixel_tile) * 4, 1)

    @cuda.jit(device=True)
    def bring_tiles(x, packed, scales, flags, shared, x_bytes, g):
        """One warp's part where x is laid out: a lane for each part of a band, and one for the weights."""
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

    @cuda.jit(device=True)
    def store_portion(sums, patch, lane, slot, last, left, y, scales, upper, lower, g):
        """Sixteen filters of 32 slots, through the warp's patch, so that a row of the image is written at once."""
        if is_scaled:
            sums = scale_rows(sums, upper, lower)
        spread(sums, patch + ((lane >> 2) * PATCH + 2 * (lane & 3)) * 4)
        cuda.syncwarp()
        slot = types.int32(slot + lane)
        n, p, q = place_of(slot, g)
        inside = slot < last and n < g.images and p < g.p and q < g.q
        factor = types.float32(1)
        if is_scaled and inside:
            factor = inverse_at(scales, n)
        values = complete(read(patch + lane * 4), read(patch + 32 * 4), factor, g.rectify)
        at = y + (types.int64(n) * g.y_n + types.int64(p) * g.y_h + types.int64(q) * g.y_w) * 4
        scatter(values, at, types.int64(g.y_k) * 4, left if inside else 0)
        cuda.syncwarp()

    @cuda.jit(device=True)
    def store(sums, tile, y, bias, scales, patch, g):
        """A warp's rows of the tile: 16 filters of `columns` slots."""
        lane, warp = cuda.threadIdx.x & 31, (cuda.threadIdx.x >> 5) & 3
        warpgroup = cuda.threadIdx.x >> 7
        pixel_tile, group, filter_block = tile_of(tile, g)
        filter_ = types.int32(filter_block * filters + warpgroup * rows_apart + warp * 16)
        left = g.filters - filter_
        if left <= 0:
            return
        if lane < 16:  # Each filter's bias stands behind its row of the patch.
            more = types.float32(0)
            if bias != 0 and lane < left:
                more = ptx.load_global(bias + types.int64(group * g.filters + filter_ + lane) * 4)
            ptx.store_shared(patch + (lane * PATCH + 32) * 4, more)
        upper = lower = types.float32(1)
        if is_scaled:
            line = g.images + group * g.filter_blocks * filters + filter_ + (lane >> 2)
            upper, lower = inverse_at(scales, line), inverse_at(scales, line + 8)
        y += types.int64(group * g.filters + filter_) * g.y_k * 4
        slot = types.int32(pixel_tile * pixels + warpgroup * columns_apart)
        last = types.int32(slot + columns)
        store_portion(portion0(sums), patch, lane, slot, last, left, y, scales, upper, lower, g)
        if count > 1:
            store_portion(portion1(sums), patch, lane, slot + 32, last, left, y, scales, upper, lower, g)
        if count > 2:
            store_portion(portion2(sums), patch, lane, slot + 64, last, left, y, scales, upper, lower, g)
        if count > 3:
            store_portion(portion3(sums), patch, lane, slot + 96, last, left, y, scales, upper, lower, g)
        if count > 4:
            store_portion(portion4(sums), patch, lane, slot + 128, last, left, y, scales, upper, lower, g)

    @cuda.jit(device=True)
    def multiply_tiles(y, bias, scales, shared, x_bytes, warpgroup, g):
        """The multipliers' part. The last tile's results are written while the next one's first products run."""
        x_area = shared + HEADER + warpgroup * columns_apart * 16
        weight_area = shared + HEADER + g.stages * x_bytes
        patch = weight_area + g.stages * weight_bytes + (cuda.threadIdx.x >> 5) * 16 * PATCH * 4
        a_high, b_high = filters << 16, 1 << 16 if is_laid else g.slots << 16
        stage, parity, stored = types.int32(0), types.int32(0), types.int32(-1)
        sums, part = zero(), zero()
        tap_a, tap_b = types.int32(0), types.int32(0)
        for tile in range(cuda.blockIdx.x, g.tiles, cuda.gridDim.x):
            for step in range(g.chunks * g.phase_rows * g.phase_columns):
                ptx.barrier_wait(shared + stage * 8, parity)
                a = a_high | ((weight_area + stage * weight_bytes + warpgroup * rows_apart * 16) >> 4)
                b = b_high | ((x_area + stage * x_bytes) >> 4)
                if is_laid:
                    b += (shift_of(tap_a, tap_b, g) & 7) * run_units
                    tap_b += types.int32(1)
                    if tap_b == g.phase_columns:
                        tap_b, tap_a = types.int32(0), types.int32(tap_a + 1)
                    if tap_a == g.phase_rows:
                        tap_a = types.int32(0)
                part = multiply(part, a, types.int32(b), groups * g.slots, g.slots, g.row_step, g.tap_step)
                if step == 0 and stored >= 0:
                    store(sums, stored, y, bias, scales, patch, g)
                part = finish(part)
                if cuda.threadIdx.x & 31 == 0:
                    ptx.barrier_arrive(shared + 64 + stage * 8)
                sums = promote(sums, part, 1 if step == 0 else 0)
                stage += types.int32(1)
                if stage == g.stages:
                    stage, parity = types.int32(0), types.int32(parity ^ 1)
            stored = types.int32(tile)
        if stored >= 0:
            store(sums, stored, y, bias, scales, patch, g)

    bring, arrivals = (bring_tiles, 1) if is_laid else (load_tiles, LOADERS // 32 + 1)

    def kernel(x, packed, y, bias, scales, flags, g):
        shared = ptx.dynamic_shared()
        x_bytes = types.int32((parts * groups * g.slots * 16 + 127) // 128 * 128)
        if cuda.threadIdx.x == 0:
            for stage in range(g.stages):
                ptx.barrier_init(shared + stage * 8, arrivals)
                ptx.barrier_init(shared + 64 + stage * 8, MULTIPLIERS // 32)
            ptx.barrier_publish()
        cuda.syncthreads()
        # Told by one lane to all, the number of the warpgroup is known to be the same for them: descriptors need that.
        warpgroup = types.int32(cuda.shfl_sync(0xFFFFFFFF, cuda.threadIdx.x >> 7, 0))
        if warpgroup >= 2:
            fewer()
            bring(x, packed, scales, flags, shared, x_bytes, g)
        else:
            more()
            multiply_tiles(y, bias, scales, shared, x_bytes, warpgroup, g)

    return kernel
