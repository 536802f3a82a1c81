"""An exported chain computes what the specification says: in ONNX Runtime and in ONNX's own reference evaluator."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from kernelproof.models.cnn2 import CNN2Config, cnn_spec, cnn_with_relu_spec
from kernelproof.models.onnx_export import IR_VERSION, NODES, OPSET, to_onnx
from kernelproof.proofs.chain_bound import chain_bound
from kernelproof.spec import OPS, ParameterError, UnsupportedError
from kernelproof.spec.chain import SpecChain
from kernelproof.spec.layers import Conv2d, Flatten, Layer, Linear, MaxPool2d, ReLU


@dataclass(frozen=True)
class Problem:
    """A small chain of any layers, and images for it, drawn by seed."""

    layers: tuple[Layer, ...]
    shape: tuple[int, int, int, int]
    open_sizes: bool
    seed: int

    @property
    def chain(self) -> SpecChain:
        n, c, h, w = self.shape
        return SpecChain(*self.layers, input=f"n {c} h w" if self.open_sizes else f"{n} {c} {h} {w}")

    def arrays(self, draw: Callable[..., np.ndarray], dtype: type) -> tuple[dict[str, np.ndarray], np.ndarray]:
        shapes = {**self.chain.parameter_shapes, "x": self.shape}
        arrays = {name: draw(size=shape).astype(dtype) for name, shape in shapes.items()}
        return arrays, arrays.pop("x")

    def whole(self, dtype: type) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Whole numbers so small that every sum on the way is exact, even in float32."""
        return self.arrays(partial(np.random.default_rng(self.seed).integers, -2, 3), dtype)

    def real(self, dtype: type) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return self.arrays(np.random.default_rng(self.seed).normal, dtype)


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def convolutions(draw: st.DrawFn, channels: int) -> Conv2d:
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if channels % g == 0]))
    filters = groups * draw(st.integers(1, 2))
    padding = draw(st.tuples(pairs(0, 2), pairs(0, 2)))
    kernel, stride, dilation = draw(pairs(1, 3)), draw(pairs(1, 2)), draw(pairs(1, 2))
    return Conv2d(channels, filters, kernel, stride, padding, dilation, groups, draw(st.booleans()))


@st.composite
def poolings(draw: st.DrawFn, same_on_all_sides: bool) -> MaxPool2d:
    """What ONNX Runtime takes by construction: less padding than taps, what stands for rounding up included."""
    ceil_mode, kernel, stride = draw(st.booleans()), draw(pairs(1, 3)), draw(pairs(1, 3))
    same = draw(st.integers(0, min(kernel) - 1))
    padding = ((same, same),) * 2 if same_on_all_sides else tuple(draw(pairs(0, taps - 1)) for taps in kernel)
    dilation = (
        1 if ceil_mode and after + step - 1 >= taps else draw(st.integers(1, 2))
        for (_, after), step, taps in zip(padding, stride, kernel, strict=True)
    )
    return MaxPool2d(kernel, stride, padding, tuple(dilation), ceil_mode=ceil_mode)


@st.composite
def problems(draw: st.DrawFn, for_reference: bool = False) -> Problem:
    """Layers first, then an image at least as large as their windows need: legal by construction.

    The reference evaluator fails on empty batches, and takes the sides of a pooling for each other when they differ.
    """
    first = channels = draw(st.integers(1, 3))
    layers: list[Layer] = []
    for kind in draw(st.lists(st.sampled_from(["conv", "relu", "pool"]), min_size=1, max_size=3)):
        match kind:
            case "conv":
                layers.append(convolution := draw(convolutions(channels)))
                channels = convolution.out_channels
            case "pool":
                layers.append(draw(poolings(same_on_all_sides=for_reference)))
            case _:
                layers.append(ReLU())
    least = SpecChain(*layers, input=f"n {first} h w").smallest_input()
    h, w = (size + draw(st.integers(0, 3)) for size in least)
    if draw(st.booleans()):
        layers.append(Flatten())
        features = SpecChain(*layers, input=f"n {first} {h} {w}").steps[-1].output[1]
        assert isinstance(features, int)
        layers.append(Linear(features, draw(st.integers(1, 3)), bias=draw(st.booleans())))
    batch = draw(st.sampled_from([3, 1] if for_reference else [3, 1, 0]))
    return Problem(tuple(layers), (batch, first, h, w), draw(st.booleans()), draw(st.integers(0, 2**32 - 1)))


