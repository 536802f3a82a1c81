"""Problems one step from another: what a cache must tell apart if it is not to answer for the wrong one."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from kernelproof.spec import Window

from .problems import Problem, layouts_of

Shapes = Mapping[str, tuple[int, ...]]


def neighbour(problem: Problem, supports: Callable[[Problem], bool] = lambda problem: True) -> Problem:
    """The problem with one thing changed, chosen by its seed among those that are legal and supported.

    Other values if there is nothing else to change: the same shapes, dtype and options, so the hardest to tell apart.
    """
    values = problem.redrawn(1)
    others = [values, *(each for each in _near(values) if legal(each) and supports(each))]
    return others[problem.seed % len(others)]


def resized(problem: Problem, shapes: Shapes, **options: Any) -> Problem:
    """The problem whose forward arrays have these shapes and whose options these values."""
    options = {**problem.options, **options}
    first = next(iter(shapes.values()))
    match problem.op.name:
        case "conv2d" | "max_pool2d":
            geometry = {name: value for name, value in options.items() if name not in ("groups", "return_indices")}
            r, s = geometry.pop("kernel_size", None) or shapes["weight"][2:]
            window = Window((r, s), **geometry)
            output = (first[0], shapes.get("weight", first[1:])[0], window.p(first), window.q(first))
        case "linear":
            output = (first[0], shapes["weight"][0])
        case "flatten":
            output = (first[0], math.prod(first[1:]))
        case "cross_entropy":
            output = ()
        case _:
            output = first
    return replace(problem, shapes=dict(shapes), options=options, output=output)


NARROWER = ("groups", "filters", "channels", "images")
"""What a convolution or a pooling may have one of."""


def narrowed(problem: Problem, what: str) -> Problem:
    """The problem with one group, one filter or channel in each group, or one image; itself where it has no such."""
    if problem.op.name not in ("conv2d", "max_pool2d"):
        return problem
    shapes, groups = dict(problem.shapes), problem.options.get("groups", 1)
    n, c, *image = shapes["x"]
    if what == "images":
        return resized(problem, {**shapes, "x": (min(n, 1), c, *image)})
    if "weight" not in shapes or 0 in (c, *shapes["weight"]):
        return problem
    k, per_group, *taps = shapes["weight"]
    k, per_group, groups = {
        "groups": (k // groups, per_group, 1), "filters": (groups, per_group, groups), "channels": (k, 1, groups)
    }[what]  # fmt: skip
    shapes |= {"x": (n, groups * per_group, *image), "weight": (k, per_group, *taps)}
    if "bias" in shapes:
        shapes["bias"] = (k,)
    return resized(problem, shapes, groups=groups)


def _near(problem: Problem) -> Iterator[Problem]:
    """Every problem one step away, legal or not."""
    shapes, options, layouts = problem.shapes, problem.options, layouts_of(problem.family)
    yield replace(problem, dtype="float64" if problem.dtype == "float32" else "float32")
    yield replace(problem, layout=layouts[(layouts.index(problem.layout) + 1) % len(layouts)])
    if problem.output or problem.op.name == "cross_entropy":
        batched = {name: (size + 1, *rest) for name, (size, *rest) in shapes.items() if name not in ("weight", "bias")}
        yield resized(problem, {**shapes, **batched})
    if "weight" in shapes:
        without = {name: shape for name, shape in shapes.items() if name != "bias"}
        yield resized(problem, without if "bias" in shapes else {**shapes, "bias": shapes["weight"][:1]})
    if "stride" in options:
        (down, right), ((top, bottom), sides) = options["stride"], options["padding"]
        yield resized(problem, shapes, stride=(right, down) if down != right else (down + 1, right))
        yield resized(problem, shapes, padding=((bottom, top) if top != bottom else (top + 1, bottom), sides))
        yield resized(problem, shapes, dilation=options["dilation"][::-1])
    if options.get("groups", 1) > 1:
        k, c, *taps = shapes["weight"]
        yield resized(problem, {**shapes, "weight": (k, c * options["groups"], *taps)}, groups=1)
    for name in ("ceil_mode", "return_indices"):
        if name in options:
            yield resized(problem, shapes, **{name: not options[name]})
    for name in ("learning_rate", "momentum"):
        if name in options:
            yield resized(problem, shapes, **{name: options[name] + 1})


def of_one_shape(problem: Problem) -> Problem:
    """The problem with as little changed as gives its first two arrays one shape, so that one array can be both."""
    shapes, options = dict(problem.shapes), dict[str, Any]()
    if "dilation" in problem.options:
        options["dilation"] = (1, 1)
    match problem.operator:
        case "conv2d":  # x and weight
            shapes["x"], options["groups"] = shapes["weight"], 1
        case "conv2d.dx":  # dy and weight
            few, taps = max(1, min(*shapes["x"][:2], *shapes["weight"][:2])), shapes["weight"][2:]
            image = ((size - 1) * (step + 1) + 1 for size, step in zip(taps, problem.options["stride"], strict=True))
            shapes = {"x": (few, few, *image), "weight": (few, few, *taps)}
            options |= {"groups": 1, "padding": ((0, 0), (0, 0))}
        case "conv2d.dweight" | "max_pool2d.dx":  # dy and x
            taps = problem.options.get("kernel_size") or shapes["weight"][2:]
            if "weight" in shapes:
                shapes = {"x": shapes["x"], "weight": (shapes["x"][1], *shapes["weight"][1:])}
            options |= {"stride": (1, 1), "padding": tuple(((size - 1) // 2, size // 2) for size in taps)}
        case "linear":
            shapes["x"] = shapes["weight"]
        case "linear.dx" | "linear.dweight":
            few = max(1, min(*shapes["x"], *shapes["weight"]))
            shapes = {"x": (few, few), "weight": (few, few)}
    return resized(problem, shapes, **options)


def legal(problem: Problem) -> bool:
    """Whether the specification takes a call of these shapes and options, and its forward: a gradient may not tell."""
    try:
        for each in (problem, replace(problem, operator=problem.op.name)):
            each.call(each.spec.door, {
                name: np.broadcast_to(np.zeros((), np.int64 if name == "target" else each.dtype), shape)
                for name, shape in each.array_shapes.items()
            })  # fmt: skip
    except ValueError:  # The door's refusal, or numpy's of the negative size that a window too large would give.
        return False
    return True
