"""Convolution as one matrix product that is never laid out: the kernel behind every fast convolution here.

All images, with their shared padding, lie end to end in one row of *slots*: slot `(n*rows + h)*pitch + w`. Then a tap
of the filter is a constant distance in slots, for every pixel alike, and the products of a tap are a matrix product
with x itself, shifted. Nothing in the inner loop knows borders: padding slots hold zeros, and what comes out for them
is not stored.

A *stage* is what shared memory takes at a time: some channels of a tile of slots, and the weights of a `Block` of taps.
Strides, dilations and large filters walk over several stages, *phases*, that start at other rows and columns of x.

Warpgroups 0 and 1 multiply, 2 and 3 load. The loaders read x in any layout, split it in parts for the tensor cores and
store it; the copy engine brings the weights, split beforehand by `pack`. Barriers pass the stages to and fro.
"""

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from . import ptx
from .tensor_core import (
    ARITHMETIC,
    CHANNELS,
    Arithmetic,
    block_of_products,
    column,
    complete,
    finisher,
    gather,
    portion,
    power_of_two,
    promoter,
    scale,
    scale_exponent,
    scale_rows,
    scatter,
    splitter,
    spreader,
    zeros,
)

THREADS, MULTIPLIERS, LOADERS = 512, 256, 256
FILTERS = 64
"""Filters of one wgmma."""
PATCH = 40
"""Words in a row of the patch through which a warp's 16 x 32 results go to memory: 8 more, so that banks differ."""
HEADER, PATCHES = 1024, MULTIPLIERS // 32 * 16 * PATCH * 4
"""Bytes for barriers, and for the patches of all warps."""


@dataclass(frozen=True)
class Block:
    """What is compiled: an arithmetic, the taps and channels of a stage, the columns of a wgmma.

    `side_by_side` warpgroups take different pixels and the same 64 filters; else the same pixels and 128 filters.
    """

    precision: str
    rows: int
    row: int
    channels: int
    columns: int
    side_by_side: bool = True

    @property
    def arithmetic(self) -> Arithmetic:
        return ARITHMETIC[self.precision]

    @property
    def filters(self) -> int:
        """Filters of a tile."""
        return FILTERS if self.side_by_side else 2 * FILTERS

    @property
    def pixels(self) -> int:
        """Output slots of a tile."""
        return 2 * self.columns if self.side_by_side else self.columns

    @property
    def groups(self) -> int:
        """Units of 16 bytes that hold a stage's channels."""
        return self.channels // self.arithmetic.unit

    @property
    def weight_bytes(self) -> int:
        """Of a stage."""
        return self.rows * self.row * self.arithmetic.parts * self.groups * self.filters * 16

    def x_bytes(self, slots: int) -> int:
        """Of a stage."""
        return -(-self.arithmetic.parts * self.groups * slots * 16 // 128) * 128


class Geometry(NamedTuple):
    """One convolution in numbers, all int32; strides in elements. What the names mean stands in plan.py."""

    images: int
    channels: int
    height: int
    width: int
    x_n: int
    x_c: int
    x_h: int
    x_w: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    rows: int
    rows_multiplier: int
    rows_shift: int
    pitch: int
    pitch_multiplier: int
    pitch_shift: int
    slots: int
    row_step: int
    tap_step: int
    chunks: int
    phase_rows: int
    phase_columns: int
    phase_h: int
    phase_w: int
    groups: int
    filter_blocks: int
    filters: int
    p: int
    q: int
    y_n: int
    y_k: int
    y_h: int
    y_w: int
    tiles: int
    stages: int
    rectify: int


GEOMETRY = types.NamedUniTuple(types.int32, len(Geometry._fields), Geometry)
ARGUMENTS = types.void(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, GEOMETRY)
"""x, packed weights, y, bias or 0, scales or 0, flags, geometry."""


@cuda.jit(device=True)
def divided(number, multiplier, shift):
    """`number // d` for `0 <= number < 2**31`, with the multiplier and shift that plan.py finds for d."""
    product = types.uint64(types.uint32(number)) * types.uint64(types.uint32(multiplier))
    return types.int32(product >> types.uint64(shift))


@cuda.jit(device=True)
def place_of(slot, g):
    """Image, row and column of a slot."""
    row = divided(slot, g.pitch_multiplier, g.pitch_shift)
    n = divided(row, g.rows_multiplier, g.rows_shift)
    return n, types.int32(row - n * g.rows), types.int32(slot - row * g.pitch)


@cuda.jit(device=True)
def inverse_at(scales, i):
    """One over the factor that the operand behind entry i of `scales` was brought into range with."""
    greatest = ptx.load_global_word(scales + types.int64(i) * 4)
    return power_of_two(254 - scale_exponent(greatest))


@cuda.jit(device=True)
def tile_of(tile, g):
    """A tile's place among the pixels, its group, and its block of filters: filters run fastest, for the cache."""
    blocks, filter_blocks = types.uint32(g.groups * g.filter_blocks), types.uint32(g.filter_blocks)
    pixels = types.uint32(types.uint32(tile) // blocks)
    block = types.uint32(tile - pixels * blocks)
    group = types.uint32(block // filter_blocks)
    return types.int32(pixels), types.int32(group), types.int32(block - group * filter_blocks)


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
        a_high, b_high = filters << 16, g.slots << 16
        stage, parity, stored = types.int32(0), types.int32(0), types.int32(-1)
        sums, part = zero(), zero()
        for tile in range(cuda.blockIdx.x, g.tiles, cuda.gridDim.x):
            for step in range(g.chunks * g.phase_rows * g.phase_columns):
                ptx.barrier_wait(shared + stage * 8, parity)
                a = a_high | ((weight_area + stage * weight_bytes + warpgroup * rows_apart * 16) >> 4)
                b = b_high | ((x_area + stage * x_bytes) >> 4)
                part = multiply(part, a, b, groups * g.slots, g.slots, g.row_step, g.tap_step)
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

    block_channels = block.channels

    def kernel(x, packed, y, bias, scales, flags, g):
        shared = ptx.dynamic_shared()
        x_bytes = types.int32((parts * groups * g.slots * 16 + 127) // 128 * 128)
        if cuda.threadIdx.x == 0:
            for stage in range(g.stages):
                ptx.barrier_init(shared + stage * 8, LOADERS // 32 + 1)
                ptx.barrier_init(shared + 64 + stage * 8, MULTIPLIERS // 32)
            ptx.barrier_publish()
        cuda.syncthreads()
        # Told by one lane to all, the number of the warpgroup is known to be the same for them: descriptors need that.
        warpgroup = types.int32(cuda.shfl_sync(0xFFFFFFFF, cuda.threadIdx.x >> 7, 0))
        if warpgroup >= 2:
            fewer()
            load_tiles(x, packed, scales, flags, shared, x_bytes, g)
        else:
            more()
            multiply_tiles(y, bias, scales, shared, x_bytes, warpgroup, g)

    return kernel
