"""The laws on device arrays of any layout, and what else kernels on a GPU owe.

test_cuda_kernels.py runs this file in numba's simulator, and on the GPU where there is one.
"""

import ctypes
import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from kernelproof import kernels, spec
from kernelproof.kernels.cuda.host.arrays import SIMULATED, DeviceArray, Place, cuda
from kernelproof.proofs import metamorphic  # noqa: F401 - registers its laws
from kernelproof.proofs.drawing import problems
from kernelproof.proofs.judging import Declared
from kernelproof.proofs.laws import LAWS
from kernelproof.proofs.neighbours import of_one_shape
from kernelproof.proofs.problems import Problem
from kernelproof.spec import OPERATORS, DtypeError, KernelproofError, ShapeError, UnsupportedError

on_a_gpu = pytest.mark.skipif(SIMULATED, reason="the simulator has no streams and no other library's arrays")


class InDeviceMemory:
    """A host array's bytes in device memory, gaps included, with the same strides."""

    def __init__(self, host: np.ndarray) -> None:
        low, high = np.lib.array_utils.byte_bounds(host)
        self.shape, self.strides, self.dtype = host.shape, host.strides, host.dtype
        self.bytes = np.frombuffer(ctypes.string_at(low, high - low), np.uint8)
        self.device = cuda.to_device(self.bytes)
        self.offset = host.__array_interface__["data"][0] - low

    @property
    def array(self) -> Any:
        """As another library would hand it over; in the simulator as numba's own."""
        if SIMULATED:
            from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

            memory = self.device._ary
            return FakeCUDAArray(np.ndarray(self.shape, self.dtype, memory, self.offset, self.strides))
        return _Foreign(self)

    def unchanged(self) -> bool:
        """Whether every byte is as it was, those between the elements too."""
        return bool(np.array_equal(self.device.copy_to_host(), self.bytes))


class _Foreign:
    def __init__(self, memory: InDeviceMemory) -> None:
        self.shape, self.dtype = memory.shape, memory.dtype
        pointer, _ = memory.device.__cuda_array_interface__["data"]
        self.__cuda_array_interface__ = {
            "shape": memory.shape,
            "typestr": memory.dtype.str,
            "data": (pointer + memory.offset, True),
            "strides": memory.strides,
            "version": 3,
        }


def on_device(operator: str) -> Declared:
    """The operator's kernel on a GPU, called with host arrays; it must leave its arguments' memory as it was."""

    def kernel(*args: Any, **kwargs: Any) -> Any:
        memories = [InDeviceMemory(each) if isinstance(each, np.ndarray) else each for each in args]
        arguments = [each.array if isinstance(each, InDeviceMemory) else each for each in memories]
        result = getattr(kernels, operator.replace(".", "_"))(*arguments, **kwargs)
        assert all(each.unchanged() for each in memories if isinstance(each, InDeviceMemory))
        return result

    # The simulator runs a kernel by changing its module's globals: one at a time.
    return Declared(kernel, lambda problem: True, reentrant=not SIMULATED)


def run_block(manager: Any, grid_point: Any, *arguments: Any) -> None:
    """A block of threads as numba's simulator runs it, which asks each of them without pause whether it waits.

    That took nine tenths of the time, from the threads themselves.
    """
    from numba.cuda.simulator.kernel import BlockThread

    threads = [
        BlockThread(lambda: manager._f(*arguments), manager, grid_point, place, manager._debug)
        for place in np.ndindex(*manager._block_dim)
    ]
    for each in threads:
        each.start()
    running, failure = threads, None
    while running := [each for each in running if each.is_alive()]:
        failure = failure or next((each.exception for each in threads if each.exception), None)
        if failure or all(each.syncthreads_blocked for each in running):
            for each in running:
                each.abort = bool(failure)  # What they wait for never comes.
                each.syncthreads_blocked = False
                each.syncthreads_event.set()
        time.sleep(0.0002)
    failure = failure or next((each.exception for each in threads if each.exception), None)
    if failure:
        raise failure[0].with_traceback(failure[1])


