"""The onnx package's own `ReferenceEvaluator`: forwards, and `sgd` as `Momentum` of `ai.onnx.preview.training`.

`Momentum`'s rate of decay is an attribute, which ONNX keeps in float32: other scalars are declined there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kernelproof.proofs.subject import Subject

from . import framework
from .onnx_graph import TRAINING, functions, model

reference = framework("onnx.reference", "onnx.reference")


def run(model: Any, arrays: Mapping[str, np.ndarray]) -> Sequence[Any]:
    """What a model gives for these inputs."""
    return reference.ReferenceEvaluator(model).run(None, dict(arrays))


def sgd(
    parameter: np.ndarray, gradient: np.ndarray, velocity: np.ndarray, *, learning_rate: float, momentum: float = 0
) -> Any:
    if parameter.dtype != np.float32:
        raise NotImplementedError("an ONNX attribute, such as Momentum's alpha, is a float32")
    # At its very first update, count 0, Momentum lets beta be 1: it is 1 here at every one.
    rates = {"rate": np.asarray(learning_rate, parameter.dtype), "count": np.asarray(1)}
    arrays = {**rates, "parameter": parameter, "gradient": gradient, "velocity": velocity}
    attributes = {"alpha": float(momentum), "beta": 1.0, "mode": "standard", "norm_coefficient": 0.0}
    results = {"moved": parameter.dtype, "moved_velocity": parameter.dtype}
    return tuple(run(model("Momentum", arrays, results, attributes, TRAINING), arrays))


SUBJECT = Subject("onnx.reference", {**functions(run), "sgd": sgd}, dtypes=("float32", "float64"))
