"""The weight gradient of wide layers: its plan, what is launched, and what is computed again."""

import functools
import math
from dataclasses import dataclass

from numba import cuda
from numba.cuda import types

from kernelproof.spec.window import Window

from ..conv_elements import weight_gradient_of
from ..host.arrays import DeviceArray, image_of, steps
from ..host.driver import Kernel, fill_with_zeros, multiprocessors
from ..launch import THREADS, position
from . import laid_out, wide_gradient, wide_shares
from .arithmetic import ARITHMETIC, LOWEST_FACTOR
from .laid_out import BAND, UNIT, Layout
from .problem import are_few, division, pitch_of
from .rungs import HOPPER
from .slots import HEADER
from .wide_gradient import CHANNELS_OF_TILE, FILTERS, Geometry
from .wide_shares import LANES

LEAST_CHANNELS, LEAST_OF_STRIDED, MOST_TAPS = 96, 64, 96
"""Of a group, and as many filters: with fewer, much of a tile is empty. Strides make weight_gradient.py slower yet. As
many taps as the shared memory in which shares are added holds."""


MANY_WARPS, MOST_WARPS = 2048, 9
"""That add shares: of all blocks, so many that an H200 is full; of a block, one for each tap of 3x3."""
ALL_SLOTS = 2**30
"""More than any dy has: they are taken as those of one image."""


