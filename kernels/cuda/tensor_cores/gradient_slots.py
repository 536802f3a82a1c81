"""A weight gradient in slots, in numbers: what a block of threads of weight_gradient.py takes at a time, and where."""

from typing import NamedTuple

from numba import cuda
from numba.cuda import types

MULTIPLIERS, LOADERS, GATHERERS = 384, 256, 512
"""Threads that multiply, that load, and that load where taps are gathered: looking those up takes long."""
WARPGROUPS, FILTERS, WIDTH, SLOTS = 3, 64, 32, 96
"""Of multipliers; filters of a tile; channels of a warpgroup; slots of a stage."""


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


@cuda.jit(device=True)
def part_of(tile, g):
    """A tile's group, block of filters, block of channels, block of rows, phase of columns and block of columns."""
    rest, column_block = divmod(tile, g.column_blocks)
    rest, phase = divmod(rest, g.column_phases)
    rest, row_block = divmod(rest, g.row_blocks)
    rest, channel_block = divmod(rest, g.channel_blocks)
    group, filter_block = divmod(rest, g.filter_blocks)
    return group, filter_block, channel_block, row_block, phase, column_block
