"""The fast CPU kernels at sizes around their vectors and tiles, which the laws' small problems do not reach."""

import itertools
from typing import Any

import numpy as np
import pytest
from whole_numbers import elements_are_right, whole

from kernelproof import kernels, spec
from kernelproof.kernels.cpu import elementwise, workspace
from kernelproof.kernels.cpu.convolution import depthwise, pixel_gradient, pixel_vectors, pointwise
from kernelproof.proofs.bounds import rounding_bound
from kernelproof.proofs.problems import Problem
from kernelproof.spec import Window


@pytest.mark.parametrize("k", [1, 4, 9, 15, 16, 17, 33, 71])
@pytest.mark.parametrize("c", [1, 15, 16, 17, 31, 33, 130, 1100])
def test_linear_at_the_edges_of_its_tiles(c: int, k: int):
    for n in (1, 5, 6, 7, 13, 14, 15, 29, 49, 57):
        x, weight, bias, dy = whole(0, n, c), whole(1, k, c), whole(2, k), whole(3, n, k)
        assert np.array_equal(kernels.linear(x, weight, bias), spec.linear(x, weight, bias))
        assert np.array_equal(kernels.linear_dx(dy, weight), spec.linear_dx(dy, weight))
        assert np.array_equal(kernels.linear_dweight(dy, x), spec.linear_dweight(dy, x))


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1), ((3, 2), (1, 2), (1, 0))])
@pytest.mark.parametrize("width", [13, 14, 15, 16, 17, 31, 32, 33, 34, 65])
def test_pooling_at_the_edges_of_its_vectors(width: int, kernel, stride, padding):
    options = {"kernel_size": kernel, "stride": stride, "padding": padding}
    # Ties, NaN, infinities and zeros of both signs; images enough that the inner ones may be read beyond their rows.
    values = np.array([1, 2, 3, np.nan, np.inf, -np.inf, -0.0, 0.0], np.float32)
    for height, images in itertools.product((7, 8), (1, 9)):
        x = np.random.default_rng(width).choice(values, (images, 3, height, width))
        y, index = spec.max_pool2d(x, **options, return_indices=True)
        came, where = kernels.max_pool2d(x, **options, return_indices=True)
        assert np.array_equal(came, y, equal_nan=True)
        assert np.array_equal(where, index)
        assert kernels.max_pool2d(x, **options).tobytes() == came.tobytes()
        dy = whole(1, *y.shape)
        assert np.array_equal(kernels.max_pool2d_dx(dy, x, **options), spec.max_pool2d_dx(dy, x, **options))


GEOMETRIES = [
    Window((3, 3), (1, 1), ((1, 1), (1, 1))),
    Window((3, 3), (2, 2), ((1, 1), (1, 1))),
    Window((3, 2), (2, 2), ((0, 3), (2, 0))),
    Window((2, 3), (1, 2), ((1, 0), (0, 2))),
    Window((1, 1)),
]


def products(module, operators, x_shape: tuple[int, ...], weight_shape: tuple[int, ...], window: Window, groups: int):
    """Each operator as `module` computes it and as it is specified."""
    x, weight, bias = whole(0, *x_shape), whole(1, *weight_shape), whole(2, weight_shape[0])
    y = spec.conv2d.body(x, weight, bias, window, groups)
    dy = whole(3, *y.shape)
    given = {
        "conv2d": (x, weight, bias), "conv2d_dx": (dy, weight, x_shape), "conv2d_dweight": (dy, x, weight_shape),
    }  # fmt: skip
    for name in operators:
        came = getattr(module, name)(*given[name], window, groups)
        yield came, getattr(spec, name).body(*given[name], window, groups)


@pytest.mark.parametrize("window", [*GEOMETRIES, Window((2, 3), (3, 1), ((2, 2), (1, 3)), (2, 3))])
@pytest.mark.parametrize("width", [15, 16, 17, 33, 65])
def test_pixel_vectors_at_the_edges_of_their_tiles(width: int, window: Window):
    for height, channels, filters in itertools.product((13, 14, 15), (1, 3), (1, 2, 7)):
        shapes = (2, 2 * channels, height, width), (2 * filters, channels, *window.kernel)
        for came, right in products(pixel_vectors, ("conv2d", "conv2d_dx"), *shapes, window, 2):
            assert np.array_equal(came, right)


