"""Operands split and laid out in slots beforehand, for kernels in which many tiles read them.

A slot is a pixel (slots.py says which); what a tap of the filter is away from another, in the image, is a
distance in slots here. A stride cuts the image in phases, each with slots of its own. Laid out are, in this order:
phase, group, *band* of 64 channels, part, slot, channel: 128 bytes a slot, so that the copy engine brings any number of
slots of a band as one piece. Slots outside of the image and channels beyond the last are zeros.

The eight units of 16 bytes in a slot lie as tensor cores want them, `unit ^ slot % 8` in place of unit: then neither
eight slots of a unit nor eight units of a slot share banks of shared memory.
"""

import functools
from typing import Any, NamedTuple

from numba import cuda
from numba.cuda import types

from .. import ptx
from ..host.driver import Kernel
from .arithmetic import ARITHMETIC, gatherer, power_of_two, scale_exponent, scaler, splitter
from .slots import divided, greatest_of

THREADS, BAND, UNIT = 256, 64, 8
"""Of a block; channels of a band, and in 16 bytes."""


class Layout(NamedTuple):
    """An array and its slots in numbers, all int32; strides in elements."""

    images: int
    channels: int  # of a group
    groups: int
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
    phases: int
    phase_columns: int
    bands: int  # in a group
    slots: int
    tile: int  # slots of a tile of pixels, of which one is flagged; 0: units of channels are
    tiles: int
    reach: int  # the farthest slot that a tap of a tile's first slot reads

    @property
    def flags(self) -> int:
        """Of a unit of channels each."""
        return self.groups * self.bands * BAND // UNIT

    @property
    def blocks(self) -> tuple[int, int]:
        """Of threads: slots across, bands down."""
        return -(-self.slots * (BAND // UNIT) // THREADS), self.phases * self.groups * self.bands

    def size(self, parts: int) -> int:
        """Bytes that are laid out."""
        return self.blocks[1] * parts * self.slots * 2 * BAND


LAYOUT = types.NamedUniTuple(types.int32, len(Layout._fields), Layout)
ARGUMENTS = types.void(types.int64, types.int64, types.int64, types.int64, LAYOUT)
"""x, where to lay it out, flags, scales or 0, layout."""
TWO = types.void(*[types.int64] * 6, types.int32, LAYOUT, LAYOUT)
"""x, where to lay it out, its flags, the same of another array, lines of the first, layouts."""


def layer(precision: str, lowest: float) -> Any:
    """`lay(x, laid, flags, scales, line, g)`: a unit of a slot in each thread, a band in eight, so that lines of memory
    are written whole; `line` is a band of a group in a phase.

    Flags where a value is not ordinary, `lowest` being the least that is; values are scaled by their image's greatest.
    """
    arithmetic, units, gather = ARITHMETIC[precision], BAND // UNIT, gatherer(UNIT)
    parts, is_scaled = arithmetic.parts, arithmetic.scaled
    split, scale = splitter(arithmetic, lowest, ptx.GLOBAL, UNIT), scaler(UNIT)

    @cuda.jit(device=True)
    def lay(x, laid, flags, scales, line, g):
        item = types.int32(cuda.grid(1))
        slot, unit = item // units, item % units
        if slot >= g.slots:
            return
        rest = types.uint32(line // types.uint32(g.bands))
        band = types.int32(line - rest * types.uint32(g.bands))
        phase = types.uint32(rest // types.uint32(g.groups))
        group = types.int32(rest - phase * types.uint32(g.groups))
        a = types.int32(phase // types.uint32(g.phase_columns))
        b = types.int32(phase - a * g.phase_columns)
        row = divided(slot, g.pitch_multiplier, g.pitch_shift)
        n = divided(row, g.rows_multiplier, g.rows_shift)
        h = types.int32(row - n * g.rows) * g.stride_h + a - g.top
        w = types.int32(slot - row * g.pitch) * g.stride_w + b - g.left
        channel, count = types.int32(band * BAND + unit * UNIT), types.int32(0)
        if n < g.images and h >= 0 and h < g.height and w >= 0 and w < g.width:
            count = types.int32(g.channels - channel)
        offset = n * g.x_n + (group * g.channels + channel) * g.x_c + h * g.x_h + w * g.x_w
        values = gather(x + offset * 4, g.x_c * 4, count)
        at = laid + ((types.int64(line) * parts * g.slots + slot) * units + (unit ^ slot & 7)) * 16
        if is_scaled and count > 0:
            values = scale(values, power_of_two(scale_exponent(greatest_of(scales, n))))
        if split(values, at, types.int64(g.slots) * (2 * BAND), types.int64(0)) != 0:
            if g.tile == 0:
                ptx.store_global_word(flags + types.int64((group * g.bands + band) * units + unit) * 4, 1)
            else:
                last = min(slot // g.tile, g.tiles - 1)
                for tile in range(max(0, slot - g.reach) // g.tile, last + 1):
                    ptx.store_global_word(flags + types.int64(tile) * 4, 1)

    return lay


@functools.cache
def kernel(precision: str, lowest: float) -> Kernel:
    """Lays out one array, the grid's second axis being its lines; compiled when first launched."""
    lay = layer(precision, lowest)

    def function(x, laid, flags, scales, g):
        lay(x, laid, flags, scales, types.uint32(cuda.blockIdx.y), g)

    return Kernel(f"lay out {precision} {lowest}", function, ARGUMENTS, THREADS, "a")


@functools.cache
def kernel_of_two(precision: str, lowest: float) -> Kernel:
    """Lays out two arrays: the grid's second axis is the lines of one and then those of the other."""
    lay = layer(precision, lowest)

    def function(x, laid_x, flags_x, y, laid_y, flags_y, lines, g, h):
        line = types.uint32(cuda.blockIdx.y)
        if line < lines:
            lay(x, laid_x, flags_x, types.int64(0), line, g)
        else:
            lay(y, laid_y, flags_y, types.int64(0), types.uint32(line - lines), h)

    return Kernel(f"lay out two {precision} {lowest}", function, TWO, THREADS, "a")
