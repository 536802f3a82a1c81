"""CNN2: two convolutions, each rectified and pooled, then one linear layer. Forward and backward written out in full.

The same network also stands as a `SpecChain`, which derives the backward pass; the two agree exactly.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from beartype import beartype
from jaxtyping import Shaped, jaxtyped

from kernelproof.spec import (
    ShapeError,
    Window,
    conv2d,
    conv2d_dbias,
    conv2d_dweight,
    conv2d_dx,
    flatten,
    flatten_dx,
    linear,
    linear_dbias,
    linear_dweight,
    linear_dx,
    max_pool2d,
    max_pool2d_dx,
    relu,
    relu_dx,
)
from kernelproof.spec.chain import SpecChain, specification
from kernelproof.spec.layers import Conv2d, Flatten, Linear, MaxPool2d, Perform, ReLU
from kernelproof.spec.parameters import Parameters
from kernelproof.spec.window import Padding, Size, pair, whole


@dataclass(frozen=True)
class CNN2Config:
    """The sizes of a CNN2; the defaults read 28x28 images of one channel.

    Both convolutions share `kernel_size`, `stride` and `padding`; each pooling has its own size and stride, None for a
    stride that equals the size. Raises ParameterError, ShapeError if a window does not fit what reaches it.
    """

    c1: int = 32
    c2: int = 64
    out_dim: int = 10
    in_channels: int = 1
    image_size: Size = 28
    kernel_size: Size = 3
    stride: Size = 1
    padding: Padding = 1
    pool1_size: Size = 2
    pool1_stride: Size | None = 2
    pool2_size: Size = 2
    pool2_stride: Size | None = 2

    def __post_init__(self) -> None:
        for name in ("c1", "c2", "out_dim", "in_channels"):
            whole("CNN2Config", name, getattr(self, name), 1)
        self.feature_shape()

    def windows(self) -> dict[str, Window]:
        """The window of every layer that has one, in the order in which an image meets them."""
        windows = {}
        for layer, pool_size, pool_stride in (
            (1, self.pool1_size, self.pool1_stride),
            (2, self.pool2_size, self.pool2_stride),
        ):
            conv, pool, stride = f"conv{layer}", f"pool{layer}", pool_size if pool_stride is None else pool_stride
            windows[conv] = Window.of(f"CNN2Config.{conv}", self.kernel_size, self.stride, self.padding, 1)
            windows[pool] = Window.of(f"CNN2Config.{pool}", pool_size, stride, 0, 1)
        return windows

    def feature_shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of what the linear layer reads."""
        size = pair("CNN2Config", "image_size", self.image_size, 1)
        for layer, window in self.windows().items():
            window.check_fits(f"CNN2Config.{layer}", size, "filter" if layer.startswith("conv") else "window")
            size = window.p(size), window.q(size)
        return self.c2, *size

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every parameter by its PyTorch key."""
        r, s = pair("CNN2Config", "kernel_size", self.kernel_size, 1)
        c2, h, w = self.feature_shape()
        return {
            "conv1.weight": (self.c1, self.in_channels, r, s),
            "conv1.bias": (self.c1,),
            "conv2.weight": (c2, self.c1, r, s),
            "conv2.bias": (c2,),
            "fc1.weight": (self.out_dim, c2 * h * w),
            "fc1.bias": (self.out_dim,),
        }


@dataclass(frozen=True)
class CNN2Activations:
    """What every layer gave: the backward pass reads it, `logits` is the answer."""

    x: Any
    conv1: Any
    relu1: Any
    pool1: Any
    conv2: Any
    relu2: Any
    pool2: Any
    features: Any
    logits: Any


@jaxtyped(typechecker=beartype)
@dataclass(frozen=True)
class CNN2Grads:
    """The gradient of every parameter and of the input."""

    conv1_weight: Shaped[Any, "c1 c r s"]
    conv1_bias: Shaped[Any, "c1"]
    conv2_weight: Shaped[Any, "c2 c1 r s"]
    conv2_bias: Shaped[Any, "c2"]
    fc_weight: Shaped[Any, "k features"]
    fc_bias: Shaped[Any, "k"]
    x: Shaped[Any, "n c h w"]

    @property
    def parameters(self) -> dict[str, Any]:
        """The six parameter gradients by PyTorch's keys."""
        return {
            "conv1.weight": self.conv1_weight,
            "conv1.bias": self.conv1_bias,
            "conv2.weight": self.conv2_weight,
            "conv2.bias": self.conv2_bias,
            "fc1.weight": self.fc_weight,
            "fc1.bias": self.fc_bias,
        }

    @staticmethod
    def of(parameters: Mapping[str, Any], x: Any) -> "CNN2Grads":
        """The record of gradients that come by PyTorch's keys, as a chain gives them."""
        keys = ("conv1.weight", "conv1.bias", "conv2.weight", "conv2.bias", "fc1.weight", "fc1.bias")
        return CNN2Grads(*(parameters[key] for key in keys), x=x)


