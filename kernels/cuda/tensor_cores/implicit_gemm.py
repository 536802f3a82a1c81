"""Convolution as one matrix product that nobody writes down: the kernel behind every fast convolution here.

All images, with their shared padding, lie end to end in one row of *slots*: slot `(n*rows + h)*pitch + w`. Then a tap
of the filter is a constant distance in slots, for every pixel alike, and the products of a tap are a matrix product
with x itself, shifted. Nothing in the inner loop knows borders: padding slots hold zeros, and what comes out for them
is not stored.

A *stage* is what shared memory takes at a time: some channels of a tile of slots, and the weights of a `Block` of taps.
Strides, dilations and large filters walk over several stages, *phases*, that start at other rows and columns of x.

Warpgroups 0 and 1 multiply, and store (results.py); 2 and 3 load (loaders.py). They read x in any layout, split it in
parts for the tensor cores and store it; the copy engine brings the weights, split beforehand by `pack`. Where many
tiles would split the same slots, x is laid out beforehand too (laid_out.py), and a single warp has the copy engine
bring both. Barriers pass the stages to and fro.
"""

import functools
from typing import Any

from numba import cuda
from numba.cuda import types

from .. import ptx
from .loaders import by_copy_engine, table_of, through_registers, write_taps
from .results import storer
from .slots import FILTERS, GEOMETRY, HEADER, LOADERS, MULTIPLIERS, PATCH, Block, shift_of
from .wgmma import block_of_band, block_of_products, finisher, promoter, zeros

ARGUMENTS = types.void(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, GEOMETRY)
"""x, packed weights, y, bias or 0, scales or 0, flags, geometry."""


def multiplier(block: Block) -> Any:
    """`multiply_tiles(y, bias, scales, shared, x_bytes, warpgroup, g)`: the multipliers' part.

    The last tile's results are written while the next one's first products run.
    """
    arithmetic, columns, groups = block.arithmetic, block.columns, block.groups
    columns_apart, rows_apart = (columns, 0) if block.side_by_side else (0, FILTERS)
    weight_bytes, unit_rows, is_laid, run_units = block.weight_bytes, block.unit_rows, block.laid, 8
    multiply = block_of_band(arithmetic, block.filters, columns) if is_laid else block_of_products(block)
    zero, promote, finish, store = zeros(columns), promoter(columns), finisher(columns), storer(block)

    @cuda.jit(device=True)
    def multiply_tiles(y, bias, scales, shared, x_bytes, warpgroup, g):
        x_area = shared + HEADER + warpgroup * columns_apart * 16
        weight_area = shared + HEADER + g.stages * x_bytes
        patch = weight_area + g.stages * weight_bytes + (cuda.threadIdx.x >> 5) * 16 * PATCH * 4
        a_high, b_high = unit_rows << 16, 1 << 16 if is_laid else g.slots << 16
        stage, parity, stored = types.int32(0), types.int32(0), types.int32(-1)
        sums, part = zero(), zero()
        tap_a, tap_b = types.int32(0), types.int32(0)
        its_turn, others_turn = types.int32(1 + warpgroup), types.int32(2 - warpgroup)
        tiles = types.int32((g.tiles - cuda.blockIdx.x + cuda.gridDim.x - 1) // cuda.gridDim.x)
        left = types.int32(tiles * g.chunks * g.phase_rows * g.phase_columns)
        if warpgroup == 1:
            ptx.turn_give(others_turn, MULTIPLIERS)
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
                # In turns: while one warpgroup's products run, the other promotes or stores.
                left -= types.int32(1)
                ptx.turn_wait(its_turn, MULTIPLIERS)
                part = multiply(part, a, types.int32(b), groups * g.slots, g.slots, g.row_step, g.tap_step)
                if warpgroup == 0 or left > 0:
                    ptx.turn_give(others_turn, MULTIPLIERS)
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

    return multiply_tiles


@functools.cache
def kernel_of(block: Block) -> Any:
    """The kernel for this block: one persistent block of threads on each multiprocessor, over all tiles in turn."""
    groups, parts, weight_bytes, is_gathered = block.groups, block.arithmetic.parts, block.weight_bytes, block.gathered
    multiply_tiles, channels = multiplier(block), block.channels
    if block.laid:
        bring, arrivals = by_copy_engine(block), 1
        fewer, more = ptx.registers(40, more=False), ptx.registers(232, more=True)
    else:
        bring, arrivals = through_registers(block), LOADERS // 32 + 1
        fewer, more = ptx.registers(80, more=False), ptx.registers(176, more=True)

    def kernel(x, packed, y, bias, scales, flags, g):
        shared = ptx.dynamic_shared()
        x_bytes = types.int32((parts * groups * g.slots * 16 + 127) // 128 * 128)
        if cuda.threadIdx.x == 0:
            for stage in range(g.stages):
                ptx.barrier_init(shared + stage * 8, arrivals)
                ptx.barrier_init(shared + 64 + stage * 8, MULTIPLIERS // 32)
            ptx.barrier_publish()
        if is_gathered:
            write_taps(
                table_of(shared, x_bytes, weight_bytes, g), g.channels, g.chunks * channels, g.taps_h, g.taps_w,
                g.phase_h, g.phase_w, g.x_c, g.x_h, g.x_w,
            )  # fmt: skip
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
