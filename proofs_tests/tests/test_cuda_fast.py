"""The fast CUDA kernels compile for Hopper on machines without a GPU, within the registers that they count on."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cuda_plans import NEEDS_COMPILERS, modules, ptxas
from numba import config
from test_cuda_ptx import compilers_are_installed

pytestmark = NEEDS_COMPILERS


def fast_kernels() -> Iterator[Any]:
    """Kernels of every kind, with the bytes of spills that they may have."""
    if getattr(config, "ENABLE_CUDASIM", 0) or not compilers_are_installed():
        return
    m = modules()
    taps = ((3, 3, 16, 136), (1, 2, 16, 104), (1, 1, 32, 128, False))
    blocks = [m.slots.Block("strict", *each) for each in taps]
    blocks += [m.slots.Block(precision, *taps[0]) for precision in ("fast", "tf32")]
    blocks += [m.slots.Block(precision, 1, 1, 64, 128, False, True) for precision in ("strict", "fast")]
    blocks += [m.slots.Block(*each, gathered=True) for each in (("strict", 1, 1, 32, 136), ("fast", 1, 1, 32, 128))]
    blocks += [m.slots.Block(precision, 3, 3, 16, 128, stacked=True) for precision in ("strict", "fast")]
    for block in blocks:
        pack, convolve = m.launch_conv._kernels(block)
        # 68 sums in each of two tuples, and the scales of images or where taps lie, leave a few registers too few.
        spills = 288 if block.arithmetic.scaled or block.gathered else 96
        yield pytest.param(convolve, spills, id=convolve.name)
        yield pytest.param(pack, 0, id=pack.name)
    for key in (("strict", 3, True), ("strict", 1, False), ("bf16x4", 2, False), ("bf16", 3, False)):
        for kernel in m.launch_dweight._kernels(*key):
            yield pytest.param(kernel, 0, id=kernel.name)
    for arithmetic in ("strict", "bf16"):
        kernel, _ = m.launch_dweight._kernels(arithmetic, 1, False, gathered=True)
        yield pytest.param(kernel, 16, id=kernel.name)  # 896 threads have 72 registers each.
    for key in ((3, 7, 7, 2, 2, 4), (1, 3, 3, 1, 1, 4), (4, 5, 5, 1, 1, 4), (1, 1, 1, 3, 3, 4), (3, 7, 7, 1, 2, 2)):
        kernel = m.input_gradient.kernel(m.input_gradient.Shape(*key))
        yield pytest.param(kernel, 0, id=kernel.name)
    for key in (("strict", 3), ("strict", 1), ("bf16x4", 3), ("bf16", 1)):
        for kernel in m.wide_dweight._kernels(*key, 4, 3):
            yield pytest.param(kernel, 0, id=f"{kernel.name} of {key}")
    others = [
        m.launch_conv._greatest, m.again.output_again, m.again.input_gradient_again, m.launch_dweight.again,
        m.wide_dweight.again, m.launch_direct._kernel("channels", 1, 3, 3, 4, 2),
        m.launch_direct._kernel("channels", 3, 3, 3, 1, 1), m.launch_direct._kernel("filters", 1, 3, 3),
        m.launch_direct._kernel("filters", 3, 4, 4), m.launch_direct._gradient_kernel(3, 3, 8, 3),
        m.launch_direct._gradient_kernel(1, 7, 8, 7), m.launch_direct._gradient_kernel(1, 1, 1, 1),
        m.launch_direct._depthwise(3, 3, 8), m.launch_direct._depthwise_gradient(3, 3, 8),
        m.launch_direct._depthwise(5, 5, 6), m.launch_direct._depthwise_gradient(1, 4, 7),
        m.launch_direct.add_shares(4), m.launch_direct.add_shares(32), *m.elementwise.KERNELS.values(),
        m.elementwise._PLANE_SUMS, m.elementwise._GATED_SUMS, m.pool_by_twos._POOL,
        m.launch_conv.laid_out.kernel("fast", 0.0),
        m.pool_by_twos._UNPOOL, m.few_outputs._forward(10, 4), m.few_outputs._forward(1, 2), m.few_outputs._dx(10),
        m.few_outputs._dweight(16), *m.first_block._kernels(1, 3, 3, 8), *m.first_block._kernels(3, 3, 3, 3),
        m.update._UPDATE,
    ]  # fmt: skip
    for kernel in others:
        yield pytest.param(kernel, 0, id=kernel.name)


@pytest.mark.parametrize(("kernel", "spills"), list(fast_kernels()))
def test_kernel_compiles_for_hopper_within_its_registers(
    kernel: Any, spills: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hopper = SimpleNamespace(compute_capability=(9, 0))
    monkeypatch.setattr("numba.cuda.dispatcher.get_current_device", lambda: hopper)
    text = kernel.ptx((9, 0))
    assert f".target sm_90{kernel.features}" in text
    # A maximum of integers is the same in any order; no other result may depend on it.
    assert set(re.findall(r"(?<![.\w])(?:atom|red)\.[\w.]+", text)) <= {"red.global.max.u32"}
    assert not re.search(r"\.f64\b", text)
    assembler = ptxas()
    if assembler is None:
        pytest.skip("no ptxas")
    source = tmp_path / "kernel.ptx"
    source.write_text(text)
    came = subprocess.run(
        [assembler, f"-arch=sm_90{kernel.features}", "-v", source, "-o", tmp_path / "kernel.cubin"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "wgmma.mma_async instructions are serialized" not in came.stderr
    stored, loaded = map(int, re.findall(r"(\d+) bytes spill", came.stderr))
    assert max(stored, loaded) <= spills
    assert int(re.findall(r"Used (\d+) registers", came.stderr)[0]) * kernel.threads <= 65536
