"""Level L11: the specification and ONNX Runtime give the same answers where both mean the same."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from kernelproof.proofs.bounds import rounding_bound
from kernelproof.proofs.drawing import problems
from kernelproof.proofs.judging import compare
from kernelproof.proofs.problems import Problem
from kernelproof.spec import OPS

EXPORTED = {name: op.onnx for name, op in OPS.items() if op.onnx}


def attributes(problem: Problem) -> dict[str, Any]:
    """The options in ONNX's words."""
    options = problem.options
    match problem.operator:
        case "conv2d" | "max_pool2d":
            (top, bottom), (left, right) = options["padding"]
            geometry = {
                "pads": [top, left, bottom, right],
                "strides": options["stride"],
                "dilations": options["dilation"],
            }
            if problem.operator == "conv2d":
                return geometry | {"group": options["groups"]}
            return geometry | {"kernel_shape": options["kernel_size"], "ceil_mode": int(options["ceil_mode"])}
        case "linear":
            return {"transB": 1}
    return {}


def run(problem: Problem, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """The operator as a graph of one node, run by ONNX Runtime's CPU provider."""
    outputs = ["y", "index"] if problem.options.get("return_indices") else ["y"]
    node = helper.make_node(EXPORTED[problem.operator], list(arrays), outputs, **attributes(problem))  # type: ignore[arg-type]
    graph = helper.make_graph(
        [node],
        problem.operator,
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, array.shape) for name, array in arrays.items()],
        [
            helper.make_tensor_value_info(name, TensorProto.INT64 if name == "index" else TensorProto.FLOAT, None)
            for name in outputs
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    came = session.run(None, {name: np.ascontiguousarray(array) for name, array in arrays.items()})
    return tuple(map(np.asarray, came))


def specified(problem: Problem, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    came = problem.call(problem.spec, {name: array.astype(np.float64) for name, array in arrays.items()})
    return came if isinstance(came, tuple) else (came,)


def shared_meaning(problem: Problem) -> bool:
    """ONNX Runtime refuses empty arrays and gives a scalar an axis; its index counts over the whole batch; a pool's
    padding has to be smaller than its kernel, though its windows would see the input."""
    kernel = problem.options.get("kernel_size", (99, 99))
    return (
        all(shape and 0 not in shape for shape in problem.array_shapes.values())
        and not problem.options.get("return_indices")
        and all(max(side) < size for side, size in zip(problem.options.get("padding", ()), kernel, strict=False))
    )


@pytest.mark.parametrize("operator", EXPORTED)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_onnxruntime_agrees_on_whole_numbers(operator: str, data: st.DataObject):
    problem = data.draw(problems(operator, "whole").filter(shared_meaning))
    arrays = problem.arrays()
    compare(problem, run(problem, arrays), specified(problem, arrays))


@pytest.mark.parametrize("operator", EXPORTED)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
@given(data=st.data())
def test_onnxruntime_agrees_within_the_derived_bound(operator: str, data: st.DataObject):
    problem = data.draw(problems(operator, "real").filter(shared_meaning))
    arrays = problem.arrays()
    compare(problem, run(problem, arrays), specified(problem, arrays), rounding_bound(problem, arrays, "float32"))