@pytest.mark.parametrize("window", GEOMETRIES)
@pytest.mark.parametrize("width", [17, 49])
@pytest.mark.parametrize("filters", [19, 41])
def test_pixel_vectors_at_the_edges_of_their_blocks(filters: int, width: int, window: Window):
    shapes = (2, 6, 14, width), (2 * filters, 3, *window.kernel)
    for module, operators in ((pixel_vectors, ("conv2d", "conv2d_dx")), (pixel_gradient, ("conv2d_dweight",))):
        for came, right in products(module, operators, *shapes, window, 2):
            assert np.array_equal(came, right)


ONE_PIXEL = Window((1, 1))


@pytest.mark.parametrize("pixels", [1, 3, *(pointwise.WIDTH + each for each in (-1, 0, 1, 9)), 5 * pointwise.WIDTH + 7])
@pytest.mark.parametrize("channels", [1, 5, 7, 33])
def test_pointwise_at_the_edges_of_its_panels_and_tiles(pixels: int, channels: int):
    for images, filters in itertools.product((0, 1, 2, 5, 19), (1, *range(4, 18), 29)):
        shapes = (images, channels, 1, pixels), (filters, channels, 1, 1)
        for came, right in products(pointwise, ("conv2d", "conv2d_dx"), *shapes, ONE_PIXEL, 1):
            assert np.array_equal(came, right)


def test_pointwise_with_tiles_that_come_near_one_after_the_other(monkeypatch):
    monkeypatch.setattr(pointwise, "_NEAR", 0)
    monkeypatch.setattr(pointwise, "_PANELS", 0)
    pointwise.cut.cache_clear()
    shapes = (3, 5, 7, 11), (29, 5, 1, 1)
    try:
        for came, right in products(pointwise, ("conv2d", "conv2d_dx"), *shapes, ONE_PIXEL, 1):
            assert np.array_equal(came, right)
    finally:
        pointwise.cut.cache_clear()


def test_pointwise_results_stored_past_the_caches_are_the_same(monkeypatch):
    monkeypatch.setattr(pointwise, "_LARGE", 0)
    shapes = (3, 7, 2, pointwise.WIDTH), (17, 7, 1, 1)
    for came, right in products(pointwise, ("conv2d", "conv2d_dx"), *shapes, ONE_PIXEL, 1):
        assert np.array_equal(came, right)


@pytest.mark.parametrize("window", GEOMETRIES)
@pytest.mark.parametrize("width", [15, 16, 17, 31, 32, 33, 47])
def test_depthwise_at_the_edges_of_its_vectors_and_rows(width: int, window: Window):
    operators = [
        each for each in ("conv2d", "conv2d_dx", "conv2d_dweight")
        if depthwise.applies(each, window, (9, 1, *window.kernel), 9)
    ]  # fmt: skip
    for height in range(5, 10):
        for came, right in products(depthwise, operators, (2, 9, height, width), (9, 1, *window.kernel), window, 9):
            assert np.array_equal(came, right)


def test_depthwise_results_stored_past_the_caches_are_the_same(monkeypatch):
    x, weight = whole(0, 2, 4, 7, 32), whole(1, 4, 1, 3, 3)
    arguments = x, weight, None, GEOMETRIES[0], 4
    before = depthwise.conv2d(*arguments)
    monkeypatch.setattr(depthwise, "_LARGE", 0)
    assert np.array_equal(depthwise.conv2d(*arguments), before)


def test_what_stands_behind_an_image_does_not_reach_its_gradient():
    x, dy = np.full((1, 2, 3, 17), np.inf, np.float32), whole(1, 1, 2, 3, 17)
    x[0, 0] = 1
    dweight = depthwise.conv2d_dweight(dy, x, (2, 1, 3, 3), GEOMETRIES[0], 2)
    assert np.isfinite(dweight[0]).all()


