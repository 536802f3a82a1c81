"""Images cut into tiles, and their way to Winograd's points: turned to a lane for each channel, then transformed."""

from typing import NamedTuple

from kernelproof.kernels.winograd_matrices import TAPS

from ..launch import serial
from ..micro_kernels import VECTORS
from ..vectors import LANES, call
from ..workspace import in_lines

_STRIP = 2**16
"""Bytes of an image that are turned to lanes at a time: they stay near while they are transformed."""


class Tiles(NamedTuple):
    """Images of `channels` x `height` x `width`, `groups` of them in a row, in `units`: rows of `across` tiles.

    Tiles are `size` apart and reach `halo` further; the first begins `top` and `left` of the image. An image has `down`
    times `segments` units, and `together` of them are transformed to `point[block][tile][channel]`: matrices of
    `capacity` tiles, `block` places side by side of which `used` are channels, `blocks` of them at a time. In floats, a
    point is `point`, and turning a strip takes `copy`.
    """

    size: int
    halo: int
    groups: int
    channels: int
    height: int
    width: int
    top: int
    left: int
    down: int
    segments: int
    across: int
    units: int
    together: int
    strip: int
    block: int
    used: int
    blocks: int
    capacity: int
    point: int
    copy: int

    @property
    def floats(self) -> int:
        """Floats of all points."""
        return (self.size + TAPS - 1) ** 2 * self.point


def lanes_in(channels: int) -> int:
    """Channels rounded up to whole vectors."""
    return -(-channels // LANES) * LANES


def block_of(channels: int) -> int:
    """Channels that lie side by side: of a panel if they are a whole number of panels, else of a vector."""
    return VECTORS * LANES if lanes_in(channels) % (VECTORS * LANES) == 0 else LANES


def rows_of_tiles(size: int, n: int, rows: int, columns: int, most: int) -> tuple[int, int, int, int]:
    """How many rows of tiles an image has, how often they are cut to `most` tiles, tiles in one, and these in all."""
    down, wide = -(-rows // size), -(-columns // size)
    across = -(-wide // -(-wide // most))
    segments = -(-wide // across)
    return down, segments, across, n * segments * down


def tiles_of(
    size: int, halo: int, groups: int, source: tuple[int, int, int], padding: tuple[int, int],
    units: tuple[int, int, int, int], together: int, block: int, used: int, blocks: int, least: int = 1,
) -> Tiles:  # fmt: skip
    """Tiles of images of source's channels, height and width, `blocks` of channels and at least so many in a matrix."""
    (channels, height, width), (down, segments, across, count) = source, units
    pitch = across * size + halo
    strip = max(1, min(together, down, (_STRIP // (4 * LANES * pitch) - halo) // size))
    capacity = max(together * across, least)
    return Tiles(
        size, halo, groups, channels, height, width, *padding, down, segments, across, count, together, strip, block,
        used, blocks, capacity, in_lines(blocks * block * capacity),
        in_lines((strip * size + halo) * pitch * LANES),
    )  # fmt: skip


@serial
def transform(x, begin, first, count, points, copy, its, clear, turn, to_points):
    """`points[point][block][tile][channel]` of `count` units from `first` on, at addresses x, points and copy.

    Of the channels `blocks` blocks, the first of which is `begin`.
    """
    size, pitch, of_channel = 4 * LANES, its.across * its.size + its.halo, 4 * its.height * its.width
    unit = 0
    while unit < count:
        row, segment = (first + unit) % its.down, (first + unit) // its.down
        image, segment = segment // its.segments, segment % its.segments
        strip = min(its.strip, count - unit, its.down - row)
        source = x + image * its.groups * its.channels * of_channel
        for vector in range(min(its.blocks, -(-its.channels // its.used) - begin) * its.block // LANES):
            block, lane = vector * LANES // its.block, vector * LANES % its.block
            c = (begin + block) * its.used + lane
            channels = min(LANES, its.used - lane, its.channels - c)
            _copy_strip(source + c * of_channel, copy, segment, row, strip, channels, its, clear, turn)
            for each in range(strip):
                tile = (block * its.capacity + (unit + each) * its.across) * its.block + lane
                call(to_points, (
                    copy + each * its.size * pitch * size, pitch * size, its.across, its.size * size,
                    points + 4 * tile, 4 * its.point, 4 * its.block,
                ))  # fmt: skip
        unit += strip


@serial
def transform_strip(x, points, copy, group, block, begin, first, count, its, clear, turn, to_points):
    """`points[group][point][block][tile][channel]` from `block` on, of `count` units from `begin + first` on."""
    x += 4 * group * its.channels * its.height * its.width
    points += 4 * (group * (its.size + TAPS - 1) ** 2 * its.point + first * its.across * its.block)
    transform(x, block, begin + first, count, points, copy, its, clear, turn, to_points)


@serial
def _copy_strip(x, copy, segment, row, strip, channels, its, clear, turn):
    """`copy[row][column][channel]` of a vector of channels, zero where it is outside x."""
    pitch, size = its.across * its.size + its.halo, 4 * LANES
    w = segment * its.across * its.size - its.left
    before = min(pitch, max(0, -w))
    inside = max(0, min(its.width - max(w, 0), pitch - before))
    for i in range(strip * its.size + its.halo):
        h = row * its.size - its.top + i
        if h < 0 or h >= its.height or channels <= 0:
            call(clear, (copy, pitch * LANES))
        else:
            call(clear, (copy, before * LANES))
            call(turn, (
                x + 4 * (h * its.width + max(w, 0)), 4 * its.height * its.width, channels, inside,
                copy + before * size, size,
            ))  # fmt: skip
            call(clear, (copy + (before + inside) * size, (pitch - before - inside) * LANES))
        copy += pitch * size
