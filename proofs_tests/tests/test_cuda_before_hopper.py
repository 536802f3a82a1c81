"""The fast CUDA kernels for GPUs that are no Hopper, on machines without any: they compile for them, and are chosen.

That their plans are right is held by test_cuda_plans.py and test_cuda_weight_gradient.py, for every rung.
"""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from cuda_plans import Strided, modules, problem_of, ptxas
from numba import config
from test_cuda_ptx import compilers_are_installed

from kernelproof import kernels
from kernelproof.spec import OPERATORS, conv2d
from kernelproof.spec.errors import ParameterError
from kernelproof.spec.window import Window

pytestmark = [
    pytest.mark.skipif(bool(getattr(config, "ENABLE_CUDASIM", 0)), reason="the simulator knows no PTX"),
    pytest.mark.skipif(not compilers_are_installed(), reason="no libNVVM: pip install 'kernelproof[ptx]'"),
]
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90")
HOPPERS = r"\b(wgmma|mbarrier|setmaxnreg|cp\.async\.bulk|fence\.proxy)\b"


def kernels_by_warps() -> Iterator[Any]:
    """Kernels of every kind, with the bytes of spills that they may have."""
    if getattr(config, "ENABLE_CUDASIM", 0) or not compilers_are_installed():
        return
    m = modules()
    blocks = [("strict", 3, 3, 16, 128), ("fast", 3, 3, 16, 128), ("tf32", 1, 3, 16, 96), ("bf16", 1, 1, 16, 64)]
    for each in [*blocks, ("strict", 1, 1, 32, 128, False)]:
        pack, convolve = m.launch_conv._kernels(m.slots.Block(*each, rung=m.rungs.AMPERE))
        # 64 sums and as many of products, beside what both are made of, leave a few of 255 registers too few.
        yield pytest.param(convolve, 48, id=convolve.name)
        yield pytest.param(pack, 0, id=pack.name)
    for key in (("strict", 3, True), ("bf16x4", 1, False)):
        multiply, reduce = m.launch_dweight._kernels(*key, m.rungs.AMPERE)
        yield pytest.param(multiply, 96, id=multiply.name)
        yield pytest.param(reduce, 0, id=reduce.name)
    for kernel in (m.launch_conv._greatest, m.again.output_again, m.launch_direct._kernel("channels", 1, 3, 3, 4, 2)):
        yield pytest.param(kernel, 0, id=kernel.name)


