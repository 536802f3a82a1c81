"""Level L0: the size and index arithmetic is proved right for every size, by z3.

A theorem is a function of whole numbers that runs the project's own arithmetic and says what must hold of the result.
Called with numbers it answers True or False. `prove` calls it with symbols instead, and shows on every path through the
arithmetic that the negation has no solution.
"""

import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import z3

from kernelproof.spec import ReceptiveField, SizeMap, Sizes, Window
from kernelproof.spec.window import adaptive_bin, row_major

from .symbolic import Natural, Positive, given, paths


@dataclass(frozen=True)
class Theorem:
    """`holds` returns True wherever its premises hold; its parameters are the numbers it speaks of."""

    name: str
    statement: str
    holds: Callable[..., Any]


@dataclass(frozen=True)
class Proof:
    """What z3 says: proved, or the numbers that refute the theorem, or neither within the time allowed."""

    theorem: Theorem
    proved: bool
    paths: int
    seconds: float
    counterexample: dict[str, int] | None = None


THEOREMS: dict[str, Theorem] = {}
"""Every theorem by its name; `@theorem` fills it."""


def theorem(holds: Callable[..., Any]) -> Theorem:
    """Register the function below: its name is the theorem's, its docstring the statement."""
    made = Theorem(holds.__name__, inspect.getdoc(holds) or "", holds)
    THEOREMS[made.name] = made
    return made


def prove(theorem: Theorem, seconds: float = 60) -> Proof:
    """Prove a theorem for all numbers, or find some that refute it; each path is given so many seconds at most.

    Premises that no numbers meet prove nothing: such a theorem is not proved.
    """
    started, proved, possible, count = time.perf_counter(), True, False, 0
    for numbers, facts, goal in paths(theorem.holds):
        solver = z3.Solver()
        solver.set("timeout", int(1000 * seconds))
        solver.add(*facts)
        count += 1
        solver.push()
        solver.add(z3.Not(goal))
        answer = solver.check()
        if answer == z3.sat:
            model = solver.model()
            values = {name: model.eval(number, model_completion=True) for name, number in numbers.items()}
            found = {name: cast(z3.IntNumRef, value).as_long() for name, value in values.items()}
            return Proof(theorem, False, count, time.perf_counter() - started, found)
        proved &= answer == z3.unsat
        solver.pop()
        possible = possible or solver.check() == z3.sat
    return Proof(theorem, proved and possible, count, time.perf_counter() - started)


def _window(kernel: int, stride: int, before: int, after: int, dilation: int, ceil_mode: bool = False) -> Window:
    padding = (before, after)
    return Window((kernel, kernel), (stride, stride), (padding, padding), (dilation, dilation), ceil_mode)


@theorem
def output_size_counts_the_windows_that_fit(
    size: Natural, before: Natural, after: Natural, kernel: Positive, stride: Positive, dilation: Positive, p: Natural
) -> Any:
    """A position is counted if and only if its whole window lies in the padded axis: all fit, one more would not."""
    window = _window(kernel, stride, before, after, dilation)
    given(window.fits(0, size))
    end = window.position(0, p, kernel - 1) + 1
    return (p < window.output_size(0, size)) == (end <= size + after)


@theorem
def ceil_mode_counts_the_windows_that_start_in_time(
    size: Natural, before: Natural, after: Natural, kernel: Positive, stride: Positive, dilation: Positive, p: Natural
) -> Any:
    """With ceil_mode a position is counted if and only if its window starts before the padding at the end, and ends
    less than one stride past it; for padding at the end that is smaller than the window."""
    window = _window(kernel, stride, before, after, dilation, ceil_mode=True)
    given(window.fits(0, size))
    given(after < window.extent(0))
    start, end = window.position(0, p, 0), window.position(0, p, kernel - 1) + 1
    return (p < window.output_size(0, size)) == ((start < size) & (end < size + after + stride))


@theorem
def ceil_mode_is_pytorchs_rule(
    size: Positive, padding: Natural, kernel: Positive, stride: Positive, dilation: Positive
) -> Any:
    """Where PyTorch allows the padding (at most half the kernel) ceil_mode's size is that of its `pooling_shape`: round
    up, then drop the last window if it starts past the input and its left padding."""
    window = _window(kernel, stride, padding, padding, dilation, ceil_mode=True)
    given(window.fits(0, size))
    given(2 * padding <= kernel)
    count = (size + 2 * padding - dilation * (kernel - 1) - 1 + stride - 1) // stride + 1
    if (count - 1) * stride >= size + padding:
        count -= 1
    return window.output_size(0, size) == count


@theorem
def every_read_lies_in_the_padded_array(
    size: Natural,
    before: Natural,
    after: Natural,
    kernel: Positive,
    stride: Positive,
    dilation: Positive,
    p: Natural,
    r: Natural,
) -> Any:
    """Every tap of every output reads inside the array that gather pads, which is padded as asked for and no further:
    `0 <= position + before < before + size + reach` and `reach = after`."""
    window = _window(kernel, stride, before, after, dilation)
    given(window.fits(0, size))
    given(p < window.output_size(0, size))
    given(r < kernel)
    read = window.position(0, p, r) + before
    return (read >= 0) & (read < before + size + window.reach(0, size)) & (window.reach(0, size) == after)


