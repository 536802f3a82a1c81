"""Convolution as one matrix product that nobody writes down, on tensor cores from Ampere on.

Problems, slots, stages, packed weights, flags and results are those of implicit_gemm.py. What differs is who does what:
there is no copy engine and no warpgroup to feed, so all eight warps load, split and multiply. Each multiplies 64
filters by a fourth of its warpgroup's columns, one half of the filters after the other where small products have sums
of their own, and promotes every row of taps.

Weights come by a row of taps, x by a stage. While a row is multiplied, the weights of the next one and x of the stage
after the next are on their way (raw.py), and with a stage's first row x of the next stage is split: by warps 0 to 3
before they multiply and by warps 4 to 7 afterwards, so that each scheduler of the multiprocessor has one warp for its
tensor core and one for its other units. One barrier a row is all they share.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from .. import ptx
from .arithmetic import CHANNELS, power_of_two, scale, scale_exponent, splitter
from .mma_sync import products_of, promoter, rows_of, shares_of, zeros
from .raw import ITEM, copy_item, read_item, run_copier
from .results import bring_bias, placer, portion_storer, row_factors
from .slots import FILTERS, MULTIPLIERS, PATCH, PATCHES, Block, greatest_of, place_of, tile_of

WARPS = 4
"""Of a warpgroup: they share its columns."""


class Stage(NamedTuple):
    """What is copied, split and multiplied at a time, all int32."""

    tile: int
    first: int  # slot of the tile
    group: int
    chunk: int  # of channels
    a: int  # phase
    b: int


def stepper(pixels: int) -> Any:
    """`following(stage, g)`: the stage after one."""

    @cuda.jit(device=True)
    def following(stage, g):
        tile, first, group, chunk, a, b = stage
        b += types.int32(1)
        if b == g.phase_columns:
            b, a = types.int32(0), types.int32(a + 1)
        if a == g.phase_rows:
            a, chunk = types.int32(0), types.int32(chunk + 1)
        if chunk == g.chunks:
            chunk, tile = types.int32(0), types.int32(tile + cuda.gridDim.x)
            pixel_tile, group, _ = tile_of(tile, g)
            first = types.int32(pixel_tile * pixels)
        return Stage(tile, first, group, chunk, a, b)

    return following


def x_copier(block: Block) -> Any:
    """`copy_x(x, scales, raw, stage, g)`: starts copies of what this thread splits, sixteen channels of each slot."""
    is_scaled, halves, block_channels = block.arithmetic.scaled, block.channels // CHANNELS, block.channels

    @cuda.jit(device=True)
    def copy_x(x, scales, raw, stage, g):
        tile, first, group, chunk, a, b = stage
        for item in range(cuda.threadIdx.x, halves * g.slots if tile < g.tiles else 0, MULTIPLIERS):
            half = types.int32(types.uint32(item) // types.uint32(g.slots)) if halves > 1 else types.int32(0)
            channel = chunk * block_channels + half * CHANNELS
            n, line, column = place_of(types.int32(first + item - half * g.slots), g)
            h, w = line * g.stride_h + a * g.phase_h - g.top, column * g.stride_w + b * g.phase_w - g.left
            inside = n < g.images and h >= 0 and h < g.height and w >= 0 and w < g.width
            offset = n * g.x_n + (group * g.channels + channel) * g.x_c + h * g.x_h + w * g.x_w
            to = types.int32(raw + item * ITEM)
            copy_item(to, x + offset * 4, g.x_c * 4, g.channels - channel if inside else 0)
            if is_scaled:
                ptx.store_shared_word(types.int32(to + CHANNELS * 4), greatest_of(scales, n) if inside else 0)
        ptx.commit_copies()

    return copy_x


def x_splitter(block: Block) -> Any:
    """`split_x(raw, to, g)`: splits what this thread copied; not zero if a value was not ordinary."""
    arithmetic, groups, halves = block.arithmetic, block.groups, block.channels // CHANNELS
    is_scaled, subgroups = arithmetic.scaled, block.groups * CHANNELS // block.channels
    split = splitter(arithmetic, arithmetic.lowest)

    @cuda.jit(device=True)
    def split_x(raw, to, g):
        flag, group_step, part_step = types.int32(0), g.slots * 16, groups * g.slots * 16
        for item in range(cuda.threadIdx.x, halves * g.slots, MULTIPLIERS):
            half = types.int32(types.uint32(item) // types.uint32(g.slots)) if halves > 1 else types.int32(0)
            at = types.int32(to + half * subgroups * group_step + (item - half * g.slots) * 16)
            source, factor = types.int32(raw + item * ITEM), types.float32(1)
            values = read_item(source)
            if is_scaled:
                factor = power_of_two(scale_exponent(ptx.load_shared_word(types.int32(source + CHANNELS * 4))))
            flag |= split(scale(values, factor), at, part_step, group_step)
        return flag

    return split_x


def row_multiplier(block: Block, together: int, tiles: int) -> Any:
    """`multiply(sums, a, b, g)`: adds a row of taps' products, for the filters and slots that start at a and b."""
    arithmetic, row, filters, groups = block.arithmetic, block.row, block.filters, block.groups
    parts, depths, part_bytes = arithmetic.parts, block.channels // arithmetic.depth, groups * filters * 16
    products = products_of(arithmetic, together, tiles, part_bytes)
    no_products, promote = zeros(shares_of(arithmetic), together, tiles), promoter(arithmetic, together, tiles)

    @cuda.jit(device=True)
    def multiply(sums, a, b, g):
        part, b_part = no_products(), types.int32(groups * g.slots * 16)
        for tap in range(row):
            at = types.int32(b + tap * g.tap_step * 16)
            for _ in range(depths):
                part = products(part, a, at, b_part, types.int32(0))
                a += types.int32(2 * filters * 16)
                at += types.int32(2 * g.slots * 16)
            a += types.int32((parts - 1) * part_bytes)
        return promote(sums, part)

    return multiply