@pytest.fixture(autouse=True, scope="session")
def waiting_blocks() -> Iterator[None]:
    """Blocks whose threads are let run."""
    with pytest.MonkeyPatch.context() as patch:
        if SIMULATED:
            patch.setattr("numba.cuda.simulator.kernel.BlockManager.run", run_block)
        yield


@pytest.fixture(autouse=True)
def poisoned_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """New arrays hold NaN or the least integer, so that an element that is not written shows."""
    empty = Place.empty

    def poisoned(place: Place, shape: Any, dtype: Any) -> DeviceArray:
        new = empty(place, shape, dtype)
        if new.size and place.library == "numba":
            poison = np.nan if new.dtype.kind == "f" else np.iinfo(new.dtype).min
            new.owner.copy_to_device(np.full(new.shape, poison, new.dtype))
        return new

    monkeypatch.setattr(Place, "empty", poisoned)


def products(problem: Problem) -> int:
    """About how many products the problem sums, in all."""
    shapes = problem.shapes
    taps = math.prod(shapes["weight"][1:]) if "weight" in shapes else math.prod(problem.options.get("kernel_size", ()))
    return taps * max(math.prod(shape) for shape in (*shapes.values(), problem.output))


def small(problem: Problem) -> bool:
    """A simulated thread takes a hundred thousand times as long. One law makes arrays the size of others."""
    return not SIMULATED or max(map(products, (problem, of_one_shape(problem)))) <= 1500


@pytest.mark.parametrize(
    ("law", "operator"),
    [
        (name, operator)
        for name, law in LAWS.items()
        for operator in sorted(law.holds_for)
        if law.needs(on_device(operator))
    ],
)
def test_law_holds_for_device_arrays_of_any_layout(law: str, operator: str) -> None:
    @settings(
        max_examples=4 if SIMULATED else 12,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        drawn = problems(operator, LAWS[law].family, ("float32", "float64")).filter(small).filter(LAWS[law].where)
        LAWS[law].check(on_device(operator), data.draw(drawn))

    holds()


def geometry() -> dict[str, Any]:
    return {"stride": (2, 1), "padding": ((1, 2), (0, 1)), "dilation": (1, 2)}


@pytest.mark.skipif(not SIMULATED, reason="a GPU tells of no thread")
def test_a_thread_that_fails_ends_its_block_with_what_it_said() -> None:
    def core(y: Any) -> None:
        place = cuda.threadIdx.x
        y[place] = place
        cuda.syncthreads()  # pyright: ignore[reportCallIssue]
        neighbour = y[(place + 1) % 3]
        cuda.syncthreads()
        y[place + (place == 1) * 9] = neighbour
        cuda.syncthreads()

    kernel: Any = cuda.jit(core)
    with pytest.raises(IndexError, match=r"tid=\[1, 0, 0\].*out of bounds"):
        kernel[1, 3](cuda.to_device(np.zeros(3, np.float32)))


def test_single_images_lose_their_batch_axis_again() -> None:
    x, weight = np.arange(40, dtype=np.float32).reshape(2, 4, 5), np.ones((2, 2, 3, 2), np.float32)
    y = spec.conv2d(x, weight, **geometry())
    calls = [
        (spec.conv2d, (x, weight), geometry()),
        (spec.conv2d_dx, (y, weight, x.shape), geometry()),
        (spec.conv2d_dweight, (y, x, weight.shape), geometry()),
        (spec.conv2d_dbias, (y,), {}),
        (spec.max_pool2d, (x, 2), {"padding": 1, "return_indices": True}),
        (spec.linear, (x[0, 0], np.ones((3, 5), np.float32)), {}),
        (spec.linear_dweight, (x[0, 1], x[0, 0]), {}),
    ]
    for operator, args, kwargs in calls:
        name = next(name for name, each in OPERATORS.items() if each is operator)
        came, right = on_device(name)(*args, **kwargs), operator(*args, **kwargs)
        for one, other in zip(*(each if isinstance(each, tuple) else (each,) for each in (came, right)), strict=True):
            np.testing.assert_array_equal(one.copy_to_host(), other)


def test_numpy_arrays_come_back_as_numpy_arrays_from_a_backend_asked_for_by_name() -> None:
    x = np.array([[-1.0, 2.0]], np.float32)
    y = kernels.backend("cuda")(spec.relu, x[:, ::-1])
    assert isinstance(y, np.ndarray)
    np.testing.assert_array_equal(y, [[2, 0]])


def test_sums_have_the_same_bits_every_time() -> None:
    generator = np.random.default_rng(0)
    dy = generator.standard_normal((2, 3, 4, 5)).astype(np.float32)
    x = generator.standard_normal((2, 2, 6, 7)).astype(np.float32)
    for operator, args in (("conv2d.dweight", (dy, x, (3, 2, 3, 3))), ("conv2d.dbias", (dy,))):
        first, second = (on_device(operator)(*args).copy_to_host() for _ in range(2))
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (DtypeError, lambda x: kernels.relu(cuda.to_device(x.astype(np.int64)))),
        (DtypeError, lambda x: kernels.relu_dx(cuda.to_device(x), x)),
        (DtypeError, lambda x: kernels.relu_dx(cuda.to_device(x), cuda.to_device(x.astype(np.float64)))),
        (ShapeError, lambda x: kernels.conv2d(cuda.to_device(x), cuda.to_device(x))),
    ],
)
def test_a_wrong_call_is_refused_before_any_launch(kind: type[KernelproofError], call: Any) -> None:
    with pytest.raises(kind, match=r"^\w+.*: .*; needs "):
        call(np.ones((1, 2, 3), np.float32))


