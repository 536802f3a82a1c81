"""Compiled kernels kept on disk: what one process compiled with what another left there serves a third."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CALLS = {
    "convolution": "kernels.conv2d(x, weight)",
    "pooling": "kernels.max_pool2d(x, 2)",
    "a pooling's gradient": "kernels.max_pool2d_dx(x[:, :, :3, :6], x, 2)",
    "a weight gradient": "kernels.conv2d_dweight(x, x, (3, 3, 3, 3), padding=1)",
    "linear": "kernels.linear(x.reshape(3, 91), x.reshape(3, 91))",
    "the loss": "kernels.cross_entropy(x[0, 0], np.arange(7))",
}


def run(folder: Path, *calls: str) -> None:
    setting = "import numpy as np; from kernelproof import kernels; "
    setting += "x, weight = np.ones((1, 3, 7, 13), np.float32), np.ones((4, 3, 3, 3), np.float32); "
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
    environment.pop("NUMBA_CACHE_DIR", None)
    came = subprocess.run(
        [sys.executable, "-c", setting + "; ".join(calls)], env=environment, capture_output=True, text=True, check=False
    )
    assert came.returncode == 0, (calls, came.stderr[-2000:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    run(folder, CALLS["convolution"])
    # The others find what they share with it compiled: numba does not note for them then that they need threads.
    run(folder, *CALLS.values())
    return folder


@pytest.mark.parametrize("name", CALLS)
def test_a_kernel_from_the_cache_is_the_first_that_a_process_calls(name: str, folder: Path) -> None:
    run(folder, CALLS[name])
