"""What a block of slots.py makes of a problem, in numbers: pitches, phases, slots and stages."""

import math
from typing import NamedTuple

from .problem import Problem, pitch_of
from .slots import Block

MOST_STAGES = 4
"""That are in shared memory at a time."""


class Slots(NamedTuple):
    """Rows from an image to the next, slots from a row to the next, tiles of pixels."""

    rows: int
    pitch: int
    tiles: int


def slots_of(problem: Problem, block: Block, pitches: tuple[int, int] | None = None) -> Slots:
    """All slots of the problem; in wider pitches if others want them."""
    rows, pitch = pitches_of(problem, block) if pitches is None else pitches
    last = ((problem.images - 1) * rows + problem.output[0] - 1) * pitch + problem.output[1]
    return Slots(rows, pitch, -(-last // block.pixels))


def taps_of(problem: Problem) -> int:
    return math.prod(problem.taps)


def pitches_of(problem: Problem, block: Block) -> tuple[int, int]:
    """Slots from an image to the next, in rows, and from a row to the next."""
    if block.gathered:
        return problem.output
    if block.laid:
        taps = tuple(1 + farthest for farthest in reach_of(problem))
        beyond = tuple(phases - 1 for phases in laid_phases(problem))
    else:
        (rows, _), (step_h, step_w) = problem.taps, steps_of(problem, block)
        is_whole, columns = block.rows > 1, phase_columns(problem, block)
        taps = (1 + (rows - 1) * step_h if is_whole else 1), 1 + (block.row - 1) * step_w
        beyond = (0 if is_whole else (rows - 1) * problem.dilation[0]), (columns - 1) * problem.dilation[1]
    down, across = (
        pitch_of(*sizes)
        for sizes in zip(problem.image, problem.output, problem.stride, problem.before, taps, beyond, strict=True)
    )
    return down, across


def reach_of(problem: Problem) -> tuple[int, int]:
    """How many positions of a phase the last tap lies from the first, down and across."""
    down, across = (
        (taps - 1) * dilation // stride
        for taps, dilation, stride in zip(problem.taps, problem.dilation, problem.stride, strict=True)
    )
    return down, across


def laid_phases(problem: Problem) -> tuple[int, int]:
    """Phases of x, down and across, if it is laid out."""
    rows, columns = (stride if taps > 1 else 1 for taps, stride in zip(problem.taps, problem.stride, strict=True))
    return rows, columns


def phase_rows(problem: Problem, block: Block) -> int:
    """Rows of taps that are stages of their own."""
    return 1 if block.rows > 1 or block.gathered else problem.taps[0]


def phase_columns(problem: Problem, block: Block) -> int:
    """Taps, or phases of taps, of a row that are stages of their own."""
    if block.gathered:
        return 1
    return -(-problem.taps[1] // block.row) if block.row == 1 else min(problem.stride[1], problem.taps[1])


def steps_of(problem: Problem, block: Block) -> tuple[int, int]:
    """How many positions a tap of the block lies from the one before, down and across."""
    return problem.dilation[0], problem.dilation[1] if problem.stride[1] == 1 else 1


def channels_of(problem: Problem, block: Block) -> int:
    """That the block sees in a group."""
    return problem.channels * (taps_of(problem) if block.gathered else 1)


def slots_of_stage(problem: Problem, block: Block) -> int:
    """Slots of x in a stage."""
    if block.gathered:
        return block.pixels
    if block.laid:  # A copy starts at the first of eight slots, up to seven before the first that is read.
        return block.pixels + (8 if max(problem.taps) > 1 else 0)
    (_, pitch), (step_h, step_w) = pitches_of(problem, block), steps_of(problem, block)
    reach = (block.rows - 1) * step_h * pitch + (block.row - 1) * step_w
    return -(-(block.pixels + reach) // 8) * 8


def stages_of(problem: Problem, block: Block) -> int:
    """As many as there are, or as the shared memory holds."""
    slots, memory = slots_of_stage(problem, block), block.rung.shared_memory
    chunks = -(-channels_of(problem, block) // block.channels)
    steps = chunks * phase_rows(problem, block) * phase_columns(problem, block)
    most = 2 if block.rung.by_warps else min(MOST_STAGES, max(2, steps))
    return next((stages for stages in range(most, 0, -1) if block.shared(slots, stages) <= memory), 0)
