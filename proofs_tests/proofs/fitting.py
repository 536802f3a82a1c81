"""Problems made to fit what a kernel is declared for: drawn ones seldom have the one filter size that it takes."""

from collections.abc import Callable, Iterator, Mapping
from itertools import product
from typing import Any

from kernelproof.spec import Window

from .neighbours import legal, resized
from .problems import Problem

Features = Mapping[str, Any]
"""What a declaration usually limits, by name: a window's geometry, channels as (groups, inputs, outputs), a bias."""

SAME = "same"
"""Padding that keeps the size of the image, where there is one."""


def fitted(problem: Problem, wanted: Callable[[Problem], bool]) -> Problem | None:
    """The problem with as little made plain as makes it wanted and legal; None if it is not wanted when all is plain.

    The same problem always becomes the same one.
    """
    if problem.op.name not in PLAIN:
        return None
    own, plain = _features(problem), PLAIN[problem.op.name](problem)

    def fits(features: Features) -> bool:
        made = _made(problem, features)
        return wanted(made) and legal(made)

    fitting = next(filter(fits, _combinations(plain, problem.seed)), None)
    if fitting is None:
        return None
    for name, value in own.items():
        restored = {**fitting, name: value}
        fitting = restored if fits(restored) else fitting
    return _made(problem, fitting)


def _combinations(plain: Mapping[str, list[Any]], seed: int) -> Iterator[Features]:
    """Every choice of plain features; with which the search begins is the seed's choice, lest all end at one."""
    turned = (values[seed % len(values) :] + values[: seed % len(values)] for values in plain.values())
    return (dict(zip(plain, values, strict=True)) for values in product(*turned))


def _features(problem: Problem) -> dict[str, Any]:
    options, shapes = problem.options, problem.shapes
    own = {name: options[name] for name in ("stride", "dilation", "padding", "ceil_mode", "return_indices")
           if name in options}  # fmt: skip
    if "weight" in shapes:
        groups, (k, c, *taps) = options.get("groups", 1), shapes["weight"]
        own |= {"bias": "bias" in shapes, "channels": (groups, c, k // groups)}
        own |= {"kernel": tuple(taps)} if taps else {}
    return own | {name: options["kernel_size"] for name in ("kernel",) if "kernel_size" in options}


def _made(problem: Problem, features: Features) -> Problem:
    """The problem with these features, its image no smaller than one window."""
    n, c, *image = problem.shapes["x"]
    shapes, options = {"x": (n, c, *image)}, dict(problem.options)
    options |= {name: value for name, value in features.items() if name in options}
    if image:
        kernel, stride, dilation = features["kernel"], features["stride"], features["dilation"]
        if features["padding"] == SAME:
            reach = ((size - 1) * gap for size, gap in zip(kernel, dilation, strict=True))
            rows, columns = ((each // 2, each // 2) for each in reach)
            options["padding"] = (rows, columns)
        window = Window(kernel, stride, options["padding"], dilation)
        image = [max(size, window.extent(axis) - sum(window.padding[axis])) for axis, size in enumerate(image)]
        shapes["x"] = (n, c, *image)
        options |= {"kernel_size": kernel} if "kernel_size" in options else {}
    if "channels" in features:
        groups, channels, filters = features["channels"]
        shapes |= {"x": (n, groups * channels, *image)}
        shapes |= {"weight": (groups * filters, channels, *features.get("kernel", ()))}
        shapes |= {"bias": (groups * filters,)} if features["bias"] else {}
        options |= {"groups": groups} if "groups" in options else {}
    return resized(problem, shapes, **options)


def _plain_window(problem: Problem, kernels: list[tuple[int, int]]) -> dict[str, list[Any]]:
    own = _features(problem)
    (size, _), (step, _), side = own["kernel"], own["stride"], own["padding"][0][0]
    return {
        "kernel": [*kernels, (size, size)],
        "stride": [(1, 1), (2, 2), (step, step)],
        "dilation": [(1, 1)],
        "padding": [((0, 0), (0, 0)), SAME, ((side, side), (side, side))],
    }


def _plain_channels(problem: Problem) -> list[tuple[int, int, int]]:
    """One group, one with a whole number of blocks of 16, and for convolutions one channel to a group."""
    groups, c, k = _features(problem)["channels"]
    depthwise = [(max(2, groups * c), 1, 1)] if problem.op.name == "conv2d" else []
    return [(1, c, k), (1, -(-c // 16) * 16, -(-k // 16) * 16), *depthwise]


PLAIN: Mapping[str, Callable[[Problem], dict[str, list[Any]]]] = {
    "conv2d": lambda problem: {
        **_plain_window(problem, [(3, 3), (1, 1)]),
        "channels": _plain_channels(problem),
        "bias": [False, True],
    },
    "max_pool2d": lambda problem: {
        **_plain_window(problem, [(2, 2), (3, 3)]),
        "ceil_mode": [False],
        "return_indices": [False, True],
    },
    "linear": lambda problem: {"channels": _plain_channels(problem), "bias": [False, True]},
}
"""For a row of the operator table, the plain values of each feature."""
