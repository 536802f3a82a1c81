"""Each law is broken by a kernel with one fault planted: a check that cannot fail proves nothing."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from kernelproof import spec
from kernelproof.proofs import LAWS, verify
from kernelproof.proofs.hold import hold
from kernelproof.proofs.jobs import kept
from kernelproof.proofs.subject import Subject

PLANTED: dict[str, tuple[str, Callable[..., Any]]] = {}


def breaks(law: str, operator: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The kernel below must be refuted by this law."""

    def plant(kernel: Callable[..., Any]) -> Callable[..., Any]:
        PLANTED[law] = operator, kernel
        return kernel

    return plant


@breaks("equals_the_specification_on_whole_numbers", "conv2d")
def uses_one_stride_for_both_axes(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    y = spec.conv2d(x, weight, bias, **options | {"stride": options["stride"][:1] * 2})
    return np.resize(y, spec.conv2d(x, weight, bias, **options).shape)


@breaks("equals_the_specification_where_values_tie", "relu.dx")
def lets_the_gradient_pass_at_zero(dy: Any, x: Any) -> Any:
    return np.where(x < 0, np.zeros_like(dy), dy)


@breaks("keeps_every_bit_of_the_significand", "linear")
def rounds_its_input_to_tf32(x: Any, weight: Any, bias: Any) -> Any:
    return spec.linear(truncated(x), weight, bias)


def truncated(x: Any) -> Any:
    return (np.ascontiguousarray(x).view(np.int32) & np.int32(-(2**13))).view(np.float32)


@breaks("rounds_within_the_derived_bound", "cross_entropy")
def leaves_the_maximum_in(logits: Any, target: Any) -> Any:
    total = np.log(np.exp(logits).sum(axis=1))
    return np.asarray((total - np.take_along_axis(logits, target[:, None], axis=1)[:, 0]).mean(), logits.dtype)


@breaks("puts_special_values_where_the_specification_does", "relu")
def drops_nan(x: Any) -> Any:
    return np.where(x > 0, x, np.zeros_like(x))


@breaks("returns_an_input_bit_for_bit", "max_pool2d")
def loses_the_sign_of_zero(x: Any, kernel_size: Any, **options: Any) -> Any:
    y, winner = spec.max_pool2d(x, kernel_size, **options | {"return_indices": True})
    return (y + np.float32(0), winner) if options["return_indices"] else y + np.float32(0)


@breaks("keeps_nan_and_infinities", "cross_entropy")
def cleans_its_logits(logits: Any, target: Any) -> Any:
    return spec.cross_entropy(np.nan_to_num(logits), target)


@breaks("keeps_nan_and_infinities_though_it_rounds", "conv2d")
def spreads_nan_over_a_tile(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    y = spec.conv2d(x, weight, bias, **options)
    return np.where(np.isnan(y).any(axis=(2, 3), keepdims=True), np.full_like(y, np.nan), y)


@breaks("is_the_adjoint_of_the_forward", "conv2d.dweight")
def takes_the_first_group_only(dy: Any, x: Any, weight_shape: Any, **options: Any) -> Any:
    dweight = spec.conv2d_dweight(dy, x, weight_shape, **options)
    dweight[weight_shape[0] // options["groups"] :] = 0
    return dweight


@breaks("is_the_exact_derivative", "max_pool2d.dx")
def overwrites_where_windows_overlap(dy: Any, x: Any, kernel_size: Any, **options: Any) -> Any:
    _, winner = spec.max_pool2d(x, kernel_size, **options, return_indices=True)
    dx = np.zeros((*x.shape[:2], x.shape[2] * x.shape[3]), dy.dtype)
    np.put_along_axis(dx, winner.reshape(*x.shape[:2], -1), dy.reshape(*x.shape[:2], -1), axis=2)
    return dx.reshape(x.shape)


@breaks("computes_each_image_alone", "conv2d")
def adds_bias_to_the_first_image_only(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    y = spec.conv2d(x, weight, None, **options)
    if bias is not None:
        y[:1] += bias[:, None, None]
    return y


@breaks("sums_channels_in_any_order", "conv2d")
def drops_the_last_channel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    weight = weight.copy()
    weight[:, 1:][:, -1:] = 0
    return spec.conv2d(x, weight, bias, **options)


@breaks("gives_each_filter_its_output", "conv2d")
def gives_every_filter_the_first_bias(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    return spec.conv2d(x, weight, bias if bias is None else np.repeat(bias[:1], len(bias)), **options)


@breaks("pads_as_explicit_zeros_do", "conv2d")
def swaps_the_padding_before_and_after(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    swapped: Any = {"padding": tuple(sides[::-1] for sides in options["padding"])}
    return spec.conv2d(x, weight, bias, **options | swapped)


@breaks("groups_are_a_block_diagonal_filter", "conv2d")
def stops_after_64_channels(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    weight = weight.copy()
    weight[:, 64:] = 0
    return spec.conv2d(x, weight, bias, **options)


@breaks("dilates_as_a_filter_with_holes_does", "conv2d")
def forgets_a_row_of_dilated_filters(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    weight = weight.copy()
    if options["dilation"] != (1, 1):
        weight[:, :, -1] = 0
    return spec.conv2d(x, weight, bias, **options)


@breaks("strides_keep_every_sth_output", "max_pool2d")
def pools_strided_rows_twice(x: Any, kernel_size: Any, **options: Any) -> Any:
    result = spec.max_pool2d(x, kernel_size, **options)
    y = result[0] if options["return_indices"] else result
    if options["stride"][0] > 1:
        y[:, :, 1:] = y[:, :, :-1].copy()
    return result


@breaks("scales_exactly_by_powers_of_two", "conv2d")
def quantises_to_a_fixed_range(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
    return spec.conv2d(x, weight, bias, **options).clip(-1000, 1000)


_buffers: dict[Any, Any] = {}


@breaks("gives_the_same_bits_again", "relu")
def reuses_its_result(x: Any) -> Any:
    y = _buffers.setdefault((x.shape, x.dtype), np.empty_like(x, order="C"))
    y[...] = np.where(x <= 0, 0, x)
    return y


_packed: dict[int, Any] = {}


@breaks("sees_that_its_inputs_have_changed", "linear")
def packs_a_weight_once(x: Any, weight: Any, bias: Any) -> Any:
    _, packed = _packed.setdefault(id(weight), (weight, weight.copy()))
    return spec.linear(x, packed, bias)


_threads = [1]


_slots: dict[Any, Any] = {}


@breaks("takes_one_array_for_two_arguments", "sgd")
def updates_in_place(parameter: Any, gradient: Any, velocity: Any, **rates: Any) -> Any:
    if parameter is gradient:
        return parameter.copy(), velocity.copy()
    return spec.sgd(parameter, gradient, velocity, **rates)


@breaks("keeps_apart_what_was_one_array", "sgd")
def remembers_which_arrays_were_one(*arrays: Any, **rates: Any) -> Any:
    key = arrays[0].shape, arrays[0].dtype, repr(rates)
    slots = _slots.setdefault(key, [next(i for i, each in enumerate(arrays) if each is array) for array in arrays])
    return spec.sgd(*(arrays[slot] for slot in slots), **rates)


@breaks("gives_the_same_bits_on_any_number_of_threads", "linear.dbias")
def adds_up_a_sum_for_each_thread(dy: Any) -> Any:
    return sum((dy[part :: _threads[0]].sum(axis=0) for part in range(_threads[0])), np.zeros(dy.shape[1:], dy.dtype))


@breaks("gives_the_same_bits_beside_other_calls", "relu")
def works_in_one_place(x: Any) -> Any:
    _workspace[0] = x
    time.sleep(0)
    return spec.relu(_workspace[0])


_workspace: list[Any] = [None]


@breaks("touches_no_memory_but_its_own", "relu")
def sums_one_element_too_many(x: Any) -> Any:
    y = np.empty(x.size + 1, x.dtype)
    y[:-1] = spec.relu(x).reshape(-1)
    return y[:-1].reshape(x.shape) + np.float32(np.fmax(y[-1:], 0).sum() > 1e30)


@breaks("reads_its_inputs_and_nothing_beside_them", "relu")
def reads_a_vector_past_the_end(x: Any) -> Any:
    ctypes.string_at(x.ctypes.data + x.nbytes, 4 * bool(x.size))
    return spec.relu(x)


@breaks("refuses_what_the_specification_refuses", "max_pool2d")
def takes_any_window(x: Any, kernel_size: Any, **options: Any) -> Any:
    try:
        return spec.max_pool2d(x, kernel_size, **options)
    except spec.KernelproofError:
        return x.copy()


@breaks("survives_impossible_sizes", "relu")
def counts_elements_in_32_bits(x: Any) -> Any:
    return spec.relu(x) if x.size < 2**31 else np.zeros(1)[x.size]  # Stands for what lies there.


def tells_no_indices(pool: Callable[..., Any], refusal: Exception) -> Callable[..., Any]:
    def kernel(x: Any, kernel_size: Any, *, return_indices: bool, **options: Any) -> Any:
        if return_indices:
            raise refusal
        return pool(x, kernel_size, **options)

    return kernel


def of_equals_the_last(x: Any, kernel_size: Any, **options: Any) -> Any:
    """Of zeros that tie it has another sign than the specification's, the sign of an input all the same."""
    y, negative = spec.max_pool2d(x, kernel_size, **options), np.signbit(x) & (x == 0)
    return np.where((y == 0) & (spec.max_pool2d(negative.astype(x.dtype), kernel_size, **options) > 0), -0.0, y)


@pytest.mark.parametrize(
    "refusal", [spec.UnsupportedError("max_pool2d", "return_indices", "none", "Leave it."), NotImplementedError("none")]
)
def test_a_maximum_without_indices_is_an_input_with_its_sign_too(refusal: Exception) -> None:
    law = "returns_an_input_bit_for_bit"

    def verdict(pool: Callable[..., Any]) -> str:
        report = verify(tells_no_indices(pool, refusal), op="max_pool2d", level="L4", examples=60)
        return next(each.verdict for each in report.laws if each.law == law)

    assert verdict(lambda x, size, **options: spec.max_pool2d(x, size, **options)) == "proven"
    assert verdict(lambda x, size, **options: of_equals_the_last(x, size, **options).astype(x.dtype)) == "proven"
    assert verdict(lambda x, size, **options: spec.max_pool2d(x, size, **options) + np.float32(0)) == "refuted"


@pytest.mark.parametrize("law", LAWS)
def test_every_law_refutes_a_planted_fault(law: str) -> None:
    operator, kernel = PLANTED[law]
    subject = Subject("planted", {operator: kernel}, threads=partial(_threads.__setitem__, 0), checked=True)
    if not LAWS[law].needs(subject.kernel(operator)):
        subject = replace(
            subject, precision="winograd4"
        )  # Some laws are for kernels that whole numbers do not survive.
    with kept(subject, 60.0 if LAWS[law].apart else None) as check:
        result = hold(LAWS[law], subject, operator, 100, 0, check)
    assert result.verdict == "refuted"


def test_a_kernel_that_writes_to_its_input_is_refuted() -> None:
    def doubles_in_place(x: Any) -> Any:
        if x.flags.writeable:
            x *= 2
        return spec.relu(np.asarray(x / 2) if x.flags.writeable else x)

    report = verify(doubles_in_place, "relu", level="L1")
    assert report.exit_status == 1
    assert "wrote to its input x" in str(report.failures[0].failure)


def test_a_kernel_that_returns_its_input_is_refuted() -> None:
    def hands_it_back(x: Any) -> Any:
        return x if (x >= 0).all() else spec.relu(x)

    assert "shares memory" in str(verify(hands_it_back, "relu", level="L1").failures[0].failure)


def test_a_kernel_that_raises_is_refuted_with_what_it_raised() -> None:
    def fails(x: Any) -> Any:
        raise MemoryError("no room")

    assert "raised MemoryError: no room" in str(verify(fails, "relu", level="L1").failures[0].failure)


def test_a_kernel_of_the_wrong_dtype_is_refuted() -> None:
    report = verify(lambda x: spec.relu(x.astype(np.float64)), "relu", level="L1")
    assert "float64, needs float32" in str(report.failures[0].failure)
