"""Which tensor cores a GPU has, as far as plans differ by them: what multiplies, in what widths, in how much memory.

Hopper's multiply out of shared memory, a warpgroup at a time (`wgmma`, implicit_gemm.py). Those from Ampere on multiply
a warp's registers (`mma.sync`, warp_gemm.py); Hopper can, too, which is how they are proven there. Volta's and Turing's
know float16 alone: neither *strict*, which every call gets that does not ask for less, nor TF32 is to be had of them,
and Volta cannot read matrices from shared memory. They are left to the plain kernels.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rung:
    """Bytes of shared memory that a block of threads may use, the widths that are compiled, and who multiplies."""

    shared_memory: int
    columns: tuple[int, ...]
    by_warps: bool


HOPPER = Rung(227 * 1024, (64, 104, 112, 120, 128, 136), by_warps=False)
"""The most columns whose sums and their promotion fit a warpgroup's registers are 136."""
AMPERE = Rung(163 * 1024, (128, 96, 64), by_warps=True)
"""Of widths whose turns cost as much the first is taken: 128 columns took 164 us, 96 took 169 (bf16x6, an H200)."""
ADA = Rung(99 * 1024, AMPERE.columns, by_warps=True)
"""Also what every later GPU has at least."""


def rung_of(capability: tuple[int, int]) -> Rung | None:
    """By the compute capability; None if the tensor cores are too old, or not there."""
    if capability < (8, 0):
        return None
    return {(9, 0): HOPPER, (8, 0): AMPERE, (8, 7): AMPERE}.get(capability, ADA)
