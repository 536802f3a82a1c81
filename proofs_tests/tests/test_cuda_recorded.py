"""Calls that are played from a tape have the bits of those that are performed, whatever memory they are called with."""

import importlib
import itertools
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from numba import config

from kernelproof import kernels, spec
from kernelproof.proofs.drawing import problems
from kernelproof.spec import Conv2d, Flatten, Linear, MaxPool2d, ReLU, SpecChain

modules: Any = SimpleNamespace(
    **{
        name: importlib.import_module(f"kernelproof.kernels.cuda.host.{name}")
        for name in ("allowance", "arrays", "tape", "workspace")
    }
)
Lifetime: Any = modules.workspace.Lifetime


def has_gpu() -> bool:
    return not getattr(config, "ENABLE_CUDASIM", 0) and modules.arrays.cuda.is_available()


on_a_gpu = pytest.mark.skipif(not has_gpu(), reason="no GPU here")


def test_an_address_remembers_whose_memory_it_is_through_sums() -> None:
    tape = modules.tape.Tape()
    first, second = tape.take(1000, 100), tape.take(2000, 100)
    address = 8 + (tape.address(1000, None) + 4)
    assert (address, address.memory, address.offset) == (1012, first, 12)
    assert tape.address(2099, None).memory is second
    assert tape.is_whole
    assert tape.address(2100, None) == 2100
    assert not tape.is_whole


def test_what_was_taken_last_in_a_place_is_what_lies_there() -> None:
    tape = modules.tape.Tape()
    tape.take(1000, 100)
    last = tape.take(1050, 100)
    assert tape.address(1060, None).memory is last


def test_a_tape_runs_in_its_own_thread_and_block() -> None:
    tape, seen = modules.tape.Tape(), []
    with modules.tape.recorded_on(tape):
        with modules.tape.recorded_on(None):
            assert modules.tape.running() is None
        other = threading.Thread(target=lambda: seen.append(modules.tape.running()))
        other.start()
        other.join()
        assert modules.tape.running() is tape
    assert seen == [None]
    assert modules.tape.running() is None


lifetimes = st.lists(
    st.builds(
        lambda size, first, length: Lifetime(size, first, first + length),
        st.integers(0, 3000), st.integers(0, 9), st.integers(0, 4),
    ),
    max_size=12,
)  # fmt: skip


@given(lifetimes)
def test_memories_that_are_needed_at_once_lie_apart(needs: list[Any]) -> None:
    offsets, size = modules.workspace.laid_out(needs)
    assert all(start % modules.workspace.ALIGNMENT == 0 for start in offsets)
    assert all(start + each.size <= size for start, each in zip(offsets, needs, strict=True))
    for (a, one), (b, other) in itertools.combinations(zip(offsets, needs, strict=True), 2):
        apart = a + one.size <= b or b + other.size <= a or 0 in (one.size, other.size)
        assert apart or one.last < other.first or other.last < one.first


def test_memories_that_follow_each_other_share_their_place() -> None:
    needs = [Lifetime(1000, time, time + 1) for time in range(10)]
    assert modules.workspace.laid_out(needs)[1] == 1024 + 1000


def test_an_algorithm_serves_within_the_memory_that_is_allowed() -> None:
    def algorithm(*sizes: int) -> bool:
        for size in sizes:
            modules.allowance.count(size)
        return True

    served = modules.allowance.served
    assert served(algorithm, 10**12)
    with kernels.workspace_limit(100):
        assert served(algorithm, 60, 40)
        assert not served(algorithm, 60, 41)
        assert served(algorithm, 100)


@pytest.mark.parametrize("shape", [(1, 1), (1,), (3, 1), (1, 2, 1), (2, 3), (0, 2)])
def test_arrays_go_to_the_gpu_with_rising_strides(shape: tuple[int, ...]) -> None:
    backwards = tuple(slice(None, None, -1) for _ in shape)
    array = np.arange(64, dtype=">f4")[: int(np.prod(shape))].reshape(shape)[backwards]
    native = modules.arrays.in_rising_order(array)
    assert native.dtype.isnative
    assert min(native.strides) >= 0
    np.testing.assert_array_equal(native, array)
    single = np.ones((2,) * len(shape), np.float32)[backwards][(slice(1),) * len(shape)]
    assert min(modules.arrays.in_rising_order(single).strides) > 0


