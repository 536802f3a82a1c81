"""The CPU kernels built anew with every index checked, in poisoned and fenced memory.

numba checks no index in parallel code, so the build is serial. It takes -1 to -n for positions counted from the end: a
read at one of those is within the array, and wrong.
"""

import os
import subprocess
import sys

CHECKED = """
import numba

njit = numba.njit
numba.njit = lambda *args, **options: njit(*args, **options | {"parallel": False, "boundscheck": True, "cache": False})
"""

EVERY_KERNEL = """
from kernelproof.proofs import LAWS
from kernelproof.proofs.hold import hold
from kernelproof.proofs.subject import subject_of
from kernelproof.spec import OPERATORS

for operator in OPERATORS:
    subject = subject_of("cpu", operator, dtypes=("float32",))
    result = hold(LAWS["touches_no_memory_but_its_own"], subject, operator, 12, 0)
    assert result.verdict == "proven", result.failure
"""

SEVERAL_CHUNKS = """
import numpy
from kernelproof import kernels

x = numpy.ones(3 * 2**14 + 17)
kernels.relu(x), kernels.relu_dx(x, x), kernels.sgd(x, x, x, learning_rate=0.5, momentum=0.5)
"""

BEYOND = """
import numpy
from kernelproof.kernels.cpu import launch

@launch.parallel
def core(first, last, x):
    for task in numba.prange(first, last):
        x[task + 1] = 0

launch.launch(core, 3, 1, numpy.ones(3))
"""


def python(source: str) -> subprocess.CompletedProcess[str]:
    # Compiled for this alone: the checks are there before anything is optimised, which takes a third of the time.
    environment = os.environ | {"NUMBA_OPT": "0"}
    return subprocess.run(
        [sys.executable, "-c", CHECKED + source], env=environment, capture_output=True, text=True, check=False
    )


def test_no_kernel_indexes_outside_its_arrays() -> None:
    came = python(EVERY_KERNEL)
    assert came.returncode == 0, came.stderr


def test_no_chunk_ends_before_its_elements() -> None:
    came = python(SEVERAL_CHUNKS)
    assert came.returncode == 0, came.stderr


def test_an_index_outside_is_seen() -> None:
    assert "IndexError: index is out of bounds" in python(BEYOND).stderr
