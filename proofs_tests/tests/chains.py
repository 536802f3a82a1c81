"""Chains to draw, and to hold something against."""

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from kernelproof.proofs.exact_gradient import rational
from kernelproof.spec import (
    Conv2d,
    Flatten,
    Layer,
    Linear,
    MaxPool2d,
    ReLU,
    SpecChain,
)
from kernelproof.spec.shape_algebra import size_at


@st.composite
def feature_layers(draw: st.DrawFn, channels: int = 2, most: int = 4, largest: int = 3) -> list[Layer]:
    """Convolutions, pools and ReLUs in any order, the axes apart; the first takes `channels`."""
    numbers = st.integers(1, largest)
    layers: list[Layer] = []
    for kind in draw(st.lists(st.sampled_from(["conv", "pool", "relu"]), min_size=1, max_size=most)):
        kernel, stride, dilation = (draw(st.tuples(numbers, numbers)) for _ in range(3))
        most_padding = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        padding = tuple((draw(st.integers(0, most)), draw(st.integers(0, most))) for most in most_padding)
        if kind == "conv":
            out, groups = draw(st.sampled_from([(1, 1), (2, 1), (2, channels)]))
            layers.append(Conv2d(channels, out, kernel, stride, padding, dilation, groups, draw(st.booleans())))
            channels = out
        elif kind == "pool":
            layers.append(MaxPool2d(kernel, stride, padding, dilation, ceil_mode=draw(st.booleans())))
        else:
            layers.append(ReLU())
    return layers


@st.composite
def classifiers(draw: st.DrawFn) -> SpecChain:
    """Features, Flatten and Linear on the smallest image that they take."""
    layers = draw(feature_layers(most=3, largest=2))
    # The exact gradient's cost grows with the square of the image: the last layers go until it is small.
    while math.prod(smallest := SpecChain(*layers, input="n 2 h w").smallest_input()) > 30:
        layers.pop()
    h, w = smallest
    flat = SpecChain(*layers, Flatten(), input=f"n 2 {h} {w + 1}")
    return SpecChain(*layers, Flatten(), Linear(size_at(flat.output[1], {}), 2), input=f"n 2 {h} {w + 1}")


def whole_arrays(chain: SpecChain, seed: int, batch: int = 2) -> tuple[dict[str, Any], Any]:
    """Parameters and input as small whole Fractions, so that ties and zeros are frequent."""
    rng = np.random.default_rng(seed)
    x_shape = (batch, *(size for size in chain.input[1:] if isinstance(size, int)))
    arrays = {key: rational(rng.integers(-2, 3, shape)) for key, shape in chain.parameter_shapes.items()}
    return arrays, rational(rng.integers(-2, 3, x_shape))
