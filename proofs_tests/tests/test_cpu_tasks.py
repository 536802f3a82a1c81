"""The CPU kernels on arrays of several tasks and on long rows, which the laws' problems hardly reach."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from whole_numbers import elements_are_right, whole

from kernelproof import kernels, spec
from kernelproof.kernels.cpu import launch, pool
from kernelproof.kernels.cpu.convolution import direct
from kernelproof.kernels.cpu.convolution.planner import ALGORITHMS, Algorithm, Problem
from kernelproof.kernels.cpu.launch import in_turn, serial
from kernelproof.kernels.cpu.workers import on_workers
from kernelproof.spec import Window


@pytest.mark.parametrize("size", [0, 1, 2**14 - 1, 2**14, 3 * 2**14 + 17])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_elements_of_several_chunks(size: int, dtype: Any) -> None:
    elements_are_right(size, dtype)


# Small images are pooled several as one; of tall ones the gradient is spread in several goes.
@pytest.mark.parametrize("shape", [(40, 3, 16, 34), (7, 13, 18, 17), (2, 2, 260, 66), (2, 1, 91, 130)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((2, 3), (2, 2), 0)])
def test_pooling_of_several_stacks_of_images(shape: tuple[int, ...], kernel: Any, stride: Any, padding: int) -> None:
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    x = whole(0, *shape)
    y, index = spec.max_pool2d(x, **options, return_indices=True)
    came, where = kernels.max_pool2d(x, **options, return_indices=True)
    assert np.array_equal(came, y)
    assert np.array_equal(where, index)
    assert np.array_equal(kernels.max_pool2d(x, **options), y)
    dy = whole(1, *y.shape)
    assert np.array_equal(kernels.max_pool2d_dx(dy, x, **options), spec.max_pool2d_dx(dy, x, **options))


def long_rows(row: Algorithm) -> Iterator[Problem]:
    """What an algorithm can do, with rows of thousands of columns."""
    for stride, (filters, groups) in itertools.product((1, 2, 3), ((2, 2), (3, 1))):
        window = Window((3, 3), (stride, stride), ((1, 1), (1, 1)))
        asked = Problem(row.operator, (1, 2, 4, 9000), (filters, 2 // groups, 3, 3), window, groups, "float32")
        if row.rounding == "strict" and all(need.holds(asked) for need in row.needs):
            yield asked


@pytest.mark.parametrize(("row", "asked"), [
    pytest.param(row, asked, id=f"{row.name} {row.operator} in {asked.groups}, stride {asked.window.stride[0]}")
    for row in ALGORITHMS for asked in long_rows(row)
])  # fmt: skip
def test_rows_of_thousands_of_columns(row: Algorithm, asked: Problem) -> None:
    # Fours stay whole in the transforms of 2x2 tiles; 4x4 tiles round.
    x, weight, dy = whole(0, *asked.x_shape), 4 * whole(1, *asked.weight_shape), 4 * whole(2, *asked.y_shape)
    arrays = {"conv2d": (x, weight, None), "conv2d_dx": (dy, weight, x.shape), "conv2d_dweight": (dy, x, weight.shape)}
    given = *arrays[row.operator], asked.window, asked.groups
    assert np.array_equal(row.run(*given), getattr(spec, row.operator).body(*given))


@serial
def _takes_memory(worker, size):  # type: ignore[no-untyped-def]
    np.empty(size)[0] = worker


@in_turn
def _on_workers(workers, size):  # type: ignore[no-untyped-def]
    on_workers(workers, _takes_memory, (size,))  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker_without_memory_is_an_error(workers: int) -> None:
    _on_workers(workers, 8)
    with pytest.raises(MemoryError, match="worker"):
        _on_workers(workers, 2**45)


def _thrice(module: Any, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> list[np.ndarray]:
    return [
        module.conv2d(a, b, padding=1), module.relu_dx(a, b),
        *module.sgd(a, b, c, learning_rate=0.5, momentum=0.5),
    ]  # fmt: skip


def test_an_array_that_was_given_twice_is_not_taken_for_another_later() -> None:
    # A shape that no other test has: what is remembered of a call is remembered for all.
    a, b, c = (whole(seed, 3, 3, 3, 3) for seed in range(3))
    _thrice(kernels, a, a, a)
    for came, right in zip(_thrice(kernels, a, b, c), _thrice(spec, a, b, c), strict=True):
        np.testing.assert_array_equal(came, right)


# Direct convolution sums a chunk of channels at a time; (channels, filters, kernel, stride), groups of two.
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("geometry", [(300, 20, 1, 1), (260, 9, 1, 2), (70, 33, 3, 1), (130, 18, 3, 2), (40, 7, 5, 3)])
def test_sums_of_several_chunks_of_channels(geometry: tuple[int, ...], large: bool, monkeypatch: Any) -> None:
    channels, filters, kernel, stride = geometry
    sides = kernel // 2, kernel // 2
    window = Window((kernel, kernel), (stride, stride), (sides, sides))
    x, weight = whole(0, 2, 2 * channels, 12, 16), whole(1, 2 * filters, channels, kernel, kernel)
    y = spec.conv2d.body(x, weight, None, window, 2)
    dy = whole(2, *y.shape)
    if large:  # As if no cache held the result.
        monkeypatch.setattr(direct, "_LARGE", 0)
    try:
        for planned in (direct._forward, direct._backward):
            planned.cache_clear()
        assert np.array_equal(direct.conv2d(x, weight, None, window, 2), y)
        assert np.array_equal(direct.conv2d(x, weight, None, window, 2, relu=True), np.maximum(y, 0))
        dx = spec.conv2d_dx.body(dy, weight, x.shape, window, 2)
        assert np.array_equal(direct.conv2d_dx(dy, weight, x.shape, window, 2), dx)
    finally:
        for planned in (direct._forward, direct._backward):
            planned.cache_clear()


# Rows of a matrix that lie far apart are copied: by panels of columns, by tiles of rows.
@pytest.mark.parametrize("shape", [(64, 300, 10), (49, 1030, 70), (130, 257, 300), (7, 600, 513), (300, 40, 300)])
def test_matrices_whose_rows_lie_far_apart(shape: tuple[int, int, int]) -> None:
    n, c, k = shape
    x, weight, dy = whole(0, n, c), whole(1, k, c), whole(2, n, k)
    assert np.array_equal(kernels.linear(x, weight), spec.linear(x, weight))
    assert np.array_equal(kernels.linear_dx(dy, weight), spec.linear_dx(dy, weight))
    assert np.array_equal(kernels.linear_dweight(dy, x), spec.linear_dweight(dy, x))


# A part of the terms of all products is summed before the next, by tasks of several panels.
def test_long_products_have_the_same_bits_on_every_number_of_threads() -> None:
    x, weight = (np.random.default_rng(seed).standard_normal(shape, np.float32) for seed, shape in
                 enumerate(((131, 700), (300, 700))))  # fmt: skip
    dy, results = x @ weight.T, []
    for threads in (1, 3):
        with launch.on_threads(threads):
            results.append(
                [kernels.linear(x, weight), kernels.linear_dx(dy, weight), kernels.linear_dweight(dy, x)]
            )  # fmt: skip
    alone, shared = results
    assert [each.tobytes() for each in alone] == [each.tobytes() for each in shared]


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((2, 3), (2, 2), 0)])
def test_a_pooling_gradient_past_the_caches_is_the_same(kernel: Any, stride: Any, padding: int, monkeypatch) -> None:
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    for width in (8, 16, 24, 40, 64, 17):
        x = whole(0, 2, 3, 18, width)
        dy = whole(1, *spec.max_pool2d(x, **options).shape)
        monkeypatch.setattr(pool, "_LARGE", 0)
        monkeypatch.setattr(pool, "_PAST", True)
        assert np.array_equal(kernels.max_pool2d_dx(dy, x, **options), spec.max_pool2d_dx(dy, x, **options))
