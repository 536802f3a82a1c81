"""The weight gradient on tensor cores: its plan, what is launched, and what is computed again.

Groups with few channels go to direct.py, those with many to wide_dweight.py; what neither serves is plain.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any

from numba import cuda
from numba.cuda import types

from ..conv_elements import weight_gradient_of
from ..cuda_cores import launch_direct
from ..host.arrays import DeviceArray
from ..host.driver import Kernel, fill_with_zeros, multiprocessors
from ..launch import THREADS
from . import warp_gradient, weight_gradient, wide_dweight
from .arithmetic import ARITHMETIC
from .launch_conv import rung, serves, steps
from .plan import division, pitch_of
from .rungs import HOPPER, Rung
from .weight_gradient import FILTERS, SLOTS, WARPGROUPS, WIDTH, Geometry

ARITHMETIC_OF = {"strict": "strict", "fast": "strict", "tf32": "bf16x4", "fp16": "bf16x4", "bf16": "bf16"}
"""Sums run across images, so no scale serves a whole sum, and TF32 has no transposed operands."""

LEAST_PIXELS = 64
"""Tensor cores cut off where float32 rounds: a sum of fewer terms might be less exact than in float32."""


@dataclass(frozen=True)
class Plan:
    """The compiled kernel that serves a gradient, and its numbers."""

    arithmetic: str
    taps: int
    rows_as_warpgroups: bool
    rung: Rung
    geometry: Geometry
    tiles: int
    shared: int

    @property
    def workspace(self) -> int:
        """Bytes beside the arguments and the result: every share of every tile, a word for each tile."""
        return 4 * self.tiles * (self.geometry.shares * WARPGROUPS * self.taps * FILTERS * WIDTH + 1) + 128


def plan(
    dy: DeviceArray,
    x: DeviceArray,
    dweight: DeviceArray,
    window: Any,
    groups: int,
    precision: str,
    rung: Rung = HOPPER,
) -> Plan | None:
    """How the tensor cores compute this gradient; None if they do not."""
    together = warp_gradient.SLOTS if rung.by_warps else SLOTS
    (_, channels, column, row), filters = dweight.shape, dweight.shape[0] // groups
    apart = window.stride[1] > 1 and window.dilation[1] > 1  # Then every tap is a phase of its own.
    phases = row if apart else min(window.stride[1], row)
    across = -(-row // phases)
    column_blocks = -(-across // 3)
    whole = column == 3 and across == 3 and window.stride == (1, 1)
    for rows_as_warpgroups in (True, False) if whole else (False,):
        taps = -(-across // column_blocks)
        tap_step = window.dilation[1] if window.stride[1] == 1 else 1
        down = 1 + 2 * window.dilation[0] if rows_as_warpgroups else 1
        farthest = 0 if rows_as_warpgroups else (column - 1) * window.dilation[0]
        rows = pitch_of(
            x.shape[2], dy.shape[2], window.stride[0], window.padding[0][0], down, farthest
        )  # fmt: skip
        pitch = pitch_of(
            x.shape[3], dy.shape[3], window.stride[1], window.padding[1][0],
            1 + (column_blocks * taps - 1) * tap_step, (phases - 1) * window.dilation[1],
        )  # fmt: skip
        warpgroup_step = window.dilation[0] * pitch if rows_as_warpgroups else 0
        slots = -(-(together + 2 * warpgroup_step + (taps - 1) * tap_step) // 8) * 8
        width = WIDTH if rows_as_warpgroups else WIDTH * WARPGROUPS
        parts = ARITHMETIC[ARITHMETIC_OF[precision]].parts
        stage = parts * 2 * (width * slots + FILTERS * together)
        beside = warp_gradient.raw_bytes(width, slots) if rung.by_warps else weight_gradient.HEADER
        stages = min(2 if rung.by_warps else 4, (rung.shared_memory - beside) // stage)
        if stages >= 2:
            break
    else:
        return None
    filter_blocks, channel_blocks = -(-filters // FILTERS), -(-channels // width)
    row_blocks = 1 if rows_as_warpgroups else column
    tiles = groups * filter_blocks * channel_blocks * row_blocks * phases * column_blocks
    last = ((dy.shape[0] - 1) * rows + dy.shape[2] - 1) * pitch + dy.shape[3]
    chunks = -(-last // together)
    work = dweight.size * dy.shape[0] * dy.shape[2] * dy.shape[3]
    padded = tiles * chunks * together * FILTERS * WIDTH * WARPGROUPS * taps
    if padded > max(64 * work, 2**27) or last + slots >= 2**31:
        return None
    strides = (*steps(x), *steps(dy))
    if max(map(abs, strides)) >= 2**29:
        return None
    geometry = Geometry(
        x.shape[0], channels, filters, groups, *x.shape[2:], *dy.shape[2:], *strides, *window.stride,
        window.padding[0][0], window.padding[1][0], *window.dilation, rows, *division(rows), pitch,
        *division(pitch), slots, tap_step, warpgroup_step, filter_blocks, channel_blocks, row_blocks, phases,
        column_blocks, row, column, chunks, _shares(tiles, chunks, multiprocessors(x.place.device)), stages,
    )  # fmt: skip
    return Plan(ARITHMETIC_OF[precision], taps, rows_as_warpgroups, rung, geometry, tiles, beside + stages * stage)


def _shares(tiles: int, chunks: int, blocks: int) -> int:
    """Into how many shares to cut the slots, so that the multiprocessors' turns are short and full."""
    most = max(1, min(chunks, 2 * blocks // tiles))
    return min(range(1, most + 1), key=lambda shares: -(-tiles * shares // blocks) * (-(-chunks // shares) + 4))


@functools.cache
def _kernels(arithmetic: str, taps: int, rows_as_warpgroups: bool, rung: Rung = HOPPER) -> tuple[Kernel, Kernel]:
    key, multiplying = (arithmetic, taps, rows_as_warpgroups), weight_gradient
    threads, features = weight_gradient.THREADS, "a"
    if rung.by_warps:
        multiplying, threads, features = warp_gradient, weight_gradient.MULTIPLIERS, ""
    return (
        Kernel(
            f"{multiplying.__name__.rpartition('.')[2]} {key}", multiplying.kernel_of(*key), weight_gradient.ARGUMENTS,
            threads, features, rung.shared_memory,
        ),
        Kernel(
            f"weight_gradient reduce {key[1:]}", weight_gradient.reduce_of(*key[1:]), weight_gradient.REDUCE,
            weight_gradient.REDUCERS,
        ),
    )  # fmt: skip


def _again(dy, x, dweight, stride, padding, dilation, groups, flags, g, width):
    """The plain weight gradient of every block of filters and channels of which a tile is flagged."""
    partial = cuda.shared.array(THREADS, types.float32)
    flagged = 0
    for i in range(cuda.threadIdx.x, flags.size, cuda.blockDim.x):
        flagged |= flags[i]
    if cuda.syncthreads_or(flagged) == 0:
        return
    tiles, taps = g.row_blocks * g.column_phases * g.column_blocks, g.column * g.row
    for pair in range(flags.size // tiles):
        flagged = 0
        for tile in range(pair * tiles, (pair + 1) * tiles):
            flagged |= flags[tile]
        rest, channel_block = divmod(pair, g.channel_blocks)
        group, filter_block = divmod(rest, g.filter_blocks)
        for i in range(cuda.blockIdx.x, FILTERS * width * taps if flagged != 0 else 0, cuda.gridDim.x):
            rest, tap = divmod(i, taps)
            k, c = divmod(rest, width)
            k, c = filter_block * FILTERS + k, channel_block * width + c
            if k < g.filters and c < g.channels:
                k += group * g.filters
                r, s = divmod(tap, g.row)
                weight_gradient_of(dy, x, dweight, k, c, r, s, stride, padding, dilation, groups, partial)


_TENSOR, _PAIR = types.Array(types.float32, 4, "A"), types.UniTuple(types.int64, 2)
again = Kernel(
    "weight_gradient_again", _again,
    types.void(
        _TENSOR, _TENSOR, _TENSOR, _PAIR, types.UniTuple(_PAIR, 2), _PAIR, types.int64,
        types.Array(types.int32, 1, "A"), weight_gradient.GEOMETRY, types.int64,
    ),
    THREADS,
)  # fmt: skip


def conv2d_dweight(
    dy: DeviceArray, x: DeviceArray, dweight: DeviceArray, window: Any, groups: int, precision: str
) -> bool:
    """Compute dweight if the tensor cores serve this gradient; whether they do."""
    if serves(x) and launch_direct.serves_gradient(x, dy, dweight, groups):
        launch_direct.weight_gradient(dy, x, dweight, window, groups)
        return True
    pixels = x.shape[0] * min(math.prod(x.shape[2:]), math.prod(dy.shape[2:]))
    own = rung(x)
    if x.dtype.name != "float32" or own is None or pixels < LEAST_PIXELS or dweight.size == 0:
        return False
    blocks, arithmetic = multiprocessors(x.place.device), ARITHMETIC_OF[precision]
    wide = None if own.by_warps else wide_dweight.plan(dy, x, dweight, window, groups, arithmetic, blocks)
    if wide is not None:
        wide_dweight.launch(dy, x, dweight, window, groups, wide)
        return True
    it = plan(dy, x, dweight, window, groups, precision, own)
    if it is None:
        return False
    stream, g = x.place.stream, it.geometry
    multiplying, reducing = _kernels(it.arithmetic, it.taps, it.rows_as_warpgroups, it.rung)
    workspace = x.place.empty((it.workspace // 4,), "int32")
    flags = DeviceArray(workspace.owner[: it.tiles], workspace.dtype, workspace.place)
    shares = workspace.address + -(-4 * it.tiles // 128) * 128
    fill_with_zeros(flags)
    multiplying(it.tiles * g.shares, stream, x.address, dy.address, shares, flags.address, g, shared=it.shared)
    lines = it.tiles * WARPGROUPS * it.taps * FILTERS
    reducing(lines, stream, shares, dweight.address, *steps(dweight), g)
    width = WIDTH if it.rows_as_warpgroups else WIDTH * WARPGROUPS
    again(
        2 * multiprocessors(x.place.device), stream, dy, x, dweight, window.stride, window.padding,
        window.dilation, groups, flags, g, width,
    )  # fmt: skip
    return True