@on_a_gpu
@pytest.mark.parametrize("library", ["torch", "cupy"])
def test_results_are_the_callers_kind_of_array_in_order_on_its_stream(library: str) -> None:
    module = pytest.importorskip(library)
    make = (lambda a: module.from_numpy(a).cuda()) if library == "torch" else module.asarray
    stream = module.cuda.Stream() if library == "torch" else module.cuda.Stream(non_blocking=True)
    x = np.arange(-50_000, 50_000, dtype=np.float32).reshape(10, 10, 100, 10)
    pool = {"return_indices": True}
    with module.cuda.stream(stream) if library == "torch" else stream:
        given = make(x)
        for _ in range(50):
            given = given + 1  # Work on the same stream that the kernel has to wait for.
        y, index = kernels.max_pool2d(kernels.relu(given), 2, **pool)
        assert type(y) is type(given)
        assert type(index) is type(given)
        host = [each.cpu().numpy() if library == "torch" else each.get() for each in (y * 2, index)]
    right = spec.max_pool2d(spec.relu(x + 50), 2, **pool)
    np.testing.assert_array_equal(host[0], 2 * right[0])
    np.testing.assert_array_equal(host[1], right[1])


@on_a_gpu
def test_a_tensor_is_read_where_it_lies() -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(4, 6, device="cuda")
    taken: list[int] = []
    address = DeviceArray.address.__get__

    def watched(self: DeviceArray) -> int:
        taken.append(address(self))
        return taken[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DeviceArray, "address", property(watched))
        y = kernels.relu(x.t())
    assert taken == [x.data_ptr(), y.data_ptr()]


@on_a_gpu
def test_tensors_that_record_gradients_and_other_scalars_are_refused() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(UnsupportedError, match="detach"):
        kernels.relu(torch.ones(3, device="cuda", requires_grad=True))
    with pytest.raises(DtypeError, match="float8_e5m2"):
        kernels.relu(torch.ones(3, device="cuda").to(torch.float8_e5m2))


@on_a_gpu
def test_arrays_of_two_libraries_on_two_streams_are_ordered() -> None:
    torch, cupy = pytest.importorskip("torch"), pytest.importorskip("cupy")
    ours, theirs = torch.cuda.Stream(), cupy.cuda.Stream(non_blocking=True)
    with torch.cuda.stream(ours), theirs:
        x = torch.zeros(1000, 1000, device="cuda")
        dy = cupy.zeros((1000, 1000), cupy.float32)
        for _ in range(100):
            x, dy = x + 1, dy + 1
        dx = kernels.relu_dx(dy, x)
        assert isinstance(dx, cupy.ndarray)
        assert bool((dx == 100).all())
