"""Laws that hold a kernel against itself (L6): what must not change, and what must change in step.

They know nothing of the specification's values, so a fault that kernel and specification share does not hide here.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from .coverage import LAYERS, MANY_CHANNELS, MANY_FILTERS, MATRICES
from .judging import Kernel, LawBroken, all_zero, compare, evaluate
from .laws import LINEAR, Observation, law
from .neighbours import legal, resized
from .problems import TILES, Problem
from .values import laid_out

Arrays = Mapping[str, np.ndarray]

IMAGE_BY_IMAGE = (
    "conv2d", "conv2d.dx", "max_pool2d", "max_pool2d.dx", "linear", "linear.dx", "flatten", "flatten.dx",
)  # fmt: skip


ALONE = max(TILES)
"""Images of a batch that are tried alone, at most: all, but for batches past the blocks of long sums."""

PLAIN = "3x3, stride 1, dilation 1, padding other than 1"
CROPPING = tuple(f"padding past the filter's reach, {side} alone" for side in ("before", "after"))
"""Predicates that only convolutions without stride have."""


def shapes_of(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    """The arrays' shapes, by name."""
    return {name: array.shape for name, array in arrays.items()}


def _equal(problem: Problem, came: tuple[np.ndarray, ...], right: tuple[np.ndarray, ...], theorem: str) -> None:
    """Equal as whole numbers; the message says which identity is broken."""
    try:
        compare(problem, came, right, whose="itself otherwise")
    except LawBroken as broken:
        raise LawBroken(f"{theorem}: {broken}", broken.problem, broken.index, **broken.values) from None


