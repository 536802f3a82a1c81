"""The weight gradient on tensor cores: its plan, what is launched, and what is computed again.

Groups with few channels go to direct.py, those with many to wide_dweight.py; few channels with many taps are gathered.
What none serves is plain.
"""

import functools
import math
from dataclasses import dataclass

from numba import cuda
from numba.cuda import types

from kernelproof.spec.window import Window

from ..conv_elements import weight_gradient_of
from ..cuda_cores import launch_direct
from ..host.arrays import DeviceArray, image_of, steps
from ..host.driver import Kernel, fill_with_zeros, multiprocessors
from ..launch import THREADS
from . import warp_gradient, weight_gradient, wide_dweight
from .arithmetic import ARITHMETIC, CHANNELS
from .gradient_slots import FILTERS, GATHERERS, GEOMETRY, LOADERS, MULTIPLIERS, SLOTS, WARPGROUPS, WIDTH, Geometry
from .launch_conv import rung
from .problem import division, pitch_of
from .rungs import HOPPER, Rung
from .slots import HEADER
from .splits import are_gathered

ARITHMETIC_OF = {"strict": "strict", "fast": "strict", "tf32": "bf16x4", "fp16": "bf16x4", "bf16": "bf16"}
"""Sums run across images, so no scale serves a whole sum, and TF32 has no transposed operands."""

LEAST_GATHERED = 24, 16
"""Taps of all channels, and filters, from which on tensor cores are faster than direct.py."""

LEAST_PIXELS = 64
"""Of x or of dy, whichever are fewer: tensor cores cut off where float32 rounds, and a sum of fewer terms might be less
exact than in float32."""


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
    gathered: bool = False

    @property
    def width(self) -> int:
        """Channels of a tile."""
        return WIDTH if self.rows_as_warpgroups else WIDTH * WARPGROUPS

    @property
    def workspace(self) -> int:
        """Bytes beside the arguments and the result: every share of every tile, a word for each tile."""
        return 4 * self.tiles * (self.geometry.shares * WARPGROUPS * self.taps * FILTERS * WIDTH + 1) + 128


def plan(
    dy: DeviceArray,
    x: DeviceArray,
    dweight: DeviceArray,
    window: Window,
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
        beside = warp_gradient.raw_bytes(width, slots) if rung.by_warps else HEADER
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
        x.shape[0], channels, filters, groups, *image_of(x), *image_of(dy), *strides, *window.stride,
        window.padding[0][0], window.padding[1][0], *window.dilation, rows, *division(rows), pitch,
        *division(pitch), slots, tap_step, warpgroup_step, filter_blocks, channel_blocks, row_blocks, phases,
        column_blocks, row, column, chunks, _shares(tiles, chunks, multiprocessors(x.place.device)), stages,
        column, row,
    )  # fmt: skip
    return Plan(ARITHMETIC_OF[precision], taps, rows_as_warpgroups, rung, geometry, tiles, beside + stages * stage)


