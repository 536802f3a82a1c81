"""Generators are code: they reach what bugs hide behind."""

from typing import Any

import numpy as np
import pytest
from drawn import DRAWN, drawn, linear, sides

from kernelproof.proofs.problems import (
    BLOCKS,
    CLASSES,
    FAR,
    LAYERS,
    LAYOUTS,
    LONG,
    MANY,
    PIXELS,
    PLANE,
    TILES,
    WIDE,
    Problem,
)
from kernelproof.spec import OPERATORS, Window


def each(operator: str, what: Any, family: str = "whole", count: int = DRAWN) -> set[Any]:
    """All that a choice came to."""
    return {what(problem) for problem in drawn(operator, family, count)}


def nearly(came: set[Any], wanted: set[Any]) -> bool:
    """Nothing else, and all but what chance may leave out, half of it at most."""
    return came <= wanted and 2 * len(came) >= len(wanted)


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_problem_is_legal_and_says_what_shape_comes(operator: str) -> None:
    for problem in drawn(operator, count=60):
        result = problem.call(problem.spec, problem.arrays())
        first = result[0] if isinstance(result, tuple) else result
        _, _, argument = operator.partition(".d")
        shapes = {"": problem.output, "bias": problem.shapes.get("weight", ())[:1], **problem.shapes}
        assert first.shape == shapes[argument]


def test_every_layout_dtype_and_seed_is_drawn() -> None:
    for family in ("real", "ties", "special"):
        assert each("linear", lambda problem: problem.layout, family) == set(LAYOUTS)
    assert each("linear", lambda problem: problem.dtype) == {"float32", "float64"}
    # Where the chance of an escape is told, values are independent; where one alone is not zero, none is repeated.
    for family in ("whole", "mantissa"):
        assert each("linear", lambda problem: problem.layout, family) == set(LAYOUTS) - {"broadcast"}
    seeds = each("linear", lambda problem: problem.seed)
    assert 0 <= min(seeds) < 2**9
    assert 2**16 - 2**9 < max(seeds) < 2**16


def spare(problem: Problem, axis: int) -> int:
    """How much longer the image is than its window needs."""
    options = problem.options
    kernel = options.get("kernel_size") or problem.shapes["weight"][2:]
    extent = options["dilation"][axis] * (kernel[axis] - 1) + 1
    return problem.shapes["x"][axis + 2] - max(1, extent - sum(options["padding"][axis]))


def is_wide(problem: Problem) -> bool:
    """Whether a convolution has more columns than an image that its window just fits, and a few, can give."""
    return problem.output[3] > 12


def is_far(problem: Problem) -> bool:
    """Whether filter, stride or dilation is larger than usual."""
    kernel = problem.options.get("kernel_size") or problem.shapes["weight"][2:]
    return max(*problem.options["stride"], *problem.options["dilation"], max(kernel) - 4) > 3 or 6 in kernel


def is_large(problem: Problem) -> bool:
    return min(problem.shapes["x"][2:]) >= PLANE


def is_of_pixels(problem: Problem) -> bool:
    """Whether all pixels of a convolution are one more, or one less, than tiles hold."""
    n, _, p, q = problem.output
    return (n, p, q) in PIXELS


def is_layer(problem: Problem) -> bool:
    """Whether a convolution is a layer of many filters and channels."""
    return min(problem.shapes["weight"][0] // problem.options["groups"], problem.shapes["weight"][1]) >= min(LAYERS)


def test_layers_have_whole_tiles_of_filters_and_channels_and_one_over() -> None:
    found = [problem for problem in drawn("conv2d") if is_layer(problem)]
    assert len(drawn("conv2d")) / 40 < len(found) < len(drawn("conv2d")) / 10
    assert all(nearly({problem.shapes["weight"][axis] for problem in found}, set(LAYERS)) for axis in (0, 1))
    assert {(problem.output[0], *problem.output[2:]) for problem in found} >= {(2, 7, 9)}
    assert {problem.options["stride"] for problem in found} == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}


