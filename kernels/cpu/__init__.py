"""The operators on all cores of the CPU, compiled by numba.

Files that are called as operators hold their entries; `convolution` has every way to compute one, and planner.py
chooses. Beneath: the words of micro-kernels (vectors.py), micro-kernels, threads (launch.py as Python starts them,
workers.py in compiled code), memory (workspace.py).
Every sum has a fixed order, so the bits do not depend on the number of threads.
"""

from kernelproof.kernels.jit_cache import private_cache

with private_cache():
    from . import conv, linear, pool, relu, training

__all__ = ["conv", "linear", "pool", "relu", "training"]
