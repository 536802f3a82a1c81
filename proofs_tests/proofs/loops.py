"""The reference for millions of small problems: the equations as compiled loops over whole numbers.

A second formulation: nothing of the specification's arithmetic is used. That both agree is held by exhausting the
specification itself against these loops.
"""

from collections.abc import Mapping

import numpy as np

from kernelproof.kernels.cpu.launch import in_turn

from .judging import specified
from .problems import Problem

Results = tuple[np.ndarray, ...]


def reference(problem: Problem, arrays: Mapping[str, np.ndarray]) -> Results:
    """The right results on whole numbers; from the specification where there are no loops for the operator."""
    row, _, argument = problem.operator.partition(".d")
    if row == "conv2d" and argument != "bias":
        return (_convolved(problem, arrays, argument or "y"),)
    if row == "max_pool2d":
        return _pooled(problem, arrays)
    return specified(problem, arrays, np.int64)


def _convolved(problem: Problem, arrays: Mapping[str, np.ndarray], wanted: str) -> np.ndarray:
    shapes = {"x": problem.shapes["x"], "weight": problem.shapes["weight"], "y": problem.output}
    given = {name.replace("dy", "y"): array.astype(np.int64) for name, array in arrays.items()}
    operands = {name: given[name] if name in given else np.zeros(shape, np.int64) for name, shape in shapes.items()}
    stride, padding, dilation = _geometry(problem)
    _convolve(
        operands["x"], operands["weight"], operands["y"], stride, padding, dilation, problem.options["groups"], wanted
    )  # fmt: skip
    result = operands[wanted]
    return (result + given["bias"][:, None, None] if "bias" in given else result).astype(np.float64)


def _pooled(problem: Problem, arrays: Mapping[str, np.ndarray]) -> Results:
    x = arrays["x"].astype(np.int64)
    y, index = np.empty(problem.output, np.int64), np.empty(problem.output, np.int64)
    _pool(x, y, index, problem.options["kernel_size"], *_geometry(problem))
    if "dy" in arrays:
        dx = np.zeros(x.shape)
        image, channel = np.ogrid[: x.shape[0], : x.shape[1]]
        at = image[..., None, None], channel[..., None, None], *np.divmod(index, x.shape[3])
        np.add.at(dx, at, arrays["dy"])
        return (dx,)
    return (y.astype(np.float64), index)[: 1 + problem.options["return_indices"]]


def _geometry(problem: Problem) -> tuple[tuple[int, int], ...]:
    """Stride, padding before, dilation: rows, columns."""
    (top, _), (left, _) = problem.options["padding"]
    return problem.options["stride"], (top, left), problem.options["dilation"]


@in_turn
def _convolve(x, weight, y, stride, padding, dilation, groups, wanted):
    """Every product once, added to the one of the three operands that is wanted."""
    filters = weight.shape[0] // groups
    for n in range(y.shape[0]):
        for k in range(y.shape[1]):
            for each in range(weight.shape[1]):
                c = k // filters * weight.shape[1] + each
                for p in range(y.shape[2]):
                    for q in range(y.shape[3]):
                        for r in range(weight.shape[2]):
                            for s in range(weight.shape[3]):
                                h = p * stride[0] + r * dilation[0] - padding[0]
                                w = q * stride[1] + s * dilation[1] - padding[1]
                                if not (0 <= h < x.shape[2] and 0 <= w < x.shape[3]):
                                    continue
                                if wanted == "y":
                                    y[n, k, p, q] += x[n, c, h, w] * weight[k, each, r, s]
                                elif wanted == "x":
                                    x[n, c, h, w] += y[n, k, p, q] * weight[k, each, r, s]
                                else:
                                    weight[k, each, r, s] += y[n, k, p, q] * x[n, c, h, w]


@in_turn
def _pool(x, y, index, kernel, stride, padding, dilation):
    """The greatest number in each window and where it stands, `h*width + w`: the first of equals, never in padding."""
    for n in range(y.shape[0]):
        for c in range(y.shape[1]):
            for p in range(y.shape[2]):
                for q in range(y.shape[3]):
                    found = False
                    for r in range(kernel[0]):
                        for s in range(kernel[1]):
                            h = p * stride[0] + r * dilation[0] - padding[0]
                            w = q * stride[1] + s * dilation[1] - padding[1]
                            inside = 0 <= h < x.shape[2] and 0 <= w < x.shape[3]
                            if inside and (not found or x[n, c, h, w] > y[n, c, p, q]):
                                found = True
                                y[n, c, p, q], index[n, c, p, q] = x[n, c, h, w], h * x.shape[3] + w
