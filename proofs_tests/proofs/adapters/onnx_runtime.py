"""ONNX Runtime's CPU provider: forwards, float32, a session for each call.

Max pooling whose padding reaches its window's size is declined, because ONNX Runtime refuses it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernelproof.proofs.subject import Subject

from . import framework
from .onnx_graph import functions

onnxruntime = framework("onnxruntime", "onnxruntime")

FATAL = 4


def run(model: Any, arrays: Mapping[str, np.ndarray]) -> Sequence[Any]:
    """What a model gives for these inputs."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = FATAL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(arrays))


FUNCTIONS = functions(run)


def max_pool2d(x: np.ndarray, kernel_size: Any, *, padding: Any, **options: Any) -> Any:
    if any(max(sides) >= size for sides, size in zip(padding, kernel_size, strict=True)):
        raise NotImplementedError("ONNX Runtime refuses padding that reaches the window's size")
    return FUNCTIONS["max_pool2d"](x, kernel_size, padding=padding, **options)


SUBJECT = Subject("onnxruntime", FUNCTIONS | {"max_pool2d": max_pool2d})
