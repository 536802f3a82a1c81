"""What the ONNX adapters share: an operator's call as a graph of one node, which a runtime then runs.

Inference has no gradients. ONNX counts a maximum's index over the whole batch, the specification over the image: the
image's beginning is subtracted.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from kernelproof.proofs.forms import named_arguments
from kernelproof.proofs.laws import Kernel
from kernelproof.spec import OPS

from . import framework

onnx = framework("onnx", "onnx.reference")

OPSET, IR_VERSION = 18, 8
TRAINING = "ai.onnx.preview.training"
NODES: Mapping[str, str] = {
    **{op.name: op.onnx for op in OPS.values() if op.onnx},
    "cross_entropy": "SoftmaxCrossEntropyLoss",
}
"""The type of an operator's node."""

Run: TypeAlias = Callable[[Any, Mapping[str, np.ndarray]], Sequence[Any]]
"""Runs a model on arrays; gives its results."""


def functions(run: Run) -> dict[str, Kernel]:
    """The operators that ONNX has a node for, as functions of numpy arrays."""

    def function(operator: str) -> Kernel:
        def call(*args: Any, **kwargs: Any) -> Any:
            given = named_arguments(operator, args, kwargs)
            arrays = {name: np.array(each, order="C") for name, each in given.items() if isinstance(each, np.ndarray)}
            results = {"y": next(iter(arrays.values())).dtype}
            if given.get("return_indices"):
                results["index"] = np.dtype(np.int64)
            came = run(model(NODES[operator], arrays, results, attributes(operator, given)), arrays)
            y, *index = map(np.asarray, came)
            return (y, index[0] - beginnings(given["x"].shape)) if index else y

        return call

    return {operator: function(operator) for operator in NODES}


def model(
    kind: str,
    arrays: Mapping[str, np.ndarray],
    results: Mapping[str, np.dtype],
    attributes: Mapping[str, Any],
    domain: str = "",
) -> Any:
    """A graph of one node."""
    helper = onnx.helper

    def typed(name: str, dtype: np.dtype, shape: Sequence[int] | None = None) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), shape)

    graph = helper.make_graph(
        [helper.make_node(kind, list(arrays), list(results), domain=domain, **attributes)],
        kind,
        [typed(name, array.dtype, array.shape) for name, array in arrays.items()],
        [typed(name, dtype) for name, dtype in results.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(TRAINING, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def attributes(operator: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options in ONNX's words."""
    match operator:
        case "conv2d" | "max_pool2d":
            (top, bottom), (left, right) = given["padding"]
            geometry = {
                # Never auto_pad: its meaning differs between implementations.
                "pads": (top, left, bottom, right),
                "strides": given["stride"],
                "dilations": given["dilation"],
            }
            if operator == "conv2d":
                return {**geometry, "kernel_shape": given["weight"].shape[2:], "group": given["groups"]}
            return {**geometry, "kernel_shape": given["kernel_size"], "ceil_mode": int(given["ceil_mode"])}
        case "linear":
            return {"transB": 1}
        case "flatten":
            return {"axis": 1}
    return {}


def beginnings(shape: Sequence[int]) -> np.ndarray:
    """Where each channel of each image begins in the flat input."""
    n, c, h, w = shape
    return (np.arange(n * c) * h * w).reshape(n, c, 1, 1)
