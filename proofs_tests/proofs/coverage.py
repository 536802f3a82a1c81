"""What the drawn problems have exercised: generators are code, and are shown to hit what bugs hide behind."""

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from math import prod
from typing import Any

from kernelproof.spec import Window

from .problems import TILES, Problem


@lru_cache(maxsize=1)
def _window(problem: Problem) -> Window:
    options = problem.options
    r, s = options.get("kernel_size") or problem.shapes["weight"][2:]
    return Window((r, s), options["stride"], options["padding"], options["dilation"], options.get("ceil_mode", False))


def _along_an_axis(test: Callable[[Window, int, int], bool]) -> Callable[[Problem], bool]:
    """True if the test holds for the window along either axis of the image."""

    def predicate(problem: Problem) -> bool:
        window = _window(problem)
        return any(test(window, axis, problem.shapes["x"][axis + 2]) for axis in (0, 1))

    return predicate


def _leftover(window: Window, axis: int, size: int) -> bool:
    return (size + sum(window.padding[axis]) - window.extent(axis)) % window.stride[axis] != 0


def _one_past(tile: int) -> Callable[[Problem], bool]:
    """Where the last of the tiles that all pixels of a result are cut into holds a single one."""

    def holds(problem: Problem) -> bool:
        n, _, p, q = problem.output
        return n * p * q > tile and n * p * q % tile == 1

    return holds


def _cropping(side: int) -> Callable[[Problem], bool]:
    """Where the input gradient is a convolution that crops this side and pads the other."""

    def crops(window: Window, axis: int, size: int) -> bool:
        padding, reach = window.padding[axis], window.extent(axis) - 1
        return window.stride == (1, 1) and padding[side] > reach > padding[1 - side]

    return _along_an_axis(crops)


MATRICES = "3x3, stride 1, dilation 1, filters and channels past 30"
"""What is fast by transforms, or on matrix units, for many filters and channels."""

MANY_FILTERS, MANY_CHANNELS = "filters past 256", "channels past 256"
LAYERS = "filters and channels past 96, of 64 pixels and more"
"""What tensor cores have laid out beforehand, in all three passes."""

WINDOWED: Mapping[str, Callable[[Problem], bool]] = {
    "stride_h != stride_w": lambda problem: len(set(problem.options["stride"])) == 2,
    "dilation_h != dilation_w": lambda problem: len(set(problem.options["dilation"])) == 2,
    "kernel_h != kernel_w": lambda problem: len(set(_window(problem).kernel)) == 2,
    "height != width": lambda problem: problem.shapes["x"][2] != problem.shapes["x"][3],
    "four different paddings": lambda problem: len({side for axis in problem.options["padding"] for side in axis}) == 4,
    "padding differs before and after": _along_an_axis(lambda window, axis, size: len(set(window.padding[axis])) == 2),
    "(size + padding - extent) % stride != 0": _along_an_axis(_leftover),
    "kernel < stride": _along_an_axis(lambda window, axis, size: window.kernel[axis] < window.stride[axis]),
    "kernel > stride (windows overlap)": _along_an_axis(
        lambda window, axis, size: window.kernel[axis] > window.stride[axis]
    ),
    "dilation > kernel > 1": _along_an_axis(lambda window, axis, size: window.dilation[axis] > window.kernel[axis] > 1),
    "padding >= kernel": _along_an_axis(lambda window, axis, size: max(window.padding[axis]) >= window.kernel[axis]),
    "size < kernel": _along_an_axis(lambda window, axis, size: size < window.kernel[axis]),
    "one output": lambda problem: problem.output[2:] == (1, 1),
    "a filter longer than 7": lambda problem: max(_window(problem).kernel) > 7,
    "stride > 3": lambda problem: max(problem.options["stride"]) > 3,
    "dilation > 3": lambda problem: max(problem.options["dilation"]) > 3,
}

