"""The weight gradient on tensor cores: for each tap, the matrix product of dy with x shifted, summed over slots.

Slots, stages and the split are those of implicit_gemm.py. Here slots are what is summed over, so both operands are read
with slots down and channels across: x by the transposed read of 16-bit tensor cores, dy transposed into registers. A
tile is 64 filters by 96 channels and `taps` taps of a row of the filter, or by 32 channels and three such rows:
warpgroups 0 to 2 take the channels, or the rows; warpgroups 3 and 4 load. Each block sums a share of all slots, each
stage of 96 promoted, and `reduce` adds the shares in a fixed order.

*Gathered*, every tap of every channel is a channel of its own, at a slot for each output: a first layer of 3 x 7 x 7
fills tiles of 96 channels as 147 do.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from .. import ptx
from .arithmetic import ARITHMETIC, CHANNELS, LOWEST_FACTOR, gather, gather_taps, splitter
from .loaders import NOWHERE, write_taps
from .outer_products import outer_products, outer_storer
from .slots import HEADER, divided
from .wgmma import promoter, zeros

MULTIPLIERS, LOADERS, GATHERERS = 384, 256, 512
"""Threads that multiply, that load, and that load where taps are gathered: looking those up takes long."""
WARPGROUPS, FILTERS, WIDTH, SLOTS = 3, 64, 32, 96
"""Of multipliers; filters of a tile; channels of a warpgroup; slots of a stage."""
SEGMENTS, LINE, REDUCERS = 8, 32, 256
"""In `reduce`, a block of 256 threads adds the shares of 32 entries, each in 8 parts first."""


class Geometry(NamedTuple):
    """One weight gradient in numbers, all int32; strides in elements."""

    images: int
    channels: int  # of a group; gathered, those of all its taps
    filters: int  # of a group
    groups: int
    height: int
    width: int
    p: int
    q: int
    x_n: int
    x_c: int
    x_h: int
    x_w: int
    y_n: int
    y_k: int
    y_h: int
    y_w: int
    stride_h: int
    stride_w: int
    top: int
    left: int
    dilation_h: int
    dilation_w: int
    rows: int
    rows_multiplier: int
    rows_shift: int
    pitch: int
    pitch_multiplier: int
    pitch_shift: int
    slots: int  # of x in a stage
    tap_step: int
    warpgroup_step: int  # rows of the filter as warpgroups: slots from one to the next; else 0
    filter_blocks: int
    channel_blocks: int
    row_blocks: int  # rows of the filter, or threes of them
    column_phases: int
    column_blocks: int
    row: int  # taps in a row of the filter
    column: int  # rows of the filter
    chunks: int  # stages of all slots
    shares: int
    stages: int
    taps_h: int  # rows, and taps in a row, of the filter, gathered or not
    taps_w: int


GEOMETRY = types.NamedUniTuple(types.int32, len(Geometry._fields), Geometry)
ARGUMENTS = types.void(types.int64, types.int64, types.int64, types.int64, GEOMETRY)
"""x, dy, shares, flags, geometry."""
REDUCE = types.void(types.int64, types.int64, types.int64, types.int64, types.int64, types.int64, GEOMETRY)
"""shares, dweight and its strides."""


@cuda.jit(device=True)
def part_of(tile, g):
    """A tile's group, block of filters, block of channels, block of rows, phase of columns and block of columns."""
    rest, column_block = divmod(tile, g.column_blocks)
    rest, phase = divmod(rest, g.column_phases)
    rest, row_block = divmod(rest, g.row_blocks)
    rest, channel_block = divmod(rest, g.channel_blocks)
    group, filter_block = divmod(rest, g.filter_blocks)
    return group, filter_block, channel_block, row_block, phase, column_block