def test_all_pixels_of_a_convolution_leave_one_over() -> None:
    assert [np.prod(pixels) for pixels in PIXELS] == [3 * 128 + 1, 6 * 128 - 1, 3 * 96 + 1, 2 * 256 + 1]
    assert [np.prod(pixels) % 96 for pixels in PIXELS[:2]] == [1, 95]
    found = [problem for problem in drawn("conv2d") if is_of_pixels(problem)]
    assert {problem.output[2:] for problem in found} == {pixels[1:] for pixels in PIXELS}
    assert len(drawn("conv2d")) / 50 < len(found) < len(drawn("conv2d")) / 7


def test_convolutions_reach_every_geometry() -> None:
    everything = [problem for problem in drawn("conv2d") if not is_of_pixels(problem) and not is_layer(problem)]
    far, found = ([each for each in everything if is_far(each) == so] for so in (True, False))
    for option in ("stride", "dilation"):
        assert {problem.options[option] for problem in found} == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}
        assert nearly({size for problem in far for size in problem.options[option]}, {1, 2, 3, *FAR})
    assert {side for problem in found for side in sides(problem) if side < 4} == {0, 1, 2, 3}
    assert max(side for problem in far for side in sides(problem)) == 8
    assert nearly({problem.options["groups"] for problem in found}, {1, 2, 3, *TILES[:9]})
    assert {size for problem in found for size in problem.shapes["weight"][2:]} == {1, 2, 3, 4, 5, 7}
    assert nearly({size for problem in far for size in problem.shapes["weight"][2:]}, {1, 2, 3, *FAR})
    assert len(everything) / 20 < len(far) < len(everything) / 6
    assert {"bias" in problem.shapes for problem in found} == {True, False}
    assert nearly({problem.shapes["x"][0] for problem in found}, {0, 1, 2, 3, 4, 5, *TILES[:12]})
    sizes = {1, 2, 3, *TILES, *MANY}
    assert nearly({problem.shapes["weight"][1] for problem in found}, sizes)
    assert nearly({problem.shapes["weight"][0] // problem.options["groups"] for problem in found}, sizes)
    many = [problem for problem in everything if max(problem.shapes["weight"][:2]) >= min(MANY)]
    assert {(problem.options["groups"], problem.shapes["x"][0] < 3) for problem in many} >= {(1, True)}
    long = {longer + short for longer in TILES[:12] for short in range(6)}
    came = {spare(problem, 0) for problem in found if not is_large(problem)}
    assert set(range(6)) <= came <= {*range(6), *long}
    assert len(came & set(TILES[:12])) > 2
    narrow = [problem for problem in found if problem.output[3] < min(WIDE) and not is_large(problem)]
    assert {spare(problem, 1) for problem in narrow} == set(range(6))
    fast = [
        problem for problem in found if problem.shapes["weight"][2:] == (3, 3) and problem.options["stride"] == (1, 1)
    ]
    large = [problem for problem in everything if is_large(problem)]
    assert len(everything) / 100 < len(large) < len(everything) / 15
    assert all(2**16 < np.prod(problem.shapes["x"]) < 2**20 for problem in large)
    fast = [problem for problem in fast if problem.options["dilation"] == (1, 1)]
    assert len(everything) / 5 < len(fast) < len(everything) / 3


def test_a_convolution_in_five_has_wide_rows_of_few_or_many_filters_or_channels() -> None:
    found = [problem for problem in drawn("conv2d") if not is_of_pixels(problem) and not is_layer(problem)]
    wide = [problem for problem in found if is_wide(problem) and not is_large(problem) and not is_far(problem)]
    assert len(found) / 7 < len(wide) < len(found) / 3
    assert sum(problem.output[3] > 32 for problem in wide) > len(found) / 20
    assert nearly({problem.output[3] for problem in wide}, {columns for columns in WIDE if columns > 12})
    for stride in (1, 2, 3):
        over = {spare(problem, 1) % stride for problem in wide if problem.options["stride"][1] == stride}
        assert over == set(range(stride))
    filters = {problem.shapes["weight"][0] // problem.options["groups"] for problem in wide}
    channels = {problem.shapes["weight"][1] for problem in wide}
    assert filters | channels == {1, 2, 3, *TILES[3:9]}
    assert min(max(filters), max(channels)) > 16
    # A second channel beside many filters, and the other way round: registers hold sums over several.
    pairs = {problem.shapes["weight"][:2] for problem in wide if problem.options["groups"] == 1}
    assert {min(pair) for pair in pairs if max(pair) > 3} == {2}
    # A second image: where a kernel forgets to move on to it, one alone tells nothing.
    assert {problem.shapes["x"][0] for problem in wide} == {0, 1, 2}


def test_a_pooling_in_three_has_wide_rows() -> None:
    found = drawn("max_pool2d")
    assert len(found) / 4 < sum(problem.output[3] > 12 for problem in found) < len(found) / 2
    assert sum(problem.output[3] > 32 for problem in found) > len(found) / 20


@pytest.mark.parametrize("operator", ["conv2d", "max_pool2d", "linear", "flatten", "relu"])
def test_a_batch_may_be_empty(operator: str) -> None:
    assert 0 in each(operator, lambda problem: problem.shapes["x"][:1] and problem.shapes["x"][0])


@pytest.mark.parametrize(("operator", "longest"), [("max_pool2d", TILES[:9]), ("flatten", TILES)])
def test_a_batch_is_mostly_of_several_now_and_then_of_many(operator: str, longest: tuple[int, ...]) -> None:
    batches = [problem.shapes["x"][0] for problem in drawn(operator)]
    assert nearly(set(batches), {*range(6), *longest})
    assert sum(batch > 1 for batch in batches) > 0.7 * len(batches)
    assert len(batches) / 30 < sum(batch > 5 for batch in batches) < len(batches) / 5


def test_no_padding_is_negative() -> None:
    for operator in ("conv2d", "max_pool2d"):
        for each_side in zip(*(sides(problem) for problem in drawn(operator)), strict=True):
            assert min(each_side) == 0


def test_tiles_stand_on_both_sides_of_powers_of_two() -> None:
    assert tuple(2**power + beside for power in range(3, 8) for beside in (-1, 0, 1)) == TILES


def test_wide_rows_stand_on_both_sides_of_one_register_tile_and_of_two() -> None:
    assert WIDE == (11, 12, 13, 14, 15, 16, 17, 23, 24, 25, 27, 28, 29, 31, 32, 33, 47, 48, 49, 63, 64, 65)


def test_another_draw_is_another_seed() -> None:
    problem = linear("whole", seed=5)
    assert linear("whole").redrawn(0).seed == 0
    assert [problem.redrawn(draw).seed for draw in range(4)] == [5, 5 + 2**16, 5 + 2 * 2**16, 5 + 3 * 2**16]


def test_no_problem_is_long_along_two_axes_but_wide_rows_and_blocks_of_channels_and_filters() -> None:
    for problem in drawn("conv2d"):
        if is_of_pixels(problem):
            continue
        n, channels, filters = problem.shapes["x"][0], problem.shapes["weight"][1], problem.shapes["weight"][0]
        if is_large(problem):
            assert (n, max(problem.shapes["x"][1], filters) <= 4) == (2, True)
            continue
        if is_layer(problem):
            assert (n, problem.options["groups"], max(problem.shapes["weight"][2:]) <= 3) == (2, 1, True)
            continue
        sizes = (n - 2, channels, filters // problem.options["groups"], spare(problem, 0) - 2)
        assert sum(size > 3 for size in sizes) <= 1 or (n <= 2 and min(sizes[1:3]) > 14 and sizes[3] <= 3)
        if is_wide(problem) and not is_far(problem):
            assert n <= 2
            assert spare(problem, 0) < 6
            assert min(channels, filters // problem.options["groups"]) <= 2


def test_poolings_reach_every_geometry() -> None:
    everything = drawn("max_pool2d")
    far, found = ([each for each in everything if is_far(each) == so] for so in (True, False))
    for option in ("stride", "dilation"):
        assert {problem.options[option] for problem in found} == {(i, j) for i in (1, 2, 3) for j in (1, 2, 3)}
        assert nearly({size for problem in far for size in problem.options[option]}, {1, 2, 3, *FAR})
    for option in ("ceil_mode", "return_indices"):
        assert {problem.options[option] for problem in found} == {True, False}
    assert {size for problem in found for size in problem.options["kernel_size"]} == {1, 2, 3, 4, 5, 7}
    assert nearly({size for problem in far for size in problem.options["kernel_size"]}, {1, 2, 3, *FAR})
    assert nearly({problem.shapes["x"][1] for problem in found}, {1, 2, 3, 4, *TILES[:12]})
    assert max(problem.output[2] for problem in everything) > 64
    assert len(everything) / 100 < sum(map(is_large, everything)) < len(everything) / 15
    assert max(side for problem in found for side in sides(problem)) > 6
    common = [problem for problem in found if problem.options["kernel_size"] == problem.options["stride"] == (2, 2)]
    assert len(found) / 5 < len(common) < len(found) / 3
    # Down to an image of one window: without padding nothing smaller fits.
    for axis in (2, 3):
        assert min(problem.shapes["x"][axis] for problem in common if not any(sides(problem))) == 2
    for problem in everything:
        geometry = zip(
            problem.options["kernel_size"], problem.options["dilation"], problem.options["padding"], strict=True
        )
        assert all(side <= (size - 1) * gap for size, gap, axis in geometry for side in axis)
        window = Window(
            problem.options["kernel_size"],
            *(problem.options[name] for name in ("stride", "padding", "dilation", "ceil_mode")),
        )
        assert all(window.inside(axis, problem.shapes["x"][axis + 2]).any(axis=1).all() for axis in (0, 1))


def test_the_others_reach_every_size() -> None:
    assert nearly(each("linear", lambda problem: problem.shapes["x"][1]), {1, 2, 3, 4, 5, *TILES, *BLOCKS})
    assert nearly(each("linear", lambda problem: problem.shapes["weight"][0]), {1, 2, 3, 4, 5, *TILES, *BLOCKS})
    assert nearly(each("linear", lambda problem: problem.shapes["x"][0]), {0, 1, 2, 3, 4, 5, *TILES, *BLOCKS})
    sizes = [sorted((*problem.shapes["x"], problem.output[1])) for problem in drawn("linear")]
    assert sum(shortest > 6 for shortest, _, _ in sizes) > len(sizes) / 20
    assert sum(second == longest == 257 for _, second, longest in sizes) > len(sizes) / 20
    assert each("linear", lambda problem: "bias" in problem.shapes) == {True, False}
    classes = {*range(1, 7), *TILES, *BLOCKS, *CLASSES}
    assert nearly(each("cross_entropy", lambda problem: problem.shapes["logits"][1]), classes)
    assert nearly(each("cross_entropy", lambda problem: problem.shapes["logits"][0]), {1, 2, 3, 4, 5, *TILES})
    for axis in (1, 2, 3):
        sizes = each("flatten", lambda problem, axis=axis: problem.shapes["x"][axis])
        assert nearly(sizes, {1, 2, 3, 4, 5, *TILES, PLANE})
    assert each("relu", lambda problem: len(problem.output)) == {0, 1, 2, 3, 4, 5}
    last = {(), *((size,) for size in LONG), *((size,) for size in (*range(4, 11), *TILES))}
    assert nearly(each("relu", lambda problem: problem.output[-1:]), last)
    rates = {"whole": {0, 1, 2, 3, 10}, "real": {0.0, 0.01, 0.1, 0.9, 10.0}, "mantissa": {0, 1}}
    for family, wanted in rates.items():
        for option in ("learning_rate", "momentum"):
            assert each("sgd", lambda problem, option=option: problem.options[option], family) == wanted


def test_shapes_are_mostly_rows_of_several_elements() -> None:
    shapes = [problem.output for problem in drawn("relu")]
    assert len(shapes) / 50 < sum(shape == () for shape in shapes) < len(shapes) / 4
    assert len(shapes) / 100 < sum(shape[:1] > TILES[-1:] for shape in shapes) < len(shapes) / 6
