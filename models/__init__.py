"""What is built from the specifications and kernels: CNN2, its data, its training, its files."""

if __name__ != "kernelproof.models":
    raise ImportError("import kernelproof.models, not models: the folder is the package's source")

import importlib
from typing import TYPE_CHECKING, Any

from .cnn2 import CNN2Activations, CNN2Config, CNN2Grads, CNN2Spec, cnn_forward, cnn_spec, cnn_with_relu_spec
from .digits import Digits, load_digits
from .loss_scale import LossScale
from .training import DivergenceError, Evaluation, Progress, TrainConfig, evaluate, train

if TYPE_CHECKING:
    from .checkpoint import CheckpointError, load_checkpoint, save_checkpoint
    from .onnx_export import to_onnx

_LAZY = {
    "CheckpointError": ".checkpoint",
    "load_checkpoint": ".checkpoint",
    "save_checkpoint": ".checkpoint",
    "to_onnx": ".onnx_export",
}
"""What needs a package of its own, imported when it is asked for."""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name], __name__), name)


__all__ = [
    "CNN2Activations",
    "CNN2Config",
    "CNN2Grads",
    "CNN2Spec",
    "CheckpointError",
    "Digits",
    "DivergenceError",
    "Evaluation",
    "LossScale",
    "Progress",
    "TrainConfig",
    "cnn_forward",
    "cnn_spec",
    "cnn_with_relu_spec",
    "evaluate",
    "load_checkpoint",
    "load_digits",
    "save_checkpoint",
    "to_onnx",
    "train",
]
