"""A second formulation of every operator: literal loops over one scalar at a time, from the equation alone.

Nothing of the specification's arithmetic is used. Sizes are counted: a window is moved on until it no longer fits. Any
scalar that adds, multiplies and compares will do, so whole numbers and Fractions give exact answers.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Pair = tuple[int, int]


def starts(
    size: int, kernel: int, stride: int, padding: Pair, dilation: int, ceil_mode: bool = False
) -> Iterator[list[int]]:
    """For every output along one axis the inputs that its taps stand on; below 0 and from `size` on lies padding."""
    before, after = padding
    at = -before
    while True:
        taps = [at + tap * dilation for tap in range(kernel)]
        over = taps[-1] - (size - 1 + after)
        # An incomplete window is one that hangs over by less than a stride; it has to begin before the padding does.
        if over > 0 and not (ceil_mode and over < stride and at < size):
            return
        yield taps
        at += stride


def windows(x_shape: Sequence[int], kernel: Pair, options: dict[str, Any]) -> tuple[list[list[int]], list[list[int]]]:
    """Rows and columns that the taps of every output stand on."""
    rows, columns = (
        list(
            starts(
                x_shape[-2:][axis],
                kernel[axis],
                options["stride"][axis],
                options["padding"][axis],
                options["dilation"][axis],
                options.get("ceil_mode", False),
            )
        )
        for axis in (0, 1)
    )
    return rows, columns


def products(
    x_shape: Sequence[int], weight_shape: Sequence[int], options: dict[str, Any]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Every triple of an output, an input inside the image and a weight that a convolution multiplies."""
    (n, _, height, width), (k, c_of_group, r, s) = x_shape, weight_shape
    rows, columns = windows(x_shape, (r, s), options)
    for image in range(n):
        for filter_ in range(k):
            group = filter_ * options["groups"] // k
            for p, down in enumerate(rows):
                for q, right in enumerate(columns):
                    for channel in range(c_of_group):
                        for a, h in enumerate(down):
                            for b, w in enumerate(right):
                                if 0 <= h < height and 0 <= w < width:
                                    read = (image, group * c_of_group + channel, h, w)
                                    yield (image, filter_, p, q), read, (filter_, channel, a, b)


def zeros(shape: Sequence[int]) -> np.ndarray:
    """Exact zeros."""
    return np.full(tuple(shape), 0, object)


def conv2d(x: Any, weight: Any, bias: Any = None, **options: Any) -> np.ndarray:
    rows, columns = windows(x.shape, weight.shape[2:], options)
    y = zeros((len(x), len(weight), len(rows), len(columns)))
    for output, read, tap in products(x.shape, weight.shape, options):
        y[output] += x[read] * weight[tap]
    if bias is not None:
        for n, k, p, q in np.ndindex(y.shape):
            y[n, k, p, q] += bias[k]
    return y


def conv2d_dx(dy: Any, weight: Any, x_shape: Any, **options: Any) -> np.ndarray:
    dx = zeros(x_shape)
    for output, read, tap in products(x_shape, weight.shape, options):
        dx[read] += dy[output] * weight[tap]
    return dx


def conv2d_dweight(dy: Any, x: Any, weight_shape: Any, **options: Any) -> np.ndarray:
    dweight = zeros(weight_shape)
    for output, read, tap in products(x.shape, weight_shape, options):
        dweight[tap] += dy[output] * x[read]
    return dweight


def conv2d_dbias(dy: Any) -> np.ndarray:
    dbias = zeros(dy.shape[1:2])
    for n, k, p, q in np.ndindex(dy.shape):
        dbias[k] += dy[n, k, p, q]
    return dbias


def winners(x: Any, kernel_size: Pair, options: dict[str, Any]) -> Iterator[tuple[tuple[int, ...], tuple[int, int]]]:
    """Every output with the pixel that wins: the first NaN, or else the first of the greatest."""
    rows, columns = windows(x.shape, kernel_size, options)
    for n, c in np.ndindex(x.shape[:2]):
        for p, down in enumerate(rows):
            for q, right in enumerate(columns):
                best = None
                for h in down:
                    for w in right:
                        if not (0 <= h < x.shape[2] and 0 <= w < x.shape[3]):
                            continue
                        if best is None:
                            best = h, w
                            continue
                        value, held = x[n, c, h, w], x[(n, c, *best)]
                        if held == held and (value > held or value != value):
                            best = h, w
                assert best is not None
                yield (n, c, p, q), best


