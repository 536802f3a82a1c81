"""What is measured: convolutions by name, the other operators, and the goals set for them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from kernelproof.proofs import Problem
from kernelproof.spec import Window

GRADIENTS = ("conv2d", "conv2d.dx", "conv2d.dweight")
"""A convolution's three passes."""


@dataclass(frozen=True)
class Convolution:
    """A square convolution with padding and stride alike on both axes; `channels` and `filters` of all groups."""

    name: str
    images: int
    channels: int
    size: int
    filters: int
    kernel: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    def __str__(self) -> str:
        """As it is written in tables: `32x64x56x56 -> 64, 3x3`."""
        text = f"{self.images}x{self.channels}x{self.size}x{self.size} -> {self.filters}, {self.kernel}x{self.kernel}"
        text += f" stride {self.stride}" * (self.stride > 1) + f" dilated {self.dilation}" * (self.dilation > 1)
        return text + (" depthwise" if self.groups == self.channels else f" groups {self.groups}") * (self.groups > 1)

    def problem(self, operator: str) -> Problem:
        """One of its passes as the proofs know it; the forward has a bias."""
        x = (self.images, self.channels, self.size, self.size)
        weight = (self.filters, self.channels // self.groups, self.kernel, self.kernel)
        window = Window.of(operator, self.kernel, self.stride, self.padding, self.dilation)
        options = {
            "stride": window.stride, "padding": window.padding, "dilation": window.dilation, "groups": self.groups
        }  # fmt: skip
        shapes = {"x": x, "weight": weight} | ({"bias": (self.filters,)} if operator == "conv2d" else {})
        return Problem(operator, shapes, options, (x[0], self.filters, window.p(x), window.q(x)), "real")


def _same(
    name: str, images: int, channels: int, size: int, filters: int, kernel: int = 3, **options: int
) -> Convolution:
    """Padded so that stride 1 keeps the size."""
    return Convolution(name, images, channels, size, filters, kernel, padding=kernel // 2, **options)


LETTERS = (
    _same("A", 32, 64, 56, 64), _same("B", 16, 128, 28, 128), _same("C", 16, 256, 32, 256, groups=256),
    _same("D", 32, 512, 14, 512, 1), _same("E", 64, 1, 28, 32), _same("F", 64, 32, 14, 64),
    _same("G", 1, 3, 224, 64, 7, stride=2), _same("H", 1, 64, 56, 64),
)  # fmt: skip
EXTRA = (
    _same("I", 16, 256, 14, 256), _same("J", 16, 512, 7, 512), _same("R", 1, 256, 14, 256),
    _same("L", 16, 64, 56, 128, stride=2), _same("O", 8, 64, 32, 64, 5), _same("M", 16, 256, 56, 64, 1),
    _same("P", 16, 512, 7, 512, 1), _same("Q", 8, 32, 64, 32, 7),
)  # fmt: skip
RESNET18 = (
    _same("conv1", 8, 3, 224, 64, 7, stride=2), _same("layer1", 8, 64, 56, 64),
    _same("layer2 first", 8, 64, 56, 128, stride=2), _same("layer2 shortcut", 8, 64, 56, 128, 1, stride=2),
    _same("layer2", 8, 128, 28, 128), _same("layer3 first", 8, 128, 28, 256, stride=2),
    _same("layer3 shortcut", 8, 128, 28, 256, 1, stride=2), _same("layer3", 8, 256, 14, 256),
    _same("layer4 first", 8, 256, 14, 512, stride=2), _same("layer4 shortcut", 8, 256, 14, 512, 1, stride=2),
    _same("layer4", 8, 512, 7, 512),
)  # fmt: skip
"""The kinds of convolution in ResNet-18; He et al., Deep Residual Learning for Image Recognition, table 1."""


def _mobilenet() -> Iterator[Convolution]:
    """Howard et al., MobileNets, table 1: depthwise and pointwise by turns, each kind once."""
    yield _same("first", 8, 3, 224, 32, stride=2)
    blocks = ((32, 112, 64, 1), (64, 112, 128, 2), (128, 56, 128, 1), (128, 56, 256, 2), (256, 28, 256, 1),
              (256, 28, 512, 2), (512, 14, 512, 1), (512, 14, 1024, 2), (1024, 7, 1024, 1))  # fmt: skip
    for channels, size, filters, stride in blocks:
        name, after = f"depthwise {channels}" + " stride 2" * (stride == 2), size // stride
        yield _same(name, 8, channels, size, channels, stride=stride, groups=channels)
        yield _same(f"pointwise {channels} -> {filters}", 8, channels, after, filters, 1)


MOBILENET = tuple(_mobilenet())
VGG11 = (
    _same("conv1", 8, 3, 224, 64), _same("conv2", 8, 64, 112, 128), _same("conv3", 8, 128, 56, 256),
    _same("conv4", 8, 256, 56, 256), _same("conv5", 8, 256, 28, 512), _same("conv6", 8, 512, 28, 512),
    _same("conv7", 8, 512, 14, 512),
)  # fmt: skip
"""Simonyan and Zisserman, Very Deep Convolutional Networks, column A; the last layer is met twice."""

NETWORKS = {"ResNet-18": RESNET18, "MobileNetV1": MOBILENET, "VGG-11": VGG11}

SCALED = _same("", 8, 64, 28, 64)
SCALING: dict[str, tuple[Convolution, ...]] = {
    "images": tuple(replace(SCALED, images=images) for images in (1, 2, 4, 8, 16, 32, 64)),
    "channels": tuple(replace(SCALED, channels=each, filters=each) for each in (8, 16, 32, 64, 128, 256, 512)),
    "size": tuple(replace(SCALED, size=size) for size in (7, 14, 28, 56, 112, 224)),
    "kernel": tuple(_same("", 8, 64, 28, 64, kernel) for kernel in (1, 3, 5, 7, 9, 11)),
}
"""One convolution, one of its sizes at a time."""


@dataclass(frozen=True)
class Other:
    """A problem of another operator than convolution."""

    name: str
    operator: str
    shapes: dict[str, tuple[int, ...]]
    output: tuple[int, ...]
    options: dict[str, Any]

    def __str__(self) -> str:
        return ", ".join("x".join(map(str, shape)) for shape in self.shapes.values())

    def problem(self) -> Problem:
        return Problem(self.operator, self.shapes, self.options, self.output, "real")


def _pool(name: str, gradient: str, x: tuple[int, ...], kernel: int, stride: int, padding: int) -> Other:
    window = Window.of("max_pool2d", kernel, stride, padding, 1)
    options = {"kernel_size": window.kernel, "stride": window.stride, "padding": window.padding,
               "dilation": window.dilation, "ceil_mode": False}  # fmt: skip
    return Other(name, f"max_pool2d{gradient}", {"x": x}, (*x[:2], window.p(x), window.q(x)), options)


def _linear(gradient: str, n: int, c: int, k: int) -> Other:
    bias = {} if gradient else {"bias": (k,)}
    return Other(f"linear {c} -> {k}", f"linear{gradient}", {"x": (n, c), "weight": (k, c), **bias}, (n, k), {})


OTHERS = (
    *(_pool("pooling 2x2", each, (64, 32, 28, 28), 2, 2, 0) for each in ("", ".dx")),
    *(_pool("pooling 3x3 stride 2", each, (16, 64, 112, 112), 3, 2, 1) for each in ("", ".dx")),
    *(Other("relu", f"relu{each}", {"x": (32, 64, 56, 56)}, (32, 64, 56, 56), {}) for each in ("", ".dx")),
    *(_linear(each, 64, 3136, 10) for each in ("", ".dx", ".dweight")),
    *(_linear(each, 128, 1024, 1024) for each in ("", ".dx", ".dweight")),
    *(
        Other("cross-entropy", f"cross_entropy{each}", {"logits": shape, "target": shape[:1]}, (), {})
        for shape in ((64, 10), (256, 1000))
        for each in ("", ".dlogits")
    ),
    Other("sgd", "sgd", dict.fromkeys(("parameter", "gradient", "velocity"), (2**22,)), (2**22,),
          {"learning_rate": 0.05, "momentum": 0.9}),
)  # fmt: skip

FLOOR = 0.95
"""Nothing may be slower than this part of the fastest peer's speed."""

_FAST = {"A": (3.0, 3.0, 3.5), "B": (3.5, 3.5, 3.7), "F": (2.3, 2.3, 2.3), "H": (2.9, 2.9, 2.9), "J": (1.5, 1.3, 1.3)}
_BOTH = {"C": (1.5, 3.3, 2.0), "D": (1.05, 1.05, 1.05), "E": (1.3, 5.0, 1.3), "G": (1.05, 5.0, 1.15),
         "L": (1.05, FLOOR, 1.15), "O": (1.05, FLOOR, 1.15), "M": (1.05, 1.05, 1.05),
         "P": (1.05, 1.05, 1.05)}  # fmt: skip
_STRICT = dict.fromkeys("ABFH", (2.0, 2.0, 2.0))
GOALS: dict[tuple[str, str, str], float] = {
    (name, operator, precision): goal
    for precision, table in (("strict", _BOTH | _STRICT), ("fast", _BOTH | _FAST))
    for name, goals in table.items()
    for operator, goal in zip(GRADIENTS, goals, strict=True)
} | {
    (name, f"max_pool2d{gradient}", "strict"): goal
    for name in ("pooling 2x2", "pooling 3x3 stride 2")
    for gradient, goal in (("", 1.7), (".dx", 6.0))
}  # fmt: skip
"""How many times faster than the fastest peer it is to be, by name, operator and precision; elsewhere the floor."""


def flops(problem: Problem) -> int:
    """Additions and multiplications of the equation of a convolution or linear layer; 0 for what has no products."""
    if problem.op.name not in ("conv2d", "linear"):
        return 0
    weight = problem.shapes["weight"]
    positions = np.prod(problem.output) // problem.output[1]
    return int(2 * positions * np.prod(weight))


def traffic(problem: Problem) -> int:
    """Bytes that have to move even if every array is read or written once."""
    shapes = {**problem.shapes, "y": problem.output}
    return sum(4 * int(np.prod(shape)) for shape in shapes.values())
