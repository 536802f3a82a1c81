"""What a chain computes: its gradients are the exact derivative, composed or nested, on every backend."""

import math
import pickle
import types
from importlib import metadata
from typing import Any

import numpy as np
import pytest
from chains import classifiers, whole_arrays
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelproof import spec
from kernelproof.proofs.exact_gradient import exact_gradient, rational
from kernelproof.spec import (
    Conv2d,
    DtypeError,
    Flatten,
    KernelproofError,
    Linear,
    MaxPool2d,
    ParameterError,
    ReLU,
    ShapeError,
    SpecChain,
    UnsupportedError,
    intervals,
)

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
    # What secrets.randbits(128) gives is a seed too.
    assert (parameters["fc1.bias"] != chain.initialise(2**128 - 1)["fc1.bias"]).any()
    with pytest.raises(ParameterError, match=r"seed=-1; .* Pass seed=0 or more"):
        chain.initialise(-1)
    assert chain.initialise(7, np.float64)["fc1.bias"].dtype == np.float64
    for seed, dtype in ((-1, np.float32), (0, np.int64)):
        with pytest.raises(KernelproofError):
            chain.initialise(seed, dtype)


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


def test_a_chain_is_refused_the_same_whatever_it_met_before() -> None:
    """It looks once at a record and at a shape that it admits; at others as on the first day."""
    chain = SpecChain(Conv2d(2, 3, 3, padding=1), input="n 2 h w").compile("cpu")
    own, x = chain.initialise(0), np.ones((1, 2, 5, 6), np.float32)
    assert chain.parameters(own) is own
    others = SpecChain(Conv2d(2, 3, 5, padding=2), input="n 2 h w").initialise(0)
    for _ in range(3):
        assert chain.forward(own, x).shape == (1, 3, 5, 6)
        with pytest.raises(DtypeError):
            chain.forward(own, x.astype(np.float64))
        with pytest.raises(ShapeError):
            chain.forward(own, x[:, :1])
        with pytest.raises(ShapeError):
            chain.forward(others, x)
        with pytest.raises(DtypeError):
            chain.forward(own, x.tolist())