PREDICATES: Mapping[str, Mapping[str, Callable[[Problem], bool]]] = {
    "conv2d": {
        **WINDOWED,
        "1x1 kernel": lambda problem: _window(problem).kernel == (1, 1),
        "3x3, stride 1, dilation 1, padding other than 1": lambda problem: (
            _window(problem).kernel == (3, 3)
            and problem.options["stride"] == problem.options["dilation"] == (1, 1)
            and problem.options["padding"] != ((1, 1), (1, 1))
        ),
        "padding past the filter's reach, before alone": _cropping(0),
        "padding past the filter's reach, after alone": _cropping(1),
        "groups > 1": lambda problem: problem.options["groups"] > 1,
        "channels per group > 1 with groups > 1": lambda problem: (
            problem.options["groups"] > 1 and problem.shapes["weight"][1] > 1
        ),
        "filters per group differ from channels per group": lambda problem: (
            problem.shapes["weight"][0] != problem.shapes["weight"][1] * problem.options["groups"]
        ),
        "depthwise": lambda problem: problem.options["groups"] > 1 and problem.shapes["weight"][1] == 1,
        "more than 6 groups": lambda problem: problem.options["groups"] > 6,
        "bias": lambda problem: "bias" in problem.shapes,
        "no bias": lambda problem: "bias" not in problem.shapes,
        "channels past 64": lambda problem: problem.shapes["weight"][1] > 64 and problem.options["groups"] == 1,
        "channels per group past 64": lambda problem: (
            problem.shapes["weight"][1] > 64 and problem.options["groups"] > 1
        ),
        "filters past 64": lambda problem: problem.shapes["weight"][0] > 64 * problem.options["groups"],
        "filters and channels past 16": lambda problem: (
            min(problem.shapes["weight"][0] // problem.options["groups"], problem.shapes["weight"][1]) > 16
        ),
        MANY_CHANNELS: lambda problem: problem.shapes["weight"][1] > 256,
        MANY_FILTERS: lambda problem: problem.shapes["weight"][0] > 256 * problem.options["groups"],
        MATRICES: lambda problem: (
            _window(problem).kernel == (3, 3)
            and problem.options["stride"] == problem.options["dilation"] == (1, 1)
            and min(problem.shapes["weight"][0] // problem.options["groups"], problem.shapes["weight"][1]) > 30
        ),
        LAYERS: lambda problem: (
            min(problem.shapes["weight"][0] // problem.options["groups"], problem.shapes["weight"][1]) > 96
            and problem.output[0] * min(prod(problem.shapes["x"][2:]), prod(problem.output[2:])) >= 64
        ),
        "pixels one past a multiple of 96": _one_past(96),
        "pixels one past a multiple of 128": _one_past(128),
        "columns past 32": lambda problem: problem.output[3] > 32,
        "columns past 32 of filters past 16": lambda problem: (
            problem.output[3] > 32 and problem.shapes["weight"][0] > 16 * problem.options["groups"]
        ),
        "columns past 32 of channels past 16": lambda problem: (
            problem.output[3] > 32 and problem.shapes["weight"][1] > 16
        ),
    },
    "max_pool2d": {
        **WINDOWED,
        "ceil_mode adds a window": lambda problem: _window(problem).ceil_mode and any(
            _leftover(_window(problem), axis, problem.shapes["x"][axis + 2]) for axis in (0, 1)
        ),
        "2x2 with stride 2 on an odd width": lambda problem: (
            _window(problem).kernel == problem.options["stride"] == (2, 2) and problem.shapes["x"][3] % 2 == 1
        ),
        "channels past 16": lambda problem: problem.output[1] > 16,
        "rows past 16": lambda problem: problem.output[2] > 16,
        "columns past 32": lambda problem: problem.output[3] > 32,
        "2x2 with stride 2, columns past 32": lambda problem: (
            _window(problem).kernel == problem.options["stride"] == (2, 2) and problem.output[3] > 32
        ),
        "indices asked for": lambda problem: problem.options["return_indices"],
    },
    "linear": {
        "bias": lambda problem: "bias" in problem.shapes,
        "features past 64": lambda problem: problem.shapes["weight"][1] > 64,
        "outputs past 64": lambda problem: problem.shapes["weight"][0] > 64,
        "batch past 256": lambda problem: problem.shapes["x"][0] > 256,
        "features past 512": lambda problem: problem.shapes["weight"][1] > 512,
        "outputs past 256": lambda problem: problem.shapes["weight"][0] > 256,
        "batch, features and outputs past 16": lambda problem: (
            min(problem.shapes["x"][0], *problem.shapes["weight"]) > 16
        ),
    },
    "relu": {
        "a scalar": lambda problem: problem.output == (),
    },
    "flatten": {
        "channels past 16": lambda problem: problem.shapes["x"][1] > 16,
        "rows past 16": lambda problem: problem.shapes["x"][2] > 16,
        "columns past 16": lambda problem: problem.shapes["x"][3] > 16,
    },
    "cross_entropy": {
        "one class": lambda problem: problem.shapes["logits"][1] == 1,
        "classes past 64": lambda problem: problem.shapes["logits"][1] > 64,
        "a thousand classes": lambda problem: problem.shapes["logits"][1] >= 1000,
    },
    "sgd": {
        "no momentum": lambda problem: problem.options["momentum"] == 0,
    },
}  # fmt: skip
"""For each row of the operator table, what its problems must hit."""

STANDS_FOR_MANY = "one element for many (stride 0)"

COMMON: Mapping[str, Callable[[Problem], bool]] = {
    "empty batch": lambda problem: 0 in problem.output,
    "one image": lambda problem: next(iter(problem.shapes.values()))[:1] == (1,),
    "several images": lambda problem: next(iter(problem.shapes.values()))[:1] > (1,),
    "a batch past 16": lambda problem: next(iter(problem.shapes.values()))[:1] > (16,),
    "more elements than 16 bits count": lambda problem: any(
        prod(shape) > 2**16 for shape in (problem.output, *problem.shapes.values())
    ),
    "a size around a tile width": lambda problem: any(
        size in TILES for each in problem.shapes.values() for size in each
    ),
    "negative strides": lambda problem: problem.layout == "reversed",
    "gaps between elements": lambda problem: problem.layout == "spread",
    "gaps between rows": lambda problem: problem.layout == "cropped",
    STANDS_FOR_MANY: lambda problem: problem.layout == "broadcast",
    "channels-last memory": lambda problem: problem.layout == "channels_last",
    "transposed memory": lambda problem: problem.layout == "transposed",
    "guard bands of NaN": lambda problem: problem.layout == "guarded",
    "read-only inputs": lambda problem: problem.layout == "read_only",
}


@cache
def predicates(operator: str) -> Mapping[str, Callable[[Problem], bool]]:
    """What the problems of this operator are counted for; an empty batch only where one is legal."""
    op = operator.partition(".")[0]
    common: dict[str, Any] = dict(COMMON)
    if op == "cross_entropy":
        del common["empty batch"]
    return {**PREDICATES[op], **common}
