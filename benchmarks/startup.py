"""What a user waits for before the first result: imports, the first compilation, the way from Python to a kernel."""

import functools
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from peers import installed
from timing import Samples, interleaved

from kernelproof import Conv2d, SpecChain, kernels

GOALS = {
    "from kernelproof import SpecChain": 0.3,
    "first call, nothing cached": 5.0,
    "first call, cached": 0.3,
    "dispatch, kernels.conv2d": 1e-5,
    "dispatch, compiled chain": 1e-5,
}
"""Seconds."""

TIMED = "import time; started = time.perf_counter(); {}; print(time.perf_counter() - started)"
CHAIN = (
    "import numpy, kernelproof.models as m; chain = m.cnn_with_relu_spec(m.CNN2Config()); own = chain.initialise(0); "
    "x, y = numpy.ones((64, 1, 28, 28), numpy.float32), numpy.zeros(64, int); started = time.perf_counter(); "
)
FIRST = {
    "first call": f"{CHAIN}chain.compile('cpu').forward(own, x)",
    "first training step": f"{CHAIN}next(m.train(chain.compile('cpu'), own, x, y))",
}
"""Of CNN2, from `chain.compile` on: what it imports, compiles and loads is counted."""


def startup(rounds: int, samples: Samples) -> dict[str, Any]:
    """Seconds to import, to CNN2's first result with an empty and a filled cache, and of a call."""
    imports = {
        "import kernelproof": "",
        "from kernelproof import SpecChain": "",
        "import torch": "torch",
        "import jax": "jax",
    }
    found = {code: _seconds(code) for code, package in imports.items() if not package or package in installed()}
    for name, code in FIRST.items():
        with tempfile.TemporaryDirectory() as cache:
            found[f"{name}, nothing cached"] = _seconds(code, times=1, NUMBA_CACHE_DIR=cache)
            found[f"{name}, cached"] = _seconds(code, NUMBA_CACHE_DIR=cache)
    found |= {f"dispatch, {who}": each for who, each in _dispatch(rounds, samples).items()}
    for name, seconds in found.items():
        print(f"{name:<40} {1e3 * seconds:10.3f} ms", flush=True)
    return {"seconds": found, "goals": GOALS}


def _seconds(code: str, times: int = 5, **environment: str) -> float:
    """Median over fresh processes of what the code takes, or takes from where it sets `started` again."""
    command = [sys.executable, "-c", TIMED.format(code)]
    # Python keeps bytecode wherever nobody forbids it.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return statistics.median(
        float(subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True).stdout)
        for _ in range(times)
    )


def _dispatch(rounds: int, samples: Samples) -> Mapping[str, float]:
    """A convolution of 10,368 multiply-adds: what is left is the way there."""
    generator = np.random.default_rng(0)
    x, weight = (generator.standard_normal(shape, np.float32) for shape in ((1, 4, 6, 6), (4, 4, 3, 3)))
    chain = SpecChain(Conv2d(4, 4, 3, padding=1, bias=False), input="n 4 6 6").compile("cpu")
    parameters = chain.parameters({"conv1.weight": weight})
    calls: dict[str, Callable[[], Any]] = {
        "kernels.conv2d": functools.partial(kernels.conv2d, x, weight, padding=1),
        "compiled chain": functools.partial(chain.forward, parameters, x),
    }
    if "torch" in installed():
        import torch  # pyright: ignore[reportMissingImports]

        of_torch = torch.from_numpy(x), torch.from_numpy(weight)
        calls["torch"] = functools.partial(torch.nn.functional.conv2d, *of_torch, padding=1)
    return {who: each.seconds for who, each in interleaved(calls, rounds, samples).items()}
