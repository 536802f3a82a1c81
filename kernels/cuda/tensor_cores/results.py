"""How sums leave implicit_gemm.py: scaled back, with bias, rectified if asked, through shared memory to rows of y.

Where parts of weights are stacked, warps 0 and 2 of a warpgroup have sums of the same filters, and so have 1 and 3: the
first of each two adds the other's to its own, by way of their patches, and stores.
"""

import functools
from typing import Any

from numba import cuda
from numba.cuda import types

from .. import ptx
from .arithmetic import (
    added,
    column,
    power_of_two,
    rectified,
    scale,
    scale_exponent,
    scale_rows,
    scatter,
    spreader,
)
from .slots import FILTERS, PATCH, SHARES, Block, greatest_of, place_of, tile_of
from .wgmma import portion


@cuda.jit(device=True)
def inverse_of(greatest):
    """One over the factor that numbers up to `greatest`, given as a word, were brought into range with."""
    return power_of_two(254 - scale_exponent(greatest))


@functools.cache
def placer(is_scaled: bool) -> Any:
    """`place_at(slot, last, left, y, scales, g)`: where a lane writes, how many filters, its image's factor."""

    @cuda.jit(device=True)
    def place_at(slot, last, left, y, scales, g):
        n, p, q = place_of(slot, g)
        inside = slot < last and n < g.images and p < g.p and q < g.q
        factor = types.float32(1)
        if is_scaled:
            factor = inverse_of(greatest_of(scales, min(n, g.images - 1)))
        at = y + (types.int64(n) * g.y_n + p * g.y_h + q * g.y_w) * 4
        return at, types.int32(left if inside else 0), factor

    return place_at


@functools.cache
def portion_storer(is_scaled: bool, is_stacked: bool) -> Any:
    """`store_portion(sums, place, patch, lane, bias, upper, lower, g)`: sixteen filters of 32 slots, through the warp's
    patch, so that a row of the image is written at once."""
    spread, read, others_patch = spreader(PATCH), column(PATCH), 2 * 16 * PATCH * 4

    @cuda.jit(device=True)
    def wait_for_patches():
        if is_stacked:
            ptx.turn_wait(types.int32(3 + 2 * (cuda.threadIdx.x >> 7) + (cuda.threadIdx.x >> 5 & 1)), 64)
        else:
            cuda.syncwarp()

    @cuda.jit(device=True)
    def store_portion(sums, place, patch, lane, bias, upper, lower, g):
        at, count, factor = place
        if is_scaled:
            sums = scale_rows(sums, upper, lower)
        spread(sums, patch + ((lane >> 2) * PATCH + 2 * (lane & 3)) * 4)
        wait_for_patches()
        if not is_stacked or cuda.threadIdx.x >> 6 & 1 == 0:
            values = read(patch + lane * 4)
            if is_stacked:
                values = added(values, read(patch + others_patch + lane * 4))
            if is_scaled:
                values = scale(values, factor)
            if bias != 0:
                values = added(values, read(patch + 32 * 4))
            if g.rectify != 0:
                values = rectified(values)
            scatter(values, at, types.int64(g.y_k) * 4, count)
        wait_for_patches()

    return store_portion


@functools.cache
def row_factors(is_scaled: bool) -> Any:
    """`factors_of(scales, line, lane, g)`: what a lane's two rows of 16 filters, the first of them `line`, are scaled
    back with."""

    @cuda.jit(device=True)
    def factors_of(scales, line, lane, g):
        upper = lower = types.float32(1)
        if is_scaled:
            at = scales + types.int64(g.images * SHARES + line + (lane >> 2)) * 4
            upper = inverse_of(ptx.load_global_word(at))
            lower = inverse_of(ptx.load_global_word(at + 32))
        return upper, lower

    return factors_of


@cuda.jit(device=True)
def bring_bias(bias, first, left, lane, patch):
    """Each filter's bias to its place behind its row of the warp's patch."""
    if bias != 0 and lane < 16:
        more = types.float32(0)
        if lane < left:
            more = ptx.load_global(bias + types.int64(first + lane) * 4)
        ptx.store_shared(patch + (lane * PATCH + 32) * 4, more)


def storer(block: Block) -> Any:
    """`store(sums, tile, y, bias, scales, patch, g)`: a warp's rows of a tile, 16 filters of `columns` slots."""
    columns, filters, pixels, is_scaled = block.columns, block.filters, block.pixels, block.arithmetic.scaled
    columns_apart, rows_apart = (columns, 0) if block.side_by_side else (0, FILTERS)
    portion0, portion1, portion2, portion3, portion4 = (portion(columns, i) for i in range(5))
    count = -(-columns // 32)
    place_at, factors_of = placer(is_scaled), row_factors(is_scaled)
    store_portion, warps_of_filters = portion_storer(is_scaled, block.stacked), min(4, filters // 16)

    @cuda.jit(device=True)
    def store(sums, tile, y, bias, scales, patch, g):
        lane, warp = types.int32(cuda.threadIdx.x & 31), types.int32((cuda.threadIdx.x >> 5) & 3)
        warpgroup = types.int32(cuda.threadIdx.x >> 7)
        pixel_tile, group, filter_block = tile_of(tile, g)
        filter_ = types.int32(filter_block * filters + warpgroup * rows_apart + warp % warps_of_filters * 16)
        left = types.int32(g.filters - filter_)
        if left <= 0:
            return
        bring_bias(bias, group * g.filters + filter_, left, lane, patch)
        slot = types.int32(pixel_tile * pixels + warpgroup * columns_apart)
        last = types.int32(slot + columns)
        slot += lane
        line = group * g.filter_blocks * filters + filter_
        upper, lower = factors_of(scales, line, lane, g)
        y += types.int64(group * g.filters + filter_) * g.y_k * 4
        place = place_at(slot, last, left, y, scales, g)
        # The next portion's factor is on its way while one is stored.
        following = place_at(types.int32(slot + 32), last, left, y, scales, g)
        store_portion(portion0(sums), place, patch, lane, bias, upper, lower, g)
        if count > 2:
            place = place_at(types.int32(slot + 64), last, left, y, scales, g)
        if count > 1:
            store_portion(portion1(sums), following, patch, lane, bias, upper, lower, g)
        if count > 3:
            following = place_at(types.int32(slot + 96), last, left, y, scales, g)
        if count > 2:
            store_portion(portion2(sums), place, patch, lane, bias, upper, lower, g)
        if count > 4:
            place = place_at(types.int32(slot + 128), last, left, y, scales, g)
        if count > 3:
            store_portion(portion3(sums), following, patch, lane, bias, upper, lower, g)
        if count > 4:
            store_portion(portion4(sums), place, patch, lane, bias, upper, lower, g)

    return store
