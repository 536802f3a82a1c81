"""How a convolution becomes work for the fast kernel: the block that serves it, and its numbers."""

import dataclasses
import functools
from dataclasses import dataclass

from .laid_out import BAND, Layout
from .pack import Filters
from .preconditions import arithmetics_of, explain
from .problem import Problem, division
from .rungs import HOPPER, Rung
from .sizes import (
    Slots,
    channels_of,
    laid_phases,
    phase_columns,
    phase_rows,
    pitches_of,
    reach_of,
    slots_of,
    slots_of_stage,
    stages_of,
    steps_of,
    taps_of,
)
from .slots import SHARES, Block, Geometry
from .splits import best


@dataclass(frozen=True)
class Plan:
    """The compiled block that serves a problem, and its numbers."""

    block: Block
    geometry: Geometry
    filters: Filters
    layout: Layout | None

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a block of threads."""
        return self.block.shared(self.geometry.slots, self.geometry.stages)

    @property
    def pixel_tiles(self) -> int:
        return self.filters.flags

    @property
    def lines(self) -> int:
        """Filters of all groups, filled up to whole tiles."""
        return self.geometry.groups * self.geometry.filter_blocks * self.block.filters

    @property
    def packed_bytes(self) -> int:
        steps = self.geometry.chunks * self.geometry.phase_rows * self.geometry.phase_columns
        return self.geometry.groups * self.geometry.filter_blocks * steps * self.block.weight_bytes

    @property
    def offsets(self) -> tuple[int, int, int, int]:
        """In bytes, where scales, packed weights and x as it is laid out lie, behind a zero and the flags; the end."""
        scales = -(-4 * (1 + self.pixel_tiles + self.lines) // 16) * 16
        packed = -(-(scales + 4 * (self.geometry.images * SHARES + self.lines)) // 128) * 128
        laid = packed + self.packed_bytes
        return scales, packed, laid, laid + (self.layout.size(self.block.arithmetic.parts) if self.layout else 0)

    @property
    def workspace(self) -> int:
        """Bytes beside the arguments and the result."""
        return self.offsets[-1]


@functools.lru_cache(4096)
def plan(problem: Problem, arithmetic: str, multiprocessors: int, rectify: bool = False, rung: Rung = HOPPER) -> Plan:
    """The work for a problem that `explain` has nothing against."""
    block = best(problem, arithmetic, rung, multiprocessors)
    assert block is not None, explain(problem, arithmetic, rung)
    return numbers(problem, block, rectify)


@functools.lru_cache(4096)
def plans_of_phases(
    problems: tuple[Problem, ...], precision: str, multiprocessors: int, rung: Rung
) -> tuple[Plan, ...]:
    """The work for convolutions of one array. It is laid out once for all that want it laid out, padded alike."""
    plans = [
        plan(each, arithmetic, multiprocessors, False, rung)
        for each, arithmetic in zip(problems, arithmetics_of(problems, precision, rung), strict=True)
    ]
    for before in {each.before for each in problems}:
        alike = [i for i, it in enumerate(plans) if it.layout is not None and problems[i].before == before]
        if len(alike) > 1:
            # The most taps make the most of the block's columns.
            block = plans[max(alike, key=lambda i: taps_of(problems[i]))].block
            for i, it in zip(alike, _sharing([problems[i] for i in alike], block), strict=True):
                plans[i] = it
    return tuple(plans)


def _sharing(problems: list[Problem], block: Block) -> list[Plan]:
    """Plans that read one layout: in the most slots, which leave zeros that nobody reads, and as far as any reaches."""
    rows, pitch = (max(sizes) for sizes in zip(*(pitches_of(each, block) for each in problems), strict=True))
    tiles = max(slots_of(each, block, (rows, pitch)).tiles for each in problems)
    plans = [numbers(each, block, slots=Slots(rows, pitch, tiles)) for each in problems]
    farthest = max((it.layout for it in plans if it.layout is not None), key=lambda layout: layout.reach)
    return [
        dataclasses.replace(it, layout=farthest, geometry=it.geometry._replace(laid_slots=farthest.slots))
        for it in plans
    ]


def numbers(problem: Problem, block: Block, rectify: bool = False, slots: Slots | None = None) -> Plan:
    """The work for a problem with one of the blocks that can serve it, in slots of its own or in these."""
    if slots is None:
        slots = slots_of(problem, block)
    (rows, pitch, pixel_tiles), (step_h, step_w) = slots, steps_of(problem, block)
    filter_blocks = -(-problem.filters // block.filters)
    channels, phases = channels_of(problem, block), (phase_rows(problem, block), phase_columns(problem, block))
    chunks = -(-channels // block.channels)
    layout = _layout(problem, block, rows, pitch, pixel_tiles) if block.laid else None
    geometry = Geometry(
        problem.images, channels, *problem.image, *problem.x_strides, *problem.stride, *problem.before,
        rows, *division(rows), pitch, *division(pitch),
        slots_of_stage(problem, block), step_h * pitch, step_w, chunks,
        *phases, *problem.dilation,
        problem.groups, filter_blocks, problem.filters, *problem.output, *problem.y_strides,
        pixel_tiles * problem.groups * filter_blocks, stages_of(problem, block), int(rectify), *problem.taps,
        0 if layout is None else layout.slots, 1 if layout is None else layout.phase_columns,
    )  # fmt: skip
    w_strides, row = problem.w_strides, problem.taps[1]
    if block.gathered:  # Taps lie side by side in a channel, as channels do.
        w_strides, row = (*w_strides[:2], w_strides[4], 0, 0), 1
    filters = Filters(
        channels, problem.groups, problem.filters, filter_blocks, *w_strides,
        row, chunks, *phases, problem.images, pixel_tiles,
    )  # fmt: skip
    return Plan(block, geometry, filters, layout)


def _layout(problem: Problem, block: Block, rows: int, pitch: int, pixel_tiles: int) -> Layout:
    """x in slots, so many that the last tile's last tap finds zeros."""
    (down, across), (rows_of_phases, columns) = reach_of(problem), laid_phases(problem)
    reach = down * pitch + across
    slots = (pixel_tiles - 1) * block.pixels + reach // 8 * 8 + slots_of_stage(problem, block)
    return Layout(
        problem.images, problem.channels, problem.groups, *problem.image, *problem.x_strides, *problem.stride,
        *problem.before, rows, *division(rows), pitch, *division(pitch), rows_of_phases * columns, columns,
        -(-problem.channels // BAND), slots, block.pixels, pixel_tiles, reach,
    )  # fmt: skip
