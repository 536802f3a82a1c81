"""A compiled chain performs convolution, rectifier and pooling at once: the same numbers and NaN as one by one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelproof import Conv2d, Flatten, Linear, MaxPool2d, ReLU, SpecChain
from kernelproof.kernels.cpu.fusion import Flattened, Fused
from kernelproof.spec import KernelproofError
from kernelproof.spec.blocks import Single
from kernelproof.spec.layers import Layer

SIZES = st.sampled_from((1, 2, 3, 4, 5, 7, 13, 14, 15, 16, 17, 29, 33))


@st.composite
def chains(draw: st.DrawFn) -> tuple[SpecChain, tuple[int, ...]]:
    """Two convolutions, each with what may be fused with it or may not: pools of other sizes, no rectifier."""
    layers: list[Layer] = []
    channels = first = draw(st.integers(1, 18))
    for _ in range(2):
        filters, kernel = draw(st.integers(1, 35)), draw(st.integers(1, 3))
        layers.append(Conv2d(channels, filters, kernel, draw(st.integers(1, 2)), draw(st.integers(0, 1))))
        layers += [ReLU()] * draw(st.booleans())
        pool = draw(st.sampled_from((None, MaxPool2d(2), MaxPool2d(2), MaxPool2d(2, 1), MaxPool2d(3, 2))))
        layers += [pool] if pool else []
        channels = filters
    shape = draw(st.integers(1, 3)), first, draw(SIZES), draw(SIZES)
    return SpecChain(*layers, input=f"n {first} h w"), shape


def drawn(chain: SpecChain, shape: tuple[int, ...], seed: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Whole numbers so small that two convolutions stay exact in float32."""
    generator = np.random.default_rng(seed)
    parameters = {key: generator.integers(-2, 3, size) for key, size in chain.parameter_shapes.items()}
    return parameters, generator.integers(-2, 3, shape)


