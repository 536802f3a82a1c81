"""Mutants that take what they have to refuse: the specification, but for one question that its door asks."""

import signal
from typing import Any

import numpy as np

from kernelproof.spec import Window, conv2d, cross_entropy, max_pool2d

from .clean import Array
from .collection import mutant


def divide_by(number: Any) -> None:
    """As C divides whole numbers: by zero is the end of the process."""
    if isinstance(number, int) and number == 0:
        signal.raise_signal(signal.SIGFPE)


@mutant("conv2d", "pytorch#142835", "groups = 0", checked=True)
def groups_of_zero_divide(x: Any, weight: Any, bias: Any = None, **options: Any) -> Array:
    """The channels are divided by the groups before anybody looks at these: SIGFPE."""
    divide_by(options["groups"])
    return conv2d(x, weight, bias, **options)


@mutant("conv2d", "CVE-2021-41209", "an empty filter", checked=True)
def empty_filter_divides(x: Any, weight: Any, bias: Any = None, **options: Any) -> Array:
    """The work is divided by the size of the filter before anybody looks at it."""
    divide_by(getattr(weight, "size", None))
    return conv2d(x, weight, bias, **options)


@mutant("conv2d", "onnxruntime#27903, #28142", "a dilation of 0", checked=True)
def dilation_of_zero_is_taken(x: Any, weight: Any, bias: Any = None, **options: Any) -> Array:
    """With dilation 0 every tap reads the same pixel."""
    if options["dilation"] == 0:
        window = Window(weight.shape[2:], options["stride"], options["padding"], (0, 0))
        return conv2d.body(x, weight, bias, window, options["groups"])
    return conv2d(x, weight, bias, **options)


@mutant("max_pool2d", "onnx#7764, #8036, XNNPACK#10789, #11156", "a stride of 0", checked=True)
def stride_of_zero_divides(x: Any, kernel_size: Any, *, stride: Any, **options: Any) -> Any:
    """The output's size is what the stride goes into, looked at or not."""
    for each in stride if isinstance(stride, tuple) else (stride,):
        divide_by(each)
    return max_pool2d(x, kernel_size, stride=stride, **options)


@mutant("max_pool2d", "tensorflow#46834", "a window of 0", checked=True)
def window_of_zero_is_taken(x: Any, kernel_size: Any, **options: Any) -> Any:
    """A window without an element gives a result all the same."""
    if kernel_size in (0, (0, 1)):
        return np.zeros_like(x)
    return max_pool2d(x, kernel_size, **options)


@mutant("cross_entropy", "pytorch#12670", "a negative target", checked=True)
def negative_target_counts_from_the_end(logits: Any, target: Any) -> Array:
    """Target -4 is taken, and reads the fourth class from the end."""
    if isinstance(target, np.ndarray) and target.dtype.kind == "i":
        target = np.where((target < 0) & (target >= -4), target % 4, target)
    return cross_entropy(logits, target)
