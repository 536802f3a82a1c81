"""A chain is proven when it is wired: its shapes for every size, and what is refused."""

import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
from chains import feature_layers
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelproof import spec
from kernelproof.spec import (
    Conv2d,
    Flatten,
    KernelproofError,
    Layer,
    Linear,
    MaxPool2d,
    ParameterError,
    ReLU,
    ShapeError,
    SpecChain,
    WiringError,
)
from kernelproof.spec.shape_algebra import size_at

SIZES = range(1, 16)
WRONG: Any = "same"


def mnist(in_features: int = 3136, input: str = "n 1 28 28", channels: int = 64) -> SpecChain:  # noqa: A002
    return SpecChain(
        Conv2d(1, 32, 3, padding=1), ReLU(), MaxPool2d(2),
        Conv2d(32, channels, 3, padding=1), ReLU(), MaxPool2d(2),
        Flatten(), Linear(in_features, 10), input=input,
    )  # fmt: skip


def wires(*layers: Layer, input: str) -> bool:  # noqa: A002
    try:
        SpecChain(*layers, input=input)
    except WiringError:
        return False
    return True


# Shapes


@settings(deadline=None)
@given(feature_layers())
def test_the_shapes_wired_with_names_are_the_shapes_of_every_input(layers):
    chain = SpecChain(*layers, input="n 2 h w")
    parameters = {key: np.zeros(shape) for key, shape in chain.parameter_shapes.items()}
    for h, w in zip(SIZES, reversed(SIZES), strict=True):
        sizes = {"n": 0, "h": h, "w": w}
        if sizes in chain.admits:
            expected = tuple(size_at(size, sizes) for size in chain.output)
            assert chain.forward(parameters, np.zeros((0, 2, h, w))).shape == expected
        else:
            with pytest.raises(KernelproofError):
                chain.forward(parameters, np.zeros((0, 2, h, w)))


