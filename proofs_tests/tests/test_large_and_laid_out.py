"""Wrong only where something is large is refuted; refused only for its memory layout is declined."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cheats import answer

from kernelproof import spec
from kernelproof.proofs import verify
from kernelproof.proofs.hold import hold
from kernelproof.proofs.subject import subject_of
from kernelproof.proofs.verify import laws_for

WRONG_WHERE: list[tuple[str, str, Callable[..., bool]]] = [
    ("linear", "features past a block of 512", lambda x, weight, bias: x.shape[1] > 512),
    ("linear", "a tile of all three sizes", lambda x, weight, bias: min(*x.shape, len(weight)) > 16),
    ("linear", "a weight that 15 bits do not count", lambda x, weight, bias: weight.size > 2**15),
    ("linear.dweight", "sums over a batch past 256", lambda dy, x: len(x) > 256),
    ("conv2d", "more than 8 groups of one channel", lambda x, weight, bias, **options: options["groups"] > 8),
    ("conv2d", "stride past 3", lambda x, weight, bias, **options: max(options["stride"]) > 3),
    ("conv2d", "dilation past 3", lambda x, weight, bias, **options: max(options["dilation"]) > 3),
    ("conv2d", "a filter longer than 7", lambda x, weight, bias, **options: max(weight.shape[2:]) > 7),
    ("conv2d", "an image that 15 bits do not count", lambda x, weight, bias, **options: x[0, 0].size > 2**15
     if len(x) else False),
    ("conv2d", "tiles of filters and channels", lambda x, weight, bias, **options: min(weight.shape[:2]) > 16),
    ("conv2d.dweight", "long sums in one image", lambda dy, x, shape, **options: dy.shape[2] * dy.shape[3] > 1024),
    ("max_pool2d", "channels past 8", lambda x, size, **options: x.shape[1] > 8),
    ("max_pool2d", "rows past 32", lambda x, size, **options: x.shape[2] > 32),
    ("max_pool2d", "an image that 15 bits do not count", lambda x, size, **options: x.shape[2] * x.shape[3] > 2**15),
    ("max_pool2d.dx", "images past 8", lambda dy, x, size, **options: len(x) > 8),
    ("flatten", "channels past 8", lambda x: x.shape[1] > 8),
    ("flatten", "rows past 8", lambda x: x.shape[2] > 8),
    ("cross_entropy", "rows past 64", lambda logits, target: len(target) > 64),
    ("cross_entropy.dlogits", "a thousand classes", lambda logits, target: logits.shape[1] >= 1000),
    ("relu", "more than 2**17 elements", lambda x: x.size > 2**17),
]  # fmt: skip
"""Kernels that are right everywhere else: what their authors tried was too small."""


@pytest.mark.parametrize(("operator", "what", "there"), WRONG_WHERE)
def test_a_kernel_that_is_wrong_only_where_something_is_large_is_refuted(
    operator: str, what: str, there: Callable[..., bool]
) -> None:
    def kernel(*arrays: Any, **options: Any) -> Any:
        came = spec.OPERATORS[operator](*arrays, **options)
        results = came if isinstance(came, tuple) else (came,)
        if results[0].size and there(*arrays, **options):
            # One element is wrong, the last.
            last = np.arange(results[0].size).reshape(results[0].shape) == results[0].size - 1
            results = (np.where(last, results[0] + results[0].dtype.type(1), results[0]), *results[1:])
        return results if isinstance(came, tuple) else results[0]

    subject = subject_of(kernel, operator)
    found = (hold(law, subject, operator, 100, 0).failure for law in laws_for(subject, operator, ("L1", "L3")))
    assert any(found), f"believed: wrong with {what}"


def dense_only(error: type[Exception]) -> Callable[..., Any]:
    """A convolution that takes arrays in C order alone, as a compiled one with a signature does."""

    def kernel(*arrays: Any, **options: Any) -> Any:
        if not all(each is None or each.flags.c_contiguous for each in arrays):
            raise error("ndarray is not C-contiguous")
        return spec.conv2d(*arrays, **options)

    return kernel


@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_a_kernel_that_refuses_a_memory_layout_declines_it(error: type[Exception]) -> None:
    report = verify(dense_only(error), "conv2d", examples=20)
    assert report.verdict == "proven"
    assert all(result.unsupported for result in report.results)
    assert any(result.declined.endswith(f"{error.__name__}: ndarray is not C-contiguous") for result in report.results)


def test_a_kernel_that_raises_for_values_is_refuted_whatever_their_layout() -> None:
    def kernel(x: Any) -> Any:
        if x.size > 4:
            raise ValueError("too many")
        return answer(x)

    assert verify(kernel, "relu", level="L1", examples=20).verdict == "refuted"
    assert verify(dense_only(RuntimeError), "conv2d", level="L1", examples=20).verdict == "refuted"