@theorem
def every_read_of_ceil_mode_lies_in_the_padded_array(
    size: Natural,
    before: Natural,
    after: Natural,
    kernel: Positive,
    stride: Positive,
    dilation: Positive,
    p: Natural,
    r: Natural,
) -> Any:
    """With ceil_mode too, where the last window may reach past the padding that was asked for."""
    window = _window(kernel, stride, before, after, dilation, ceil_mode=True)
    given(window.fits(0, size))
    given(p < window.output_size(0, size))
    given(r < kernel)
    read = window.position(0, p, r) + before
    return (read >= 0) & (read < before + size + window.reach(0, size))


@theorem
def flat_indices_lie_in_range(
    N: Positive, C: Positive, H: Positive, W: Positive, n: Natural, c: Natural, h: Natural, w: Natural
) -> Any:
    """`0 <= ((n*C + c)*H + h)*W + w < N*C*H*W` for every entry of an array."""
    for position, size in ((n, N), (c, C), (h, H), (w, W)):
        given(position < size)
    flat = row_major((n, c, h, w), (N, C, H, W))
    return (flat >= 0) & (flat < N * C * H * W)


@theorem
def flat_indices_tell_entries_apart(
    H: Positive, W: Positive, h: Natural, w: Natural, other_h: Natural, other_w: Natural
) -> Any:
    """Two entries of an image with the same `h*W + w` are the same entry: max pooling's index names one pixel."""
    for row, column in ((h, w), (other_h, other_w)):
        given(row < H)
        given(column < W)
    given(row_major((h, w), (H, W)) == row_major((other_h, other_w), (H, W)))
    return (h == other_h) & (w == other_w)


@theorem
def a_window_is_a_size_map(
    size: Natural, before: Natural, after: Natural, kernel: Positive, stride: Positive, dilation: Positive
) -> Any:
    """Wherever the window fits, `output_size` is `(size + b) // s` with the b and s of its SizeMap."""
    window = _window(kernel, stride, before, after, dilation)
    given(window.fits(0, size))
    return SizeMap.of(window, 0)(size) == window.output_size(0, size)


@theorem
def a_window_with_ceil_mode_is_a_size_map(
    size: Natural, before: Natural, after: Natural, kernel: Positive, stride: Positive, dilation: Positive
) -> Any:
    """With ceil_mode too, for padding at the end that is smaller than the window."""
    window = _window(kernel, stride, before, after, dilation, ceil_mode=True)
    given(window.fits(0, size))
    given(after < window.extent(0))
    return SizeMap.of(window, 0)(size) == window.output_size(0, size)


@theorem
def size_maps_compose(size: int, b1: int, s1: Positive, b2: int, s2: Positive) -> Any:
    """Floors of floors collapse: `((size + b1)//s1 + b2)//s2` is the composed map's value, for every size and shift."""
    first, then = SizeMap(b1, s1), SizeMap(b2, s2)
    return (first >> then)(size) == then(first(size))


@theorem
def solve_finds_exactly_the_sizes(size: Natural, b: int, s: Positive, least: int, beyond: Natural) -> Any:
    """A size is among those solved for if and only if the map takes it into the wanted range."""
    wanted, map_ = Sizes.of((least, least + beyond)), SizeMap(b, s)
    out = map_(size)
    return (size in map_.solve(wanted)) == ((least <= out) & (out <= least + beyond))


@theorem
def transposed_sizes_round_trip(
    before: Natural,
    after: Natural,
    kernel: Positive,
    stride: Positive,
    dilation: Positive,
    p: Positive,
    output_padding: Natural,
) -> Any:
    """A transposed convolution's size `(p - 1)*stride - pads + extent + output_padding` is mapped back to p by the
    convolution, for every output_padding below the stride."""
    window = _window(kernel, stride, before, after, dilation)
    given(output_padding < stride)
    size = (p - 1) * stride - before - after + window.extent(0) + output_padding
    given(size >= 0)
    return window.fits(0, size) & (window.output_size(0, size) == p)


@theorem
def receptive_fields_compose(
    kernel1: Positive,
    stride1: Positive,
    before1: Natural,
    dilation1: Positive,
    kernel2: Positive,
    stride2: Positive,
    before2: Natural,
    dilation2: Positive,
    p: Natural,
) -> Any:
    """The composed field begins at the first tap of the first tap and ends at the last tap of the last tap."""
    first = _window(kernel1, stride1, before1, 0, dilation1)
    then = _window(kernel2, stride2, before2, 0, dilation2)
    field = ReceptiveField.of(first, 0) >> ReceptiveField.of(then, 0)
    begin = p * field.jump + field.offset
    return (begin == first.position(0, then.position(0, p, 0), 0)) & (
        begin + field.size - 1 == first.position(0, then.position(0, p, kernel2 - 1), kernel1 - 1)
    )


@theorem
def adaptive_bins_are_never_empty(position: Natural, bins: Positive, size: Positive) -> Any:
    """Every bin holds at least one input, and inputs only."""
    given(position < bins)
    start, end = adaptive_bin(position, bins, size)
    return (start >= 0) & (start < end) & (end <= size)


@theorem
def adaptive_bins_leave_no_gap(position: Natural, bins: Positive, size: Positive) -> Any:
    """The first bin starts at 0, the last ends at the size, and each starts no later than the one before it ends."""
    given(position + 1 < bins)
    return (
        (adaptive_bin(0 * position, bins, size)[0] == 0)
        & (adaptive_bin(bins - 1, bins, size)[1] == size)
        & (adaptive_bin(position + 1, bins, size)[0] <= adaptive_bin(position, bins, size)[1])
    )
