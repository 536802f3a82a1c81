"""The micro-kernels beyond this machine: narrower vectors hold the laws too, NEON compiles, and no tile spills."""

import ctypes
import os
import re
import subprocess
import sys

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from kernelproof.kernels import jit_cache
from kernelproof.kernels.cpu.micro_kernels import TILES, clear, multiply
from kernelproof.kernels.cpu.vectors import LANES, MicroKernel

TARGETS = {
    16: ("x86_64-unknown-linux-gnu", "skylake-avx512", "-prefer-256-bit", r"zmm\d+"),
    8: ("x86_64-unknown-linux-gnu", "haswell", "", r"ymm\d+"),
    4: ("aarch64-unknown-linux-gnu", "neoverse-n1", "", r"\bq\d+"),
}
"""By lanes: triple, processor, features, and how assembly names a vector register."""


def assembly(lanes: int) -> list[str]:
    """The tile's multiply for a processor of so many lanes, optimised, as assembly."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple, processor, features, _ = TARGETS[lanes]
    pixels, vectors = TILES[lanes]
    module = ir.Module()
    module.triple = triple
    multiply.write(module, lanes, pixels=pixels, vectors=vectors, pixel_step=4)
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, features=features, opt=3)
    compiled = llvm.parse_assembly(str(module))
    compiled.verify()
    builder = llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(speed_level=3))
    builder.getModulePassManager().run(compiled, builder)
    return machine.emit_assembly(compiled).splitlines()


@pytest.mark.parametrize("lanes", TILES)
def test_the_sums_of_a_tile_stay_in_registers(lanes: int) -> None:
    lines, (pixels, vectors) = assembly(lanes), TILES[lanes]
    fused = [line for line in lines if re.search(r"\bvfmadd|\bfmla\b", line)]
    assert len(fused) == pixels * vectors, "one fused multiply-add for each sum, in one loop"
    vector = TARGETS[lanes][3]
    # Some registers belong to whoever calls: those are put aside once, before the first and after the last.
    first, last = lines.index(fused[0]), lines.index(fused[-1])
    spilled = [line for line in lines[first : last + 1] if re.search(vector, line) and re.search(r"\bsp\b|%rsp", line)]
    assert not spilled, spilled


LAWS = """
import sys
from kernelproof.kernels.cpu.vectors import LANES
assert LANES == int(sys.argv[1]), LANES
from kernelproof.proofs.algorithms import algorithms
from kernelproof.proofs.hold import hold
from kernelproof.proofs.laws import LAWS
for name, subject in algorithms().items():
    for operator in subject.functions:
        for law in sys.argv[2:]:
            if LAWS[law].needs(subject.kernel(operator)):
                result = hold(LAWS[law], subject, operator, examples=8, seed=0)
                assert result.failure is None, (name, operator, law, result.failure.message)
print("held")
"""


@pytest.mark.parametrize(("lanes", "features", "laws"), [
    pytest.param(8, "+avx2,+fma", ("equals_the_specification_on_whole_numbers", "rounds_within_the_derived_bound"),
                 marks=pytest.mark.skipif(LANES == 8, reason="test_algorithms.py does, on this processor")),
    pytest.param(4, "-avx2,+fma", ("equals_the_specification_on_whole_numbers",)),
])  # fmt: skip
@pytest.mark.skipif(LANES < 8, reason="a processor without AVX2")
def test_algorithms_hold_their_laws_on_narrower_vectors(
    lanes: int, features: str, laws: tuple[str, ...], tmp_path
) -> None:
    """Four lanes are NEON's, with its tile of 12 x 2 on registers that are not there: slow, but the same order."""
    environment = os.environ | {
        "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": features, "XDG_CACHE_HOME": str(tmp_path),
    }  # fmt: skip
    command = [sys.executable, "-c", LAWS, str(lanes), *laws]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout == "held\n", result.stderr


def test_a_routine_is_kept_and_compiled_anew_where_what_was_kept_is_damaged(tmp_path, monkeypatch) -> None:
    written: list[str] = []
    write = MicroKernel.write
    monkeypatch.setattr(jit_cache, "_folder", lambda: tmp_path)

    def counted(kernel: MicroKernel, *args, **constants) -> None:  # type: ignore[no-untyped-def]
        written.append(kernel.name(**constants))
        write(kernel, *args, **constants)

    monkeypatch.setattr(MicroKernel, "write", counted)

    def clears() -> bool:
        array = np.ones(LANES + 3, np.float32)
        routine = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(MicroKernel(clear.body).address())
        routine(array.ctypes.data, LANES + 1)
        return array.tolist() == [0.0] * (LANES + 1) + [1.0] * 2

    assert clears()
    assert clears()
    assert len(written) == 1
    (kept,) = tmp_path.iterdir()
    for damage in (kept.read_bytes()[:-1], b"", b"\n"):
        kept.write_bytes(damage)
        written.clear()
        assert clears()
        assert clears()
        assert len(written) == 1
    monkeypatch.setattr(jit_cache, "_folder", lambda: None)
    assert clears()
    assert len(written) == 2
