"""A row cut into vectors: whole ones, and edges whose masks are made beforehand; and memory that is asked for early."""

from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
from llvmlite import ir

from .vectors import LANES, Words

AHEAD = 2**13
"""Bytes between what is read and what is asked for: memory answers in the time that the ones take for the others."""

_LINE = 64


def cut(start: int, whole: int, masks: int, edges: Sequence[Sequence[int]]) -> np.ndarray:
    """A plan for `over_rows`: `whole` vectors of a row from position `start` on, and edges, each with so many masks.

    An edge is its position, then the bits of its masks, the first of which has one. `[start, whole, strips, *strips]`:
    a strip is the edge before the whole vectors and that behind them; one that is not there has no bits.
    """
    before, behind = ([each for each in edges if (each[0] < start) is left] for left in (True, False))
    nothing = [0] * (1 + masks)
    strips = [*zip_longest(before, behind, fillvalue=nothing)] or [(nothing, nothing)]
    return np.array(
        [start, whole, len(strips), *(bits for strip in strips for edge in strip for bits in edge)], np.int64
    )


def edge(position: int, count: int) -> int:
    """Where the vector at an edge begins: where stores under a mask are slow, it overlaps the one before it."""
    return position if LANES == 16 else min(position, max(0, count - LANES))


def bits(first: int, size: int) -> int:
    """A mask's bits: lane l has its own if `0 <= first + l < size`."""
    return sum(1 << lane for lane in range(LANES) if 0 <= first + lane < size)


def over_rows(
    words: Words, plan: Any, masks: int, rows: Any, carried: tuple[Any, ...], block: Callable[..., None],
    following: Callable[..., tuple[Any, ...]],
) -> None:  # fmt: skip
    """`block(position, masks, *carried)` for every vector of every row, as `cut` planned; masks None where it is whole.

    The next row has `following(*carried)`. A row is done from left to right: memory is met in the order it lies in.
    """
    builder = words.builder
    start, whole, strips = (words.load_integer(words.at(plan, 8 * number)) for number in range(3))
    size = 8 * (1 + masks)
    with words.loop(strips, words.at(plan, 24), whole) as strip:
        at, here = strip.carried
        edges = at, words.at(at, size)
        found = [[_mask(words, words.at(edge, 8 * (1 + number))) for number in range(masks)] for edge in edges]
        is_there = [words.any(each[0]) for each in found]
        positions = [words.load_integer(edge) for edge in edges]
        with words.loop(rows, *carried) as row:
            with builder.if_then(is_there[0]):
                block(positions[0], found[0], *row.carried)
            with words.loop(here, start) as loop:
                block(loop.carried[0], None, *row.carried)
                loop.carry(words.at(loop.carried[0], words.lanes))
            with builder.if_then(is_there[1]):
                block(positions[1], found[1], *row.carried)
            row.carry(*following(*row.carried))
        # There are more strips only where few vectors are whole: those are done.
        strip.carry(words.at(at, 2 * size), words.number(0))


def ask(words: Words, address: Any, size: Any, to_write: bool = False) -> None:
    """Start to bring near `size` bytes that stand `AHEAD` of an address: they need not be memory."""
    with words.loop(words.builder.sdiv(size, words.number(_LINE)), words.at(address, AHEAD)) as line:
        words.prefetch(line.carried[0], to_write)
        line.carry(words.at(line.carried[0], _LINE))


def store(words: Words, mask: Any, vector: Any, address: Any, past: bool = False) -> None:
    """All lanes, or those of a mask; with `past` whole vectors past the caches, at aligned addresses."""
    whole_store = words.store_past if past else words.store
    if mask is None:
        whole_store(vector, address)
    elif words.stores_masked:
        words.store_where(mask, vector, address)
    else:
        is_part = words.any(words.builder.not_(mask))
        with words.builder.if_else(is_part) as (part, whole):
            with part:
                words.store_where(mask, vector, address)
            with whole:
                whole_store(vector, address)


def _mask(words: Words, address: Any) -> Any:
    """The mask whose bits are in the integer at `address`."""
    return words.builder.bitcast(words.builder.trunc(words.load_integer(address), ir.IntType(words.lanes)), words.mask)