class NumbaArray:
    """What a call's key reads of one of numba's device arrays."""

    __cuda_ndarray__ = True
    shape, strides, dtype = (3, 5), (20, 4), np.dtype(np.float32)

    def __init__(self, stream: int) -> None:
        self.stream = stream


def test_a_call_with_an_array_on_another_stream_is_not_like_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = importlib.import_module("kernelproof.kernels.cuda.host.recorded")
    monkeypatch.setattr(recorded, "where", lambda array: ("numba", 0, array.stream))
    first = NumbaArray(0)
    known, positions = recorded.described([first, NumbaArray(0), 1])
    assert positions == [0, 1]
    assert recorded.described([first, NumbaArray(0), 1])[0] == known
    assert recorded.described([first, NumbaArray(7), 1])[0] != known  # Played, it would not wait for that stream.


def torch_() -> Any:
    return pytest.importorskip("torch")


def cnn(precision: str = "strict") -> SpecChain:
    return SpecChain(
        Conv2d(1, 8, 3, padding=1), ReLU(), MaxPool2d(2), Conv2d(8, 16, 3, padding=1), ReLU(), MaxPool2d(3, stride=1),
        Flatten(), Linear(400, 40), ReLU(), Linear(40, 10), input="n 1 14 14",
    ).compile("cuda", precision=precision)  # fmt: skip


def drawn(chain: SpecChain, seed: int, n: int = 32) -> tuple[dict[str, Any], Any, Any]:
    """Parameters, a batch and an output gradient on the GPU."""
    torch, generator = torch_(), np.random.default_rng(seed)
    arrays = (generator.standard_normal(shape).astype(np.float32) for shape in ((n, 1, 14, 14), (n, 10)))
    x, dy = (torch.from_numpy(each).cuda() for each in arrays)
    return {key: torch.from_numpy(np.asarray(each)).cuda() for key, each in chain.initialise(seed).items()}, x, dy


def performed(chain: SpecChain, parameters: dict[str, Any], x: Any, dy: Any, of_x: bool = True) -> list[np.ndarray]:
    """Output and gradients past every tape, that of x last if it is asked for."""
    taken = modules.arrays.taken
    y, back = chain._vjp({key: taken(each) for key, each in parameters.items()}, taken(x), of_x)
    gradients = back(taken(dy))
    of_inputs = [gradients.x] if of_x else []
    return [each.copy_to_host() for each in (y, *gradients.parameters.values(), *of_inputs)]


def same_bits(came: Any, right: list[np.ndarray]) -> None:
    y, gradients = came
    for one, other in zip([y, *gradients.parameters.values(), gradients.x], right, strict=True):
        assert one.cpu().numpy().tobytes() == other.tobytes()


def play(chain: SpecChain, parameters: Any, x: Any, dy: Any) -> Any:
    y, back = chain.vjp(parameters, x)
    return y, back(dy)


@on_a_gpu
@pytest.mark.parametrize("precision", ["strict", "fast"])
def test_a_chain_has_the_same_bits_played_as_performed(precision: str) -> None:
    chain = cnn(precision)
    kept = []
    for seed in range(6):  # Performed, recorded; from the third on with both graphs, all arrays elsewhere each time.
        arrays = drawn(chain, seed)
        kept.append((play(chain, *arrays), performed(chain, *arrays)))
    for came, right in kept:  # No later call wrote into an earlier one's results.
        same_bits(came, right)


@on_a_gpu
def test_a_batch_that_was_asked_for_no_gradients_gives_them_all_the_same() -> None:
    chain = cnn()
    parameters, x, dy = drawn(chain, 0)
    for _ in range(3):
        assert bool((chain.forward(parameters, x) == chain.forward(parameters, x)).all())
    for _ in range(3):
        same_bits(play(chain, parameters, x, dy), performed(chain, parameters, x, dy))


@on_a_gpu
def test_backward_may_be_called_again_with_any_gradient_of_any_layout() -> None:
    torch, chain = torch_(), cnn()
    parameters, x, dy = drawn(chain, 0)
    play(chain, parameters, x, dy)
    y, back = chain.vjp(parameters, x)
    other = torch.randn(10, 32, device="cuda").t()
    for each in (dy, other, dy, 2 * dy):
        same_bits((y, back(each)), performed(chain, parameters, x, each))
    for wrong in (dy[:5], dy.double(), None, torch.ones_like(dy, requires_grad=True)):
        with pytest.raises(spec.KernelproofError):
            back(wrong)