def max_pool2d(x: Any, kernel_size: Pair, *, return_indices: bool = False, **options: Any) -> Any:
    rows, columns = windows(x.shape, kernel_size, options)
    y, index = (zeros((*x.shape[:2], len(rows), len(columns))) for _ in range(2))
    for output, (h, w) in winners(x, kernel_size, options):
        y[output], index[output] = x[(*output[:2], h, w)], h * x.shape[3] + w
    return (y, index) if return_indices else y


def max_pool2d_dx(dy: Any, x: Any, kernel_size: Pair, **options: Any) -> np.ndarray:
    dx = zeros(x.shape)
    for output, (h, w) in winners(x, kernel_size, options):
        dx[(*output[:2], h, w)] += dy[output]
    return dx


def linear(x: Any, weight: Any, bias: Any = None) -> np.ndarray:
    y = zeros((len(x), len(weight)))
    for n, k in np.ndindex(y.shape):
        for c in range(x.shape[1]):
            y[n, k] += x[n, c] * weight[k, c]
        y[n, k] += 0 if bias is None else bias[k]
    return y


def linear_dx(dy: Any, weight: Any) -> np.ndarray:
    dx = zeros((len(dy), weight.shape[1]))
    for n, k in np.ndindex(dy.shape):
        for c in range(weight.shape[1]):
            dx[n, c] += dy[n, k] * weight[k, c]
    return dx


def linear_dweight(dy: Any, x: Any) -> np.ndarray:
    dweight = zeros((dy.shape[1], x.shape[1]))
    for n, k in np.ndindex(dy.shape):
        for c in range(x.shape[1]):
            dweight[k, c] += dy[n, k] * x[n, c]
    return dweight


def linear_dbias(dy: Any) -> np.ndarray:
    dbias = zeros(dy.shape[1:])
    for n, k in np.ndindex(dy.shape):
        dbias[k] += dy[n, k]
    return dbias


def relu(x: Any) -> np.ndarray:
    y = zeros(x.shape)
    for place in np.ndindex(x.shape):
        # Not `x > 0`: a NaN is not below zero and stays.
        y[place] = 0 if x[place] < 0 else x[place]
    return y


def relu_dx(dy: Any, x: Any) -> np.ndarray:
    dx = zeros(x.shape)
    for place in np.ndindex(x.shape):
        dx[place] = 0 if x[place] <= 0 else dy[place]
    return dx


def flatten(x: Any) -> np.ndarray:
    y = zeros((len(x), math.prod(x.shape[1:])))
    for n in range(len(x)):
        for feature, place in enumerate(np.ndindex(x.shape[1:])):
            y[n, feature] = x[(n, *place)]
    return y


def flatten_dx(dy: Any, x_shape: Any) -> np.ndarray:
    dx = zeros(x_shape)
    for n in range(len(dy)):
        for feature, place in enumerate(np.ndindex(*x_shape[1:])):
            dx[(n, *place)] = dy[n, feature]
    return dx


def cross_entropy(logits: Any, target: Any) -> float:
    rows = []
    for row, label in zip(logits.tolist(), target.tolist(), strict=True):
        greatest = max(row)
        rows.append(math.log(math.fsum(math.exp(each - greatest) for each in row)) - (row[label] - greatest))
    return math.fsum(rows) / len(rows)


def cross_entropy_dlogits(logits: Any, target: Any) -> np.ndarray:
    dlogits = np.zeros(logits.shape)
    for n, (row, label) in enumerate(zip(logits.tolist(), target.tolist(), strict=True)):
        total = math.fsum(math.exp(each - max(row)) for each in row)
        for k, each in enumerate(row):
            dlogits[n, k] = (math.exp(each - max(row)) / total - (k == label)) / len(target)
    return dlogits


def sgd(
    parameter: Any, gradient: Any, velocity: Any, *, learning_rate: Any, momentum: Any = 0
) -> tuple[np.ndarray, np.ndarray]:
    moved, speed = zeros(parameter.shape), zeros(parameter.shape)
    for place in np.ndindex(parameter.shape):
        speed[place] = momentum * velocity[place] + gradient[place]
        moved[place] = parameter[place] - learning_rate * speed[place]
    return moved, speed
