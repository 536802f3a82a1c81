"""A convolution in slots, in numbers: what a block of threads takes at a time, and where a slot lies in the image.

All images, with their shared padding, lie end to end in one row of slots: slot `(n*rows + h)*pitch + w`.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from numba import cuda
from numba.cuda import types

from .arithmetic import ARITHMETIC, CHANNELS, Arithmetic, greatest_of_eight
from .rungs import HOPPER, Rung

MULTIPLIERS, LOADERS = 256, 256
FILTERS = 64
"""Filters of one wgmma."""
PATCH = 40
"""Words in a row of the patch through which a warp's 16 x 32 results go to memory: 8 more, so that banks differ."""
HEADER, PATCHES = 1024, MULTIPLIERS // 32 * 16 * PATCH * 4
"""Bytes for barriers, and for the patches of all warps."""
SHARES = 8
"""Of an image, whose greatest magnitudes are found apart, and lie side by side."""
TABLE = 2048
"""Bytes in which a gathered block writes down where its taps lie, eight for each."""


@dataclass(frozen=True)
class Block:
    """What is compiled: an arithmetic, the taps and channels of a stage, the columns of a warpgroup.

    `side_by_side` warpgroups take different pixels and the same 64 filters; else the same pixels and 128 filters.
    `laid`: x is laid out beforehand, and a stage is one tap of a band of 64 channels. `gathered`: every tap of every
    channel is a channel of its own, so that a first layer's 3 x 7 x 7 fill 160 and not 16 x 7 x 8. `stacked`: two parts
    of up to 32 filters are the 64 rows of a product, which then gives two products of parts; their sums are added as
    they are stored.
    """

    precision: str
    rows: int
    row: int
    channels: int
    columns: int
    side_by_side: bool = True
    laid: bool = False
    gathered: bool = False
    stacked: bool = False
    rung: Rung = field(default=HOPPER, repr=False)

    @property
    def threads(self) -> int:
        if self.rung.by_warps:
            return MULTIPLIERS
        return MULTIPLIERS + (128 if self.laid else LOADERS)

    @property
    def arithmetic(self) -> Arithmetic:
        return ARITHMETIC[self.precision]

    @property
    def filters(self) -> int:
        """Filters of a tile."""
        if self.stacked:
            return FILTERS // 2
        return FILTERS if self.side_by_side else 2 * FILTERS

    @property
    def pixels(self) -> int:
        """Output slots of a tile."""
        return 2 * self.columns if self.side_by_side else self.columns

    @property
    def groups(self) -> int:
        """Units of 16 bytes that hold a stage's channels."""
        return self.channels // self.arithmetic.unit

    @property
    def unit_rows(self) -> int:
        """Of a tap's weights, of which each has 16 bytes of a unit."""
        return FILTERS * -(-self.arithmetic.parts // 2) if self.stacked else self.filters

    @property
    def tap_rows(self) -> int:
        """Of a tap's weights, for all units and parts."""
        return self.groups * self.unit_rows * (1 if self.stacked else self.arithmetic.parts)

    @property
    def part_rows(self) -> int:
        """From a part to the next, or from two stacked ones to the next two."""
        return FILTERS if self.stacked else self.groups * self.filters

    @property
    def weight_bytes(self) -> int:
        """Of a stage."""
        return self.rows * self.row * self.tap_rows * 16

    def x_bytes(self, slots: int) -> int:
        """Of a stage."""
        return -(-self.arithmetic.parts * self.groups * slots * 16 // 128) * 128

    def raw_bytes(self, slots: int) -> int:
        """Of x as it comes, where warps bring it themselves: each slot's channels, and its image's greatest value."""
        return self.channels // CHANNELS * slots * 4 * (CHANNELS + 1) if self.rung.by_warps else 0

    def shared(self, slots: int, stages: int) -> int:
        """Bytes of shared memory of a block of threads."""
        stage = self.x_bytes(slots) + self.weight_bytes // (self.rows if self.rung.by_warps else 1)
        return HEADER + stages * stage + PATCHES + self.raw_bytes(slots) + (TABLE if self.gathered else 0)


class Geometry(NamedTuple):
    """One convolution in numbers, all int32; strides in elements. What the names mean stands in sizes.py."""

    images: int
    channels: int
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
    slots: int
    row_step: int
    tap_step: int
    chunks: int
    phase_rows: int
    phase_columns: int
    phase_h: int
    phase_w: int
    groups: int
    filter_blocks: int
    filters: int
    p: int
    q: int
    y_n: int
    y_k: int
    y_h: int
    y_w: int
    tiles: int
    stages: int
    rectify: int
    taps_h: int  # rows, and taps in a row, of the filter
    taps_w: int
    laid_slots: int  # of a band, if x is laid out
    laid_columns: int  # phases of its columns


GEOMETRY = types.NamedUniTuple(types.int32, len(Geometry._fields), Geometry)


@cuda.jit(device=True)
def divided(number, multiplier, shift):
    """`number // d` for `0 <= number < 2**31`, with the multiplier and shift that problem.py finds for d."""
    product = types.uint64(types.uint32(number)) * types.uint64(types.uint32(multiplier))
    return types.int32(product >> types.uint64(shift))


@cuda.jit(device=True)
def quotient_and_rest(number, divisor):
    """`divmod` of numbers below 2**31 and not negative: in 32 bits it takes a fourth of the time."""
    quotient = types.int32(types.uint32(number) // types.uint32(divisor))
    return quotient, types.int32(number - quotient * divisor)


@cuda.jit(device=True)
def place_of(slot, g):
    """Image, row and column of a slot."""
    row = divided(slot, g.pitch_multiplier, g.pitch_shift)
    n = divided(row, g.rows_multiplier, g.rows_shift)
    return n, types.int32(row - n * g.rows), types.int32(slot - row * g.pitch)


@cuda.jit(device=True)
def greatest_of(scales, n):
    """The greatest magnitude of image n, as a word."""
    return greatest_of_eight(scales + types.int64(n) * (SHARES * 4))


@cuda.jit(device=True)
def tile_of(tile, g):
    """A tile's place among the pixels, its group, and its block of filters: filters run fastest, for the cache."""
    blocks, filter_blocks = types.uint32(g.groups * g.filter_blocks), types.uint32(g.filter_blocks)
    pixels = types.uint32(types.uint32(tile) // blocks)
    block = types.uint32(tile - pixels * blocks)
    group = types.uint32(block // filter_blocks)
    return types.int32(pixels), types.int32(group), types.int32(block - group * filter_blocks)


@cuda.jit(device=True)
def shift_of(a, b, g):
    """How many slots a tap of a laid out band lies from the first."""
    return types.int32(a * g.phase_h // g.stride_h * g.pitch + b * g.phase_w // g.stride_w)
