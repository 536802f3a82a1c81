"""Plans of convolutions on tensor cores, carried out in numpy without a GPU: all of the result, once, and right."""

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cuda_plans import GEOMETRIES, NEEDS_COMPILERS, Strided, at, drawn, laid_out, modules, options_of, problem_of

from kernelproof import spec
from kernelproof.spec.window import Window

pytestmark = NEEDS_COMPILERS


@pytest.fixture(autouse=True)
def plans_of_other_constants_are_forgotten() -> Iterator[None]:
    m = modules()
    remembering = (
        m.splits.best, m.preconditions.explain, m.preconditions.arithmetics_of, m.plan.plan, m.plan.plans_of_phases
    )  # fmt: skip
    for each in remembering:
        each.cache_clear()
    yield
    for each in remembering:
        each.cache_clear()


def carry_out(it: Any, problem: Any, x: np.ndarray, weight: np.ndarray, y: np.ndarray, pixel: int, tap: int) -> None:
    """What the kernel does with a plan, slot by slot, into the memory of y."""
    g, block = it.geometry, it.block
    assert it.shared <= block.rung.shared_memory <= 227 * 1024
    assert g.stages >= 2
    assert g.tiles == it.pixel_tiles * g.groups * g.filter_blocks

    def place(slot: int) -> tuple[int, int, int]:
        (row, column), shift = divmod(slot, g.pitch), (g.pitch_multiplier % 2**32, g.pitch_shift)
        assert slot * shift[0] >> shift[1] == row
        return row // g.rows, row % g.rows, column

    def pixels_of(slot: int, a: int, b: int, group: int) -> list[int]:
        n, row, column = place(slot)
        h, w = row * g.stride_h + a * g.phase_h - g.top, column * g.stride_w + b * g.phase_w - g.left
        if n >= g.images or not (0 <= h < g.height and 0 <= w < g.width):
            return [0] * g.channels
        return [at(x, 0, problem.x_strides, n, group * g.channels + c, h, w) for c in range(g.channels)]

    taps = list(np.ndindex(g.phase_rows, g.phase_columns, block.rows * block.row))
    laid = laid_out(x, it.layout) if block.laid else None
    apart = {(a, b): a * g.phase_h // g.stride_h * g.pitch + b * g.phase_w // g.stride_w for a, b, _ in taps}
    for shift in apart.values() if block.laid else ():
        # What a stage brings reaches from the first of eight slots to the last that the tap reads, and no further.
        assert shift % 8 + block.pixels <= g.slots
        assert (it.pixel_tiles - 1) * block.pixels + shift // 8 * 8 + g.slots <= it.layout.slots
        assert shift <= it.layout.reach

    def gathered(slot: int, group: int, k: int) -> int:
        """The sum over all taps of all channels, each of which is a channel of its own."""
        assert g.channels % math.prod(problem.taps) == 0
        n, row, column = place(slot)
        total, per_group = 0, g.channels // math.prod(problem.taps)
        for c, r, s in np.ndindex(per_group, *problem.taps):
            h, w = row * g.stride_h + r * g.phase_h - g.top, column * g.stride_w + s * g.phase_w - g.left
            if 0 <= h < g.height and 0 <= w < g.width:
                value = at(x, 0, problem.x_strides, n, group * per_group + c, h, w)
                f = it.filters
                v = (c * problem.taps[0] + r) * problem.taps[1] + s
                total += value * at(weight, tap, (f.w_group, f.w_filter, f.w_channel), group, k, v)
        return total

    def inputs_of(slot: int, a: int, b: int, reach: int, group: int) -> list[int]:
        if laid is None:
            return pixels_of(slot + reach, a, b, group)
        phase = a * g.phase_h % g.stride_h * g.laid_columns + b * g.phase_w % g.stride_w
        return laid[phase, group, slot + apart[a, b]].tolist()

    for slot in range(it.pixel_tiles * block.pixels):
        n, p, q = place(slot)
        if n >= g.images or p >= g.p or q >= g.q:
            continue
        for group in range(g.groups):
            for k in range(g.filters):
                total = gathered(slot, group, k) if block.gathered else 0
                for a, b, t in () if block.gathered else taps:
                    down, across = divmod(t, block.row)
                    reach = down * g.row_step + across * g.tap_step
                    assert block.pixels + reach <= g.slots
                    r, s = a + down, b + across * g.phase_columns
                    if s < problem.taps[1]:
                        total += sum(
                            value * at(weight, tap, problem.w_strides, group, k, c, r, s)
                            for c, value in enumerate(inputs_of(slot, a, b, reach, group))
                        )
                y.reshape(-1)[
                    pixel + n * g.y_n + (group * g.filters + k) * g.y_k + p * g.y_h + q * g.y_w
                ] = total  # fmt: skip


@pytest.mark.parametrize("columns", [64, 104, 136])
def test_every_thread_looks_taps_up_within_the_table(columns: int) -> None:
    m = modules()
    block = m.slots.Block("fast", 1, 1, 32, columns, side_by_side=False, gathered=True)
    halves, slots, together = block.channels // 16, block.pixels, 2 * m.slots.LOADERS
    items = -(-halves * slots // together) * together  # Those that no thread keeps among them.
    firsts = {16 * int(m.loaders.half_of.py_func(item, slots, halves)) for item in range(items)}
    assert firsts == {0, block.channels - 16}


RUNGS = ("HOPPER", "AMPERE", "ADA")


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_block_of_a_plan_computes_the_convolution(
    geometry: Any, rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = modules()
    for least in ("LEAST_CHANNELS", "LEAST_FILTERS", "LEAST_TERMS"):
        monkeypatch.setattr(m.splits, least, 1)
    x, weight, window, groups = drawn(geometry)
    right = spec.conv2d(x, weight, **options_of(window, groups))
    y = np.empty(right.shape, np.int64)
    problem = m.launch_conv.forward(Strided(x), Strided(weight), Strided(y), window, groups)
    blocks = m.splits.splits(problem, "strict", getattr(m.rungs, rung))
    assert blocks[0].laid or blocks[0].gathered or blocks[0].rows == 3 or rung != "HOPPER"
    for block in blocks:
        y[...] = -999
        it = m.plan.numbers(problem, block)
        if it.geometry.stages == 2 or rung == "HOPPER":  # Else the plan takes the next of them.
            carry_out(it, problem, x, weight, y, 0, 0)
            np.testing.assert_array_equal(y, right)
    assert m.preconditions.explain(problem, "strict", getattr(m.rungs, rung)) is None


@pytest.mark.parametrize("geometry", [each for each in GEOMETRIES if 1 in (*each[2], max(each[4]))], ids=str)
@pytest.mark.parametrize(
    ("laid", "rung"), [("none", "HOPPER"), ("all", "HOPPER"), ("all but single taps", "HOPPER"), ("none", "ADA")]
)
def test_phases_of_an_input_gradient_are_convolutions_of_dy(
    geometry: Any, laid: str, rung: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    m = modules()
    x, weight, window, groups = drawn(geometry)
    if max(window.stride) > 1 and max(window.dilation) > 1:
        pytest.skip("left to the plain kernel")
    filters = weight.shape[0] // groups  # What dy has as channels.
    terms = {"none": 2**31, "all": 1, "all but single taps": 2 * filters}[laid]
    for least, value in (("LEAST_CHANNELS", 1), ("LEAST_FILTERS", 1), ("LEAST_TERMS", terms)):
        monkeypatch.setattr(m.splits, least, value)
    options = options_of(window, groups)
    dy = np.random.default_rng(6).integers(-9, 10, spec.conv2d(x, weight, **options).shape)
    right = spec.conv2d_dx(dy, weight, x.shape, **options)
    dx = np.zeros(right.shape, np.int64)
    phases = m.launch_conv.backward(Strided(dy), Strided(weight), Strided(dx), window, groups)
    are_laid = [filters * math.prod(each.problem.taps) >= terms for each in phases]
    for phase, is_laid in zip(phases, are_laid, strict=True):
        block = m.splits.splits(phase.problem, "strict", getattr(m.rungs, rung))[0]
        assert block.laid is is_laid or block.gathered or block.rows == 3
        it = m.plan.numbers(phase.problem, block)
        if rung != "HOPPER":  # The first block may not fit.
            it = m.plan.plan(phase.problem, "strict", 72, False, m.rungs.ADA)
        carry_out(it, phase.problem, dy, weight, dx, phase.first_pixel, phase.first_tap)
    np.testing.assert_array_equal(dx, right)
    dx[...] = 0
    problems = tuple(each.problem for each in phases)
    plans = m.plan.plans_of_phases(problems, "strict", 132, getattr(m.rungs, rung))
    layouts = {(problem.before, it.layout) for problem, it in zip(problems, plans, strict=True) if it.layout}
    assert len(layouts) == len({before for before, _ in layouts})  # One for all that are padded alike.
    assert bool(layouts) == any(block.block.laid for block in plans)
    for phase, it in zip(phases, plans, strict=True):
        carry_out(it, phase.problem, dy, weight, dx, phase.first_pixel, phase.first_tap)
    np.testing.assert_array_equal(dx, right)


def phases_of(m: Any, filters: int, channels: int, size: int) -> tuple[Any, ...]:
    """An input gradient's through a stride of 2 and a padded filter of 3x3."""
    window = Window((3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1))
    shapes = (8, filters, size // 2, size // 2), (filters, channels, 3, 3), (8, channels, size, size)
    dy, weight, dx = (Strided(np.empty(shape, np.float32)) for shape in shapes)
    return tuple(each.problem for each in m.launch_conv.backward(dy, weight, dx, window, 1))


def test_a_phase_of_few_terms_leaves_the_others_their_layout() -> None:
    m = modules()
    problems = phases_of(m, 128, 128, 28)
    single = [each.taps == (1, 1) for each in problems]
    for precision, laid, other in (("strict", "strict", "strict"), ("tf32", "bf16x4", "tf32")):
        plans = m.plan.plans_of_phases(problems, precision, 132, m.rungs.HOPPER)
        assert [it.layout is None for it in plans] == single
        assert len({it.layout for it in plans}) == 2
        assert [it.block.precision for it in plans] == [other if each else laid for each in single]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_what_is_computed_again_is_what_a_flag_stands_for(geometry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    m = modules()
    monkeypatch.setattr(m.splits, "LEAST_FILTERS", 1)
    x, weight, window, groups = drawn(geometry)
    y = np.empty(spec.conv2d(x, weight, **options_of(window, groups)).shape)
    problem = m.launch_conv.forward(Strided(x), Strided(weight), Strided(y), window, groups)
    it = m.plan.plan(problem, "strict", 132)
    tiles = m.again.tiles_of(it)

    def again(flags: np.ndarray) -> list[tuple[int, ...]]:
        elements = range(len(weight) * tiles.pixels)
        found = [
            m.again._wanted.py_func(i, tile, flags[tile] != 0, flags, tiles)
            for tile, i in itertools.product(range(tiles.tiles), elements)
        ]
        return sorted(each for each in found if each[0] >= 0)

    clear = np.zeros(tiles.tiles + it.lines, np.int32)
    assert again(clear) == []
    of_tiles = []
    for tile in range(tiles.tiles):
        flags = clear.copy()
        flags[tile] = 1
        of_tiles += again(flags)
    assert sorted(of_tiles) == list(np.ndindex(*y.shape))
    filters = weight.shape[0] // groups
    for k in range(len(weight)):
        flags = clear.copy()
        flags[tiles.tiles + k // filters * tiles.lines + k % filters] = 1
        assert again(flags) == [each for each in np.ndindex(*y.shape) if each[1] == k]


@pytest.mark.parametrize(
    ("changes", "strict", "fast"),
    [
        # Microseconds on an H200, 2026-11-30: the measured rows next to the boundary, on either side.
        ({"channels": 64, "filters": 128, "taps": (1, 1), "image": (56, 56), "output": (56, 56)}, 45.5, 55.7),
        ({"channels": 256, "filters": 256, "taps": (1, 1), "image": (28, 28), "output": (28, 28)}, 61.6, 57.0),
        ({"channels": 64, "filters": 128, "image": (56, 56), "output": (28, 28), "stride": (2, 2)}, 71.0, 64.4),
    ],
)
def test_fast_is_computed_as_strict_where_that_is_faster(changes: Any, strict: float, fast: float) -> None:
    m = modules()
    problem = problem_of(m, images=32, **changes)
    chosen = "strict" if strict < fast else "fast"
    assert m.preconditions.arithmetics_of((problem,), "fast") == (chosen,)
    assert m.preconditions.arithmetics_of((problem,), "fast", m.rungs.AMPERE) == ("fast",)  # Not measured there.


def test_fast_is_computed_as_strict_below_so_many_products_of_a_value() -> None:
    m = modules()

    def arithmetic(filters: int, **changes: Any) -> str:
        (found,) = m.preconditions.arithmetics_of((problem_of(m, filters=filters, taps=(1, 1), **changes),), "fast")
        return found

    assert [arithmetic(filters) for filters in (1, 192, 193, 1024)] == ["strict", "strict", "fast", "fast"]
    halved = {"image": (56, 56), "output": (28, 28), "stride": (2, 2)}
    assert [arithmetic(filters, **halved) for filters in (960, 961)] == ["strict", "fast"]
    pixels = 56 * 56
    assert arithmetic(1024, x_strides=(2 * 64 * pixels, pixels, 56, 1)) == "fast"
    assert arithmetic(1024, x_strides=(2 * 64 * pixels, 2 * pixels, 2 * 56, 2)) == "strict"  # Every other column.
    # Four phases look dy through four times, for 4, 2, 2 and 1 taps: 144 products for each time.
    assert set(m.preconditions.arithmetics_of(phases_of(m, 128, 64, 56), "fast")) == {"strict"}
    assert set(m.preconditions.arithmetics_of(phases_of(m, 256, 128, 28), "fast")) == {"fast"}


def test_division_is_exact_below_two_to_the_31() -> None:
    m = modules()
    generator = np.random.default_rng(7)
    divisors = [1, 2, 3, 7, 57, 64, 113, 2**16 - 1, 2**16 + 1, 2**30, 2**31 - 1, *generator.integers(1, 2**31, 200)]
    for divisor in map(int, divisors):
        multiplier, shift = m.problem.division(divisor)
        multiples = [divisor * int(i) for i in generator.integers(0, 2**31 // divisor + 1, 20)]
        near = {each + d for each in multiples for d in (-1, 0, 1)} | {0, 2**31 - 1}
        for number in (each for each in near if 0 <= each < 2**31):
            assert number * (multiplier % 2**32) >> shift == number // divisor


@pytest.mark.parametrize(
    ("inside", "outside", "reason"),
    [
        ({}, {"images": 0}, "something to compute"),
        ({}, {"channels": 0}, "something to sum"),
        ({"groups": 64, "channels": 4, "filters": 4}, {"groups": 64, "channels": 3, "filters": 4}, "64 times"),
        ({}, {"images": 2**20}, "31 bits"),
        ({"x_strides": (2**29 - 1, 1, 1, 1)}, {"x_strides": (2**29, 1, 1, 1)}, "32-bit"),
    ],
)
def test_a_precondition_holds_on_one_side_of_its_boundary(inside: Any, outside: Any, reason: str) -> None:
    m = modules()
    assert m.preconditions.explain(problem_of(m, **inside), "strict") is None
    assert reason in m.preconditions.explain(problem_of(m, **outside), "strict")


def test_a_filter_is_taken_row_by_row_where_two_stages_of_it_no_longer_fit() -> None:
    m = modules()
    rows = [
        m.plan.plan(problem_of(m, images=1, image=(9, w), output=(9, w)), "strict", 132).block.rows
        for w in range(8, 400)
    ]
    assert rows == sorted(rows, reverse=True)
    assert {3, 1} == set(rows)


@pytest.mark.parametrize("word", ["strict", "fast", "bf16x4"])
def test_stacked_parts_give_each_product_once_and_beside_them_only_smaller_ones(word: str) -> None:
    arithmetic = modules().slots.ARITHMETIC[word]
    lines = -(-arithmetic.parts // 2)
    given = [(2 * pair + half, right) for pair, right in arithmetic.products_of_stacked for half in (0, 1)]
    assert len(set(given)) == len(given)
    assert set(arithmetic.products) <= set(given)
    assert {pair for pair, _ in arithmetic.products_of_stacked} == set(range(lines))
    least = max(left + right for left, right in arithmetic.products)
    beside = {each for each in given if each[0] < arithmetic.parts} - set(arithmetic.products)
    assert all(left + right > least - 1 for left, right in beside)
    assert len(arithmetic.products_of_stacked) < len(arithmetic.products)