@functools.cache
def kernel_of(precision: str, taps: int, rows_as_warpgroups: bool, gathered: bool = False) -> Any:
    """The kernel for tiles of `taps` taps in a row of the filter; gathered, they are one."""
    arithmetic = ARITHMETIC[precision]
    parts, columns = arithmetic.parts, taps * WIDTH  # As one wgmma of so many columns, for the registers' sake.
    channels = WIDTH if rows_as_warpgroups else WIDTH * WARPGROUPS
    halves, y_halves = channels // CHANNELS, FILTERS // CHANNELS
    split = splitter(arithmetic, LOWEST_FACTOR if arithmetic.lowest else 0.0)
    zero, promote = zeros(columns), promoter(columns)
    multiply, store = outer_products(arithmetic, taps, SLOTS), outer_storer(taps, WIDTH)
    fewer, more = ptx.registers(48, more=False), ptx.registers(128, more=True)
    loaders = GATHERERS if gathered else LOADERS  # 32 sums leave registers for more of them.
    y_bytes = parts * FILTERS * SLOTS * 2

    @cuda.jit(device=True)
    def place(slot, g):
        row = divided(slot, g.pitch_multiplier, g.pitch_shift)
        n = divided(row, g.rows_multiplier, g.rows_shift)
        return n, types.int32(row - n * g.rows), types.int32(slot - row * g.pitch)

    @cuda.jit(device=True)
    def load(x, dy, chunk, item, x_items, group, filter_, channel, a, b, shift, table, g):
        """Sixteen channels of x at a slot, or behind the last of them sixteen filters of dy; zeros outside."""
        count, address, step = types.int32(0), x, types.int32(0)
        if item < x_items:
            half = types.int32(types.uint32(item) // types.uint32(g.slots))
            n, row, column = place(types.int32(chunk * SLOTS + item - half * g.slots + shift), g)
            h, w = row * g.stride_h + a - g.top, column * g.stride_w + b - g.left
            channel += half * CHANNELS
            if gathered:
                of_group = group * (g.channels // (g.taps_h * g.taps_w))
                address = x + (n * g.x_n + of_group * g.x_c + h * g.x_h + w * g.x_w) * 4
                h = types.int32(h if n < g.images else NOWHERE)
                return gather_taps(address, h, types.int32(w), g.height, g.width, types.int32(table + channel * 8))
            if n < g.images and h >= 0 and h < g.height and w >= 0 and w < g.width:
                count, step = types.int32(g.channels - channel), types.int32(g.x_c * 4)
                address = x + (n * g.x_n + (group * g.channels + channel) * g.x_c + h * g.x_h + w * g.x_w) * 4
        else:
            half = types.int32(types.uint32(item - x_items) // types.uint32(SLOTS))
            at = item - x_items - half * SLOTS
            n, p, q = place(types.int32(chunk * SLOTS + at), g)
            filter_ += half * CHANNELS
            if n < g.images and p < g.p and q < g.q:
                count, step = types.int32(g.filters - filter_), types.int32(g.y_k * 4)
                address = dy + (n * g.y_n + (group * g.filters + filter_) * g.y_k + p * g.y_h + q * g.y_w) * 4
        return gather(address, step, count)

    @cuda.jit(device=True)
    def load_stages(x, dy, flags, shared, x_bytes, first, last, tile, g):
        """The loaders' part: the tile's slots of dy and those of x that they meet.

        Sixteens beyond the last channel or filter stay what they are: they make sums that nobody adds.
        """
        thread = types.int32(cuda.threadIdx.x - MULTIPLIERS)
        group, filter_block, channel_block, row_block, phase, column_block = part_of(tile, g)
        a = row_block * g.dilation_h * (0 if rows_as_warpgroups else 1)
        b, shift = phase * g.dilation_w, column_block * taps * g.tap_step
        filter_, channel = filter_block * FILTERS, channel_block * channels
        x_items = min(halves, (g.channels - channel + CHANNELS - 1) // CHANNELS) * g.slots
        items = x_items + min(y_halves, (g.filters - filter_ + CHANNELS - 1) // CHANNELS) * SLOTS
        table = types.int32(shared + HEADER + g.stages * (x_bytes + y_bytes))
        stage, parity, flag = types.int32(0), types.int32(1), types.int32(0)
        for chunk in range(first, last):
            full, x_stage = shared + stage * 8, shared + HEADER + stage * (x_bytes + y_bytes)
            is_free = False
            for item in range(thread, items, loaders):
                values = load(x, dy, chunk, item, x_items, group, filter_, channel, a, b, shift, table, g)
                if not is_free:
                    ptx.barrier_wait(full + 64, parity)
                    is_free = True
                if item < x_items:
                    half = types.int32(types.uint32(item) // types.uint32(g.slots))
                    at = x_stage + (half * g.slots + item) * 16
                    part_step, group_step = types.int32(channels * 2 * g.slots), types.int32(g.slots * 16)
                else:
                    half = types.int32(types.uint32(item - x_items) // types.uint32(SLOTS))
                    at = x_stage + x_bytes + (half * SLOTS + item - x_items) * 16
                    part_step, group_step = types.int32(FILTERS * 2 * SLOTS), types.int32(SLOTS * 16)
                flag |= split(values, at, part_step, group_step)
            if not is_free:  # A thread without an item is not to run ahead.
                ptx.barrier_wait(full + 64, parity)
            ptx.publish_shared()
            ptx.barrier_arrive(full)
            stage += types.int32(1)
            if stage == g.stages:
                stage, parity = types.int32(0), types.int32(parity ^ 1)
        if flag != 0:
            ptx.store_global_word(flags + types.int64(tile) * 4, 1)

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
