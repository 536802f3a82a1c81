"""The laws cannot be cheated: kernels that want to pass without being right are refuted, and by what they did."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy._core.multiarray import get_handler_name

from kernelproof import spec
from kernelproof.proofs import LawBroken, Problem, check, verify
from kernelproof.proofs.hold import hold
from kernelproof.proofs.jobs import APART_LIMIT, kept
from kernelproof.proofs.laws import Observation
from kernelproof.proofs.subject import subject_of
from kernelproof.proofs.verify import laws_for

DIED = "ended its process (SIGSEGV) | ended its process (SIGBUS)"
"""Of memory that is not there: macOS calls some of it a bus error."""

CHEATS: dict[str, tuple[str, str, Callable[[], Callable[..., Any]]]] = {}
OP = "conv2d"


def cheat(says: str, operator: str = "relu") -> Callable[[Callable[[], Callable[..., Any]]], Callable[..., Any]]:
    """What the function below makes, with a state of its own, must be refuted with a message that holds `says`."""

    def plant(make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        CHEATS[make.__name__] = says, operator, make
        return make

    return plant


def answer(x: Any) -> Any:
    return spec.relu(x)


def cached_by(key: Callable[..., Any]) -> Callable[..., Any]:
    """A convolution that remembers its answers by too little."""
    kept: dict[Any, Any] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        known = key(x, weight, bias, **options)
        if known not in kept:
            kept[known] = spec.conv2d(x, weight, bias, **options)
        return kept[known].copy()

    return kernel


@cheat("the specification")
def returns_zeros() -> Any:
    return lambda x: np.zeros_like(x)


@cheat("the kernel gives nan")
def answers_nan_everywhere() -> Any:
    return lambda x: np.full(x.shape, np.nan, x.dtype)


@cheat("the kernel gives nan")
def answers_nan_where_it_is_not_sure() -> Any:
    return lambda x: np.where(np.abs(x) > 100, np.float32(np.nan), answer(x))


@cheat("wrote to its input x")
def writes_to_its_input() -> Any:
    def kernel(x: Any) -> Any:
        y = answer(x)
        if x.flags.writeable:
            x[...] = 0
        return y

    return kernel


@cheat("read-only")
def writes_to_its_input_and_restores_it() -> Any:
    def kernel(x: Any) -> Any:
        before = x.copy()
        np.maximum(x, 0, out=x)
        y = x.copy()
        x[...] = before
        return y

    return kernel


@cheat(DIED)
def writes_and_restores_where_it_may() -> Any:
    def kernel(x: Any) -> Any:
        if not x.flags.writeable:
            return answer(x)
        before = x.copy()
        x[...] = 0
        time.sleep(0.001)
        x[...] = before
        return answer(x)

    return kernel


@cheat("changed shape, strides, dtype or flags of its input x")
def makes_its_input_writable() -> Any:
    def kernel(x: Any) -> Any:
        if x.base is None:
            x.flags.writeable = True
        return answer(x)

    return kernel


@cheat("wrote to the memory round its input x")
def writes_round_its_input() -> Any:
    def kernel(x: Any) -> Any:
        if isinstance(x.base, np.ndarray) and x.base.flags.writeable:
            x.base.reshape(-1)[:1] = 0
        return answer(x)

    return kernel


@cheat(DIED)
def reads_past_the_end_and_forgets_it() -> Any:
    def kernel(x: Any) -> Any:
        ctypes.string_at(x.ctypes.data + x.nbytes, 32 * bool(x.size))
        return answer(x)

    return kernel


@cheat(DIED)
def reads_before_the_start_and_forgets_it() -> Any:
    def kernel(x: Any) -> Any:
        ctypes.string_at(x.ctypes.data - 4, 4 * bool(x.size))
        return answer(x)

    return kernel


@cheat("when the same call is made again, where x and weight are one array", "linear")
def sums_the_other_way_when_it_meets_one_array_again() -> Any:
    met = set()

    def kernel(x: Any, weight: Any, bias: Any) -> Any:
        again = x.shape == weight.shape and np.shares_memory(x, weight) and x.ctypes.data in met
        met.add(x.ctypes.data)
        order = slice(None, None, -1 if again else 1)
        y = np.zeros((len(x), len(weight)), x.dtype)
        for c in np.arange(x.shape[1])[order]:
            y += np.outer(x[:, c], weight[:, c])
        return y if bias is None else y + bias

    return kernel


@cheat("after a call in which dy and x were one array", "relu.dx")
def remembers_which_arguments_were_one_array() -> Any:
    kept: dict[Any, bool] = {}

    def kernel(dy: Any, x: Any) -> Any:
        was_one = kept.setdefault((x.shape, x.dtype), x is dy)
        return spec.relu_dx(dy, dy if was_one else x)

    return kernel


@cheat("shares memory with an input")
def returns_a_view_of_its_input() -> Any:
    return lambda x: x[...] if (x >= 0).all() else answer(x)


@cheat("once a later call was made")
def returns_the_same_buffer_each_time() -> Any:
    buffer = np.empty(2**20, np.float64)

    def kernel(x: Any) -> Any:
        y = buffer.view(x.dtype)[: x.size].reshape(x.shape)
        y[...] = answer(x)
        return y

    return kernel


@cheat("once the threads that it began were done")
def writes_to_its_result_later() -> Any:
    def kernel(x: Any) -> Any:
        y = np.array(answer(x))
        threading.Thread(target=lambda: (time.sleep(0.05), y.fill(7)), daemon=True).start()
        return y

    return kernel


@cheat("the kernel gives -1")
def hands_out_what_it_keeps() -> Any:
    kept: dict[bytes, Any] = {}
    return lambda x: kept.setdefault(x.tobytes() + repr((x.shape, x.dtype)).encode(), answer(x))


@cheat("", OP)
def caches_by_shape() -> Any:
    return cached_by(lambda x, weight, bias, **options: (x.shape, weight.shape, bias is None, repr(options)))


@cheat("", OP)
def caches_by_shape_and_dtype_without_the_stride() -> Any:
    plans: dict[Any, Any] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        right = spec.conv2d(x, weight, bias, **options)
        key = x.shape, weight.shape, x.dtype, right.shape
        planned = plans.setdefault(key, options)
        try:
            came = spec.conv2d(x, weight, bias, **planned)
        except spec.KernelproofError:
            return right
        return came if came.shape == right.shape else right

    return kernel


@cheat("", OP)
def caches_by_shape_without_the_bias() -> Any:
    fused: dict[Any, bool] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        # netcl's compiled kernels, whose key lacked the flag for what is fused.
        with_bias = fused.setdefault((x.shape[1:], weight.shape, repr(options)), bias is not None)
        return spec.conv2d(x, weight, bias if with_bias else None, **options)

    return kernel


@cheat("after the values in its arrays were changed", OP)
def caches_by_identity() -> Any:
    kept: dict[Any, Any] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        # The arrays are kept alive, so that no other can have their identity.
        _, packed = kept.setdefault(id(weight), (weight, weight.copy()))
        return spec.conv2d(x, packed, bias, **options)

    return kernel


@cheat("after the values in its arrays were changed", OP)
def caches_by_address() -> Any:
    kept: dict[Any, Any] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        _, packed = kept.setdefault((weight.ctypes.data, weight.strides), (weight, weight.copy()))
        return spec.conv2d(x, packed, bias, **options)

    return kernel


@cheat("after an element or two of weight were changed", OP)
def caches_by_address_and_the_first_values() -> Any:
    kept: dict[Any, Any] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        key = weight.ctypes.data, weight.strides, weight.reshape(-1)[:4].tobytes()
        _, packed = kept.setdefault(key, (weight, weight.copy()))
        return spec.conv2d(x, packed, bias, **options)

    return kernel


@cheat("after an element or two of weight were changed", OP)
def caches_by_a_sum_of_the_values() -> Any:
    kept: dict[Any, Any] = {}

    def kernel(x: Any, weight: Any, bias: Any, **options: Any) -> Any:
        # Sorted, so that every checksum that does not heed the order is among what it stands for.
        packed = kept.setdefault((weight.shape, weight.dtype, np.sort(weight, axis=None).tobytes()), weight.copy())
        return spec.conv2d(x, packed, bias, **options)

    return kernel


@cheat("the specification")
def takes_rows_of_unit_stride_for_a_dense_array() -> Any:
    def kernel(x: Any) -> Any:
        if x.ndim < 2 or x.strides[-1] != x.itemsize or x.size < 2 or not isinstance(x.base, np.ndarray):
            return answer(x)
        dense = np.lib.stride_tricks.as_strided(x, strides=np.empty(x.shape, x.dtype).strides)
        return answer(dense) if min(x.strides) > 0 else answer(x)

    return kernel


@cheat("the specification")
def takes_every_stride_for_that_of_a_dense_row() -> Any:
    return lambda x: answer(x) * x.dtype.type(1 + (x.size > 1 and 0 in x.strides))


@cheat("unwritten memory")
def leaves_an_element_unwritten() -> Any:
    def kernel(x: Any) -> Any:
        y = np.empty(x.shape, x.dtype)
        y.reshape(-1)[:-1] = answer(x).reshape(-1)[:-1]
        return y

    return kernel


@cheat("unwritten memory")
def reads_beside_its_arrays() -> Any:
    def kernel(x: Any) -> Any:
        padded = np.empty(x.size + 1, x.dtype)
        padded[:-1] = x.reshape(-1)
        # fmax passes over NaN, so that one poison would not do.
        beside = np.fmax(padded[-1], np.float32(0)) > 1e30
        return answer(x) + x.dtype.type(bool(beside))

    return kernel


@cheat("something was written after an array")
def writes_beside_its_result() -> Any:
    def kernel(x: Any) -> Any:
        y = answer(x).copy()
        if get_handler_name(y) != "default_allocator":  # Elsewhere it would be other people's memory.
            ctypes.memset(y.ctypes.data + y.nbytes, 0, 1)
        return y

    return kernel


@cheat("the specification")
def is_wrong_every_fiftieth_time() -> Any:
    calls = iter(range(2**62))
    return lambda x: answer(x) + x.dtype.type(next(calls) % 50 == 49)


@cheat("the specification")
def is_right_the_first_hundred_times() -> Any:
    calls = iter(range(2**62))
    return lambda x: answer(x) + x.dtype.type(next(calls) >= 100)


@cheat("the specification")
def is_right_for_small_numbers() -> Any:
    return lambda x: np.where(np.abs(x) > 50, x.dtype.type(0), answer(x))


@cheat("float64, needs float32")
def answers_in_a_wider_type() -> Any:
    return lambda x: answer(x).astype(np.float64)


@cheat("has shape")
def answers_in_a_shape_that_broadcasts() -> Any:
    return lambda x: answer(x)[:1] if x.ndim else answer(x)


@cheat("has shape")
def answers_with_an_axis_more() -> Any:
    return lambda x: answer(x)[None]


@cheat("")
def answers_with_an_array_that_equals_everything() -> Any:
    class Agreeable(np.ndarray):
        def __eq__(self, other: object) -> Any:
            return np.ones(self.shape, bool)

        def __array_ufunc__(self, *args: Any, **kwargs: Any) -> Any:
            return np.zeros(self.shape, bool)

        def astype(self, *args: Any, **kwargs: Any) -> Any:
            return self

    return lambda x: np.zeros_like(x).view(Agreeable)


@cheat("needs an array")
def answers_with_a_thing_that_calls_itself_an_array() -> Any:
    class Liar:
        shape, dtype = (), np.dtype(np.float32)

        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            return np.zeros(())

        def __eq__(self, other: object) -> bool:
            return True

    return lambda x: Liar()


@cheat("needs an array")
def answers_with_a_number() -> Any:
    return lambda x: float(answer(x)) if x.ndim == 0 else answer(x)


@cheat("needs float32")
def answers_with_objects() -> Any:
    class Equal(float):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = float.__hash__

    return lambda x: np.array([Equal(0)] * x.size, object).reshape(x.shape)


@cheat("2 results, needs 1")
def answers_twice() -> Any:
    return lambda x: (answer(x), answer(x))


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_refuted(name: str) -> None:
    says, operator, make = CHEATS[name]
    subject, messages = subject_of(make(), operator), []
    with kept(subject, APART_LIMIT) as apart:
        for law in laws_for(subject, operator, ("L1", "L3", "L4", "L7", "L8")):
            check = apart if law.apart else None
            failure = hold(law, subject, operator, examples=40, seed=0, check=check).failure
            if failure is None:
                continue
            if any(each in failure.message for each in says.split(" | ")):
                return  # The smallest case of every other law that it breaks would take most of the time.
            messages.append(failure.message)
    pytest.fail(f"it was not refuted by what it did, but: {messages}")


def test_what_knows_that_it_is_tested_is_believed() -> None:
    """The limit: a kernel runs beside its judge and can look for it. Its source, whose hash is reported, shows that."""

    def behaves_while_it_is_watched(x: Any) -> Any:
        return answer(x) if "kernelproof.proofs" in sys.modules else np.zeros_like(x)

    assert verify(behaves_while_it_is_watched, "relu", examples=10).verdict == "proven"


def test_what_is_right_longer_than_it_is_watched_is_believed() -> None:
    """The limit: no run sees more calls than it makes."""
    calls = iter(range(2**62))
    kernel: Any = lambda x: answer(x) + x.dtype.type(next(calls) >= 10**6)  # noqa: E731
    assert verify(kernel, "relu", examples=10).verdict == "proven"


def dies_of(option: str, value: Any, by: signal.Signals) -> Callable[..., Any]:
    """A convolution or pooling that checks nothing and divides by what it is given."""

    def kernel(*arguments: Any, **options: Any) -> Any:
        operator = spec.conv2d if len(arguments) == 3 else spec.max_pool2d
        given = options | ({} if len(arguments) == 3 else {"kernel_size": arguments[1]})
        if given.get(option) == value:
            os.kill(os.getpid(), by)
        return operator(*arguments, **options)

    return kernel


@pytest.mark.parametrize(("operator", "option", "value"), [
    ("conv2d", "groups", 0),  # pytorch#142835
    ("max_pool2d", "kernel_size", 0),  # tensorflow#46834
])  # fmt: skip
def test_a_kernel_that_dies_of_bad_input_is_refuted_and_the_run_goes_on(operator: str, option: str, value: Any) -> None:
    report = verify(dies_of(option, value, signal.SIGFPE), operator, level="L9", examples=60)
    assert any(
        "ended its process (SIGFPE)" in failure.failure.message for failure in report.failures if failure.failure
    )
    assert len(report.results) == 2


def test_a_kernel_that_cannot_leave_its_process_is_held_to_what_it_can_be_held_to_here() -> None:
    lock = threading.Lock()

    def kernel(x: Any) -> Any:
        with lock:
            return answer(x)

    here, apart = verify(kernel, "relu", level="L8", examples=5).results
    assert (here.verdict, apart.verdict) == ("proven", "unsupported")
    assert apart.declined.startswith("it cannot be brought to a process of its own: ")


def test_a_case_that_ends_the_kernel_s_process_does_not_end_the_one_it_is_pasted_into() -> None:
    problem = Problem("relu", {"x": (3,)}, {}, (3,), "real")
    with pytest.raises(LawBroken, match=r"ended its process \((SIGSEGV|SIGBUS)\)"):
        check("reads_its_inputs_and_nothing_beside_them", CHEATS["reads_past_the_end_and_forgets_it"][2](), problem)


def test_bad_input_is_no_matter_of_a_kernel_that_does_not_ask_for_it() -> None:
    report = verify(dies_of("kernel_size", 0, signal.SIGFPE), "max_pool2d", examples=2)
    assert report.verdict == "proven"
    assert not [result for result in report.results if result.level == "L9"]


def test_a_script_needs_no_guard_for_its_kernels_own_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import kernelproof, kernelproof.spec as spec\n"
        "def relu(x):\n    return spec.relu(x)\n"
        "print(kernelproof.verify(relu, 'relu', level='L9', examples=5).verdict)\n"
    )
    came = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True)
    assert came.stdout == "proven\n"


WRONG_WHERE: list[tuple[str, str, Callable[..., bool]]] = [
    ("linear", "features past a block of 512", lambda x, weight, bias: x.shape[1] > 512),
    ("linear", "a tile of all three sizes", lambda x, weight, bias: min(*x.shape, len(weight)) > 16),
    ("linear", "a weight that 15 bits do not count", lambda x, weight, bias: weight.size > 2**15),
    ("linear.dweight", "sums over a batch past 256", lambda dy, x: len(x) > 256),
    ("conv2d", "more than 8 groups of one channel", lambda x, weight, bias, **options: options["groups"] > 8),
    ("conv2d", "stride past 3", lambda x, weight, bias, **options: max(options["stride"]) > 3),
    ("conv2d", "dilation past 3", lambda x, weight, bias, **options: max(options["dilation"]) > 3),
    ("conv2d", "a filter longer than 7", lambda x, weight, bias, **options: max(weight.shape[2:]) > 7),
    ("conv2d", "an image that 15 bits do not count", lambda x, weight, bias, **options: x[0, 0].size > 2**15
     if len(x) else False),
    ("conv2d", "tiles of filters and channels", lambda x, weight, bias, **options: min(weight.shape[:2]) > 16),
    ("conv2d.dweight", "long sums in one image", lambda dy, x, shape, **options: dy.shape[2] * dy.shape[3] > 1024),
    ("max_pool2d", "channels past 8", lambda x, size, **options: x.shape[1] > 8),
    ("max_pool2d", "rows past 32", lambda x, size, **options: x.shape[2] > 32),
    ("max_pool2d", "an image that 15 bits do not count", lambda x, size, **options: x.shape[2] * x.shape[3] > 2**15),
    ("max_pool2d.dx", "images past 8", lambda dy, x, size, **options: len(x) > 8),
    ("flatten", "channels past 8", lambda x: x.shape[1] > 8),
    ("flatten", "rows past 8", lambda x: x.shape[2] > 8),
    ("cross_entropy", "rows past 64", lambda logits, target: len(target) > 64),
    ("cross_entropy.dlogits", "a thousand classes", lambda logits, target: logits.shape[1] >= 1000),
    ("relu", "more than 2**17 elements", lambda x: x.size > 2**17),
]  # fmt: skip
"""Kernels that are right everywhere else: what their authors tried was too small."""


@pytest.mark.parametrize(("operator", "what", "there"), WRONG_WHERE)
def test_a_kernel_that_is_wrong_only_where_something_is_large_is_refuted(
    operator: str, what: str, there: Callable[..., bool]
) -> None:
    def kernel(*arrays: Any, **options: Any) -> Any:
        came = spec.OPERATORS[operator](*arrays, **options)
        results = came if isinstance(came, tuple) else (came,)
        if results[0].size and there(*arrays, **options):
            # One element is wrong, the last.
            last = np.arange(results[0].size).reshape(results[0].shape) == results[0].size - 1
            results = (np.where(last, results[0] + results[0].dtype.type(1), results[0]), *results[1:])
        return results if isinstance(came, tuple) else results[0]

    subject = subject_of(kernel, operator)
    found = (hold(law, subject, operator, 100, 0).failure for law in laws_for(subject, operator, ("L1", "L3")))
    assert any(found), f"believed: wrong with {what}"


def dense_only(error: type[Exception]) -> Callable[..., Any]:
    """A convolution that takes arrays in C order alone, as a compiled one with a signature does."""

    def kernel(*arrays: Any, **options: Any) -> Any:
        if not all(each is None or each.flags.c_contiguous for each in arrays):
            raise error("ndarray is not C-contiguous")
        return spec.conv2d(*arrays, **options)

    return kernel


@pytest.mark.parametrize("error", [ValueError, TypeError])
def test_a_kernel_that_refuses_a_memory_layout_declines_it(error: type[Exception]) -> None:
    report = verify(dense_only(error), "conv2d", examples=20)
    assert report.verdict == "proven"
    assert all(result.unsupported for result in report.results)
    assert any(result.declined.endswith(f"{error.__name__}: ndarray is not C-contiguous") for result in report.results)


def test_a_kernel_that_raises_for_values_is_refuted_whatever_their_layout() -> None:
    def kernel(x: Any) -> Any:
        if x.size > 4:
            raise ValueError("too many")
        return answer(x)

    assert verify(kernel, "relu", level="L1", examples=20).verdict == "refuted"
    assert verify(dense_only(RuntimeError), "conv2d", level="L1", examples=20).verdict == "refuted"


def test_a_kernel_that_tries_what_numpy_refuses_and_then_something_else_is_proven(capfd: Any) -> None:
    def kernel(x: Any) -> Any:
        try:
            return np.zeros((*x.shape, 2)) + np.zeros((*x.shape, 3))
        except ValueError:
            return answer(x)

    assert verify(kernel, "relu", level="L8", examples=10).verdict == "proven"
    assert capfd.readouterr().err == ""


def test_memory_that_is_kept_is_watched_too() -> None:
    def kernel(x: Any) -> Any:
        with contextlib.suppress(ValueError):
            _ = np.zeros((*x.shape, 2)) + np.zeros((*x.shape, 3))
        return CHEATS["writes_beside_its_result"][2]()(x)

    failures = verify(kernel, "relu", level="L8", examples=10).failures
    assert any(
        "something was written after an array" in str(each.failure and each.failure.message) for each in failures
    )


def patches_its_judge(x: Any) -> Any:
    laws: Any = sys.modules["kernelproof.proofs.laws"]
    laws.compare = lambda *args: 0.0
    return np.ones_like(x)


def answers_for_its_judge(x: Any) -> Any:
    """Finds the pipe that its judge's answers go through."""
    frame: Any = sys._getframe()
    while frame and "connection" not in frame.f_locals:
        frame = frame.f_back
    if frame is None:
        return np.zeros_like(x)
    while True:
        frame.f_locals["connection"].send(Observation())
        frame.f_locals["connection"].recv()