def _first(results: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    # An index counts positions of its own image; the identities below speak of values.
    return results[:1]


@law(
    "L6", "whole", IMAGE_BY_IMAGE, where=lambda problem: problem.shapes["x"][0] > 1, never=("empty batch", "one image")
)
def computes_each_image_alone(kernel: Kernel, problem: Problem) -> Observation:
    """`f(x)[n] = f(x[n])`: no image of a batch sees another."""
    arrays = problem.arrays()
    whole = evaluate(kernel, problem, arrays)
    batch = problem.shapes["x"][0]
    # Of a thousand images some: each is a call.
    for n in np.random.default_rng(problem.seed).permutation(batch)[:ALONE].tolist():
        alone = {name: array[n : n + 1] if name in ("x", "dy") else array for name, array in arrays.items()}
        one = replace(
            problem,
            shapes={**problem.shapes, "x": (1, *problem.shapes["x"][1:])},
            output=(1, *problem.output[1:]),
        )
        came = evaluate(kernel, one, alone)
        _equal(one, tuple(each[n : n + 1] for each in whole), came, f"image {n} of the batch differs from it alone")
    return Observation(vacuous=all_zero(whole))


@law("L6", "whole", ["conv2d"], where=lambda problem: problem.shapes["weight"][1] > 1, never=("depthwise",))
def sums_channels_in_any_order(kernel: Kernel, problem: Problem) -> Observation:
    """`f(x[:,order], weight[:,order]) = f(x, weight)`: channels are summed, their order is nobody's."""
    arrays = problem.arrays()
    x, weight, groups = arrays["x"], arrays["weight"], problem.options["groups"]
    order = np.random.default_rng(problem.seed).permutation(weight.shape[1])
    in_groups = (np.arange(groups)[:, None] * len(order) + order).ravel()
    permuted = {**arrays, "x": x[:, in_groups], "weight": weight[:, order]}
    # numpy indexes into an order of axes of its own, which a kernel may not take.
    permuted = {name: laid_out(np.ascontiguousarray(array), problem.layout) for name, array in permuted.items()}
    right = evaluate(kernel, problem, arrays)
    _equal(problem, evaluate(kernel, problem, permuted), right, "channels in another order")
    return Observation(vacuous=all_zero(right))


@law("L6", "whole", ["conv2d"], where=lambda problem: problem.shapes["weight"][0] > problem.options["groups"])
def gives_each_filter_its_output(kernel: Kernel, problem: Problem) -> Observation:
    """`f(x, weight[order], bias[order]) = f(x, weight, bias)[:,order]` within every group."""
    arrays, groups = problem.arrays(), problem.options["groups"]
    filters = arrays["weight"].shape[0] // groups
    order = np.random.default_rng(problem.seed).permutation(filters)
    in_groups = (np.arange(groups)[:, None] * filters + order).ravel()
    permuted = {name: array if name == "x" else array[in_groups] for name, array in arrays.items()}
    right = evaluate(kernel, problem, arrays)[0][:, in_groups]
    _equal(problem, evaluate(kernel, problem, permuted), (right,), "filters in another order")
    return Observation(vacuous=all_zero((right,)))


@law("L6", "whole", ["conv2d"], where=lambda problem: bool(np.any(problem.options["padding"])))
def pads_as_explicit_zeros_do(kernel: Kernel, problem: Problem) -> Observation:
    """`f(x, padding) = f(zero-padded x, 0)`, each of the four sides its own."""
    arrays, padding = problem.arrays(), problem.options["padding"]
    padded = {**arrays, "x": np.pad(arrays["x"], [(0, 0), (0, 0), *padding])}
    explicit = resized(problem, shapes_of(padded), padding=((0, 0), (0, 0)))
    came = evaluate(kernel, problem, arrays)
    _equal(problem, came, evaluate(kernel, explicit, padded), "padding")
    return Observation(vacuous=all_zero(came))


@law(
    "L6",
    "whole",
    ["conv2d"],
    where=lambda problem: problem.options["groups"] > 1,
    never=("channels past 64", MANY_FILTERS, MANY_CHANNELS, LAYERS),
)
def groups_are_a_block_diagonal_filter(kernel: Kernel, problem: Problem) -> Observation:
    """`f(x, weight, groups) = f(x, weight on the diagonal blocks and zero elsewhere, 1)`."""
    arrays, groups = problem.arrays(), problem.options["groups"]
    weight = arrays["weight"]
    (k, c), filters = weight.shape[:2], weight.shape[0] // groups
    dense = np.zeros((k, c * groups, *weight.shape[2:]), weight.dtype)
    for group in range(groups):
        dense[group * filters :, group * c : (group + 1) * c][:filters] = weight[group * filters :][:filters]
    blocks = {**arrays, "weight": dense}
    ungrouped = resized(problem, shapes_of(blocks), groups=1)
    came = evaluate(kernel, problem, arrays)
    _equal(problem, came, evaluate(kernel, ungrouped, blocks), f"groups={groups}")
    return Observation(vacuous=all_zero(came))


@law("L6", "whole", ["conv2d"], where=lambda problem: problem.options["dilation"] != (1, 1), never=(PLAIN, MATRICES))
def dilates_as_a_filter_with_holes_does(kernel: Kernel, problem: Problem) -> Observation:
    """`f(x, weight, dilation) = f(x, weight with zeros between its taps, 1)`."""
    arrays, (down, right) = problem.arrays(), problem.options["dilation"]
    weight = arrays["weight"]
    k, c, r, s = weight.shape
    spread = np.zeros((k, c, (r - 1) * down + 1, (s - 1) * right + 1), weight.dtype)
    spread[:, :, ::down, ::right] = weight
    holes = {**arrays, "weight": spread}
    undilated = resized(problem, shapes_of(holes), dilation=(1, 1))
    came = evaluate(kernel, problem, arrays)
    _equal(problem, came, evaluate(kernel, undilated, holes), f"dilation={(down, right)}")
    return Observation(vacuous=all_zero(came))


def _strided(problem: Problem) -> tuple[Problem, Problem]:
    """The problem, and the one that keeps every output."""
    # ceil_mode's extra window exists for some strides and not for others.
    options = {"ceil_mode": False} if problem.op.name == "max_pool2d" else {}
    return resized(problem, problem.shapes, **options), resized(problem, problem.shapes, **options, stride=(1, 1))


@law(
    "L6", "whole", ["conv2d", "max_pool2d"], never=(PLAIN, MATRICES, *CROPPING),
    # A pooling that is dense may have windows in between that lie wholly in the padding, which is not legal.
    where=lambda problem: problem.options["stride"] != (1, 1) and legal(_strided(problem)[1]),
)  # fmt: skip
def strides_keep_every_sth_output(kernel: Kernel, problem: Problem) -> Observation:
    """`f(x, stride) = f(x, stride 1)[::stride]`, rows and columns each by their own."""
    arrays, (down, right), (strided, dense) = problem.arrays(), problem.options["stride"], _strided(problem)
    every = evaluate(kernel, dense, arrays)[0][:, :, ::down, ::right]
    _equal(problem, _first(evaluate(kernel, strided, arrays)), (every,), f"stride={(down, right)}")
    return Observation(vacuous=all_zero((every,)))


@law("L6", "whole", [name for name in LINEAR if name != "sgd"] + ["relu", "max_pool2d"])
def scales_exactly_by_powers_of_two(kernel: Kernel, problem: Problem) -> Observation:
    """`f(2**e * x) = 2**e * f(x)`: no threshold, no fixed range, no operand kept in fewer bits."""
    arrays = problem.arrays()
    # In a gradient dy alone is scaled: with x as well the result would grow twice.
    names = {"dy"} if "dy" in arrays else {"x", "bias"}
    reach = 3 if problem.precision == "fp16" else 16
    power = np.dtype(problem.dtype).type(2.0 ** (problem.seed % (2 * reach + 1) - reach))
    scaled = {name: np.asarray(array * power) if name in names else array for name, array in arrays.items()}
    came, right = _first(evaluate(kernel, problem, scaled)), _first(evaluate(kernel, problem, arrays))
    _equal(problem, came, (np.asarray(right[0] * power),), f"scaled by {power}")
    return Observation(vacuous=bool(power == 1) or all_zero(right))
