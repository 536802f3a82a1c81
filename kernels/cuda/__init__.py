"""The operators on NVIDIA GPUs, compiled by numba-cuda: a plain kernel for each, and fast ones from Ampere on.

Every output element is summed by one thread, or by blocks in a fixed order, so the bits do not depend on the order in
which threads run. The plain kernels (conv, linear, pool, relu, training) have no warp operations and no PTX: they are
the same code on every compute capability, and numba's simulator (`NUMBA_ENABLE_CUDASIM=1`) runs them without a GPU.
docs/how-a-cuda-convolution-runs.md leads through the fast ones.
"""

import importlib.util

import numpy as np

from kernelproof.spec.errors import UnsupportedError

if importlib.util.find_spec("numba_cuda") is None:
    raise UnsupportedError(
        "kernelproof.kernels.cuda",
        "no numba-cuda in this environment",
        "the extra `cuda`",
        "Install it with pip install 'kernelproof[cuda]'.",
    )

# numba-cuda 0.30 asks for a name that numpy 2.5 has no more: lent to it while it looks.
_lent = not hasattr(np, "row_stack")
if _lent:
    np.row_stack = np.vstack  # type: ignore[attr-defined]
try:
    importlib.import_module("numba.cuda.np.arrayobj")
except RuntimeError as error:
    # numba-cuda looks for libcudart as it is imported, in the simulator too.
    raise UnsupportedError(
        "kernelproof.kernels.cuda",
        "no CUDA runtime (libcudart) on this machine",
        "a CUDA toolkit, or the extra `ptx`",
        "Install one with pip install 'kernelproof[cuda,ptx]'.",
    ) from error
finally:
    if _lent:
        del np.row_stack  # type: ignore[attr-defined]

from . import conv, linear, pool, relu, training  # noqa: E402 - they compile

__all__ = ["conv", "linear", "pool", "relu", "training"]