def plan_gathered(
    dy: DeviceArray, x: DeviceArray, dweight: DeviceArray, window: Window, groups: int, precision: str
) -> Plan | None:
    """How the tensor cores of Hopper compute the gradient of few channels with many taps; None if they do not."""
    images, image, (_, few, *taps), (p, q) = x.shape[0], image_of(x), dweight.shape, image_of(dy)
    taps, before = (taps[0], taps[1]), (window.padding[0][0], window.padding[1][0])
    filters, channels = dweight.shape[0] // groups, few * math.prod(taps)
    are_many = channels >= LEAST_GATHERED[0] and filters >= LEAST_GATHERED[1]
    if not are_many or not are_gathered(few, taps, image, before, window.dilation, steps(x)[1:], steps(dweight)[1:]):
        return None
    if max(map(abs, (*steps(x), *steps(dy)))) >= 2**29 or images * p * q >= 2**31 - SLOTS:
        return None
    arithmetic = ARITHMETIC_OF[precision]
    filter_blocks, channel_blocks = -(-filters // FILTERS), -(-channels // (WIDTH * WARPGROUPS))
    stage = ARITHMETIC[arithmetic].parts * 2 * (WIDTH * WARPGROUPS + FILTERS) * SLOTS
    beside = HEADER + 8 * -(-channels // CHANNELS) * CHANNELS
    stages = min(4, (HOPPER.shared_memory - beside) // stage)
    tiles, chunks = groups * filter_blocks * channel_blocks, -(-images * p * q // SLOTS)
    geometry = Geometry(
        images, channels, filters, groups, *image, p, q, *steps(x), *steps(dy), *window.stride, *before,
        *window.dilation, p, *division(p), q, *division(q), SLOTS, 0, 0, filter_blocks, channel_blocks, 1, 1, 1, 1, 1,
        chunks, _shares(tiles, chunks, multiprocessors(x.place.device)), stages, *taps,
    )  # fmt: skip
    return Plan(arithmetic, 1, False, HOPPER, geometry, tiles, beside + stages * stage, gathered=True)


def _shares(tiles: int, chunks: int, blocks: int) -> int:
    """Into how many shares to cut the slots, so that the multiprocessors' turns are short and full."""
    most = max(1, min(chunks, 2 * blocks // tiles))
    return min(range(1, most + 1), key=lambda shares: -(-tiles * shares // blocks) * (-(-chunks // shares) + 4))


@functools.cache
def _kernels(
    arithmetic: str, taps: int, rows_as_warpgroups: bool, rung: Rung = HOPPER, gathered: bool = False
) -> tuple[Kernel, Kernel]:
    key = (arithmetic, taps, rows_as_warpgroups)
    if rung.by_warps:
        name, function = "warp_gradient", warp_gradient.kernel_of(*key)
        threads, features = MULTIPLIERS, ""
    else:
        name, function = "weight_gradient", weight_gradient.kernel_of(*key, gathered)
        loaders = GATHERERS if gathered else LOADERS
        threads, features = MULTIPLIERS + loaders, "a"
    return (
        Kernel(
            f"{name} {key}{' gathered' if gathered else ''}", function, weight_gradient.ARGUMENTS, threads, features,
            rung.shared_memory,
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
    of_channel = g.taps_h * g.taps_w // taps  # Taps that are channels of their own: all or none.
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
                c, gathered_tap = divmod(c, of_channel)
                r, s = divmod(tap + gathered_tap, g.taps_w)
                weight_gradient_of(dy, x, dweight, k, c, r, s, stride, padding, dilation, groups, partial)


_TENSOR, _PAIR = types.Array(types.float32, 4, "A"), types.UniTuple(types.int64, 2)
again = Kernel(
    "weight_gradient_again", _again,
    types.void(
        _TENSOR, _TENSOR, _TENSOR, _PAIR, types.UniTuple(_PAIR, 2), _PAIR, types.int64,
        types.Array(types.int32, 1, "A"), GEOMETRY, types.int64,
    ),
    THREADS,
)  # fmt: skip


def conv2d_dweight(
    dy: DeviceArray, x: DeviceArray, dweight: DeviceArray, window: Window, groups: int, precision: str
) -> bool:
    """Compute dweight if the tensor cores serve this gradient; whether they do."""
    own = rung(x)
    if x.dtype.name != "float32" or own is None:
        return False
    pixels = x.shape[0] * min(math.prod(x.shape[2:]), math.prod(dy.shape[2:]))
    are_enough = pixels >= LEAST_PIXELS and dweight.size > 0
    it = plan_gathered(dy, x, dweight, window, groups, precision) if are_enough and not own.by_warps else None
    if it is None and launch_direct.serves_gradient(x, dy, dweight, groups):
        launch_direct.weight_gradient(dy, x, dweight, window, groups)
        return True
    if not are_enough:
        return False
    blocks, arithmetic = multiprocessors(x.place.device), ARITHMETIC_OF[precision]
    wide = None if own.by_warps else wide_dweight.plan(dy, x, dweight, window, groups, arithmetic, blocks)
    if wide is not None:
        wide_dweight.launch(dy, x, dweight, window, groups, wide)
        return True
    it = it or plan(dy, x, dweight, window, groups, precision, own)
    if it is None:
        return False
    _launch(dy, x, dweight, window, groups, it)
    return True


def _launch(dy: DeviceArray, x: DeviceArray, dweight: DeviceArray, window: Window, groups: int, it: Plan) -> None:
    """Multiply, add the shares, and compute anew what strange values took part in."""
    stream, g = x.place.stream, it.geometry
    multiplying, reducing = _kernels(it.arithmetic, it.taps, it.rows_as_warpgroups, it.rung, it.gathered)
    workspace = x.place.empty((it.workspace // 4,), "int32")
    flags = DeviceArray(workspace.owner[: it.tiles], workspace.dtype, workspace.place)
    shares = workspace.address + -(-4 * it.tiles // 128) * 128
    fill_with_zeros(flags)
    multiplying(it.tiles * g.shares, stream, x.address, dy.address, shares, flags.address, g, shared=it.shared)
    lines = it.tiles * WARPGROUPS * it.taps * FILTERS
    # Gathered taps are channels that lie side by side.
    of_result = (steps(dweight)[0], 1, 0, 0) if it.gathered else steps(dweight)
    reducing(lines, stream, shares, dweight.address, *of_result, g)
    again(
        2 * multiprocessors(x.place.device), stream, dy, x, dweight, window.stride, window.padding,
        window.dilation, groups, flags, g, it.width,
    )  # fmt: skip
