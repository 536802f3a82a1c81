"""The weight gradient of wide layers on tensor cores: both operands lie split in slots (laid_out.py).

For each tap it is the matrix product of dy with x, some slots away, summed over slots. A tile is 64 filters by 128
channels for three taps of a row, one a warpgroup; or 128 filters for a single tap, 64 a warpgroup. A last warp has the
copy engine bring a stage of slots: channels across, slots down, read transposed by the tensor cores. Each block of
threads sums a share of the slots, each stage promoted, and `reduce` adds the shares in rising order.
"""

import functools
from typing import Any, NamedTuple

from llvmlite import ir
from numba import cuda
from numba.cuda import types

from .. import ptx
from ..ptx import F32, I32, I64, device_function, emit, unpacked
from .arithmetic import ARITHMETIC, Arithmetic
from .laid_out import BAND
from .slots import HEADER, quotient_and_rest
from .wgmma import accumulators, finisher, promoter, zeros

FILTERS, CHANNELS_OF_TILE = BAND, 2 * BAND
"""Filters of a warpgroup; channels of a tile."""
SLOT, EIGHT_SLOTS, REDUCERS = 8, 64, 288
"""A slot of a band, and eight of them, in units of 16 bytes; threads that add shares, a warp for each tap of 3x3."""
TURN = 256
"""Threads of the warpgroup that waits for its turn, and of the one that gives it."""


class Geometry(NamedTuple):
    """One weight gradient in numbers, all int32."""

    channels: int  # of a group
    filters: int  # of a group
    groups: int
    x_bands: int  # of 64 channels, in a group
    y_bands: int
    x_slots: int
    y_slots: int
    slots: int  # of x in a stage
    pitch: int
    stride_h: int
    stride_w: int
    dilation_h: int
    dilation_w: int
    phase_columns: int
    filter_blocks: int
    channel_blocks: int
    rows: int  # of the filter
    row: int  # taps in a row of the filter
    row_blocks: int  # of taps in a row, one or three together
    chunks: int  # stages of all slots
    shares: int
    stages: int


GEOMETRY = types.NamedUniTuple(types.int32, len(Geometry._fields), Geometry)
ARGUMENTS = types.void(types.int64, types.int64, types.int64, GEOMETRY)
"""x and dy laid out, shares, geometry."""
REDUCE = types.void(types.int64, types.int64, types.int32, GEOMETRY)
"""shares, dweight, which lies in one piece, filters of a block of threads, geometry."""


def warpgroups_of(taps: int) -> int:
    """That multiply."""
    return 3 if taps == 3 else 2


def filters_of(taps: int) -> int:
    """Of a tile."""
    return FILTERS if taps == 3 else 2 * FILTERS


def slots_of(taps: int) -> int:
    """Of dy, in a stage."""
    return 48 if taps == 3 else 32


def stage_bytes(arithmetic: Arithmetic, taps: int, slots: int) -> tuple[int, int]:
    """Of x and of dy."""
    return arithmetic.parts * 2 * CHANNELS_OF_TILE * slots, arithmetic.parts * 2 * filters_of(taps) * slots_of(taps)


def products_of_slots(arithmetic: Arithmetic, count_of_slots: int) -> Any:
    """`multiply(sums, a, b, slots)`: starts the products of one stage, for 64 filters and 128 channels.

    a and b are where dy and x lie in shared memory, in units of 16 bytes; `slots` those of x that lie in the stage. The
    sums start anew, and nobody may touch them before `finish`.
    """
    count, parts, swizzled = CHANNELS_OF_TILE // 2, arithmetic.parts, 1 << 30
    sums = "{" + ",".join(f"${i}" for i in range(count)) + "}"
    a, b, slots = (f"${count + i}" for i in range(3))
    name = f"wgmma.mma_async.sync.aligned.m64n{CHANNELS_OF_TILE}k16.f32.{arithmetic.kind}.{arithmetic.kind}"
    text = [
        "{ .reg .pred added; .reg .b32 la, lb, step, band, high; .reg .b64 da, db;",
        f"mov.b32 high, {EIGHT_SLOTS | swizzled}; mul.lo.s32 step, {slots}, {SLOT};",
        f"mul.lo.s32 band, step, {parts << 16}; add.s32 band, band, {b};",
        "setp.ne.s32 added, 0, 0; wgmma.fence.sync.aligned;",
    ]
    for part_a, part_b in arithmetic.products:
        text.append(f"add.s32 la, {a}, {part_a * count_of_slots * SLOT}; mad.lo.s32 lb, step, {part_b}, band;")
        for _ in range(0, count_of_slots, 16):
            text.append("mov.b64 da, {la, high}; mov.b64 db, {lb, high};")
            text.append(f"{name} {sums}, da, db, added, 1, 1, 1, 1; setp.eq.s32 added, 0, 0;")
            text.append(f"add.s32 la, la, {2 * EIGHT_SLOTS}; add.s32 lb, lb, {2 * EIGHT_SLOTS};")
    text.append("wgmma.commit_group.sync.aligned; }")

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        values = unpacked(builder, arguments[0], count)
        return emit(builder, "\n".join(text), "f" * count, "rrr", arguments[1:], values)

    kind = accumulators(CHANNELS_OF_TILE)
    return device_function(kind(kind, *[types.int32] * 3), generate)


