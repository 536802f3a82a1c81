"""The weight gradient of wide layers on tensor cores: both operands lie split in slots (laid_out.py).

For each tap it is the matrix product of dy with x, some slots away, summed over slots. A tile is 64 filters by 128
channels for three taps of a row, one a warpgroup; or 128 filters for a single tap, 64 a warpgroup. A last warp has the
copy engine bring stages of slots, channels across and slots down, which tensor cores read transposed. The products of
every stage are promoted. Where whole rows of slots are padding, as in small images, dy is laid out without them: a
stage of x is then brought from two images, as many rows apart.

The stages of all tiles, one tile after the other, are dealt out evenly: each block of threads takes a *span* of them,
which may end in the middle of one tile and begin in that of another. So a tile is summed in shares by one block or
more, and wide_shares.py adds them in rising order.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from .. import ptx
from ..ptx import device_function, emit, unpacked
from .arithmetic import ARITHMETIC, Arithmetic
from .laid_out import BAND
from .slots import HEADER, quotient_and_rest
from .wgmma import accumulators, finisher, promoter, zeros

FILTERS, CHANNELS_OF_TILE = BAND, 2 * BAND
"""Filters of a warpgroup; channels of a tile."""
SLOT, EIGHT_SLOTS = 8, 64
"""A slot of a band, and eight of them, in units of 16 bytes."""
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
    x_image: int  # slots from an image of x to the next
    y_image: int  # as many, or fewer, of dy
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
    tiles: int
    spans: int
    span: int  # stages of a span
    longer: int  # spans, the first ones, that have a stage more
    stages: int


GEOMETRY = types.NamedUniTuple(types.int32, len(Geometry._fields), Geometry)
ARGUMENTS = types.void(types.int64, types.int64, types.int64, GEOMETRY)
"""x and dy laid out, shares, geometry."""


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


@cuda.jit(device=True)
def span_of(block, g):
    """A block's stages of all tiles, from the first on and before the end."""
    first = types.int32(block * g.span + min(block, g.longer))
    return first, types.int32(first + g.span + (1 if block < g.longer else 0))


@cuda.jit(device=True)
def span_with(unit, g):
    """The block in whose span a stage lies."""
    behind = types.int32(unit - g.longer * (g.span + 1))  # The longer spans.
    if behind < 0:
        block, _ = quotient_and_rest(unit, g.span + 1)
    else:
        block, _ = quotient_and_rest(behind, g.span)
        block += g.longer
    return types.int32(block)


@cuda.jit(device=True)
def x_of(slot, g):
    """Where x lies that meets dy from a slot on, and how many slots of its stage are in that image, not in the next."""
    image, rest = quotient_and_rest(slot, g.y_image)
    return types.int32(image * g.x_image + rest), types.int32(min(g.slots, g.y_image - rest))


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
    def bring_tile(x, dy, shared, x_bytes, stage, parity, tile, first, last, g):
        """A tile's stages from `first` on, before `last`: of each, a lane starts the copy of one part of a band of x or
        of dy. Returns the stage of shared memory and the parity that come next."""
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
        for chunk in range(first, last):
            full, x_stage = shared + stage * 8, shared + HEADER + stage * (x_bytes + y_bytes)
            ptx.barrier_wait(full + 64, parity)
            if lane == 0:
                ptx.barrier_expect(full, expected)
            cuda.syncwarp()
            if lane < runs:
                at, (first_slot, of_image) = (
                    types.int32(x_stage + lane * run_bytes),
                    x_of(types.int32(chunk * slots), g),
                )
                its_x = x + types.int64(first_slot) * SLOT * 16
                ptx.bulk_copy(at, its_x, types.int32(of_image * SLOT * 16), full)
                if of_image < g.slots:
                    at += types.int32(of_image * SLOT * 16)
                    its_x += types.int64(of_image + g.x_image - g.y_image) * SLOT * 16
                    ptx.bulk_copy(at, its_x, types.int32((g.slots - of_image) * SLOT * 16), full)
            elif lane < runs + y_runs:
                at = types.int32(x_stage + x_bytes + (lane - runs) * y_run_bytes)
                ptx.bulk_copy(at, dy + types.int64(chunk) * y_run_bytes, y_run_bytes, full)
            stage += types.int32(1)
            if stage == g.stages:
                stage, parity = types.int32(0), types.int32(parity ^ 1)
        return stage, parity

    @cuda.jit(device=True)
    def bring_stages(x, dy, shared, x_bytes, g):
        """The copies of a span, tile by tile."""
        unit, end = span_of(types.int32(cuda.blockIdx.x), g)
        stage, parity = types.int32(0), types.int32(1)
        while unit < end:
            tile, first = quotient_and_rest(unit, g.chunks)
            last = types.int32(min(g.chunks, first + end - unit))
            stage, parity = bring_tile(x, dy, shared, x_bytes, stage, parity, tile, first, last, g)
            unit += types.int32(last - first)

    @cuda.jit(device=True)
    def multiply_stages(shares, shared, x_bytes, warpgroup, g):
        """A warpgroup's part of a span: each stage's products, promoted; a tile's sums go to this block's share."""
        unit, end = span_of(types.int32(cuda.blockIdx.x), g)
        stage, parity = types.int32(0), types.int32(0)
        sums, part = zero(), zero()
        # In turns: while one warpgroup's products run, another promotes.
        its_turn, next_turn = types.int32(1 + warpgroup), types.int32(1 + (warpgroup + 1) % warpgroups)
        if warpgroup == warpgroups - 1 and unit < end:
            ptx.turn_give(next_turn, TURN)
        lane, warp = cuda.threadIdx.x & 31, (cuda.threadIdx.x >> 5) & 3
        while unit < end:
            tile, first = quotient_and_rest(unit, g.chunks)
            last = types.int32(min(g.chunks, first + end - unit))
            _, shift = place_of(tile, g)
            its_x = types.int32((shift & 7) * SLOT + warpgroup * taps_apart * g.dilation_w)
            for chunk in range(first, last):
                ptx.barrier_wait(shared + stage * 8, parity)
                x_stage = shared + HEADER + stage * (x_bytes + y_bytes)
                a = types.int32(((x_stage + x_bytes) >> 4) + warpgroup * filters_apart)
                b = types.int32((x_stage >> 4) + its_x)
                unit += types.int32(1)
                ptx.turn_wait(its_turn, TURN)
                part = multiply(part, a, b, g.slots)
                if warpgroup < warpgroups - 1 or unit < end:
                    ptx.turn_give(next_turn, TURN)
                part = finish(part)
                if cuda.threadIdx.x & 31 == 0:
                    ptx.barrier_arrive(shared + 64 + stage * 8)
                sums = promote(sums, part, 1 if chunk == first else 0)
                stage += types.int32(1)
                if stage == g.stages:
                    stage, parity = types.int32(0), types.int32(parity ^ 1)
            share = cuda.blockIdx.x - span_with(types.int32(tile * g.chunks), g)
            line = (types.int64(share) * g.tiles + tile) * warpgroups + warpgroup
            line = line * FILTERS + warp * 16 + (lane >> 2)
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
        warpgroup = types.int32(cuda.shfl_sync(0xFFFFFFFF, cuda.threadIdx.x >> 7, 0))
        if warpgroup == warpgroups:
            fewer()
            if cuda.threadIdx.x < multipliers + 32:
                bring_stages(x, dy, shared, x_bytes, g)
        else:
            more()
            multiply_stages(shares, shared, x_bytes, warpgroup, g)

    return kernel