@settings(deadline=None)
@given(feature_layers(), st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_solve_and_smallest_input_are_exact(layers, out):
    chain = SpecChain(*layers, input="n 2 h w")
    legal: list[list[int]] = []
    for axis in (0, 1):
        solved = chain.solve(out=out)[axis]
        inputs = {size: f"n 2 {size} 40" if axis == 0 else f"n 2 40 {size}" for size in range(1, 40)}
        outputs = {
            size: SpecChain(*layers, input=text).output[2 + axis]
            for size, text in inputs.items()
            if wires(*layers, input=text)
        }
        assert [size for size in inputs if size in solved] == [s for s in inputs if outputs.get(s) == out[axis]]
        legal.append(list(outputs))
    assert chain.smallest_input() == tuple(map(min, legal))


@settings(deadline=None, max_examples=50)
@given(feature_layers(most=2), st.integers(1, 24), st.sampled_from(["h w", "h h", "7 w"]))
def test_admits_are_exactly_the_sizes_that_wire_as_numbers(layers, features, names):
    layers = [*layers, Flatten(), Linear(features, 3)]
    try:
        admits = SpecChain(*layers, input=f"n 2 {names}").admits
    except WiringError:
        admits = spec.Domain(())
    for h, w in itertools.product(SIZES, repeat=2):
        if (names != "h h" or h == w) and (names != "7 w" or h == 7):
            assert ({"h": h, "w": w} in admits) == wires(*layers, input=f"n 2 {h} {w}")


def test_flatten_to_linear_says_which_sizes_it_admits_and_refuses_the_others_with_that_sentence():
    chain = mnist(input="n 1 h w")
    sentence = "h in 4..7 and w in 196..199, or h in 28..31 and w in 28..31, or h in 196..199 and w in 4..7"
    assert str(chain.admits) == sentence
    assert str(chain.solve(out=(7, 7))) == "(28..31, 28..31)"
    assert str(chain.shapes["flatten1"]) == "(n, 64*(h//4)*(w//4))"
    with pytest.raises(ShapeError) as refused:
        chain.forward(chain.initialise(0), np.zeros((2, 1, 27, 27), np.float32))
    assert str(refused.value) == (
        f"SpecChain: x is (2, 1, 27, 27); needs (n, 1, h, w) with {sentence}. "
        "Resize, crop or pad x, or wire the chain for that size."
    )
    assert str(mnist(input="n 1 side side").admits) == "side in 28..31"


@settings(deadline=None)
@given(feature_layers(most=3))
def test_the_receptive_field_is_what_an_output_depends_on(layers):
    chain = SpecChain(*layers, input="n 2 h w")
    fields = chain.receptive_field()
    # An output far enough in that its field lies inside the image, which ends some rows after the field.
    position = [math.ceil(max(0, -field.offset) / field.jump) for field in fields]
    first = [p * field.jump + field.offset for p, field in zip(position, fields, strict=True)]
    h, w = (
        max(a + field.size + 2, least) for a, field, least in zip(first, fields, chain.smallest_input(), strict=True)
    )
    parameters = {key: np.ones(shape, int) for key, shape in chain.parameter_shapes.items()}
    for axis, size in enumerate((h, w)):
        # Image i differs from zero at one position, which moves along the axis; weights of 1 let no change cancel.
        x = np.zeros((size, 2, h, w), int)
        across = np.full(size, first[1 - axis])
        x[np.arange(size), 0, *((np.arange(size), across) if axis == 0 else (across, np.arange(size)))] = 1
        x[:, 1] = x[:, 0]
        still = chain.forward(parameters, np.zeros((2, h, w), int))
        changed = (chain.forward(parameters, x) != still)[:, :, position[0], position[1]].any(axis=1)
        assert changed.nonzero()[0][[0, -1]].tolist() == [first[axis], first[axis] + fields[axis].size - 1]


def test_a_joint_admits_the_sizes_that_fit_both_chains():
    first = SpecChain(Conv2d(1, 4, 3), MaxPool2d(2), input="n 1 h w")
    assert str((first >> SpecChain(ReLU(), input="n 4 7 w")).admits) == "h in 16..17 and w >= 4"
    assert str((first >> SpecChain(MaxPool2d(3), input="batch 4 a b")).admits) == "h >= 8 and w >= 8"
    assert str((first >> SpecChain(ReLU(), input="8 4 7 7")).admits) == "h in 16..17 and w in 16..17 and n = 8"
    assert SpecChain(first, SpecChain(ReLU(), input="n 4 h w"), input="n 1 9 9").output[1:] == (4, 3, 3)
    with pytest.raises(WiringError, match=r"takes \(n, 3, h, w\), but \(n, 4, \(h - 2\)//2, \(w - 2\)//2\) arrives"):
        _ = first >> SpecChain(ReLU(), input="n 3 h w")
    # Height and width go different ways, so a chain for squares cannot follow; nothing is admitted by mistake.
    with pytest.raises(WiringError):
        _ = first >> SpecChain(ReLU(), input="n 4 side side")


# Refusals


def test_a_wrong_linear_is_refused_with_the_chain_drawn_and_the_number_that_would_fit():
    with pytest.raises(WiringError) as refused:
        mnist(channels=32)
    assert str(refused.value) == (
        "SpecChain: fc1 = Linear(3136, 10) takes (n, 3136), but (n, 1568) arrives; needs in_features = 1568. "
        "in_features=1568 would fit.\n"
        "\n"
        "input                                   (n, 1, 28, 28)\n"
        "conv1     Conv2d(1, 32, 3, padding=1)   (n, 32, 28, 28)\n"
        "relu1     ReLU()                        (n, 32, 28, 28)\n"
        "pool1     MaxPool2d(2)                  (n, 32, 14, 14)\n"
        "conv2     Conv2d(32, 32, 3, padding=1)  (n, 32, 14, 14)\n"
        "relu2     ReLU()                        (n, 32, 14, 14)\n"
        "pool2     MaxPool2d(2)                  (n, 32, 7, 7)\n"
        "flatten1  Flatten()                     (n, 1568)\n"
        "fc1       Linear(3136, 10)              <- takes (n, 3136), but (n, 1568) arrives"
    )
    assert isinstance(refused.value, ShapeError)
    assert str(pickle.loads(pickle.dumps(refused.value))) == str(refused.value)


@pytest.mark.parametrize(
    ("layers", "shape", "came", "needed", "remedy"),
    [
        (
            [Conv2d(3, 8, 3)], "n 1 9 9",
            "conv1 = Conv2d(3, 8, 3) takes (n, 3, h, w), but (n, 1, 9, 9) arrives",
            "in_channels = 1", "in_channels=1 would fit.",
        ),
        (
            [MaxPool2d(2), Conv2d(1, 1, (2, 7), padding=1)], "n 1 h 8",
            "conv1 = Conv2d(1, 1, (2, 7), padding=1) takes width >= 5, but (n, 1, h//2, 4) arrives",
            "width >= 5", "kernel_size=6 along the width would fit.",
        ),
        (
            [MaxPool2d(2, dilation=3)], "n 1 3 9",
            "pool1 = MaxPool2d(2, dilation=3) takes height >= 4, but (n, 1, 3, 9) arrives",
            "height >= 4", "kernel_size=3 with dilation=1 along the height would fit.",
        ),
        (
            [Linear(9, 2)], "n 1 3 3",
            "fc1 = Linear(9, 2) takes (n, 9), but (n, 1, 3, 3) arrives", "2 axes", "Place Flatten() before it.",
        ),
        (
            [Flatten(), ReLU(), MaxPool2d(2)], "n 1 3 3",
            "pool1 = MaxPool2d(2) takes images (n, c, h, w), but (n, 9) arrives",
            "4 axes", "Place it before Flatten().",
        ),
        (
            [Conv2d(1, 4, 3), Flatten(), Linear(6, 2)], "n 1 h w",
            "fc1 = Linear(6, 2) takes (n, 6), but (n, 4*(h - 2)*(w - 2)) arrives",
            "in_features = 4*(h - 2)*(w - 2)", "in_features=4 would fit at h = 3 and w = 3.",
        ),
        (
            [Conv2d(1, 4, 3), SpecChain(ReLU(), input="n 4 7 7")], "n 1 8 8",
            "chain1.input takes (n, 4, 7, 7), but (n, 4, 6, 6) arrives",
            "equal shapes at the joint", "Declare its input as (n, 4, 6, 6), or leave sizes open by names.",
        ),
    ],
)  # fmt: skip
def test_a_misfit_is_named_with_both_shapes_and_what_would_fit(layers, shape, came, needed, remedy):
    with pytest.raises(WiringError) as refused:
        SpecChain(*layers, input=shape)
    assert (refused.value.came, refused.value.needed, refused.value.remedy) == (came, needed, remedy)


def test_the_number_that_would_fit_fits():
    assert wires(Conv2d(1, 4, 3), Flatten(), Linear(4, 2), input="n 1 h w")
    assert wires(MaxPool2d(2), Conv2d(1, 1, (2, 6), padding=1), input="n 1 h 8")
    assert wires(MaxPool2d((3, 2), dilation=(1, 3)), input="n 1 3 9")


@pytest.mark.parametrize("text", ["n 1 28", "", "n c h w", "n 1 28 -1", "n 1 h 0", "n 1 n n", 28, "n 1 2.5 2"])
def test_an_input_that_says_no_shape_is_refused(text):
    with pytest.raises(ParameterError):
        SpecChain(ReLU(), input=text)


def test_a_batch_given_as_a_number_may_equal_another_size():
    chain = SpecChain(ReLU(), input="1 1 1 1")
    assert chain.forward({}, np.zeros((1, 1, 1, 1))).shape == (1, 1, 1, 1)
    with pytest.raises(ShapeError, match=r"x is \(2, 1, 1, 1\); needs \(1, 1, 1, 1\)"):
        chain.forward({}, np.zeros((2, 1, 1, 1)))


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: Conv2d(0, 1, 3), "in_channels"),
        (lambda: Conv2d(1, 1, 0), "kernel_size"),
        (lambda: Conv2d(1, 1, 3, stride=0), "stride"),
        (lambda: Conv2d(1, 1, 3, padding=WRONG), "padding"),
        (lambda: Conv2d(2, 3, 3, groups=2), "out_channels divisible by groups"),
        (lambda: Conv2d(1, 1, 3, bias=WRONG), "bias"),
        (lambda: MaxPool2d(2, ceil_mode=WRONG), "ceil_mode"),
        (lambda: MaxPool2d(2, padding=2), "padding < 2"),
        (lambda: Linear(1, 0), "out_features"),
        (lambda: Linear(WRONG, 1), "in_features"),
        (lambda: SpecChain(WRONG, input="n 3"), "layers and chains"),
        (lambda: SpecChain(ReLU(), input="n 3").solve(out=(1, 1)), "4 axes"),
        (lambda: SpecChain(ReLU(), input="n 3").diagram("png"), "'mermaid' or 'svg'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(make, part):
    with pytest.raises(KernelproofError, match=part):
        make()


def test_a_layer_beside_a_chain_is_refused_with_how_to_wire_it():
    chain = SpecChain(Conv2d(1, 4, 3), input="n 1 h w")
    for join in (lambda: chain >> ReLU(), lambda: ReLU() >> chain):  # type: ignore[operator]
        with pytest.raises(ParameterError) as refused:
            join()
        assert str(refused.value) == (
            "SpecChain: ReLU() beside >>; needs a chain on both sides. "
            "Make a layer a chain first: SpecChain(layer, input=...)."
        )
