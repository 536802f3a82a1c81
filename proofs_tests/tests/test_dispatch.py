"""How kernels come to their contract, and calls to their kernel."""

import inspect
import pickle
from typing import Any

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from kernelproof import kernels, spec
from kernelproof.kernels.contract import KERNELS, Precision, implements
from kernelproof.kernels.dispatch import backend_of, cpu, cuda, is_device_array
from kernelproof.spec import Conv2d, DtypeError, ParameterError, ReLU, SpecChain, UnsupportedError


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is registered here is forgotten afterwards."""
    cpu.kernel(spec.relu)  # Loads the CPU's kernels.
    for name, backend in list(KERNELS):
        monkeypatch.setitem(KERNELS, (name, backend), KERNELS[name, backend])
    for name in ("relu", "linear", "cross_entropy", "sgd"):
        monkeypatch.setitem(KERNELS, (name, "here"), None)


# Contracts


def test_a_kernel_with_other_parameters_is_refused() -> None:
    with pytest.raises(TypeError, match=r"relu on here: the kernel takes \['y'\]; needs \['x'\]"):
        implements(spec.relu, "here")(lambda y: y)
    with pytest.raises(TypeError, match="the kernel takes"):
        implements(spec.relu, "here")(lambda x, more: x)
    with pytest.raises(TypeError, match="the kernel takes"):
        implements(spec.linear, "here")(lambda weight, x, bias: x)


def test_a_kernel_is_held_to_the_specification_s_shapes() -> None:
    x, weight = np.ones((2, 3), np.float32), np.ones((5, 3), np.float32)
    returned: list[Any] = [np.ones((2, 5), np.float32)]

    @implements(spec.linear, "here")
    def kernel(x: Any, weight: Any, bias: Any) -> Any:
        return returned[0]

    assert kernel(x, weight, None) is returned[0]
    assert kernel(x, weight, weight[:, 0]) is returned[0]
    for wrong in ((x, weight[:, 1:], None), (x, weight, weight[0]), (x[0], weight, None), (None, weight, None)):
        with pytest.raises(TypeCheckError):
            kernel(*wrong)
    returned[0] = np.ones((5, 2), np.float32)
    with pytest.raises(TypeCheckError):
        kernel(x, weight, None)


def test_a_kernel_computes_in_floats_on_classes_of_any_kind() -> None:
    @implements(spec.cross_entropy, "here")
    def kernel(logits: Any, target: Any) -> Any:
        return np.zeros((), logits.dtype)

    logits, target = np.zeros((2, 3)), np.zeros(2, np.int64)
    for dtype in (np.float32, np.float64, np.dtype(">f4")):
        assert kernel(logits.astype(dtype), target).dtype == dtype
    for dtype in (np.float16, np.int32, object):
        with pytest.raises(DtypeError, match=r"cross_entropy on here: logits is .*; needs float32 or float64"):
            kernel(logits.astype(dtype), target)


def test_arrays_of_another_kind_are_asked_for() -> None:
    class Elsewhere(np.ndarray):
        """Stands for memory of another device."""

    @implements(spec.linear, "here", Elsewhere)
    def kernel(x: Any, weight: Any, bias: Any) -> Any:
        return np.ones((2, 5)).view(Elsewhere)

    x, weight, bias = np.ones((2, 3)), np.ones((5, 3)), np.ones(5)
    there = [each.view(Elsewhere) for each in (x, weight, bias)]
    assert isinstance(kernel(*there), Elsewhere)
    assert isinstance(kernel(*there[:2], None), Elsewhere)
    for place, array in enumerate((x, weight, bias)):
        with pytest.raises(TypeCheckError):
            kernel(*there[:place], array, *there[place + 1 :])

    @implements(spec.sgd, "here", Elsewhere)
    def step(parameter: Any, gradient: Any, velocity: Any, learning_rate: Any, momentum: Any) -> Any:
        return parameter, bias if momentum else velocity

    step(*there[2:] * 3, 0.5, 0.0)
    with pytest.raises(TypeCheckError):
        step(*there[2:] * 3, 0.5, 0.5)


def test_a_kernel_is_told_the_precision_if_it_asks() -> None:
    told = []

    def choosing(x: Any, *, precision: Precision) -> Any:
        """As it is told."""
        told.append(precision)
        return x

    def plain(x: Any) -> Any:
        """Exact."""
        return x

    x = np.ones(3)
    kernel: Any = implements(spec.relu, "here")(choosing)
    assert KERNELS["relu", "here"] is kernel
    assert kernel(x) is kernel(x, precision="fast") is kernel.unchecked("tf32")(x) is x
    assert told == ["strict", "fast", "tf32"]
    assert list(inspect.signature(choosing).parameters) == ["x", "precision"]
    assert inspect.signature(choosing).parameters["precision"].kind is inspect.Parameter.KEYWORD_ONLY
    kernel = implements(spec.relu, "here")(plain)
    assert kernel(x) is kernel(x, precision="fast") is kernel.unchecked("tf32")(x) is x
    assert list(inspect.signature(plain).parameters) == ["x"]
    assert kernel.__doc__ == f"{inspect.getdoc(spec.relu)}\n\nOn here: Exact."
    assert kernel.__name__ == "plain"


# Backends


def test_a_backend_is_found_by_name() -> None:
    assert kernels.backend("cpu") is cpu
    assert kernels.backend("cuda") is cuda
    assert (repr(cpu), repr(cuda.at("fast"))) == ("<backend cpu, strict>", "<backend cuda, fast>")
    with pytest.raises(ParameterError, match="backend 'tpu'; needs 'cpu' or 'cuda'"):
        kernels.backend("tpu")


def test_there_is_one_backend_of_each_precision() -> None:
    fast = cpu.at("fast")
    assert fast is cpu.at("fast") is fast.at("fast")
    assert fast.at("strict") is cpu
    assert fast.at("tf32") is cpu.at("tf32") is not fast
    assert (fast.name, fast.precision) == ("cpu", "fast")
    with pytest.raises(ParameterError, match="precision='exact'; needs 'strict' or 'fast'"):
        cpu.at("exact")  # type: ignore[arg-type]


def test_a_backend_performs_what_it_has_a_kernel_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def choosing(x: Any, *, precision: Precision) -> Any:
        """As it is told."""
        told.append(precision)
        return np.full_like(x, 7)

    x = np.ones(3)
    implements(spec.relu, "cpu")(choosing)
    for precision in ("strict", "fast"):
        assert (type(cpu)("cpu", precision)(spec.relu, x) == 7).all()
        assert (type(cpu)("cpu", precision).kernel(spec.relu)(x) == 7).all()
    assert told == ["strict", "strict", "fast", "fast"]
    monkeypatch.delitem(KERNELS, ("relu", "cpu"))
    with pytest.raises(UnsupportedError, match="relu: backend 'cpu'; needs a kernel for it"):
        type(cpu)("cpu")(spec.relu, x)


def test_what_a_single_image_was_given_for_is_taken_away_each_time() -> None:
    x, weight = np.ones((2, 5, 6), np.float32), np.ones((3, 2, 3, 3), np.float32)
    for _ in range(3):
        assert cpu(spec.conv2d, x, weight).shape == (3, 3, 4)
        assert cpu(spec.conv2d, x[None], weight).shape == (1, 3, 3, 4)
        assert cpu(spec.max_pool2d, x, 2).shape == (2, 2, 3)


class OnDevice:
    """An array in a GPU's memory."""

    __cuda_array_interface__ = {"shape": (3,)}  # noqa: RUF012