def _store(builder: Any, arguments: list[Any]) -> None:
    count = CHANNELS_OF_TILE // 2
    stores = []
    for i in range(0, count, 2):
        pair, below = i // 4, i // 2 % 2
        stores.append(
            f"st.global.v2.f32 [${count}+{4 * (8 * below * CHANNELS_OF_TILE + 8 * pair)}], {{${i}, ${i + 1}}};"
        )
    emit(builder, "\n".join(stores), "", "f" * count + "l", [*unpacked(builder, arguments[0], count), arguments[1]])


store = device_function(types.void(accumulators(CHANNELS_OF_TILE), types.int64), _store)
"""`store(sums, corner)`: a thread's share of 64 x 128 sums to device memory."""


@cuda.jit(device=True)
def part_of(tile, g):
    """A tile's group, block of filters, block of channels, row of the filter and block of its taps."""
    rest, row_block = quotient_and_rest(tile, g.row_blocks)
    rest, r = quotient_and_rest(rest, g.rows)
    rest, channel_block = quotient_and_rest(rest, g.channel_blocks)
    group, filter_block = quotient_and_rest(rest, g.filter_blocks)
    return group, filter_block, channel_block, r, row_block


@functools.cache
def kernel_of(precision: str, taps: int) -> Any:
    """The kernel for tiles of one tap, or of three."""
    arithmetic, warpgroups, filters, slots = (
        ARITHMETIC[precision],
        warpgroups_of(taps),
        filters_of(taps),
        slots_of(taps),
    )
    parts, multipliers, bands, y_bands = arithmetic.parts, 128 * warpgroups, CHANNELS_OF_TILE // BAND, filters // BAND
    y_bytes, y_run_bytes = stage_bytes(arithmetic, taps, 0)[1], slots * SLOT * 16
    zero, promote, finish = zeros(CHANNELS_OF_TILE), promoter(CHANNELS_OF_TILE), finisher(CHANNELS_OF_TILE)
    multiply = products_of_slots(arithmetic, slots)
    fewer, more = ptx.registers(40, more=False), ptx.registers(152 if taps == 3 else 232, more=True)
    taps_apart, filters_apart = (SLOT, 0) if taps == 3 else (0, parts * slots * SLOT)

    @cuda.jit(device=True)
    def place_of(tile, g):
        """The phase of x that a tile reads, and how many slots further on than dy."""
        _, _, _, r, row_block = part_of(tile, g)
        down, across = r * g.dilation_h, row_block * taps * g.dilation_w
        phase = down % g.stride_h * g.phase_columns + across % g.stride_w
        return types.int32(phase), types.int32(down // g.stride_h * g.pitch + across // g.stride_w)

    @cuda.jit(device=True)
    def bring_stages(x, dy, shared, x_bytes, first, last, tile, g):
        """One warp's part: each lane starts the copy of a part of a band."""
        lane = types.int32(cuda.threadIdx.x & 31)
        group, filter_block, channel_block, _, _ = part_of(tile, g)
        phase, shift = place_of(tile, g)
        band, y_band = channel_block * bands, filter_block * y_bands
        runs = types.int32(min(bands, g.x_bands - band) * parts)
        y_runs = types.int32(min(y_bands, g.y_bands - y_band) * parts)
        run_bytes = types.int32(g.slots * SLOT * 16)
        # Eight slots at a time keep their places in the pattern of units: the copy starts at the first of eight.
        x_line = types.int64(phase * g.groups + group) * g.x_bands + band
        x += ((x_line * parts + lane) * g.x_slots + (shift & -8)) * SLOT * 16
        dy += ((types.int64(group) * g.y_bands + y_band) * parts + (lane - runs)) * g.y_slots * SLOT * 16
        expected = types.int32(runs * run_bytes + y_runs * y_run_bytes)
        stage, parity = types.int32(0), types.int32(1)
        for chunk in range(first, last):
            full, x_stage = shared + stage * 8, shared + HEADER + stage * (x_bytes + y_bytes)
            ptx.barrier_wait(full + 64, parity)
            if lane == 0:
                ptx.barrier_expect(full, expected)
            cuda.syncwarp()
            offset = types.int64(chunk) * y_run_bytes
            if lane < runs:
                ptx.bulk_copy(types.int32(x_stage + lane * run_bytes), x + offset, run_bytes, full)
            elif lane < runs + y_runs:
                at = types.int32(x_stage + x_bytes + (lane - runs) * y_run_bytes)
                ptx.bulk_copy(at, dy + offset, y_run_bytes, full)
            stage += types.int32(1)
            if stage == g.stages:
                stage, parity = types.int32(0), types.int32(parity ^ 1)

    @cuda.jit(device=True)
    def multiply_stages(shares, shared, x_bytes, first, last, tile, warpgroup, g):
        """A warpgroup's part: a stage's products, promoted; the sums go to this block's share."""
        _, shift = place_of(tile, g)
        its_x = types.int32((shift & 7) * SLOT + warpgroup * taps_apart * g.dilation_w)
        stage, parity = types.int32(0), types.int32(0)
        sums, part = zero(), zero()
        # In turns: while one warpgroup's products run, another promotes.
        its_turn, next_turn = types.int32(1 + warpgroup), types.int32(1 + (warpgroup + 1) % warpgroups)
        if warpgroup == warpgroups - 1 and first < last:
            ptx.turn_give(next_turn, TURN)
        for chunk in range(first, last):
            ptx.barrier_wait(shared + stage * 8, parity)
            x_stage = shared + HEADER + stage * (x_bytes + y_bytes)
            a, b = (
                types.int32(((x_stage + x_bytes) >> 4) + warpgroup * filters_apart),
                types.int32((x_stage >> 4) + its_x),
            )
            ptx.turn_wait(its_turn, TURN)
            part = multiply(part, a, b, g.slots)
            if warpgroup < warpgroups - 1 or chunk < last - 1:
                ptx.turn_give(next_turn, TURN)
            part = finish(part)
            if cuda.threadIdx.x & 31 == 0:
                ptx.barrier_arrive(shared + 64 + stage * 8)
            sums = promote(sums, part, 0)
            stage += types.int32(1)
            if stage == g.stages:
                stage, parity = types.int32(0), types.int32(parity ^ 1)
        lane, warp = cuda.threadIdx.x & 31, (cuda.threadIdx.x >> 5) & 3
        line = (types.int64(cuda.blockIdx.x) * warpgroups + warpgroup) * FILTERS + warp * 16 + (lane >> 2)
        store(sums, shares + (line * CHANNELS_OF_TILE + 2 * (lane & 3)) * 4)

    def kernel(x, dy, shares, g):
        shared = ptx.dynamic_shared()
        x_bytes = types.int32(parts * 2 * CHANNELS_OF_TILE * g.slots)
        if cuda.threadIdx.x == 0:
            for stage in range(g.stages):
                ptx.barrier_init(shared + stage * 8, 1)
                ptx.barrier_init(shared + 64 + stage * 8, multipliers // 32)
            ptx.barrier_publish()
        cuda.syncthreads()
        tiles = cuda.gridDim.x // g.shares
        share, tile = cuda.blockIdx.x // tiles, cuda.blockIdx.x % tiles
        first = types.int32(types.int64(g.chunks) * share // g.shares)
        last = types.int32(types.int64(g.chunks) * (share + 1) // g.shares)
        warpgroup = types.int32(cuda.shfl_sync(0xFFFFFFFF, cuda.threadIdx.x >> 7, 0))
        if warpgroup == warpgroups:
            fewer()
            if cuda.threadIdx.x < multipliers + 32:
                bring_stages(x, dy, shared, x_bytes, first, last, tile, g)
        else:
            more()
            multiply_stages(shares, shared, x_bytes, first, last, tile, warpgroup, g)

    return kernel


def _add_shares(builder: Any, arguments: list[Any]) -> list[Any]:
    total, (address, step, count) = unpacked(builder, arguments[0], 4), arguments[1:]
    text = ["{ .reg .pred p; .reg .b64 at;"]
    for i in range(4):
        text.append(f"setp.gt.s32 p, $18, {i}; mad.wide.s32 at, $17, {i}, $16;")
        text.append("".join(f"mov.b32 ${4 * i + j}, 0;" for j in range(4)))
        text.append(f"@p ld.global.nc.v4.f32 {{${4 * i}, ${4 * i + 1}, ${4 * i + 2}, ${4 * i + 3}}}, [at];")
    constraints = ",".join(["=&f"] * 16 + ["l", "r", "r"])
    function = ir.FunctionType(ir.LiteralStructType([F32] * 16), [I64, I32, I32])
    assembly = ir.InlineAsm(function, "\n".join([*text, "}"]), constraints, side_effect=True)
    values = unpacked(builder, builder.call(assembly, [address, step, count]), 16)
    for i, value in enumerate(values):
        total[i % 4] = builder.fadd(total[i % 4], value)
    return total


FOUR = types.UniTuple(types.float32, 4)
add_shares = device_function(FOUR(FOUR, types.int64, types.int32, types.int32), _add_shares)
"""`add_shares(total, address, step, count)`: total and four entries side by side of up to four shares, one by one."""
none = device_function(FOUR(), lambda builder, _: [ir.Constant(F32, 0.0)] * 4)


@functools.cache
def reduce_of(taps: int) -> Any:
    """Adds the shares of each weight in rising order, four on their way at a time.

    A block of threads adds those of 128 channels and all taps of `together` filters: a warp reads the channels of a
    tap side by side. By way of shared memory they are written as dweight lies, taps innermost.
    """
    warpgroups, filters = warpgroups_of(taps), filters_of(taps)

    def kernel(shares, dweight, together, g):
        shared, thread = ptx.dynamic_shared(), types.int32(cuda.threadIdx.x)
        lane, warp, of_filter = thread % 32, thread // 32, types.int32(g.rows * g.row)
        first_k, channel_block = quotient_and_rest(types.int32(cuda.blockIdx.x), g.channel_blocks)
        first_k, first_c = types.int32(first_k * together), types.int32(channel_block * CHANNELS_OF_TILE)
        tiles = g.groups * g.filter_blocks * g.channel_blocks * g.rows * g.row_blocks
        step = types.int32(tiles * warpgroups * (FILTERS * CHANNELS_OF_TILE * 4))
        together = types.int32(min(together, g.groups * g.filters - first_k))
        for i in range(warp, together * of_filter, REDUCERS // 32):
            k, tap = quotient_and_rest(types.int32(i), of_filter)
            r, s = quotient_and_rest(tap, g.row)
            group, filter_ = quotient_and_rest(types.int32(first_k + k), g.filters)
            row_block, warpgroup = (s // 3, s % 3) if taps == 3 else (s, filter_ % filters // FILTERS)
            tile = (group * g.filter_blocks + filter_ // filters) * g.channel_blocks + channel_block
            entry = ((tile * g.rows + r) * g.row_blocks + row_block) * warpgroups + warpgroup
            entry = types.int64(entry * FILTERS + filter_ % FILTERS)
            at, total = shares + (entry * CHANNELS_OF_TILE + lane * 4) * 4, none()
            for left in range(g.shares, 0, -4):
                total = add_shares(total, at, step, types.int32(left))
                at += types.int64(step) * 4
            at = shared + ((k * CHANNELS_OF_TILE + lane * 4) * of_filter + tap) * 4
            ptx.store_shared(types.int32(at), total[0])
            ptx.store_shared(types.int32(at + of_filter * 4), total[1])
            ptx.store_shared(types.int32(at + of_filter * 8), total[2])
            ptx.store_shared(types.int32(at + of_filter * 12), total[3])
        cuda.syncthreads()
        size, row = types.int32(min(CHANNELS_OF_TILE, g.channels - first_c) * of_filter), CHANNELS_OF_TILE * of_filter
        for k in range(together):
            at = dweight + (types.int64(first_k + k) * g.channels + first_c) * of_filter * 4
            for i in range(thread, size, REDUCERS):
                ptx.store_global(at + i * 4, ptx.load_shared(types.int32(shared + (k * row + i) * 4)))

    return kernel
