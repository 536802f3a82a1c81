"""The direct input gradient's windows, carried out in numpy without a GPU: all of the result, once, and right."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_plans import GEOMETRIES, NEEDS_COMPILERS, Strided, drawn, modules

from kernelproof import spec

pytestmark = NEEDS_COMPILERS

FEW_CHANNELS = [
    *(each for each in GEOMETRIES if each[1][1] <= 4 and each[4] == (1, 1)),
    ((2, 3, 9, 8), (8, 3, 7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
    ((1, 1, 5, 6), (8, 1, 3, 3), (2, 3), ((1, 0), (2, 1)), (1, 1), 1),
    ((2, 2, 7, 7), (8, 2, 2, 5), (3, 1), ((0, 2), (4, 1)), (1, 1), 1),
    ((1, 4, 8, 8), (8, 2, 1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), 2),
    ((1, 2, 8, 9), (8, 1, 3, 3), (2, 2), ((5, 4), (3, 3)), (1, 1), 2),
    ((1, 3, 6, 6), (8, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
]


@pytest.mark.parametrize("geometry", FEW_CHANNELS, ids=str)
def test_windows_of_an_input_gradient_are_all_of_it_once(geometry: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    m, launched = modules(), []
    monkeypatch.setattr(m.input_gradient, "LEAST_FILTERS", 1)
    monkeypatch.setattr(m.input_gradient, "multiprocessors", lambda device: 132)
    x, weight, window, groups = drawn(geometry)
    options = {"stride": window.stride, "padding": window.padding, "dilation": window.dilation, "groups": groups}
    dy = np.random.default_rng(6).integers(-9, 10, spec.conv2d(x, weight, **options).shape)
    right = spec.conv2d_dx(dy, weight, x.shape, **options)
    problem = m.launch_conv.forward(*map(Strided, (x, weight, dy)), window, groups)
    shape = m.input_gradient.shape_of(problem)
    monkeypatch.setattr(m.input_gradient, "kernel", lambda shape: lambda *a, **k: launched.append(a[-1]))
    place = SimpleNamespace(device=0, stream=0)
    arrays = (SimpleNamespace(place=place, address=0) for _ in range(3))
    m.input_gradient.launch(*arrays, problem, shape)
    (g,), came, (down, across) = launched, np.full(right.shape, -(10**6)), shape.reach
    channels, per_group = weight.shape[1], weight.shape[0] // groups
    for n, group, line, column in np.ndindex(len(x), groups, g.windows // g.columns, g.columns):
        first = line * shape.tall
        sums = np.zeros((channels, shape.stride_h, shape.stride_w, shape.tall), np.int64)
        for k in range(group * per_group, (group + 1) * per_group):
            rows, columns = first - g.above + np.arange(down + shape.tall - 1), column - g.before + np.arange(across)
            inside = ((rows >= 0) & (rows < g.p))[:, None] & ((columns >= 0) & (columns < g.q))
            inputs = np.where(inside, dy[n, k][np.ix_(rows.clip(0, g.p - 1), columns.clip(0, g.q - 1))], 0)
            for c, r, s in np.ndindex(channels, shape.rows, shape.row):
                (j, a), (i, b) = divmod(r, shape.stride_h), divmod(s, shape.stride_w)
                read = inputs[down - 1 - j : down - 1 - j + shape.tall, across - 1 - i]
                sums[c, a, b] += read * weight[k, c, r, s]
        for c, a, b, t in np.ndindex(sums.shape):
            h, w = (first + t) * shape.stride_h + a - g.skipped_h, column * shape.stride_w + b - g.skipped_w
            if 0 <= h < x.shape[2] and 0 <= w < x.shape[3]:
                at = n, group * channels + c, h, w
                assert came[at] == -(10**6)
                came[at] = sums[c, a, b, t]
    np.testing.assert_array_equal(came, right)