@dataclass(frozen=True)
class CNN2Spec:
    """CNN2 layer by layer, forward and backward, for any scalar type and through any way to perform an operator."""

    config: CNN2Config = CNN2Config()

    def forward(self, parameters: Mapping[str, Any], x: Any, perform: Perform = specification) -> CNN2Activations:
        """`logits = fc(flatten(pool2(relu(conv2(pool1(relu(conv1(x))))))))`, with all that came between.

        `x` is `(n, in_channels, h, w)`, parameters come by PyTorch's keys. Raises ShapeError, DtypeError.
        """
        self._check(parameters, x)
        cnn, p = self.config, parameters
        conv1 = perform(conv2d, x, p["conv1.weight"], p["conv1.bias"], stride=cnn.stride, padding=cnn.padding)
        relu1 = perform(relu, conv1)
        pool1 = perform(max_pool2d, relu1, cnn.pool1_size, stride=cnn.pool1_stride)
        conv2 = perform(conv2d, pool1, p["conv2.weight"], p["conv2.bias"], stride=cnn.stride, padding=cnn.padding)
        relu2 = perform(relu, conv2)
        pool2 = perform(max_pool2d, relu2, cnn.pool2_size, stride=cnn.pool2_stride)
        features = perform(flatten, pool2)
        logits = perform(linear, features, p["fc1.weight"], p["fc1.bias"])
        return CNN2Activations(x, conv1, relu1, pool1, conv2, relu2, pool2, features, logits)

    def backward(
        self,
        parameters: Mapping[str, Any],
        forward: CNN2Activations,
        dlogits: Any,
        perform: Perform = specification,
    ) -> CNN2Grads:
        """The chain rule, layer by layer from the last: each gradient is the layer's own applied to the one above.

        `forward` is what `forward` gave for the same parameters. Raises ShapeError, DtypeError.
        """
        cnn, p, y = self.config, parameters, forward
        conv = {"stride": cnn.stride, "padding": cnn.padding}
        dfeatures = perform(linear_dx, dlogits, p["fc1.weight"])
        dpool2 = perform(flatten_dx, dfeatures, y.pool2.shape)
        drelu2 = perform(max_pool2d_dx, dpool2, y.relu2, cnn.pool2_size, stride=cnn.pool2_stride)
        dconv2 = perform(relu_dx, drelu2, y.conv2)
        dpool1 = perform(conv2d_dx, dconv2, p["conv2.weight"], y.pool1.shape, **conv)
        drelu1 = perform(max_pool2d_dx, dpool1, y.relu1, cnn.pool1_size, stride=cnn.pool1_stride)
        dconv1 = perform(relu_dx, drelu1, y.conv1)
        return CNN2Grads(
            conv1_weight=perform(conv2d_dweight, dconv1, y.x, p["conv1.weight"].shape, **conv),
            conv1_bias=perform(conv2d_dbias, dconv1),
            conv2_weight=perform(conv2d_dweight, dconv2, y.pool1, p["conv2.weight"].shape, **conv),
            conv2_bias=perform(conv2d_dbias, dconv2),
            fc_weight=perform(linear_dweight, dlogits, y.features),
            fc_bias=perform(linear_dbias, dlogits),
            x=perform(conv2d_dx, dconv1, p["conv1.weight"], y.x.shape, **conv),
        )

    def _check(self, parameters: Mapping[str, Any], x: Any) -> None:
        Parameters(self.config.parameter_shapes(), parameters)
        image = (self.config.in_channels, *pair("CNN2Config", "image_size", self.config.image_size, 1))
        if tuple(x.shape[1:]) != image:
            raise ShapeError(
                "CNN2Spec", f"x is {tuple(x.shape)}", f"(n, {', '.join(map(str, image))})", "Resize it or the config."
            )


def cnn_spec(config: CNN2Config) -> SpecChain:
    """The convolutions, poolings and linear layer of CNN2 as a chain, without rectifiers."""
    return _chain(config)


def cnn_with_relu_spec(config: CNN2Config) -> SpecChain:
    """CNN2 as a chain, which derives the backward pass that CNN2Spec writes out."""
    return _chain(config, ReLU())


def _chain(cnn: CNN2Config, *activation: ReLU) -> SpecChain:
    h, w = pair("CNN2Config", "image_size", cnn.image_size, 1)
    return SpecChain(
        Conv2d(cnn.in_channels, cnn.c1, cnn.kernel_size, cnn.stride, cnn.padding),
        *activation,
        MaxPool2d(cnn.pool1_size, cnn.pool1_stride),
        Conv2d(cnn.c1, cnn.c2, cnn.kernel_size, cnn.stride, cnn.padding),
        *activation,
        MaxPool2d(cnn.pool2_size, cnn.pool2_stride),
        Flatten(),
        Linear(math.prod(cnn.feature_shape()), cnn.out_dim),
        input=f"n {cnn.in_channels} {h} {w}",
    )


def cnn_forward(config: CNN2Config, parameters: Mapping[str, Any], x: Any) -> Any:
    """The logits `[n,k]` of CNN2 for images `[n,c,h,w]`. Raises ShapeError, DtypeError, ParameterError."""
    return CNN2Spec(config).forward(parameters, x).logits
