"""Patches of a depthwise convolution on a GPU are all of it once, forward, input and weight gradient."""

from typing import Any

import numpy as np
import pytest
from cuda_plans import NEEDS_COMPILERS, Strided, at, drawn, modules

from kernelproof import spec

pytestmark = NEEDS_COMPILERS

GEOMETRIES = [
    ((2, 3, 14, 14), (3, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 3),
    ((2, 2, 9, 11), (2, 1, 5, 5), (1, 1), ((2, 2), (2, 2)), (1, 1), 2),
    ((1, 2, 33, 30), (2, 1, 3, 3), (1, 1), ((1, 0), (2, 1)), (1, 1), 2),
    ((3, 2, 12, 5), (2, 1, 1, 4), (1, 1), ((0, 0), (2, 2)), (1, 1), 2),
    ((2, 2, 4, 4), (2, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 2),
    ((2, 2, 5, 4), (2, 1, 3, 3), (1, 1), ((3, 3), (3, 3)), (1, 1), 2),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_patches_are_all_of_a_depthwise_convolution_once(geometry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    m = modules()
    monkeypatch.setattr(m.depthwise, "divided", lambda n, factor, shift: int(n) * (factor % 2**32) >> shift)
    x, weight, window, groups = drawn(geometry)
    options = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation, "groups": groups}
    right = spec.conv2d(x, weight, **options)
    dy = np.random.default_rng(6).integers(-9, 10, right.shape)
    problem = m.launch_conv.forward(Strided(x), Strided(weight), Strided(right), window, groups)
    (phase,) = m.launch_conv.backward(Strided(dy), Strided(weight), Strided(x), window, groups)
    for whole, read, first_tap, expected in (
        (problem, x, 0, right), (phase.problem, dy, phase.first_tap, spec.conv2d_dx(dy, weight, x.shape, **options))
    ):  # fmt: skip
        tall = m.launch_direct._patch_of(whole)
        assert tall >= m.depthwise.LEAST_TALL
        came = np.full(expected.shape, -999)
        g = m.launch_direct._patches(whole, tall)
        for c, i in np.ndindex(groups, g.images * g.patches):
            n, down, across = m.depthwise.patch_of.py_func(i, g)
            for p in range(down * tall, min(down * tall + tall, g.p)):
                for q in range(across * m.depthwise.WIDE, min((across + 1) * m.depthwise.WIDE, g.q)):
                    total = 0
                    for r, s in np.ndindex(*whole.taps):
                        h, w = p - g.top + r, q - g.left + s
                        if 0 <= h < g.height and 0 <= w < g.width:
                            its_weight = at(weight, first_tap, (g.w_group, g.w_r, g.w_s), c, r, s)
                            total += at(read, 0, (g.x_n, g.x_c, g.x_h, g.x_w), n, c, h, w) * its_weight
                    assert came[n, c, p, q] == -999
                    came[n, c, p, q] = total
        np.testing.assert_array_equal(came, expected)


@pytest.mark.parametrize(
    ("output", "taps", "tall"), [((32, 32), (3, 3), 8), ((28, 28), (3, 3), 7), ((3, 9), (3, 3), 0), ((9, 9), (7, 7), 0)]
)
def test_a_patch_has_rows_that_fit_the_output_and_the_registers(
    output: tuple[int, int], taps: tuple[int, int], tall: int
) -> None:
    m = modules()
    assert m.depthwise.tall_of(taps, output, m.launch_direct.MOST_TAPS) == tall
