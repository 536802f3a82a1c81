"""What is known where a framework's answer is not the specification's: documented, reported, or neither."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .report import Result


@dataclass(frozen=True)
class Finding:
    """One sentence about laws that fall for an operator of an adapter, and where to read of it.

    `operator`, `law` and `says` are patterns; `says` is found in law, message and problem, so that another
    failure of the same law stays unexplained. `documented`: the framework's semantics are others, consistent and
    written down, so it differs and is not wrong. Without a link no report is known.
    """

    adapter: str
    operator: str
    law: str
    says: str
    sentence: str
    link: str = ""
    documented: bool = False


SPECIAL = "puts_special_values_where_the_specification_does"
COPIED = f"{SPECIAL}|returns_an_input_bit_for_bit"
INDEX = r"(?s)^(?=returns_an_input|.*'return_indices': True).*gives -?\d+, the specification \d+ "
"""An index is wrong: one was asked for, and the numbers are whole."""
SUBNORMAL = r"specification -?[\d.]+e-(39|4\d)"
CARDS = "docs/semantics.md"

FINDINGS: Sequence[Finding] = (
    Finding(
        "torch", ".*", "gives_the_same_bits_on_any_number_of_threads", "the kernel gives",
        "A sum's order follows the number of threads, and PyTorch promises no equal bits where the order differs.",
        "https://docs.pytorch.org/docs/stable/notes/numerical_accuracy.html",
        documented=True,
    ),
    Finding(
        "torch", "max_pool2d", COPIED, INDEX, "Of several NaN in a window PyTorch chooses the last, not the first.",
        f"{CARDS}#max_pool2d", documented=True,
    ),
    Finding(
        "torch", r"max_pool2d\.dx", SPECIAL, "", "The gradient goes to the last NaN in a window, not to the first.",
        f"{CARDS}#max_pool2d", documented=True,
    ),
    Finding(
        "onnxruntime", "max_pool2d", COPIED, "the specification -inf",
        "Without the output Indices a window of -inf alone gives -3.4028235e+38: the search begins at the lowest "
        "finite number. With Indices the same call gives -inf.",
    ),
    Finding(
        "onnxruntime", "max_pool2d", COPIED, f"{INDEX}|the specification nan",
        "Without the output Indices NaN is passed over, and a window of NaN alone gives -3.4028235e+38; with Indices "
        "NaN wins if it comes first in its window.", "https://github.com/microsoft/onnxruntime/issues/24819",
    ),
    Finding(
        "onnx.reference", "conv2d", SPECIAL, "gives nan",
        "Dilation is a filter with zeros between its taps, and 0 times NaN or infinity is NaN: pixels that the filter "
        "does not read spoil the result.",
    ),
    Finding(
        "onnx.reference", "max_pool2d", COPIED, "specification nan|zero-size array|gives nan",
        "NaN marks the padding, so a NaN of the input is passed over and a window of NaN alone raises ValueError; with "
        "a stride or dilation NaN wins if it comes first.",
    ),
    Finding(
        "onnx.reference", "max_pool2d", ".*", "output shape cannot be null|result has shape|the kernel gives",
        "With stride 1 and dilation 1 the attribute pads is read as top, bottom, left, right, where ONNX says top, "
        "left, bottom, right; and Indices begin anew with each channel, counted in rows as long as the output's, where "
        "ONNX counts over the whole input.",
    ),
    Finding(
        "onnx.reference", "flatten", ".*", r"cannot reshape array of size 0",
        "An empty batch raises ValueError: numpy cannot infer the -1 that the shape is asked for with.",
    ),
    Finding(
        "onnx.reference", "cross_entropy", ".*", "gives inf",
        "The logarithm of a softmax that has underflowed is infinite; fixed after this version.",
        "https://github.com/onnx/onnx/pull/8423",
    ),
    Finding(
        "onnx.reference", "sgd", SPECIAL, "gives nan",
        "Momentum adds norm_coefficient * X to the gradient: with the coefficient 0 that is NaN where X is infinite.",
        "https://onnx.ai/onnx/operators/onnx_aionnxpreviewtraining_Momentum.html", documented=True,
    ),
    Finding(
        "jax", ".*", ".*", SUBNORMAL, "XLA flushes subnormals to zero on the CPU.",
        "https://docs.jax.dev/en/latest/notebooks/Common_Gotchas_in_JAX.html", documented=True,
    ),
    Finding(
        "jax", r"conv2d\.dx", f"(?!{SPECIAL}).*", "",
        "Where the padding is wider than the filter's reach, the gradient is a convolution with negative padding, and "
        "XLA's reads what lies beside the array on the CPU.", "https://github.com/openxla/xla/issues/48713",
    ),
    Finding(
        "jax", r"relu\.dx", SPECIAL, "gives 0",
        "At NaN the gradient of jax.nn.relu is 0, where here dy passes; so it is at subnormals, which XLA flushes.",
        f"{CARDS}#relu", documented=True,
    ),
    Finding(
        "jax", r"max_pool2d\.dx", SPECIAL, "",
        "The gradient goes to the last NaN in a window, not to the first; and padding, which is -inf, may take that "
        "of a window of -inf.", f"{CARDS}#max_pool2d", documented=True,
    ),
    Finding(
        "tinygrad", "max_pool2d", COPIED, "",
        "NaN wins or is passed over by its place in the window, for a maximum is a comparison; its index is then one "
        "past the image.", "https://github.com/tinygrad/tinygrad/issues/862",
    ),
    Finding(
        "tinygrad", r"max_pool2d\.dx", SPECIAL, "gives nan",
        "Nothing in a window equals a maximum that is NaN, so dy is shared by none of them: 0/0.",
        "https://github.com/tinygrad/tinygrad/issues/862",
    ),
    Finding(
        "tinygrad", r"max_pool2d\.dx", ".*", "the kernel gives|derivative",
        "Where values tie, the gradient is shared equally, which is a subgradient too; here the first one gets it.",
        "https://github.com/tinygrad/tinygrad/blob/master/tinygrad/mixin/gradient.py", documented=True,
    ),
    Finding(
        "tinygrad", r"conv2d\.dx", ".*", r"the kernel gives \S+, the specification 0 |the specification 0, at most 0 ",
        "Where no window reads a pixel the gradient's sum is empty, and the kernel that is generated for it gives a "
        "variable that was never set.",
    ),
    Finding(
        "tinygrad", r"conv2d\.(dx|dweight)", ".*", r"bad reshape: \(\) ->",
        "Where no window reads a pixel the gradient may be simplified to a number without a shape: ValueError.",
    ),
    Finding(
        "tinygrad", "sgd", ".*", "to fewer dimensions",
        "A parameter without axes raises ValueError: the learning rate is an array of one, and so is the step.",
    ),
    Finding(
        "tinygrad", r"cross_entropy(\.dlogits)?", "keeps_nan_and_infinities",
        r"(?s)specification nan.*'logits': \(\d+, 1\)",
        "x - x is simplified to 0 whatever x is: with a single class a NaN or an infinity is gone when the maximum is "
        "taken out.", "https://github.com/tinygrad/tinygrad/pull/4982",
    ),
    Finding("tinygrad", r"relu(\.dx)?", SPECIAL, "gives 0", "relu is x where x > 0, else 0: a NaN becomes 0."),
)  # fmt: skip


def finding_of(adapter: str, result: Result) -> Finding | None:
    """What is known about a refuted law, if anything."""
    told = f"{result.law}\n{result.failure.message}\n{result.failure.problem}" if result.failure else ""
    return next(
        (
            each
            for each in FINDINGS
            if each.adapter == adapter
            and re.fullmatch(each.operator, result.operator)
            and re.fullmatch(each.law, result.law)
            and re.search(each.says, told)
        ),
        None,
    )
