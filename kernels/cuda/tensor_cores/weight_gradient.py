"""The weight gradient on tensor cores: for each tap, the matrix product of dy with x shifted, summed over slots.

Slots, stages and the split are those of implicit_gemm.py. Here slots are what is summed over, so both operands are read
with slots down and channels across: x by the transposed read of 16-bit tensor cores, dy transposed into registers. A
tile is 64 filters by 96 channels and `taps` taps of a row of the filter, or by 32 channels and three such rows:
warpgroups 0 to 2 take the channels, or the rows; those behind them, two or where taps are gathered four, load
(gradient_loaders.py). Each block sums a share of all slots, each stage of 96 promoted, and `reduce` adds the shares in
a fixed order.

*Gathered*, every tap of every channel is a channel of its own, at a slot for each output: a first layer of 3 x 7 x 7
fills tiles of 96 channels as 147 do.
"""

import functools
from typing import Any

from numba import cuda
from numba.cuda import types

from .. import ptx
from .arithmetic import ARITHMETIC, CHANNELS
from .gradient_loaders import stage_loader
from .gradient_slots import (
    FILTERS,
    GATHERERS,
    GEOMETRY,
    LOADERS,
    MULTIPLIERS,
    SLOTS,
    WARPGROUPS,
    WIDTH,
    part_of,
)
from .loaders import write_taps
from .outer_products import outer_products, outer_storer
from .slots import HEADER
from .wgmma import promoter, zeros

SEGMENTS, LINE, REDUCERS = 8, 32, 256
"""In `reduce`, a block of 256 threads adds the shares of 32 entries, each in 8 parts first."""
ARGUMENTS = types.void(types.int64, types.int64, types.int64, types.int64, GEOMETRY)
"""x, dy, shares, flags, geometry."""
REDUCE = types.void(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, GEOMETRY)
"""shares, dweight and its strides."""


