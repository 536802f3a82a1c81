"""What each operator means: pure numpy, forward and backward, for any scalar type."""

if __name__ != "kernelproof.spec":
    raise ImportError("import kernelproof.spec, not spec: the folder is the package's source")

from .chain import SpecChain
from .conv import conv2d, conv2d_dbias, conv2d_dweight, conv2d_dx
from .errors import DtypeError, KernelproofError, ParameterError, ShapeError, UnsupportedError
from .layers import Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU
from .linear import flatten, flatten_dx, linear, linear_dbias, linear_dweight, linear_dx
from .ops import OPERATORS, OPS, Op, find
from .parameters import Gradients, Parameters
from .pool import max_pool2d, max_pool2d_dx
from .relu import relu, relu_dx
from .scalars import Dual, Interval, UndecidedError, duals, intervals
from .shape_algebra import Dimension, Domain, ReceptiveField, SizeMap, Sizes
from .training import cross_entropy, cross_entropy_dlogits, sgd
from .window import Window
from .wiring import Step, WiringError

__all__ = [
    "OPERATORS",
    "OPS",
    "Conv2d",
    "Dimension",
    "Domain",
    "DtypeError",
    "Dual",
    "Flatten",
    "Gradients",
    "Interval",
    "KernelproofError",
    "Layer",
    "Linear",
    "MaxPool2d",
    "Op",
    "ParameterError",
    "Parameters",
    "ReLU",
    "ReceptiveField",
    "ShapeError",
    "SizeMap",
    "Sizes",
    "SpecChain",
    "Step",
    "UndecidedError",
    "UnsupportedError",
    "Window",
    "WiringError",
    "conv2d",
    "conv2d_dbias",
    "conv2d_dweight",
    "conv2d_dx",
    "cross_entropy",
    "cross_entropy_dlogits",
    "duals",
    "find",
    "flatten",
    "flatten_dx",
    "intervals",
    "linear",
    "linear_dbias",
    "linear_dweight",
    "linear_dx",
    "max_pool2d",
    "max_pool2d_dx",
    "relu",
    "relu_dx",
    "sgd",
]
