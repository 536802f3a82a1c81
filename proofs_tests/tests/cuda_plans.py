"""What tests of the fast CUDA kernels share on machines without a GPU: their modules, arrays as plans see them, slots.

What the kernels do with a plan is done in numpy, on whole numbers, and must equal the specification.
"""

import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numba import config
from test_cuda_ptx import compilers_are_installed

from kernelproof import spec
from kernelproof.spec.window import Window

NEEDS_COMPILERS = [
    pytest.mark.skipif(bool(getattr(config, "ENABLE_CUDASIM", 0)), reason="the simulator knows no PTX"),
    pytest.mark.skipif(not compilers_are_installed(), reason="no libNVVM: pip install 'kernelproof[ptx]'"),
]
NAMES = (
    "cuda_cores.elementwise", "cuda_cores.few_outputs", "cuda_cores.first_block", "cuda_cores.input_gradient",
    "cuda_cores.depthwise", "cuda_cores.greatest", "cuda_cores.launch_direct",
    "cuda_cores.pool_by_twos", "cuda_cores.update", "host.arrays", "host.driver", "host.dry", "tensor_cores.again",
    "tensor_cores.gradient_slots", "tensor_cores.launch_conv", "tensor_cores.launch_dweight", "tensor_cores.loaders",
    "tensor_cores.plan", "tensor_cores.preconditions", "tensor_cores.problem", "tensor_cores.rungs",
    "tensor_cores.slots", "tensor_cores.splits", "tensor_cores.warp_gradient", "tensor_cores.weight_gradient",
    "tensor_cores.wide_dweight", "tensor_cores.wide_gradient",
)  # fmt: skip


def modules() -> Any:
    """The fast kernels' modules, which the simulator cannot import."""
    found = (importlib.import_module(f"kernelproof.kernels.cuda.{name}") for name in NAMES)
    return SimpleNamespace(**{name.rpartition(".")[2]: module for name, module in zip(NAMES, found, strict=True)})


def ptxas() -> str | None:
    """The assembler of the extra `ptx`, or the toolkit's."""
    import nvidia  # pyright: ignore[reportMissingImports]

    found = [str(path) for folder in nvidia.__path__ for path in Path(folder).glob("*/bin/ptxas")]
    return found[0] if found else shutil.which("ptxas")


class Strided:
    """What plans look at in an array: its shape, strides, scalars and place."""

    def __init__(self, array: np.ndarray) -> None:
        self.shape, self.strides, self.dtype, self.size = array.shape, array.strides, array.dtype, array.size
        self.place = SimpleNamespace(device=0)


GEOMETRIES = [
    # x, weight, stride, padding, dilation, groups
    ((2, 3, 5, 6), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((2, 3, 5, 6), (4, 3, 3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((3, 2, 5, 4), (2, 2, 3, 3), (1, 1), ((2, 0), (0, 3)), (1, 1), 1),
    ((1, 2, 7, 9), (2, 2, 3, 3), (1, 1), ((4, 4), (3, 5)), (2, 1), 1),
    ((2, 2, 7, 8), (3, 2, 3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
    ((2, 2, 9, 8), (3, 2, 7, 7), (2, 2), ((3, 3), (3, 3)), (1, 1), 1),
    ((2, 4, 6, 7), (6, 2, 2, 4), (1, 3), ((0, 1), (2, 1)), (1, 1), 2),
    ((2, 2, 9, 9), (2, 2, 3, 2), (2, 3), ((1, 0), (0, 2)), (2, 2), 1),
    ((2, 3, 4, 4), (5, 3, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((2, 3, 5, 4), (5, 3, 1, 1), (2, 2), ((1, 0), (0, 1)), (1, 1), 1),
    ((1, 1, 6, 12), (2, 1, 1, 9), (1, 1), ((0, 0), (4, 4)), (1, 1), 1),
    ((2, 2, 3, 3), (2, 2, 3, 3), (3, 3), ((1, 1), (1, 1)), (1, 1), 1),
]


def drawn(geometry: Any) -> tuple[np.ndarray, np.ndarray, Window, int]:
    x_shape, weight_shape, stride, padding, dilation, groups = geometry
    generator = np.random.default_rng(5)
    x, weight = (generator.integers(-9, 10, shape) for shape in (x_shape, weight_shape))
    return x, weight, Window(weight_shape[2:], stride, padding, dilation), groups


def options_of(window: Window, groups: int) -> dict[str, Any]:
    """As the specification takes them."""
    return {"stride": window.stride, "padding": window.padding, "dilation": window.dilation, "groups": groups}


def at(memory: np.ndarray, first: int, strides: tuple[int, ...], *index: int) -> int:
    """An entry of memory by its strides in elements."""
    return int(memory.reshape(-1)[first + sum(step * i for step, i in zip(strides, index, strict=True))])


def dy_and_dweight(x: np.ndarray, weight: np.ndarray, window: Window, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """A gradient of the output, and that of the weight by the specification."""
    options = options_of(window, groups)
    dy = np.random.default_rng(6).integers(-9, 10, spec.conv2d(x, weight, **options).shape)
    return dy, spec.conv2d_dweight(dy, x, weight.shape, **options)


def laid_out(x: np.ndarray, g: Any) -> np.ndarray:
    """`[phase, group, slot, channel]`, as the kernel lays out an array."""
    laid = np.zeros((g.phases, g.groups, g.slots, g.channels), np.int64)
    for phase, group, slot in np.ndindex(*laid.shape[:3]):
        a, b = divmod(phase, g.phase_columns)
        row, column = divmod(slot, g.pitch)
        n, row = divmod(row, g.rows)
        h, w = row * g.stride_h + a - g.top, column * g.stride_w + b - g.left
        if n < g.images and 0 <= h < g.height and 0 <= w < g.width:
            laid[phase, group, slot] = x[n, group * g.channels : (group + 1) * g.channels, h, w]
    return laid


def problem_of(m: Any, **changes: Any) -> Any:
    """A 3x3 convolution of images that lie in one piece, or one with these changes."""
    sizes: dict[str, Any] = {
        "images": 8, "groups": 1, "channels": 64, "filters": 64, "taps": (3, 3), "image": (56, 56), "output": (56, 56),
        "stride": (1, 1), "before": (1, 1), "dilation": (1, 1), "w_strides": (1, 1, 1, 1, 1), "y_strides": (1, 1, 1, 1),
    } | changes  # fmt: skip
    channels, (height, width) = sizes["groups"] * sizes["channels"], sizes["image"]
    dense = (channels * height * width, height * width, width, 1)
    return m.problem.Problem(**{"x_strides": dense} | sizes)