@on_a_gpu
def test_gradients_of_parameters_alone_and_of_single_images() -> None:
    chain = cnn()
    parameters, x, dy = drawn(chain, 0)
    # Without the input's gradient a first block's others are one kernel, which sums in another order.
    right = performed(chain, parameters, x, dy, of_x=False)
    for _ in range(3):
        y, back = chain.vjp(parameters, x, of_x=False)
        gradients = back(dy)
        assert gradients.x is None
        for one, other in zip([y, *gradients.parameters.values()], right, strict=True):
            assert one.cpu().numpy().tobytes() == other.tobytes()
    right = performed(chain, parameters, x[0], dy[0])
    for _ in range(3):
        same_bits(play(chain, parameters, x[0], dy[0]), right)


@on_a_gpu
def test_a_wrong_call_is_refused_as_before_also_when_the_right_one_is_known() -> None:
    chain = cnn()
    parameters, x, dy = drawn(chain, 0)
    for _ in range(3):
        play(chain, parameters, x, dy)
    named = next(iter(parameters))
    for wrong in (x[:, :, 1:], x.double(), x.int(), x.clone().requires_grad_()):
        with pytest.raises(spec.KernelproofError):
            chain.forward(parameters, wrong)
    for changed in ({named: x}, {named: parameters[named].double()}, {"unknown": x}):
        with pytest.raises(spec.KernelproofError):
            chain.forward({**parameters, **changed}, x)


@on_a_gpu
def test_chains_run_on_the_callers_stream_behind_its_work() -> None:
    torch, chain = torch_(), cnn()
    parameters, x, dy = drawn(chain, 0)
    x = x.mul(8).round()  # So that adding one fifty times is exact.
    right = performed(chain, parameters, x + 50, dy)
    for stream in [torch.cuda.Stream() for _ in range(3)]:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(4):
                busy = torch.randn(4000, 4000, device="cuda")
                for _ in range(5):
                    busy = busy @ busy * 1e-3
                moved = x.clone()
                for _ in range(50):
                    moved += 1
                came = play(chain, parameters, moved, dy)
                moved.zero_()  # Behind the chain's reading of it.
                same_bits((came[0], came[1]), right)


@on_a_gpu
def test_a_call_in_the_callers_own_graph_is_part_of_it() -> None:
    torch, chain = torch_(), cnn()
    parameters, x, dy = drawn(chain, 0)
    for _ in range(3):
        play(chain, parameters, x, dy)
        kernels.conv2d(x, parameters["conv1.weight"], padding=1)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        came = play(chain, parameters, x, dy)
        y = kernels.conv2d(x, parameters["conv1.weight"], padding=1)
    _, other, _ = drawn(chain, 7)
    play(chain, parameters, other, dy)
    x.copy_(other)
    graph.replay()
    same_bits(came, performed(chain, parameters, other, dy))
    assert bool((y == kernels.conv2d(other, parameters["conv1.weight"], padding=1)).all())


@on_a_gpu
def test_two_threads_that_share_a_stream_do_not_share_results() -> None:
    chain = cnn()
    cases = [drawn(chain, seed) for seed in range(4)]
    rights = [performed(chain, *each) for each in cases]
    wrong = []

    def work(case: int) -> None:
        try:
            for _ in range(30):
                same_bits(play(chain, *cases[case]), rights[case])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(case,)) for case in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong


@on_a_gpu
@pytest.mark.parametrize("operator", [name for name in spec.OPERATORS if not name.startswith("cross_entropy")])
@pytest.mark.parametrize("library", ["torch", "cupy", "numba"])
def test_an_operator_has_the_same_bits_played_as_performed(library: str, operator: str) -> None:
    module = pytest.importorskip("numba.cuda" if library == "numba" else library)

    def make(array: Any) -> Any:
        if library == "torch":
            return module.from_numpy(array).cuda()
        return module.to_device(array.copy()) if library == "numba" else module.asarray(array)

    def on_host(array: Any) -> np.ndarray:
        return array.cpu().numpy() if library == "torch" else array.get() if library == "cupy" else array.copy_to_host()

    kernel, entry = getattr(kernels, operator.replace(".", "_")), kernels.backend("cuda").kernel
    the_operator = spec.OPERATORS[operator]

    def both(*args: Any, **kwargs: Any) -> Any:
        """What is played, and what is performed past every tape."""
        args = tuple(make(each) if isinstance(each, np.ndarray) else each for each in args)
        return kernel(*args, **kwargs), modules.arrays.on_device(the_operator, entry(the_operator), args, kwargs)

    @settings(
        max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
    )  # fmt: skip
    @given(problems(operator, "real", ("float32", "float64")))
    def holds(problem: Any) -> None:
        first = problem.arrays()
        for factor in (1, 2, -3, 0.5):
            arrays = {
                key: np.multiply(each, each.dtype.type(factor), out=np.empty_like(each)) for key, each in first.items()
            }
            results = (each if isinstance(each, tuple) else (each,) for each in problem.call(both, arrays))
            for one, other in zip(*results, strict=True):
                assert on_host(one).tobytes() == on_host(other).tobytes()

    holds()


