"""A kernel in a process of its own: what it dies of, what it raises, and what it tells its judge."""

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
from cheats import answer
from cheats_with_memory import reads_past_the_end_and_forgets_it

from kernelproof import spec
from kernelproof.proofs import LawBroken, Problem, check, verify
from kernelproof.proofs.laws import Observation


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
        check("reads_its_inputs_and_nothing_beside_them", reads_past_the_end_and_forgets_it(), problem)


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
        raise type(error)(*error.args)  # One that was raised before keeps frames, which Dask has pickle take along.

    report = verify(kernel, "relu", level="L1", examples=3, time_limit=time_limit)
    assert f"the kernel raised {type(error).__name__}" in str(report)