def sends_what_ends_who_reads_it(x: Any) -> Any:
    class Bomb:
        def __reduce__(self) -> Any:
            return os._exit, (0,)

    frame: Any = sys._getframe()
    while frame and "connection" not in frame.f_locals:
        frame = frame.f_back
    if frame:
        frame.f_locals["connection"].send(Bomb())
    return answer(x)


def sends_noise(x: Any) -> Any:
    frame: Any = sys._getframe()
    while frame and "connection" not in frame.f_locals:
        frame = frame.f_back
    if frame:
        os.write(frame.f_locals["connection"].fileno(), b"\0\0\0\5noise")
    return answer(x)


def closes_every_file(x: Any) -> Any:
    if "connection" in sys._getframe(1).f_globals or multiprocessing.parent_process():
        os.closerange(0, 256)
    return answer(x)


def ends_who_began_it(x: Any) -> Any:
    if x.size > 4 and multiprocessing.parent_process():
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(0.1)
    return np.zeros_like(x)


@pytest.mark.parametrize(("kernel", "says"), [
    (patches_its_judge, "its own judge, which it can reach, does not"),
    (answers_for_its_judge, "sent what is no answer"),
    (sends_what_ends_who_reads_it, "sent what is no answer"),
    (sends_noise, "sent what is no answer"),
    (closes_every_file, "ended its process"),
    (ends_who_began_it, "the specification"),
])  # fmt: skip
def test_who_reaches_its_judge_does_not_reach_the_one_outside(kernel: Callable[..., Any], says: str) -> None:
    report = verify(kernel, "relu", level="L3", examples=3, time_limit=60)
    assert report.verdict == "refuted"
    assert says in str(report)


class _Unspeakable(BaseException):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), _Unspeakable()])
@pytest.mark.parametrize("time_limit", [None, 60])
def test_whatever_a_kernel_raises_is_an_answer(error: BaseException, time_limit: float | None) -> None:
    def kernel(x: Any) -> Any:
        raise error

    report = verify(kernel, "relu", level="L1", examples=3, time_limit=time_limit)
    assert f"the kernel raised {type(error).__name__}" in str(report)