def rows_storer(block: Block) -> Any:
    """`store_rows(sums, sixteen, tile, y, bias, scales, patch, g)`: sixteen filters of the warp's columns."""
    filters, pixels, columns, is_scaled = block.filters, block.pixels, block.columns // WARPS, block.arithmetic.scaled
    columns_apart, rows_apart = apart(block)
    place_at, store_portion, factors_of = placer(is_scaled), portion_storer(is_scaled, False), row_factors(is_scaled)

    @cuda.jit(device=True)
    def store_rows(sums, sixteen, tile, y, bias, scales, patch, g):
        lane, warp, warpgroup = cuda.threadIdx.x & 31, (cuda.threadIdx.x >> 5) & 3, cuda.threadIdx.x >> 7
        pixel_tile, group, filter_block = tile_of(tile, g)
        filter_ = types.int32(filter_block * filters + warpgroup * rows_apart + sixteen * 16)
        left = g.filters - filter_
        if left <= 0:
            return
        bring_bias(bias, group * g.filters + filter_, left, lane, patch)
        upper, lower = factors_of(scales, group * g.filter_blocks * filters + filter_, lane, g)
        y += types.int64(group * g.filters + filter_) * g.y_k * 4
        slot = types.int32(pixel_tile * pixels + warpgroup * columns_apart + warp * columns)
        place = place_at(types.int32(slot + lane), types.int32(slot + columns), left, y, scales, g)
        store_portion(sums, place, patch, lane, bias, upper, lower, g)

    return store_rows


def apart(block: Block) -> tuple[int, int]:
    """Columns and filters from one warpgroup's to the other's."""
    return (block.columns, 0) if block.side_by_side else (0, FILTERS)


