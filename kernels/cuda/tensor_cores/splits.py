"""Into which blocks a convolution can be split for the fast kernel, and which of them is taken."""

import dataclasses
import functools
import math
from collections.abc import Sequence

from .arithmetic import ARITHMETIC
from .laid_out import BAND
from .problem import Problem, are_few
from .rungs import HOPPER, Rung
from .sizes import laid_phases, pitches_of, slots_of, stages_of, taps_of
from .slots import FILTERS, TABLE, Block

H200 = 132
"""Multiprocessors of the GPU that widths were measured on."""
TURN = 32
"""What a turn costs beside its columns, in columns: filling the stages, writing the results."""
LEAST_CHANNELS, LEAST_FILTERS, LEAST_TERMS = 48, 65, 256
"""From which on x is laid out beforehand: a band of 64 channels is mostly full, more than one block of filters would
split the same slots, and products of so many terms make up for laying them out."""
MOST_GATHERED, NEAR = 4, 2**14
"""Channels whose taps are gathered; how large an image, and how far apart its taps, may be for that."""


def splits(problem: Problem, precision: str, rung: Rung = HOPPER) -> list[Block]:
    """The blocks that can serve the problem, the best first: a whole filter, its rows, single taps."""
    if rung.by_warps:
        return _splits_by_warps(problem, precision, rung)
    return [_stacked(each, problem) for each in _splits_by_warpgroups(problem, precision)]


def _stacked(block: Block, problem: Problem) -> Block:
    """With two parts of its weights in one product, where filters leave half of one empty, and products take longer
    than the loads: 32x32x112x112 -> 64, 1x1, dx gained nothing, 3x3 a quarter. 136 columns, and what is added to them
    as they are stored, do not fit the registers."""
    are_few_products = problem.channels * taps_of(problem) < LEAST_TERMS
    if problem.filters > FILTERS // 2 or block.arithmetic.parts == 1 or block.laid or are_few_products:
        return block
    return dataclasses.replace(block, stacked=True, columns=min(block.columns, 128))


def _splits_by_warpgroups(problem: Problem, precision: str) -> list[Block]:
    blocks, is_narrow = [], problem.filters <= 64
    laid = Block(precision, 1, 1, BAND, 128, side_by_side=False, laid=True)
    if not _is_whole(problem) and ARITHMETIC[precision].kind != "tf32" and _is_worth_a_layout(problem, laid):
        blocks.append(laid)
    if is_gathered(problem):
        # Where images have scales, 136 columns and the taps' places do not fit the registers.
        columns = 128 if ARITHMETIC[precision].scaled else 136
        blocks.append(Block(precision, 1, 1, 32, columns, is_narrow, gathered=True))
    if _is_whole(problem):
        blocks.append(Block(precision, 3, 3, 16, 136))
    across = _together(problem)
    if across > 1:
        blocks.append(Block(precision, 1, across, 16, 136))
    return [*blocks, Block(precision, 1, 1, 32 if problem.channels > 16 else 16, 128, is_narrow)]


def _splits_by_warps(problem: Problem, precision: str, rung: Rung) -> list[Block]:
    """As `splits`. Each stage is there twice and x once more as it came, in less memory: whole filters of few bytes."""
    blocks, across, is_narrow = [], _together(problem), problem.filters <= 64
    if _is_whole(problem):
        blocks.append(Block(precision, 3, 3, 16, 128, rung=rung))
    if across > 1:
        blocks.append(Block(precision, 1, across, 16, 128, rung=rung))
    channels = (32, 16) if problem.channels > 16 else (16,)
    return [*blocks, *(Block(precision, 1, 1, each, 128, is_narrow, rung=rung) for each in channels)]


def _is_whole(problem: Problem) -> bool:
    return problem.taps == (3, 3) and problem.stride == (1, 1)


def _together(problem: Problem) -> int:
    """Taps of a row, or of a phase of it, that a stage can hold; 1 if they are single ones."""
    across = -(-problem.taps[1] // problem.stride[1])
    return across if across <= 7 and 1 in (problem.stride[1], problem.dilation[1]) else 1


def _is_worth_a_layout(problem: Problem, laid: Block) -> bool:
    """Whether x is to be laid out, and can be."""
    is_wide = problem.channels >= LEAST_CHANNELS and problem.filters >= LEAST_FILTERS
    if not is_wide or problem.channels * taps_of(problem) < LEAST_TERMS:
        return False
    lines = problem.groups * -(-problem.channels // BAND) * math.prod(laid_phases(problem))
    slots = problem.images * math.prod(pitches_of(problem, laid))
    pixels = problem.images * max(math.prod(problem.output), math.prod(problem.image))
    return lines < 2**16 and are_few(slots, pixels)


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


@functools.lru_cache(4096)
def best(problem: Problem, precision: str, rung: Rung, multiprocessors: int = H200) -> Block | None:
    """The block, and the columns whose tiles fill the multiprocessors' turns best; the first of two as good."""

    def turns(block: Block) -> int:
        tiles = slots_of(problem, block).tiles * problem.groups * -(-problem.filters // block.filters)
        return -(-tiles // multiprocessors) * (block.columns + TURN)

    for block in splits(problem, precision, rung):
        widths = [dataclasses.replace(block, columns=columns) for columns in rung.columns if columns <= block.columns]
        fitting = [each for each in widths if stages_of(problem, each) >= 2]
        if fitting:
            return min(fitting, key=turns)
    return None
