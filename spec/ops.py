"""The one table of operators: kernels, laws, exporter, benchmarks and docs are driven by its rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .conv import conv2d, conv2d_dbias, conv2d_dweight, conv2d_dx
from .errors import ParameterError
from .linear import flatten, flatten_dx, linear, linear_dbias, linear_dweight, linear_dx
from .operator import Operator
from .pool import max_pool2d, max_pool2d_dx
from .relu import relu, relu_dx
from .training import cross_entropy, cross_entropy_dlogits, sgd


@dataclass(frozen=True)
class Op:
    """One operator: what it computes, its gradient in each argument, and where it stands outside this package.

    `gradients` maps the argument to the operator that gives its gradient. `linear_in` names the arguments in which the
    forward is linear when the others are held (jointly a polynomial: whole-number tests are then identity tests).
    `rational` says that it only adds, multiplies and compares: exact on whole numbers, at home on any scalar. `onnx` is
    the ONNX operator type, None for what is not part of an exported graph. Problems to test it with are
    `kernelproof.proofs.problems.<name>`.
    """

    name: str
    forward: Operator[...]
    gradients: Mapping[str, Operator[...]] = field(default_factory=dict)
    linear_in: tuple[str, ...] = ()
    rational: bool = True
    onnx: str | None = None


OPS: Mapping[str, Op] = {
    op.name: op
    for op in (
        Op(
            "conv2d",
            conv2d,
            {"x": conv2d_dx, "weight": conv2d_dweight, "bias": conv2d_dbias},
            linear_in=("x", "weight", "bias"),
            onnx="Conv",
        ),
        Op("max_pool2d", max_pool2d, {"x": max_pool2d_dx}, onnx="MaxPool"),
        Op(
            "linear",
            linear,
            {"x": linear_dx, "weight": linear_dweight, "bias": linear_dbias},
            linear_in=("x", "weight", "bias"),
            onnx="Gemm",
        ),
        Op("relu", relu, {"x": relu_dx}, onnx="Relu"),
        Op("flatten", flatten, {"x": flatten_dx}, linear_in=("x",), onnx="Flatten"),
        Op("cross_entropy", cross_entropy, {"logits": cross_entropy_dlogits}, rational=False),
        Op("sgd", sgd, linear_in=("parameter", "gradient", "velocity")),
    )
}
"""Every row by its name: the forward operators."""

OPERATORS: Mapping[str, Operator[...]] = {
    name: each
    for op in OPS.values()
    for name, each in [
        (op.name, op.forward),
        *((f"{op.name}.d{argument}", gradient) for argument, gradient in op.gradients.items()),
    ]
}
"""Every single operator by the name that users give it: `conv2d`, `conv2d.dx`, `conv2d.dweight`, ..."""


def find(name: str) -> Operator[Any]:
    """The operator called `conv2d`, `conv2d.dx` ...; raises ParameterError that lists them all."""
    if name not in OPERATORS:
        raise ParameterError("kernelproof", f"operator {name!r}", f"one of {', '.join(OPERATORS)}", "Correct the name.")
    return OPERATORS[name]