def in_onnxruntime(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def in_reference(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(y)


Run = Callable[[onnx.ModelProto, np.ndarray], np.ndarray]


def equals_on_whole_numbers(problem: Problem, run: Run, dtype: type) -> bool:
    parameters, x = problem.whole(dtype)
    came, wanted = run(to_onnx(problem.chain, parameters), x), problem.chain.forward(parameters, x)
    return came.dtype == wanted.dtype and np.array_equal(came, wanted)


def is_within_the_bound_on_reals(problem: Problem, run: Run, dtype: type) -> bool:
    parameters, x = problem.real(dtype)
    came = run(to_onnx(problem.chain, parameters), x)
    wanted, bound = chain_bound(problem.chain, parameters, x, dtype)
    return came.shape == wanted.shape and bool(np.all(np.abs(came - wanted) <= bound))


@settings(max_examples=150, deadline=None)
@given(problems())
def test_an_exported_graph_equals_its_chain_on_whole_numbers_in_onnxruntime(problem):
    assert equals_on_whole_numbers(problem, in_onnxruntime, np.float32)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_an_exported_graph_is_within_the_rounding_bound_in_onnxruntime(problem):
    assert is_within_the_bound_on_reals(problem, in_onnxruntime, np.float32)


@settings(max_examples=50, deadline=None)
@given(problems(for_reference=True), st.sampled_from([np.float32, np.float64]))
def test_an_exported_graph_equals_its_chain_on_whole_numbers_in_the_reference(problem, dtype):
    assert equals_on_whole_numbers(problem, in_reference, dtype)


@settings(max_examples=50, deadline=None)
@given(problems(for_reference=True), st.sampled_from([np.float32, np.float64]))
def test_an_exported_graph_is_within_the_rounding_bound_in_the_reference(problem, dtype):
    assert is_within_the_bound_on_reals(problem, in_reference, dtype)


def pads_by_axis(attributes):
    top, left, bottom, right = attributes["pads"]
    return {"pads": (top, bottom, left, right)}


BUGS = {
    "pads by axis": ("conv2d", pads_by_axis),
    "strides swapped": ("conv2d", lambda attributes: {"strides": attributes["strides"][::-1]}),
    "dilation forgotten": ("conv2d", lambda attributes: {"dilations": (1, 1)}),
    "pooling's pads by axis": ("max_pool2d", pads_by_axis),
    "pooling's dilation forgotten": ("max_pool2d", lambda attributes: {"dilations": (1, 1)}),
    "ceil_mode forgotten": ("max_pool2d", lambda attributes: {"pads": (*attributes["pads"][:2], 0, 0)}),
}
GENERATE = settings(max_examples=2000, deadline=None, database=None, phases=[Phase.generate])


@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_planted_in_the_exporter_is_found(bug, monkeypatch):
    operator, change = BUGS[bug]
    attributes = NODES[operator]
    wrong = lambda layer: {**attributes(layer), **change(attributes(layer))}  # noqa: E731
    monkeypatch.setattr("kernelproof.models.onnx_export.NODES", {**NODES, operator: wrong})

    def is_found(problem):
        try:
            return not equals_on_whole_numbers(problem, in_onnxruntime, np.float32)
        except Exception:  # The checker or the runtime refuses the graph: found as well.
            return True

    find(problems(), is_found, settings=GENERATE)


def test_the_bound_tells_float32_from_a_coarser_type():
    chain = cnn_with_relu_spec(CNN2Config(4, 6, image_size=8))
    x = np.random.default_rng(0).normal(size=(3, 1, 8, 8)).astype(np.float32)
    wanted, bound = chain_bound(chain, parameters := chain.initialise(0), x, np.float32)
    assert np.all(np.abs(chain.forward(parameters, x) - wanted) <= bound)
    coarse = chain.forward(parameters.astype(np.float16).astype(np.float32), x)
    assert np.all(np.abs(coarse - wanted).max(axis=1) > bound.max(axis=1))


def test_one_exported_graph_serves_every_batch_and_every_size_the_chain_admits():
    chain = SpecChain(Conv2d(2, 3, 3, stride=2, padding=1), ReLU(), MaxPool2d(3, 2, 1, ceil_mode=True), input="n 2 h w")
    parameters = chain.initialise(0).astype(np.float32)
    model, generator = to_onnx(chain, parameters), np.random.default_rng(0)
    for n, h, w in product((0, 1, 3), range(1, 9), (1, 2, 7)):
        x = generator.normal(size=(n, 2, h, w)).astype(np.float32)
        wanted, bound = chain_bound(chain, parameters, x, np.float32)
        assert np.all(np.abs(in_onnxruntime(model, x) - wanted) <= bound)


def dimensions(value: onnx.ValueInfoProto) -> list[str | int]:
    return [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]


def test_a_graph_speaks_pytorchs_names_and_the_chains_formulas():
    chain = SpecChain(Conv2d(1, 4, 3, padding=1), ReLU(), MaxPool2d(2, ceil_mode=True), input="n 1 h w")
    model = to_onnx(chain, chain.initialise(0))
    assert [(node.op_type, node.name) for node in model.graph.node] == [
        ("Conv", "conv1"),
        ("Relu", "relu1"),
        ("MaxPool", "pool1"),
    ]
    assert {each.name: tuple(each.dims) for each in model.graph.initializer} == chain.parameter_shapes
    shapes = {
        each.name: dimensions(each) for each in [*model.graph.input, *model.graph.value_info, *model.graph.output]
    }
    assert shapes == {
        "x": ["n", 1, "h", "w"],
        "conv1": ["n", 4, "h", "w"],
        "relu1": ["n", 4, "h", "w"],
        "y": ["n", 4, "(h + 1)//2", "(w + 1)//2"],
    }
    assert [(each.domain, each.version) for each in model.opset_import] == [("", OPSET)]
    assert model.ir_version == IR_VERSION
    assert (model.producer_name, model.producer_version) == ("kernelproof", version("kernelproof"))
    assert {each.key: each.value for each in model.metadata_props} == {
        "specification": f"kernelproof.spec {version('kernelproof')}"
    }
    assert model.graph.doc_string == repr(chain)
    assert not any(attribute.name == "auto_pad" for node in model.graph.node for attribute in node.attribute)


@pytest.mark.parametrize("make", [cnn_spec, cnn_with_relu_spec])
def test_cnn2_is_exported_whole_and_written(make, tmp_path):
    chain = make(CNN2Config(4, 6, image_size=8))
    parameters = chain.initialise(1)
    model = chain.to_onnx(parameters, tmp_path / "cnn2.onnx")
    assert onnx.load(tmp_path / "cnn2.onnx") == model
    assert [node.name for node in model.graph.node] == [step.name for step in chain.steps]
    x = np.random.default_rng(0).random((3, 1, 8, 8)).astype(np.float32)
    wanted, bound = chain_bound(chain, parameters, x, np.float32)
    assert np.all(np.abs(in_onnxruntime(model, x) - wanted) <= bound)


def test_every_operator_with_an_onnx_type_has_a_node():
    assert set(NODES) == {op.name for op in OPS.values() if op.onnx is not None}


@dataclass(frozen=True, repr=False)
class Swish(ReLU):
    """A layer that the exporter does not know."""

    kind: ClassVar[str] = "swish"
    op: ClassVar[str] = "swish"


def test_what_has_no_node_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "chain.onnx"
    image = "n 1 8 8"
    for chain, dtype, says in (
        (SpecChain(ReLU(), Swish(), input=image), np.float32, r"swish1 = Swish\(\); needs one of conv2d"),
        (SpecChain(Conv2d(1, 1, 3), input=image), np.float16, "parameters are float16; needs float32 or float64"),
        (SpecChain(Conv2d(1, 1, 3), input=image), object, "parameters are object; needs float32 or float64"),
        (SpecChain(MaxPool2d(2, 3, dilation=2, ceil_mode=True), input=image), np.float32, "pads by 2 along the height"),
        (SpecChain(input=image), np.float32, "needs at least one layer"),
    ):
        with pytest.raises(UnsupportedError, match=says):
            to_onnx(chain, chain.initialise(0).astype(dtype), path)
    chain = SpecChain(Conv2d(1, 1, 3), input=image)
    with pytest.raises(ParameterError, match=r"conv1\.bias is missing"):
        to_onnx(chain, {"conv1.weight": chain.initialise(0)["conv1.weight"]}, path)
    assert list(tmp_path.iterdir()) == []


def test_without_the_onnx_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.delitem(sys.modules, "kernelproof.models.onnx_export")
    with pytest.raises(UnsupportedError, match=r"pip install 'kernelproof\[onnx\]'"):
        importlib.import_module("kernelproof.models.onnx_export")
