"""The planner's table: what it takes on either side of every boundary, and that what it takes is right there."""

import json
from dataclasses import replace

import numpy as np
import pytest

from kernelproof import kernels
from kernelproof.kernels.cpu.convolution import planner
from kernelproof.kernels.cpu.convolution.planner import ALGORITHMS, Problem, decide
from kernelproof.kernels.cpu.convolution.pointwise import WIDTH
from kernelproof.kernels.cpu.launch import on_threads
from kernelproof.kernels.cpu.vectors import LANES
from kernelproof.proofs.at_scale import worst_error
from kernelproof.proofs.problems import Problem as Proof
from kernelproof.spec import OPERATORS, ParameterError, UnsupportedError, Window

F2, F4 = "winograd F(2x2, 3x3)", "winograd F(4x4, 3x3)"


def asked(
    operator: str = "conv2d", n: int = 2, c: int = 32, h: int = 28, k: int = 32, kernel: int = 3, stride: int = 1,
    padding: int = 1, dilation: int = 1, groups: int = 1, dtype: str = "float32",
) -> Problem:  # fmt: skip
    sides = ((padding, padding), (padding, padding))
    window = Window((kernel, kernel), (stride, stride), sides, (dilation, dilation))
    return Problem(operator, (n, c, h, h), (k, c // groups, kernel, kernel), window, groups, dtype)


@pytest.mark.parametrize("operator", ["conv2d", "conv2d_dx"])
@pytest.mark.parametrize("precision", ["strict", "fast"])
def test_large_convolutions_are_tiled(operator, precision):
    assert decide(asked(operator, 16, 64, 56, 64), precision).taken.name == (F2 if precision == "strict" else F4)


@pytest.mark.parametrize("less", [{"c": 15}, {"k": 15}, {"groups": 4}])
def test_few_channels_or_filters_are_not_tiled(less):
    assert "16 or more" in decide(asked(**less), "strict").refused[F2]
    for more in (16, 17):
        assert F2 in decide(asked(c=more, k=more), "strict").costs


@pytest.mark.parametrize("other", [{"kernel": 5}, {"kernel": 1}, {"stride": 2}, {"dilation": 2}])
def test_other_geometries_are_not_tiled(other):
    assert "3x3" in decide(asked(**other), "fast").refused[F4]


def test_the_input_gradient_of_wide_padding_is_not_tiled():
    assert F2 in decide(asked("conv2d_dx", padding=2), "strict").costs
    assert "padding up to 2" in decide(asked("conv2d_dx", padding=3), "strict").refused[F2]
    assert F2 in decide(asked("conv2d", padding=3), "strict").costs


@pytest.mark.parametrize(("channels", "filters", "size", "kernel", "taken"), [
    (1, 32, 28, 3, "pixel vectors"),  # Few terms: turning their sums would take as long.
    (32, 3, 28, 5, "pixel vectors"),  # Few filters: they would leave lanes empty.
    # Rows of whole vectors, but for AVX2, which has too few registers for both pixels and filters in vectors.
    (32, 32, 4 * LANES, 5, "direct" if LANES == 8 else "pixel vectors"),
    (32, 32, 4 * LANES - LANES // 2, 5, "direct"),
    (32, 64, 28, 5, "direct"),
])  # fmt: skip
def test_lanes_are_pixels_or_filters(channels, filters, size, kernel, taken):
    problem = asked(c=channels, k=filters, h=size, kernel=kernel, padding=kernel // 2)
    costs = decide(problem, "strict").costs
    assert min(costs, key=lambda name: costs[name]) == taken


def test_a_weight_gradient_of_many_weights_turns_its_pixels():
    few, many = (asked("conv2d_dweight", c=1, k=filters, h=64) for filters in (32, 2**10))
    assert decide(few, "strict").taken.name == "pixel vectors"
    assert "few weights" in decide(many, "strict").refused["pixel vectors"]


@pytest.mark.parametrize("operator", ["conv2d", "conv2d_dx"])
def test_single_pixels_are_a_product_of_matrices(operator):
    def of_pixels(n: int = 16, h: int = 7, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1):
        return decide(asked(operator, n, 64, h, 64, kernel, stride, padding, 1, groups), "strict")

    assert of_pixels().taken.name == "pointwise"
    # 49 pixels of one image fill three panels and a lane of the fourth; on AVX-512 one and a half.
    assert of_pixels(n=1).taken.name != "pointwise"
    for other in (of_pixels(kernel=2), of_pixels(stride=2), of_pixels(padding=1), of_pixels(groups=2)):
        assert "1x1" in other.refused["pointwise"]
    side = int(WIDTH**0.5)
    assert "pixels in an image" in of_pixels(h=side - 1).refused["pointwise"]
    assert "pointwise" in of_pixels(h=side + 1).costs


def test_float64_is_left_to_the_plain_rung():
    decision = decide(asked(dtype="float64"), "fast")
    assert decision.taken.name == "shifted rows"
    assert all("float32" in why for why in decision.refused.values())


def test_strict_refuses_what_rounds_more():
    assert "precision='fast'" in decide(asked(), "strict").refused[F4]


def test_a_workspace_limit_takes_a_smaller_algorithm_or_refuses():
    problem = asked(n=16, c=64, h=56, k=64)
    rows = [row for row in ALGORITHMS if row.operator == "conv2d"]
    needed = {row.name: row.workspace(problem) for row in rows}
    with kernels.workspace_limit(needed[F2] - 1):
        assert decide(problem, "strict").taken.name == "direct"
        assert "bytes" in decide(problem, "strict").refused[F2]
    with kernels.workspace_limit(1000), pytest.raises(UnsupportedError, match="for the smallest algorithm"):
        decide(problem, "strict")
    for wrong in (-1, True, 1.5):
        with pytest.raises(ParameterError), kernels.workspace_limit(wrong):  # type: ignore[arg-type]
            pass


@pytest.mark.parametrize(("operator", "more", "refused"), [
    ("conv2d_dweight", {"n": 1, "h": 6}, True),  # 25 pixels under a corner of the filter.
    ("conv2d_dweight", {"n": 1, "h": 7}, False),
    ("conv2d_dweight", {"n": 3, "h": 4}, True),
    ("conv2d_dweight", {"n": 4, "h": 4}, False),
    ("conv2d", {"c": 31, "padding": 2}, True),  # In the corner of y one tap of the filter meets x.
    ("conv2d", {"c": 32, "padding": 2}, False),
    ("conv2d", {"c": 16, "padding": 1}, False),
    ("conv2d_dx", {"k": 31, "padding": 0}, True),  # And the corner of x.
    ("conv2d_dx", {"k": 32, "padding": 0}, False),
    ("conv2d_dx", {"k": 16, "padding": 1}, False),
])  # fmt: skip
def test_short_sums_are_no_winograds_under_strict(operator, more, refused):
    # It also sums terms of other entries, which cancel: a bound of few terms does not forgive what is left of them.
    problem = asked(operator, **more)
    assert ("terms in every sum" in decide(problem, "strict").refused.get(F2, "")) == refused
    assert F2 in decide(problem, "fast").costs


EDGES = [
    {"c": c, "k": k, "h": h, "padding": padding}
    for c, k in ((15, 16), (16, 16), (17, 15), (16, 17), (33, 31))
    for h, padding in ((4, 1), (6, 1), (7, 1), (13, 1), (14, 0), (15, 2), (14, 3))
]


@pytest.mark.parametrize("precision", ["strict", "fast"])
@pytest.mark.parametrize("operator", ["conv2d", "conv2d.dx", "conv2d.dweight"])
def test_what_is_taken_holds_its_bound_on_either_side_of_every_boundary(operator, precision):
    taken = set()
    for edge in EDGES:
        problem = asked(operator.replace(".", "_"), **edge)  # type: ignore[arg-type]
        algorithm = decide(problem, precision).taken
        taken.add(algorithm.name)
        worst = worst_error(_called(operator, precision), _as_proof(operator, problem, algorithm.rounds_as))
        assert worst <= 1, (edge, algorithm.name)
    assert len(taken) > 1, "the boundaries are between algorithms"


def _called(operator, precision):
    backend = kernels.backend("cpu").at(precision)
    return lambda *args, **kwargs: backend(OPERATORS[operator], *args, **kwargs)


def _as_proof(operator, problem, rounds_as):
    output = (
        problem.x_shape[0],
        problem.weight_shape[0],
        problem.window.p(problem.x_shape),
        problem.window.q(problem.x_shape),
    )
    shapes = {"x": problem.x_shape, "weight": problem.weight_shape}
    window = problem.window
    options = {
        "stride": window.stride,
        "padding": window.padding,
        "dilation": window.dilation,
        "groups": problem.groups,
    }
    return Proof(operator, shapes, options, output, "real", 0, "float32", "contiguous", rounds_as)


@pytest.mark.parametrize("problem", [asked(n=3, c=33, h=15, k=35), asked(n=3, c=33, h=15, k=33, groups=33)])
def test_bits_do_not_depend_on_threads_for_any_algorithm(problem):
    generator = np.random.default_rng(0)
    shapes = problem.x_shape, problem.weight_shape, (3, problem.weight_shape[0], 15, 15)
    x, weight, dy = (generator.standard_normal(shape).astype(np.float32) for shape in shapes)
    calls = {"conv2d": (x, weight, None), "conv2d_dx": (dy, weight, x.shape), "conv2d_dweight": (dy, x, weight.shape)}
    for row in ALGORITHMS:
        if not all(need.holds(replace(problem, operator=row.operator)) for need in row.needs):
            continue
        results = []
        for count in (1, 2):
            with on_threads(count):
                results.append(row.run(*calls[row.operator], problem.window, problem.groups))
        np.testing.assert_array_equal(*results, err_msg=f"{row.name} {row.operator}")


def test_tuned_takes_what_was_measured_fastest_and_remembers_it(tmp_path):
    file, problem = tmp_path / "plans.json", asked(n=1, c=16, h=6, k=16)
    with kernels.tuned(file):
        measured = decide(problem, "fast").taken.name
    held = json.loads(file.read_text())
    assert list(held.values()) == [measured]
    # From now on the file says it, whatever it says: nothing is measured again.
    (key,) = held
    file.write_text(json.dumps({key: "shifted rows"}))
    planner._decide.cache_clear()
    with kernels.tuned(file):
        assert decide(problem, "fast").taken.name == "shifted rows"
    assert decide(problem, "fast").taken.name != "shifted rows"
    file.write_text("[]")
    with pytest.raises(ParameterError, match="one that tuned has written"), kernels.tuned(file):
        pass
