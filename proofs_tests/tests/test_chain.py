"""A chain is proven when it is wired: its shapes, its refusals, and its gradients against the exact derivative."""

import itertools
import math
import pickle
import types
from importlib import metadata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelproof import spec
from kernelproof.proofs.exact_gradient import exact_gradient, rational
from kernelproof.spec import (
    Conv2d,
    DtypeError,
    Flatten,
    KernelproofError,
    Layer,
    Linear,
    MaxPool2d,
    ParameterError,
    ReLU,
    ShapeError,
    SpecChain,
    UnsupportedError,
    WiringError,
    intervals,
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


def test_parameters_are_held_to_the_chain():
    chain = SpecChain(Linear(3, 2), input="n 3")
    good = chain.initialise(0)
    assert dict(pickle.loads(pickle.dumps(good))).keys() == good.keys() == {"fc1.weight", "fc1.bias"}
    assert good.count == 8
    assert chain.parameters(dict(reversed(list(good.items())))).keys() == good.keys()
    with pytest.raises(ParameterError, match=r"fc1\.bias is missing"):
        chain.parameters({"fc1.weight": good["fc1.weight"]})
    with pytest.raises(ParameterError, match=r"'fc2\.bias' is unknown"):
        chain.parameters({**good, "fc2.bias": good["fc1.bias"]})
    with pytest.raises(ShapeError, match=r"fc1\.bias is \(3,\); needs \(2,\)"):
        chain.parameters({**good, "fc1.bias": np.zeros(3, np.float32)})
    with pytest.raises(DtypeError, match=r"fc1\.bias is float64"):
        chain.parameters({**good, "fc1.bias": np.zeros(2)})
    with pytest.raises(DtypeError, match="x is float64"):
        chain.forward(good, np.zeros((1, 3)))
    with pytest.raises(ShapeError, match="dy is"):
        chain.backward(good, np.zeros((4, 3), np.float32), np.zeros((4, 3), np.float32))
    with pytest.raises(TypeError):
        good["fc1.bias"] = good["fc1.bias"]  # type: ignore[index]


# Values


@settings(deadline=None, max_examples=30)
@given(classifiers(), st.integers(0, 2**32))
def test_backward_is_the_exact_derivative_of_forward(chain, seed):
    parameters, x = whole_arrays(chain, seed)
    dy = rational(np.random.default_rng(seed).integers(-2, 3, (2, 2)))
    gradients = chain.backward(parameters, x, dy)

    def loss(arrays: Any) -> Any:
        return (chain.forward({key: arrays[key] for key in parameters}, arrays["x"]) * dy).sum()

    exact = exact_gradient(loss, {**parameters, "x": x})
    assert gradients.parameters.keys() == parameters.keys()
    for key, gradient in {**gradients.parameters, "x": gradients.x}.items():
        assert (gradient == exact[key]).all(), key


@settings(deadline=None, max_examples=30)
@given(classifiers(), st.data())
def test_composed_and_nested_chains_are_the_flat_chain(flat, data):
    cut = data.draw(st.integers(0, len(flat.steps)), "cut")
    shape = [*flat.shapes.values()][cut]
    first = SpecChain(*flat.layers[:cut], input=" ".join(map(str, flat.input)))
    then = SpecChain(*flat.layers[cut:], input=" ".join(map(str, shape)))
    nested = SpecChain(first, then, input=" ".join(map(str, flat.input)))
    composed = first >> then
    assert composed.steps == flat.steps
    assert [step[1:] for step in nested.steps] == [step[1:] for step in flat.steps]

    parameters, x = whole_arrays(flat, seed=cut)
    dy = rational(np.ones((2, 2), int))
    of_nested = dict(zip(nested.parameter_shapes, parameters.values(), strict=True))
    expected = flat.backward(parameters, x, dy)
    for chain, own in ((composed, parameters), (nested, of_nested)):
        assert (chain.forward(own, x) == flat.forward(parameters, x)).all()
        gradients = chain.backward(own, x, dy)
        assert (gradients.x == expected.x).all()
        for one, other in zip(gradients.parameters.values(), expected.parameters.values(), strict=True):
            assert (one == other).all()


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


def test_a_layer_beside_a_chain_is_refused_with_how_to_wire_it():
    chain = SpecChain(Conv2d(1, 4, 3), input="n 1 h w")
    for join in (lambda: chain >> ReLU(), lambda: ReLU() >> chain):  # type: ignore[operator]
        with pytest.raises(ParameterError) as refused:
            join()
        assert str(refused.value) == (
            "SpecChain: ReLU() beside >>; needs a chain on both sides. "
            "Make a layer a chain first: SpecChain(layer, input=...)."
        )


def test_nested_parameters_carry_the_chain_s_name():
    block = SpecChain(Conv2d(1, 1, 1, bias=False), ReLU(), input="n 1 h w")
    assert [*SpecChain(block, block, Conv2d(1, 1, 1), input="n 1 5 5").parameter_shapes] == [
        "chain1.conv1.weight",
        "chain2.conv1.weight",
        "conv1.weight",
        "conv1.bias",
    ]


@settings(deadline=None, max_examples=20)
@given(classifiers(), st.integers(0, 2**32))
def test_intervals_hold_every_output_of_the_box(chain, seed):
    rng = np.random.default_rng(seed)
    parameters = chain.initialise(seed, np.float64)
    shape = (1, *(size for size in chain.input[1:] if isinstance(size, int)))
    low = rng.normal(size=shape)
    high = low + rng.uniform(0, 1, shape)
    certified = chain.forward({key: intervals(each, each) for key, each in parameters.items()}, intervals(low, high))
    exact = {key: rational(array) for key, array in parameters.items()}
    for share in (0, 1, *rng.uniform(0, 1, (3, *shape))):
        # In exact arithmetic: the certificate is about the real function, not about another rounding of it.
        inside = rational(low) + (rational(high) - rational(low)) * rational(np.broadcast_to(share, shape))
        for interval, value in zip(certified.flat, chain.forward(exact, inside).flat, strict=True):
            assert value in interval


def test_a_single_image_gives_the_batch_s_one_row():
    chain = SpecChain(Conv2d(2, 3, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(12, 2), input="n 2 6 6")
    parameters, x = whole_arrays(chain, seed=1, batch=1)
    dy = rational(np.array([[1, -2]]))
    assert (chain.forward(parameters, x[0]) == chain.forward(parameters, x)[0]).all()
    one, batch = chain.backward(parameters, x[0], dy[0]), chain.backward(parameters, x, dy)
    assert (one.x == batch.x[0]).all()
    assert all((one.parameters[key] == batch.parameters[key]).all() for key in parameters)
    with pytest.raises(ShapeError, match="axes"):
        chain.forward(parameters, x[0, 0])


def test_initialisation_is_kaiming_uniform_and_follows_the_seed():
    chain = SpecChain(Conv2d(4, 64, 3, groups=2), Flatten(), Linear(64, 1000), input="n 4 3 3")
    parameters = chain.initialise(7)
    for key, fan_in in {"conv1": 2 * 9, "fc1": 64}.items():
        bound = np.float32(1 / math.sqrt(fan_in))
        for array in parameters.of_layer(key).values():
            assert array.dtype == np.float32
            assert (abs(array) <= bound).all()
        # 1152 or more draws stay under 0.98 of the bound with probability 0.98**1152 < 1e-10, for this seed never.
        assert abs(parameters[f"{key}.weight"]).max() > 0.98 * bound
    assert all((array == chain.initialise(7)[key]).all() for key, array in parameters.items())
    assert (parameters["fc1.bias"] != chain.initialise(8)["fc1.bias"]).any()
    assert chain.initialise(7, np.float64)["fc1.bias"].dtype == np.float64
    for seed, dtype in ((-1, np.float32), (0, np.int64)):
        with pytest.raises(KernelproofError):
            chain.initialise(seed, dtype)


# Backends


def test_a_compiled_chain_performs_every_operator_on_the_backend():
    chain = SpecChain(Conv2d(1, 2, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(8, 2), input="n 1 6 6")
    parameters, x = whole_arrays(chain, seed=3)
    dy = rational(np.ones((2, 2), int))
    seen = []

    def perform(operator, *args, **kwargs):
        seen.append(operator.__name__)
        return operator(*args, **kwargs)

    recorded = chain.compile(perform)
    assert (recorded.backward(parameters, x, dy).x == chain.backward(parameters, x, dy).x).all()
    assert seen == [
        "conv2d", "relu", "max_pool2d", "flatten", "linear",
        "linear_dweight", "linear_dbias", "linear_dx", "flatten_dx", "max_pool2d_dx", "relu_dx",
        "conv2d_dweight", "conv2d_dbias", "conv2d_dx",
    ]  # fmt: skip
    assert (chain.compile(spec).forward(parameters, x) == chain.forward(parameters, x)).all()
    with pytest.raises(ParameterError, match="compiled chain"):
        SpecChain(recorded, input="n 1 6 6")
    with pytest.raises(ParameterError, match="compiled chain"):
        _ = recorded >> SpecChain(ReLU(), input="n 2")
    with pytest.raises(ParameterError, match="a name, a callable or a module"):
        chain.compile(3)  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="mine: it has no conv2d"):
        chain.compile(types.ModuleType("mine")).forward(parameters, x)


def test_the_cpu_backend_is_found_and_agrees():
    chain = SpecChain(Conv2d(1, 2, 3), ReLU(), MaxPool2d(2), Flatten(), Linear(8, 2), input="n 1 6 6")
    exact, x = whole_arrays(chain, seed=4)
    parameters = chain.parameters(exact).astype(np.float32)
    dy = np.ones((2, 2), np.float32)
    fast = chain.compile("cpu").backward(parameters, x.astype(np.float32), dy)
    spec_says = chain.backward(exact, x, rational(dy))
    assert (fast.x == spec_says.x).all()
    assert all((fast.parameters[key] == spec_says.parameters[key]).all() for key in parameters)


def test_a_missing_backend_or_extra_says_what_to_install(monkeypatch):
    chain = SpecChain(ReLU(), input="n 3")
    with pytest.raises(UnsupportedError, match=r"'tpu' is not among kernelproof\.backends; needs one of: cpu, cuda"):
        chain.compile("tpu")
    dist = metadata.distribution("kernelproof")
    offers = [metadata.EntryPoint(name, "no_such_module:it", "")._for(dist) for name in ("cuda", "onnx")]  # type: ignore[attr-defined]
    monkeypatch.setattr("kernelproof.spec.backends.entry_points", lambda group: offers)
    with pytest.raises(UnsupportedError, match=r"pip install 'kernelproof\[cuda\]'"):
        chain.compile("cuda")
    with pytest.raises(UnsupportedError, match=r"pip install 'kernelproof\[onnx\]'"):
        chain.to_onnx({})


def test_compile_passes_the_precision_on_to_a_backend() -> None:
    chain = SpecChain(ReLU(), input="n 1 h w")
    assert chain.compile("cpu", precision="fast").perform.precision == "fast"  # type: ignore[attr-defined]
    with pytest.raises(ParameterError, match="precision='sloppy'"):
        chain.compile("cpu", precision="sloppy")
    with pytest.raises(UnsupportedError, match="precision='fast'"):
        chain.compile(lambda operator, *args: operator(*args), precision="fast")