@functools.cache
def kernel_of(block: Block) -> Any:
    """The kernel for this block: one persistent block of threads on each multiprocessor, over all tiles in turn."""
    arithmetic, rows, filters, pixels, groups = block.arithmetic, block.rows, block.filters, block.pixels, block.groups
    line_bytes, parts, columns = block.weight_bytes // rows, arithmetic.parts, block.columns // WARPS
    columns_apart, rows_apart = apart(block)
    # Sixteens of filters that are multiplied at a time: their sums, and those of their products, fit the registers.
    together, tiles = 2 if len(arithmetic.products) > 1 else 4, columns // 8
    is_halved = together == 2
    following, copy_x, split_x = stepper(pixels), x_copier(block), x_splitter(block)
    multiply, store_rows = row_multiplier(block, together, tiles), rows_storer(block)
    copy_run, no_sums = run_copier(line_bytes, MULTIPLIERS), zeros(1, together, tiles)
    rows0, rows1, rows2, rows3 = (rows_of(together, tiles, i % together) for i in range(4))

    @cuda.jit(device=True)
    def weights_of(packed, tile, g):
        """Where a tile's weights begin."""
        _, group, filter_block = tile_of(tile, g)
        steps = g.chunks * g.phase_rows * g.phase_columns
        return packed + types.int64(group * g.filter_blocks + filter_block) * steps * rows * line_bytes

    @cuda.jit(device=True)
    def split_and_copy(x, scales, flags, raw, to, stage, g):
        """Split the stage whose copies came last, then start those of the stage after it, which is returned."""
        ptx.wait_for_all_but_last_copies()
        if stage.tile < g.tiles and split_x(raw, to, g) != 0:
            ptx.store_global_word(flags + types.int64(stage.first // pixels) * 4, 1)
        after = following(stage, g)
        copy_x(x, scales, raw, after, g)
        return after

    def kernel(x, packed, y, bias, scales, flags, g):
        shared, lane, warp = ptx.dynamic_shared(), cuda.threadIdx.x & 31, (cuda.threadIdx.x >> 5) & 3
        warpgroup, my_unit = types.int32(cuda.threadIdx.x >> 7), types.int32(cuda.threadIdx.x * 16)
        x_bytes = types.int32((parts * groups * g.slots * 16 + 127) // 128 * 128)
        weight_area = types.int32(shared + 2 * x_bytes)
        patch = types.int32(weight_area + 2 * line_bytes + (cuda.threadIdx.x >> 5) * 16 * PATCH * 4)
        raw = types.int32(weight_area + 2 * line_bytes + PATCHES)
        # A lane names a row of one of the four 8 x 8 matrices that 16 filters, or slots, and two units are.
        its_a = types.int32(weight_area + ((lane >> 4) * filters + warpgroup * rows_apart + (lane & 15)) * 16)
        its_slot = warpgroup * columns_apart + warp * columns + (lane >> 4) * 8 + (lane & 7)
        its_b = types.int32(shared + ((lane >> 3 & 1) * g.slots + its_slot) * 16)
        lines, zero = g.chunks * g.phase_rows * g.phase_columns * rows, types.int32(0)

        tile = types.int32(cuda.blockIdx.x)
        pixel_tile, group, _ = tile_of(tile, g)
        copied = Stage(tile, types.int32(pixel_tile * pixels), group, zero, zero, zero)
        copy_x(x, scales, raw, copied, g)
        weights = weights_of(packed, tile, g)
        copy_run(weight_area, weights, my_unit)
        ptx.commit_copies()
        copied = split_and_copy(x, scales, flags, raw, shared, copied, g)
        stage, weight_stage = zero, zero
        for tile in range(cuda.blockIdx.x, g.tiles, cuda.gridDim.x):
            sums0, sums1, line = no_sums(), no_sums(), zero
            for i in range(lines):
                ptx.wait_for_all_but_last_copies()
                cuda.syncthreads()
                weights += types.int64(line_bytes)
                to = types.int32(weight_area + (weight_stage ^ 1) * line_bytes)
                if i + 1 < lines:
                    copy_run(to, weights, my_unit)
                elif tile + cuda.gridDim.x < g.tiles:
                    weights = weights_of(packed, types.int32(tile + cuda.gridDim.x), g)
                    copy_run(to, weights, my_unit)
                ptx.commit_copies()
                for turn in range(2):
                    if turn != warpgroup:
                        at_a = types.int32(its_a + weight_stage * line_bytes)
                        at_b = types.int32(its_b + stage * x_bytes + line * g.row_step * 16)
                        sums0 = multiply(sums0, at_a, at_b, g)
                        if is_halved:
                            sums1 = multiply(sums1, types.int32(at_a + together * 256), at_b, g)
                    elif line == 0:
                        to = types.int32(shared + (stage ^ 1) * x_bytes)
                        copied = split_and_copy(x, scales, flags, raw, to, copied, g)
                    else:
                        ptx.commit_copies()  # None, but every row of taps has as many groups.
                weight_stage ^= types.int32(1)
                line += types.int32(1)
                if line == rows:
                    line, stage = zero, types.int32(stage ^ 1)
            store_rows(rows0(sums0), 0, tile, y, bias, scales, patch, g)
            store_rows(rows1(sums0), 1, tile, y, bias, scales, patch, g)
            store_rows(rows2(sums1 if is_halved else sums0), 2, tile, y, bias, scales, patch, g)
            store_rows(rows3(sums1 if is_halved else sums0), 3, tile, y, bias, scales, patch, g)

    return kernel
