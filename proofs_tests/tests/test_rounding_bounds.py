"""Rounding bounds are what is derived: written anew term by term, in fractions, for every operator and precision."""

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import nested_loops
import numpy as np
import pytest
from drawn import LINEAR, small

from kernelproof.proofs.bounds import rounding_bound
from kernelproof.proofs.problems import Problem


def unit(dtype: str) -> Fraction:
    return Fraction(1, 2**24 if dtype == "float32" else 2**53)


def tiny(dtype: str) -> Fraction:
    return Fraction(1, 2**149 if dtype == "float32" else 2**1074)


def gamma(n: int, u: Fraction) -> Fraction:
    return n * u / (1 - n * u)


def agree(came: np.ndarray, exact: Any) -> None:
    """Equal but for the roundings of float64 itself: not a thousand of them."""
    elements: Any = np.asarray(exact, object)
    for index in np.ndindex(came.shape):
        wanted = Fraction(elements[index])
        assert abs(Fraction(float(came[index])) - wanted) <= wanted / 2**43, (index, float(came[index]), float(wanted))


def counts_and_magnitudes(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """By nested loops, for every element: how many products it sums, and the sum of their magnitudes."""
    loops = getattr(nested_loops, problem.operator.replace(".", "_"))
    absolute = {name: np.vectorize(lambda v: abs(Fraction(float(v))), otypes=[object])(array)
                for name, array in problem.arrays().items()}  # fmt: skip
    ones = {name: np.ones(array.shape, np.int64) for name, array in absolute.items()}
    return problem.call(loops, ones), problem.call(loops, absolute)


@pytest.mark.parametrize("operator", LINEAR)
def test_a_sum_of_products_may_be_off_by_one_rounding_more_than_it_has_terms(operator: str) -> None:
    for problem in small(operator, "real")[:12]:
        (came,) = rounding_bound(problem, problem.arrays(), problem.dtype)
        counts, magnitudes = counts_and_magnitudes(problem)
        u, least = unit(problem.dtype), tiny(problem.dtype)
        exact = np.empty(came.shape, object)
        for index in np.ndindex(came.shape):
            exact[index] = gamma(int(counts[index]) + 1, u) * magnitudes[index] + int(counts[index]) * least
        agree(came, exact)


@pytest.mark.parametrize(
    ("precision", "bits", "products"),
    [("tf32", 11, 1), ("bf16", 8, 1), ("fp16", 11, 1), ("3xtf32", 21, 3), ("f16x3", 22, 3)],
)
def test_lower_precision_may_be_off_by_the_bits_it_cuts(precision: str, bits: int, products: int) -> None:
    problem = Problem("linear", {"x": (2, 3), "weight": (2, 3), "bias": (2,)}, {}, (2, 2), "real", precision=precision)
    (came,) = rounding_bound(problem, problem.arrays(), "float32")
    counts, magnitudes = counts_and_magnitudes(problem)
    cut, exact = Fraction(2, 2**bits), np.empty(came.shape, object)
    x, weight, bias = (np.abs(array.astype(np.float64)) for array in problem.arrays().values())
    for n, k in np.ndindex(came.shape):
        added = gamma(products * int(counts[n, k]) + 1, 2 * unit("float32")) * magnitudes[n, k]
        added += int(counts[n, k]) * tiny("float32")
        exact[n, k] = added + ((1 + cut) ** 2 - 1) * (magnitudes[n, k] + added)
        if precision == "fp16":
            # Each operand may lose 2**-24 of its own, beside the other: with a bias that is one more of each kind.
            lost = Fraction(1, 2**24)
            beside = sum(map(Fraction, weight[k].tolist())) + Fraction(float(bias[k]))
            beside += sum(map(Fraction, x[n].tolist())) + Fraction(float(bias[k]))
            beside += sum(
                (Fraction(a) * Fraction(b) for a, b in zip(x[n].tolist(), weight[k].tolist(), strict=True)), Fraction(1)
            )
            exact[n, k] += lost * (beside + int(counts[n, k]) * lost)
        if precision == "f16x3":
            # Each may lose 2**-39 of what shares its scale: of its row of x, of its output's weights.
            lost, most_x, most_w = Fraction(1, 2**39), Fraction(x[n].max()), Fraction(weight[k].max())
            beside = most_x * sum(map(Fraction, weight[k].tolist())) + most_w * sum(map(Fraction, x[n].tolist()))
            exact[n, k] += lost * (beside + magnitudes[n, k] + 2 * Fraction(float(bias[k])))
            exact[n, k] += lost * lost * (len(x[n]) * most_x * most_w + Fraction(float(bias[k])))
    agree(came, exact)


def test_weights_of_an_input_gradient_share_a_scale_by_channel() -> None:
    shapes, window = {"x": (1, 3, 2, 2), "weight": (2, 3, 1, 1)}, {"stride": (1, 1), "padding": ((0, 0), (0, 0))}
    options = window | {"dilation": (1, 1), "groups": 1}
    problem = Problem("conv2d.dx", shapes, options, (1, 2, 2, 2), "real", precision="f16x3")
    arrays = {"dy": np.ones((1, 2, 2, 2), np.float32), "weight": np.ones((2, 3, 1, 1), np.float32)}
    (before,) = rounding_bound(problem, arrays, "float32")
    arrays["weight"][0, 2] = 2.0**40
    (after,) = rounding_bound(problem, arrays, "float32")
    assert np.array_equal(before[:, :2], after[:, :2])
    assert (after[:, 2] > 2**16 * before[:, 2]).all()


@pytest.mark.parametrize("operator", ["conv2d", "conv2d.dx"])
def test_a_kernel_of_float32_accuracy_keeps_what_f16x3_promises(operator: str) -> None:
    # So *fast* may be computed as *strict* where that is faster (kernels/cuda/tensor_cores/preconditions.py).
    shapes = {"x": (2, 4, 5, 6), "weight": (4, 2, 3, 2)}
    options = {"stride": (2, 1), "padding": ((1, 0), (1, 2)), "dilation": (1, 2), "groups": 2}
    for seed in range(5):
        strict = Problem(operator, shapes, options, (2, 4, 2, 7), "real", seed)
        fast = replace(strict, precision="f16x3")
        (least,), (most,) = (rounding_bound(each, strict.arrays(), "float32") for each in (strict, fast))
        assert (least <= most).all()


def test_all_bits_of_a_wider_type_are_no_excuse() -> None:
    problem = Problem("linear", {"x": (2, 3), "weight": (2, 3)}, {}, (2, 2), "real", precision="tf32")
    bounds = [
        rounding_bound(replace(problem, precision=each), problem.arrays(), "float32")[0] for each in ("fp32", None)
    ]
    assert np.array_equal(bounds[0], bounds[1])
    assert (bounds[0] < rounding_bound(problem, problem.arrays(), "float32")[0]).all()


@pytest.mark.parametrize("operator", ["relu", "relu.dx", "flatten", "flatten.dx", "max_pool2d"])
def test_what_copies_may_not_be_off(operator: str) -> None:
    for problem in small(operator, "real")[:10]:
        (came,) = rounding_bound(problem, problem.arrays(), problem.dtype)[:1]
        result = problem.call(problem.spec, problem.arrays())
        assert came.shape == (result[0] if isinstance(result, tuple) else result).shape
        assert operator.startswith("flatten") or not came.any()


def test_a_pooling_gradient_adds_up_at_most_a_window() -> None:
    for problem in small("max_pool2d.dx", "real")[:12]:
        (came,) = rounding_bound(problem, problem.arrays(), problem.dtype)
        arrays = problem.arrays()
        loops = np.vectorize(lambda v: Fraction(float(v)), otypes=[object])
        given = {"dy": loops(np.abs(arrays["dy"])), "x": loops(arrays["x"])}
        magnitudes = problem.call(nested_loops.max_pool2d_dx, given)
        window = math.prod(problem.options["kernel_size"])
        share = gamma(window, unit(problem.dtype)) if window > 1 else 0
        agree(came, share * magnitudes)


def test_a_step_of_sgd_passes_six_roundings_and_its_velocity_three() -> None:
    shapes = {"parameter": (4,), "gradient": (4,), "velocity": (4,)}
    problem = Problem("sgd", shapes, {"learning_rate": 0.1, "momentum": 0.9}, (4,), "real")
    arrays = problem.arrays()
    parameter, velocity = rounding_bound(problem, arrays, "float32")
    for index in range(4):
        p, g, v = (abs(Fraction(float(arrays[name][index]))) for name in shapes)
        moved = Fraction(0.9) * v + g
        agree(velocity[index : index + 1], [gamma(3, unit("float32")) * moved + tiny("float32")])
        changed = gamma(6, unit("float32")) * (p + Fraction(0.1) * moved) + 2 * tiny("float32")
        agree(parameter[index : index + 1], [changed])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bounds_of_cross_entropy_follow_their_derivation(dtype: str) -> None:
    """Term by term, in plain Python."""
    problem = Problem("cross_entropy", {"logits": (3, 4), "target": (3,)}, {}, (), "real", dtype=dtype)
    arrays = problem.arrays()
    logits, u, least = arrays["logits"].astype(float).tolist(), float(unit(dtype)), float(tiny(dtype))
    (came,) = rounding_bound(problem, arrays, dtype)
    (gradient,) = rounding_bound(replace(problem, operator="cross_entropy.dlogits"), arrays, dtype)
    loss = 0.0
    wanted = np.zeros((3, 4))
    for n, (row, target) in enumerate(zip(logits, arrays["target"].tolist(), strict=True)):
        z = [value - max(row) for value in row]
        e = [math.exp(value) for value in z]
        total = sum(e)
        off = [min(-value * u, 1) + 4 * u for value in z]
        summed = sum(p / total * each for p, each in zip(e, off, strict=True)) + float(gamma(4, unit(dtype)))
        total_off = summed / (1 - summed) + 4 * least
        at = math.log(total) - z[target]
        at_off = total_off + 4 * u * math.log(total) + -z[target] * u
        loss += at_off + float(gamma(5, unit(dtype))) * (at + at_off)
        for k in range(4):
            difference = -z[k] * u + 5 * u * math.log(total)
            t = off[k] + total_off + max(u, difference)
            p_off = e[k] / total * (t / (1 - t))
            result = abs(e[k] / total - (k == target)) + p_off
            wanted[n, k] = (p_off + float(gamma(2, unit(dtype))) * result) / 3 + 2 * least
    agree(np.asarray([came]), [Fraction(loss / 3 + least)])
    agree(gradient, wanted)


@pytest.mark.parametrize("operator", LINEAR)
def test_where_winograd_is_not_taken_it_is_no_excuse(operator: str) -> None:
    for problem in small(operator, "real"):
        arrays, wide = problem.arrays(), replace(problem, precision="winograd2")
        ((bound,), (declared,)) = (rounding_bound(each, arrays, problem.dtype) for each in (problem, wide))
        window = [problem.options.get(name) for name in ("stride", "dilation")]
        taken = operator != "conv2d.dbias" and problem.shapes["weight"][2:] == (3, 3) and window == [(1, 1), (1, 1)]
        assert declared.shape == bound.shape
        assert np.array_equal(bound, declared) != taken


def test_an_input_gradient_by_winograd_crops_what_is_padded_past_the_filter() -> None:
    options = {"stride": (1, 1), "padding": ((3, 0), (1, 3)), "dilation": (1, 1), "groups": 1}
    shapes = {"x": (1, 1, 2, 3), "weight": (1, 1, 3, 3)}
    problem = Problem("conv2d.dx", shapes, options, (1, 1, 3, 5), "real", precision="winograd2")
    (bound,) = rounding_bound(problem, problem.arrays(), "float32")
    assert bound.shape == (1, 1, 2, 3)
    assert (bound > 0).all()


@pytest.mark.parametrize("operator", ["conv2d", "conv2d.dx", "conv2d.dweight"])
def test_transforms_may_be_off_by_what_their_stages_leave_of_the_norms(operator: str) -> None:
    """Element by element, with one group; where multiplying directly rounds more, that counts."""
    for problem in [each for each in small(operator, "real") if each.options["groups"] == 1][:12]:
        arrays = problem.arrays()
        (came,) = rounding_bound(replace(problem, precision="fft"), arrays, problem.dtype)
        (direct,) = rounding_bound(problem, arrays, problem.dtype)
        exact = np.empty(came.shape, object)
        for index in np.ndindex(came.shape):
            exact[index] = max(of_transforms(problem, arrays, index), Fraction(float(direct[index])))
        agree(came, exact)


def of_transforms(problem: Problem, arrays: dict[str, np.ndarray], index: tuple[int, ...]) -> Fraction:
    """The pictures that meet in the element: their transforms, the products, the transform back."""
    first, second = index[:2]
    a, b = (each for name, each in arrays.items() if name != "bias")
    of_a = a[:, first] if problem.operator == "conv2d.dweight" else a[first]
    of_b = b[second] if problem.operator == "conv2d" else b[:, second]
    bits = 0
    for axis in (0, 1):
        reach = problem.options["dilation"][axis] * (problem.shapes["weight"][2 + axis] - 1)
        needed = problem.shapes["x"][2 + axis] + sum(problem.options["padding"][axis]) + 2 * reach
        bits += math.ceil(math.log2(needed))
    u, least = unit(problem.dtype), tiny(problem.dtype)
    forth, beside = gamma(15 * bits, u), gamma(len(of_a) + 6, u)
    both = [(*norms(one, least), *norms(other, least)) for one, other in zip(of_a, of_b, strict=True)]
    products = sum((two_a * two_b for _, two_a, _, two_b in both), Fraction(0))
    back = min(sum(two_a * one_b for _, two_a, one_b, _ in both), sum(one_a * two_b for one_a, _, _, two_b in both))
    bound = ((1 + forth) ** 2 * (1 + beside) - 1) * products
    bound += forth * (1 + forth) * (1 + beside) * (1 + forth * Fraction(math.sqrt(2**bits))) * back
    return bound + least + (beside * abs(Fraction(float(arrays["bias"][second]))) if "bias" in arrays else 0)


def norms(picture: np.ndarray, least: Fraction) -> tuple[Fraction, Fraction]:
    """The sum of magnitudes, and the root of the sum of squares."""
    values = [abs(float(value)) + float(least) for value in picture.ravel()]
    return Fraction(math.fsum(values)), Fraction(math.sqrt(math.fsum(value * value for value in values)))
