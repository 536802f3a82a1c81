"""A chain as an ONNX file: one node for every layer, its type from the table of operators."""

import os
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from kernelproof.spec.chain import SpecChain, Step
from kernelproof.spec.errors import UnsupportedError
from kernelproof.spec.layers import MaxPool2d
from kernelproof.spec.ops import OPS
from kernelproof.spec.shape_algebra import Shape
from kernelproof.spec.window import AXES, Window

from .host import on_host, write_whole

try:
    import onnx
except ImportError as error:
    raise UnsupportedError(
        "to_onnx", "no package onnx", "the extra kernelproof[onnx]", "Run: pip install 'kernelproof[onnx]'"
    ) from error

OPSET = 18
IR_VERSION = 8
"""The file format that came with opset 18: whatever runs the opset reads it (onnx 1.13)."""


def _geometry(window: Window, padding: Sequence[tuple[int, int]]) -> dict[str, Any]:
    (top, bottom), (left, right) = padding
    return {
        "kernel_shape": window.kernel,
        "strides": window.stride,
        # Never auto_pad: its meaning differs between implementations.
        "pads": (top, left, bottom, right),
        "dilations": window.dilation,
    }


def _max_pool2d(layer: MaxPool2d) -> dict[str, Any]:
    """`ceil_mode` becomes padding at the end, for implementations differ in how they round up.

    Rounding up adds at most stride - 1 positions, and no window starts after the last input: for every size, the same
    windows as with `min(after + stride - 1, extent - 1)` and rounding down. Padding never wins a maximum.
    """
    window, padding = layer.window, list(layer.window.padding)
    for axis, (before, after) in enumerate(window.padding):
        if window.ceil_mode:
            after = min(after + window.stride[axis] - 1, window.extent(axis) - 1)
        if max(before, after) >= window.kernel[axis]:
            raise UnsupportedError(
                "to_onnx",
                f"{layer!r} pads by {max(before, after)} along the {AXES[axis]}",
                f"less than kernel_size {window.kernel[axis]}, for ONNX Runtime refuses more",
                "Pad less, or use dilation=1.",
            )
        padding[axis] = before, after
    return _geometry(window, padding)


NODES: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "conv2d": lambda layer: {**_geometry(layer.window, layer.window.padding), "group": layer.groups},
    "max_pool2d": _max_pool2d,
    "linear": lambda layer: {"transB": 1},
    "relu": lambda layer: {},
    "flatten": lambda layer: {"axis": 1},
}
"""What an operator's node says of its layer: the attributes. An operator that is not here is not exported."""


def to_onnx(
    chain: SpecChain, parameters: Mapping[str, Any], path: str | os.PathLike[str] | None = None
) -> onnx.ModelProto:
    """The chain with these parameters as an ONNX model, checked in full, then written to `path` if there is one.

    Input `x`, output `y`, what lies between named by its layer, initializers by PyTorch's keys. Sizes left open keep
    their names and formulas (`n`, `(h + 1)//2`). Raises UnsupportedError for a layer or scalar type that has no ONNX
    node here, ParameterError, ShapeError, OSError. Source: ONNX operators, opset 18.
    """
    if not chain.steps:
        raise UnsupportedError("to_onnx", f"{chain!r}", "at least one layer", "Add a layer.")
    arrays = {key: on_host(array) for key, array in chain.parameters(parameters).items()}
    scalar = _scalar_type(arrays)
    tensors = ["x", *(step.name for step in chain.steps[:-1]), "y"]
    typed = [_typed(tensor, scalar, shape) for tensor, shape in zip(tensors, chain.shapes.values(), strict=True)]
    graph = onnx.helper.make_graph(
        [_node(step, came, made) for step, came, made in zip(chain.steps, tensors[:-1], tensors[1:], strict=True)],
        "kernelproof",
        typed[:1],
        typed[-1:],
        [onnx.numpy_helper.from_array(np.ascontiguousarray(array), key) for key, array in arrays.items()],
        doc_string=repr(chain),
        value_info=typed[1:-1],
    )
    model = onnx.helper.make_model(
        graph,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="kernelproof",
        producer_version=version("kernelproof"),
    )
    onnx.helper.set_model_props(model, {"specification": f"kernelproof.spec {version('kernelproof')}"})
    onnx.checker.check_model(model, full_check=True)
    if path is not None:
        write_whole(path, model.SerializeToString())
    return model


def _scalar_type(arrays: Mapping[str, np.ndarray]) -> int:
    """The ONNX type of all parameters; float32 for a chain without any."""
    dtype = next((array.dtype for array in arrays.values()), np.dtype(np.float32))
    if dtype not in (np.float32, np.float64):
        raise UnsupportedError(
            "to_onnx", f"parameters are {dtype}", "float32 or float64", "Convert with parameters.astype(numpy.float32)."
        )
    return onnx.helper.np_dtype_to_tensor_dtype(dtype)


def _node(step: Step, came: str, made: str) -> onnx.NodeProto:
    operator = step.layer.op
    kind = OPS[operator].onnx if operator in NODES else None
    if kind is None:
        raise UnsupportedError(
            "to_onnx",
            f"{step.name} = {step.layer!r}",
            f"one of {', '.join(NODES)}",
            "Export the chain up to that layer.",
        )
    return onnx.helper.make_node(
        kind,
        [came, *(f"{step.name}.{key}" for key in step.layer.parameter_shapes)],
        [made],
        step.name,
        doc_string=repr(step.layer),
        **NODES[operator](step.layer),
    )


def _typed(tensor: str, scalar: int, shape: Shape) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(
        tensor, scalar, [size if isinstance(size, int) else str(size) for size in shape]
    )