class Simulated:
    """One of numba's simulator."""

    __cuda_ndarray__ = True


class Tracked:
    """torch's answer for a tensor on the GPU that requires grad."""

    @property
    def __cuda_array_interface__(self) -> Any:
        raise RuntimeError("Can't get __cuda_array_interface__ on Variable that requires grad.")


class Foreign:
    dtype, shape = np.dtype(np.float32), (3,)


def test_the_arrays_decide_where_an_operator_runs() -> None:
    x = np.ones(3, np.float32)
    assert backend_of("relu", [x]) is backend_of("relu", [x, None, (1, 1), np.float32(2)]) is cpu
    assert backend_of("relu", []) is backend_of("relu", [[1.0, 2.0]]) is cpu
    for there in (OnDevice(), Simulated(), Tracked()):
        assert is_device_array(there)
        assert backend_of("relu", [there, None]) is cuda
        with pytest.raises(DtypeError, match="relu: arrays in host and device memory; needs all in one place"):
            backend_of("relu", [x, there])
    assert not is_device_array(x)
    with pytest.raises(DtypeError, match=r"relu: an array of type \S*Foreign; needs numpy arrays, or device arrays"):
        backend_of("relu", [x, Foreign()])


def test_a_public_function_is_the_operator_s_and_takes_a_precision() -> None:
    for name in spec.OPERATORS:
        operator: Any = spec.find(name)
        public, given = getattr(kernels, operator.__name__), inspect.signature(operator).parameters
        parameters = inspect.signature(public).parameters
        assert list(parameters) == [*given, "precision"], name
        assert all(parameters[each] == given[each] for each in given)
        assert parameters["precision"].default == "strict"
        assert parameters["precision"].kind is inspect.Parameter.KEYWORD_ONLY
        assert (public.__name__, public.__qualname__) == (operator.__name__, operator.__name__)
        assert public.__doc__ == operator.__doc__
        assert inspect.signature(public).return_annotation is Any
    x = np.array([-1, 2], np.float32)
    assert kernels.relu(x=x, precision="fast").tolist() == kernels.relu(x).tolist() == [0, 2]
    with pytest.raises(ParameterError, match="precision='exact'"):
        kernels.relu(x, precision="exact")


def test_a_chain_that_was_called_is_pickled_as_one_that_was_not() -> None:
    chain = SpecChain(Conv2d(1, 2, 3), ReLU(), input="n 1 6 6").compile("cpu", precision="fast")
    parameters, x = chain.initialise(0), np.ones((2, 1, 6, 6), np.float32)
    y = chain.forward(parameters, x)
    again = pickle.loads(pickle.dumps(chain))
    assert again.perform is chain.perform
    assert again.forward(parameters, x).tobytes() == y.tobytes()


def test_an_array_of_another_library_is_refused_in_words() -> None:
    class Foreign:
        shape, dtype = (2,), "torch.float32"

    with pytest.raises(DtypeError, match="numpy arrays, or device arrays"):
        spec.relu(Foreign())  # type: ignore[arg-type]
