"""CNN2: its explicit backward pass is the exact derivative of its explicit forward pass."""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from kernelproof.kernels.dispatch import cpu
from kernelproof.models.cnn2 import CNN2Config, CNN2Grads, CNN2Spec, cnn_forward, cnn_spec, cnn_with_relu_spec
from kernelproof.proofs.exact_gradient import exact_gradient, rational
from kernelproof.spec import KernelproofError, ShapeError, Window, conv2d_dbias, conv2d_dx, max_pool2d_dx, relu_dx
from kernelproof.spec.chain import specification
from kernelproof.spec.window import pair


@dataclass(frozen=True)
class Problem:
    """A CNN2 with whole numbers so small that ties and zeros are frequent, drawn by seed."""

    config: CNN2Config
    batch: int
    seed: int

    def arrays(self) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Parameters, input and output gradient, as Fractions."""
        rng = np.random.default_rng(self.seed)
        shapes = self.config.parameter_shapes() | {
            "x": (self.batch, self.config.in_channels, *pair("x", "image_size", self.config.image_size, 1)),
            "dlogits": (self.batch, self.config.out_dim),
        }
        parameters = {name: rational(rng.integers(-2, 3, shape)) for name, shape in shapes.items()}
        return parameters, parameters.pop("x"), parameters.pop("dlogits")


def pairs(least: int, most: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Legal by construction: the image is as large as the windows need, walked back from one output, or larger."""
    kernel, stride, padding = draw(pairs(1, 3)), draw(pairs(1, 2)), draw(st.tuples(pairs(0, 2), pairs(0, 2)))
    pool_sizes, pool_strides = (draw(st.tuples(each, each)) for each in (pairs(1, 3), pairs(1, 2)))
    conv = Window(kernel, stride, padding)
    pool1, pool2 = (Window(size, step) for size, step in zip(pool_sizes, pool_strides, strict=True))
    image_size = []
    for axis in (0, 1):
        needed = 1
        for window in (pool2, conv, pool1, conv):
            needed = max(1, (needed - 1) * window.stride[axis] + window.extent(axis) - sum(window.padding[axis]))
        image_size.append(needed + draw(st.integers(0, 2)))
    # Every entry costs a pass over the whole network: where the image is large, one channel has to do.
    most = 2 if math.prod(image_size) <= 64 else 1
    c1, c2, out_dim, in_channels, batch = (draw(st.integers(1, most)) for _ in range(5))
    config = CNN2Config(
        c1, c2, out_dim, in_channels, tuple(image_size), kernel, stride, padding,
        pool_sizes[0], pool_strides[0], pool_sizes[1], pool_strides[1],
    )  # fmt: skip
    return Problem(config, batch, draw(st.integers(0, 2**32 - 1)))


def wrong_gradients(problem: Problem, perform: Callable[..., Any] = specification) -> list[str]:
    """The gradients, as `perform` computes them, that differ from the exact derivative in any entry."""
    parameters, x, dlogits = problem.arrays()
    cnn2 = CNN2Spec(problem.config)

    def weighted_logits(arguments):
        """`sum_nk dlogits[n,k] * logits[n,k]`: its gradient is what a backward pass from dlogits has to give."""
        weights = {key: arguments[key] for key in parameters}
        return np.sum(dlogits * cnn2.forward(weights, arguments["x"]).logits)

    derivative = exact_gradient(weighted_logits, {**parameters, "x": x})
    backward = cnn2.backward(parameters, cnn2.forward(parameters, x), dlogits, perform)
    gradients = {**backward.parameters, "x": backward.x}
    return [name for name, gradient in gradients.items() if not np.array_equal(gradient, derivative[name])]


@settings(max_examples=40, deadline=None)
@given(problems())
def test_every_entry_of_every_gradient_of_cnn2_is_the_exact_derivative(problem):
    assert wrong_gradients(problem) == []


def passes_at_zero(operator, *args, **kwargs):
    """A ReLU whose gradient at exactly 0 is 1."""
    if operator is relu_dx:
        return np.where(args[1] < 0, 0, args[0])
    return operator(*args, **kwargs)


def last_tie_wins(operator, *args, **kwargs):
    """A pooling whose gradient goes to the last of several equal maxima: the image turned round."""
    if operator is not max_pool2d_dx or kwargs["stride"] != (1, 1):
        return operator(*args, **kwargs)
    dy, x, size = args
    return operator(dy[:, :, ::-1, ::-1], x[:, :, ::-1, ::-1], size, **kwargs)[:, :, ::-1, ::-1]


def one_image_only(operator, *args, **kwargs):
    """A bias gradient that forgets to add up the batch."""
    return operator(args[0][:1]) if operator is conv2d_dbias else operator(*args, **kwargs)


def padding_turned(operator, *args, **kwargs):
    """An input gradient that takes top for bottom and left for right."""
    if operator is conv2d_dx:
        kwargs["padding"] = tuple(side[::-1] for side in kwargs["padding"])
    return operator(*args, **kwargs)


GENERATE = settings(max_examples=1000, deadline=None, database=None, phases=[Phase.generate])


@pytest.mark.parametrize("bug", [passes_at_zero, last_tie_wins, one_image_only, padding_turned])
def test_the_gradient_check_finds_a_planted_bug(bug):
    find(problems(), lambda problem: wrong_gradients(problem, bug) != [], settings=GENERATE)