@pytest.mark.parametrize("past", [0, 2**24])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 2**14 - 1, 2**14 + 17])
def test_elements_at_the_edges_of_vectors_and_chunks(size: int, past: int, monkeypatch):
    monkeypatch.setattr(elementwise, "_LARGE", past)
    elements_are_right(size)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_result_past_the_caches_begins_where_no_input_is_soon_read(count: int):
    memory = np.zeros(2**14, np.float32)
    for drawn in np.random.default_rng(count).integers(0, 2**13, (200, count)):
        # Inputs that begin alike in their pages are among them.
        inputs = [memory[start : start + 8] for start in (drawn, drawn // 64 * 64, 0 * drawn)[drawn[0] % 3]]
        result = workspace.empty_beside((4, 5), inputs).ctypes.data
        assert result % 64 == 0
        # Beyond every input by most of its share of a page, and before the next.
        behind = [(result - each.ctypes.data) % 2**12 for each in inputs]
        assert min(behind) >= 2**12 // count - 256 - 64
        assert max(behind) <= 2**12 - 256


@pytest.mark.parametrize("classes", [1, 15, 16, 17, 100])
@pytest.mark.parametrize("name", ["cross_entropy", "cross_entropy.dlogits"])
def test_cross_entropy_at_the_edges_of_its_vectors(name: str, classes: int):
    logits = np.random.default_rng(classes).normal(0, 30, (5, classes)).astype(np.float32)
    arrays = {"logits": logits, "target": np.arange(5) % classes}
    shapes = {key: each.shape for key, each in arrays.items()}
    problem = Problem(name, shapes, {}, () if name == "cross_entropy" else logits.shape, "normal")
    (bound,) = rounding_bound(problem, arrays, "float32")
    exact: dict[str, Any] = arrays | {"logits": logits.astype(np.float64)}
    operator: Any = spec.find(name)
    came = kernels.backend("cpu")(operator, **arrays)
    assert np.all(np.abs(came - operator(**exact)) <= bound)
    for special in (np.inf, -np.inf, np.nan):
        arrays["logits"][2, classes // 2] = special
        with np.errstate(invalid="ignore"):
            right = operator(**exact | {"logits": arrays["logits"].astype(np.float64)})
        came = kernels.backend("cpu")(operator, **arrays)
        assert np.array_equal(np.isnan(came), np.isnan(right))


@pytest.mark.parametrize(("k", "c", "groups"), [(3, 3, 3), (9, 3, 1), (20, 40, 1), (64, 64, 1)])
@pytest.mark.parametrize("options", [{"padding": 1}, {"stride": 2, "padding": 1}, {"padding": 0, "dilation": 2}])
def test_an_infinite_weight_reaches_its_own_pixels_only(k: int, c: int, groups: int, options: dict[str, Any]):
    """Whatever algorithm that many filters and channels are for."""
    weight, x_shape = whole(0, k, c // groups, 3, 3), (2, c, 9, 17)
    options = {**options, "groups": groups}
    dy = whole(1, *spec.conv2d(np.zeros(x_shape, np.float32), weight, **options).shape)
    weight[0, 0, 0, 2], weight[1, 0, 1, 1] = np.inf, np.nan
    with np.errstate(invalid="ignore"):
        right = spec.conv2d_dx(dy, weight, x_shape, **options)
    assert np.array_equal(kernels.conv2d_dx(dy, weight, x_shape, **options), right, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 40), (2, 40), (40, 1), (1, 1)])
def test_pooling_where_every_window_reaches_over_an_edge(shape: tuple[int, int]):
    x = whole(0, 9, 3, *shape)
    options: dict[str, Any] = {"kernel_size": 3, "stride": 1, "padding": 1}
    y, index = spec.max_pool2d(x, **options, return_indices=True)
    came, where = kernels.max_pool2d(x, **options, return_indices=True)
    assert np.array_equal(came, y)
    assert np.array_equal(where, index)
    assert np.array_equal(kernels.max_pool2d_dx(y, x, **options), spec.max_pool2d_dx(y, x, **options))
