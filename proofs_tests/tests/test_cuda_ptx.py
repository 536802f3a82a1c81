"""Every CUDA core compiles for GPUs from Volta to Hopper, on machines without any."""

import importlib
import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib
from numba import config

compiler: Any = importlib.import_module("numba.cuda")  # Any: these modules fill their names in as they run.
types: Any = importlib.import_module("numba.cuda.types")

GPUS = ((7, 0), (8, 0), (9, 0))

PAIR = types.UniTuple(types.int64, 2)
GEOMETRY = {
    "kernel": PAIR,
    "windows": PAIR,
    "stride": PAIR,
    "dilation": PAIR,
    "padding": types.UniTuple(PAIR, 2),
    "groups": types.int64,
}
INTEGERS = ("winner", "target")
VECTORS = ("bias", "dbias", "losses", "loss", "target")
MATRICES = ("shares",)


def compilers_are_installed() -> bool:
    """numba-cuda needs libNVVM and NVRTC: the extra `ptx`, or a CUDA toolkit."""
    try:
        return all(load_nvidia_dynamic_lib(name) for name in ("nvvm", "nvrtc"))
    except DynamicLibNotFoundError:
        return False


pytestmark = [
    pytest.mark.skipif(bool(getattr(config, "ENABLE_CUDASIM", 0)), reason="the simulator compiles nothing"),
    pytest.mark.skipif(not compilers_are_installed(), reason="no libNVVM: pip install 'kernelproof[ptx]'"),
]


def cores() -> list[Any]:
    """Every kernel that is launched, as (module, core)."""
    return [
        pytest.param(module, core, id=name)
        for module in ("conv", "pool", "linear", "relu", "training")
        for name, core in vars(importlib.import_module(f"kernelproof.kernels.cuda.{module}")).items()
        if hasattr(core, "py_func") and not core.targetoptions["device"]
    ]


def signature(module: str, core: Any, scalar: Any) -> tuple[Any, ...]:
    """The core's argument types, by their names; arrays of any strides."""
    axes = {"linear": 2, "training": 2}.get(module, 4)

    def kind(name: str) -> Any:
        if name in GEOMETRY:
            return GEOMETRY[name]
        if name in ("learning_rate", "momentum"):
            return scalar
        rank = 1 if name in VECTORS else 2 if name in MATRICES else axes
        return types.Array(types.int64 if name in INTEGERS else scalar, rank, "A")

    return tuple(kind(name) for name in inspect.signature(core.py_func).parameters)


@pytest.mark.parametrize("scalar", [types.float32, types.float64], ids=str)
@pytest.mark.parametrize(("module", "core"), cores())
def test_core_compiles_without_atomics_and_without_a_wider_scalar(
    module: str, core: Any, scalar: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A device function asks the GPU at hand what to compile for; here there may be none.
    volta = SimpleNamespace(compute_capability=GPUS[0])
    monkeypatch.setattr("numba.cuda.dispatcher.get_current_device", lambda: volta)
    arguments = signature(module, core, scalar)
    for major, minor in GPUS:
        ptx, result = compiler.compile_ptx(core.py_func, arguments, cc=(major, minor))
        assert result == types.void
        assert f".target sm_{major}{minor}" in ptx
        assert not re.search(r"\b(atom|red)\.", ptx)
        assert (".f64" in ptx) == (scalar == types.float64)


def test_ptx_is_kept_for_the_next_process_and_a_full_disk_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver: Any = importlib.import_module("kernelproof.kernels.cuda.host.driver")
    kernel, compiled = driver._ZEROS, []
    text = kernel.ptx((9, 0))

    def compile_again(capability: tuple[int, int]) -> str:
        compiled.append(capability)
        return text

    def on_a_full_disk(path: Path, content: bytes) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(kernel, "ptx", compile_again)
    monkeypatch.setattr(driver, "cache_folder", lambda: tmp_path)
    with monkeypatch.context() as full:
        full.setattr(driver, "write_whole", on_a_full_disk)
        assert kernel._cached_ptx((9, 0)) == text
    assert [kernel._cached_ptx((9, 0)) for _ in range(3)] == [text] * 3
    assert compiled == [(9, 0)] * 2
    assert [each.suffix for each in tmp_path.iterdir()] == [".ptx"]
