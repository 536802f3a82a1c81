"""The values of drawn problems are what they promise, whatever memory they are laid out in."""

from dataclasses import replace
from math import isqrt
from typing import Any

import nested_loops
import numpy as np
import pytest
from drawn import LINEAR, drawn, linear, sides, small
from jaxtyping import Shaped

from kernelproof.proofs.problems import (
    LAYOUTS,
    Problem,
)
from kernelproof.proofs.values import laid_out, largest_whole, terms
from kernelproof.spec import OPERATORS
from kernelproof.spec.operator import operator as made_public


def values(problem: Problem, seeds: int = 60) -> list[dict[str, np.ndarray]]:
    return [replace(problem, seed=seed).arrays() for seed in range(seeds)]


@pytest.mark.parametrize("operator", LINEAR)
def test_whole_numbers_are_as_large_as_exact_sums_allow(operator: str) -> None:
    loops = getattr(nested_loops, operator.replace(".", "_"))
    for problem in small(operator, "whole"):
        ones = {name: np.ones(shape, np.int64) for name, shape in problem.array_shapes.items()}
        counted = max(1, int(np.max(problem.call(loops, ones), initial=1)))
        most = largest_whole(problem)
        assert terms(problem) == counted
        exactly = 2**24 if problem.dtype == "float32" else 2**53
        assert counted * most**2 <= exactly < counted * (most + 1) ** 2
        assert all(np.abs(array).max(initial=0) <= most for array in problem.arrays().values())


@pytest.mark.parametrize(
    ("precision", "most"), [("bf16", 2**8), ("tf32", 2**11), ("fp16", 2**11), ("fp32", 2**12), ("f16x3", 2**11)]
)
def test_whole_numbers_fit_the_precision(precision: str, most: int) -> None:
    one = Problem("linear", {"x": (1, 1), "weight": (1, 1)}, {}, (1, 1), "whole", precision=precision)
    assert largest_whole(one) == most


