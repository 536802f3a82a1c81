"""The operators on all cores of the CPU, compiled by numba: plain and right.

Every output element is summed by one thread in a fixed order, so the bits do not depend on the number of threads.
"""

from kernelproof.kernels.jit_cache import private_cache

with private_cache():
    from . import conv, linear, pool, relu, training

__all__ = ["conv", "linear", "pool", "relu", "training"]