def predicates(problem: Problem) -> dict[str, bool]:
    parameters, x, dlogits = problem.arrays()
    cnn2 = CNN2Spec(problem.config)
    y = cnn2.forward(parameters, x)
    conv1, pool1, *_ = problem.config.windows().values()
    taps = pool1.gather(y.relu1, fill=0)
    winners = (taps == y.pool1[..., None, None]) & (taps > 0)
    gradients = cnn2.backward(parameters, y, dlogits)
    many_windows = y.pool1.shape[2] > 1
    return {
        "tie of positive values in a pooling window": winners.sum(axis=(-1, -2)).max() > 1,
        "exact zero before a ReLU": (y.conv1 == 0).any(),
        "negative before a ReLU": (y.conv1 < 0).any(),
        "pooling windows overlap": many_windows and pool1.kernel[0] > pool1.stride[0],
        "pooling windows leave gaps": many_windows and pool1.kernel[0] < pool1.stride[0],
        "pooling leaves rows over": bool((y.relu1.shape[2] - pool1.extent(0)) % pool1.stride[0]),
        "stride differs by axis": conv1.stride[0] != conv1.stride[1],
        "padding of three kinds": len({*conv1.padding[0], *conv1.padding[1]}) == 3,
        "every gradient has a non-zero entry": all(g.any() for g in [*gradients.parameters.values(), gradients.x]),
    }


def test_the_problems_of_the_gradient_check_hit_ties_zeros_and_every_kind_of_window():
    hits = Counter()

    @settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @given(problems())
    def count(problem):
        hits.update({name: int(holds) for name, holds in predicates(problem).items()})

    count()
    print(hits)
    assert all(hits.values()), hits


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from([object, np.float64, np.float32]))
def test_the_explicit_pair_and_the_chain_agree_to_the_last_bit(problem, dtype):
    parameters, x, dlogits = problem.arrays()
    parameters = {key: array.astype(dtype) / 3 for key, array in parameters.items()}
    x, dlogits = x.astype(dtype), dlogits.astype(dtype)
    cnn2, chain = CNN2Spec(problem.config), cnn_with_relu_spec(problem.config)

    forward = cnn2.forward(parameters, x)
    assert same(forward.logits, chain.forward(parameters, x))
    assert same(forward.logits, cnn_forward(problem.config, parameters, x))
    explicit, derived = cnn2.backward(parameters, forward, dlogits), chain.backward(parameters, x, dlogits)
    of_chain = CNN2Grads.of(derived.parameters, derived.x)
    assert same(explicit.x, of_chain.x)
    assert explicit.parameters.keys() == derived.parameters.keys()
    assert all(same(explicit.parameters[key], gradient) for key, gradient in of_chain.parameters.items())


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from([np.float32, np.float64]))
def test_cnn2_on_the_cpu_kernels_equals_its_specification_on_whole_numbers(problem, dtype):
    parameters, x, dlogits = problem.arrays()
    parameters = {key: array.astype(dtype) for key, array in parameters.items()}
    x, dlogits = x.astype(dtype), dlogits.astype(dtype)
    cnn2 = CNN2Spec(problem.config)
    specified, computed = cnn2.forward(parameters, x), cnn2.forward(parameters, x, cpu)
    assert np.array_equal(specified.logits, computed.logits)
    wanted, came = cnn2.backward(parameters, specified, dlogits), cnn2.backward(parameters, computed, dlogits, cpu)
    assert np.array_equal(wanted.x, came.x)
    assert all(np.array_equal(came.parameters[key], gradient) for key, gradient in wanted.parameters.items())


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and np.array_equal(a, b) and (a.dtype == object or a.tobytes() == b.tobytes())


@given(problems())
def test_without_rectifiers_the_chain_has_the_same_layers_but_them(problem):
    names = [step.name for step in cnn_with_relu_spec(problem.config).steps]
    assert names == ["conv1", "relu1", "pool1", "conv2", "relu2", "pool2", "flatten1", "fc1"]
    assert [step.name for step in cnn_spec(problem.config).steps] == [name for name in names if "relu" not in name]


def test_the_default_is_the_cnn2_of_28x28_digits():
    assert CNN2Config().parameter_shapes() == {
        "conv1.weight": (32, 1, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 3, 3),
        "conv2.bias": (64,),
        "fc1.weight": (10, 3136),
        "fc1.bias": (10,),
    }


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"c1": 0}, "CNN2Config: c1=0; needs a whole number from 1"),
        ({"out_dim": 2.5}, "CNN2Config: out_dim=2.5"),
        ({"image_size": 0}, "CNN2Config: image_size=0"),
        ({"stride": 0}, "CNN2Config.conv1: stride=0"),
        ({"padding": -1}, "CNN2Config.conv1: padding=-1"),
        ({"image_size": 3}, "CNN2Config.pool2: a 2-row window does not fit height 1"),
        ({"image_size": (9, 1), "padding": 0}, "CNN2Config.conv1: a 3-column filter does not fit width 1"),
        ({"pool2_stride": 0}, "CNN2Config.pool2: stride=0"),
    ],
)
def test_a_wrong_config_is_refused_and_names_the_layer(wrong, says):
    with pytest.raises(KernelproofError, match=f"^{re.escape(says)}"):
        CNN2Config(**wrong)


def test_parameters_and_images_of_another_config_are_refused():
    parameters, x, _ = Problem(CNN2Config(2, 2, image_size=(8, 8)), 1, 0).arrays()
    with pytest.raises(ShapeError, match=r"Parameters: conv1.weight is \(2, 1, 3, 3\); needs \(3, 1, 3, 3\)"):
        CNN2Spec(CNN2Config(3, 2, image_size=8)).forward(parameters, x)
    with pytest.raises(ShapeError, match=r"CNN2Spec: x is \(1, 1, 8, 8\); needs \(n, 1, 8, 9\)"):
        CNN2Spec(CNN2Config(2, 2, image_size=(8, 9))).forward(parameters, x)
