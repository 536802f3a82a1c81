"""How a convolution becomes work for the fast kernel, or why it does not: rows of preconditions, and its numbers."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .arithmetic import ARITHMETIC
from .laid_out import BAND, Layout
from .pack import Filters
from .problem import Problem, are_few, division, pitch_of
from .rungs import HOPPER, Rung
from .slots import FILTERS, SHARES, TABLE, Block, Geometry

MOST_STAGES, H200 = 4, 132
"""Stages that are in shared memory at a time; multiprocessors of the GPU that widths were measured on."""
TURN = 32
"""What a turn costs beside its columns, in columns: filling the stages, writing the results."""
LEAST_CHANNELS, LEAST_FILTERS, LEAST_TERMS = 48, 65, 256
"""From which on x is laid out beforehand: a band of 64 channels is mostly full, more than one block of filters would
split the same slots, and products of so many terms make up for laying them out."""

MOST_GATHERED, NEAR = 4, 2**14
"""Channels whose taps are gathered; how large an image, and how far apart its taps, may be for that."""


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


def splits(problem: Problem, precision: str, rung: Rung = HOPPER) -> list[Block]:
    """The blocks that can serve the problem, the best first: a whole filter, its rows, single taps."""
    if rung.by_warps:
        return _splits_by_warps(problem, precision, rung)
    return [_stacked(each, problem) for each in _splits_by_warpgroups(problem, precision)]


def _stacked(block: Block, problem: Problem) -> Block:
    """With two parts of its weights in one product, where filters leave half of one empty, and products take longer
    than the loads: 32x32x112x112 -> 64, 1x1, dx gained nothing, 3x3 a quarter. 136 columns, and what is added to them
    as they are stored, do not fit the registers."""
    are_few_products = problem.channels * _taps(problem) < LEAST_TERMS
    if problem.filters > FILTERS // 2 or block.arithmetic.parts == 1 or block.laid or are_few_products:
        return block
    return dataclasses.replace(block, stacked=True, columns=min(block.columns, 128))


def _splits_by_warpgroups(problem: Problem, precision: str) -> list[Block]:
    (rows, row), (_, stride_w) = problem.taps, problem.stride
    whole, blocks = (rows, row) == (3, 3) and problem.stride == (1, 1), []
    laid = Block(precision, 1, 1, BAND, 128, side_by_side=False, laid=True)
    lines = problem.groups * -(-problem.channels // BAND) * math.prod(_phases_of_layout(problem))
    many = problem.channels >= LEAST_CHANNELS and problem.filters >= LEAST_FILTERS and lines < 2**16
    many = many and problem.channels * _taps(problem) >= LEAST_TERMS
    slots = problem.images * math.prod(_pitches(problem, laid))
    many = many and are_few(slots, problem.images * max(math.prod(problem.output), math.prod(problem.image)))
    if many and not whole and ARITHMETIC[precision].kind != "tf32":
        blocks.append(laid)
    if is_gathered(problem):
        # Where images have scales, 136 columns and the taps' places do not fit the registers.
        columns = 128 if ARITHMETIC[precision].scaled else 136
        blocks.append(Block(precision, 1, 1, 32, columns, problem.filters <= 64, gathered=True))
    if rows == row == 1:
        channels = 32 if problem.channels > 16 else 16
        return [*blocks, Block(precision, 1, 1, channels, 128, side_by_side=problem.filters <= 64)]
    if whole:
        blocks.append(Block(precision, 3, 3, 16, 136))
    across = -(-row // stride_w)
    if 1 < across <= 7 and (stride_w == 1 or problem.dilation[1] == 1):
        blocks.append(Block(precision, 1, across, 16, 136))
    return [*blocks, Block(precision, 1, 1, 32 if problem.channels > 16 else 16, 128, problem.filters <= 64)]


def is_gathered(problem: Problem) -> bool:
    """Whether few channels make it worth while to gather every tap of every channel on its own."""
    _, _, *w_strides = problem.w_strides
    _, *x_strides = problem.x_strides
    return are_gathered(
        problem.channels, problem.taps, problem.image, problem.before, problem.dilation, x_strides, w_strides
    )


def are_gathered(
    channels: int, taps: tuple[int, int], image: Sequence[int], before: Sequence[int], dilation: tuple[int, int],
    x_strides: Sequence[int], w_strides: Sequence[int],
) -> bool:  # fmt: skip
    """Whether so many channels are few, and their taps lie close to each other in x and side by side in the weights."""
    (w_c, w_r, w_s), (x_c, x_h, x_w), count = w_strides, x_strides, math.prod(taps)
    down, across = ((n - 1) * apart for n, apart in zip(taps, dilation, strict=True))
    is_near = max(*image, *map(abs, before), down, across) < NEAR
    reach = channels * abs(x_c) + down * abs(x_h) + across * abs(x_w)
    is_small = channels <= MOST_GATHERED and 1 < count <= TABLE // 8 // 32 * 32 // channels
    return is_small and is_near and reach < 2**29 and (w_c, w_r) == (count * w_s, taps[1] * w_s)


def _splits_by_warps(problem: Problem, precision: str, rung: Rung) -> list[Block]:
    """As `splits`. Each stage is there twice and x once more as it came, in less memory: whole filters of few bytes."""
    (rows, row), (_, stride_w), blocks = problem.taps, problem.stride, []
    if (rows, row) == (3, 3) and problem.stride == (1, 1):
        blocks.append(Block(precision, 3, 3, 16, 128, rung=rung))
    across = -(-row // stride_w)
    if 1 < across <= 7 and (stride_w == 1 or problem.dilation[1] == 1):
        blocks.append(Block(precision, 1, across, 16, 128, rung=rung))
    is_narrow = problem.filters <= 64
    channels = (32, 16) if problem.channels > 16 else (16,)
    return [*blocks, *(Block(precision, 1, 1, each, 128, is_narrow, rung=rung) for each in channels)]


@dataclass(frozen=True)
class Row:
    """A precondition of the fast kernel: what it asks, of the problem, the precision and the rung, and why."""

    holds: Callable[[Problem, str, Rung], bool]
    reason: str


def _padded_work(problem: Problem) -> int:
    channels, filters = -(-problem.channels // 16) * 16, -(-problem.filters // 64) * 64
    return problem.images * problem.groups * problem.output[0] * problem.output[1] * channels * filters * _taps(problem)


def _taps(problem: Problem) -> int:
    return problem.taps[0] * problem.taps[1]


def _work(problem: Problem) -> int:
    pixels = problem.images * problem.output[0] * problem.output[1]
    return pixels * problem.groups * problem.channels * problem.filters * _taps(problem)


ROWS = (
    Row(lambda p, *_: p.images > 0 and p.filters > 0 and min(p.output) > 0, "there is something to compute"),
    Row(lambda p, *_: p.channels > 0 and min(p.taps) > 0, "there is something to sum"),
    Row(
        lambda p, *_: _padded_work(p) <= max(64 * _work(p), 2**27),
        "filled up to 16 channels and 64 filters, it is at most 64 times the work, or little work",
    ),
    Row(lambda p, precision, rung: _best(p, precision, rung) is not None, "two stages fit into shared memory"),
    Row(lambda p, precision, rung: _slots(p, precision, rung) < 2**31, "slots are counted in 31 bits"),
    Row(
        lambda p, *_: max(map(abs, (*p.x_strides, *p.y_strides, *p.w_strides))) < 2**29,
        "strides in bytes are 32-bit numbers",
    ),
)
"""What the kernel needs of a problem. Beside it: float32, compute capability 8.0 or more, no simulator."""


@functools.lru_cache(4096)
def arithmetic_of(problem: Problem, precision: str, rung: Rung = HOPPER) -> str:
    """What computes a problem: TF32 has no layout, so where several taps would read one, bf16x4 stands in for it."""
    if precision == "tf32" and not rung.by_warps and _taps(problem) > 1 and splits(problem, "bf16x4", rung)[0].laid:
        return "bf16x4"
    return precision


@functools.lru_cache(4096)
def explain(problem: Problem, precision: str, rung: Rung = HOPPER) -> str | None:
    """The first precondition that does not hold; None if the fast kernel serves the problem."""
    return next((row.reason for row in ROWS if not row.holds(problem, precision, rung)), None)


def _pitches(problem: Problem, block: Block) -> tuple[int, int]:
    """Slots from an image to the next, in rows, and from a row to the next."""
    if block.gathered:
        return problem.output
    if block.laid:
        (down, across), (phase_rows, phase_columns) = _reach(problem), _phases_of_layout(problem)
        return (
            pitch_of(
                problem.image[0], problem.output[0], problem.stride[0], problem.before[0], 1 + down, phase_rows - 1
            ),
            pitch_of(
                problem.image[1], problem.output[1], problem.stride[1], problem.before[1], 1 + across, phase_columns - 1
            ),
        )
    (rows, _), whole, (step_h, step_w) = problem.taps, block.rows > 1, _steps(problem, block)
    return (
        pitch_of(
            problem.image[0], problem.output[0], problem.stride[0], problem.before[0],
            1 + (rows - 1) * step_h if whole else 1, 0 if whole else (rows - 1) * problem.dilation[0],
        ),
        pitch_of(
            problem.image[1], problem.output[1], problem.stride[1], problem.before[1],
            1 + (block.row - 1) * step_w, (_phase_columns(problem, block) - 1) * problem.dilation[1],
        ),
    )  # fmt: skip


def _reach(problem: Problem) -> tuple[int, int]:
    """How many positions of a phase the last tap lies from the first, down and across."""
    down, across = (
        (taps - 1) * dilation // stride
        for taps, dilation, stride in zip(problem.taps, problem.dilation, problem.stride, strict=True)
    )
    return down, across


def _phases_of_layout(problem: Problem) -> tuple[int, int]:
    rows, columns = (stride if taps > 1 else 1 for taps, stride in zip(problem.taps, problem.stride, strict=True))
    return rows, columns


def _phase_columns(problem: Problem, block: Block) -> int:
    return -(-problem.taps[1] // block.row) if block.row == 1 else min(problem.stride[1], problem.taps[1])


def _steps(problem: Problem, block: Block) -> tuple[int, int]:
    """How many positions a tap of the block lies from the one before, down and across."""
    return problem.dilation[0], problem.dilation[1] if problem.stride[1] == 1 else 1


def _slots_of(problem: Problem, block: Block) -> int:
    """Of x in a stage."""
    if block.gathered:
        return block.pixels
    if block.laid:  # A copy starts at the first of eight slots, up to seven before the first that is read.
        return block.pixels + (8 if max(problem.taps) > 1 else 0)
    (_, pitch), (step_h, step_w) = _pitches(problem, block), _steps(problem, block)
    reach = (block.rows - 1) * step_h * pitch + (block.row - 1) * step_w
    return -(-(block.pixels + reach) // 8) * 8


def _stages(problem: Problem, block: Block) -> int:
    slots, memory = _slots_of(problem, block), block.rung.shared_memory
    steps = -(-_channels(problem, block) // block.channels) * _phases(problem, block)
    most = 2 if block.rung.by_warps else min(MOST_STAGES, max(2, steps))
    return next((stages for stages in range(most, 0, -1) if block.shared(slots, stages) <= memory), 0)


def _channels(problem: Problem, block: Block) -> int:
    """That the block sees in a group."""
    return problem.channels * (_taps(problem) if block.gathered else 1)


def _phases(problem: Problem, block: Block) -> int:
    if block.gathered:
        return 1
    return (1 if block.rows > 1 else problem.taps[0]) * _phase_columns(problem, block)


def _slots(problem: Problem, precision: str, rung: Rung) -> int:
    block = _best(problem, precision, rung)
    assert block is not None
    return problem.images * math.prod(_pitches(problem, block)) + _slots_of(problem, block)


def _pixel_tiles(problem: Problem, block: Block, pitches: tuple[int, int]) -> int:
    rows, pitch = pitches
    last = ((problem.images - 1) * rows + problem.output[0] - 1) * pitch + problem.output[1]
    return -(-last // block.pixels)


@functools.lru_cache(4096)
def _best(problem: Problem, precision: str, rung: Rung, multiprocessors: int = H200) -> Block | None:
    """The block, and the columns whose tiles fill the multiprocessors' turns best; the first of two as good."""
    for block in splits(problem, precision, rung):
        widths = [dataclasses.replace(block, columns=columns) for columns in rung.columns if columns <= block.columns]
        fitting = [each for each in widths if _stages(problem, each) >= 2]
        if fitting:

            def turns(block: Block) -> int:
                tiles = (
                    _pixel_tiles(problem, block, _pitches(problem, block))
                    * problem.groups
                    * -(-problem.filters // block.filters)
                )
                return -(-tiles // multiprocessors) * (block.columns + TURN)

            return min(fitting, key=turns)
    return None


@functools.lru_cache(4096)
def plan(problem: Problem, precision: str, multiprocessors: int, rectify: bool = False, rung: Rung = HOPPER) -> Plan:
    """The work for a problem that `explain` has nothing against."""
    block = _best(problem, precision, rung, multiprocessors)
    assert block is not None, explain(problem, precision, rung)
    return numbers(problem, block, rectify)


class Slots(NamedTuple):
    """Rows from an image to the next, slots from a row to the next, tiles of pixels."""

    rows: int
    pitch: int
    tiles: int


def plans_of_phases(problems: Sequence[Problem], precision: str, multiprocessors: int, rung: Rung) -> list[Plan]:
    """The work for convolutions of one array. Where it is laid out for each of them, and padded alike, it is once for
    all: in the most slots, which leave zeros that nobody reads, and as far as any of them reaches."""
    words = [arithmetic_of(each, precision, rung) for each in problems]
    if "bf16x4" in words:  # Then the others may share its layout.
        words = [
            "bf16x4" if explain(each, "bf16x4", rung) is None else word
            for each, word in zip(problems, words, strict=True)
        ]
    plans = [plan(each, word, multiprocessors, False, rung) for each, word in zip(problems, words, strict=True)]
    if len(plans) < 2 or len({each.before for each in problems}) > 1 or any(it.layout is None for it in plans):
        return plans
    block = max(zip(problems, plans, strict=True), key=lambda each: _taps(each[0]))[1].block
    rows, pitch = (max(sizes) for sizes in zip(*(_pitches(each, block) for each in problems), strict=True))
    tiles = max(_pixel_tiles(each, block, (rows, pitch)) for each in problems)
    plans = [numbers(each, block, slots=Slots(rows, pitch, tiles)) for each in problems]
    farthest = max((it.layout for it in plans if it.layout is not None), key=lambda layout: layout.reach)
    return [
        dataclasses.replace(it, layout=farthest, geometry=it.geometry._replace(laid_slots=farthest.slots))
        for it in plans
    ]


def numbers(problem: Problem, block: Block, rectify: bool = False, slots: Slots | None = None) -> Plan:
    """The work for a problem with one of the blocks that can serve it, in slots of its own or in these."""
    if slots is None:
        pitches = _pitches(problem, block)
        slots = Slots(*pitches, _pixel_tiles(problem, block, pitches))
    (rows, pitch, pixel_tiles), (step_h, step_w) = slots, _steps(problem, block)
    filter_blocks = -(-problem.filters // block.filters)
    channels = _channels(problem, block)
    chunks = -(-channels // block.channels)
    phase_rows = 1 if block.rows > 1 or block.gathered else problem.taps[0]
    phase_columns = 1 if block.gathered else _phase_columns(problem, block)
    layout = _layout(problem, block, rows, pitch, pixel_tiles) if block.laid else None
    geometry = Geometry(
        problem.images, channels, *problem.image, *problem.x_strides, *problem.stride, *problem.before,
        rows, *division(rows), pitch, *division(pitch),
        _slots_of(problem, block), step_h * pitch, step_w, chunks,
        phase_rows, phase_columns, problem.dilation[0], problem.dilation[1],
        problem.groups, filter_blocks, problem.filters, *problem.output, *problem.y_strides,
        pixel_tiles * problem.groups * filter_blocks, _stages(problem, block), int(rectify), *problem.taps,
        0 if layout is None else layout.slots, 1 if layout is None else layout.phase_columns,
    )  # fmt: skip
    w_strides, row = problem.w_strides, problem.taps[1]
    if block.gathered:  # Taps lie side by side in a channel, as channels do.
        w_strides, row = (*w_strides[:2], w_strides[4], 0, 0), 1
    filters = Filters(
        channels, problem.groups, problem.filters, filter_blocks, *w_strides,
        row, chunks, phase_rows, phase_columns, problem.images, pixel_tiles,
    )  # fmt: skip
    return Plan(block, geometry, filters, layout)


def _layout(problem: Problem, block: Block, rows: int, pitch: int, pixel_tiles: int) -> Layout:
    """x in slots, so many that the last tile's last tap finds zeros."""
    (down, across), (phase_rows, phase_columns) = _reach(problem), _phases_of_layout(problem)
    reach = down * pitch + across
    slots = (pixel_tiles - 1) * block.pixels + reach // 8 * 8 + _slots_of(problem, block)
    return Layout(
        problem.images, problem.channels, problem.groups, *problem.image, *problem.x_strides, *problem.stride,
        *problem.before, rows, *division(rows), pitch, *division(pitch), phase_rows * phase_columns, phase_columns,
        -(-problem.channels // BAND), slots, block.pixels, pixel_tiles, reach,
    )  # fmt: skip
