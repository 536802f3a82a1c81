"""Plans of weight gradients on tensor cores, carried out in numpy without a GPU: all of the result, once, and right."""

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_plans import GEOMETRIES, NEEDS_COMPILERS, Strided, drawn, dy_and_dweight, laid_out, modules

from kernelproof.spec.window import Window

pytestmark = NEEDS_COMPILERS
RUNGS = ("HOPPER", "AMPERE", "ADA")


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_tiles_of_a_weight_gradient_are_all_of_it_once(
    geometry: Any, rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = modules()
    together = m.weight_gradient.SLOTS if rung == "HOPPER" else m.warp_gradient.SLOTS
    monkeypatch.setattr(m.launch_dweight, "multiprocessors", lambda device: 132)
    x, weight, window, groups = drawn(geometry)
    dy, right = dy_and_dweight(x, weight, window, groups)
    it = m.launch_dweight.plan(*map(Strided, (dy, x, weight)), window, groups, "strict", getattr(m.rungs, rung))
    g, came = it.geometry, np.zeros(right.shape, np.int64)
    assert it.shared <= it.rung.shared_memory <= 227 * 1024

    def entry(of: np.ndarray, slot: int, channel: int, a: int, b: int, is_x: bool) -> int:
        row, column = divmod(slot, g.pitch)
        n, row = divmod(row, g.rows)
        h, w = (row * g.stride_h + a - g.top, column * g.stride_w + b - g.left) if is_x else (row, column)
        height, width = (g.height, g.width) if is_x else (g.p, g.q)
        return int(of[n, channel, h, w]) if n < g.images and 0 <= h < height and 0 <= w < width else 0

    per_group = weight.shape[0] // groups
    for row_block, phase, column_block, t, line in np.ndindex(
        g.row_blocks, g.column_phases, g.column_blocks, it.taps, 3 if it.rows_as_warpgroups else 1
    ):
        r = 3 * row_block + line if it.rows_as_warpgroups else row_block
        s = phase + (column_block * it.taps + t) * g.column_phases
        if r >= g.column or s >= g.row:
            continue
        a, b = 0 if it.rows_as_warpgroups else r * g.dilation_h, phase * g.dilation_w
        reach = (column_block * it.taps + t) * g.tap_step + line * g.warpgroup_step
        assert together + line * g.warpgroup_step + t * g.tap_step <= g.slots
        for k, c in np.ndindex(weight.shape[:2]):
            channel = k // per_group * g.channels + c
            came[k, c, r, s] += sum(
                entry(dy, slot, k, 0, 0, False) * entry(x, slot + reach, channel, a, b, True)
                for slot in range(g.chunks * together)
            )
    np.testing.assert_array_equal(came, right)


@pytest.mark.parametrize(
    ("tiles", "chunks", "blocks"),
    [(1, 1, 132), (96, 43, 132), (5, 7, 4), (3, 200, 132), (300, 9, 132), (96, 2**23, 132)],
)
def test_every_stage_of_a_wide_weight_gradient_is_in_one_span(
    tiles: int, chunks: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = modules()
    monkeypatch.setattr(m.wide_gradient, "quotient_and_rest", lambda number, divisor: divmod(int(number), int(divisor)))
    units = tiles * chunks
    spans = min(blocks, units)
    g = SimpleNamespace(tiles=tiles, chunks=chunks, spans=spans, span=units // spans, longer=units % spans)
    it = m.wide_dweight.Plan("strict", 1, g, None, None, 0)
    found = [tuple(map(int, m.wide_gradient.span_of.py_func(block, g))) for block in range(spans)]
    assert found[0][0] == 0
    assert found[-1][1] == units
    assert all(end == first for (_, end), (first, _) in itertools.pairwise(found))
    assert {end - first for first, end in found} <= {units // spans, -(-units // spans)}
    for block, (first, end) in enumerate(found):
        ends = range(first, end) if units < 2**16 else (first, end - 1)
        assert {int(m.wide_gradient.span_with.py_func(unit, g)) for unit in ends} == {block}
    for tile in range(0, tiles, -(-tiles // 2**12)):  # Its shares are there to be added, whatever its spans.
        ends = tile * chunks, (tile + 1) * chunks - 1
        first, last = (m.wide_gradient.span_with.py_func(unit, g) for unit in ends)
        assert 1 <= last - first + 1 <= it.shares


def test_a_wide_weight_gradient_of_many_stages_is_on_every_multiprocessor() -> None:
    m, place = modules(), SimpleNamespace(device=0)
    x, dweight = (
        SimpleNamespace(
            shape=shape,
            strides=tuple(4 * math.prod(shape[i + 1 :]) for i in range(4)),
            place=place,
            dtype=np.dtype(np.float32),
        )
        for shape in ((160, 512, 224, 224), (512, 512, 3, 3))
    )
    it = m.wide_dweight.plan(x, x, dweight, Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)), 1, "strict", 132)
    assert it.geometry.spans == 132
    assert it.geometry.tiles * it.geometry.chunks > 2**23


WIDE = [
    *GEOMETRIES,
    ((2, 3, 9, 11), (4, 3, 5, 5), (1, 1), ((2, 2), (1, 3)), (1, 2), 1),
    ((2, 3, 8, 7), (4, 3, 4, 3), (3, 1), ((1, 2), (1, 1)), (2, 2), 1),
    ((1, 130, 4, 5), (66, 130, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((1, 140, 4, 5), (280, 70, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 2),
    # Without rows of padding: 7 of 8 rows of 8 slots, 13 of 15 of 8, 6 of 7 of 8, 4 of 5 of 16 and strided.
    ((5, 3, 7, 7), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((3, 3, 13, 6), (4, 3, 5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 1),
    ((4, 3, 6, 7), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((3, 3, 4, 15), (4, 3, 3, 2), (1, 1), ((1, 1), (1, 0)), (1, 1), 1),
    ((3, 3, 14, 14), (4, 3, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
]


def stage_of_x(m: Any, slot: int, g: Any) -> np.ndarray:
    """The slots of x that are brought with those of dy from one on, for a tile that reads no further on."""
    first, of_image = m.wide_gradient.x_of.py_func(slot, g)
    assert first % 8 == of_image % 8 == 0  # They keep their places in the pattern of units.
    found = first + np.arange(g.slots)
    found[of_image:] += g.x_image - g.y_image
    return found


@pytest.mark.parametrize("geometry", WIDE, ids=str)
def test_laid_out_operands_meet_in_a_wide_weight_gradient(geometry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    m = modules()
    for least in ("LEAST_CHANNELS", "LEAST_OF_STRIDED"):
        monkeypatch.setattr(m.wide_dweight, least, 1)
    monkeypatch.setattr(m.wide_gradient, "quotient_and_rest", divmod)
    x, weight, window, groups = drawn(geometry)
    dy, right = dy_and_dweight(x, weight, window, groups)
    it = m.wide_dweight.plan(*map(Strided, (dy, x, weight)), window, groups, "strict", 132)
    g, came = it.geometry, np.full(right.shape, -999)
    slots, warpgroups = m.wide_gradient.slots_of(it.taps), m.wide_gradient.warpgroups_of(it.taps)
    assert it.shared <= 227 * 1024
    assert slots % 16 == g.slots % 8 == 0
    assert g.chunks * slots == g.y_slots
    laid_x, laid_dy = laid_out(x, it.x), laid_out(dy, it.dy)
    stages = [stage_of_x(m, chunk * slots, g) for chunk in range(g.chunks)]
    for tile, warpgroup in np.ndindex(g.tiles, warpgroups):
        rest, row_block = divmod(tile, g.row_blocks)
        rest, r = divmod(rest, g.rows)
        rest, channel_block = divmod(rest, g.channel_blocks)
        group, filter_block = divmod(rest, g.filter_blocks)
        down, across = r * g.dilation_h, row_block * it.taps * g.dilation_w
        phase = down % g.stride_h * g.phase_columns + across % g.stride_w
        shift = down // g.stride_h * g.pitch + across // g.stride_w
        apart = warpgroup * g.dilation_w if it.taps == 3 else 0
        s = row_block * it.taps + (warpgroup if it.taps == 3 else 0)
        # What a stage brings reaches from the first of eight slots to the last that any tap reads, and no further.
        assert shift % 8 + apart + slots <= g.slots
        assert stages[-1].max() + shift // 8 * 8 < g.x_slots
        k = filter_block * m.wide_gradient.filters_of(it.taps) + (warpgroup * 64 if it.taps == 1 else 0)
        c = channel_block * 128
        filters, channels = slice(k, min(k + 64, g.filters)), slice(c, min(c + 128, g.channels))
        if s >= g.row or k >= g.filters:
            continue
        its_dy = laid_dy[0, group, : g.y_slots, filters]
        first = shift % 8 + apart
        met = np.concatenate([shift // 8 * 8 + stage[first : first + slots] for stage in stages])
        its_x = laid_x[phase, group, met, channels]
        of_group = slice(group * g.filters + k, group * g.filters + filters.stop)
        assert np.all(came[of_group, channels, r, s] == -999)
        came[of_group, channels, r, s] = its_dy.T @ its_x
    np.testing.assert_array_equal(came, right)


GATHERED = [
    *(each for each in GEOMETRIES if math.prod(each[1][2:]) > 1),
    ((2, 6, 9, 8), (10, 3, 7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 2),  # 147 channels of 96 and of 51.
    ((2, 2, 8, 9), (70, 2, 2, 5), (3, 1), ((0, 2), (4, 1)), (2, 3), 1),  # 70 filters of 64 and of 6.
]


@pytest.mark.parametrize("geometry", GATHERED, ids=str)
def test_gathered_taps_of_a_weight_gradient_are_all_of_it_once(geometry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    m = modules()
    monkeypatch.setattr(m.launch_dweight, "LEAST_GATHERED", (1, 1))
    monkeypatch.setattr(m.launch_dweight, "multiprocessors", lambda device: 132)
    x, weight, window, groups = drawn(geometry)
    dy, right = dy_and_dweight(x, weight, window, groups)
    it = m.launch_dweight.plan_gathered(*map(Strided, (dy, x, weight)), window, groups, "strict")
    g, came = it.geometry, np.full(right.shape, -999)
    slots = m.gradient_slots.SLOTS
    assert it.shared <= it.rung.shared_memory
    assert 1 <= g.shares <= g.chunks
    assert g.stages >= 2
    assert (g.taps_h, g.taps_w) == weight.shape[2:]
    assert g.channels == math.prod(weight.shape[1:])

    def slot_of(slot: int) -> tuple[int, int, int]:
        row, column = divmod(slot, g.pitch)
        assert slot * (g.pitch_multiplier % 2**32) >> g.pitch_shift == row
        return row // g.rows, row % g.rows, column

    def x_at(slot: int, group: int, v: int) -> int:
        """What a channel, which is a tap of a channel of x, has at a slot."""
        (n, p, q), (c, tap) = slot_of(slot), divmod(v, g.taps_h * g.taps_w)
        r, s = divmod(tap, g.taps_w)
        h, w = p * g.stride_h - g.top + r * g.dilation_h, q * g.stride_w - g.left + s * g.dilation_w
        channel = group * (g.channels // (g.taps_h * g.taps_w)) + c
        return int(x[n, channel, h, w]) if n < g.images and 0 <= h < g.height and 0 <= w < g.width else 0

    def dy_at(slot: int, k: int) -> int:
        n, p, q = slot_of(slot)
        return int(dy[n, k, p, q]) if n < g.images and p < g.p and q < g.q else 0

    for tile in range(it.tiles):
        group, filter_block, channel_block, *rest = m.gradient_slots.part_of.py_func(tile, g)
        assert rest == [0, 0, 0]
        for k, v in np.ndindex(m.gradient_slots.FILTERS, m.gradient_slots.WIDTH * m.gradient_slots.WARPGROUPS):
            k, v = filter_block * m.gradient_slots.FILTERS + k, channel_block * 96 + v
            if k < g.filters and v < g.channels:
                k += group * g.filters
                at = k * math.prod(weight.shape[1:]) + v  # As `_launch` tells the sum of shares.
                assert came.reshape(-1)[at] == -999
                came.reshape(-1)[at] = sum(dy_at(i, k) * x_at(i, group, v) for i in range(g.chunks * slots))
    np.testing.assert_array_equal(came, right)


def recomputed(monkeypatch: pytest.MonkeyPatch, module: Any, *arguments: Any) -> list[tuple[int, ...]]:
    """The weights that `_again` computes, run as Python by a single thread."""
    found: list[tuple[int, ...]] = []
    first, alone = SimpleNamespace(x=0), SimpleNamespace(x=1)
    a_thread = SimpleNamespace(
        shared=SimpleNamespace(array=lambda *_: None), threadIdx=first, blockIdx=first, blockDim=alone, gridDim=alone,
        syncthreads_or=int,
    )  # fmt: skip
    monkeypatch.setattr(module, "cuda", a_thread)
    monkeypatch.setattr(module, "THREADS", 1)
    monkeypatch.setattr(module, "weight_gradient_of", lambda _dy, _x, _d, k, c, r, s, *_: found.append((k, c, r, s)))
    module._again(*arguments)
    return sorted(found)


@pytest.mark.parametrize("gathered", [False, True])
@pytest.mark.parametrize("geometry", GATHERED, ids=str)
def test_weights_that_are_computed_again_are_those_that_a_tile_stands_for(
    geometry: Any, gathered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = modules()
    monkeypatch.setattr(m.launch_dweight, "LEAST_GATHERED", (1, 1))
    monkeypatch.setattr(m.launch_dweight, "multiprocessors", lambda device: 132)
    x, weight, window, groups = drawn(geometry)
    dy, right = dy_and_dweight(x, weight, window, groups)
    make = m.launch_dweight.plan_gathered if gathered else m.launch_dweight.plan
    it = make(*map(Strided, (dy, x, weight)), window, groups, "strict")

    def again(flags: np.ndarray) -> list[tuple[int, ...]]:
        arguments = dy, x, right, window.stride, window.padding, window.dilation, groups, flags, it.geometry, it.width
        return recomputed(monkeypatch, m.launch_dweight, *arguments)

    assert again(np.zeros(it.tiles, np.int32)) == []
    assert again(np.ones(it.tiles, np.int32)) == list(np.ndindex(*right.shape))
    for tile in range(it.tiles):
        group, filter_block, channel_block, *_ = m.gradient_slots.part_of.py_func(tile, it.geometry)
        flags = np.zeros(it.tiles, np.int32)
        flags[tile] = 1
        filters = len(weight) // groups
        expected = [
            (k, c, r, s)
            for k, c, r, s in np.ndindex(*right.shape)
            if k // filters == group and k % filters // m.gradient_slots.FILTERS == filter_block
            and ((c * weight.shape[2] + r) * weight.shape[3] + s if gathered else c) // it.width == channel_block
        ]  # fmt: skip
        assert again(flags) == expected


@pytest.mark.parametrize("geometry", WIDE[-2:], ids=str)
def test_weights_that_are_computed_again_are_those_of_eight_channels_or_filters(
    geometry: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = modules()
    for least in ("LEAST_CHANNELS", "LEAST_OF_STRIDED"):
        monkeypatch.setattr(m.wide_dweight, least, 1)
    monkeypatch.setattr(m.wide_dweight, "position", lambda i, shape: tuple(map(int, np.unravel_index(i, shape))))
    x, weight, window, groups = drawn(geometry)
    dy, right = dy_and_dweight(x, weight, window, groups)
    it = m.wide_dweight.plan(*map(Strided, (dy, x, weight)), window, groups, "strict", 132)
    x_units, y_units, filters = it.x.flags // groups, it.dy.flags // groups, len(weight) // groups
    for flag in (0, it.x.flags - 1, it.x.flags, it.flags - y_units // 2):
        flags = np.zeros(it.flags, np.int32)
        flags[flag] = 1
        arguments = dy, x, right, window.stride, window.padding, window.dilation, groups, flags, x_units, y_units
        expected = [
            (k, c, r, s)
            for k, c, r, s in np.ndindex(*right.shape)
            if flag in (k // filters * x_units + c // 8, it.x.flags + k // filters * y_units + k % filters // 8)
        ]
        assert recomputed(monkeypatch, m.wide_dweight, *arguments) == expected