@given(chains(), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_fused_chain_is_its_layers_one_by_one(wired: tuple[SpecChain, tuple[int, ...]], seed: int) -> None:
    chain, shape = wired
    fast = chain.compile("cpu")
    parameters, x = drawn(chain, shape, seed)
    floats = {key: each.astype(np.float32) for key, each in parameters.items()}
    try:
        right, right_back = chain.vjp(parameters, x)
    except KernelproofError:  # The image is too small for the chain.
        with pytest.raises(KernelproofError):
            fast.vjp(floats, x.astype(np.float32))
        return
    came, back = fast.vjp(floats, x.astype(np.float32))
    np.testing.assert_array_equal(came, right)
    dy = np.random.default_rng(seed).integers(-1, 2, right.shape)
    # Another call in between: what a block keeps is its own.
    fast.vjp(floats, np.zeros(shape, np.float32))
    gradients, right_gradients = back(dy.astype(np.float32)), right_back(dy)
    for key in parameters:
        np.testing.assert_array_equal(gradients.parameters[key], right_gradients.parameters[key])
    np.testing.assert_array_equal(gradients.x, right_gradients.x)


@given(chains(), st.integers(0, 99), st.sampled_from((np.nan, np.inf, -np.inf)))
@settings(max_examples=40, deadline=None)
def test_nan_and_infinities_go_where_they_go_one_by_one(
    wired: tuple[SpecChain, tuple[int, ...]], seed: int, value: float
) -> None:
    chain, shape = wired
    parameters, x = drawn(chain, shape, seed)
    floats = {key: each.astype(np.float32) for key, each in parameters.items()}
    x = x.astype(np.float32)
    x.reshape(-1)[seed % x.size] = value
    with np.errstate(invalid="ignore"):
        try:
            right = chain.forward(floats, x)
        except KernelproofError:
            return
        np.testing.assert_array_equal(chain.compile("cpu").forward(floats, x), right)


def test_what_can_be_fused_is() -> None:
    layers = Conv2d(1, 8, 3, padding=1), ReLU(), MaxPool2d(2), Conv2d(8, 8, 3), MaxPool2d(2), Conv2d(8, 8, 1), ReLU()
    blocks = SpecChain(*layers, input="n 1 h w").compile("cpu")._blocks
    fused = [(each.rectified, each.pooled) for each in blocks if isinstance(each, Fused)]
    assert fused == [(True, True), (False, True), (True, False)]
    assert len(blocks) == 3


def test_flattening_between_other_steps_copies_nothing() -> None:
    chain = SpecChain(Conv2d(2, 4, 3), Flatten(), Linear(100, 5), input="n 2 7 7")
    fast = chain.compile("cpu")
    assert [type(each) for each in fast._blocks] == [Fused, Flattened, Single]
    parameters, x = drawn(chain, (3, 2, 7, 7), 0)
    right, right_back = chain.vjp(parameters, x)
    floats, x = {key: each.astype(np.float32) for key, each in parameters.items()}, x.astype(np.float32)
    came, back = fast.vjp(floats, x)
    np.testing.assert_array_equal(came, right)
    dy = np.random.default_rng(0).integers(-1, 2, right.shape)
    gradients, right_gradients = back(dy.astype(np.float32)), right_back(dy)
    for key in parameters:
        np.testing.assert_array_equal(gradients.parameters[key], right_gradients.parameters[key])
    np.testing.assert_array_equal(gradients.x, right_gradients.x)


@pytest.mark.parametrize("layers", [(Flatten(),), (Flatten(), Linear(18, 2)), (ReLU(), Flatten())])
def test_no_array_of_the_callers_is_handed_back_flattened(layers: tuple[Layer, ...]) -> None:
    chain = SpecChain(*layers, input="n 2 3 3").compile("cpu")
    parameters, x = drawn(chain, (4, 2, 3, 3), 0)
    floats, x = {key: each.astype(np.float32) for key, each in parameters.items()}, x.astype(np.float32)
    y, back = chain.vjp(floats, x)
    dy = np.ones_like(y)
    assert not np.shares_memory(y, x)
    assert not np.shares_memory(back(dy).x, dy)
    # What a step before it kept is not the caller's to change.
    before = back(dy).x
    y[...] = -1
    np.testing.assert_array_equal(back(dy).x, before)


def test_float64_is_performed_step_by_step() -> None:
    chain = SpecChain(Conv2d(1, 4, 3), ReLU(), MaxPool2d(2), input="n 1 h w")
    parameters, x = drawn(chain, (2, 1, 9, 9), 0)
    y = chain.compile("cpu").forward(
        {key: each.astype(np.float64) for key, each in parameters.items()}, x.astype(float)
    )
    np.testing.assert_array_equal(y, chain.forward(parameters, x))
    assert y.dtype == np.float64


@pytest.mark.parametrize("precision", ["strict", "fast"])
def test_a_tiled_convolution_is_rectified_and_pooled_too(precision: str) -> None:
    """Weights that are multiples of four leave F(2x2, 3x3) exact; F(4x4, 3x3) is judged where it cannot round."""
    chain = SpecChain(Conv2d(32, 48, 3, padding=1), ReLU(), MaxPool2d(2), input="n 32 h w")
    parameters, x = drawn(chain, (2, 32, 15, 17), 1)
    parameters = {key: 4 * each for key, each in parameters.items()}
    floats = {key: each.astype(np.float32) for key, each in parameters.items()}
    right, right_back = chain.vjp(parameters, x)
    came, back = chain.compile("cpu", precision=precision).vjp(floats, x.astype(np.float32))
    dy = np.random.default_rng(1).integers(-1, 2, right.shape)
    gradients, right_gradients = back(dy.astype(np.float32)), right_back(dy)
    if precision == "strict":
        np.testing.assert_array_equal(came, right)
        for key in parameters:
            np.testing.assert_array_equal(gradients.parameters[key], right_gradients.parameters[key])
        np.testing.assert_array_equal(gradients.x, right_gradients.x)
    else:
        # Outputs are whole numbers, from which F(4x4, 3x3) is off by far less than a half.
        np.testing.assert_array_equal(np.rint(came), right)
    broken = x.astype(np.float32)
    broken[0, 3, 5, 7] = np.nan
    with np.errstate(invalid="ignore"):
        right = chain.forward(floats, broken)
    came = chain.compile("cpu", precision=precision).forward(floats, broken)
    np.testing.assert_array_equal(np.isnan(came), np.isnan(right))