@functools.cache
def kernel_of(precision: str, taps: int, rows_as_warpgroups: bool, gathered: bool = False) -> Any:
    """The kernel for tiles of `taps` taps in a row of the filter; gathered, they are one."""
    arithmetic = ARITHMETIC[precision]
    parts, columns = arithmetic.parts, taps * WIDTH  # As one wgmma of so many columns, for the registers' sake.
    channels = WIDTH if rows_as_warpgroups else WIDTH * WARPGROUPS
    zero, promote = zeros(columns), promoter(columns)
    multiply, store = outer_products(arithmetic, taps, SLOTS), outer_storer(taps, WIDTH)
    fewer, more = ptx.registers(48, more=False), ptx.registers(128, more=True)
    loaders = GATHERERS if gathered else LOADERS  # 32 sums leave registers for more of them.
    load_stages = stage_loader(precision, taps, rows_as_warpgroups, gathered)
    y_bytes = parts * FILTERS * SLOTS * 2

    @cuda.jit(device=True)
    def multiply_stages(shares, shared, x_bytes, first, last, warpgroup, g):
        """The multipliers' part: a stage's products, promoted; the sums go to this block's share."""
        x_area = shared + HEADER
        if rows_as_warpgroups:
            x_area += warpgroup * g.warpgroup_step * 16
        else:
            x_area += warpgroup * (WIDTH // 8) * g.slots * 16
        lane, warp = cuda.threadIdx.x & 31, (cuda.threadIdx.x >> 5) & 3
        # A lane names a row of 8 filters at one slot, of the four 8 x 8 matrices that 16 filters and slots are.
        its_dy = ((2 * warp + (lane >> 3 & 1)) * SLOTS + (lane >> 4) * 8 + (lane & 7)) * 16
        stage, parity = types.int32(0), types.int32(0)
        sums, part = zero(), zero()
        for _ in range(first, last):
            ptx.barrier_wait(shared + stage * 8, parity)
            x_stage = x_area + stage * (x_bytes + y_bytes)
            y_stage = shared + HEADER + stage * (x_bytes + y_bytes) + x_bytes
            # Eight slots, 128 bytes, lie together; the stride to the next eight channels is a whole stage's slots.
            b = (x_stage >> 4) | 8 << 16
            part = multiply(part, y_stage + its_dy, b, channels // 8 * g.slots, g.slots, g.tap_step)
            ptx.barrier_arrive(shared + 64 + stage * 8)
            sums = promote(sums, part, 0)
            stage += types.int32(1)
            if stage == g.stages:
                stage, parity = types.int32(0), types.int32(parity ^ 1)
        line = (types.int64(cuda.blockIdx.x) * WARPGROUPS + warpgroup) * taps * FILTERS + warp * 16 + (lane >> 2)
        corner = line * WIDTH + 2 * (lane & 3)
        store(sums, shares + corner * 4)

    def kernel(x, dy, shares, flags, g):
        shared = ptx.dynamic_shared()
        x_bytes = types.int32(channels * parts * 2 * g.slots)
        if cuda.threadIdx.x == 0:
            for stage in range(g.stages):
                ptx.barrier_init(shared + stage * 8, loaders)
                ptx.barrier_init(shared + 64 + stage * 8, MULTIPLIERS)
            ptx.barrier_publish()
        if gathered:
            write_taps(
                types.int32(shared + HEADER + g.stages * (x_bytes + y_bytes)), g.channels,
                (g.channels + CHANNELS - 1) // CHANNELS * CHANNELS, g.taps_h, g.taps_w, g.dilation_h, g.dilation_w,
                g.x_c, g.x_h, g.x_w,
            )  # fmt: skip
        cuda.syncthreads()
        tiles = cuda.gridDim.x // g.shares
        share, tile = cuda.blockIdx.x // tiles, cuda.blockIdx.x % tiles
        first = types.int32(types.int64(g.chunks) * share // g.shares)
        last = types.int32(types.int64(g.chunks) * (share + 1) // g.shares)
        warpgroup = types.int32(cuda.shfl_sync(0xFFFFFFFF, cuda.threadIdx.x >> 7, 0))
        if warpgroup >= WARPGROUPS:
            if not gathered:
                fewer()
            load_stages(x, dy, flags, shared, x_bytes, first, last, tile, g)
        else:
            if not gathered:
                more()
            multiply_stages(shares, shared, x_bytes, first, last, warpgroup, g)

    return kernel


@functools.cache
def reduce_of(taps: int, rows_as_warpgroups: bool) -> Any:
    """Adds the shares of each weight: every eighth in a thread, in rising order, then the eight."""

    def kernel(shares, dweight, w_k, w_c, w_r, w_s, g):
        partial = cuda.shared.array(REDUCERS, types.float32)
        thread = cuda.threadIdx.x
        # The innermost axis of a share is a warpgroup's 32 channels: a line of a block.
        tiles = g.groups * g.filter_blocks * g.channel_blocks * g.row_blocks * g.column_phases * g.column_blocks
        lines = tiles * WARPGROUPS * taps * FILTERS
        line, segment = cuda.blockIdx.x, thread // LINE
        total = types.float32(0)
        at = shares + (types.int64(line) * LINE + thread % LINE) * 4
        for share in range(segment, g.shares, SEGMENTS):
            total += ptx.load_global(at + types.int64(share) * lines * LINE * 4)
        partial[thread] = total
        cuda.syncthreads()
        if thread >= LINE:
            return
        total = types.float32(0)
        for i in range(SEGMENTS):
            total += partial[thread + i * LINE]
        rest, k = divmod(line, FILTERS)
        rest, t = divmod(rest, taps)
        tile, warpgroup = divmod(rest, WARPGROUPS)
        group, filter_block, channel_block, row_block, phase, column_block = part_of(tile, g)
        k += filter_block * FILTERS
        if rows_as_warpgroups:
            r, c = row_block * WARPGROUPS + warpgroup, channel_block * WIDTH + thread
        else:
            r, c = row_block, (channel_block * WARPGROUPS + warpgroup) * WIDTH + thread
        s = phase + (column_block * taps + t) * g.column_phases
        if k < g.filters and c < g.channels and r < g.column and s < g.row:
            at = types.int64(group * g.filters + k) * w_k + c * w_c + r * w_r + s * w_s
            ptx.store_global(dweight + at * 4, total)

    return kernel