@pytest.mark.parametrize(
    ("precision", "most"), [(None, isqrt(2**53 // 9)), ("fp32", 1365), ("tf32", 1365), ("winograd2", 2**16)]
)
def test_whole_numbers_of_float64_fill_its_sums_unless_fewer_bits_are_declared(precision: str, most: int) -> None:
    nine = Problem("linear", {"x": (1, 9), "weight": (1, 9)}, {}, (1, 1), "whole", dtype="float64", precision=precision)
    assert largest_whole(nine) == most


def test_whole_numbers_of_other_sums() -> None:
    shapes = {"parameter": (2,), "gradient": (2,), "velocity": (2,)}
    step = Problem("sgd", shapes, {"learning_rate": 2, "momentum": 3}, (2,), "whole")
    assert terms(step) == 1 + 2 * (1 + 3)
    assert largest_whole(step, 2**25) == 1


def test_the_specification_checks_its_shapes_on_the_first_arrays_of_every_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A specification whose result has another shape than it says is refused, for each configuration, every time."""

    def keeps_an_axis(dy: Shaped[np.ndarray, "n k"]) -> Shaped[np.ndarray, " k"]:
        return dy.sum(axis=0, keepdims=True)

    monkeypatch.setattr(Problem, "spec", made_public(OPERATORS["linear.dbias"].door)(keeps_an_axis))
    for n in (21, 22):
        problem = Problem("linear.dbias", {"x": (n, 2), "weight": (3, 2)}, {}, (n, 3), "real")
        for seed in range(2):
            with pytest.raises(Exception, match="return value"):
                problem.specified(replace(problem, seed=seed).arrays())


def test_whole_numbers_take_every_value() -> None:
    most = largest_whole(linear("whole"))
    seen = np.unique(np.concatenate([each["x"].ravel() for each in values(linear("whole"))]))
    assert np.array_equal(seen, np.arange(-most, most + 1))


def test_ties_are_drawn_from_three_values() -> None:
    assert np.array_equal(np.unique(linear("ties").arrays()["x"]), [-1, 0, 1])


@pytest.mark.parametrize(("dtype", "precision", "bits"), [
    ("float32", None, 24), ("float64", None, 53), ("float32", "tf32", 11), ("float32", "bf16", 8),
])  # fmt: skip
def test_one_array_fills_the_significand_and_the_others_hold_a_single_number(
    dtype: str, precision: str | None, bits: int
) -> None:
    full, widest = set[str](), 0.0
    for arrays in values(linear("mantissa", dtype=dtype, precision=precision)):
        [name] = [name for name, array in arrays.items() if np.count_nonzero(array) > 1]
        magnitude = np.abs(arrays[name])
        assert np.all(magnitude % 2 == 1)
        assert 2 ** (bits - 1) < magnitude.min()
        assert magnitude.max() < 2**bits
        widest = max(widest, float(magnitude.max()))
        assert (arrays[name] < 0).any()
        assert (arrays[name] > 0).any()
        # No second addend, or the sum would be rounded.
        assert [np.count_nonzero(array) for other, array in arrays.items() if other not in (name, "bias")] in (
            [1],
            [1, 1],
        )
        assert name == "bias" or not arrays["bias"].any()
        assert {float(array.max()) for other, array in arrays.items() if other not in (name, "bias")} == {1.0}
        full.add(name)
    assert full == {"x", "weight", "bias"}
    assert widest > 1.98 * 2 ** (bits - 1)


def test_reals_are_of_four_kinds() -> None:
    kinds, widest = {"positive": 0, "spread": 0, "far from zero": 0, "normal": 0}, 0.0
    for arrays in values(linear("real", dtype="float64")):
        x = arrays["x"]
        if (x > 0).all():
            kinds["positive"] += 1
            assert x.max() < 10
        elif x.max() < -9e6:
            kinds["far from zero"] += 1
            assert -1e7 - 10 < x.min() <= x.max() < -1e7 + 10
        elif np.abs(x).max() > 10:
            kinds["spread"] += 1
            assert 2**10 < np.abs(x).max() < 2**14
            widest = max(widest, np.abs(x).max())
            assert np.sort(np.abs(x).ravel())[x.size // 24] < 2**-9
        else:
            kinds["normal"] += 1
            assert abs(x.mean()) < 0.1
    assert min(kinds.values()) > 5, kinds
    assert widest > 2**12.5
    half = [np.abs(arrays["x"]).max() for arrays in values(linear("real", precision="fp16"))]
    assert max(half) < 10


def holds_special(array: np.ndarray) -> bool:
    tiny = np.finfo(array.dtype).smallest_normal
    odd = ~np.isfinite(array) | (np.abs(array) < tiny) & (array != 0) | (array == 0) & np.signbit(array)
    return bool(odd.any())


def test_special_values_are_all_there_in_one_array_at_a_time() -> None:
    among, scaled, seen, shares, of_subnormals = set(), set(), set(), [], 0
    for arrays in values(linear("special"), 200):
        holding = [name for name, array in arrays.items() if holds_special(array)]
        subnormal = [name for name in holding if np.isfinite(arrays[name]).all() and np.abs(arrays[name]).max() < 1e-40]
        assert len(holding) == 1 or set(holding) == set(subnormal) == {holding[0], "bias"}
        among.update(holding)
        scaled.update(subnormal)
        of_subnormals += bool(subnormal)
        ordinary = np.concatenate(
            [array[np.isfinite(array)] for name, array in arrays.items() if name not in subnormal]
        )
        assert set(ordinary) <= {-3, -2, -1, 0, 1, 2, 3}
        seen.update("nan" if np.isnan(value) else repr(float(value)) for value in arrays[holding[0]].ravel())
        if holding == ["x"] and not subnormal:
            shares.append(np.mean(~np.isfinite(arrays["x"])))
    assert among == scaled == {"x", "weight", "bias"}
    assert 25 < of_subnormals < 80
    assert {"nan", "inf", "-inf", "-0.0", "0.0", "-3.0", "3.0"} <= seen
    assert any(abs(float(value)) == np.finfo(np.float32).smallest_subnormal for value in seen - {"nan"})
    assert 0.03 < min(shares) < 0.12 < 0.3 < max(shares) < 0.5


LEFT_OPEN = [
    ("conv2d", {"x"}, lambda problem: any(sides(problem))),
    ("conv2d.dx", {"dy"}, lambda problem: True),
    ("conv2d.dweight", {"x"}, lambda problem: any(sides(problem))),
    ("sgd", {"parameter", "gradient"}, lambda problem: problem.options["momentum"] == 0),
]
"""Operators, the arrays that may hold special values, where the others' are left open."""


@pytest.mark.parametrize(("operator", "may", "where"), LEFT_OPEN)
def test_special_values_stay_out_of_what_the_specification_leaves_open(
    operator: str, may: set[str], where: Any
) -> None:
    arrays = [problem.arrays() for problem in drawn(operator, "special", 150) if where(problem)]
    assert {name for each in arrays for name, array in each.items() if not np.isfinite(array).all()} == may


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4, 5)])
def test_a_layout_moves_values_and_changes_none(layout: str, shape: tuple[int, ...]) -> None:
    array = np.asarray(np.random.default_rng(0).standard_normal(shape), np.float32)
    there: Any = laid_out(array.copy(), layout)
    right = array[:1][..., :1] if layout == "broadcast" and shape else array
    assert np.array_equal(there, np.broadcast_to(right, shape))
    assert (there.shape, there.dtype) == (shape, array.dtype)
    assert there.flags.writeable == (layout not in ("read_only", "broadcast") or (layout == "broadcast" and not shape))
    size, last = there.itemsize, there.strides[-1:] or (0,)
    if layout == "reversed" and shape:
        assert last == (-size,)
        assert max(there.strides) < 0
    if layout == "cropped" and shape:
        assert last == (size,)
        assert not there.flags.c_contiguous or len(shape) == 1
    if layout == "broadcast" and shape:
        assert (there.strides[0], there.strides[-1]) == (0, 0)
    if layout == "spread" and shape:
        assert last == (2 * size,)
    if layout == "transposed" and len(shape) > 1:
        assert (there.flags.f_contiguous, there.flags.c_contiguous) == (True, False)
    if layout == "channels_last" and len(shape) == 4:
        assert there.transpose(0, 2, 3, 1).flags.c_contiguous
    if layout == "guarded":
        before = (there.ctypes.data - there.base.ctypes.data) // size
        assert 16 < before < there.base.size - before - there.size + 8
        assert before % 16
        assert np.isnan(there.base).sum() == 64


def test_gaps_hold_poison() -> None:
    for dtype, is_poison in ((np.float32, np.isnan), (np.int64, lambda gap: gap == np.iinfo(np.int64).min)):
        there: Any = laid_out(np.ones((3, 4), dtype), "spread")
        assert is_poison(there.base[:, 1::2]).all()
        cropped: Any = laid_out(np.ones((3, 4), dtype), "cropped")
        assert is_poison(cropped.base[0]).all()
        assert is_poison(cropped.base[1:4, 5:]).all()
        guarded: Any = laid_out(np.ones(4, dtype), "guarded")
        assert is_poison(guarded.base[:31]).all()