@dataclass(frozen=True)
class Plan:
    """The compiled kernel that serves a gradient, and its numbers."""

    arithmetic: str
    taps: int
    geometry: Geometry
    x: Layout
    dy: Layout
    shared: int

    @property
    def entries(self) -> int:
        """Of a share of every tile."""
        return self.geometry.tiles * wide_gradient.warpgroups_of(self.taps) * FILTERS * CHANNELS_OF_TILE

    @property
    def tiles_of_filter(self) -> int:
        """Of a block of its channels."""
        return self.geometry.rows * self.geometry.row_blocks

    @property
    def wide(self) -> int:
        """Columns of 32 channels whose shares a warp adds: all of a tile where that leaves enough warps."""
        g = self.geometry
        return 4 if g.groups * g.filters * g.channel_blocks * self.tiles_of_filter >= MANY_WARPS else 1

    @property
    def shares(self) -> int:
        """That a tile may have: the first span has one of its stages or more, each but the last of the others a whole
        span's."""
        g = self.geometry
        return (g.chunks - 2) // g.span + 2

    @property
    def flags(self) -> int:
        """Words of which each tells of eight channels or filters."""
        return self.x.flags + self.dy.flags

    @property
    def offsets(self) -> tuple[int, int, int, int]:
        """In bytes, where x and dy are laid out and the shares lie, behind the flags; the end."""
        parts = ARITHMETIC[self.arithmetic].parts
        x = -(-4 * self.flags // 128) * 128
        dy = x + self.x.size(parts)
        shares = dy + self.dy.size(parts)
        return x, dy, shares, shares + 4 * self.entries * self.shares


def plan(
    dy: DeviceArray, x: DeviceArray, dweight: DeviceArray, window: Window, groups: int, arithmetic: str, blocks: int
) -> Plan | None:
    """How this kernel computes a gradient on so many multiprocessors; None if it does not."""
    (_, channels, rows_of_filter, row), filters = dweight.shape, dweight.shape[0] // groups
    (stride_h, stride_w), (dilation_h, dilation_w) = window.stride, window.dilation
    least = LEAST_OF_STRIDED if max(window.stride) > 1 and row > 1 else LEAST_CHANNELS
    if min(channels, filters) < least or rows_of_filter * row > MOST_TAPS:
        return None
    taps = 3 if stride_w == 1 and row >= 3 else 1
    row_blocks = -(-row // taps)
    down, across = (rows_of_filter - 1) * dilation_h // stride_h, (row_blocks * taps - 1) * dilation_w // stride_w
    phase_rows, phase_columns = (stride_h if rows_of_filter > 1 else 1), (stride_w if row > 1 else 1)
    rows = pitch_of(x.shape[2], dy.shape[2], stride_h, window.padding[0][0], 1 + down, phase_rows - 1)
    pitch = pitch_of(
        x.shape[3], dy.shape[3], stride_w, window.padding[1][0], 1 + (row - 1) * dilation_w // stride_w,
        phase_columns - 1,
    )  # fmt: skip
    together = wide_gradient.slots_of(taps)
    (images, _, p, q), even_pitch = dy.shape, -(-pitch // 8) * 8
    y_rows, x_image, y_image = rows, 0, ALL_SLOTS
    if together <= p * even_pitch < rows * pitch:
        y_rows, pitch, x_image, y_image = p, even_pitch, rows * even_pitch, p * even_pitch
    chunks = -(-((images * y_rows - y_rows + p - 1) * pitch + q) // together)
    # A copy starts at one of eight slots, up to seven before the first that is read.
    before = 0 if down * pitch + across == 0 else 7
    slots = -(-(together + (taps - 1) * dilation_w + before) // 8) * 8
    x_slots, y_slots = (down * pitch + across) // 8 * 8 + slots, chunks * together
    x_slots += images * x_image if x_image else y_slots - together
    x_bytes, y_bytes = wide_gradient.stage_bytes(ARITHMETIC[arithmetic], taps, slots)
    stages = min(4, (HOPPER.shared_memory - HEADER) // (x_bytes + y_bytes))
    x_bands, y_bands = -(-channels // BAND), -(-filters // BAND)
    pixels = dy.shape[0] * max(math.prod(dy.shape[2:]), math.prod(x.shape[2:]))
    if stages < 2 or max(map(abs, (*steps(x), *steps(dy)))) >= 2**29 or not are_few(x_slots, pixels):
        return None
    filter_blocks, channel_blocks = -(-filters // wide_gradient.filters_of(taps)), -(-channels // CHANNELS_OF_TILE)
    tiles = groups * filter_blocks * channel_blocks * rows_of_filter * row_blocks
    units = tiles * chunks
    spans = min(blocks, units)
    geometry = Geometry(
        channels, filters, groups, x_bands, y_bands, x_slots, y_slots, slots, pitch, x_image, y_image,
        *window.stride, *window.dilation, phase_columns, filter_blocks, channel_blocks, rows_of_filter, row, row_blocks,
        chunks, tiles, spans, *divmod(units, spans), stages,
    )  # fmt: skip
    of_pitch = (pitch, *division(pitch))
    x_layout = Layout(
        x.shape[0], channels, groups, *image_of(x), *steps(x), *window.stride, window.padding[0][0],
        window.padding[1][0], rows, *division(rows), *of_pitch, phase_rows * phase_columns, phase_columns, x_bands,
        x_slots, 0, 0, 0,
    )  # fmt: skip
    y_layout = Layout(
        dy.shape[0], filters, groups, *image_of(dy), *steps(dy), 1, 1, 0, 0, y_rows, *division(y_rows), *of_pitch,
        1, 1, y_bands, y_slots, 0, 0, 0,
    )  # fmt: skip
    it = Plan(arithmetic, taps, geometry, x_layout, y_layout, HEADER + stages * (x_bytes + y_bytes))
    if units >= 2**30 or it.entries >= 2**29:
        return None
    if max(x_layout.blocks[1] + y_layout.blocks[1], dweight.shape[0]) >= 2**16:  # A grid's second axis.
        return None
    return it


@functools.cache
def _kernels(arithmetic: str, taps: int, wide: int, warps: int) -> tuple[Kernel, Kernel, Kernel]:
    reducing, threads = (taps, wide, warps), 128 * (wide_gradient.warpgroups_of(taps) + 1)
    return (
        laid_out.kernel_of_two(arithmetic, LOWEST_FACTOR if ARITHMETIC[arithmetic].lowest else 0.0),
        Kernel(
            f"wide_gradient {arithmetic, taps}", wide_gradient.kernel_of(arithmetic, taps), wide_gradient.ARGUMENTS,
            threads, "a", HOPPER.shared_memory,
        ),
        Kernel(
            f"wide_gradient reduce {reducing}", wide_shares.reduce_of(*reducing), wide_shares.REDUCE, LANES * warps,
        ),
    )  # fmt: skip


def _again(dy, x, dweight, stride, padding, dilation, groups, flags, x_units, y_units):
    """The plain weight gradient of every channel and filter that is flagged."""
    partial = cuda.shared.array(THREADS, types.float32)
    any_flag = 0
    for i in range(cuda.threadIdx.x, flags.size, THREADS):
        any_flag |= flags[i]
    if cuda.syncthreads_or(any_flag) == 0:
        return
    filters = dweight.shape[0] // groups
    for i in range(cuda.blockIdx.x, dweight.size, cuda.gridDim.x):
        k, c, r, s = position(i, dweight.shape)
        group, filter_ = divmod(k, filters)
        flag = flags[group * x_units + c // UNIT]
        flag |= flags[groups * x_units + group * y_units + filter_ // UNIT]
        if flag != 0:
            weight_gradient_of(dy, x, dweight, k, c, r, s, stride, padding, dilation, groups, partial)


_TENSOR, _PAIR = types.Array(types.float32, 4, "A"), types.UniTuple(types.int64, 2)
again = Kernel(
    "wide_gradient_again", _again,
    types.void(
        _TENSOR, _TENSOR, _TENSOR, _PAIR, types.UniTuple(_PAIR, 2), _PAIR, types.int64,
        types.Array(types.int32, 1, "A"), types.int64, types.int64,
    ),
    THREADS,
)  # fmt: skip


def launch(dy: DeviceArray, x: DeviceArray, dweight: DeviceArray, window: Window, groups: int, it: Plan) -> None:
    """Lay both operands out, multiply, add the shares."""
    laying, multiplying, reducing = _kernels(it.arithmetic, it.taps, it.wide, min(it.tiles_of_filter, MOST_WARPS))
    stream, (x_at, dy_at, shares_at, end) = x.place.stream, it.offsets
    workspace = x.place.empty((-(-end // 4),), "int32")
    flags, first = DeviceArray(workspace.owner[: it.flags], workspace.dtype, workspace.place), workspace.address
    fill_with_zeros(flags)
    (across, lines), (across_dy, lines_dy) = it.x.blocks, it.dy.blocks
    laying(
        (max(across, across_dy), lines + lines_dy), stream, x.address, first + x_at, first, dy.address, first + dy_at,
        first + 4 * it.x.flags, lines, it.x, it.dy,
    )  # fmt: skip
    multiplying(
        it.geometry.spans, stream, first + x_at, first + dy_at, first + shares_at, it.geometry,
        shared=it.shared,
    )  # fmt: skip
    (filters, channels, *taps), together = dweight.shape, LANES * it.wide
    reducing(
        (-(-channels // together), filters), stream, first + shares_at, dweight.address, it.geometry,
        shared=4 * together * math.prod(taps),
    )  # fmt: skip
    again(
        2 * multiprocessors(x.place.device), stream, dy, x, dweight, window.stride, window.padding, window.dilation,
        groups, flags, it.x.flags // groups, it.dy.flags // groups,
    )  # fmt: skip
