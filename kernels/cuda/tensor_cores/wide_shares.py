"""The shares of a wide weight gradient (wide_gradient.py), added."""

import functools
import itertools
from typing import Any

from numba import cuda
from numba.cuda import types

from .. import ptx
from ..cuda_cores.windows import tuple_of, zeros_of
from ..ptx import device_function, emit, unpacked
from .slots import quotient_and_rest
from .wide_gradient import CHANNELS_OF_TILE, FILTERS, GEOMETRY, filters_of, span_with, warpgroups_of

LANES = 32
"""Of a warp."""
REDUCE = types.void(types.int64, types.int64, GEOMETRY)
"""shares, dweight, which lies in one piece, geometry."""


def adder_of(taps: int, wide: int) -> Any:
    """`add_shares(totals, address, step, count)`: totals, `[tap][column]`, and the entries of so many shares, in order.

    A tap's entries lie a warpgroup's sums behind the one before, columns 32 entries apart, a share's `step` bytes. Some
    shares are loaded at a time before they are added.
    """
    totals, together, nounroll = taps * wide, min(16, 24 // (taps * wide)), r"\22nounroll\22"
    address, step, count = (f"${totals + i}" for i in range(3))
    text = [
        f"{{ .reg .pred p; .reg .b64 at, step; .reg .b32 left; .reg .f32 v<{totals * together}>;",
        f"mov.b64 at, {address}; cvt.s64.s32 step, {step}; mov.b32 left, {count};",
        f"next_${{:uid}}: .pragma {nounroll};",
    ]
    for j in range(together):
        text.append(f"setp.gt.s32 p, left, {j};")
        for i, (t, column) in enumerate(itertools.product(range(taps), range(wide))):
            offset = 4 * (t * FILTERS * CHANNELS_OF_TILE + column * LANES)
            text.append(f"mov.b32 v{j * totals + i}, 0; @p ld.global.nc.f32 v{j * totals + i}, [at+{offset}];")
        text.append("add.s64 at, at, step;")
    text += [f"add.rn.f32 ${i % totals}, ${i % totals}, v{i};" for i in range(totals * together)]
    text.append(f"sub.s32 left, left, {together}; setp.gt.s32 p, left, 0; @p bra next_${{:uid}}; }}")

    def generate(builder: Any, arguments: list[Any]) -> list[Any]:
        sums = unpacked(builder, arguments[0], totals)
        return emit(builder, "\n".join(text), "f" * totals, "lrr", arguments[1:], sums)

    kind = tuple_of(totals)
    return device_function(kind(kind, types.int64, types.int32, types.int32), generate)


@functools.cache
def reduce_of(taps: int, wide: int, warps: int) -> Any:
    """Adds the shares of each weight in rising order.

    A block of so many warps adds those of a filter, the grid's second axis, and of `wide` times 32 channels; a warp
    those of a tile's taps. By way of shared memory they are written as dweight lies, taps innermost.
    """
    warpgroups, filters, channels = warpgroups_of(taps), filters_of(taps), LANES * wide
    none, add_shares = zeros_of(taps * wide), adder_of(taps, wide)

    def kernel(shares, dweight, g):
        shared, thread = ptx.dynamic_shared(), types.int32(cuda.threadIdx.x)
        lane, warp, of_filter = thread % LANES, thread // LANES, types.int32(g.rows * g.row)
        k, c = types.int32(cuda.blockIdx.y), types.int32(cuda.blockIdx.x * channels)
        group, filter_ = quotient_and_rest(k, g.filters)
        tiles = (group * g.filter_blocks + filter_ // filters) * g.channel_blocks + c // CHANNELS_OF_TILE
        warpgroup = types.int32(0) if taps == 3 else filter_ % filters // FILTERS
        step = types.int32(g.tiles * warpgroups * (FILTERS * CHANNELS_OF_TILE * 4))
        for row in range(warp, g.rows * g.row_blocks, warps):
            tile = types.int32(tiles * g.rows * g.row_blocks + row)
            line = types.int64(tile * warpgroups + warpgroup) * FILTERS + filter_ % FILTERS
            at = shares + (line * CHANNELS_OF_TILE + c % CHANNELS_OF_TILE + lane) * 4
            first, last = (
                span_with(types.int32(tile * g.chunks), g),
                span_with(types.int32((tile + 1) * g.chunks - 1), g),
            )
            totals = add_shares(none(), at, step, types.int32(last - first + 1))
            r, row_block = quotient_and_rest(types.int32(row), g.row_blocks)
            for t in range(taps):
                s = types.int32(row_block * taps + t)
                at_tap = shared + (lane * of_filter + r * g.row + s) * 4
                for column in range(wide if s < g.row else 0):
                    ptx.store_shared(types.int32(at_tap), totals[t * wide + column])
                    at_tap += LANES * of_filter * 4
        cuda.syncthreads()
        at = dweight + (types.int64(k) * g.channels + c) * of_filter * 4
        for i in range(thread, min(channels, g.channels - c) * of_filter, LANES * warps):
            ptx.store_global(at + i * 4, ptx.load_shared(types.int32(shared + i * 4)))

    return kernel
