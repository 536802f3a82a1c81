"""The CUDA kernels hold the laws: in numba's simulator everywhere, and on the GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba import cuda

from kernelproof.spec import OPERATORS

LAWS = Path(__file__).with_name("cuda_laws.py")


def in_a_child(*command: str, simulated: bool) -> subprocess.CompletedProcess[str]:
    """A Python of its own: numba reads at its import whether to simulate."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1" if simulated else "0"}
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=900, check=False
    )


@pytest.mark.parametrize(
    "simulated",
    [
        pytest.param(True, id="simulator"),
        pytest.param(False, id="gpu", marks=pytest.mark.skipif(not cuda.is_available(), reason="no GPU here")),
    ],
)
def test_cuda_kernels_hold_the_laws(simulated: bool) -> None:
    child = in_a_child("-m", "pytest", "-q", "-p", "no:cacheprovider", str(LAWS), simulated=simulated)
    assert child.returncode == 0, child.stdout + child.stderr


def test_every_operator_has_a_cuda_kernel() -> None:
    program = (
        "import kernelproof.kernels.cuda; from kernelproof.kernels import KERNELS;"
        "print(*(name for name, backend in KERNELS if backend == 'cuda'))"
    )
    child = in_a_child("-c", program, simulated=True)
    assert sorted(child.stdout.split()) == sorted(name.replace(".", "_") for name in OPERATORS), child.stderr


@pytest.mark.skipif(cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_error_says_what_to_install_or_set() -> None:
    program = (
        "import numpy; from kernelproof import kernels, spec;"
        "kernels.backend('cuda')(spec.relu, numpy.ones(3, numpy.float32))"
    )
    child = in_a_child("-c", program, simulated=False)
    assert "UnsupportedError: relu: no GPU" in child.stderr
    assert "NUMBA_ENABLE_CUDASIM=1" in child.stderr
