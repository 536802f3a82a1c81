"""The laws cannot be cheated: kernels that want to pass without being right are refuted, and by what they did."""

import contextlib
import sys
from typing import Any

import cheats_that_remember  # noqa: F401 - they register theirs
import numpy as np
import pytest
from cheats import CHEATS, answer
from cheats_with_memory import writes_beside_its_result

from kernelproof.proofs import verify
from kernelproof.proofs.hold import hold
from kernelproof.proofs.jobs import APART_LIMIT, kept
from kernelproof.proofs.subject import subject_of
from kernelproof.proofs.verify import laws_for


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
        return writes_beside_its_result()(x)

    failures = verify(kernel, "relu", level="L8", examples=10).failures
    assert any(
        "something was written after an array" in str(each.failure and each.failure.message) for each in failures
    )
