"""How a stage of weight_gradient.py comes to shared memory: x and dy through registers, split on the way."""

from typing import Any

from numba import cuda
from numba.cuda import types

from .. import ptx
from .arithmetic import ARITHMETIC, CHANNELS, LOWEST_FACTOR, gather, gather_taps, splitter
from .gradient_slots import FILTERS, GATHERERS, LOADERS, MULTIPLIERS, SLOTS, WARPGROUPS, WIDTH, part_of
from .loaders import NOWHERE
from .slots import HEADER, place_of


def stage_loader(precision: str, taps: int, rows_as_warpgroups: bool, gathered: bool) -> Any:
    """`load_stages(x, dy, flags, shared, x_bytes, first, last, tile, g)`: the loaders' part of a share of a tile."""
    arithmetic = ARITHMETIC[precision]
    channels = WIDTH if rows_as_warpgroups else WIDTH * WARPGROUPS
    halves, y_halves = channels // CHANNELS, FILTERS // CHANNELS
    loaders, y_bytes = GATHERERS if gathered else LOADERS, arithmetic.parts * FILTERS * SLOTS * 2
    split = splitter(arithmetic, LOWEST_FACTOR if arithmetic.lowest else 0.0)

    @cuda.jit(device=True)
    def load(x, dy, chunk, item, x_items, group, filter_, channel, a, b, shift, table, g):
        """Sixteen channels of x at a slot, or behind the last of them sixteen filters of dy; zeros outside."""
        count, address, step = types.int32(0), x, types.int32(0)
        if item < x_items:
            half = types.int32(types.uint32(item) // types.uint32(g.slots))
            n, row, column = place_of(types.int32(chunk * SLOTS + item - half * g.slots + shift), g)
            h, w = row * g.stride_h + a - g.top, column * g.stride_w + b - g.left
            channel += half * CHANNELS
            if gathered:
                of_group = group * (g.channels // (g.taps_h * g.taps_w))
                address = x + (n * g.x_n + of_group * g.x_c + h * g.x_h + w * g.x_w) * 4
                h = types.int32(h if n < g.images else NOWHERE)
                return gather_taps(address, h, types.int32(w), g.height, g.width, types.int32(table + channel * 8))
            if n < g.images and h >= 0 and h < g.height and w >= 0 and w < g.width:
                count, step = types.int32(g.channels - channel), types.int32(g.x_c * 4)
                address = x + (n * g.x_n + (group * g.channels + channel) * g.x_c + h * g.x_h + w * g.x_w) * 4
        else:
            half = types.int32(types.uint32(item - x_items) // types.uint32(SLOTS))
            at = item - x_items - half * SLOTS
            n, p, q = place_of(types.int32(chunk * SLOTS + at), g)
            filter_ += half * CHANNELS
            if n < g.images and p < g.p and q < g.q:
                count, step = types.int32(g.filters - filter_), types.int32(g.y_k * 4)
                address = dy + (n * g.y_n + (group * g.filters + filter_) * g.y_k + p * g.y_h + q * g.y_w) * 4
        return gather(address, step, count)

    @cuda.jit(device=True)
    def load_stages(x, dy, flags, shared, x_bytes, first, last, tile, g):
        """The tile's slots of dy and those of x that they meet.

        Sixteens beyond the last channel or filter stay what they are: they make sums that nobody adds.
        """
        thread = types.int32(cuda.threadIdx.x - MULTIPLIERS)
        group, filter_block, channel_block, row_block, phase, column_block = part_of(tile, g)
        a = row_block * g.dilation_h * (0 if rows_as_warpgroups else 1)
        b, shift = phase * g.dilation_w, column_block * taps * g.tap_step
        filter_, channel = filter_block * FILTERS, channel_block * channels
        x_items = min(halves, (g.channels - channel + CHANNELS - 1) // CHANNELS) * g.slots
        items = x_items + min(y_halves, (g.filters - filter_ + CHANNELS - 1) // CHANNELS) * SLOTS
        table = types.int32(shared + HEADER + g.stages * (x_bytes + y_bytes))
        stage, parity, flag = types.int32(0), types.int32(1), types.int32(0)
        for chunk in range(first, last):
            full, x_stage = shared + stage * 8, shared + HEADER + stage * (x_bytes + y_bytes)
            is_free = False
            for item in range(thread, items, loaders):
                values = load(x, dy, chunk, item, x_items, group, filter_, channel, a, b, shift, table, g)
                if not is_free:
                    ptx.barrier_wait(full + 64, parity)
                    is_free = True
                if item < x_items:
                    half = types.int32(types.uint32(item) // types.uint32(g.slots))
                    at = x_stage + (half * g.slots + item) * 16
                    part_step, group_step = types.int32(channels * 2 * g.slots), types.int32(g.slots * 16)
                else:
                    half = types.int32(types.uint32(item - x_items) // types.uint32(SLOTS))
                    at = x_stage + x_bytes + (half * SLOTS + item - x_items) * 16
                    part_step, group_step = types.int32(FILTERS * 2 * SLOTS), types.int32(SLOTS * 16)
                flag |= split(values, at, part_step, group_step)
            if not is_free:  # A thread without an item is not to run ahead.
                ptx.barrier_wait(full + 64, parity)
            ptx.publish_shared()
            ptx.barrier_arrive(full)
            stage += types.int32(1)
            if stage == g.stages:
                stage, parity = types.int32(0), types.int32(parity ^ 1)
        if flag != 0:
            ptx.store_global_word(flags + types.int64(tile) * 4, 1)

    return load_stages