@on_a_gpu
@pytest.mark.parametrize("precision", ["strict", "fast", "tf32"])
@pytest.mark.parametrize("limit", [None, 10_000])
def test_a_dry_run_tells_what_is_launched(precision: Any, limit: int | None) -> None:
    torch, dry = torch_(), importlib.import_module("kernelproof.kernels.cuda.host.dry").dry
    x, weight, dy = (torch.randn(shape, device="cuda") for shape in ((8, 32, 9, 9), (64, 32, 3, 3), (8, 64, 7, 7)))
    calls = (
        (spec.conv2d, x, weight),
        (spec.conv2d_dx, dy, weight, (8, 32, 9, 9)),
        (spec.conv2d_dweight, dy, x, (64, 32, 3, 3)),
    )
    backend = kernels.backend("cuda").at(precision)
    with kernels.workspace_limit(limit):
        for operator, first, second, *rest in calls:
            tape = modules.tape.Tape()
            with modules.tape.recorded_on(tape):
                result = operator.perform(backend.kernel(operator), *map(modules.arrays.taken, (first, second)), *rest)
            told = dry(operator, backend.kernel(operator), [first.shape, second.shape], np.float32, *rest)
            assert [(a.name, a.blocks, a.threads, a.shared) for a in tape.launches] == [
                (a.name, a.blocks, a.threads, a.shared) for a in told.launches
            ]
            assert told.workspace == sum(each.size for each in tape.taken) - result.nbytes


@on_a_gpu
def test_one_array_as_two_arguments_is_not_taken_for_one_later() -> None:
    torch = torch_()
    x, dy = torch.randn(3, 5, device="cuda"), torch.randn(3, 5, device="cuda")
    for a, b in ((x, x), (x, x), (dy, x), (x, dy), (dy, x)):
        assert bool((kernels.relu_dx(a, b) == torch.where(b > 0, a, 0)).all())


@on_a_gpu
def test_calls_work_in_one_pooled_piece_of_memory() -> None:
    torch = torch_()
    x, weight = torch.randn(64, 32, 28, 28, device="cuda"), torch.randn(64, 32, 3, 3, device="cuda")
    y = kernels.conv2d(x, weight, padding=1)
    for _ in range(2):
        y = kernels.conv2d(x, weight, padding=1)
    before, most = torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated
    torch.cuda.reset_peak_memory_stats()
    for _ in range(20):
        y = kernels.conv2d(x, weight, padding=1)
    assert most() == before + y.nbytes  # The old y, which is let go once the new one is there.
    assert torch.cuda.memory_allocated() == before


@on_a_gpu
def test_no_more_memory_is_taken_than_is_allowed() -> None:
    torch = torch_()
    x, weight = torch.randn(8, 32, 14, 14, device="cuda"), torch.randn(64, 32, 3, 3, device="cuda")
    right = torch.nn.functional.conv2d(x.double(), weight.double(), padding=1)
    scale = torch.nn.functional.conv2d(x.double().abs(), weight.double().abs(), padding=1)
    results = []
    for limit in (None, 0, None, 0):
        with kernels.workspace_limit(limit):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            y = kernels.conv2d(x, weight, padding=1)
            if limit == 0:
                # The result, and where the call is new, one number beside which later results are made.
                assert torch.cuda.max_memory_allocated() <= before + y.nbytes + 512
        results.append(y)
        assert bool(((y - right).abs() <= 289 * 2.0**-24 * scale).all())
    assert not bool((results[0] == results[1]).all())  # Another algorithm.
    assert bool((results[0] == results[2]).all())
    assert bool((results[1] == results[3]).all())
    with kernels.workspace_limit(0), pytest.raises(spec.UnsupportedError, match="workspace_limit"):
        kernels.max_pool2d_dx(x, x, 3, stride=1, padding=1)