@pytest.mark.parametrize(("kernel", "spills"), list(kernels_by_warps()))
def test_kernel_compiles_for_gpus_from_ampere_on_within_their_registers(
    kernel: Any, spills: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    ampere = SimpleNamespace(compute_capability=(8, 0))
    monkeypatch.setattr("numba.cuda.dispatcher.get_current_device", lambda: ampere)
    text = kernel.ptx((8, 0))
    assert re.search(r"\.target sm_80\b", text)
    assert not re.search(HOPPERS, text)
    assert set(re.findall(r"(?<![.\w])(?:atom|red)\.[\w.]+", text)) <= {"red.global.max.u32"}
    assert not re.search(r"\.f64\b", text)
    assembler = ptxas()
    if assembler is None:
        pytest.skip("no ptxas")
    source = tmp_path / "kernel.ptx"
    source.write_text(text)
    for architecture in ARCHITECTURES:
        command = [assembler, f"-arch={architecture}", "-v", source, "-o", tmp_path / "kernel.cubin"]
        came = subprocess.run(command, capture_output=True, text=True, check=True)
        assert max(map(int, re.findall(r"(\d+) bytes spill", came.stderr))) <= spills, architecture
        assert int(re.findall(r"Used (\d+) registers", came.stderr)[0]) * kernel.threads <= 65536


def test_a_compute_capability_has_the_rung_of_its_tensor_cores() -> None:
    rungs = modules().rungs
    for capability in ((6, 1), (7, 0), (7, 5)):
        assert rungs.rung_of(capability) is None
    assert rungs.rung_of((8, 0)) == rungs.rung_of((8, 7)) == rungs.AMPERE
    assert rungs.rung_of((9, 0)) == rungs.HOPPER
    for capability in ((8, 6), (8, 9), (10, 0), (12, 0)):
        assert rungs.rung_of(capability) == rungs.ADA
    assert rungs.ADA.shared_memory < rungs.AMPERE.shared_memory < rungs.HOPPER.shared_memory


def capability_of_h200(monkeypatch: pytest.MonkeyPatch, asked: str | None) -> tuple[int, int]:
    driver = modules().driver
    if asked is None:
        monkeypatch.delenv(driver.OLDER, raising=False)
    else:
        monkeypatch.setenv(driver.OLDER, asked)
    return driver.capability.__wrapped__(-1)


@pytest.mark.parametrize(("asked", "came"), [(None, (9, 0)), ("9.0", (9, 0)), ("8.6", (8, 6)), ("7.5", (7, 5))])
def test_the_environment_may_ask_for_an_older_gpus_kernels(
    asked: str | None, came: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert capability_of_h200(monkeypatch, asked) == came


@pytest.mark.parametrize("asked", ["9.1", "10.0", "8", "8.66", "sm_80", "", "-8.0"])
def test_the_environment_cannot_ask_for_a_newer_gpus_kernels(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ParameterError, match=r"KERNELPROOF_COMPUTE_CAPABILITY.*up to 9\.0"):
        capability_of_h200(monkeypatch, asked)


def test_a_filter_is_taken_row_by_row_where_it_no_longer_fits_the_smaller_memory() -> None:
    m = modules()
    for rung in (m.rungs.AMPERE, m.rungs.ADA):
        problems = [problem_of(m, images=1, image=(9, w), output=(9, w)) for w in range(2, 400)]
        plans = [m.plan.plan(problem, "strict", 132, False, rung) for problem in problems]
        rows = [each.block.rows for each in plans]
        assert rows == sorted(rows, reverse=True)
        assert {3, 1} == set(rows)
        assert all(each.shared <= rung.shared_memory for each in plans)


@pytest.mark.parametrize("rung", ["AMPERE", "ADA"])
@pytest.mark.parametrize("precision", ["strict", "fast", "tf32", "fp16", "bf16"])
def test_every_precision_has_a_block_on_every_rung(precision: str, rung: str) -> None:
    m = modules()
    for taps in ((1, 1), (3, 3), (1, 7), (7, 7), (11, 11)):
        for stride in ((1, 1), (2, 2)):
            problem = problem_of(m, taps=taps, stride=stride, channels=33, filters=100)
            assert m.preconditions.explain(problem, precision, getattr(m.rungs, rung)) is None


def test_a_weight_gradient_with_far_taps_is_left_to_the_plain_kernel_where_they_no_longer_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    m = modules()
    monkeypatch.setattr(m.launch_dweight, "multiprocessors", lambda device: 72)
    x, dy, weight = (
        Strided(np.empty(shape, np.float32)) for shape in ((2, 96, 40, 40), (2, 64, 40, 40), (64, 96, 3, 3))
    )

    def served(dilation: int) -> bool:
        window = Window((3, 3), (1, 1), ((dilation, dilation), (dilation, dilation)), (dilation, dilation))
        return m.launch_dweight.plan(dy, x, weight, window, 1, "strict", m.rungs.ADA) is not None

    assert [served(dilation) for dilation in range(1, 7)] == [True] * 4 + [False] * 2


def test_plan_tells_the_kernels_of_the_gpu_that_is_named() -> None:
    names, kernel = {}, kernels.backend("cuda").at("strict").kernel(OPERATORS["conv2d"])
    for gpu in modules().driver.THOUGHT_OF:
        came = modules().dry.dry(conv2d, kernel, [(8, 64, 56, 56), (64, 64, 3, 3)], "float32", padding=1, gpu=gpu)
        names[gpu] = " ".join(launch.name for launch in came.launches)
    assert "implicit_gemm" in names["H200"]
    assert all("warp_gemm" in names[gpu] for gpu in ("A100", "A10", "L4"))
    assert "gemm" not in names["T4"]


def test_plan_knows_no_other_gpu() -> None:
    kernel = kernels.backend("cuda").kernel(OPERATORS["conv2d"])
    with pytest.raises(ParameterError, match="gpu='H300'; needs H200 or A100"):
        modules().dry.dry(conv2d, kernel, [(8, 64, 56, 56), (64, 64, 3, 3)], "float32", gpu="H300")
